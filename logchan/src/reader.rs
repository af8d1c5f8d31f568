//! Reading entries from the log ring, in place.

use std::time::Duration;

use lockstep_ringbuf::{Consumer, WaitPolicy, Waited};

use crate::entry::{Entry, EntryError, Limits, Sequence, Verify, split};
pub use crate::received::ReceivedCursor;

/// Who compares an entry's CRC.
#[derive(Debug, Clone)]
pub enum Checked {
    /// This reader: nobody has looked at the bytes (`shm`, acknowledged when committed).
    ByReader,
    /// The receiver, before it committed the entry to this ring (`tcp`).
    ByReceiver,
    /// The receiver, in place: what is behind its cursor does not exist yet (`shm`, acknowledged
    /// when received).
    BehindReceiver(ReceivedCursor),
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
    /// Reads through `consumer`; the first entry has the number behind `last` ([`Sequence::NONE`] in
    /// a new log).
    #[must_use]
    pub fn new(consumer: Consumer, last: Sequence, checked: Checked) -> Self {
        let limits = Limits::of_ring(consumer.capacity() as u64);
        Self {
            consumer,
            limits,
            last,
            checked,
            front: None,
        }
    }

    /// The entry at the front, or `None` if the log goes no further yet. The same entry until
    /// [`EntryReader::release`]; it is checked once.
    ///
    /// # Errors
    /// The bytes at the front are no valid entry, not the next one, or the writer left the ring
    /// corrupt. The front stays where it is.
    pub fn peek(&mut self) -> Result<Option<Entry<'_>>, EntryError> {
        // Looking takes the writer's cache line; what is known already lasts for many entries.
        let mut bytes = self.consumer.known();
        if bytes.is_empty() {
            bytes = self.consumer.readable();
        }
        if let Checked::BehindReceiver(received) = &self.checked {
            let visible = received.get().saturating_sub(self.consumer.cursor());
            let visible = usize::try_from(visible).unwrap_or(usize::MAX);
            bytes = &bytes[..visible.min(bytes.len())];
        }
        if bytes.is_empty() {
            return self
                .consumer
                .fault()
                .map_or(Ok(None), |fault| Err(EntryError::Ring(fault)));
        }
        let verify = match (&self.checked, self.front) {
            (Checked::ByReader, None) => Verify::All,
            _ => Verify::Frame,
        };
        // A ring is committed by whole entries, so half a one is a writer's mistake, not a matter
        // of waiting.
        let Some(entry) = split(bytes, self.limits, verify)? else {
            return Err(EntryError::Truncated {
                found: bytes.len() as u64,
            });
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

    /// Waits until [`EntryReader::peek`] has an entry, or an error, to return.
    pub fn wait(&self, policy: &WaitPolicy, timeout: Duration) -> Waited {
        self.wait_unless(policy, timeout, || false)
    }

    /// As [`EntryReader::wait`]; ends, as if time were up, when `enough` is true. Whoever makes it true
    /// then calls [`BackupChannel::wake_reader`](crate::transport::BackupChannel::wake_reader).
    pub fn wait_unless(
        &self,
        policy: &WaitPolicy,
        timeout: Duration,
        enough: impl Fn() -> bool,
    ) -> Waited {
        let cursor = self.consumer.cursor();
        match &self.checked {
            Checked::BehindReceiver(received) => {
                if received.wait_beyond(cursor, policy, timeout, enough) {
                    Waited::Ready
                } else {
                    Waited::TimedOut
                }
            }
            Checked::ByReader | Checked::ByReceiver => {
                self.consumer
                    .wait_committed_unless(cursor, policy, Some(timeout), enough)
            }
        }
    }

    /// Seals the ring, to go live: what the writer committed before is readable, what it commits
    /// afterwards never will be, and it finds that out
    /// ([`Producer::sealed`](lockstep_ringbuf::Producer::sealed)). From here on this reader waits for
    /// no receiver and checks for itself.
    ///
    /// Returns the byte at which the log ends.
    pub fn seal(&mut self) -> u64 {
        let end = self.consumer.seal();
        if matches!(self.checked, Checked::BehindReceiver(_)) {
            self.checked = Checked::ByReader;
        }
        end
    }

    /// Number of the last entry released.
    #[must_use]
    pub const fn last_sequence(&self) -> Sequence {
        self.last
    }

    /// The ring underneath.
    #[must_use]
    pub const fn consumer(&self) -> &Consumer {
        &self.consumer
    }
}
