//! The backup: replays the primary's log, and takes its place when it is gone.
//!
//! One thread replays and carries out what the role decides; another receives and acknowledges
//! ([`super::receiver`]). At go-live the replaying thread drops the log and goes on as a live
//! machine: the code that runs and applies is the same, only the source of events is another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lockstep_logchan::protocol::Role;
use lockstep_logchan::protocol::hello::Resync;
use lockstep_logchan::protocol::receiver::Replayed;
use lockstep_logchan::transport::ChannelError;
use lockstep_logchan::transport::connect::Patience;
use lockstep_perf::counters::Counters;
use lockstep_perf::disk_stages::DiskHistograms;
use lockstep_perf::stages::StageHistograms;
use lockstep_perf::{pin, stamp};
use lockstep_ringbuf::WaitPolicy;
use rustix::event::{PollFd, PollFlags};
use serde::Serialize;

use super::alone::{Alone, AloneEnd};
use super::arbiter_desk::ArbiterDesk;
use super::control::Control;
use super::disk_desk::{DiskDesk, Part};
use super::idle::{self, Idle};
use super::live::{Live, LiveParts};
use super::log_source::LogSource;
use super::metronome::Metronome;
use super::pair::{self, PairSpec};
use super::priority;
use super::pulse::Pulse;
use super::receiver::Receiver;
use super::resync::Meeting;
use super::saved;
use super::status::{Standing, Status};
use super::{RunError, RunOptions, VmSpec};
use crate::ft::announce;
use crate::ft::arbiter::ArbitrationSettings;
use crate::ft::backup::{Backup, BackupAction, BackupHalt, BackupState};
use crate::ft::detector::{DetectorSettings, Suspicion};
use crate::ft::disk::DiskRequest;
use crate::ft::gate::ReleaseLimit;
use crate::ft::log::{EndReason, Sequence, Unlogged};
use crate::ft::replayer::{Progress, Replayer};
use crate::ft::shadow::ShadowRing;
use crate::ft::times::FailoverTimes;
use crate::ft::vm::{DigestScope, StateDigest, Vm};
use crate::host::disk::CopyFile;
use crate::host::port::MAX_FRAME;

/// When a machine that goes live announces its address, milliseconds from go-live.
const ANNOUNCED_AFTER_MS: [u64; 6] = [0, 50, 200, 500, 1000, 3000];

/// Longest sleep of a thread that waits for log entries: the network's frames and the operator's stop
/// wait for it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The same while a request to one of the side's own disks is under way: the log waits for it.
const DISK_LOOK_EVERY: Duration = Duration::from_micros(500);

/// A backup looks at the network this often, nanoseconds: the port must hold what comes meanwhile.
const WATCH_EVERY: u64 = 500_000;

/// Entries replayed before the thread looks at its role's clock again.
const ENTRIES_PER_LOOK: u32 = 64;

/// How a failover went.
#[derive(Debug, Clone, Serialize)]
pub struct Failover {
    /// Why the peer was given up.
    pub suspicion: String,
    /// Its moments, on the host's monotonic clock.
    pub times: FailoverTimes,
    /// Outputs that the primary may not have released, and that were sent again.
    pub resent: usize,
    /// Disk requests that had no end in the log, and that were issued again.
    pub reissued: usize,
    /// Frames that the primary had not logged, and that were received here instead.
    pub unlogged_frames: usize,
    /// The last entry replayed.
    pub replayed: u64,
}

/// How a backup's run ended.
#[derive(Debug)]
pub struct BackupReport {
    /// Why.
    pub end: BackupEnd,
    /// The failover, if there was one.
    pub failover: Option<Failover>,
    /// Digest of the whole state at the end of the log, where the log ended in order.
    pub digest: Option<StateDigest>,
    /// Stages of the outputs released after it went live.
    pub stages: StageHistograms,
    /// Of the disk requests that ended then.
    pub disk_stages: DiskHistograms,
}

/// Why a backup's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEnd {
    /// The log ended in order.
    LogEnded(EndReason),
    /// Live, and the guest powered itself off.
    PoweredOff,
    /// [`Control::stop`].
    Stopped,
    /// The role says that it must not go on.
    Halted(BackupHalt),
}

/// Everything a paired backup consists of.
pub(super) struct Following<V: Vm> {
    pub vm: V,
    pub replayer: Replayer,
    pub log: LogSource,
    pub receiver: Receiver,
    pub role: Backup,
    /// When the last sign of life that the role knows of was heard.
    pub heard: u64,
    pub pulse: Option<Pulse>,
    pub arbiter: ArbiterDesk,
    /// How this thread waits for entries.
    pub replay_wait: WaitPolicy,
    /// How the live machine's thread waits, should it come to that.
    pub idle: Idle,
    pub control: Control,
    pub counters: Arc<Counters>,
    pub status: Arc<Status>,
    /// What the live machine is made of, should it come to that.
    pub live: LiveParts,
    /// The guest's hardware address, announced at go-live.
    pub mac: Option<[u8; 6]>,
    /// Its IPv4 address, if it is known.
    pub guest_ip: Option<[u8; 4]>,
    /// Positions run in one go.
    pub budget: u64,
    /// The driver looks at the role's clock at least this often, nanoseconds.
    pub tick_every: u64,
    /// When the network was last looked at.
    pub watched_at: u64,
}

impl<V: Vm> Following<V> {
    /// Replays until the log ends in order, the operator stops it, or the role halts it. Losing the
    /// primary is none of these: won at the arbiter, this machine goes live.
    pub fn run(mut self) -> Result<BackupReport, RunError> {
        let mut suspicion = None;
        loop {
            let mut progress = self.replay()?;
            let now = stamp::now();
            if now.saturating_sub(self.watched_at) >= WATCH_EVERY {
                self.watch_network(now);
            }
            self.listen(now);
            self.role.tick(now);
            while let Some(action) = self.role.next_action() {
                // What it begins is gone on with before anything is waited for.
                progress = true;
                match action {
                    BackupAction::Seal(why) => {
                        tracing::warn!(%why, "the primary is suspected");
                        suspicion = Some(why);
                        self.status.stand(Standing::Arbitrating);
                        let acknowledged = self.receiver.stop();
                        self.pulse = None;
                        let acknowledged = self.log.seal(acknowledged);
                        self.role.sealed(acknowledged);
                    }
                    // The loop replays on; `replay` tells the role when the log is empty.
                    BackupAction::Drain => {}
                    // Of the claim that the desk was opened with.
                    BackupAction::TestAndSet(_) => self.arbiter.put(),
                    BackupAction::GoLive => return self.go_live(suspicion),
                    BackupAction::Halt(why) => {
                        tracing::error!(%why, "halted");
                        self.status.stand(Standing::Halted);
                        return Ok(self.report(BackupEnd::Halted(why), None));
                    }
                }
            }
            if let BackupState::Ended(reason) = *self.role.state() {
                self.status.stand(Standing::Ended);
                let digest = self.vm.digest(DigestScope::Full);
                let digest = digest.map_err(|error| RunError::Machine(Box::new(error)))?;
                return Ok(self.report(BackupEnd::LogEnded(reason), Some(digest)));
            }
            if self.control.stop_asked() {
                return Ok(self.report(BackupEnd::Stopped, None));
            }
            if !progress {
                self.wait(now)?;
            }
        }
    }

    /// Replays what is there, for a while. Whether anything was.
    fn replay(&mut self) -> Result<bool, RunError> {
        if !self.role.may_replay() {
            return Ok(false);
        }
        let mut any = self.follow_disks()?;
        for _ in 0..ENTRIES_PER_LOOK {
            match self.replayer.step(&mut self.vm, &mut self.log, self.budget) {
                Ok(Progress::Idle) => {
                    // What was begun on the side's own disks is to have ended before it is done again.
                    let draining = matches!(self.role.state(), BackupState::Draining(_));
                    if draining && self.own_disks_rest() {
                        self.role.drained(stamp::now(), self.replayer.replayed());
                    }
                    break;
                }
                Ok(Progress::AwaitDisk { .. }) => break,
                Ok(Progress::Running) => {
                    any = true;
                    break;
                }
                Ok(Progress::Replayed(_)) => any = true,
                Ok(Progress::ReadDisk { request, digest }) => {
                    any = true;
                    if let Err(why) = self.read_shared_disk(&request, digest) {
                        self.role.refuse(why);
                        break;
                    }
                }
                Ok(Progress::Ended(reason)) => {
                    self.role.ended(reason);
                    break;
                }
                Err(error) => {
                    self.role.refuse(error.to_string());
                    break;
                }
            }
            any |= self.follow_disks()?;
        }
        if any {
            let replayed = Replayed {
                sequence: self.replayer.replayed(),
                position: self.vm.position(),
            };
            self.receiver.report().replayed(replayed);
            self.counters.vcpu.position.set(self.vm.position());
            let emulated = &self.counters.vcpu.emulated_instructions;
            emulated.add(
                self.vm
                    .emulated_instructions()
                    .saturating_sub(emulated.get()),
            );
            self.counters
                .channel
                .replayed_sequence
                .set(replayed.sequence.0);
        }
        Ok(any)
    }

    /// Goes on with what the side does to its own disks. Whether anything was begun or has ended.
    fn follow_disks(&mut self) -> Result<bool, RunError> {
        let Some(disks) = &mut self.live.disks else {
            return Ok(false);
        };
        if disks.own().is_empty() {
            return Ok(false);
        }
        let mut any = false;
        while let Some((id, status)) = disks.followed() {
            self.replayer.own_disk_ended(id, status);
            any = true;
        }
        while let Some(step) = self.replayer.own_disk() {
            disks.follow(step);
        }
        let over = matches!(self.role.state(), BackupState::Draining(_)) && self.replayer.drained();
        if over {
            // What is not begun yet is the live machine's.
            disks.go_on()?;
        } else {
            any |= disks.start(ReleaseLimit::Everything, Sequence::NONE, u64::MAX)?;
        }
        Ok(any)
    }

    /// Whether nothing is under way on the side's own disks.
    fn own_disks_rest(&self) -> bool {
        let disks = self.live.disks.as_ref();
        disks.is_none_or(|disks| disks.running() == 0)
    }

    /// Reads from the shared disk what the log does not bring (`--backup-reads`).
    fn read_shared_disk(&mut self, request: &DiskRequest, digest: u64) -> Result<(), String> {
        let (replayer, vm) = (&mut self.replayer, &self.vm);
        let Some(disks) = &self.live.disks else {
            return Err(format!(
                "this side has no disk to do read {} from",
                request.id
            ));
        };
        disks
            .read_again(request, || replayer.disk_read(vm, request) == digest)
            .map_err(|error| error.to_string())
    }

    /// Remembers what the network brought, see [`crate::ft::shadow`].
    fn watch_network(&mut self, now: u64) {
        self.watched_at = now;
        let shadow = self.replayer.shadow();
        shadow.tick(now);
        let mut frame = [0; MAX_FRAME];
        while let Some(length) = self.live.world.receive(&mut frame) {
            shadow.see(&frame[..length]);
        }
    }

    /// What the other threads have for the role.
    fn listen(&mut self, now: u64) {
        let mut heard = self.receiver.heard_at();
        if let Some(pulse) = &self.pulse {
            heard = heard.max(pulse.heard_at());
            let released = pulse.peer_sequence();
            self.replayer.primary_released(&mut self.vm, released);
            // On a shared ring nothing is ever on its way: what is committed is here.
            let received = if self.log.shared() {
                self.replayer.replayed().max(released)
            } else {
                self.receiver.received()
            };
            self.role.received(now, received, released > received);
            pulse.tell(received);
            if pulse.awaits_first(now) {
                heard = now;
            }
        }
        if heard > self.heard {
            self.heard = heard;
            // Another thread's stamp may be a hair ahead of ours.
            self.role.heard(heard.min(now));
        }
        if let Some(error) = self.receiver.lost() {
            tracing::debug!(%error, "the channel ended");
            self.role.suspect(now, suspicion_of(&error));
        }
        if let Some(answer) = self.arbiter.answer() {
            self.role.arbiter_answered(now, answer);
        }
    }

    fn wait(&mut self, now: u64) -> Result<(), RunError> {
        let until = self
            .role
            .deadline()
            .unwrap_or(u64::MAX)
            .min(now + self.tick_every);
        if self.role.may_replay() {
            // Whoever commits to the log, or checks it, wakes this thread, and so does the receiver
            // when the channel ends. Once it has, the role's own times are all there is to wait for.
            let left = Duration::from_nanos(until.saturating_sub(now)).min(LOOK_EVERY);
            if let Some(disks) = &mut self.live.disks
                && disks.running() > 0
            {
                // What is there to be replayed waits for them, or soon will.
                return disks.await_progress(left.min(DISK_LOOK_EVERY));
            }
            let ended = self.receiver.has_ended();
            self.log.wait(&self.replay_wait, left, || {
                !ended && self.receiver.has_ended()
            });
            return Ok(());
        }
        let doorbell = self.control.doorbell();
        idle::sleep(
            &mut [PollFd::from_borrowed_fd(doorbell.fd(), PollFlags::IN)],
            until,
        );
        // After the sleep and before the next look, so that no ring is lost.
        doorbell.clear();
        Ok(())
    }

    fn go_live(mut self, suspicion: Option<Suspicion>) -> Result<BackupReport, RunError> {
        self.watch_network(stamp::now());
        let taken = match self.replayer.go_live() {
            Ok(taken) => taken,
            Err(why) => {
                self.status.stand(Standing::Halted);
                let halt = BackupHalt::Refused(why.to_string());
                return Ok(self.report(BackupEnd::Halted(halt), None));
            }
        };
        let mut announcements = self.announcements(stamp::now());
        let mut world = self.live.world;
        while let Some((due, frame)) = announcements.front()
            && *due <= stamp::now()
        {
            world.announce(frame);
            announcements.pop_front();
        }
        let (resent, unlogged_frames) = (taken.resend.len(), taken.unlogged.len());
        world.came_before(taken.unlogged);
        for output in taken.resend {
            world.say(&output);
            self.role.output_left(stamp::now());
            self.vm.recycle(output);
        }
        self.status.stand(Standing::Alone);
        self.live.world = world;
        let now = stamp::now();
        let mut live = Live::new(self.vm, self.live, now, taken.said);
        let reissued = live.reissue_disk_requests(now);
        let mut alone = Alone {
            live,
            log: Unlogged::after(taken.replayed),
            idle: self.idle,
            control: self.control,
            announcements,
        };
        let mut failover = Failover {
            suspicion: suspicion.map(|why| why.to_string()).unwrap_or_default(),
            times: self
                .role
                .times()
                .copied()
                .unwrap_or(FailoverTimes::suspected(now, now)),
            resent,
            reissued,
            unlogged_frames,
            replayed: taken.replayed.0,
        };
        self.status.failover(failover.clone());
        tracing::warn!(?failover, "live");
        let (mut role, status) = (self.role, self.status);
        let end = alone.run(|now| {
            if failover.times.first_output.is_none() {
                role.output_left(now);
                failover.times = role.times().copied().unwrap_or(failover.times);
                status.failover(failover.clone());
            }
        })?;
        let (stages, disk_stages) = alone.live.into_stages();
        Ok(BackupReport {
            end: match end {
                AloneEnd::PoweredOff => BackupEnd::PoweredOff,
                AloneEnd::Stopped => BackupEnd::Stopped,
            },
            failover: Some(failover),
            digest: None,
            stages,
            disk_stages,
        })
    }

    /// What tells the network where the guest is now. More than once: an announcement may be lost,
    /// and a switch may hear the old primary's last frame after the first.
    fn announcements(&self, now: u64) -> VecDeque<(u64, Vec<u8>)> {
        let Some(mac) = self.mac else {
            return VecDeque::new();
        };
        let mut frames = vec![announce::rarp(mac).to_vec()];
        frames.extend(
            self.guest_ip
                .map(|ip| announce::gratuitous_arp(mac, ip).to_vec()),
        );
        let times = ANNOUNCED_AFTER_MS
            .iter()
            .map(|after| now + after * 1_000_000);
        times
            .flat_map(|due| frames.iter().map(move |frame| (due, frame.clone())))
            .collect()
    }

    fn report(self, end: BackupEnd, digest: Option<StateDigest>) -> BackupReport {
        BackupReport {
            end,
            failover: None,
            digest,
            stages: StageHistograms::new(),
            disk_stages: DiskHistograms::new(),
        }
    }
}

/// What a broken channel says about the primary.
fn suspicion_of(error: &ChannelError) -> Suspicion {
    match error {
        ChannelError::Entry(_) | ChannelError::Corrupt(_) | ChannelError::Ack(_) => {
            Suspicion::ProtocolBroken
        }
        _ => Suspicion::ConnectionLost,
    }
}

/// Connects to the primary at `pair.address`, then follows it, on the calling thread.
///
/// # Errors
/// The machine or the channel cannot be made, the primary refuses, or the machine fails once live.
pub fn backup(vm: &VmSpec, pair: &PairSpec, options: RunOptions) -> Result<BackupReport, RunError> {
    let machine = vm.build()?;
    let _metronome = Metronome::start(machine.kicker())
        .map_err(RunError::host("starting the thread that kicks the vCPU"))?;
    let (settings, control) = (options.settings.clone(), options.control.clone());
    let (status, counters) = (
        Arc::clone(&options.status),
        Arc::clone(&options.status.counters),
    );
    if let pin::Placement::Refused { why, .. } = pin::place(settings.cpu.vcpu_core) {
        tracing::warn!(%why, "the replaying thread is not pinned");
    }
    let sharing = pair::sharing(&options.disks);
    let overwrite = options.overwrite_disks;
    let mut parts = LiveParts::of(options, &vm.machine, &machine, Part::Backup)?;
    // Before anybody waits for it: a disk without a record is read until something is found on it.
    let states = parts.own_disks().iter_mut().map(CopyFile::state);
    let states = states.collect::<Result<Vec<_>, _>>()?;
    status.engine(vm.machine.engine);
    status.stand(Standing::Waiting);
    let hello = pair::hello(
        vm,
        Role::Backup,
        None,
        settings.channel.ring_bytes,
        &sharing,
    );
    let connection = pair::reach_primary(&pair.address, &hello, &Patience::default())?;
    let generation = connection.agreed.generation;
    let meeting = Meeting {
        greeting: Resync {
            vm: vm.name.clone(),
            generation,
        },
        copies: parts.own_disks(),
        control: &control,
        status: &status,
    };
    meeting.follow(&pair.address, states, overwrite)?;
    let (channel, reader, shared) = pair::backup_channel(connection, &pair.address, &settings)?;
    let receiver = Receiver::start(
        channel,
        settings.cpu.channel_core,
        priority::of_receiver(&settings.cpu),
        Arc::clone(&counters),
    )
    .map_err(RunError::host("starting the receiving thread"))?;
    let pulse = pair::start_pulse(
        vm,
        Role::Backup,
        generation,
        pair,
        &settings,
        Arc::clone(&counters),
    )?;
    let claim = pair::claim(Role::Backup, generation)?;
    let arbiter = ArbiterDesk::open(&pair.arbiter, &claim, control.doorbell().clone())?;
    let save = match &pair.save_log {
        Some(path) => Some(saved::create(path, &hello)?),
        None => None,
    };
    let own = parts.disks.as_ref().map(DiskDesk::own).unwrap_or_default();
    status.pair(generation, settings.channel.transport);
    status.stand(Standing::Backup);
    let now = stamp::now();
    let detector = DetectorSettings::from(&settings.failure);
    let role = Backup::new(
        claim,
        detector,
        ArbitrationSettings::from(&settings.failure),
        now,
    );
    Following {
        vm: machine,
        replayer: Replayer::new(Sequence::NONE, 0)
            .shadowed_by(ShadowRing::new(
                vm.machine.mac,
                settings.failure.shadow_frames as usize,
                now,
            ))
            .with_own_disks(own),
        log: LogSource::new(reader, shared, save),
        receiver,
        role,
        heard: now,
        pulse: Some(pulse),
        arbiter,
        replay_wait: pair::wait_policy(settings.cpu.replay_wait, settings.cpu.spin_us),
        idle: Idle::new(settings.cpu.idle_wait, settings.cpu.spin_us),
        control,
        counters,
        status,
        mac: vm.machine.nic.then_some(vm.machine.mac),
        guest_ip: pair.guest_ip,
        budget: u64::from(settings.cpu.slice_instructions.max(1)),
        live: parts,
        tick_every: detector.silence.min(detector.stall) / 4,
        watched_at: now,
    }
    .run()
}
