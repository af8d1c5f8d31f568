//! The primary's turns: it executes, records, and starts what may start.

use lockstep_vmm::ft::detector::Suspicion;
use lockstep_vmm::ft::gate::ReleaseLimit;

use super::{PrimaryLog, Process, World, tell};
use crate::disk::Broken;
use crate::disk::sabotage::DiskSabotage;
use crate::plan::Side;

impl World {
    pub(super) fn primary_turn(&mut self) -> Result<(), Broken> {
        if self.primary_process != Process::Runs {
            return Ok(());
        }
        let now = self.now();
        // Nothing more comes through a connection that is closed, and that is noticed, sooner or later.
        if self.closed && self.acknowledgements.is_empty() && self.rng.chance(200) {
            self.primary_role.suspect(now, Suspicion::ConnectionLost);
        }
        if self.primary_role.may_run() {
            let positions = self.rng.between(1, 4);
            match &mut self.primary_log {
                PrimaryLog::Ring(log) => {
                    self.primary.turn(log, positions, now);
                    if self.stood_still
                        && let Some(written) = self.primary.mark_time(log, now)
                    {
                        self.primary_role.stood_still(written);
                        self.stood_still = false;
                    }
                    let (last, end) = (log.last_sequence(), log.producer().committed());
                    if self.ends.back().is_none_or(|(noted, _)| *noted < last) {
                        self.ends.push_back((last, end));
                    }
                }
                PrimaryLog::Alone(log) => self.primary.turn(log, positions, now),
            }
        }
        if self.stood_still {
            return Ok(());
        }
        let limit = match (self.sabotage, self.primary_role.release_limit()) {
            (DiskSabotage::StartEarly, ReleaseLimit::UpTo(_)) => ReleaseLimit::Everything,
            (_, limit) => limit,
        };
        let replayed = self.replayed;
        while let Some(request) = self.primary.next(limit, replayed, now) {
            self.check_start(&request)?;
            self.start(Side::Primary, request);
        }
        while let Some(output) = self.primary.gate.next(self.primary_role.release_limit()) {
            tell(&mut self.told, output);
            self.primary.gate.sent();
        }
        Ok(())
    }
}
