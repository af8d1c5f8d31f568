//! What a live machine does turn by turn, protected or not: takes events from the world, executes,
//! hands outputs to the gate, and gives to the world what the gate lets go.
//!
//! One thread does all of it. Who is asked for acknowledgements in between, and what limits the
//! release, is the caller's: [`super::primary`] has a channel and a role, [`super::alone`] neither.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use lockstep_perf::counters::Counters;
use lockstep_perf::disk_stages::DiskHistograms;
use lockstep_perf::stages::{OutputStamps, StageHistograms};
use lockstep_perf::stamp;

use super::control::Control;
use super::disk_desk::{DiskDesk, Outlets, Part};
use super::stage_report::StageReport;
use super::world::World;
use super::{RunError, RunOptions};
use crate::ft::gate::{MAX_HELD_OUTPUTS, OutputGate, ReleaseLimit};
use crate::ft::log::{EndReason, LogDraft, LogWrite, Sequence};
use crate::ft::recorder::{RecordError, Recorder, RecorderSettings};
use crate::ft::throttle::Ran;
use crate::ft::vm::{ENTROPY_LIMIT, Event, Output, OutputKind, Stop, Vm};
use crate::host::disk::CopyFile;
use crate::host::port::MAX_FRAME;
use crate::machine::MachineConfig;

/// Frames taken from the network in one turn: the guest gets to work on them before more are read.
const FRAMES_PER_TURN: u32 = 32;

/// Disk requests whose ends are told to the guest in one turn.
const DISK_ENDS_PER_TURN: u32 = 64;

/// While the guest executes, the world is looked at no more often than this, nanoseconds: a look
/// costs a system call, and an exit-counting engine comes back every few microseconds.
const LOOK_EVERY_NS: u64 = 20_000;

/// Positions executed before acknowledgements are looked for, while an output waits for one: about
/// as long as an acknowledgement takes on a fast link. A look makes no system call unless there is
/// something.
const SLICE_WHILE_HOLDING: u64 = 4_000;

/// What one turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The guest executed, or events reached it.
    Progress,
    /// The guest waits in HLT, and the world had nothing for it.
    Idle,
    /// The log or the gate is full: only an acknowledgement helps.
    Full,
}

/// What a live machine is made of, apart from the machine.
pub(super) struct LiveParts {
    pub world: World,
    pub disks: Option<DiskDesk>,
    pub control: Control,
    pub counters: Arc<Counters>,
    pub recorder: RecorderSettings,
    /// Positions executed before the world is looked at again.
    pub slice: u64,
    /// Left out of the stage histograms, nanoseconds from the start.
    pub warm_up: u64,
}

impl LiveParts {
    /// Opens the disks of `vm`, whose configuration is `machine`.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn of<V: Vm>(
        options: RunOptions,
        machine: &MachineConfig,
        vm: &V,
        part: Part,
    ) -> Result<Self, RunError> {
        let warm_up = u64::try_from(options.warm_up.as_nanos()).unwrap_or(u64::MAX);
        let disks = DiskDesk::open(
            machine,
            &options.disks,
            vm.bounce(),
            &options.settings.disk,
            part,
            stamp::now().saturating_add(warm_up),
        )?;
        Ok(Self {
            world: options.world,
            disks,
            control: options.control,
            counters: Arc::clone(&options.status.counters),
            recorder: RecorderSettings::from(&options.settings.replay),
            slice: u64::from(options.settings.cpu.slice_instructions.max(1)),
            warm_up,
        })
    }
}

impl LiveParts {
    /// The disks of the side's own, in their order, as copies of the other's.
    pub fn own_disks(&mut self) -> &mut [CopyFile] {
        self.disks.as_mut().map_or(&mut [], DiskDesk::copies)
    }
}

/// A machine and its door to the world.
pub(super) struct Live<V: Vm> {
    pub vm: V,
    pub recorder: Recorder,
    pub gate: OutputGate,
    pub world: World,
    pub disks: Option<DiskDesk>,
    pub counters: Arc<Counters>,
    pub stages: StageReport,
    control: Control,
    slice: u64,
    halted: bool,
    next_look: u64,
    /// One for each output in the gate, in the same order.
    stamps: VecDeque<OutputStamps>,
    powered_off: bool,
    ran: Ran,
    resume_at: u64,
    /// Buffers of outputs, to be given back to the machine.
    spent: Vec<Output>,
}

impl<V: Vm> Live<V> {
    /// A machine that goes live at `now`, having said `said` outputs before.
    pub fn new(vm: V, parts: LiveParts, now: u64, said: u64) -> Self {
        let recorder = Recorder::new(parts.recorder, now, vm.clock(), said);
        Self {
            vm,
            recorder,
            gate: OutputGate::new(),
            world: parts.world,
            disks: parts.disks,
            counters: parts.counters,
            stages: StageReport::from(now.saturating_add(parts.warm_up)),
            control: parts.control,
            slice: parts.slice,
            halted: false,
            next_look: 0,
            stamps: VecDeque::with_capacity(MAX_HELD_OUTPUTS),
            powered_off: false,
            ran: Ran::default(),
            resume_at: 0,
            spent: Vec::new(),
        }
    }

    /// Whether the guest's power-off has been released to the world.
    pub const fn powered_off(&self) -> bool {
        self.powered_off
    }

    /// Takes what the world has, lets the guest execute, and holds what it says.
    pub fn turn<L: LogWrite>(&mut self, log: &mut L) -> Result<Turn, RunError> {
        match self.try_turn(log) {
            Ok(progress) => Ok(if progress { Turn::Progress } else { Turn::Idle }),
            Err(RecordError::LogFull { .. } | RecordError::GateFull) => {
                self.counters.vcpu.ring_full_waits.increment();
                Ok(Turn::Full)
            }
            Err(error) => Err(RunError::of_record(error)),
        }
    }

    fn try_turn<L: LogWrite>(&mut self, log: &mut L) -> Result<bool, RecordError<V::Error>> {
        // What a full gate or log kept back comes first: outputs keep their order.
        self.hold_outputs(log, 0)?;
        let mut progress = self.take_events(log)?;
        self.ran = Ran::default();
        let started = stamp::now();
        if !self.halted && !self.held_back(started) {
            // While outputs wait, acknowledgements are looked for more often.
            let disk_waits = self.disks.as_ref().is_some_and(|disks| disks.waiting() > 0);
            let slice = if self.gate.held() > 0 || disk_waits {
                self.slice.min(SLICE_WHILE_HOLDING)
            } else {
                self.slice
            };
            let from = self.vm.position();
            let until = from.saturating_add(slice);
            let stop = self.vm.run(until).map_err(RecordError::Vm)?;
            let kick = stamp::now();
            self.ran = Ran {
                ns: kick - started,
                positions: self.vm.position() - from,
            };
            self.halted = stop == Stop::Halted;
            self.hold_outputs(log, kick)?;
            self.counters.vcpu.position.set(self.vm.position());
            let emulated = &self.counters.vcpu.emulated_instructions;
            emulated.add(
                self.vm
                    .emulated_instructions()
                    .saturating_sub(emulated.get()),
            );
            progress = true;
        }
        Ok(progress)
    }

    fn hold_outputs<L: LogWrite>(
        &mut self,
        log: &mut L,
        kick: u64,
    ) -> Result<(), RecordError<V::Error>> {
        let before = self.gate.held();
        let mut outlets = Outlets {
            gate: &mut self.gate,
            disks: self.disks.as_mut(),
            spent: &mut self.spent,
            now: if kick == 0 { stamp::now() } else { kick },
        };
        let result = self.recorder.outputs(&mut self.vm, log, &mut outlets);
        for output in self.spent.drain(..) {
            self.vm.recycle(output);
        }
        let new = self.gate.held() - before;
        if new > 0 {
            let committed = if L::KEPT { stamp::now() } else { 0 };
            let stamps = OutputStamps {
                kick,
                committed,
                ..OutputStamps::default()
            };
            self.stamps.extend(std::iter::repeat_n(stamps, new));
            self.counters.vcpu.outputs_held.add(new as u64);
        }
        result.map(|_| ())
    }

    /// Frames, console input, the power button, entropy, timers and the clock.
    fn take_events<L: LogWrite>(&mut self, log: &mut L) -> Result<bool, RecordError<V::Error>> {
        let now = stamp::now();
        if !self.vm.at_position() || (!self.halted && now < self.next_look) {
            return Ok(false);
        }
        self.next_look = now + LOOK_EVERY_NS;
        let mut events = 0u64;
        for _ in 0..FRAMES_PER_TURN {
            let mut draft = log.draft(MAX_FRAME).map_err(RecordError::draft)?;
            let Some(length) = self.world.receive(draft.payload_mut()) else {
                break;
            };
            self.recorder.frame(&mut self.vm, draft, length, now)?;
            events += 1;
        }
        if self.control.take_power_button() {
            self.recorder
                .event(&mut self.vm, log, Event::PowerButton, now)?;
            events += 1;
        }
        let wanted = self.vm.entropy_wanted();
        if wanted > 0 {
            let mut bytes = [0; ENTROPY_LIMIT];
            if let Some(bytes) = self.world.entropy(&mut bytes[..wanted.min(ENTROPY_LIMIT)]) {
                self.recorder
                    .event(&mut self.vm, log, Event::Entropy(bytes), now)?;
                events += 1;
            }
        }
        events += self.tell_disk_ends(log, now)?;
        let tick = self.recorder.tick(&mut self.vm, log, now, self.halted)?;
        events += u64::from(tick.is_some());
        self.show_entries();
        if events > 0 {
            // Whether one of them ends HLT is the machine's to say, when it next runs.
            self.halted = false;
            self.counters.vcpu.events.add(events);
        }
        Ok(events > 0)
    }

    /// Tells the guest of disk requests that have ended. How many.
    fn tell_disk_ends<L: LogWrite>(
        &mut self,
        log: &mut L,
        now: u64,
    ) -> Result<u64, RecordError<V::Error>> {
        let Some(disks) = &mut self.disks else {
            return Ok(0);
        };
        let mut told = 0;
        while told < u64::from(DISK_ENDS_PER_TURN)
            && let Some(ended) = disks.ended()
        {
            let entry = self.recorder.disk_done(
                &mut self.vm,
                log,
                &ended.request,
                ended.status,
                disks.read_by_backup(&ended.request),
                now,
            )?;
            disks.told(entry, L::KEPT);
            told += 1;
        }
        Ok(told)
    }

    /// Starts the disk requests that `limit` allows; `replayed` is how far the backup is known to have
    /// come, and `until` the time until which the right to do so holds. Whether any was started.
    pub fn start_disks(
        &mut self,
        limit: ReleaseLimit,
        replayed: Sequence,
        until: u64,
    ) -> Result<bool, RunError> {
        let Some(disks) = &mut self.disks else {
            return Ok(false);
        };
        let any = disks.start(limit, replayed, until)?;
        let shown = &self.counters.vcpu;
        shown.disk_waiting.set(disks.waiting() as u64);
        shown.disk_running.set(disks.running() as u64);
        Ok(any)
    }

    /// This machine has gone live: the disk requests that it has no end of are issued again.
    pub fn reissue_disk_requests(&mut self, now: u64) -> usize {
        let requests = self.vm.disk_requests();
        let count = requests.len();
        if let Some(disks) = &mut self.disks {
            disks.goes_alone();
            disks.reissue(requests, now);
        }
        count
    }

    /// This machine goes on without the other side.
    pub fn goes_alone(&mut self) {
        if let Some(disks) = &mut self.disks {
            disks.goes_alone();
        }
    }

    /// Whether no disk request is under way.
    pub fn disks_are_idle(&self) -> bool {
        self.disks.as_ref().is_none_or(DiskDesk::is_idle)
    }

    /// Goes on with disk requests alone, without executing: a machine that is to be saved.
    pub fn finish_disk_requests<L: LogWrite>(&mut self, log: &mut L) -> Result<(), RunError> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_millis(10);
        while !self.disks_are_idle() {
            self.start_disks(ReleaseLimit::Everything, Sequence::NONE, u64::MAX)?;
            if let Some(disks) = &mut self.disks {
                disks.await_progress(PATIENCE)?;
            }
            self.tell_disk_ends(log, stamp::now())
                .and_then(|_| self.hold_outputs(log, 0))
                .map_err(RunError::of_record)?;
        }
        Ok(())
    }

    /// Log economy, for whoever asks.
    fn show_entries(&self) {
        let (counts, shown) = (self.recorder.counts(), &self.counters.vcpu);
        shown.clock_entries.set(counts.clocks);
        shown.frame_entries.set(counts.frames);
        shown.entropy_entries.set(counts.entropy);
        shown.disk_entries.set(counts.disk);
        shown.output_entries.set(counts.outputs);
        shown.digest_entries.set(counts.digests);
    }

    /// The transport was handed everything committed so far.
    pub fn note_sent(&mut self) {
        let mut now = 0;
        for stamps in self.stamps.iter_mut().rev() {
            if stamps.sent != 0 {
                break;
            }
            if now == 0 {
                now = stamp::now();
            }
            stamps.sent = now;
        }
    }

    /// Writes an entry that says nothing but the time, if the machine is at a position and the log
    /// has room: something for the backup to acknowledge.
    pub fn mark_time<L: LogWrite>(
        &mut self,
        log: &mut L,
        now: u64,
    ) -> Result<Option<Sequence>, RunError> {
        if !self.vm.at_position() {
            return Ok(None);
        }
        match self.recorder.event(&mut self.vm, log, Event::Clock, now) {
            Ok(sequence) => Ok(Some(sequence)),
            Err(RecordError::LogFull { .. } | RecordError::GateFull) => Ok(None),
            Err(error) => Err(RunError::of_record(error)),
        }
    }

    /// Writes the log's end, if there is room for it. Outputs that have no entry yet go before it.
    pub fn end<L: LogWrite>(&mut self, log: &mut L, reason: EndReason) -> Result<bool, RunError> {
        let result = self
            .hold_outputs(log, 0)
            .and_then(|()| self.recorder.end(&mut self.vm, log, reason));
        match result {
            Ok(_) => Ok(true),
            Err(RecordError::LogFull { .. } | RecordError::GateFull) => Ok(false),
            Err(error) => Err(RunError::of_record(error)),
        }
    }

    /// What the guest executed in the last turn.
    pub const fn ran(&self) -> Ran {
        self.ran
    }

    /// Keeps the guest from executing for `pause` nanoseconds from `now`: the backup lags.
    pub fn hold_back(&mut self, now: u64, pause: u64) {
        if pause > 0 {
            self.resume_at = now + pause;
            self.counters.vcpu.slowed_ns.add(pause);
        }
    }

    /// Whether the guest is kept from executing at `now`.
    pub const fn held_back(&self, now: u64) -> bool {
        now < self.resume_at
    }

    /// Gives to the world what `limit` allows; `acked` is when the last acknowledgement was seen, 0
    /// if nothing waits for any. From `until` on nothing leaves: the caller looked at its right to
    /// release too long ago. Whether anything left.
    pub fn release(&mut self, limit: ReleaseLimit, acked: u64, until: u64) -> bool {
        let mut any = false;
        while let Some(output) = self.gate.next(limit) {
            if stamp::now() >= until {
                break;
            }
            self.powered_off |= output.kind == OutputKind::PowerOff;
            self.world.say(output);
            if let Some(mut stamps) = self.stamps.pop_front() {
                stamps.acked = acked;
                stamps.released = stamp::now();
                self.stages.record(&stamps);
            }
            if let Some(output) = self.gate.sent() {
                self.vm.recycle(output);
            }
            self.counters.vcpu.outputs_released.increment();
            any = true;
        }
        if any {
            self.counters.vcpu.held_now.set(self.gate.held() as u64);
            if let Some(error) = self.world.take_failure() {
                tracing::error!(%error, "the network port failed");
            }
        }
        any
    }

    /// Entry of the last output that is out, by the gate or on a disk.
    pub fn released(&self) -> Sequence {
        let started = self.disks.as_ref().map(DiskDesk::released);
        self.gate.released_with(started.unwrap_or(Sequence::NONE))
    }

    /// When a sleeping driver has to look again even if nothing comes: a guest timer, a digest, the
    /// end of being held back.
    pub fn wake_at(&self) -> Option<u64> {
        let timer = self.recorder.wake_at(&self.vm);
        let resume = (!self.halted).then_some(self.resume_at);
        let disks = self.disks.as_ref().and_then(DiskDesk::wake_at);
        timer.into_iter().chain(resume).chain(disks).min()
    }

    /// What a sleeping driver polls for the end of disk requests.
    pub fn disks_fd(&self) -> Option<BorrowedFd<'_>> {
        self.disks.as_ref().map(|disks| disks.host().as_fd())
    }

    /// Where outputs and disk requests spent their time.
    pub fn into_stages(self) -> (StageHistograms, DiskHistograms) {
        let disks = self.disks.map(DiskDesk::into_stages);
        (self.stages.into_histograms(), disks.unwrap_or_default())
    }
}
