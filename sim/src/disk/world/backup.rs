//! The backup's turns: it replays, is lost, or goes live.

use lockstep_logchan::entry::Sequence;
use lockstep_vmm::ft::backup::BackupState;
use lockstep_vmm::ft::disk::DiskSet;
use lockstep_vmm::ft::gate::ReleaseLimit;
use lockstep_vmm::ft::log::Unlogged;
use lockstep_vmm::ft::recorder::Recorder;
use lockstep_vmm::ft::replayer::{Progress, ReplayError};
use lockstep_vmm::ft::vm::Vm;

use super::{Follower, PrimaryLog, Process, RECORDER, SETTLE, STEP, World, tell};
use crate::disk::live::LiveMachine;
use crate::disk::own::OwnDisk;
use crate::disk::sabotage::DiskSabotage;
use crate::disk::{Broken, DiskRule};
use crate::plan::Side;

impl World {
    pub(super) fn backup_turn(&mut self) -> Result<(), Broken> {
        if self.backup_process != Process::Runs {
            return Ok(());
        }
        let now = self.now();
        match &mut self.backup {
            Follower::Replays { vm, replayer } => {
                if !self.backup_role.may_replay() {
                    return Ok(());
                }
                let budget = self.rng.between(1, 8);
                let over = matches!(self.backup_role.state(), BackupState::Draining(_))
                    && replayer.drained();
                if let Some(own) = &mut self.own {
                    own.follow(replayer, vm, over, &mut self.rng);
                }
                for _ in 0..self.rng.between(1, 4) {
                    let stepped = replayer.step(&mut **vm, &mut self.reader, budget);
                    if let Err(ReplayError::OwnDisk { .. }) = stepped {
                        // The primary's did not.
                        self.lose_backup("its own disk failed");
                        break;
                    }
                    match stepped.map_err(|error| (DiskRule::Equal, error.to_string()))? {
                        Progress::Idle => {
                            let rests = self.own.as_ref().is_none_or(OwnDisk::rests);
                            if matches!(self.backup_role.state(), BackupState::Draining(_)) && rests
                            {
                                self.backup_role.drained(now, replayer.replayed());
                            }
                            break;
                        }
                        Progress::ReadDisk { request, digest } => {
                            let storage =
                                self.own.as_ref().map_or(&self.storage, |own| &own.storage);
                            storage.read_now(&request, vm.bounce());
                            if replayer.disk_read(&**vm, &request) != digest {
                                // What a write left that failed on one of two disks is open on both.
                                if self.plan.own && self.plan.failing > 0 {
                                    self.lose_backup("other data on its own disk");
                                    break;
                                }
                                // A primary that has won already waits for nobody: its backup gives up.
                                if matches!(self.primary_log, PrimaryLog::Alone(_)) {
                                    let why = "other data on the shared disk".to_owned();
                                    self.backup_role.refuse(why);
                                    break;
                                }
                                let detail = format!("the backup's {request:?} found other data");
                                return Err((DiskRule::Equal, detail));
                            }
                        }
                        Progress::AwaitDisk { .. } => break,
                        Progress::Running | Progress::Replayed(_) | Progress::Ended(_) => {}
                    }
                    if let Some(own) = &mut self.own {
                        own.follow(replayer, vm, false, &mut self.rng);
                    }
                }
            }
            Follower::Live(live, log) => {
                let positions = self.rng.between(1, 4);
                live.turn(log, positions, now);
                let mut starting = Vec::new();
                while let Some(request) = live.next(ReleaseLimit::Everything, Sequence::NONE, now) {
                    starting.push(request);
                }
                while let Some(output) = live.gate.next(ReleaseLimit::Everything) {
                    tell(&mut self.told, output);
                    live.gate.sent();
                }
                for request in starting {
                    self.start(Side::Backup, request);
                }
            }
            Follower::Nothing => {}
        }
        Ok(())
    }

    /// The backup gives itself up, and that is the fault of this run.
    pub(super) fn lose_backup(&mut self, why: &str) {
        self.backup_role.refuse(why.to_owned());
        self.closed = true;
        self.backup_process = Process::Dead;
        self.plan.at = 0;
        self.resumes_at = self.resumes_at.min(self.step + 1);
    }

    pub(super) fn go_live(&mut self) -> Result<(), Broken> {
        let follower = std::mem::replace(&mut self.backup, Follower::Nothing);
        let Follower::Replays {
            mut vm,
            mut replayer,
        } = follower
        else {
            return Ok(());
        };
        let taken = replayer.go_live();
        let taken = taken.map_err(|error| (DiskRule::Equal, error.to_string()))?;
        for output in &taken.resend {
            tell(&mut self.told, output);
        }
        let now = self.now();
        let mut requests = vm.disk_requests();
        self.check_reissue(&requests, taken.replayed)?;
        match self.sabotage {
            DiskSabotage::ReissueNothing => requests.clear(),
            DiskSabotage::ReissueEnded => {
                let known = self.primary.vm.last().min(vm.last());
                let ended = (1..=known).find_map(|id| self.primary.ended_request(id, &requests));
                requests.splice(0..0, ended);
                requests.sort_unstable_by_key(|request| request.id);
            }
            _ => {}
        }
        let settle = match self.sabotage {
            DiskSabotage::NoQuarantine => 0,
            _ => SETTLE * STEP,
        };
        // What is on the disk, or on its way there, the new primary has asked for.
        let reached = self.own.as_ref().map_or(&self.storage, |own| &own.storage);
        let under_way = reached.in_flight(Side::Primary);
        let changing = under_way
            .filter(|request| request.op.changes())
            .map(|r| r.id);
        let unknown = changing.chain(reached.sectors).find(|id| *id > vm.last());
        if let Some(id) = unknown {
            let detail = format!(
                "{id} is on the disk, and the new primary knows {}",
                vm.last()
            );
            return Err((DiskRule::OutputRule, detail));
        }
        self.reissued = requests.len();
        self.say(|| format!("live; again: {requests:?}"));
        // On its own disk nothing was under way that its machine did not know of.
        vm.lenient = if self.plan.own { 0 } else { vm.last() };
        let recorder = Recorder::new(RECORDER, now, vm.clock(), taken.said);
        let mut live = LiveMachine::new(*vm, recorder, false, self.plan.own);
        let own = match self.plan.own {
            true => DiskSet::NONE.with(0),
            false => DiskSet::NONE,
        };
        live.schedule.reissue(requests, &own, now, settle);
        self.backup = Follower::Live(Box::new(live), Unlogged::after(taken.replayed));
        self.live_since = Some(self.step);
        self.storage.primary_lingers = !self.plan.own;
        Ok(())
    }
}
