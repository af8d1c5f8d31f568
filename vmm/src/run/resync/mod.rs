//! Makes the backup's own disks equal to the primary's, before the machine starts: the two ends of what
//! [`crate::ft::disk::resync`] says.
//!
//! Each end is one thread that reads and writes blocks and speaks on one connection. Nothing waits for ever: who
//! does not get on for [`SILENCE`] is given up, and the resync is begun again by whoever comes next.

mod backup;
mod line;
mod meet;
mod primary;
#[cfg(test)]
mod tests;

use std::time::Duration;

use lockstep_logchan::transport::connect::ConnectError;
use serde::Serialize;

use crate::ft::disk::copy::CopyRefusal;
use crate::ft::disk::resync::FrameError;
use crate::host::disk::CopyError;

use backup::join;
use line::Line;
pub(super) use meet::Meeting;
use primary::serve;

/// Who does not get on for so long is given up.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// A backup that writes makes it durable every so many bytes, so that no single wait is longer than [`SILENCE`].
const SYNC_EVERY: u64 = 64 << 20;

/// How far a resync is, for `lockstep status`. Blocks of 64 KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ResyncProgress {
    /// Blocks whose digests were compared.
    pub compared: u64,
    /// Blocks that are to be; 0 on a backup, which is not told.
    pub to_compare: u64,
    /// Blocks that differed.
    pub differed: u64,
}

/// A resync ended before the copies were equal.
#[derive(Debug, thiserror::Error)]
pub enum ResyncError {
    /// A disk or a record of this side.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The copies are not to be made equal.
    #[error(transparent)]
    Refused(CopyRefusal),
    /// The connection was not made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The peer does not speak like one.
    #[error("the peer sent {0}")]
    Frame(#[from] FrameError),
    /// A frame in the wrong place.
    #[error("the peer sent a {found}, expected {expected}")]
    OutOfTurn {
        /// What came.
        found: &'static str,
        /// What was to come.
        expected: &'static str,
    },
    /// A disk that is none.
    #[error("the peer speaks of disk {found} of its own, expected less than {expected}")]
    Disk {
        /// Its number.
        found: u8,
        /// How many there are.
        expected: usize,
    },
    /// A block that was not to come.
    #[error("the peer speaks of block {found}, expected {expected}")]
    Block {
        /// Its number.
        found: u64,
        /// In words.
        expected: String,
    },
    /// A block or a bitmap of the wrong length.
    #[error("the peer sent {what} of {found} bytes, expected {expected}")]
    Length {
        /// Of what.
        what: &'static str,
        /// As found.
        found: usize,
        /// By the size of the disk.
        expected: usize,
    },
    /// The peer is gone.
    #[error("the peer closed the connection in the middle of the resync")]
    Closed,
    /// The peer says nothing.
    #[error("the peer did not get on for {SILENCE:?}")]
    Silent,
    /// The operator asked to stop.
    #[error("stopped in the middle of the resync; it is begun again when both sides start")]
    Stopped,
    /// A system call failed.
    #[error("the resync's connection: {0}")]
    Io(#[source] std::io::Error),
}

impl ResyncError {
    /// Whether this side cannot go on by itself; everything else is the other's, who may come again.
    pub(super) const fn is_ours(&self) -> bool {
        matches!(self, Self::Copy(_) | Self::Stopped)
    }
}
