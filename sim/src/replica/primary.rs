//! Drives the primary's role.

use std::collections::VecDeque;

use lockstep_logchan::entry::{Sequence, whole_entries};
use lockstep_logchan::protocol::Role;
use lockstep_logchan::protocol::ack::{ACK_BYTES, Ack};
use lockstep_logchan::protocol::sender::Sender;
use lockstep_logchan::writer::EntryWriter;
use lockstep_ringbuf::Consumer;
use lockstep_vmm::ft::detector::Suspicion;
use lockstep_vmm::ft::gate::ReleaseLimit;
use lockstep_vmm::ft::log::{EndReason, Unlogged};
use lockstep_vmm::ft::primary::{Primary, PrimaryAction, PrimaryState};
use lockstep_vmm::ft::recorder::Recorder;
use lockstep_vmm::ft::vm::{Event, Vm};

use super::{ARBITRATION, DETECTOR, Pulse, SILENCE, STEP, claim, recorder_settings};
use crate::env::{Env, Message};
use crate::guest::Guest;
use crate::machine::{Machine, Step};
use crate::plan::{MS, Plan, Side, Transport, US};
use crate::sabotage::Sabotage;

/// Bytes of log in one packet.
const PACKET: usize = 1400;
/// What is not acknowledged for this long is sent again.
const RESEND: u64 = 800 * US;

/// The log's way to the backup.
enum Channel {
    Link {
        sender: Box<Sender>,
        consumer: Consumer,
        moved: u64,
    },
    /// The backup reads the ring, and says so.
    Received,
    /// The backup has the ring.
    Committed,
}

/// The primary's process.
pub struct PrimaryHost {
    /// The role it drives.
    pub role: Primary,
    /// The machine.
    pub machine: Machine,
    /// What has arrived and was not read.
    pub inbox: VecDeque<Message>,
    log: EntryWriter,
    channel: Channel,
    alone: Option<Unlogged>,
    connected: bool,
    pulse: Pulse,
    acknowledged: Sequence,
    waiting_for_room: bool,
    asked: u32,
    leaves_at: Option<u64>,
    looked_at: u64,
    stood_still: bool,
    clock: u64,
    pace: u64,
    sabotage: Sabotage,
}

impl PrimaryHost {
    /// A primary that writes to `log`; on a link, `consumer` reads it to send it to a backup with a
    /// ring of `plan.backup_ring` bytes.
    pub fn new(
        plan: &Plan,
        log: EntryWriter,
        consumer: Option<Consumer>,
        sabotage: Sabotage,
    ) -> Self {
        let clock = plan.clocks[Side::Primary.index()];
        let vm = Guest::new(plan.guest);
        let recorder = Recorder::new(recorder_settings(plan), clock, 0, 0);
        let ring = plan.backup_ring as u64;
        let channel = match consumer {
            Some(consumer) => {
                let sender = Sender::new(Sequence::NONE, 0, ring, DETECTOR.stall);
                Channel::Link {
                    sender: Box::new(sender),
                    consumer,
                    moved: clock,
                }
            }
            None if plan.transport == Transport::Received => Channel::Received,
            None => Channel::Committed,
        };
        Self {
            role: Primary::new(claim(Role::Primary), DETECTOR, ARBITRATION, clock),
            machine: Machine::new(vm, recorder),
            inbox: VecDeque::new(),
            log,
            channel,
            alone: None,
            connected: true,
            pulse: Pulse::new(Role::Primary, clock),
            acknowledged: Sequence::NONE,
            waiting_for_room: false,
            asked: 0,
            leaves_at: None,
            looked_at: 0,
            stood_still: false,
            clock,
            pace: plan.pace[Side::Primary.index()],
            sabotage,
        }
    }

    /// One step. Returns when, in simulated time, the next one is due.
    pub fn step(&mut self, env: &mut Env) -> u64 {
        let now = env.now + self.clock;
        // Half of what the backup calls silence: it may have gone live meanwhile.
        self.stood_still |= env.now - self.looked_at > SILENCE / 2;
        self.looked_at = env.now;
        // What has arrived may wait while something else is done, but not for a judgement of the
        // peer's silence.
        if !self.inbox.is_empty() && env.rng.chance(600) {
            if let Some(message) = self.inbox.pop_front() {
                self.receive(message, now, env);
                self.act(env);
            }
            return env.now + env.rng.below(STEP);
        }
        if self.inbox.is_empty() {
            self.role.tick(now);
            self.act(env);
        }
        const DEEDS: u64 = 8;
        let first = env.rng.below(DEEDS);
        for deed in 0..DEEDS {
            let spent = match (first + deed) % DEEDS {
                0 => self.release(now, env),
                1 => self.flush(now, env),
                2 => self.heartbeat(now, env),
                3 => self.ask_the_ring(now, env),
                4 => self.events(now, env),
                5 => self.end(now, env),
                6 => self.mark_time(now, env),
                _ => self.run(env),
            };
            if let Some(spent) = spent {
                return env.now + spent + env.rng.below(STEP);
            }
        }
        self.wake_at(now, env)
    }

    fn wake_at(&self, now: u64, env: &Env) -> u64 {
        if !self.inbox.is_empty() {
            return env.now + US;
        }
        let machine = match self.role.may_run() {
            true if self.waiting_for_room => now + 20 * US,
            true => self.machine.wake_at().unwrap_or(now + 20 * US),
            false => u64::MAX,
        };
        let beat = if self.connected {
            self.pulse.schedule.next_at()
        } else {
            u64::MAX
        };
        let resend = match &self.channel {
            Channel::Link { sender, moved, .. } if self.connected && !sender.idle() => {
                moved + RESEND
            }
            _ => u64::MAX,
        };
        let role = self.role.deadline().unwrap_or(u64::MAX);
        let next = machine.min(beat).min(resend).min(role);
        // A deadline that has passed and changed nothing (a timer between two positions) is not
        // looked at again at once.
        let next = next.saturating_sub(self.clock).max(env.now + US);
        self.leaves_at.map_or(next, |leaves| leaves.min(next))
    }

    fn receive(&mut self, message: Message, now: u64, env: &mut Env) {
        match message {
            Message::Ack(bytes) if self.connected => self.receive_ack(&bytes, now, env),
            Message::Heartbeat(bytes) if self.connected => self.receive_heartbeat(&bytes, now),
            Message::Closed if self.connected => {
                self.role.suspect(now, Suspicion::ConnectionLost);
            }
            Message::Frame(frame) => self.machine.frame(frame),
            Message::PowerButton => self.machine.power_button(),
            Message::Arbiter(answer) => self.role.arbiter_answered(now, answer),
            _ => {}
        }
    }

    fn receive_heartbeat(&mut self, bytes: &[u8], now: u64) {
        if self.pulse.hear(bytes, now).is_some() {
            self.role.heard(now);
        }
    }

    fn receive_ack(&mut self, bytes: &[u8; ACK_BYTES], now: u64, env: &mut Env) {
        // A damaged acknowledgement is dropped; on this link messages may get lost.
        let Ok(ack) = Ack::decode(bytes) else { return };
        match &mut self.channel {
            Channel::Link {
                sender,
                consumer,
                moved,
            } => {
                let before = sender.acked_cursor();
                match sender.acknowledge(&ack, consumer.readable(), now) {
                    Ok(progress) => {
                        consumer.release((sender.acked_cursor() - before) as usize);
                        if progress {
                            *moved = now;
                        }
                        self.acknowledged = sender.acked().acked;
                    }
                    Err(error) => return env.unexpected(format!("primary: {error}")),
                }
            }
            Channel::Received => self.acknowledged = self.acknowledged.max(ack.acked),
            Channel::Committed => return,
        }
        self.role.heard(now);
        self.report(now);
    }

    /// Tells the role how the log stands.
    fn report(&mut self, now: u64) {
        let behind = self.log.last_sequence() > self.acknowledged;
        self.role
            .acknowledged(now, self.acknowledged, behind || self.waiting_for_room);
    }

    fn act(&mut self, env: &mut Env) {
        while let Some(action) = self.role.next_action() {
            env.trace(|| format!("primary: {action:?}"));
            match action {
                PrimaryAction::Disconnect(suspicion) => {
                    env.suspects(Side::Primary, suspicion);
                    self.connected = false;
                    env.send(Side::Primary, Message::Closed);
                }
                PrimaryAction::TestAndSet(claim) => {
                    self.asked += 1;
                    match self.sabotage {
                        Sabotage::PrimaryDoesNotAsk => {
                            self.inbox.push_back(Message::Arbiter(Ok(claim.party)));
                        }
                        Sabotage::AskOnce if self.asked > 1 => {}
                        _ => env.ask_storage(Side::Primary, claim),
                    }
                }
                PrimaryAction::GoAlone => {
                    let result = env.oracle.went_live(Side::Primary);
                    env.check(result);
                    self.alone = Some(Unlogged::after(self.log.last_sequence()));
                    self.waiting_for_room = false;
                }
                PrimaryAction::Halt(_) => self.connected = false,
            }
        }
    }

    fn limit(&self) -> ReleaseLimit {
        if self.stood_still && self.sabotage != Sabotage::NoFence {
            return ReleaseLimit::Nothing;
        }
        match (self.sabotage, self.role.state()) {
            (Sabotage::ReleaseEarly, PrimaryState::Protected)
            | (Sabotage::ReleaseWhileArbitrating, PrimaryState::Arbitrating(_)) => {
                ReleaseLimit::Everything
            }
            _ => self.role.release_limit(),
        }
    }

    fn release(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        let limit = self.limit();
        if !self.machine.releasable(limit) {
            return None;
        }
        if let Some((entry, bytes)) = self.machine.release(limit, Side::Primary, env) {
            let alone = self.alone.is_some();
            env.trace(|| format!("primary: output of {entry} leaves: {bytes:x?}"));
            let result = env.oracle.primary_sent(entry, alone, &bytes);
            env.check(result);
            self.role.output_left(now);
        }
        Some(0)
    }

    fn flush(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        let Channel::Link {
            sender,
            consumer,
            moved,
        } = &mut self.channel
        else {
            return None;
        };
        if !self.connected {
            return None;
        }
        if !sender.idle() && now.saturating_sub(*moved) >= RESEND {
            env.trace(|| {
                format!(
                    "primary: nothing acknowledged behind {}",
                    sender.acked().acked
                )
            });
            env.counts.rewinds += 1;
            sender.rewind(now);
            *moved = now;
        }
        let sendable = sender.sendable(consumer.committed()) as usize;
        let unsent = &consumer.readable_from(sender.sent_cursor())[..sendable];
        let length = whole_entries(unsent, PACKET);
        if length == 0 {
            return None;
        }
        if sender.idle() {
            *moved = now;
        }
        env.send(Side::Primary, Message::Log(unsent[..length].to_vec()));
        sender.sent(length as u64, now);
        Some(0)
    }

    fn heartbeat(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        if !self.connected {
            return None;
        }
        let beat = self.pulse.schedule.due(now, self.machine.released())?;
        env.send(Side::Primary, Message::Heartbeat(beat.encode()));
        Some(0)
    }

    /// On shared memory a commit is the acknowledgement, unless the ring was sealed before it.
    fn ask_the_ring(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        if !matches!(self.channel, Channel::Committed)
            || *self.role.state() != PrimaryState::Protected
        {
            return None;
        }
        let committed = self.log.last_sequence();
        let sealed = self.sabotage != Sabotage::SealNotAsked && self.log.producer().sealed();
        if sealed {
            env.counts.found_sealed += 1;
            self.role.suspect(now, Suspicion::Sealed);
            self.act(env);
            return Some(0);
        }
        if committed == self.acknowledged {
            return None;
        }
        self.acknowledged = committed;
        self.report(now);
        Some(0)
    }

    fn events(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        if !self.role.may_run() {
            return None;
        }
        let take = env.rng.chance(700);
        let step = match (&mut self.alone, take) {
            (Some(log), true) => self.machine.take_event(log, now),
            (Some(log), false) => self.machine.tick(log, now),
            (None, true) => self.machine.take_event(&mut self.log, now),
            (None, false) => self.machine.tick(&mut self.log, now),
        };
        self.recorded(step, now, env)
    }

    fn run(&mut self, env: &mut Env) -> Option<u64> {
        if !self.role.may_run() {
            return None;
        }
        let now = env.now + self.clock;
        let unrecorded = match &mut self.alone {
            Some(log) => self.machine.record_outputs(log),
            None => self.machine.record_outputs(&mut self.log),
        };
        if unrecorded != Step::Idle {
            return self.recorded(unrecorded, now, env);
        }
        if env.rng.chance(50) {
            env.counts.kicks += 1;
            self.machine.vm.kick_after = Some(env.rng.below(20));
        }
        if self.sabotage == Sabotage::Unrecorded
            && env.rng.chance(10)
            && self.machine.vm.at_position()
        {
            let clock = self.machine.vm.clock();
            let Ok(()) = self.machine.vm.apply(clock, Event::Console(b"unrecorded"));
        }
        let positions = env.rng.between(1, 40);
        let step = match &mut self.alone {
            Some(log) => self.machine.run(log, positions),
            None => self.machine.run(&mut self.log, positions),
        };
        self.recorded(step, now, env)
    }

    /// After it stood still: an entry to be acknowledged before anything is released again.
    fn mark_time(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        if !self.stood_still || *self.role.state() != PrimaryState::Protected {
            self.stood_still = false;
            return None;
        }
        let written = self.machine.mark_time(&mut self.log, now)?;
        env.trace(|| format!("primary: stood still; waits for {written}"));
        self.stood_still = false;
        if self.sabotage != Sabotage::NoFence {
            self.role.stood_still(written);
        }
        self.recorded(Step::Ran(0), now, env)
    }

    /// The machine is off and the world knows: the log ends, and some time later the process.
    fn end(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        if !self.machine.off() || !self.role.may_run() {
            return None;
        }
        if self.alone.is_none() {
            let reason = EndReason::PoweredOff;
            if self
                .machine
                .recorder
                .end(&mut self.machine.vm, &mut self.log, reason)
                .is_err()
            {
                return None;
            }
            self.recorded(Step::Idle, now, env);
        }
        env.trace(|| "primary: ended".into());
        self.role.ended();
        self.leaves_at = Some(env.now + MS);
        Some(0)
    }

    /// When a process that has nothing more to do exits, in simulated time.
    pub const fn leaves_at(&self) -> Option<u64> {
        self.leaves_at
    }

    /// Tells the watcher what is in the log now; returns the time that the step took.
    fn recorded(&mut self, step: Step, now: u64, env: &mut Env) -> Option<u64> {
        if self.alone.is_none() {
            let last = self.log.last_sequence();
            if last > env.oracle.last_recorded() {
                env.trace(|| {
                    format!(
                        "primary: recorded up to {last}, position {}",
                        self.machine.vm.position()
                    )
                });
                env.oracle.recorded(last, self.machine.vm.whole());
                if matches!(self.channel, Channel::Committed) && !self.log.producer().sealed() {
                    env.oracle.held(last);
                }
            }
            let full = match step {
                Step::Full => true,
                Step::Ran(_) => false,
                Step::Idle => self.waiting_for_room,
            };
            if full != self.waiting_for_room {
                env.counts.log_full += u64::from(full);
                self.waiting_for_room = full;
                self.report(now);
            }
        }
        match step {
            Step::Ran(positions) => Some(positions * self.pace),
            Step::Full | Step::Idle => None,
        }
    }
}
