//! All disks of a machine, and what they share: bounce buffers, and the numbers of requests.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use super::bounce::BounceRegion;
use super::config::MachineConfig;
use super::devices::DamagedState;
use super::devices::virtio_blk::{BlkEffect, BlkState, DiskCounters, Requests, Served, VirtioBlk};
use super::memory::WrittenRanges;
use super::outputs::Outputs;
use crate::ft::disk::{DiskDone, DiskOp, DiskRequest, DiskStatus, RequestId};

/// An end of a request that cannot be: of no outstanding request, or with data that it cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskDoneError {
    /// There is no such request.
    #[error("disk request {id} has ended, and no such request is outstanding")]
    Unknown {
        /// As named.
        id: RequestId,
    },
    /// A read brings what was asked for, everything else nothing.
    #[error("disk request {id} has ended with {found} bytes, expected {expected}")]
    Data {
        /// Which.
        id: RequestId,
        /// Bytes that came.
        found: u64,
        /// Bytes that it brings.
        expected: u64,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Disks {
    devices: Vec<VirtioBlk>,
    requests: Requests,
    /// Queues whose next chain waits for a bounce buffer, and those kicked since, in that order:
    /// (disk, queue).
    waiting: VecDeque<(usize, usize)>,
}

/// Saved state of all disks. None with outstanding requests is ever saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksState {
    devices: Vec<BlkState>,
    last: RequestId,
}

impl Hash for Disks {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.devices.hash(hasher);
        self.requests.hash(hasher);
        self.waiting.hash(hasher);
    }
}

impl Disks {
    /// The disks of `config`; nothing if it has none.
    ///
    /// # Errors
    /// The host lacks memory for the bounce buffers.
    pub fn new(config: &MachineConfig) -> std::io::Result<Option<Self>> {
        if config.disks.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            devices: (0..)
                .zip(&config.disks)
                .map(|(number, spec)| VirtioBlk::new(number, spec))
                .collect(),
            requests: Requests::new(BounceRegion::new(config.bounce_bytes)?),
            waiting: VecDeque::new(),
        }))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.devices.len()
    }

    /// Interrupt lines, in the order of the disks.
    pub fn lines(&self) -> impl Iterator<Item = bool> + '_ {
        self.devices.iter().map(VirtioBlk::line)
    }

    /// What became of the requests of all disks.
    #[must_use]
    pub fn counters(&self) -> DiskCounters {
        let each = self.devices.iter().map(VirtioBlk::counters);
        each.fold(DiskCounters::default(), DiskCounters::plus)
    }

    /// Where the data lies.
    #[must_use]
    pub fn region(&self) -> &BounceRegion {
        self.requests.region()
    }

    /// Requests that the world has not answered, oldest first.
    pub fn outstanding(&self) -> impl ExactSizeIterator<Item = DiskRequest> + '_ {
        self.requests.outstanding()
    }

    /// Reads registers of disk `disk`.
    pub fn read(&mut self, disk: usize, offset: u64, data: &mut [u8]) {
        self.devices[disk].read(offset, data);
    }

    /// Writes registers of disk `disk`; a kick is served here.
    pub fn write(
        &mut self,
        disk: usize,
        offset: u64,
        data: &[u8],
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) {
        match self.devices[disk].write(offset, data, memory) {
            BlkEffect::None => {}
            BlkEffect::Reset => {
                self.requests.forget(disk as u8);
                self.waiting.retain(|(waiting, _)| *waiting != disk);
                // Those behind it may have waited for nothing but their turn.
                self.serve_waiting(memory, outputs, written);
            }
            BlkEffect::Kick(queue) => {
                if !self.waiting.contains(&(disk, queue)) {
                    let first = self.waiting.is_empty();
                    self.waiting.push_back((disk, queue));
                    if first {
                        self.serve_waiting(memory, outputs, written);
                    }
                }
            }
        }
    }

    /// Serves queues in the order in which they came to wait, until one has to go on waiting.
    fn serve_waiting(
        &mut self,
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) {
        while let Some((disk, queue)) = self.waiting.front().copied() {
            let device = &mut self.devices[disk];
            match device.serve(queue, &mut self.requests, memory, outputs, written) {
                Served::All => self.waiting.pop_front(),
                Served::Starved => break,
            };
        }
    }

    /// A request has ended: the guest gets its data and status, its buffer is free for those that wait.
    ///
    /// # Errors
    /// There is no such request, or not with this data. Nothing has changed then.
    pub fn done(
        &mut self,
        done: &DiskDone<'_>,
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) -> Result<(), DiskDoneError> {
        let id = done.id;
        let request = self
            .requests
            .find(id)
            .ok_or(DiskDoneError::Unknown { id })?;
        let expected = match (request.op, done.status) {
            (DiskOp::Read, DiskStatus::Done) => request.length,
            _ => 0,
        };
        let found = done.data.len() as u64;
        if found != expected {
            return Err(DiskDoneError::Data {
                id,
                found,
                expected,
            });
        }
        if let Some(ended) = self.requests.end(id) {
            let device = &mut self.devices[usize::from(ended.request.disk)];
            device.complete(&ended, done.status, done.data, memory, written);
            self.requests.recycle(ended);
        }
        self.serve_waiting(memory, outputs, written);
        Ok(())
    }

    /// Everything the disks hold; nothing while requests are outstanding or wait.
    #[must_use]
    pub fn save(&self) -> Option<DisksState> {
        let idle = self.requests.outstanding().len() == 0 && self.waiting.is_empty();
        idle.then(|| DisksState {
            devices: self.devices.iter().map(VirtioBlk::save).collect(),
            last: self.requests.last(),
        })
    }

    /// Puts back what [`Disks::save`] returned, over the same memory.
    ///
    /// # Errors
    /// The state is damaged, or of other disks.
    pub fn restore(
        &mut self,
        state: &DisksState,
        memory: &GuestMemoryMmap,
    ) -> Result<(), DamagedState> {
        if state.devices.len() != self.devices.len() {
            return Err(DamagedState("disks: how many there are"));
        }
        // So that a damaged number cannot run out.
        if state.last > u64::MAX / 2 {
            return Err(DamagedState("disks: number of the last request"));
        }
        for (device, saved) in self.devices.iter_mut().zip(&state.devices) {
            device.restore(saved, memory)?;
        }
        self.requests.resume(state.last);
        Ok(())
    }
}
