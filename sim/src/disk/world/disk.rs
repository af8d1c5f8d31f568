//! The disks: which a side writes to, what it starts there, and how that ends.

use lockstep_vmm::ft::disk::{DiskRequest, DiskStatus};
use lockstep_vmm::ft::vm::Vm;

use super::{Follower, World};
use crate::disk::Broken;
use crate::disk::sabotage::DiskSabotage;
use crate::disk::storage::Storage;
use crate::plan::Side;

impl World {
    /// The disk that `side` reaches.
    pub(super) fn storage_of(&mut self, side: Side) -> &mut Storage {
        match (side, &mut self.own) {
            (Side::Backup, Some(own)) => &mut own.storage,
            _ => &mut self.storage,
        }
    }

    pub(super) fn storage_seen_by(&self, side: Side) -> &Storage {
        match (side, &self.own) {
            (Side::Backup, Some(own)) => &own.storage,
            _ => &self.storage,
        }
    }

    pub(super) fn start(&mut self, side: Side, request: DiskRequest) {
        self.say(|| format!("{side:?} starts {request:?}"));
        let vm = match side {
            Side::Primary => Some(&self.primary.vm),
            Side::Backup => self.backup_vm(),
        };
        let Some(region) = vm.and_then(Vm::bounce).cloned() else {
            return;
        };
        let storage = match (side, &mut self.own) {
            (Side::Backup, Some(own)) => &mut own.storage,
            _ => &mut self.storage,
        };
        storage.start(side, request, region, &mut self.rng);
        if self.sabotage == DiskSabotage::EndEarly && request.op.is_held() {
            self.ended(side, request, DiskStatus::Done);
        }
    }

    pub(super) fn disk_turn(&mut self) -> Result<(), Broken> {
        // A disk that has nothing to do takes no time from the other.
        let both = match &self.own {
            Some(own) if self.storage.is_idle() => !own.storage.is_idle(),
            Some(own) => !own.storage.is_idle() && self.rng.chance(500),
            None => false,
        };
        let storage = match &mut self.own {
            Some(own) if both => &mut own.storage,
            _ => &mut self.storage,
        };
        let Some((side, id, status)) = storage.progress(&mut self.rng)? else {
            return Ok(());
        };
        if let (Some(own), Follower::Replays { replayer, .. }, Side::Backup) =
            (&mut self.own, &mut self.backup, side)
        {
            own.ended(replayer, id, status);
            return Ok(());
        }
        let vm = match side {
            Side::Primary => Some(&self.primary.vm),
            Side::Backup => self.backup_vm(),
        };
        let requests = vm.map(Vm::disk_requests).unwrap_or_default();
        let early = self.sabotage == DiskSabotage::EndEarly;
        if let Some(request) = requests.into_iter().find(|request| request.id == id)
            && !(early && request.op.is_held())
        {
            self.ended(side, request, status);
        }
        Ok(())
    }

    pub(super) fn ended(&mut self, side: Side, request: DiskRequest, status: DiskStatus) {
        self.say(|| format!("{side:?} has ended {} {status:?}", request.id));
        let live = match (side, &mut self.backup) {
            (Side::Primary, _) => &mut self.primary,
            (Side::Backup, Follower::Live(live, _)) => live,
            _ => return,
        };
        // A mistake may have it under way twice; the guest is told once.
        if live.ended.iter().all(|(ended, _)| ended.id != request.id) {
            live.ended.push_back((request, status));
        }
    }
}
