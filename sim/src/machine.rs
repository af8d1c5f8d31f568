//! A machine that executes: the primary's, and the backup's once it is live.

use std::collections::VecDeque;

use lockstep_logchan::entry::Sequence;
use lockstep_vmm::ft::gate::{OutputGate, OutputSink, ReleaseLimit};
use lockstep_vmm::ft::log::{LogDraft, LogWrite};
use lockstep_vmm::ft::recorder::{RecordError, Recorder};
use lockstep_vmm::ft::vm::{Event, Output, OutputKind, Stop, Vm};

use crate::env::Env;
use crate::guest::Guest;
use crate::plan::Side;

/// Frames that wait in the host's network card.
const CARD: usize = 16;

/// What a step of the machine came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was done, in so many positions.
    Ran(u64),
    /// The log or the gate has no room: the vCPU waits.
    Full,
    /// There is nothing to do.
    Idle,
}

/// A machine, its recorder, and the outputs that wait.
pub struct Machine {
    /// The guest.
    pub vm: Guest,
    /// Its recorder.
    pub recorder: Recorder,
    /// Its outputs.
    pub gate: OutputGate,
    /// To be sent before anything that is in the gate.
    pub resend: VecDeque<Output>,
    card: VecDeque<Vec<u8>>,
    power_button: bool,
    halted: bool,
    /// It said that it is off, and the world knows.
    off: bool,
    /// The output at the front has left and is not accounted for yet.
    left: bool,
}

impl Machine {
    /// Executes `vm`.
    #[must_use]
    pub fn new(vm: Guest, recorder: Recorder) -> Self {
        Self {
            vm,
            recorder,
            gate: OutputGate::new(),
            resend: VecDeque::new(),
            card: VecDeque::new(),
            power_button: false,
            off: false,
            halted: false,
            left: false,
        }
    }

    /// A frame reached the host.
    pub fn frame(&mut self, frame: Vec<u8>) {
        if self.card.len() < CARD {
            self.card.push_back(frame);
        }
    }

    /// The operator pressed the button.
    pub const fn power_button(&mut self) {
        self.power_button = true;
    }

    /// Whether it is off, and the world knows.
    #[must_use]
    pub const fn off(&self) -> bool {
        self.off
    }

    /// Hands the button, or the oldest frame, to the guest.
    pub fn take_event<L: LogWrite>(&mut self, log: &mut L, now: u64) -> Step {
        if !self.power_button || !self.vm.at_position() {
            return self.take_frame(log, now);
        }
        match self
            .recorder
            .event(&mut self.vm, log, Event::PowerButton, now)
        {
            Ok(_) => {
                self.power_button = false;
                self.halted = false;
                Step::Ran(1)
            }
            Err(_) => Step::Full,
        }
    }

    fn take_frame<L: LogWrite>(&mut self, log: &mut L, now: u64) -> Step {
        let Some(frame) = self.card.front().filter(|_| self.vm.at_position()) else {
            return Step::Idle;
        };
        let Ok(mut draft) = log.draft(1_000) else {
            return Step::Full;
        };
        draft.payload_mut()[..frame.len()].copy_from_slice(frame);
        let length = frame.len();
        match self.recorder.frame(&mut self.vm, draft, length, now) {
            Ok(_) => {
                self.card.pop_front();
                self.halted = false;
                Step::Ran(1)
            }
            Err(_) => Step::Idle,
        }
    }

    /// Does what time has made due.
    pub fn tick<L: LogWrite>(&mut self, log: &mut L, now: u64) -> Step {
        match self.recorder.tick(&mut self.vm, log, now, self.halted) {
            Ok(None) => Step::Idle,
            Ok(Some(_)) => {
                self.halted = false;
                Step::Ran(0)
            }
            Err(_) => Step::Full,
        }
    }

    /// Writes an entry that says nothing but the time: something for the backup to acknowledge.
    pub fn mark_time<L: LogWrite>(&mut self, log: &mut L, now: u64) -> Option<Sequence> {
        let written = self
            .recorder
            .event(&mut self.vm, log, Event::Clock, now)
            .ok()?;
        self.halted = false;
        Some(written)
    }

    /// Writes down what was said, without running.
    pub fn record_outputs<L: LogWrite>(&mut self, log: &mut L) -> Step {
        match self.recorder.outputs(&mut self.vm, log, &mut self.gate) {
            Ok(None) => Step::Idle,
            Ok(Some(_)) => Step::Ran(0),
            Err(_) => Step::Full,
        }
    }

    /// Runs for `positions`.
    pub fn run<L: LogWrite>(&mut self, log: &mut L, positions: u64) -> Step {
        if self.halted {
            return Step::Idle;
        }
        let from = self.vm.position();
        match self
            .recorder
            .run(&mut self.vm, log, &mut self.gate, from + positions)
        {
            Ok(stop) => {
                self.halted = stop == Stop::Halted;
                Step::Ran(self.vm.position() - from)
            }
            Err(RecordError::LogFull { .. } | RecordError::GateFull) => Step::Full,
            Err(_) => Step::Idle,
        }
    }

    /// Sends the next output, or accounts for the one that was sent: two steps, for a process can
    /// die in between. Returns the entry that recorded what was sent, and its bytes.
    pub fn release(
        &mut self,
        limit: ReleaseLimit,
        side: Side,
        env: &mut Env,
    ) -> Option<(Sequence, Vec<u8>)> {
        if self.left {
            self.left = false;
            let sent = match self.resend.pop_front() {
                Some(output) => Some(output),
                None => self.gate.sent(),
            };
            if let Some(output) = sent {
                self.off |= output.kind == OutputKind::PowerOff;
                self.vm.recycle(output);
            }
            return None;
        }
        let (entry, output) = match self.resend.front() {
            Some(output) if limit == ReleaseLimit::Everything => (Sequence::NONE, output),
            Some(_) => return None,
            None => (self.gate.waits_for()?, self.gate.next(limit)?),
        };
        self.left = true;
        if output.kind == OutputKind::Frame {
            env.to_clients(side, &output.bytes);
        }
        Some((entry, output.bytes.clone()))
    }

    /// Whether [`Machine::release`] has something to do.
    #[must_use]
    pub fn releasable(&self, limit: ReleaseLimit) -> bool {
        let resend = !self.resend.is_empty() && limit == ReleaseLimit::Everything;
        self.left || resend || (self.resend.is_empty() && self.gate.next(limit).is_some())
    }

    /// Entry of the last output that left, for heartbeats.
    #[must_use]
    pub fn released(&self) -> Sequence {
        self.gate.released()
    }

    /// When the halted machine wants attention; `None` if it wants it now.
    #[must_use]
    pub fn wake_at(&self) -> Option<u64> {
        let idle = self.halted && self.card.is_empty() && !self.power_button;
        idle.then(|| self.recorder.wake_at(&self.vm).unwrap_or(u64::MAX))
    }
}
