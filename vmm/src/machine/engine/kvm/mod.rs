//! KVM as an engine: a position is the number of synchronous exits (port, memory, HLT) whose I/O is
//! done. Interrupt controller, timers and clocks are the machine's; KVM has none of them.
//!
//! What makes a run repeatable is that the world touches the guest at positions only. An interrupt
//! is queued only there, and only if the guest accepts it there: never at an interrupt window, which
//! KVM opens wherever it likes. Between two positions the guest must have no hidden input: what
//! reads the time-stamp counter, or is interrupted by the host's timers, is not for this engine.

use std::io;

use kvm_bindings::{
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    KVM_INTERNAL_ERROR_EMULATION, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use lockstep_cpu::{Bus, CpuModel, CpuState};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use self::exits::Exit;
use self::fallback::Fallback;
use self::kick::{KickTarget, Kicker};
use super::error::{KvmExit, TripleFaultCause};
use super::{Engine, EngineError, EngineKind, Position, Stop};

pub mod capabilities;
mod cpuid;
mod exits;
mod fallback;
mod ioctl;
pub mod kick;
mod state;

/// Three pages that KVM on VMX needs below 4 GiB, away from RAM and devices (KVM_SET_TSS_ADDR).
const TSS_ADDRESS: usize = 0xfffb_d000;

/// See the module.
pub struct KvmEngine {
    vcpu: VcpuFd,
    /// Keeps the VM, whose memory slots point into `_memory`.
    _vm: VmFd,
    /// Dropped last: KVM refers to it until vCPU and VM are closed.
    _memory: GuestMemoryMmap,
    kick: KickTarget,
    position: Position,
    at_position: bool,
    halted: bool,
    /// The I/O of the last exit is done, and KVM has still to finish the instruction with it.
    unfinished: bool,
    /// Finishing an instruction led to its next exit, which is still to be performed.
    exit_waits: bool,
    last_exit: KvmExit,
    /// Executes what KVM gives up on.
    fallback: Fallback,
}

/// What [`KvmEngine::enter`] came back for.
enum Entered {
    Exit,
    Kicked,
}

impl KvmEngine {
    /// A vCPU over `memory`, whose state is to be set before it runs.
    ///
    /// # Errors
    /// KVM is not there, lacks something needed, or refused a call.
    pub fn new(memory: GuestMemoryMmap) -> Result<Self, EngineError> {
        let kvm = capabilities::open()?;
        Self::with_kvm(&kvm, memory)
    }

    fn with_kvm(kvm: &Kvm, memory: GuestMemoryMmap) -> Result<Self, EngineError> {
        let vm = kvm.create_vm().map_err(refused("KVM_CREATE_VM"))?;
        if kvm.check_extension(kvm_ioctls::Cap::SetTssAddr) {
            vm.set_tss_address(TSS_ADDRESS)
                .map_err(refused("KVM_SET_TSS_ADDR"))?;
        }
        for (slot, region) in memory.iter().enumerate() {
            let start = region.start_addr();
            let host = memory
                .get_host_address(GuestAddress(start.0))
                .map_err(|error| EngineError::Host {
                    call: "the look-up of guest memory",
                    source: io::Error::other(error.to_string()),
                })?;
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: start.0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the range is the region's own mapping, `region.len()` bytes from its start,
            // which the engine's `_memory` keeps until the VM is closed; regions do not overlap.
            unsafe { vm.set_user_memory_region(slot) }
                .map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let vcpu = vm.create_vcpu(0).map_err(refused("KVM_CREATE_VCPU"))?;
        vcpu.set_cpuid2(&cpuid::table(&CpuModel::x86_64_v1()))
            .map_err(refused("KVM_SET_CPUID2"))?;
        if kvm.check_extension_raw(u64::from(KVM_CAP_ENFORCE_PV_FEATURE_CPUID)) > 0 {
            // Without it a guest could read the host's clock through KVM's own MSRs, unasked.
            let capability = kvm_enable_cap {
                cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
                args: [1, 0, 0, 0],
                ..Default::default()
            };
            vcpu.enable_cap(&capability)
                .map_err(refused("KVM_ENABLE_CAP(ENFORCE_PV_FEATURE_CPUID)"))?;
        }
        if kvm.check_extension_raw(u64::from(KVM_CAP_EXIT_ON_EMULATION_FAILURE)) > 0 {
            // Without it only ring 0's failures come out; ring 3 gets #UD.
            let capability = kvm_enable_cap {
                cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
                args: [1, 0, 0, 0],
                ..Default::default()
            };
            vm.enable_cap(&capability)
                .map_err(refused("KVM_ENABLE_CAP(EXIT_ON_EMULATION_FAILURE)"))?;
        }
        let (kick, _) = KickTarget::new();
        Ok(Self {
            vcpu,
            _vm: vm,
            fallback: Fallback::new(memory.clone()),
            _memory: memory,
            kick,
            position: 0,
            at_position: true,
            halted: false,
            unfinished: false,
            exit_waits: false,
            last_exit: KvmExit::None,
        })
    }

    fn rip(&self) -> u64 {
        self.vcpu.get_regs().map_or(0, |regs| regs.rip)
    }

    fn run_entered(&mut self, until: Position, bus: &mut dyn Bus) -> Result<Stop, EngineError> {
        loop {
            if self.at_position {
                if self.position >= until {
                    return Ok(Stop::Position);
                }
                if bus.stop_requested() {
                    return Ok(Stop::Boundary);
                }
                if bus.interrupt_line() {
                    self.offer_interrupt(bus)?;
                }
                if self.halted {
                    return Ok(Stop::Halted);
                }
            }
            if self.exit_waits {
                self.exit_waits = false;
                self.perform(bus)?;
                continue;
            }
            match self.enter()? {
                Entered::Exit => self.perform(bus)?,
                Entered::Kicked => return Ok(Stop::Kicked),
            }
        }
    }

    /// Executes until something has to be performed, or a kick.
    fn enter(&mut self) -> Result<Entered, EngineError> {
        loop {
            if self.kick.take_request() {
                return Ok(Entered::Kicked);
            }
            self.at_position = false;
            self.unfinished = false;
            match self.vcpu.run().map(drop) {
                Ok(()) => return Ok(Entered::Exit),
                Err(error) => match error.errno() {
                    libc::EINTR => self.kick.drain_signals(),
                    libc::EAGAIN => {}
                    _ => return Err(refused("KVM_RUN")(error)),
                },
            }
        }
    }

    /// Has KVM finish the instruction of the last exit without executing another. If that takes
    /// another exit (string instructions, read-modify-write of device memory), it waits: performing
    /// it would leave this position.
    fn finish_instruction(&mut self) -> Result<(), EngineError> {
        if !self.unfinished {
            return Ok(());
        }
        self.unfinished = false;
        self.vcpu.set_kvm_immediate_exit(1);
        let result = self.vcpu.run().map(drop);
        self.vcpu.set_kvm_immediate_exit(0);
        match result {
            Ok(()) => {
                self.exit_waits = true;
                Ok(())
            }
            Err(error) if error.errno() == libc::EINTR => Ok(()),
            Err(error) => Err(refused("KVM_RUN with immediate_exit")(error)),
        }
    }

    /// At a position: queues the interrupt that the controller holds, if the guest accepts it here.
    fn offer_interrupt(&mut self, bus: &mut dyn Bus) -> Result<(), EngineError> {
        self.finish_instruction()?;
        if self.exit_waits || self.vcpu.get_kvm_run().ready_for_interrupt_injection == 0 {
            return Ok(());
        }
        let vector = bus.acknowledge_interrupt();
        ioctl::interrupt(&self.vcpu, vector).map_err(|source| EngineError::Host {
            call: "KVM_INTERRUPT",
            source,
        })?;
        self.halted = false;
        self.at_position = false;
        Ok(())
    }

    /// Performs the exit that KVM_RUN left.
    fn perform(&mut self, bus: &mut dyn Bus) -> Result<(), EngineError> {
        let at = self.position;
        let run = self.vcpu.get_kvm_run();
        match exits::decode(run) {
            Exit::Port => {
                // SAFETY: the pointer comes from the vCPU's own mapping, and the last KVM_RUN
                // returned 0 with this exit.
                self.last_exit = unsafe { exits::perform_port(run, bus, at) };
                self.unfinished = true;
            }
            Exit::Memory => {
                self.last_exit = exits::perform_memory(run, bus, at);
                self.unfinished = true;
            }
            Exit::Halt => {
                self.last_exit = KvmExit::Halt;
                self.halted = true;
            }
            Exit::Nothing => return Ok(()),
            Exit::Shutdown => {
                return Err(EngineError::TripleFault {
                    rip: self.rip(),
                    cause: TripleFaultCause::After(self.last_exit),
                });
            }
            Exit::EntryFailed(reason) => {
                return Err(EngineError::EntryFailed {
                    rip: self.rip(),
                    reason,
                    last_exit: self.last_exit,
                });
            }
            Exit::InternalError { suberror, bytes } => {
                let rip = self.rip();
                if suberror == KVM_INTERNAL_ERROR_EMULATION {
                    match self.execute_elsewhere(bus) {
                        Ok(()) => {
                            self.last_exit = KvmExit::Instruction { rip };
                            self.position += 1;
                            self.at_position = true;
                            return Ok(());
                        }
                        Err(reason) => {
                            tracing::error!(rip, %reason, "the software CPU could not help KVM out");
                        }
                    }
                }
                return Err(EngineError::Emulation {
                    rip: self.rip(),
                    suberror,
                    bytes,
                    last_exit: self.last_exit,
                });
            }
            Exit::Unexpected(reason) => {
                return Err(EngineError::UnexpectedExit {
                    rip: self.rip(),
                    reason,
                    last_exit: self.last_exit,
                });
            }
        }
        self.position += 1;
        self.at_position = true;
        Ok(())
    }

    /// Has the software CPU execute the instruction that KVM gave up on.
    fn execute_elsewhere(&mut self, bus: &mut dyn Bus) -> Result<(), EngineError> {
        state::withdraw_undefined(&self.vcpu)?;
        let before = state::export(&self.vcpu, false)?;
        let after = self
            .fallback
            .step(&before, self.position, bus)
            .map_err(|error| EngineError::State {
                engine: EngineKind::Soft,
                reason: error.to_string(),
            })?;
        self.adopt(&after)
    }

    /// Puts a state into the vCPU.
    fn adopt(&mut self, state: &CpuState) -> Result<(), EngineError> {
        state::import(&self.vcpu, state)?;
        let run = self.vcpu.get_kvm_run();
        run.cr8 = state.cr8;
        run.if_flag = u8::from(state.rflags & crate::machine::RFLAGS_IF != 0);
        // KVM has not looked yet; it will have at the next exit. A guest that waits in HLT takes an
        // interrupt at once if it takes any.
        run.ready_for_interrupt_injection =
            u8::from(run.if_flag != 0 && state.interrupt_shadow == 0);
        self.halted = state.halted;
        Ok(())
    }

    fn require_position(&self, operation: &'static str) -> Result<(), EngineError> {
        if self.at_position {
            Ok(())
        } else {
            Err(EngineError::NotAtPosition { operation })
        }
    }
}

fn refused(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::Host {
        call,
        source: error.into(),
    }
}

impl Engine for KvmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn position(&self) -> Position {
        self.position
    }

    fn at_position(&self) -> bool {
        self.at_position
    }

    fn run(&mut self, until: Position, bus: &mut dyn Bus) -> Result<Stop, EngineError> {
        self.kick
            .enter(&self.vcpu)
            .map_err(|source| EngineError::Host {
                call: "KVM_SET_SIGNAL_MASK",
                source,
            })?;
        let result = self.run_entered(until, bus);
        self.kick.leave();
        result
    }

    /// The guest's time-stamp counter is the host's on this engine; there is nothing to set.
    fn set_clock(&mut self, _nanoseconds: u64) {}

    /// KVM keeps its translations coherent by itself.
    fn memory_written(&mut self, _address: u64, _length: u64) {}

    fn interrupts_enabled(&mut self) -> bool {
        self.vcpu.get_kvm_run().if_flag != 0
    }

    /// In the middle of an instruction that takes several exits, the registers are those from
    /// before it: it will be executed again from its start wherever the state is restored.
    fn state(&mut self) -> Result<CpuState, EngineError> {
        self.require_position("the vCPU's state")?;
        self.finish_instruction()?;
        state::export(&self.vcpu, self.halted)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.require_position("setting the vCPU's state")?;
        self.finish_instruction()?;
        if self.exit_waits {
            return Err(EngineError::InFlight(
                "an instruction of several accesses is half done",
            ));
        }
        self.adopt(state)
    }

    fn set_position(&mut self, position: Position) {
        self.position = position;
    }

    fn kicker(&self) -> Option<Kicker> {
        Some(self.kick.kicker())
    }

    fn emulated_instructions(&self) -> u64 {
        self.fallback.executed()
    }
}
