//! Where entries are written to and read from.

use lockstep_logchan::entry::{
    Entry, EntryError, Flags, Limits, MAX_PAYLOAD_BYTES, Sequence, decode,
};
use lockstep_logchan::reader::EntryReader;
use lockstep_logchan::writer::{Draft, DraftError, EntryWriter};

/// Where a recorder writes: the log ring, or nowhere ([`Unlogged`]).
pub trait LogWrite {
    /// An entry being written.
    type Draft<'a>: LogDraft
    where
        Self: 'a;
    /// Whether anybody reads what is written; if not, a recorder computes no digests.
    const KEPT: bool;

    /// Begins an entry with room for `payload_max` bytes. A draft that is dropped leaves nothing.
    ///
    /// # Errors
    /// The log is full (wait, try again), or no entry is that large.
    fn draft(&mut self, payload_max: usize) -> Result<Self::Draft<'_>, DraftError>;
}

/// An entry being written, invisible to readers until it is committed.
pub trait LogDraft {
    /// Where the payload goes.
    fn payload_mut(&mut self) -> &mut [u8];
    /// Completes the entry with the first `length` bytes of the payload.
    fn commit(self, kind: u16, flags: Flags, position: u64, clock: u64, length: usize) -> Sequence;
}

/// Where a replayer reads: the log ring, or the bytes of a saved log ([`LogBytes`]).
pub trait LogRead {
    /// The next complete entry, the same one until it is released; `None` if there is none yet.
    ///
    /// # Errors
    /// The bytes there are not an entry.
    fn peek(&mut self) -> Result<Option<Entry<'_>>, EntryError>;
    /// Done with the entry that was peeked.
    fn release(&mut self);
}

impl LogWrite for EntryWriter {
    type Draft<'a> = Draft<'a>;
    const KEPT: bool = true;

    fn draft(&mut self, payload_max: usize) -> Result<Draft<'_>, DraftError> {
        Self::draft(self, payload_max)
    }
}

impl LogDraft for Draft<'_> {
    fn payload_mut(&mut self) -> &mut [u8] {
        self.payload_mut()
    }

    fn commit(self, kind: u16, flags: Flags, position: u64, clock: u64, length: usize) -> Sequence {
        self.commit(kind, flags, position, clock, length)
    }
}

impl LogRead for EntryReader {
    fn peek(&mut self) -> Result<Option<Entry<'_>>, EntryError> {
        Self::peek(self)
    }

    fn release(&mut self) {
        Self::release(self);
    }
}

/// The log of a machine that nobody follows: numbers are given, bytes are forgotten. A primary that
/// goes on alone and an unprotected machine are recorded into it, so that one code path serves all.
#[derive(Debug)]
pub struct Unlogged {
    scratch: Vec<u8>,
    last: Sequence,
}

impl Unlogged {
    /// Goes on numbering after `last`.
    #[must_use]
    pub fn after(last: Sequence) -> Self {
        Self {
            scratch: vec![0; MAX_PAYLOAD_BYTES],
            last,
        }
    }
}

impl LogWrite for Unlogged {
    type Draft<'a> = UnloggedDraft<'a>;
    const KEPT: bool = false;

    fn draft(&mut self, payload_max: usize) -> Result<UnloggedDraft<'_>, DraftError> {
        if payload_max > self.scratch.len() {
            let maximum = self.scratch.len();
            return Err(DraftError::TooLarge {
                found: payload_max,
                maximum,
            });
        }
        Ok(UnloggedDraft {
            payload: &mut self.scratch[..payload_max],
            last: &mut self.last,
        })
    }
}

/// A draft of [`Unlogged`].
#[derive(Debug)]
pub struct UnloggedDraft<'a> {
    payload: &'a mut [u8],
    last: &'a mut Sequence,
}

impl LogDraft for UnloggedDraft<'_> {
    fn payload_mut(&mut self) -> &mut [u8] {
        self.payload
    }

    fn commit(self, _: u16, _: Flags, _: u64, _: u64, _: usize) -> Sequence {
        *self.last = self.last.next();
        *self.last
    }
}

/// A log held in memory, one entry after the other from the first byte: a saved log, mapped.
#[derive(Debug, Clone)]
pub struct LogBytes<'a> {
    rest: &'a [u8],
    last: Sequence,
    front: usize,
}

impl<'a> LogBytes<'a> {
    /// Reads `bytes`, whose first entry follows `last`.
    #[must_use]
    pub const fn new(bytes: &'a [u8], last: Sequence) -> Self {
        Self {
            rest: bytes,
            last,
            front: 0,
        }
    }

    /// Bytes not yet released. When [`LogRead::peek`] finds no entry: a cut-off one, or none.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }
}

impl LogRead for LogBytes<'_> {
    fn peek(&mut self) -> Result<Option<Entry<'_>>, EntryError> {
        let Some(entry) = decode(self.rest, Limits::default())? else {
            return Ok(None);
        };
        let expected = self.last.next();
        if entry.sequence() != expected {
            return Err(EntryError::Sequence {
                found: entry.sequence(),
                expected,
            });
        }
        self.front = entry.bytes_in_log();
        Ok(Some(entry))
    }

    fn release(&mut self) {
        assert!(self.front != 0, "release without a peeked entry");
        self.rest = &self.rest[std::mem::take(&mut self.front)..];
        self.last = self.last.next();
    }
}
