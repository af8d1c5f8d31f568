//! A machine's state at a position, without its memory, which is read and written by itself: it is
//! large, and may travel by other ways.

use lockstep_cpu::CpuState;
use serde::{Deserialize, Serialize};

use super::bus::BusState;
use super::config::MachineConfig;
use super::engine::Position;

/// See the module. Taken by [`super::Machine::save`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// What the machine is made of.
    pub config: MachineConfig,
    /// Where it stands.
    pub position: Position,
    /// The vCPU.
    pub cpu: CpuState,
    /// Devices and clock.
    pub bus: BusState,
}
