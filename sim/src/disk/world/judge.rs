//! What must hold while a run goes on, and at its end.

use lockstep_logchan::entry::Sequence;
use lockstep_vmm::ft::disk::{DiskRequest, RequestId};

use super::{DiskOutcome, PrimaryLog, SETTLE, World};
use crate::disk::guest::DiskGuest;
use crate::disk::storage::SECTORS;
use crate::disk::{Broken, DiskRule};
use crate::plan::Side;

impl World {
    /// The old primary and the output rule.
    pub(super) fn check_start(&self, request: &DiskRequest) -> Result<(), Broken> {
        if self.plan.own {
            // It harms nobody's data but its own.
            return Ok(());
        }
        if let Some(since) = self.live_since
            && self.step > since + SETTLE
            && request.op.changes()
        {
            let detail = format!("{request:?} was started by a primary that has been replaced");
            return Err((DiskRule::Fence, detail));
        }
        let alone = matches!(self.primary_log, PrimaryLog::Alone(_));
        if let Some(entry) = self.primary.entries.get(&request.id)
            && !alone
            && *entry > self.received
        {
            let detail = format!(
                "{request:?} was started, its entry is {entry}, and the backup has those up to {}",
                self.received
            );
            return Err((DiskRule::OutputRule, detail));
        }
        Ok(())
    }

    /// Held requests whose entry is replayed, and no entry of their end.
    pub(super) fn check_reissue(
        &self,
        requests: &[DiskRequest],
        replayed: Sequence,
    ) -> Result<(), Broken> {
        let ended: Vec<RequestId> = self
            .primary
            .told
            .iter()
            .filter(|(entry, _)| *entry <= replayed)
            .map(|(_, id)| *id)
            .collect();
        let marked = self
            .primary
            .entries
            .iter()
            .filter(|(_, entry)| **entry <= replayed);
        let last_marked = marked.clone().map(|(id, _)| *id).max().unwrap_or(0);
        let expected: Vec<RequestId> = marked
            .map(|(id, _)| *id)
            .filter(|id| !ended.contains(id))
            .collect();
        // Said at the last position, without an entry of its own yet: never started by anybody.
        let found: Vec<RequestId> = requests
            .iter()
            .filter(|request| request.op.is_held() && request.id <= last_marked)
            .map(|request| request.id)
            .collect();
        let again = requests.iter().find(|request| ended.contains(&request.id));
        if found != expected || again.is_some() {
            let detail = format!("found {found:?} ({again:?} had ended), expected {expected:?}");
            return Err((DiskRule::Reissue, detail));
        }
        Ok(())
    }

    pub(super) fn judge(&mut self) -> Result<DiskOutcome, Broken> {
        let survivor = self.survivor().map(|(side, _)| side);
        // The disk that counts: of two, the one of the side that was the last to be live.
        let last = survivor.unwrap_or(match self.live_since {
            Some(_) => Side::Backup,
            None => Side::Primary,
        });
        if let Some((_, live)) = self.survivor() {
            let storage = self.storage_seen_by(last);
            for sector in 0..SECTORS {
                let (found, allowed) = (storage.sectors[sector], live.vm.allowed(sector));
                if !allowed.contains(&found) {
                    let detail = format!(
                        "sector {sector} holds request {found}, expected one of {allowed:?}"
                    );
                    return Err((DiskRule::Orderly, detail));
                }
            }
        } else {
            for side in [Side::Primary, Side::Backup] {
                let storage = match (&mut self.own, last) {
                    (Some(own), Side::Backup) => &mut own.storage,
                    _ => &mut self.storage,
                };
                storage.settle(side, &mut self.rng)?;
            }
        }
        let storage = match (&mut self.own, last) {
            (Some(own), Side::Backup) => &mut own.storage,
            _ => &mut self.storage,
        };
        storage.lose_power(&mut self.rng);
        for sector in 0..SECTORS {
            let (found, told) = (storage.stable[sector], self.told[sector]);
            if found < told {
                let detail = format!(
                    "sector {sector} holds request {found}, and {told} was said to be durable"
                );
                return Err((DiskRule::Durable, detail));
            }
        }
        let vm = match survivor {
            Some(Side::Backup) => self.backup_vm(),
            _ => Some(&self.primary.vm),
        };
        Ok(DiskOutcome {
            live: survivor,
            requests: vm.map_or(0, DiskGuest::last),
            reissued: self.reissued,
            finished: vm.is_some_and(DiskGuest::done),
            steps: self.step,
        })
    }
}
