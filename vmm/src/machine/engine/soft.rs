//! The software CPU as an engine: a position is the number of retired instructions.

use lockstep_cpu::{Bus, Cpu, CpuModel, CpuState, RunExit};
use vm_memory::GuestMemoryMmap;

use super::error::TripleFaultCause;
use super::{Engine, EngineError, EngineKind, Kicker, Position, Stop};

/// See the module.
pub struct SoftEngine {
    cpu: Cpu,
}

impl SoftEngine {
    /// A CPU over `memory`, whose state is to be set before it runs.
    pub fn new(memory: GuestMemoryMmap) -> Self {
        Self {
            cpu: Cpu::new(memory, CpuModel::x86_64_v1()),
        }
    }
}

impl Engine for SoftEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Soft
    }

    fn position(&self) -> Position {
        self.cpu.retired()
    }

    fn at_position(&self) -> bool {
        true
    }

    fn run(&mut self, until: Position, bus: &mut dyn Bus) -> Result<Stop, EngineError> {
        let budget = until.saturating_sub(self.cpu.retired());
        match self.cpu.run(budget, bus) {
            RunExit::Budget => Ok(Stop::Position),
            RunExit::StopRequested => Ok(Stop::Boundary),
            RunExit::Halted => Ok(Stop::Halted),
            RunExit::TripleFault { rip, vector } => Err(EngineError::TripleFault {
                rip,
                cause: TripleFaultCause::Vector(vector),
            }),
            RunExit::FaultLoop { rip, vector } => Err(EngineError::FaultLoop { rip, vector }),
            RunExit::Unsupported { rip, what } => Err(EngineError::Unsupported { rip, what }),
        }
    }

    fn set_clock(&mut self, nanoseconds: u64) {
        // 1 GHz, so that a tick is a nanosecond and an instruction.
        self.cpu.set_tsc(nanoseconds);
    }

    fn memory_written(&mut self, address: u64, length: u64) {
        self.cpu.memory_written(address, length);
    }

    fn interrupts_enabled(&mut self) -> bool {
        self.cpu.interrupts_enabled()
    }

    fn state(&mut self) -> Result<CpuState, EngineError> {
        Ok(self.cpu.state())
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.cpu
            .set_state(state)
            .map_err(|error| EngineError::State {
                engine: EngineKind::Soft,
                reason: error.to_string(),
            })
    }

    fn set_position(&mut self, position: Position) {
        self.cpu.set_retired(position);
    }

    fn kicker(&self) -> Option<Kicker> {
        None
    }
}
