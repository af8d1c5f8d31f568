//! The backup's own disks (paper 4.1, "non-shared disks"): what it does to them, and when.
//!
//! A request of the machine that changes an own disk, or flushes it, is started here once the primary's mark
//! of it is confirmed, so that both did the same. The primary's entry of its end is applied only when it has
//! ended here, too: until then its bounce buffer is the kernel's, and what the guest is told to be durable is
//! durable on this disk as well.
//!
//! Reads are the primary's. They only keep their place in the order of requests, so that this disk holds what
//! the primary read until that read has ended.

use std::collections::VecDeque;

use crate::ft::disk::{DiskRequest, DiskSet, DiskStatus, RequestId};

/// What a backup has to do with its own disk, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnDisk {
    /// Start this request as soon as none before it conflicts with it, and tell its end by
    /// [`Replayer::own_disk_ended`](super::Replayer::own_disk_ended).
    Start(DiskRequest),
    /// The primary reads. Requests that come later and change these blocks wait for [`OwnDisk::HasRead`].
    Reads(DiskRequest),
    /// This read has ended.
    HasRead(RequestId),
}

/// A request that was to be started here.
#[derive(Debug, Clone, Copy)]
struct Started {
    id: RequestId,
    /// How it ended here, once it has.
    ended: Option<DiskStatus>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OwnDisks {
    disks: DiskSet,
    steps: VecDeque<OwnDisk>,
    started: Vec<Started>,
}

impl OwnDisks {
    pub fn new(disks: DiskSet) -> Self {
        Self {
            disks,
            ..Self::default()
        }
    }

    pub fn next_step(&mut self) -> Option<OwnDisk> {
        self.steps.pop_front()
    }

    /// The machine made this request, and the primary's did; to be called in the order of the kicks.
    pub fn confirmed(&mut self, request: DiskRequest) {
        if !self.disks.contains(request.disk) {
            return;
        }
        if request.op.is_held() {
            self.started.push(Started {
                id: request.id,
                ended: None,
            });
            self.steps.push_back(OwnDisk::Start(request));
        } else {
            self.steps.push_back(OwnDisk::Reads(request));
        }
    }

    pub fn ended(&mut self, id: RequestId, status: DiskStatus) {
        let mut started = self.started.iter_mut();
        if let Some(request) = started.find(|request| request.id == id) {
            request.ended = Some(status);
        }
    }

    /// Whether `id` is still under way here.
    pub fn awaits(&self, id: RequestId) -> bool {
        self.find(id).is_some_and(|request| request.ended.is_none())
    }

    /// How `id` ended here; `None` if it was not done here.
    pub fn status(&self, id: RequestId) -> Option<DiskStatus> {
        self.find(id).and_then(|request| request.ended)
    }

    fn find(&self, id: RequestId) -> Option<&Started> {
        self.started.iter().find(|request| request.id == id)
    }

    /// The guest was told of the end of `id`.
    pub fn told(&mut self, id: RequestId) {
        if self.disks.is_empty() {
            return;
        }
        let before = self.started.len();
        self.started.retain(|request| request.id != id);
        if self.started.len() == before {
            self.steps.push_back(OwnDisk::HasRead(id));
        }
    }
}
