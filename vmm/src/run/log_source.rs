//! The log as a backup's replaying thread reads it, with a copy to a file if the operator wants one.

use std::time::Duration;

use lockstep_logchan::entry::{Entry, EntryError, Sequence};
use lockstep_logchan::file::LogFileWriter;
use lockstep_logchan::reader::EntryReader;
use lockstep_ringbuf::WaitPolicy;

use crate::ft::log::LogRead;

/// An [`EntryReader`] whose entries are also saved as they are released.
pub(super) struct LogSource {
    reader: EntryReader,
    /// The primary writes this very ring: sealing it is what stops it.
    shared: bool,
    save: Option<LogFileWriter>,
}

impl LogSource {
    pub const fn new(reader: EntryReader, shared: bool, save: Option<LogFileWriter>) -> Self {
        Self {
            reader,
            shared,
            save,
        }
    }

    /// Whether the primary writes the very ring that this reads.
    pub const fn shared(&self) -> bool {
        self.shared
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

    /// Waits for an entry, until `enough` is true, or until time is up.
    pub fn wait(&self, policy: &WaitPolicy, timeout: Duration, enough: impl Fn() -> bool) {
        let _ = self.reader.wait_unless(policy, timeout, enough);
    }

    /// Copies the front entry to the file. A file that cannot be written is given up, aloud: the
    /// machine's life does not depend on it.
    fn save_front(&mut self) {
        let Some(save) = &mut self.save else { return };
        let saved = match self.reader.peek() {
            Ok(Some(entry)) => save.append(&entry),
            _ => Ok(()),
        };
        if let Err(error) = saved {
            tracing::error!(%error, "the log is no longer saved");
            self.save = None;
        }
    }
}

impl LogRead for LogSource {
    fn peek(&mut self) -> Result<Option<Entry<'_>>, EntryError> {
        self.reader.peek()
    }

    fn release(&mut self) {
        self.save_front();
        self.reader.release();
    }
}
