//! One request, and its end.

use serde::{Deserialize, Serialize};

/// Number of a request: from 1, over all disks of a VM, in the order of the guest's kicks.
pub type RequestId = u64;

/// What a guest asks of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskOp {
    /// Bytes of the disk into the bounce buffer.
    Read,
    /// Bytes of the bounce buffer to the disk.
    Write {
        /// Complete only when it would survive a loss of power (forced unit access): the guest has
        /// switched the disk's write cache off.
        durable: bool,
    },
    /// Everything completed before this was asked for is to survive a loss of power.
    Flush,
    /// The range's content is no longer needed.
    Discard,
    /// The range reads as zeroes from then on.
    WriteZeroes {
        /// Its space may be given back.
        unmap: bool,
    },
}

impl DiskOp {
    /// Whether the output rule holds it: all but reads do something that the world could see.
    #[must_use]
    pub const fn is_held(self) -> bool {
        !matches!(self, Self::Read)
    }

    /// Whether it changes what the disk holds.
    #[must_use]
    pub const fn changes(self) -> bool {
        !matches!(self, Self::Read | Self::Flush)
    }
}

/// A request, as both replicas compute it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskRequest {
    /// Its number.
    pub id: RequestId,
    /// Which disk, from 0.
    pub disk: u8,
    /// What is to be done.
    pub op: DiskOp,
    /// First byte on the disk; a multiple of 512. 0 for a flush.
    pub offset: u64,
    /// Bytes, a multiple of 512; 0 for a flush. The device has checked that they are on the disk.
    pub length: u64,
    /// Where its bounce buffer begins, in bytes from the start of the VM's
    /// [`BounceRegion`](crate::machine::bounce::BounceRegion), page aligned; 0 without data.
    pub bounce: u64,
    /// XXH3-64 of the data of a write; 0 for everything else.
    pub digest: u64,
}

impl DiskRequest {
    /// Whether the two may not be under way together: they touch common bytes of one disk, and one of
    /// them changes these.
    #[must_use]
    pub const fn conflicts(&self, other: &Self) -> bool {
        self.disk == other.disk
            && (self.op.changes() || other.op.changes())
            && self.length > 0
            && other.length > 0
            && self.offset < other.offset.saturating_add(other.length)
            && other.offset < self.offset.saturating_add(self.length)
    }
}

/// How a request ended, as the guest is told (virtio 1.2, 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum DiskStatus {
    /// VIRTIO_BLK_S_OK.
    Done = 0,
    /// VIRTIO_BLK_S_IOERR: an error of the medium, no space, a disk that is gone.
    Failed = 1,
    /// VIRTIO_BLK_S_UNSUPP: this disk cannot do that.
    Unsupported = 2,
}

/// The end of a request: an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskDone<'a> {
    /// Of this request.
    pub id: RequestId,
    /// How.
    pub status: DiskStatus,
    /// What a read that was [`DiskStatus::Done`] read, all of it; empty for everything else.
    pub data: &'a [u8],
}
