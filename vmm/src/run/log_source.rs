//! The log as a backup's replaying thread reads it, with a copy to a file if the operator wants one.

use std::time::Duration;

use lockstep_logchan::entry::{Entry, EntryError, Sequence};
use lockstep_logchan::reader::EntryReader;
use lockstep_ringbuf::WaitPolicy;

use crate::ft::log::LogRead;

/// An [`EntryReader`] whose entries are also saved as they are released.
pub(super) struct LogSource {
    reader: EntryReader,
    /// The primary writes this very ring: sealing it is what stops it.
    shared: bool,
}

impl LogSource {
    pub const fn new(reader: EntryReader, shared: bool) -> Self {
        Self { reader, shared }
    }

    /// Nothing is acknowledged behind `acknowledged` any more; on a shared ring that takes a seal,
    /// and the ring itself then holds everything that was.
    pub fn seal(&mut self, acknowledged: Sequence) -> Sequence {
        if !self.shared {
            return acknowledged;
        }
        self.reader.seal();
        Sequence::NONE
    }

    pub fn wait(&self, policy: &WaitPolicy, timeout: Duration) {
        let _ = self.reader.wait(policy, timeout);
    }
}

impl LogRead for LogSource {
    fn peek(&mut self) -> Result<Option<Entry<'_>>, EntryError> {
        self.reader.peek()
    }

    fn release(&mut self) {
        self.reader.release();
    }
}
