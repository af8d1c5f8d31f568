//! Drives the backup's role.

use std::collections::VecDeque;

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::protocol::Role;
use lockstep_logchan::protocol::receiver::{AckPolicy, Receiver, Replayed, Verdict};
use lockstep_logchan::reader::{EntryReader, ReceivedCursor};
use lockstep_ringbuf::Producer;
use lockstep_vmm::ft::backup::{Backup, BackupAction, BackupState};
use lockstep_vmm::ft::detector::Suspicion;
use lockstep_vmm::ft::log::Unlogged;
use lockstep_vmm::ft::recorder::Recorder;
use lockstep_vmm::ft::replayer::{Progress, Replayer};
use lockstep_vmm::ft::vm::Vm;

use super::{ARBITRATION, DETECTOR, Pulse, STEP, claim, recorder_settings};
use crate::env::{Env, Message};
use crate::guest::Guest;
use crate::machine::{Machine, Step};
use crate::plan::{Plan, Side, US};
use crate::sabotage::Sabotage;

/// Acknowledge at the latest after this long.
const ACK_DELAY: u64 = 300 * US;

/// How the log arrives.
enum Channel {
    Link {
        receiver: Box<Receiver>,
        producer: Producer,
        acknowledged: Sequence,
    },
    /// It reads the primary's ring in place.
    Received {
        receiver: Box<Receiver>,
        cursor: ReceivedCursor,
        acknowledged: Sequence,
    },
    /// Whatever is in the primary's ring is acknowledged.
    Committed,
}

/// The backup's process.
pub struct BackupHost {
    /// The role it drives.
    pub role: Backup,
    /// The machine; it executes once the role is live.
    pub machine: Machine,
    /// What has arrived and was not read.
    pub inbox: VecDeque<Message>,
    replayer: Replayer,
    log: EntryReader,
    channel: Channel,
    unlogged: Option<Unlogged>,
    connected: bool,
    sealing: bool,
    /// The last step found the log empty.
    idle: bool,
    asked: u32,
    pulse: Pulse,
    plan: Plan,
    clock: u64,
    pace: u64,
    sabotage: Sabotage,
}

impl BackupHost {
    /// A backup that reads `log`; on a link, what it receives goes there through `producer`.
    ///
    /// On one host, `cursor` is what `log` takes for received.
    pub fn new(
        plan: &Plan,
        log: EntryReader,
        producer: Option<Producer>,
        cursor: Option<ReceivedCursor>,
        sabotage: Sabotage,
    ) -> Self {
        let clock = plan.clocks[Side::Backup.index()];
        let policy = AckPolicy {
            entries: plan.ack_entries,
            delay_ns: ACK_DELAY,
        };
        let ring = log.consumer().capacity() as u64;
        let receiver = Box::new(Receiver::new(Sequence::NONE, ring, policy));
        let acknowledged = Sequence::NONE;
        let channel = match (producer, cursor) {
            (Some(producer), _) => Channel::Link {
                receiver,
                producer,
                acknowledged,
            },
            (None, Some(cursor)) => Channel::Received {
                receiver,
                cursor,
                acknowledged,
            },
            (None, None) => Channel::Committed,
        };
        let recorder = Recorder::new(recorder_settings(plan), clock, 0, 0);
        Self {
            role: Backup::new(claim(Role::Backup), DETECTOR, ARBITRATION, clock),
            machine: Machine::new(Guest::new(plan.guest), recorder),
            inbox: VecDeque::new(),
            replayer: Replayer::new(Sequence::NONE, 0),
            log,
            channel,
            unlogged: None,
            connected: true,
            sealing: false,
            idle: false,
            asked: 0,
            pulse: Pulse::new(Role::Backup, clock),
            plan: plan.clone(),
            clock,
            pace: plan.pace[Side::Backup.index()],
            sabotage,
        }
    }

    /// Something may have been written to the shared ring.
    pub const fn ring_changed(&mut self) {
        self.idle = false;
    }

    /// One step. Returns when, in simulated time, the next one is due.
    pub fn step(&mut self, env: &mut Env) -> u64 {
        let now = env.now + self.clock;
        if !self.inbox.is_empty() && env.rng.chance(600) {
            if let Some(message) = self.inbox.pop_front() {
                self.receive(message, now, env);
                self.act(now, env);
            }
            return env.now + env.rng.below(STEP);
        }
        if self.inbox.is_empty() {
            self.role.tick(now);
            self.act(now, env);
        }
        const DEEDS: u64 = 7;
        let first = env.rng.below(DEEDS);
        for deed in 0..DEEDS {
            let spent = match (first + deed) % DEEDS {
                0 => self.seal(env),
                1 => self.replay(now, env),
                2 => self.acknowledge(now, env),
                3 => self.heartbeat(now, env),
                4 => self.release(now, env),
                5 => self.receive_in_place(now, env),
                _ => self.execute(now, env),
            };
            if let Some(spent) = spent {
                self.act(now, env);
                return env.now + spent + env.rng.below(STEP);
            }
        }
        self.wake_at(now, env)
    }

    fn wake_at(&self, now: u64, env: &Env) -> u64 {
        if !self.inbox.is_empty() {
            return env.now + US;
        }
        let machine = match self.unlogged {
            Some(_) => self.machine.wake_at().unwrap_or(now + 20 * US),
            None => u64::MAX,
        };
        let ack = match &self.channel {
            Channel::Link { receiver, .. } | Channel::Received { receiver, .. }
                if self.may_acknowledge() =>
            {
                receiver.ack_at(self.replayed()).unwrap_or(u64::MAX)
            }
            _ => u64::MAX,
        };
        let beat = if self.connected {
            self.pulse.schedule.next_at()
        } else {
            u64::MAX
        };
        let role = self.role.deadline().unwrap_or(u64::MAX);
        let next = machine.min(ack).min(beat).min(role);
        next.saturating_sub(self.clock).max(env.now + US)
    }

    fn may_acknowledge(&self) -> bool {
        let going_live = !matches!(
            self.role.state(),
            BackupState::Live | BackupState::Halted(_)
        );
        self.role.may_acknowledge() || (self.sabotage == Sabotage::NoSeal && going_live)
    }

    fn receive(&mut self, message: Message, now: u64, env: &mut Env) {
        match message {
            Message::Log(bytes) => self.receive_log(&bytes, now, env),
            Message::Heartbeat(bytes) if self.connected => {
                if let Some(beat) = self.pulse.hear(&bytes, now) {
                    self.role.heard(now);
                    self.replayer
                        .primary_released(&mut self.machine.vm, beat.sequence);
                }
            }
            Message::Closed if self.connected => {
                self.role.suspect(now, Suspicion::ConnectionLost);
            }
            Message::Frame(frame) if self.unlogged.is_some() => self.machine.frame(frame),
            Message::PowerButton => self.machine.power_button(),
            Message::Arbiter(answer) => self.role.arbiter_answered(now, answer),
            _ => {}
        }
    }

    fn receive_log(&mut self, mut bytes: &[u8], now: u64, env: &mut Env) {
        if !self.may_acknowledge() {
            return;
        }
        let Channel::Link {
            receiver, producer, ..
        } = &mut self.channel
        else {
            return;
        };
        while !bytes.is_empty() {
            let entry = match receiver.accept(bytes, now) {
                Ok(Verdict::Next(entry)) => entry,
                Ok(Verdict::Duplicate(entry)) => {
                    bytes = &bytes[entry.bytes_in_log()..];
                    continue;
                }
                // Entries before it were lost, or it was damaged: the sender will go back.
                Ok(Verdict::Gap { .. } | Verdict::Incomplete) | Err(_) => {
                    env.counts.refused_packets += 1;
                    return;
                }
            };
            let (stored, rest) = bytes.split_at(entry.bytes_in_log());
            bytes = rest;
            self.role.heard(now);
            if self.sabotage == Sabotage::AcknowledgeUnstored && env.rng.chance(20) {
                continue;
            }
            match producer.reserve(stored.len()) {
                Ok(place) => {
                    place.copy_from_slice(stored);
                    producer.commit(stored.len());
                    env.oracle.held(receiver.last_sequence());
                    self.idle = false;
                }
                Err(full) => return env.unexpected(format!("backup: beyond its credit: {full}")),
            }
        }
        self.role.received(now, receiver.last_sequence(), false);
    }

    fn act(&mut self, now: u64, env: &mut Env) {
        while let Some(action) = self.role.next_action() {
            env.trace(|| format!("backup: {action:?}"));
            match action {
                BackupAction::Seal(suspicion) => {
                    env.suspects(Side::Backup, suspicion);
                    self.sealing = true;
                    if self.sabotage != Sabotage::NoSeal {
                        self.connected = false;
                        env.send(Side::Backup, Message::Closed);
                    }
                }
                BackupAction::Drain => {
                    self.idle = false;
                    if self.sabotage == Sabotage::NotDrained {
                        self.role.drained(now, Sequence(u64::MAX));
                    }
                }
                BackupAction::TestAndSet(claim) => {
                    self.asked += 1;
                    match self.sabotage {
                        Sabotage::BackupDoesNotAsk => {
                            self.inbox.push_back(Message::Arbiter(Ok(claim.party)));
                        }
                        Sabotage::AskOnce if self.asked > 1 => {}
                        _ => env.ask_storage(Side::Backup, claim),
                    }
                }
                BackupAction::GoLive => self.go_live(now, env),
                BackupAction::Halt(_) => {
                    self.connected = false;
                    env.send(Side::Backup, Message::Closed);
                }
            }
        }
    }

    fn go_live(&mut self, now: u64, env: &mut Env) {
        let mut live = match self.replayer.go_live() {
            Ok(live) => live,
            Err(why) => return env.unexpected(format!("backup: {why}")),
        };
        if self.sabotage == Sabotage::ForgetKept {
            live.resend.clear();
        }
        let resent = live.resend.len() as u64;
        env.counts.resent += resent;
        let result = env.oracle.went_live(Side::Backup);
        env.check(result);
        let result = env.oracle.took_over(live.replayed, live.said, resent);
        env.check(result);
        env.announce(Side::Backup);
        self.connected = false;
        self.unlogged = Some(Unlogged::after(live.replayed));
        let clock = self.machine.vm.clock();
        self.machine.recorder = Recorder::new(recorder_settings(&self.plan), now, clock, live.said);
        self.machine.resend = live.resend.into();
    }

    fn seal(&mut self, env: &mut Env) -> Option<u64> {
        if !std::mem::take(&mut self.sealing) {
            return None;
        }
        let acknowledged = match &self.channel {
            Channel::Link { acknowledged, .. } => *acknowledged,
            Channel::Received { acknowledged, .. } => *acknowledged,
            Channel::Committed => Sequence::NONE,
        };
        if !matches!(self.channel, Channel::Link { .. }) && self.sabotage != Sabotage::NoSeal {
            self.log.seal();
        }
        env.trace(|| format!("backup: sealed, {acknowledged} acknowledged"));
        self.role.sealed(acknowledged);
        Some(0)
    }

    fn replay(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        if !self.role.may_replay() || self.idle {
            return None;
        }
        if env.rng.chance(50) {
            self.machine.vm.kick_after = Some(env.rng.below(20));
        }
        let budget = env.rng.between(1, 60);
        let from = self.machine.vm.position();
        let step = self
            .replayer
            .step(&mut self.machine.vm, &mut self.log, budget);
        match step {
            Ok(Progress::Idle) => {
                self.idle = true;
                if matches!(self.role.state(), BackupState::Draining(_)) {
                    self.role.drained(now, self.replayer.replayed());
                } else if self.sabotage == Sabotage::RunAhead {
                    let _stop = self.machine.vm.run(from + 3);
                }
            }
            Ok(Progress::Running) => {}
            Ok(Progress::Replayed(sequence)) => {
                let result = env.oracle.replayed(sequence, self.machine.vm.whole());
                env.check(result);
            }
            Ok(Progress::Ended(reason)) => self.role.ended(reason),
            Ok(progress @ (Progress::ReadDisk { .. } | Progress::AwaitDisk { .. })) => {
                env.unexpected(format!(
                    "backup: asked for {progress:?} of a guest without a disk"
                ));
            }
            Err(error) => {
                env.unexpected(format!("backup: {error}"));
                self.role.refuse(error.to_string());
            }
        }
        Some((self.machine.vm.position() - from) * self.pace)
    }

    fn replayed(&self) -> Replayed {
        Replayed {
            sequence: self.replayer.replayed(),
            position: self.machine.vm.position(),
        }
    }

    fn acknowledge(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        if !self.may_acknowledge() {
            return None;
        }
        let (replayed, free) = (self.replayed(), self.free());
        let due = match &self.channel {
            Channel::Link { receiver, .. } | Channel::Received { receiver, .. } => {
                receiver.ack_due(now, replayed, free)
            }
            Channel::Committed => false,
        };
        due.then(|| {
            self.send_ack(now, env);
            0
        })
    }

    /// Bytes of the ring that nothing received occupies.
    fn free(&self) -> u64 {
        match &self.channel {
            Channel::Link { producer, .. } => producer.free() as u64,
            Channel::Received { cursor, .. } => {
                let ring = self.log.consumer();
                ring.capacity() as u64 - (cursor.get() - ring.cursor())
            }
            Channel::Committed => 0,
        }
    }

    fn send_ack(&mut self, now: u64, env: &mut Env) {
        let (replayed, free) = (self.replayed(), self.free());
        match &mut self.channel {
            Channel::Link {
                receiver,
                acknowledged,
                ..
            }
            | Channel::Received {
                receiver,
                acknowledged,
                ..
            } => {
                let ack = receiver.ack(now, replayed, free);
                *acknowledged = ack.acked;
                env.trace(|| format!("backup: acknowledges {}", ack.acked));
                env.send(Side::Backup, Message::Ack(ack.encode()));
            }
            Channel::Committed => {}
        }
    }

    /// Checks the next entry in the shared ring.
    fn receive_in_place(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        if !self.may_acknowledge() {
            return None;
        }
        let Channel::Received {
            receiver, cursor, ..
        } = &mut self.channel
        else {
            return None;
        };
        let bytes = self.log.consumer().readable_from(cursor.get());
        match receiver.accept(bytes, now) {
            Ok(Verdict::Next(entry)) => {
                cursor.advance(cursor.get() + entry.bytes_in_log() as u64);
                env.oracle.held(entry.sequence());
                self.idle = false;
                Some(0)
            }
            Ok(Verdict::Incomplete) => None,
            other => {
                env.unexpected(format!("backup: in the shared ring: {other:?}"));
                None
            }
        }
    }

    fn heartbeat(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        if !self.connected {
            return None;
        }
        let beat = self.pulse.schedule.due(now, self.replayer.replayed())?;
        env.send(Side::Backup, Message::Heartbeat(beat.encode()));
        if self.may_acknowledge() {
            // This link loses messages, and nothing else would repeat a lost grant of credit.
            self.send_ack(now, env);
        }
        Some(0)
    }

    fn release(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        let limit = self.role.release_limit();
        if self.unlogged.is_none() || !self.machine.releasable(limit) {
            return None;
        }
        if let Some((_, bytes)) = self.machine.release(limit, Side::Backup, env) {
            env.trace(|| format!("backup: output leaves: {bytes:x?}"));
            env.counts.sent_twice += u64::from(env.oracle.sent_before());
            let result = env.oracle.backup_sent(&bytes);
            env.check(result);
            self.role.output_left(now);
        }
        Some(0)
    }

    fn execute(&mut self, now: u64, env: &mut Env) -> Option<u64> {
        let log = self.unlogged.as_mut()?;
        let step = match env.rng.below(4) {
            0 => self.machine.take_event(log, now),
            1 => self.machine.tick(log, now),
            _ => self.machine.run(log, env.rng.between(1, 40)),
        };
        match step {
            Step::Ran(positions) => Some(positions * self.pace),
            Step::Full | Step::Idle => None,
        }
    }
}
