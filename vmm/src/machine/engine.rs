//! What executes the guest's instructions.

use lockstep_cpu::{Bus, CpuState};
use serde::{Deserialize, Serialize};

pub mod choice;
pub mod error;
pub mod kvm;
pub mod soft;

pub use choice::{EngineChoice, EngineSelection};
pub use error::EngineError;
pub use kvm::kick::Kicker;

/// How far a vCPU has come. What one step is, the engine says: see [`EngineKind`].
pub type Position = u64;

/// Which engine executes, and so what a [`Position`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// The software CPU; a position is the number of retired instructions.
    Soft,
    /// KVM; a position is the number of synchronous exits whose I/O is done.
    Kvm,
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Soft => "soft",
            Self::Kvm => "kvm",
        })
    }
}

/// Why [`Engine::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// `until` is reached.
    Position,
    /// A position before `until` at which the caller may act: the bus asked to stop, or (`kvm`) an
    /// exit was handled.
    Boundary,
    /// The guest waits in HLT, interrupts enabled, and no interrupt is pending. A position.
    Halted,
    /// The caller's kick ended `run` between two positions: look after I/O, apply nothing, run on.
    Kicked,
}

/// One virtual CPU.
///
/// Ordering contract: between two calls of [`Engine::run`] the caller may read and write guest
/// memory, change device state and apply events if and only if [`Engine::at_position`] is true.
/// Interrupts are taken from the bus by the engine itself, when it next runs.
pub trait Engine: Send {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;
    /// Steps done since the VM's start.
    fn position(&self) -> Position;
    /// Whether the vCPU stands at a position (always, on `soft`).
    fn at_position(&self) -> bool;
    /// Executes until `until` at the latest.
    ///
    /// # Errors
    /// The guest did something that ends it (triple fault, an instruction the engine lacks), or the
    /// host refused; the message names RIP and the exit.
    fn run(&mut self, until: Position, bus: &mut dyn Bus) -> Result<Stop, EngineError>;
    /// Virtual time at the present position, in nanoseconds; the `soft` engine's TSC follows it.
    fn set_clock(&mut self, nanoseconds: u64);
    /// Tells that `length` bytes of RAM at guest-physical `address` were written by a device. To be
    /// called for each such write before the engine next runs.
    fn memory_written(&mut self, address: u64, length: u64);
    /// Whether the guest accepts maskable interrupts (RFLAGS.IF). At a position.
    fn interrupts_enabled(&mut self) -> bool;
    /// Exports the architectural state. Only at a position.
    ///
    /// # Errors
    /// The host refused, or the guest is in the middle of delivering an event.
    fn state(&mut self) -> Result<CpuState, EngineError>;
    /// Replaces the architectural state. Only at a position; the position itself stays.
    ///
    /// # Errors
    /// The state is not one that this engine can hold, or the host refused.
    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError>;
    /// Sets the position, for a state that was saved there.
    fn set_position(&mut self, position: Position);
    /// A handle with which another thread ends [`Engine::run`] early, where that is possible. The
    /// `soft` engine has none: its runs are bounded by `until` and cost what they retire.
    fn kicker(&self) -> Option<Kicker>;
    /// Instructions that this engine could not execute and another did (`kvm`: where KVM's emulator gave
    /// up).
    fn emulated_instructions(&self) -> u64 {
        0
    }
}
