//! The primary: a live machine whose every input goes to a backup, and whose outputs wait for it.
//!
//! One thread executes the guest, writes the log, drives the channel (or the core that does, see
//! [`crate::settings::Flush`]), and carries out what its role decides. Heartbeats and the arbiter
//! have threads of their own, so that neither a long run of the guest nor hanging storage stops
//! the other.

use std::collections::VecDeque;
use std::sync::Arc;

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::protocol::Role;
use lockstep_logchan::transport::connect::Listener;
use lockstep_logchan::transport::{ChannelError, PrimaryChannel};
use lockstep_logchan::writer::EntryWriter;
use lockstep_perf::counters::{Counter, Counters};
use lockstep_perf::disk_stages::DiskHistograms;
use lockstep_perf::stages::StageHistograms;
use lockstep_perf::{pin, stamp};
use rustix::event::{PollFd, PollFlags};

use super::alone::{Alone, AloneEnd};
use super::arbiter_desk::ArbiterDesk;
use super::control::Control;
use super::disk_desk::Part;
use super::door::Door;
use super::idle::{self, Idle};
use super::live::{Live, LiveParts, Turn};
use super::metronome::Metronome;
use super::pair::{self, PairSpec};
use super::pulse::Pulse;
use super::status::{Standing, Status};
use super::{RunError, RunOptions, VmSpec};
use crate::ft::arbiter::ArbitrationSettings;
use crate::ft::detector::{DetectorSettings, Suspicion};
use crate::ft::log::{EndReason, Unlogged};
use crate::ft::primary::{Primary, PrimaryAction, PrimaryHalt};
use crate::ft::throttle::Throttle;
use crate::ft::times::FailoverTimes;
use crate::ft::vm::Vm;

/// The log's end is given this long to be acknowledged, nanoseconds.
const FAREWELL_NS: u64 = 1_000_000_000;

/// While the guest executes without a pause, a sleeping backup is woken this often, nanoseconds.
const WAKE_EVERY_NS: u64 = 200_000;

/// While the guest executes without a pause and says nothing, its log is sent this often, nanoseconds:
/// a send costs the guest 20 µs, and what it brings forward is the replay alone.
const FLUSH_EVERY_NS: u64 = 500_000;

/// How a primary's run ended.
#[derive(Debug)]
pub struct PrimaryReport {
    /// Why.
    pub end: PrimaryEnd,
    /// How long losing the backup took, if it was lost.
    pub times: Option<FailoverTimes>,
    /// Why the backup was given up, if it was.
    pub suspicion: Option<Suspicion>,
    /// Stages of the outputs released after the warm-up.
    pub stages: StageHistograms,
    /// Of the disk requests that ended after it.
    pub disk_stages: DiskHistograms,
}

/// Why a primary's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryEnd {
    /// The guest powered itself off, and the world was told.
    PoweredOff,
    /// [`Control::stop`].
    Stopped,
    /// The role says that it must not go on.
    Halted(PrimaryHalt),
}

/// Everything a paired primary consists of.
pub(super) struct Protected<V: Vm> {
    pub live: Live<V>,
    pub log: EntryWriter,
    pub channel: Option<Box<dyn PrimaryChannel>>,
    pub role: Primary,
    /// When the last heartbeat that the role knows of was heard.
    pub heard: u64,
    /// When the last acknowledgement was seen.
    pub acked_at: u64,
    /// Outputs that waited, or had waited, when the log was last handed to the channel.
    pub flushed_outputs: u64,
    /// When that was.
    pub flushed_at: u64,
    /// The last entry that the backup is known to have replayed, and the position of its machine.
    pub replayed: Sequence,
    pub replayed_position: u64,
    /// The last entry for which the backup was woken, and when.
    pub woken: Sequence,
    pub woken_at: u64,
    /// When the loop last went round, and whether a long pause since is yet to be marked in the log.
    pub looked_at: u64,
    pub stood_still: bool,
    pub pulse: Option<Pulse>,
    pub arbiter: ArbiterDesk,
    pub idle: Idle,
    pub throttle: Throttle,
    pub control: Control,
    pub counters: Arc<Counters>,
    pub status: Arc<Status>,
    /// The driver looks at the role's clock at least this often, nanoseconds.
    pub tick_every: u64,
}

impl<V: Vm> Protected<V> {
    /// Runs until the guest powers off, the operator stops it, or the role halts it. Losing the
    /// backup is none of these: won at the arbiter, the machine goes on alone.
    pub fn run(mut self) -> Result<PrimaryReport, RunError> {
        let mut suspicion = None;
        let mut idle_since = None;
        let mut acked = Sequence::NONE;
        loop {
            let turn = if self.role.may_run() {
                self.live.turn(&mut self.log)?
            } else {
                Turn::Idle
            };
            let now = stamp::now();
            self.fence_after_a_pause(now)?;
            let before = acked;
            if let Err(why) = self.serve_channel(now, turn, &mut acked) {
                self.role.suspect(now, why);
            }
            let released = self.release();
            let started = self.start_disks()?;
            self.wake_backup(now, turn);
            self.account(now);
            self.listen(now);
            self.role.tick(now);
            while let Some(action) = self.role.next_action() {
                match action {
                    PrimaryAction::Disconnect(why) => {
                        tracing::warn!(%why, "the backup is suspected");
                        suspicion = Some(why);
                        self.status.stand(Standing::Arbitrating);
                        self.channel = None;
                        self.pulse = None;
                    }
                    // Of the claim that the desk was opened with.
                    PrimaryAction::TestAndSet(_) => self.arbiter.put(),
                    PrimaryAction::GoAlone => {
                        tracing::warn!("won at the arbiter: going on without a backup");
                        self.status.stand(Standing::Alone);
                        return self.go_alone(suspicion);
                    }
                    PrimaryAction::Halt(why) => {
                        tracing::error!(%why, "halted");
                        self.status.stand(Standing::Halted);
                        return Ok(self.report(PrimaryEnd::Halted(why), suspicion));
                    }
                }
            }
            if self.live.powered_off() || self.control.stop_asked() {
                let end = if self.live.powered_off() {
                    PrimaryEnd::PoweredOff
                } else {
                    PrimaryEnd::Stopped
                };
                self.close_log(&end)?;
                return Ok(self.report(end, suspicion));
            }
            if turn == Turn::Progress || released || started || acked != before {
                if let Some(since) = idle_since.take() {
                    self.idle.ended(since, now);
                }
            } else {
                self.wait(now, *idle_since.get_or_insert(now), acked);
            }
        }
    }

    /// Ends the log in order and waits, not for ever, until the backup has it: it then ends too,
    /// and does not take this side's leaving for a death. What still waited at the gate leaves.
    fn close_log(&mut self, end: &PrimaryEnd) -> Result<(), RunError> {
        let reason = match end {
            PrimaryEnd::PoweredOff => EndReason::PoweredOff,
            PrimaryEnd::Stopped | PrimaryEnd::Halted(_) => EndReason::Stopped,
        };
        let give_up = stamp::now() + FAREWELL_NS;
        let mut ended = false;
        let mut acked = Sequence::NONE;
        while self.channel.is_some() && stamp::now() < give_up {
            if !ended && self.live.vm.at_position() {
                ended = self.live.end(&mut self.log, reason)?;
                if ended {
                    self.role.ended();
                }
            }
            let now = stamp::now();
            if !ended {
                self.fence_after_a_pause(now)?;
            }
            if self.serve_channel(now, Turn::Idle, &mut acked).is_err() {
                break;
            }
            if ended {
                // Nothing behind the end can mark a pause. But a backup that has the end does not go
                // live any more, however long this side was stopped.
                if acked >= self.log.last_sequence() {
                    let limit = self.role.release_limit();
                    self.live.release(limit, self.acked_at, u64::MAX);
                    break;
                }
            } else {
                self.release();
            }
            if !ended && !self.live.vm.at_position() {
                self.live.turn(&mut self.log)?;
            }
        }
        Ok(())
    }

    fn go_alone(mut self, suspicion: Option<Suspicion>) -> Result<PrimaryReport, RunError> {
        let mut role = self.role;
        self.live.goes_alone();
        let log = Unlogged::after(self.log.last_sequence());
        // The log is over: nobody reads it.
        drop(self.log);
        let mut alone = Alone {
            live: self.live,
            log,
            idle: self.idle,
            control: self.control,
            announcements: VecDeque::new(),
        };
        let end = alone.run(|now| role.output_left(now))?;
        let (stages, disk_stages) = alone.live.into_stages();
        Ok(PrimaryReport {
            end: match end {
                AloneEnd::PoweredOff => PrimaryEnd::PoweredOff,
                AloneEnd::Stopped => PrimaryEnd::Stopped,
            },
            times: role.times().copied(),
            suspicion,
            stages,
            disk_stages,
        })
    }

    fn report(self, end: PrimaryEnd, suspicion: Option<Suspicion>) -> PrimaryReport {
        let (stages, disk_stages) = self.live.into_stages();
        PrimaryReport {
            end,
            times: self.role.times().copied(),
            suspicion,
            stages,
            disk_stages,
        }
    }

    /// Notices that this process was stopped for a while, and writes the entry behind which the role
    /// may release again.
    fn fence_after_a_pause(&mut self, now: u64) -> Result<(), RunError> {
        // Twice the longest sleep of this loop, half of what the backup calls silence.
        self.stood_still |= now.saturating_sub(self.looked_at) > self.longest_turn();
        self.looked_at = now;
        if self.stood_still
            && let Some(written) = self.live.mark_time(&mut self.log, now)?
        {
            self.role.stood_still(written);
            self.stood_still = false;
        }
        Ok(())
    }

    /// A turn that takes longer than this is a pause.
    const fn longest_turn(&self) -> u64 {
        2 * self.tick_every
    }

    /// Until when what was known at the last look holds: from then on this turn is a pause. An
    /// acknowledgement may have come during it, and the other side have gone live.
    const fn look_holds_until(&self) -> u64 {
        self.looked_at.saturating_add(self.longest_turn())
    }

    /// Releases the outputs that may leave; none while a pause is not marked in the log yet. Whether any
    /// left.
    fn release(&mut self) -> bool {
        let limit = self.role.release_limit();
        !self.stood_still
            && self
                .live
                .release(limit, self.acked_at, self.look_holds_until())
    }

    /// Starts the disk requests that may start, as [`Protected::release`] does with outputs.
    fn start_disks(&mut self) -> Result<bool, RunError> {
        if self.stood_still {
            return Ok(false);
        }
        let limit = self.role.release_limit();
        self.live
            .start_disks(limit, self.replayed, self.look_holds_until())
    }

    /// Sends what is committed and takes the acknowledgements.
    fn serve_channel(
        &mut self,
        now: u64,
        turn: Turn,
        acked: &mut Sequence,
    ) -> Result<(), Suspicion> {
        let Some(channel) = self.channel.as_mut() else {
            return Ok(());
        };
        // Entries that nothing waits for go with the next that an output does: a send costs the guest
        // tens of microseconds, and a request would cost two.
        let outputs = self.live.recorder.counts().awaited;
        let waiting = outputs != self.flushed_outputs || turn != Turn::Progress;
        if waiting || now.saturating_sub(self.flushed_at) > FLUSH_EVERY_NS {
            channel
                .flush(&self.log, now)
                .map_err(|error| suspicion_of(&error))?;
            self.live.note_sent();
            self.flushed_outputs = outputs;
            self.flushed_at = now;
        }
        let answer = channel
            .poll(&self.log, now)
            .map_err(|error| suspicion_of(&error))?;
        if answer.acked != *acked {
            *acked = answer.acked;
            self.acked_at = stamp::now();
            self.role.heard(now);
            self.counters.channel.acked_sequence.set(acked.0);
        }
        self.replayed = self.replayed.max(answer.replayed);
        self.replayed_position = self.replayed_position.max(answer.replayed_position);
        let waiting = *acked < self.log.last_sequence() || turn == Turn::Full;
        let starting = self
            .pulse
            .as_ref()
            .is_some_and(|pulse| pulse.awaits_first(now));
        let outstanding = waiting && !starting;
        self.role.acknowledged(now, *acked, outstanding);
        Ok(())
    }

    /// Draws conclusions from what the channel said, and shows it. No output waits for this.
    fn account(&mut self, now: u64) {
        let Some(channel) = &self.channel else {
            return;
        };
        let behind = self.log.last_position();
        let behind = behind.saturating_sub(self.replayed_position);
        let pause = self.throttle.pause_after(self.live.ran(), behind);
        self.live.hold_back(now, pause);
        self.counters.channel.lag_ns.set(self.throttle.lag_ns());
        self.counters.channel.replayed_sequence.set(self.replayed.0);
        let done = channel.counters();
        advance(&self.counters.channel.sends, done.transfers);
        advance(&self.counters.channel.bytes_sent, done.log_bytes);
        advance(&self.counters.channel.acks, done.acks);
        let producer = self.log.producer();
        advance(&self.counters.vcpu.bytes, producer.committed());
        advance(&self.counters.vcpu.entries, self.log.last_sequence().0);
        let fill = producer.capacity() - producer.free();
        self.counters.vcpu.ring_fill_bytes.set(fill as u64);
        self.counters
            .vcpu
            .committed_sequence
            .set(self.log.last_sequence().0);
    }

    /// The backup's threads may sleep, and waking them costs a system call. Nothing waits for what
    /// they do then: everything that could be released was.
    fn wake_backup(&mut self, now: u64, turn: Turn) {
        let last = self.log.last_sequence();
        let due = turn != Turn::Progress || now.saturating_sub(self.woken_at) > WAKE_EVERY_NS;
        if last > self.woken && due {
            if let Some(channel) = self.channel.as_mut() {
                channel.wake_backup(&self.log);
            }
            self.woken = last;
            self.woken_at = now;
        }
    }

    /// What the other threads have for the role.
    fn listen(&mut self, now: u64) {
        if let Some(pulse) = &self.pulse {
            let heard = pulse.heard_at();
            if pulse.awaits_first(now) {
                self.role.heard(now);
            } else if heard > self.heard {
                self.heard = heard;
                // Another thread's stamp may be a hair ahead of ours.
                self.role.heard(heard.min(now));
            }
            pulse.tell(self.live.released());
        }
        if let Some(answer) = self.arbiter.answer() {
            self.role.arbiter_answered(now, answer);
        }
    }

    fn wait(&mut self, now: u64, idle_since: u64, acked: Sequence) {
        // A vCPU that waits for its backup leaves it the core.
        if !self.live.held_back(now) && now < self.idle.spin_until(idle_since) {
            std::hint::spin_loop();
            return;
        }
        let wake_at = [self.live.wake_at(), self.role.deadline()];
        let until = wake_at.into_iter().flatten().min().unwrap_or(u64::MAX);
        let until = until.min(now + self.tick_every);
        let doorbell = PollFd::from_borrowed_fd(self.control.doorbell().fd(), PollFlags::IN);
        let port = self.live.world.fd();
        // On the stack, for the hot path allocates nothing: what is not there is the doorbell again.
        let mut sources = [
            doorbell.clone(),
            doorbell.clone(),
            doorbell.clone(),
            doorbell,
        ];
        if let Some(fd) = self.live.disks_fd().filter(|_| self.role.may_run()) {
            sources[3] = PollFd::from_borrowed_fd(fd, PollFlags::IN);
        }
        if let Some(fd) = port.filter(|_| self.role.may_run()) {
            sources[1] = PollFd::from_borrowed_fd(fd, PollFlags::IN);
        }
        if let Some(channel) = self.channel.as_mut() {
            // To be armed first, then looked at once more: what came in between does not ring.
            let _ = channel.wait_fd();
            match channel.poll(&self.log, now) {
                Ok(answer) if answer.acked == acked => {}
                // Something is there, or the channel is broken: the loop finds out.
                _ => return,
            }
            sources[2] = PollFd::from_borrowed_fd(channel.wait_fd(), PollFlags::IN);
        }
        idle::sleep(&mut sources, until);
        // After the sleep and before the next look: a ring from here on is seen then, or ends the
        // next sleep.
        self.control.doorbell().clear();
    }
}

/// Brings a counter up to a sum that is kept elsewhere.
fn advance(counter: &Counter, sum: u64) {
    counter.add(sum.saturating_sub(counter.get()));
}

/// What a broken channel says about the backup.
fn suspicion_of(error: &ChannelError) -> Suspicion {
    match error {
        ChannelError::Sealed => Suspicion::Sealed,
        ChannelError::Ack(_) | ChannelError::Entry(_) | ChannelError::Corrupt(_) => {
            Suspicion::ProtocolBroken
        }
        ChannelError::Closed { .. }
        | ChannelError::Ring(_)
        | ChannelError::Uring(_)
        | ChannelError::Io { .. } => Suspicion::ConnectionLost,
    }
}

/// Waits for the backup at `pair.address`, then runs `vm` under its protection, on the calling
/// thread.
///
/// # Errors
/// The machine or the channel cannot be made, or the machine fails.
pub fn primary(
    vm: &VmSpec,
    pair: &PairSpec,
    options: RunOptions,
) -> Result<PrimaryReport, RunError> {
    let machine = vm.build()?;
    vm.check_disks(&options.disks)?;
    let _metronome = Metronome::start(machine.kicker())
        .map_err(RunError::host("starting the thread that kicks the vCPU"))?;
    let (settings, control) = (options.settings.clone(), options.control.clone());
    let (status, counters) = (
        Arc::clone(&options.status),
        Arc::clone(&options.status.counters),
    );
    if let pin::Placement::Refused { why, .. } = pin::place(settings.cpu.vcpu_core) {
        tracing::warn!(%why, "the vCPU thread is not pinned");
    }
    let sharing = pair::sharing(&options.disks);
    let mut parts = LiveParts::of(options, &vm.machine, &machine, Part::Primary)?;
    // Nothing that came before is to be lost with this host's memory once the copies are equal.
    for copy in parts.own_disks() {
        copy.sync()?;
    }
    status.engine(vm.machine.engine);
    status.stand(Standing::Waiting);
    let hello = pair::hello(
        vm,
        Role::Primary,
        Some(pair.generation),
        settings.channel.ring_bytes,
        &sharing,
    );
    let mut listener = Listener::bind(&pair.address, pair::HELLO_LIMIT)
        .map_err(|error| RunError::Channel(Box::new(error)))?;
    let copies = parts.own_disks();
    let connection = pair::meet_backup(&mut listener, &hello, copies, &control, &status)?;
    let Some(connection) = connection else {
        return Ok(PrimaryReport {
            end: PrimaryEnd::Stopped,
            times: None,
            suspicion: None,
            stages: StageHistograms::new(),
            disk_stages: DiskHistograms::new(),
        });
    };
    let generation = connection.agreed.generation;
    let door = Door::guard(listener, vm.name.clone(), generation, Arc::clone(&counters))?;
    let (channel, log) = pair::primary_channel(connection, &settings)?;
    let pulse = pair::start_pulse(
        vm,
        Role::Primary,
        generation,
        pair,
        &settings,
        Arc::clone(&counters),
    )?;
    let claim = pair::claim(Role::Primary, generation)?;
    let arbiter = ArbiterDesk::open(&pair.arbiter, &claim, control.doorbell().clone())?;
    status.pair(generation, settings.channel.transport);
    status.stand(Standing::Primary);
    // The backup's machine is the same one, at its first position.
    let position = machine.position();
    let now = stamp::now();
    let detector = DetectorSettings::from(&settings.failure);
    let role = Primary::new(
        claim,
        detector,
        ArbitrationSettings::from(&settings.failure),
        now,
    );
    let protected = Protected {
        live: Live::new(machine, parts, now, 0),
        log,
        channel: Some(channel),
        role,
        heard: now,
        acked_at: 0,
        flushed_outputs: 0,
        flushed_at: 0,
        replayed: Sequence::NONE,
        replayed_position: position,
        woken: Sequence::NONE,
        woken_at: 0,
        looked_at: now,
        stood_still: false,
        pulse: Some(pulse),
        arbiter,
        idle: Idle::new(settings.cpu.idle_wait, settings.cpu.spin_us),
        throttle: Throttle::from_settings(&settings.replay),
        control,
        counters,
        status: Arc::clone(&status),
        tick_every: detector.silence.min(detector.stall) / 4,
    };
    let report = protected.run();
    drop(door);
    if report
        .as_ref()
        .is_ok_and(|report| !matches!(report.end, PrimaryEnd::Halted(_)))
    {
        status.stand(Standing::Ended);
    }
    report
}

#[cfg(test)]
mod tests;
