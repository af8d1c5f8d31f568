//! Writing entries into the log ring, in place.

use lockstep_ringbuf::Producer;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::entry::{Flags, HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, Sequence, crc_of, padded};

/// No entry could be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// The log has no room: the backup, or the way to it, is behind. The vCPU waits:
    /// [`Producer::wait_free`] with `needed`.
    #[error("the log ring is full: {free} bytes free, the entry needs {needed}")]
    Full {
        /// Bytes that the entry takes in the log.
        needed: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// No entry is that long.
    #[error("a payload of {found} bytes fits no log entry: at most {maximum}")]
    TooLarge {
        /// Bytes asked for.
        found: usize,
        /// [`MAX_PAYLOAD_BYTES`], or less in a small ring.
        maximum: usize,
    },
}

/// Writes entries, numbered without a gap. Nothing is copied and nothing allocated: a payload is
/// written where the transport will send it from.
#[derive(Debug)]
pub struct EntryWriter {
    producer: Producer,
    last: Sequence,
    last_position: u64,
}

impl EntryWriter {
    /// Writes through `producer`; the first entry gets the number behind `last`
    /// ([`Sequence::NONE`] in a new log).
    #[must_use]
    pub fn new(producer: Producer, last: Sequence) -> Self {
        Self {
            producer,
            last,
            last_position: 0,
        }
    }

    /// Begins an entry with room for `payload_max` bytes of payload. A draft that is dropped leaves
    /// nothing.
    ///
    /// # Errors
    /// The log is full, or no entry is that large.
    pub fn draft(&mut self, payload_max: usize) -> Result<Draft<'_>, DraftError> {
        if payload_max > MAX_PAYLOAD_BYTES {
            return Err(DraftError::TooLarge {
                found: payload_max,
                maximum: MAX_PAYLOAD_BYTES,
            });
        }
        let needed = padded(HEADER_BYTES + payload_max);
        match self.producer.reserve(needed) {
            Ok(_) => Ok(Draft {
                writer: self,
                reserved: needed,
                payload_max,
            }),
            Err(full) if full.never_fits() => Err(DraftError::TooLarge {
                found: payload_max,
                maximum: full.capacity - HEADER_BYTES,
            }),
            Err(full) => Err(DraftError::Full {
                needed,
                free: full.free,
            }),
        }
    }

    /// Number of the last entry committed.
    #[must_use]
    pub const fn last_sequence(&self) -> Sequence {
        self.last
    }

    /// Position of the last entry committed; 0 before the first.
    #[must_use]
    pub const fn last_position(&self) -> u64 {
        self.last_position
    }

    /// The ring underneath: whether it is sealed, and waiting for room.
    #[must_use]
    pub const fn producer(&self) -> &Producer {
        &self.producer
    }

    /// As [`EntryWriter::producer`], for the calls that need it whole.
    pub const fn producer_mut(&mut self) -> &mut Producer {
        &mut self.producer
    }
}

/// An entry being written. Invisible to readers until [`Draft::commit`].
#[derive(Debug)]
pub struct Draft<'w> {
    writer: &'w mut EntryWriter,
    reserved: usize,
    payload_max: usize,
}

impl Draft<'_> {
    /// The reservation made in [`EntryWriter::draft`]. The ring hands out the same bytes until a
    /// commit, and no commit can come between while the draft borrows the writer.
    fn bytes(&mut self) -> &mut [u8] {
        match self.writer.producer.reserve(self.reserved) {
            Ok(bytes) => bytes,
            // Free space only grows until this very draft commits.
            Err(_) => unreachable!(
                "the ring took back a reservation of {} bytes",
                self.reserved
            ),
        }
    }

    /// Where the payload goes: `payload_max` bytes, holding whatever the ring held there.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let end = HEADER_BYTES + self.payload_max;
        &mut self.bytes()[HEADER_BYTES..end]
    }

    /// Completes the entry with the first `payload_len` bytes of [`Draft::payload_mut`] and makes it
    /// visible. Returns its number.
    ///
    /// Wakes nobody: a reader that sleeps is woken by
    /// [`wake_backup`](crate::transport::PrimaryChannel::wake_backup), after what is more urgent, or
    /// by [`Producer::wake_consumer`].
    ///
    /// # Panics
    /// `payload_len` is more than was drafted: a caller's mistake, not an input's.
    pub fn commit(
        mut self,
        kind: u16,
        flags: Flags,
        position: u64,
        clock: u64,
        payload_len: usize,
    ) -> Sequence {
        assert!(
            payload_len <= self.payload_max,
            "commit of {payload_len} bytes into a draft of {}",
            self.payload_max
        );
        let sequence = self.writer.last.next();
        let length = HEADER_BYTES + payload_len;
        let entry = &mut self.bytes()[..padded(length)];
        entry[length..].fill(0);
        let header = Header {
            crc: U32::ZERO,
            length: U32::new(length as u32),
            sequence: U64::new(sequence.0),
            position: U64::new(position),
            clock: U64::new(clock),
            kind: U16::new(kind),
            flags: U16::new(flags.bits()),
            reserved: U32::ZERO,
        };
        entry[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        let crc = crc_of(entry);
        entry[..4].copy_from_slice(&crc.to_le_bytes());
        self.writer.producer.publish(padded(length));
        self.writer.last = sequence;
        self.writer.last_position = position;
        sequence
    }
}
