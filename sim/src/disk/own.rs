//! A backup's disk of its own, while it follows: the driver of what the replayer asks for.

use std::collections::BTreeSet;

use lockstep_logchan::entry::Sequence;
use lockstep_vmm::ft::disk::{DiskOp, DiskStatus, RequestId, Schedule};
use lockstep_vmm::ft::gate::ReleaseLimit;
use lockstep_vmm::ft::replayer::{OwnDisk as Step, Replayer};
use lockstep_vmm::ft::vm::Vm;

use super::guest::DiskGuest;
use super::sabotage::DiskSabotage;
use super::storage::Storage;
use crate::plan::Side;
use crate::rng::Rng;

/// See the module.
pub struct OwnDisk {
    pub storage: Storage,
    schedule: Schedule,
    /// Under way, as the disk has it; a mistake may have the schedule think otherwise.
    running: BTreeSet<RequestId>,
    sabotage: DiskSabotage,
}

impl OwnDisk {
    pub fn new(failing: u32, sabotage: DiskSabotage) -> Self {
        Self {
            storage: Storage::new(failing),
            schedule: Schedule::new(),
            running: BTreeSet::new(),
            sabotage,
        }
    }

    /// Whether the backup may go live as far as its disk is concerned.
    pub fn rests(&self) -> bool {
        self.running.is_empty() || self.sabotage == DiskSabotage::OwnNotAtRest
    }

    /// Does what the replayer asks for; `over` says that nothing more is begun.
    pub fn follow(&mut self, replayer: &mut Replayer, vm: &DiskGuest, over: bool, rng: &mut Rng) {
        while let Some(step) = replayer.own_disk() {
            match step {
                Step::Start(request) => self.schedule.add(request, None, 0),
                Step::Reads(_) if self.sabotage == DiskSabotage::OwnReadsIgnored => {}
                Step::Reads(request) => self.schedule.add_elsewhere(request),
                Step::HasRead(id) => drop(self.schedule.done(id)),
            }
        }
        if over {
            return;
        }
        while let Some(request) = self
            .schedule
            .next(ReleaseLimit::Everything, Sequence::NONE, 0)
        {
            let left_out = match self.sabotage {
                DiskSabotage::OwnNotFlushed => request.op == DiskOp::Flush,
                DiskSabotage::OwnNotCopied => request.op.changes(),
                _ => false,
            };
            if left_out {
                self.end(replayer, request.id, DiskStatus::Done);
                continue;
            }
            if let Some(region) = vm.bounce() {
                self.running.insert(request.id);
                self.storage
                    .start(Side::Backup, request, region.clone(), rng);
            }
            if self.sabotage == DiskSabotage::OwnNotAwaited {
                replayer.own_disk_ended(request.id, DiskStatus::Done);
            }
        }
    }

    /// The disk has ended a request.
    pub fn ended(&mut self, replayer: &mut Replayer, id: RequestId, status: DiskStatus) {
        self.running.remove(&id);
        self.end(replayer, id, status);
    }

    fn end(&mut self, replayer: &mut Replayer, id: RequestId, status: DiskStatus) {
        self.schedule.done(id);
        replayer.own_disk_ended(id, status);
    }
}
