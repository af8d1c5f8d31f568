//! One run: the replicas, what is around them, and the faults of the plan.

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::protocol::Role;
use lockstep_logchan::reader::{Checked, EntryReader, ReceivedCursor};
use lockstep_logchan::writer::EntryWriter;
use lockstep_ringbuf::{Ring, RingError, RingOptions};
use lockstep_vmm::ft::arbiter::Party;
use lockstep_vmm::ft::backup::BackupState;
use lockstep_vmm::ft::primary::PrimaryState;

use crate::clients::Clients;
use crate::env::{Counts, Env, Happening, Message};
use crate::options::Options;
use crate::oracle::Broken;
use crate::plan::{Fault, MS, Plan, Side, Transport, US};
use crate::replica::{BackupHost, PrimaryHost, SILENCE};
use crate::rng::Rng;
use crate::violation::Rule;
use crate::wire::{CLIENTS, KEYS};

/// After the last fault clients must be done within this time. The slowest way there: silence, the
/// arbiter asked again, and every request repeated once.
const PATIENCE: u64 = 400 * MS;
/// After the last fault the run goes on for at least this long, so that a side that lost and was
/// stopped finds out.
const AFTERMATH: u64 = 25 * MS;
/// More steps than this are a driver that never sleeps.
const STEPS: u64 = 2_000_000;

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Who went on without the other, if that happened.
    pub live: Option<Side>,
    /// Whether clients were served to the end; if not, both sides were lost.
    pub served: bool,
    /// Requests answered.
    pub answered: usize,
    /// Entries recorded by the primary.
    pub entries: u64,
    /// Simulated time, nanoseconds.
    pub time: u64,
    /// Steps taken.
    pub steps: u64,
    /// What was provoked on the way.
    pub counts: Counts,
}

/// A process, as its host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Runs,
    Stopped,
    Dead,
}

/// The world of one seed.
pub struct World {
    env: Env,
    plan: Plan,
    primary: PrimaryHost,
    backup: BackupHost,
    process: [Process; 2],
    wake: [u64; 2],
    stopped_at: [u64; 2],
    clients: Clients,
    /// Where the switch sends frames for the machine.
    port: Side,
    calm_at: u64,
    next_fault: usize,
    /// The power button was pressed.
    pressed: bool,
    steps: u64,
}

impl World {
    /// The world that `seed` names.
    ///
    /// # Errors
    /// The host has no memory for the rings.
    pub fn new(seed: u64, options: Options) -> Result<Self, RingError> {
        let sabotage = options.sabotage;
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let env = Env::new(&plan, rng, options);
        env.trace(|| format!("{plan:#?}"));
        let none = Sequence::NONE;
        let near = Ring::create(plan.primary_ring, RingOptions::default())?;
        let writer = EntryWriter::new(near.producer()?, none);
        let (primary, backup) = match plan.transport {
            Transport::Link => {
                let far = Ring::create(plan.backup_ring, RingOptions::default())?;
                let reader = EntryReader::new(far.consumer()?, none, Checked::ByReceiver);
                (
                    PrimaryHost::new(&plan, writer, Some(near.consumer()?), sabotage),
                    BackupHost::new(&plan, reader, Some(far.producer()?), None, sabotage),
                )
            }
            Transport::Committed | Transport::Received => {
                let received = plan.transport == Transport::Received;
                let cursor = received.then(|| ReceivedCursor::at(0));
                let checked = cursor
                    .clone()
                    .map_or(Checked::ByReader, Checked::BehindReceiver);
                let reader = EntryReader::new(near.consumer()?, none, checked);
                (
                    PrimaryHost::new(&plan, writer, None, sabotage),
                    BackupHost::new(&plan, reader, None, cursor, sabotage),
                )
            }
        };
        let mut env = env;
        if plan.noise > 0 {
            env.noise_after(0);
        }
        Ok(Self {
            env,
            primary,
            backup,
            process: [Process::Runs; 2],
            wake: [0; 2],
            stopped_at: [0; 2],
            clients: Clients::new(plan.requests),
            port: Side::Primary,
            calm_at: plan.faults.last().map_or(0, |(at, _)| *at),
            next_fault: 0,
            pressed: false,
            steps: 0,
            plan,
        })
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// A rule was broken, at the returned time.
    pub fn run(mut self) -> Result<Outcome, (u64, Broken)> {
        loop {
            self.env.now = self.next_moment();
            if self.finished() {
                break;
            }
            self.faults();
            self.press();
            while let Some(happening) = self.env.happening() {
                self.happens(happening);
            }
            self.ask();
            for side in [Side::Primary, Side::Backup] {
                self.step(side);
            }
            if let Some(broken) = self.env.broken.take() {
                return Err((self.env.now, broken));
            }
            if self.steps > STEPS {
                let why = format!("{STEPS} steps and no end");
                return Err((self.env.now, (Rule::Unexpected, why)));
            }
        }
        let (outcome, verdict) = self.judge();
        self.env.check(verdict);
        self.env
            .broken
            .take()
            .map_or(Ok(outcome), |broken| Err((self.env.now, broken)))
    }

    fn next_moment(&self) -> u64 {
        let fault = self
            .plan
            .faults
            .get(self.next_fault)
            .map_or(u64::MAX, |(at, _)| *at);
        let mut next = fault.min(self.clients.wake_at());
        next = next.min(self.plan.power_button.unwrap_or(u64::MAX));
        next = next.min(self.env.next_at().unwrap_or(u64::MAX));
        for side in [Side::Primary, Side::Backup] {
            if self.process[side.index()] == Process::Runs {
                next = next.min(self.wake[side.index()]);
            }
        }
        // Nothing left to happen: the end.
        next.max(self.env.now).min(self.calm_at + PATIENCE)
    }

    fn finished(&self) -> bool {
        let over = self.env.now >= self.calm_at + AFTERMATH;
        let late = self.env.now >= self.calm_at + PATIENCE;
        over && (late || self.lost() || self.is_off() || (self.clients.done() && !self.pressed))
    }

    /// Whether the world has been told that the machine is off.
    const fn is_off(&self) -> bool {
        self.primary.machine.off() || self.backup.machine.off()
    }

    /// Whether both sides are lost: no machine can go on.
    fn lost(&self) -> bool {
        let dead = |side: Side| self.process[side.index()] == Process::Dead;
        let holder = |side: Side| {
            let role = match side {
                Side::Primary => Role::Primary,
                Side::Backup => Role::Backup,
            };
            self.env.flag() == Some(&Party::new(role, 1))
        };
        (dead(Side::Primary) && dead(Side::Backup))
            || [Side::Primary, Side::Backup]
                .into_iter()
                .any(|side| dead(side) && holder(side))
    }

    /// What came of it, and whether everything is as it has to be at the end.
    fn judge(&self) -> (Outcome, Result<(), Broken>) {
        let outcome = Outcome {
            live: self.env.oracle.live(),
            served: self.clients.done() || self.is_off(),
            answered: self.clients.progress().0,
            entries: self.env.oracle.last_recorded().0,
            time: self.env.now,
            steps: self.steps,
            counts: self.env.counts,
        };
        let lost = self.lost();
        let verdicts = [self.all_served(), self.loser_halted(), self.all_counted()];
        let verdict = verdicts.into_iter().find(Result::is_err).filter(|_| !lost);
        (outcome, verdict.unwrap_or(Ok(())))
    }

    fn all_served(&self) -> Result<(), Broken> {
        if self.is_off() || (self.clients.done() && !self.pressed) {
            return Ok(());
        }
        let (answered, of) = self.clients.progress();
        let (primary, backup) = (self.primary.role.state(), self.backup.role.state());
        let [one, two] = self.process;
        let why = format!(
            "{answered} of {of} requests answered, power button pressed: {}; primary {one:?}, {primary:?}; backup {two:?}, {backup:?}",
            self.pressed
        );
        Err((Rule::Progress, why))
    }

    fn loser_halted(&self) -> Result<(), Broken> {
        let (primary, backup) = (self.primary.role.state(), self.backup.role.state());
        let Some(live) = self.env.oracle.live() else {
            return Ok(());
        };
        let halted = match live {
            Side::Primary => matches!(backup, BackupState::Halted(_)),
            Side::Backup => matches!(primary, PrimaryState::Halted(_) | PrimaryState::Ended),
        };
        if halted || self.process[live.other().index()] == Process::Dead {
            return Ok(());
        }
        let why = format!("{live:?} is live, and the other does not know: {primary:?}, {backup:?}");
        Err((Rule::OneLive, why))
    }

    fn all_counted(&self) -> Result<(), Broken> {
        let vm = match self.env.oracle.live() {
            Some(Side::Backup) => &self.backup.machine.vm,
            _ => &self.primary.machine.vm,
        };
        if self.is_off() {
            return Ok(());
        }
        let wrong = (0..KEYS).find(|key| vm.value(*key) != self.clients.total(*key));
        wrong.map_or(Ok(()), |key| {
            let (found, expected) = (vm.value(key), self.clients.total(key));
            let why = format!("counter {key} holds {found}, {expected} additions were answered");
            Err((Rule::Durability, why))
        })
    }

    fn faults(&mut self) {
        while let Some((_, fault)) = self
            .plan
            .faults
            .get(self.next_fault)
            .filter(|(at, _)| *at <= self.env.now)
        {
            let fault = *fault;
            self.next_fault += 1;
            self.env.trace(|| format!("fault: {fault:?}"));
            match fault {
                Fault::Kill(side) => {
                    if self.kill(side) {
                        self.env.send(side, Message::Closed);
                    }
                }
                Fault::PowerLoss(side) => {
                    self.kill(side);
                }
                Fault::Stop(side) => {
                    if self.process[side.index()] == Process::Runs {
                        self.process[side.index()] = Process::Stopped;
                        self.stopped_at[side.index()] = self.env.now;
                    }
                }
                Fault::Continue(side) => self.resume(side),
                Fault::CutTo(side) => self.env.cut_to[side.index()] = true,
                Fault::HealTo(side) => self.env.cut_to[side.index()] = false,
                Fault::StorageGone(side) => self.env.storage_gone[side.index()] = true,
                Fault::StorageBack(side) => self.env.storage_gone[side.index()] = false,
                Fault::Calm => self.env.calm(),
            }
        }
    }

    fn kill(&mut self, side: Side) -> bool {
        if side == Side::Primary && self.process[side.index()] == Process::Runs {
            self.env.counts.died_holding += self.primary.machine.gate.held() as u64;
        }
        self.env.dead[side.index()] = true;
        std::mem::replace(&mut self.process[side.index()], Process::Dead) != Process::Dead
    }

    fn resume(&mut self, side: Side) {
        if self.process[side.index()] == Process::Stopped {
            let stopped = self.env.now - self.stopped_at[side.index()];
            if side == Side::Primary && stopped > SILENCE / 2 {
                self.env.oracle.primary_continued();
            }
            self.process[side.index()] = Process::Runs;
            self.wake[side.index()] = self.env.now;
        }
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Delivery(to, message) => {
                if matches!(message, Message::Arbiter(_)) || !self.env.cut_to[to.index()] {
                    self.deliver(to, message);
                }
            }
            Happening::Close(to) => {
                if self.env.cut_to[to.index()] {
                    self.env.close_later(to);
                } else {
                    self.deliver(to, Message::Closed);
                }
            }
            Happening::FromClient(request) => {
                let frame = request.encode().to_vec();
                self.deliver(self.port, Message::Frame(frame));
            }
            Happening::Noise => self.noise(),
            Happening::FromMachine(side, frame) => {
                // As switches do, it learns from every frame where its sender lives.
                self.port = side;
                if let Some(response) = Env::response(&frame) {
                    self.env
                        .trace(|| format!("client {}: {response:?}", response.client));
                    let now = self.env.now;
                    let result = self.clients.answered(response, now, &mut self.env.rng);
                    self.env.check(result);
                }
            }
            Happening::Announcement(side) => self.port = side,
            Happening::AtStorage(side, claim) => self.env.at_storage(side, claim),
        }
    }

    /// Somebody's broadcast; a burst of them now and then.
    fn noise(&mut self) {
        if self.env.now >= self.calm_at {
            return;
        }
        for _ in 0..self.env.rng.pick(&[1, 1, 1, 12]) {
            let length = self.env.rng.between(60, 900) as usize;
            let frame = vec![self.env.rng.draw() as u8; length];
            self.deliver(self.port, Message::Frame(frame));
        }
        let delay = self.env.rng.between(1, 2 * self.plan.noise);
        self.env.noise_after(delay);
    }

    fn press(&mut self) {
        if self
            .plan
            .power_button
            .take_if(|at| *at <= self.env.now)
            .is_some()
        {
            self.env
                .trace(|| "the operator presses the power button".into());
            for side in [Side::Primary, Side::Backup] {
                self.deliver(side, Message::PowerButton);
            }
            self.pressed = true;
        }
    }

    fn deliver(&mut self, to: Side, message: Message) {
        if self.process[to.index()] == Process::Dead {
            return;
        }
        match to {
            Side::Primary => self.primary.inbox.push_back(message),
            Side::Backup => self.backup.inbox.push_back(message),
        }
        let soon = self.env.now + self.env.rng.below(5 * US);
        self.wake[to.index()] = self.wake[to.index()].min(soon);
    }

    fn ask(&mut self) {
        if self.clients.wake_at() > self.env.now {
            return;
        }
        for client in 0..CLIENTS {
            let now = self.env.now;
            if let Some(request) = self.clients.ask(client, now, &mut self.env.rng) {
                self.env
                    .trace(|| format!("client {client} asks: {request:?}"));
                self.env.to_machine(request);
            }
        }
    }

    fn step(&mut self, side: Side) {
        let index = side.index();
        if self.process[index] != Process::Runs || self.wake[index] > self.env.now {
            return;
        }
        self.steps += 1;
        if side == Side::Primary
            && self
                .primary
                .leaves_at()
                .is_some_and(|at| at <= self.env.now)
        {
            self.env.trace(|| "primary: exits".into());
            self.kill(side);
            self.env.send(side, Message::Closed);
            return;
        }
        self.wake[index] = match side {
            Side::Primary => {
                let before = self.env.oracle.last_recorded();
                let next = self.primary.step(&mut self.env);
                if self.plan.transport != Transport::Link
                    && self.env.oracle.last_recorded() > before
                {
                    self.backup.ring_changed();
                    let soon = self.env.now + self.env.rng.below(5 * US);
                    self.wake[Side::Backup.index()] = self.wake[Side::Backup.index()].min(soon);
                }
                next
            }
            Side::Backup => self.backup.step(&mut self.env),
        };
    }
}
