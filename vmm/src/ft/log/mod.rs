//! What a log entry says.
//!
//! `logchan` carries entries and knows their header; what `kind` means and how a payload is laid out
//! is decided here. Two types are kept apart: an [`Event`] is what the machine cannot compute and
//! is replayed; a [`Mark`] is what the backup checks itself against. There are no kinds that only a
//! recorder would understand.

mod access;
mod payload;

pub use access::{LogBytes, LogDraft, LogRead, LogWrite, Unlogged};
pub use lockstep_logchan::entry::{Entry, EntryError, Flags, Sequence};
pub use lockstep_logchan::writer::DraftError;
pub use payload::{
    DISK_HEADER_BYTES, DigestMark, DiskReadMark, EndReason, MARK_BYTES_MAX, OutputMark,
    PayloadError,
};
pub(crate) use payload::{disk_read_by_backup, disk_shipped};

use crate::ft::vm::Event;

/// Values of an entry's `kind`. Events are below 0x100, marks at and above it.
pub mod kind {
    /// [`super::Event::Clock`]; no payload.
    pub const CLOCK: u16 = 0x001;
    /// [`super::Event::Frame`]; the payload is the frame.
    pub const FRAME: u16 = 0x002;
    /// [`super::Event::Console`]; the payload is the bytes.
    pub const CONSOLE: u16 = 0x003;
    /// [`super::Event::PowerButton`]; no payload.
    pub const POWER_BUTTON: u16 = 0x004;
    /// [`super::Event::Entropy`]; the payload is the bytes.
    pub const ENTROPY: u16 = 0x005;
    /// [`super::Event::Disk`]: a header of 16 bytes (number u64, status u8, flags u8, zeros), then what
    /// a read brought; with flag 1 only its XXH3-64 ([`super::Body::DiskRead`]).
    pub const DISK: u16 = 0x006;
    /// [`super::Mark::Output`].
    pub const OUTPUT: u16 = 0x100;
    /// [`super::Mark::Digest`].
    pub const DIGEST: u16 = 0x101;
    /// [`super::Mark::End`].
    pub const END: u16 = 0x102;
}

/// Something the backup compares with what it computed itself. It changes no machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The machine said something at this position.
    Output(OutputMark),
    /// The machine's state at this position.
    Digest(DigestMark),
    /// The log ends here, in order: nobody goes live after it.
    End(EndReason),
}

/// What an entry asks of the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// Apply this.
    Event(Event<'a>),
    /// A disk read has ended well, and the backup gets the data from the shared disk itself: then
    /// apply [`Event::Disk`] with it.
    DiskRead(DiskReadMark),
    /// Compare with this.
    Mark(Mark),
}

/// Reads an entry's payload according to its kind.
///
/// # Errors
/// The kind is unknown, or the payload is not one of that kind.
pub fn decode(kind: u16, payload: &[u8]) -> Result<Body<'_>, PayloadError> {
    match kind {
        kind::CLOCK => payload::empty(kind, payload).map(|()| Body::Event(Event::Clock)),
        kind::FRAME => Ok(Body::Event(Event::Frame(payload))),
        kind::CONSOLE => Ok(Body::Event(Event::Console(payload))),
        kind::POWER_BUTTON => {
            payload::empty(kind, payload).map(|()| Body::Event(Event::PowerButton))
        }
        kind::ENTROPY => payload::entropy(payload).map(|bytes| Body::Event(Event::Entropy(bytes))),
        kind::DISK => payload::disk(payload),
        kind::OUTPUT => payload::output(payload).map(|mark| Body::Mark(Mark::Output(mark))),
        kind::DIGEST => payload::digest(payload).map(|mark| Body::Mark(Mark::Digest(mark))),
        kind::END => payload::end(payload).map(|reason| Body::Mark(Mark::End(reason))),
        found => Err(PayloadError::UnknownKind { found }),
    }
}

/// Writes a mark's payload to the start of `payload`, which holds [`MARK_BYTES_MAX`] bytes or more;
/// returns its kind and length.
pub(crate) fn encode_mark(mark: &Mark, payload: &mut [u8]) -> (u16, usize) {
    match mark {
        Mark::Output(mark) => (kind::OUTPUT, payload::write_output(mark, payload)),
        Mark::Digest(mark) => (kind::DIGEST, payload::write_digest(mark, payload)),
        Mark::End(reason) => (kind::END, payload::write_end(*reason, payload)),
    }
}

/// The kind of an event, and how many bytes its payload has.
pub(crate) const fn event_layout(event: &Event<'_>) -> (u16, usize) {
    match event {
        Event::Clock => (kind::CLOCK, 0),
        Event::Frame(bytes) => (kind::FRAME, bytes.len()),
        Event::Console(bytes) => (kind::CONSOLE, bytes.len()),
        Event::PowerButton => (kind::POWER_BUTTON, 0),
        Event::Entropy(bytes) => (kind::ENTROPY, bytes.len()),
        Event::Disk(done) => (kind::DISK, DISK_HEADER_BYTES + done.data.len()),
    }
}

/// Writes an event's payload to the start of `payload`, which has room for it.
pub(crate) fn write_event(event: &Event<'_>, payload: &mut [u8]) {
    match event {
        Event::Clock | Event::PowerButton => {}
        Event::Frame(bytes) | Event::Console(bytes) | Event::Entropy(bytes) => {
            payload[..bytes.len()].copy_from_slice(bytes);
        }
        Event::Disk(done) => {
            let (header, data) = payload.split_at_mut(DISK_HEADER_BYTES);
            disk_shipped(done.id, done.status, header);
            data[..done.data.len()].copy_from_slice(done.data);
        }
    }
}
