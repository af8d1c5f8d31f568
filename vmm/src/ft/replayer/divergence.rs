//! How a backup finds that it is not the primary's equal.

use super::{Entry, EntryError};
use crate::ft::disk::{DiskStatus, RequestId, RequestWireError};
use crate::ft::log::{PayloadError, Sequence};
use crate::ft::vm::{OutputKind, Position, StateDigest, VirtualTime};

/// The backup's execution differs from the primary's. Neither side is to blame by this alone: an
/// engine that is not deterministic, memory that changed by itself, unlike software. The backup
/// refuses to go live and asks to be cloned again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// The entry belongs to a position that the machine has left behind.
    #[error(
        "the next entry belongs to position {entry}, and the backup is at {machine} and running on"
    )]
    Passed {
        /// The entry's.
        entry: Position,
        /// The machine's.
        machine: Position,
    },
    /// The machine waits for an interrupt where the primary went on.
    #[error("the backup halted at position {position}, and the primary ran on to {entry}")]
    Halted {
        /// The machine's.
        position: Position,
        /// The next entry's.
        entry: Position,
    },
    /// The clocks differ at an entry.
    #[error(
        "at position {position}, entry {sequence}: the primary's clock shows {primary} ns, the backup's {backup} ns"
    )]
    Clock {
        /// Of both.
        position: Position,
        /// The entry.
        sequence: Sequence,
        /// The entry's clock.
        primary: VirtualTime,
        /// The machine's clock, before the entry.
        backup: VirtualTime,
    },
    /// An output of the primary that the backup did not say.
    #[error(
        "at position {position} the primary said output {number} ({expected:?}), and the backup said nothing"
    )]
    Missing {
        /// Of both.
        position: Position,
        /// The output's.
        number: u64,
        /// What the primary said.
        expected: OutputKind,
    },
    /// An output of the backup that the primary did not say.
    #[error(
        "at position {position} the backup said something ({found:?}), and the primary, by the next entry at {next}, did not"
    )]
    Unlogged {
        /// Where the backup said it.
        position: Position,
        /// What it said.
        found: OutputKind,
        /// The next entry's position.
        next: Position,
    },
    /// The primary counts its outputs differently.
    #[error(
        "at position {position} the primary says output {found}, and the backup counts {expected}"
    )]
    Number {
        /// Of both.
        position: Position,
        /// The primary's number.
        found: u64,
        /// The backup's.
        expected: u64,
    },
    /// Both said something, not the same.
    #[error(
        "output {number} at position {position} differs in its {field}: primary {primary:#x}, backup {backup:#x}"
    )]
    Output {
        /// The primary's position.
        position: Position,
        /// The output's number.
        number: u64,
        /// What differs.
        field: OutputField,
        /// The primary's value.
        primary: u64,
        /// The backup's value.
        backup: u64,
    },
    /// The primary claims to have released an output that it is only now writing down.
    #[error(
        "at position {position} the primary claims to have released entry {found}, expected one before {entry}"
    )]
    Released {
        /// Of both.
        position: Position,
        /// What it claims.
        found: Sequence,
        /// The entry that says so.
        entry: Sequence,
    },
    /// The primary holds more outputs than a primary may.
    #[error(
        "at position {position} the primary holds {found} outputs, expected at most {expected}"
    )]
    Kept {
        /// Of both.
        position: Position,
        /// How many.
        found: usize,
        /// How many may be.
        expected: usize,
    },
    /// The primary read from a disk where the backup does not.
    #[error(
        "at position {position} the primary's read {id} from a disk ended, and the backup has no such read \
         outstanding"
    )]
    NoSuchRead {
        /// Of both.
        position: Position,
        /// The request's number.
        id: RequestId,
    },
    /// The shared disk does not hold what the primary read from it.
    #[error(
        "at position {position} disk read {id} brought data with XXH3 {primary:#018x} to the primary, and \
         {backup:#018x} to the backup: the two read different disks, or somebody else writes to theirs"
    )]
    DiskRead {
        /// Of both.
        position: Position,
        /// The request's number.
        id: RequestId,
        /// Digest of the primary's data.
        primary: u64,
        /// Of the backup's.
        backup: u64,
    },
    /// Registers, devices or memory differ.
    #[error("state differs at position {position}: primary {primary:x?}, backup {backup:x?}")]
    State {
        /// Of both.
        position: Position,
        /// The primary's digest.
        primary: StateDigest,
        /// The backup's.
        backup: StateDigest,
    },
}

impl Divergence {
    pub(super) fn clock(entry: &Entry<'_>, backup: VirtualTime) -> Self {
        let (position, sequence) = (entry.position(), entry.sequence());
        Self::Clock {
            position,
            sequence,
            primary: entry.clock(),
            backup,
        }
    }
}

/// What differs between two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputField {
    /// Where it was said.
    Position,
    /// [`OutputKind`].
    Kind,
    /// Length in bytes.
    Length,
    /// XXH3-64 of the bytes.
    Digest,
}

impl std::fmt::Display for OutputField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Position => "position",
            Self::Kind => "kind",
            Self::Length => "length",
            Self::Digest => "digest",
        })
    }
}

/// Replay cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError<E> {
    /// The machines differ.
    #[error("divergence: {0}; the backup must be cloned again")]
    Diverged(#[from] Divergence),
    /// The log's bytes are damaged.
    #[error("the log cannot be read on: {0}")]
    Log(#[source] EntryError),
    /// An entry makes no sense.
    #[error("the log cannot be understood: {0}")]
    Payload(#[source] PayloadError),
    /// The machine's own words about a disk request cannot be understood.
    #[error("the backup's machine asked its disk for nothing that can be: {0}")]
    Request(#[source] RequestWireError),
    /// This side's own disk is no copy of the primary's any more.
    #[error(
        "disk request {id} ended as {primary:?} on the primary's own disk and as {backup:?} on the backup's, \
         which is no copy any more: see to this host's disk (its own error is above, and in the kernel's log) \
         and start the backup again"
    )]
    OwnDisk {
        /// The request's number.
        id: RequestId,
        /// How it ended there.
        primary: DiskStatus,
        /// How it ended here.
        backup: DiskStatus,
    },
    /// The machine failed.
    #[error("the backup's machine failed: {0}")]
    Vm(#[source] E),
    /// An earlier step failed.
    #[error("replay failed earlier and cannot be taken up again")]
    FailedBefore,
}
