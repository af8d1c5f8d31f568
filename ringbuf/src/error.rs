//! What can go wrong.

use rustix::io::Errno;

/// One end of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Writes and commits.
    Producer,
    /// Reads and releases.
    Consumer,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Producer => "producer",
            Side::Consumer => "consumer",
        })
    }
}

/// One of the two counters in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// Bytes ever published.
    Committed,
    /// Bytes ever given back.
    Released,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Cursor::Committed => "committed",
            Cursor::Released => "released",
        })
    }
}

/// The peer wrote a cursor that no peer following the protocol writes. The value was not used, and
/// no other value of this cursor will be: the ring is to be given up, as if the peer had died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the ring's `{cursor}` cursor reads {found}, expected {low} to {high}: the peer corrupted the \
     shared memory; give up the ring and take the peer for dead"
)]
pub struct CursorFault {
    /// Which cursor.
    pub cursor: Cursor,
    /// The value found.
    pub found: u64,
    /// The least value that was possible, modulo 2^64.
    pub low: u64,
    /// The greatest value that was possible, modulo 2^64.
    pub high: u64,
}

/// The free space does not hold the stretch asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{requested} bytes do not fit: {free} of the ring's {capacity} bytes are free")]
pub struct RingFull {
    /// Bytes asked for.
    pub requested: usize,
    /// Bytes free.
    pub free: usize,
    /// Bytes of the whole ring.
    pub capacity: usize,
}

impl RingFull {
    /// Whether the stretch is larger than the whole ring, so that waiting is in vain.
    #[must_use]
    pub fn never_fits(&self) -> bool {
        self.requested > self.capacity
    }
}

/// A ring could not be made or attached. One variant for each step that can fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The capacity asked for is no ring's.
    #[error(
        "ring capacity {found} bytes: expected a power of two from {least} to {most} (a multiple \
         of the page size)"
    )]
    Capacity {
        /// Bytes asked for.
        found: usize,
        /// The page size of the ring's memory.
        least: usize,
        /// The largest capacity.
        most: usize,
    },
    /// `memfd_create` failed.
    #[error("creating the ring's memory file: {source}")]
    Create {
        /// The kernel's reason.
        source: Errno,
    },
    /// The memory could not be had.
    #[error(
        "allocating {bytes} bytes for the ring: {source}; ask for a smaller ring, or for huge pages \
         raise vm.nr_hugepages"
    )]
    Allocate {
        /// Size of the file.
        bytes: u64,
        /// The kernel's reason.
        source: Errno,
    },
    /// The file's size could not be sealed.
    #[error("sealing the size of the ring's memory file: {source}")]
    Seal {
        /// The kernel's reason.
        source: Errno,
    },
    /// The file could not be mapped.
    #[error("mapping {bytes} bytes of address space for the ring: {source}")]
    Map {
        /// Bytes of address space.
        bytes: usize,
        /// The kernel's reason.
        source: Errno,
    },
    /// `membarrier(2)` is not to be had.
    #[error(
        "registering for membarrier(GLOBAL_EXPEDITED): {source}; it needs Linux 4.16 and a seccomp \
         profile that lets membarrier(2) through"
    )]
    Membarrier {
        /// The kernel's reason.
        source: Errno,
    },
    /// The descriptor to attach does not answer as a memfd does.
    #[error(
        "the descriptor to attach is no ring: reading its {what}: {source}; pass on Ring::fd()"
    )]
    NoMemfd {
        /// What was asked of it.
        what: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
    /// The file to attach can change its size under us.
    #[error(
        "the memory file to attach has seals {found:#x}, expected at least {expected:#x} (its size \
         sealed); only Ring::create makes rings"
    )]
    NotSealed {
        /// The `F_SEAL_*` bits found.
        found: u32,
        /// The bits that must be set.
        expected: u32,
    },
    /// The file to attach begins with something else.
    #[error(
        "the memory file to attach begins with {found:#018x}, expected {expected:#018x}: no ring"
    )]
    Magic {
        /// The first eight bytes.
        found: u64,
        /// What they must be.
        expected: u64,
    },
    /// The ring was laid out by another version.
    #[error(
        "the ring to attach has layout version {found}, expected {expected}: run the same version of \
         the program on both sides"
    )]
    Version {
        /// The version found.
        found: u32,
        /// The version that this code reads.
        expected: u32,
    },
    /// The header's sizes and the file's size do not agree.
    #[error(
        "the ring to attach names {control} control bytes and a capacity of {capacity} bytes, but its \
         file has {file} bytes in pages of {page}: expected their sum, in whole pages"
    )]
    Size {
        /// Control bytes that the header names.
        control: u64,
        /// Capacity that the header names.
        capacity: u64,
        /// Bytes of the file.
        file: u64,
        /// Page size of the file.
        page: u64,
    },
    /// Pages of the file to attach are missing, so touching them would allocate memory for the peer.
    #[error(
        "the memory file to attach has {found} of its {expected} bytes allocated: no ring is so"
    )]
    Sparse {
        /// Bytes allocated.
        found: u64,
        /// Bytes of the file.
        expected: u64,
    },
    /// This attachment's producer or consumer is already handed out.
    #[error("the ring's {side} is already taken; a ring has one, drop the other first")]
    Taken {
        /// Which end.
        side: Side,
    },
    /// The cursors in shared memory contradict each other.
    #[error(transparent)]
    Cursors(#[from] CursorFault),
}
