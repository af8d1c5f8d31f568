//! The requests of all disks of a machine that the world has not answered, and their bounce buffers.

use std::hash::{Hash, Hasher};

use xxhash_rust::xxh3::xxh3_64;

use super::REQUEST_BYTES;
use crate::ft::disk::{DiskOp, DiskRequest, RequestId};
use crate::machine::bounce::{BounceAllocator, BounceRegion};
use crate::machine::devices::chain::Segment;

/// Most requests that are outstanding at a time, over all disks: one without data needs no buffer, and
/// a driver that resets its device may ask again and again. Further ones wait in their ring.
pub const MAX_OUTSTANDING: usize = 1024;

/// Where the end of a request is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub queue: u8,
    /// Of the chain.
    pub head: u16,
    /// Guest-physical address of the status byte.
    pub status: u64,
}

#[derive(Debug, Hash)]
struct Outstanding {
    request: DiskRequest,
    /// Nothing once the driver has reset the device.
    place: Option<Place>,
    /// Where a read's data goes.
    segments: Vec<Segment>,
}

/// A request that the world has answered.
#[derive(Debug)]
pub(in crate::machine) struct Ended {
    pub request: DiskRequest,
    pub(super) place: Option<Place>,
    pub(super) segments: Vec<Segment>,
}

/// See the module. Numbers go up by one over all disks; the oldest request comes first.
#[derive(Debug)]
pub struct Requests {
    region: BounceRegion,
    pages: BounceAllocator,
    outstanding: Vec<Outstanding>,
    last: RequestId,
    /// A chain's data, while it is looked at.
    scratch: Vec<u8>,
    /// Lists for the next requests.
    spare: Vec<Vec<Segment>>,
}

impl Hash for Requests {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.pages.hash(hasher);
        self.outstanding.hash(hasher);
        self.last.hash(hasher);
    }
}

impl Requests {
    /// No requests, and `region` for their data.
    #[must_use]
    pub fn new(region: BounceRegion) -> Self {
        Self {
            pages: BounceAllocator::new(region.bytes()),
            region,
            outstanding: Vec::with_capacity(MAX_OUTSTANDING),
            last: 0,
            scratch: Vec::new(),
            spare: Vec::new(),
        }
    }

    pub(super) fn scratch(&mut self) -> &mut Vec<u8> {
        &mut self.scratch
    }

    /// Where the data lies.
    #[must_use]
    pub fn region(&self) -> &BounceRegion {
        &self.region
    }

    /// Those that the world has not answered, oldest first.
    pub fn outstanding(&self) -> impl ExactSizeIterator<Item = DiskRequest> + '_ {
        self.outstanding
            .iter()
            .map(|outstanding| outstanding.request)
    }

    /// Number of the last request made.
    #[must_use]
    pub fn last(&self) -> RequestId {
        self.last
    }

    /// Goes on numbering after `last`, nothing being outstanding: a saved state.
    pub fn resume(&mut self, last: RequestId) {
        debug_assert!(self.outstanding.is_empty());
        self.last = last;
    }

    /// Makes a request; a write's data is in the scratch buffer, a read's goes to `segments`. Nothing
    /// while there is no room for it.
    pub(super) fn take(
        &mut self,
        disk: u8,
        op: DiskOp,
        offset: u64,
        length: u64,
        place: Place,
        segments: &[Segment],
    ) -> Option<DiskRequest> {
        if self.outstanding.len() >= MAX_OUTSTANDING {
            return None;
        }
        let bounce = match op {
            DiskOp::Read | DiskOp::Write { .. } => self.pages.allocate(length)?,
            DiskOp::Flush | DiskOp::Discard | DiskOp::WriteZeroes { .. } => 0,
        };
        let mut digest = 0;
        if let DiskOp::Write { .. } = op {
            debug_assert_eq!(self.scratch.len() as u64, length);
            digest = xxh3_64(&self.scratch);
            self.region.write(bounce, &self.scratch);
        }
        self.last += 1;
        let request = DiskRequest {
            id: self.last,
            disk,
            op,
            offset,
            length,
            bounce,
            digest,
        };
        let mut list = self.spare.pop().unwrap_or_default();
        if op == DiskOp::Read {
            list.extend_from_slice(segments);
        }
        self.outstanding.push(Outstanding {
            request,
            place: Some(place),
            segments: list,
        });
        Some(request)
    }

    /// The outstanding request of this number.
    pub(in crate::machine) fn find(&self, id: RequestId) -> Option<&DiskRequest> {
        let index = self.index(id)?;
        Some(&self.outstanding[index].request)
    }

    /// The world has answered: the request is no longer outstanding, its buffer is free.
    pub(in crate::machine) fn end(&mut self, id: RequestId) -> Option<Ended> {
        let outstanding = self.outstanding.remove(self.index(id)?);
        let request = outstanding.request;
        if let DiskOp::Read | DiskOp::Write { .. } = request.op {
            debug_assert!(request.length <= REQUEST_BYTES);
            self.pages.free(request.bounce, request.length);
        }
        Some(Ended {
            request,
            place: outstanding.place,
            segments: outstanding.segments,
        })
    }

    /// Takes a list back.
    pub(in crate::machine) fn recycle(&mut self, ended: Ended) {
        let mut list = ended.segments;
        if self.spare.len() < MAX_OUTSTANDING {
            list.clear();
            self.spare.push(list);
        }
    }

    /// The driver of `disk` knows nothing of its requests any more.
    pub(in crate::machine) fn forget(&mut self, disk: u8) {
        for outstanding in &mut self.outstanding {
            if outstanding.request.disk == disk {
                outstanding.place = None;
                outstanding.segments.clear();
            }
        }
    }

    fn index(&self, id: RequestId) -> Option<usize> {
        self.outstanding
            .binary_search_by_key(&id, |outstanding| outstanding.request.id)
            .ok()
    }
}
