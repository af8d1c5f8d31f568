//! One run: two replicas, the log between them, the disk that they share or the one that each has.

mod backup;
mod disk;
mod judge;
mod primary;

use std::collections::VecDeque;

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::protocol::Role;
use lockstep_logchan::reader::{Checked, EntryReader, ReceivedCursor};
use lockstep_logchan::writer::EntryWriter;
use lockstep_ringbuf::{Ring, RingOptions};
use lockstep_vmm::ft::arbiter::{ArbitrationSettings, Claim, Party};
use lockstep_vmm::ft::backup::{Backup, BackupAction, BackupState};
use lockstep_vmm::ft::detector::{DetectorSettings, Suspicion};
use lockstep_vmm::ft::disk::DiskSet;
use lockstep_vmm::ft::log::Unlogged;
use lockstep_vmm::ft::primary::{Primary, PrimaryAction, PrimaryState};
use lockstep_vmm::ft::recorder::{Recorder, RecorderSettings};
use lockstep_vmm::ft::replayer::Replayer;

use super::guest::DiskGuest;
use super::live::LiveMachine;
use super::own::OwnDisk;
use super::plan::{DiskFault, DiskPlan};
use super::sabotage::DiskSabotage;
use super::storage::{SECTORS, Sectors, Storage};
use super::{Broken, DiskRule};
use crate::plan::Side;
use crate::rng::Rng;

/// Steps of a run within which I/O that the dead primary had given to its kernel reaches the disk,
/// counted from go-live; the new primary keeps its own writes off those blocks for as long.
pub const SETTLE: u64 = 120;

/// Nanoseconds of a step.
const STEP: u64 = 1_000;
/// Every request has ended by then, if a replica lives.
const STEPS: u64 = 8_000;
const RING_BYTES: usize = 256 << 10;

const DETECTOR: DetectorSettings = DetectorSettings {
    silence: u64::MAX / 4,
    stall: u64::MAX / 4,
};
const ARBITRATION: ArbitrationSettings = ArbitrationSettings { retry: 100 * STEP };
const SILENT: Suspicion = Suspicion::Silent {
    silent_ns: 1,
    timeout_ns: 1,
};
const RECORDER: RecorderSettings = RecorderSettings {
    clock_drift: u64::MAX,
    digest_interval: 20 * STEP,
    digest_stripe: 1,
};

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOutcome {
    /// Whose machine was the last to run.
    pub live: Option<Side>,
    /// Requests that it made.
    pub requests: u64,
    /// Requests issued again at go-live.
    pub reissued: usize,
    /// Whether the machine did all that it wanted to.
    pub finished: bool,
    /// Steps taken.
    pub steps: u64,
}

/// How a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Runs,
    Stopped,
    Dead,
}

/// Where the primary writes.
enum PrimaryLog {
    Ring(EntryWriter),
    Alone(Unlogged),
}

/// A replica that replays, or is live.
enum Follower {
    Replays {
        vm: Box<DiskGuest>,
        replayer: Box<Replayer>,
    },
    Live(Box<LiveMachine>, Unlogged),
    /// In between.
    Nothing,
}

/// See the module.
pub struct World {
    rng: Rng,
    plan: DiskPlan,
    sabotage: DiskSabotage,
    trace: bool,
    step: u64,
    /// The disk that both reach, or the primary's own.
    pub(super) storage: Storage,
    /// The backup's own.
    pub(super) own: Option<OwnDisk>,
    flag: Option<Party>,

    primary: LiveMachine,
    primary_role: Primary,
    primary_log: PrimaryLog,
    primary_process: Process,
    /// It was stopped, and has not marked that in the log yet.
    stood_still: bool,
    resumes_at: u64,
    /// The backup's end of the connection is closed.
    closed: bool,
    /// What the primary knows to be replayed.
    replayed: Sequence,

    /// Ends of entries in the ring: the last entry, the byte behind it.
    ends: VecDeque<(Sequence, u64)>,
    cursor: ReceivedCursor,
    received: Sequence,
    /// Acknowledgements on their way: received, replayed.
    acknowledgements: VecDeque<(Sequence, Sequence)>,

    reader: EntryReader,
    backup: Follower,
    backup_role: Backup,
    backup_process: Process,
    live_since: Option<u64>,
    reissued: usize,
    /// The old primary's I/O is over.
    settled: bool,

    /// The writes that the world was told to be durable.
    told: Sectors,
}

fn claim(role: Role) -> Claim {
    Claim {
        generation: 1,
        party: Party::new(role, 1),
    }
}

impl World {
    pub fn new(seed: u64, sabotage: DiskSabotage, trace: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0xd15c);
        let plan = DiskPlan::draw(&mut rng);
        let ring = Ring::create(RING_BYTES, RingOptions::default()).expect("memory for a ring");
        let producer = ring.producer().expect("the only producer");
        let consumer = ring.consumer().expect("the only consumer");
        let cursor = ReceivedCursor::at(0);
        let checked = Checked::BehindReceiver(cursor.clone());
        let recorder = Recorder::new(RECORDER, 0, 0, 0);
        let mut primary =
            LiveMachine::new(DiskGuest::new(&plan), recorder, plan.backup_reads, plan.own);
        let own_disks = if plan.own {
            DiskSet::NONE.with(0)
        } else {
            DiskSet::NONE
        };
        primary.unordered = (sabotage == DiskSabotage::NoOrder).then(Vec::new);
        primary.not_reading = sabotage == DiskSabotage::NotReading;
        let mut storage = Storage::new(plan.failing);
        storage.flush_nothing = sabotage == DiskSabotage::FlushNothing;
        let world = Self {
            rng,
            sabotage,
            trace,
            step: 0,
            own: plan.own.then(|| OwnDisk::new(plan.failing, sabotage)),
            storage,
            flag: None,
            primary,
            primary_role: Primary::new(claim(Role::Primary), DETECTOR, ARBITRATION, 0),
            primary_log: PrimaryLog::Ring(EntryWriter::new(producer, Sequence::NONE)),
            primary_process: Process::Runs,
            stood_still: false,
            resumes_at: u64::MAX,
            closed: false,
            replayed: Sequence::NONE,
            ends: VecDeque::new(),
            cursor,
            received: Sequence::NONE,
            acknowledgements: VecDeque::new(),
            reader: EntryReader::new(consumer, Sequence::NONE, checked),
            backup: Follower::Replays {
                vm: Box::new(DiskGuest::new(&plan)),
                replayer: Box::new(Replayer::new(Sequence::NONE, 0).with_own_disks(own_disks)),
            },
            backup_role: Backup::new(claim(Role::Backup), DETECTOR, ARBITRATION, 0),
            backup_process: Process::Runs,
            live_since: None,
            reissued: 0,
            settled: false,
            told: [0; SECTORS],
            plan,
        };
        world.say(|| format!("{plan:#?}"));
        world
    }

    /// Steps taken so far.
    pub const fn step(&self) -> u64 {
        self.step
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>6} {}", self.step, text());
        }
    }

    const fn now(&self) -> u64 {
        self.step * STEP
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Result<DiskOutcome, Broken> {
        while !self.over() {
            self.step += 1;
            if self.step > STEPS {
                return Err((DiskRule::Served, format!("{STEPS} steps and no end")));
            }
            self.faults()?;
            let total = self.plan.weights.iter().sum();
            let mut draw = self.rng.below(total);
            let mut chosen = 0;
            while draw >= self.plan.weights[chosen] {
                draw -= self.plan.weights[chosen];
                chosen += 1;
            }
            match chosen {
                0 => self.primary_turn()?,
                1 => self.transfer_log(),
                2 => self.deliver_acknowledgement(),
                3 => self.backup_turn()?,
                _ => self.disk_turn()?,
            }
            self.decide()?;
            // A primary that has been replaced may read what its machine has never written.
            let primary = self.live_since.is_none().then_some(&self.primary.vm);
            for vm in [primary, self.backup_vm()] {
                if let Some(wrong) = vm.and_then(|vm| vm.wrong.clone()) {
                    return Err((DiskRule::Orderly, wrong));
                }
            }
        }
        self.judge()
    }

    fn backup_vm(&self) -> Option<&DiskGuest> {
        match &self.backup {
            Follower::Replays { vm, .. } => Some(vm),
            Follower::Live(live, _) => Some(&live.vm),
            Follower::Nothing => None,
        }
    }

    /// The machine that goes on, if one does.
    fn survivor(&self) -> Option<(Side, &LiveMachine)> {
        if let (Follower::Live(live, _), true) =
            (&self.backup, self.backup_process != Process::Dead)
        {
            return Some((Side::Backup, live));
        }
        let halted = matches!(self.primary_role.state(), PrimaryState::Halted(_));
        let runs = self.primary_process != Process::Dead && !halted;
        runs.then_some((Side::Primary, &self.primary))
    }

    fn over(&self) -> bool {
        let settled = self.live_since.is_none() || self.settled;
        match self.survivor() {
            Some((side, live)) => {
                let others = side == Side::Primary && self.live_since.is_some();
                live.vm.done() && live.gate.held() == 0 && settled && !others
            }
            // Neither side goes on, or the backup is on its way to.
            None => {
                let on_its_way = self.backup_process == Process::Runs
                    && !matches!(self.backup_role.state(), BackupState::Halted(_));
                !on_its_way
            }
        }
    }

    // --- faults

    fn faults(&mut self) -> Result<(), Broken> {
        if self.step == self.plan.at {
            self.say(|| format!("{:?}", self.plan.fault));
            match self.plan.fault {
                DiskFault::None => {}
                DiskFault::KillPrimary => {
                    self.primary_process = Process::Dead;
                    self.storage.orphan(Side::Primary);
                    self.suspect_primary(Suspicion::ConnectionLost);
                }
                DiskFault::StopPrimary { .. } => {
                    self.primary_process = Process::Stopped;
                    self.suspect_primary(SILENT);
                }
                DiskFault::PausePrimary { resumed_after } => {
                    self.primary_process = Process::Stopped;
                    self.resumes_at = self.step + resumed_after;
                }
                DiskFault::SuspectPrimary => self.suspect_primary(SILENT),
                DiskFault::KillBackup => {
                    self.backup_process = Process::Dead;
                    self.closed = true;
                }
            }
        }
        if let Some(since) = self.live_since {
            let late = self.step - since;
            if let DiskFault::StopPrimary { resumed_after } = self.plan.fault
                && self.primary_process == Process::Stopped
                && late == resumed_after
            {
                self.resumes_at = self.step;
            }
            if self.plan.survivor_killed_after == Some(late) {
                self.say(|| "the new primary is killed too".into());
                self.backup_process = Process::Dead;
                self.storage_of(Side::Backup).orphan(Side::Backup);
            }
            if late == SETTLE / 2 && self.primary_process == Process::Runs {
                self.primary_role
                    .suspect(self.now(), Suspicion::ConnectionLost);
            }
            if late >= SETTLE && !self.settled {
                self.settled = true;
                self.storage.settle(Side::Primary, &mut self.rng)?;
            }
        }
        if self.step >= self.resumes_at && self.primary_process == Process::Stopped {
            self.say(|| "the primary is resumed".into());
            self.primary_process = Process::Runs;
            self.stood_still = self.sabotage != DiskSabotage::NoFence;
        }
        Ok(())
    }

    fn suspect_primary(&mut self, why: Suspicion) {
        self.backup_role.suspect(self.now(), why);
    }

    fn transfer_log(&mut self) {
        if self.closed || !self.backup_role.may_acknowledge() {
            return;
        }
        for _ in 0..self.rng.between(1, 4) {
            if let Some((sequence, end)) = self.ends.pop_front() {
                self.cursor.advance(end);
                self.received = sequence;
            }
        }
        if self.backup_process == Process::Runs {
            let replayed = match &self.backup {
                Follower::Replays { replayer, .. } => replayer.replayed(),
                _ => Sequence::NONE,
            };
            let acknowledgement = (self.received, replayed);
            if self.acknowledgements.back() != Some(&acknowledgement) {
                self.acknowledgements.push_back(acknowledgement);
            }
        }
    }

    fn deliver_acknowledgement(&mut self) {
        if self.primary_process != Process::Runs {
            return;
        }
        // One at a time, or all that is there.
        let all = self.rng.chance(300);
        while let Some((received, replayed)) = self.acknowledgements.pop_front() {
            self.primary_role.acknowledged(self.now(), received, true);
            self.replayed = self.replayed.max(replayed);
            if !all {
                break;
            }
        }
    }

    // --- roles

    fn decide(&mut self) -> Result<(), Broken> {
        let now = self.now();
        if self.primary_process == Process::Runs {
            self.primary_role.tick(now);
            while let Some(action) = self.primary_role.next_action() {
                match action {
                    PrimaryAction::Disconnect(why) => {
                        self.say(|| format!("the primary suspects: {why}"));
                        self.acknowledgements.clear();
                    }
                    PrimaryAction::TestAndSet(claim) => {
                        let holder = self.flag.get_or_insert(claim.party).clone();
                        self.primary_role.arbiter_answered(now, Ok(holder));
                    }
                    PrimaryAction::GoAlone => {
                        self.say(|| "the primary goes on alone".into());
                        self.stood_still = false;
                        if let PrimaryLog::Ring(log) = &self.primary_log {
                            let last = log.last_sequence();
                            self.primary_log = PrimaryLog::Alone(Unlogged::after(last));
                        }
                    }
                    PrimaryAction::Halt(why) => {
                        self.say(|| format!("the primary halts: {why}"));
                        // Its process ends; what the kernel has goes on.
                        self.storage.orphan(Side::Primary);
                        self.suspect_primary(Suspicion::ConnectionLost);
                    }
                }
            }
        }
        if self.backup_process != Process::Runs {
            return Ok(());
        }
        self.backup_role.tick(now);
        while let Some(action) = self.backup_role.next_action() {
            match action {
                BackupAction::Seal(_) => {
                    self.closed = true;
                    self.backup_role.sealed(self.received);
                }
                BackupAction::Drain => {}
                BackupAction::TestAndSet(claim) => {
                    let holder = self.flag.get_or_insert(claim.party).clone();
                    self.backup_role.arbiter_answered(now, Ok(holder));
                }
                BackupAction::GoLive => self.go_live()?,
                BackupAction::Halt(why) => self.say(|| format!("the backup halts: {why}")),
            }
        }
        Ok(())
    }
}

/// The world is told what an output promises.
fn tell(told: &mut Sectors, output: &lockstep_vmm::ft::vm::Output) {
    if let Some(promised) = DiskGuest::promise(output) {
        for (told, promised) in told.iter_mut().zip(promised) {
            *told = (*told).max(promised);
        }
    }
}
