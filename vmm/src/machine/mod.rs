//! The deterministic machine: guest memory, vCPU engine, devices, interrupt controller, virtual clock.
//!
//! A [`Machine`] knows no host: no file, no socket, no clock, no thread. What it does is a function of
//! its configuration, its images and the events applied to it, each at its position.

pub mod boot;
pub mod bounce;
pub mod bus;
pub mod clock;
pub mod config;
pub mod console;
pub mod devices;
mod digest;
pub mod disks;
pub mod engine;
mod error;
pub mod memory;
pub mod outputs;
mod snapshot;

pub use config::{ConfigError, DiskSpec, MachineConfig};
pub use devices::power::PowerOffReason;
pub use devices::virtio_blk::DiskCounters;
pub use devices::virtio_net::NetCounters;
pub use error::MachineError;
pub use snapshot::MachineState;

use self::boot::ImageKind;
use self::bounce::BounceRegion;
use self::bus::MachineBus;
use self::disks::Disks;
use self::engine::kvm::KvmEngine;
use self::engine::soft::SoftEngine;
use self::engine::{Engine, EngineKind, Kicker, Position, Stop};
use self::memory::{GuestRam, MemoryError};
use crate::ft::disk::DiskRequest;
use crate::ft::vm::{DigestScope, Event, Output, StateDigest, VirtualTime, Vm};

/// RFLAGS.IF: maskable interrupts are accepted.
pub(crate) const RFLAGS_IF: u64 = 1 << 9;

/// A virtual machine of one vCPU.
///
/// Outputs are to be taken before the machine runs on: while one waits, [`Vm::run`] executes
/// nothing and returns [`Stop::Boundary`]. That bounds what a guest can make the machine hold.
pub struct Machine {
    config: MachineConfig,
    ram: GuestRam,
    bus: MachineBus,
    engine: Box<dyn Engine>,
    failed: bool,
}

/// What became of input that the guest did not take, since the VM's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineCounters {
    /// Frames; zeros without a network interface.
    pub net: NetCounters,
    /// Console bytes dropped because the guest did not read.
    pub console_lost: u64,
    /// Requests of all disks together; zeros without disks.
    pub disks: DiskCounters,
}

impl Machine {
    /// A machine that is about to execute the first instruction of `kernel`: an ELF64 executable or a
    /// bzImage, see [`boot`].
    ///
    /// # Errors
    /// The configuration or the image cannot be used, or the host lacks memory or KVM.
    pub fn new(config: &MachineConfig, kernel: &[u8]) -> Result<Self, MachineError> {
        Self::with_initrd(config, kernel, None)
    }

    /// As [`Machine::new`], with an initial RAM disk for a Linux kernel.
    ///
    /// # Errors
    /// As [`Machine::new`].
    pub fn with_initrd(
        config: &MachineConfig,
        kernel: &[u8],
        initrd: Option<&[u8]>,
    ) -> Result<Self, MachineError> {
        let mut machine = Self::empty(config)?;
        let kind = boot::image_kind(kernel).unwrap_or(ImageKind::Bare);
        let command_line = config.full_command_line(kind);
        let entry = boot::load(&machine.ram, kernel, initrd, &command_line)?;
        boot::acpi::write(&machine.ram, config.nic, config.disks.len())?;
        machine.engine.set_state(&entry)?;
        Ok(machine)
    }

    /// A machine whose CPU has no state yet.
    fn empty(config: &MachineConfig) -> Result<Self, MachineError> {
        config.validate()?;
        let ram = GuestRam::new(config.memory_bytes)?;
        let engine: Box<dyn Engine> = match config.engine {
            EngineKind::Soft => Box::new(SoftEngine::new(ram.accessor().clone())),
            EngineKind::Kvm => Box::new(KvmEngine::new(ram.accessor().clone())?),
        };
        let bus = MachineBus::new(config, ram.clone());
        Ok(Self {
            config: config.clone(),
            bus: bus.map_err(|source| MachineError::BounceMemory {
                bytes: config.bounce_bytes,
                source,
            })?,
            ram,
            engine,
            failed: false,
        })
    }

    /// What the machine is made of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Why the machine is off, if it is. A machine that is off executes nothing more.
    pub fn powered_off(&self) -> Option<PowerOffReason> {
        self.bus.powered_off()
    }

    /// What was dropped and what passed.
    pub fn counters(&self) -> MachineCounters {
        MachineCounters {
            net: self.bus.nic().map(|nic| nic.counters()).unwrap_or_default(),
            console_lost: self.bus.console_lost(),
            disks: self.bus.disks().map(Disks::counters).unwrap_or_default(),
        }
    }

    /// A handle with which another thread ends [`Vm::run`] early; `kvm` only.
    pub fn kicker(&self) -> Option<Kicker> {
        self.engine.kicker()
    }

    /// The state here, without memory. All outputs must have been taken, and all disk requests have
    /// ended: what they come to is not known yet.
    ///
    /// # Errors
    /// Not at a position, outputs wait, disk requests are outstanding, or the engine cannot export its
    /// state here.
    pub fn save(&mut self) -> Result<MachineState, MachineError> {
        self.require_position()?;
        if self.bus.output_waits() {
            return Err(MachineError::OutputsWait);
        }
        let outstanding = self
            .bus
            .disks()
            .map_or(0, |disks| disks.outstanding().len());
        let bus = self.bus.save();
        let bus = bus.ok_or(MachineError::DiskRequestsOutstanding(outstanding))?;
        Ok(MachineState {
            config: self.config.clone(),
            position: self.engine.position(),
            cpu: self.engine.state()?,
            bus,
        })
    }

    /// A machine in a saved state. `fill` is to copy the memory that belongs to the state into the
    /// given RAM, which is zero; devices' states are checked against it.
    ///
    /// The engine may be another than the one that saved; positions go on from the saved one, in the
    /// new engine's unit.
    ///
    /// # Errors
    /// The state is damaged, or the host lacks something.
    pub fn restore(
        state: &MachineState,
        engine: EngineKind,
        fill: impl FnOnce(&GuestRam) -> Result<(), MemoryError>,
    ) -> Result<Self, MachineError> {
        let config = MachineConfig {
            engine,
            ..state.config.clone()
        };
        let mut machine = Self::empty(&config)?;
        fill(&machine.ram)?;
        machine.bus.restore(&state.bus, engine, state.position)?;
        machine.engine.set_position(state.position);
        machine.engine.set_state(&state.cpu)?;
        machine.engine.set_clock(machine.bus.now(state.position));
        Ok(machine)
    }

    /// Guest memory, for copying it out at a position.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn require_position(&self) -> Result<(), MachineError> {
        if self.failed {
            return Err(MachineError::Ended);
        }
        if !self.engine.at_position() {
            return Err(MachineError::NotAtPosition {
                position: self.engine.position(),
            });
        }
        Ok(())
    }

    /// Tells the engine which RAM the devices wrote.
    fn report_written(&mut self) {
        for range in self.bus.take_written().drain() {
            self.engine
                .memory_written(range.start, range.end - range.start);
        }
    }

    /// Executes up to the next position at which something may have to be done, at most to `until`.
    fn step(&mut self, until: Position) -> Result<Stop, MachineError> {
        let target = match self.bus.deadline_position() {
            Some(deadline) => deadline.min(until),
            None => until,
        };
        self.bus.resume();
        let result = self.engine.run(target, &mut self.bus);
        self.report_written();
        if let Some(access) = self.bus.access_to_nothing() {
            return Err(MachineError::AccessToNothing {
                access,
                rip: self.engine.state().map_or(0, |state| state.rip),
                position: self.engine.position(),
            });
        }
        result.map_err(|source| MachineError::Engine {
            source,
            last_access: self.bus.last_access(),
        })
    }

    fn run_on(&mut self, until: Position) -> Result<Stop, MachineError> {
        loop {
            if self.engine.at_position() {
                self.bus.serve_timers(self.engine.position());
                if self.bus.output_waits() {
                    return Ok(Stop::Boundary);
                }
                if self.bus.powered_off().is_some() {
                    return Ok(Stop::Halted);
                }
                if self.engine.position() >= until {
                    return Ok(Stop::Position);
                }
            }
            match self.step(until)? {
                Stop::Position | Stop::Boundary => {}
                Stop::Kicked => return Ok(Stop::Kicked),
                Stop::Halted if self.engine.interrupts_enabled() => return Ok(Stop::Halted),
                Stop::Halted => self.bus.power_off(PowerOffReason::HaltedForever),
            }
        }
    }
}

impl Vm for Machine {
    type Error = MachineError;

    fn position(&self) -> Position {
        self.engine.position()
    }

    fn at_position(&self) -> bool {
        self.engine.at_position()
    }

    fn clock(&self) -> VirtualTime {
        self.bus.now(self.engine.position())
    }

    fn next_timer(&self) -> Option<VirtualTime> {
        if self.bus.powered_off().is_some() {
            return None;
        }
        self.bus.next_timer()
    }

    fn entropy_wanted(&self) -> usize {
        self.bus.entropy_wanted()
    }

    fn disk_requests(&self) -> Vec<DiskRequest> {
        let disks = self.bus.disks();
        disks.map_or_else(Vec::new, |disks| disks.outstanding().collect())
    }

    fn bounce(&self) -> Option<&BounceRegion> {
        self.bus.disks().map(Disks::region)
    }

    /// Returns [`Stop::Halted`] for ever once the machine is off.
    fn run(&mut self, until: Position) -> Result<Stop, MachineError> {
        if self.failed {
            return Err(MachineError::Ended);
        }
        let result = self.run_on(until);
        self.failed = result.is_err();
        result
    }

    fn apply(&mut self, clock: VirtualTime, event: Event<'_>) -> Result<(), MachineError> {
        self.require_position()?;
        let time = self.bus.advance(self.engine.position(), clock);
        self.engine.set_clock(time);
        match event {
            Event::Clock => {}
            Event::Frame(frame) => self.bus.receive_frame(frame),
            Event::Console(bytes) => self.bus.receive_console(bytes),
            Event::PowerButton => self.bus.power_off(PowerOffReason::PowerButton),
            Event::Entropy(bytes) => self.bus.receive_entropy(bytes),
            Event::Disk(done) => self.bus.disk_done(&done)?,
        }
        self.report_written();
        Ok(())
    }

    fn emulated_instructions(&self) -> u64 {
        self.engine.emulated_instructions()
    }

    fn next_output(&mut self) -> Option<Output> {
        self.bus.outputs().pop()
    }

    fn recycle(&mut self, output: Output) {
        self.bus.outputs().recycle(output.bytes);
    }

    fn digest(&mut self, scope: DigestScope) -> Result<StateDigest, MachineError> {
        self.require_position()?;
        let cpu = self.engine.state()?;
        Ok(StateDigest {
            state: digest::state(&cpu, &self.bus, self.engine.position()),
            memory: digest::memory(&self.ram, scope),
        })
    }
}
