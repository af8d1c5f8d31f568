//! Reading entries from the log ring, in place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_ringbuf::Consumer;

use crate::entry::{Entry, EntryError, Limits, Sequence, Verify, split};

/// Who compares an entry's CRC.
#[derive(Debug, Clone)]
pub enum Checked {
    /// This reader: nobody has looked at the bytes (`shm`, acknowledged when committed).
    ByReader,
    /// The receiver, before it committed the entry to this ring (`tcp`).
    ByReceiver,
    /// The receiver, in place: entries behind its cursor do not exist yet (`shm`, acknowledged when
    /// received).
    BehindReceiver(ReceivedCursor),
}

/// How far the receiving thread has checked a ring that it does not write itself. A byte count since
/// the ring's start.
#[derive(Debug, Clone, Default)]
pub struct ReceivedCursor(Arc<AtomicU64>);

impl ReceivedCursor {
    /// A receiver that stands at `cursor`.
    #[must_use]
    pub fn at(cursor: u64) -> Self {
        Self(Arc::new(AtomicU64::new(cursor)))
    }

    /// Where the receiver stands.
    #[must_use]
    pub fn get(&self) -> u64 {
        // Acquire: pairs with the Release in `advance`. The bytes before the cursor were checked.
        self.0.load(Ordering::Acquire)
    }

    /// The receiver has checked everything before `cursor`.
    pub fn advance(&self, cursor: u64) {
        // Release: pairs with the Acquire in `get`.
        self.0.store(cursor, Ordering::Release);
    }
}

/// Reads the entries of a log in order.
#[derive(Debug)]
pub struct EntryReader {
    consumer: Consumer,
    limits: Limits,
    last: Sequence,
    checked: Checked,
    /// Bytes in the log of the entry at the front, once it was found valid.
    front: Option<usize>,
}

impl EntryReader {
    /// Reads through `consumer`, of a ring of `capacity` bytes; the first entry has the number
    /// behind `last` ([`Sequence::NONE`] in a new log).
    #[must_use]
    pub const fn new(consumer: Consumer, capacity: u64, last: Sequence, checked: Checked) -> Self {
        Self {
            consumer,
            limits: Limits::of_ring(capacity),
            last,
            checked,
            front: None,
        }
    }

    /// The entry at the front, or `None` if the log has no further complete entry yet. The same
    /// entry until [`EntryReader::release`]; it is checked once.
    ///
    /// # Errors
    /// The bytes at the front are no valid entry, or not the next one. They stay at the front.
    pub fn peek(&mut self) -> Result<Option<Entry<'_>>, EntryError> {
        let mut bytes = self.consumer.readable();
        if let Checked::BehindReceiver(received) = &self.checked {
            let visible = received.get().saturating_sub(self.consumer.cursor());
            let visible = usize::try_from(visible)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            bytes = &bytes[..visible];
        }
        let verify = match (&self.checked, self.front) {
            (Checked::ByReader, None) => Verify::All,
            _ => Verify::Frame,
        };
        let Some(entry) = split(bytes, self.limits, verify)? else {
            return Ok(None);
        };
        let expected = self.last.next();
        if entry.sequence() != expected {
            return Err(EntryError::Sequence {
                found: entry.sequence(),
                expected,
            });
        }
        self.front = Some(entry.bytes_in_log());
        Ok(Some(entry))
    }

    /// Gives the entry that [`EntryReader::peek`] returned back to the writer; the next one is at the
    /// front.
    ///
    /// # Panics
    /// No entry was peeked since the last release: a caller's mistake.
    pub fn release(&mut self) {
        let Some(bytes) = self.front.take() else {
            panic!("release without a peeked entry")
        };
        self.consumer.release(bytes);
        self.last = self.last.next();
    }

    /// Number of the last entry released.
    #[must_use]
    pub const fn last_sequence(&self) -> Sequence {
        self.last
    }

    /// The ring underneath: sealing it, and its cursor.
    #[must_use]
    pub const fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// As [`EntryReader::consumer`], for the calls that need it whole.
    pub const fn consumer_mut(&mut self) -> &mut Consumer {
        &mut self.consumer
    }
}
