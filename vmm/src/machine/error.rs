//! Why a machine cannot be made, or cannot go on.

use super::boot::BootError;
use super::bus::Access;
use super::config::ConfigError;
use super::devices::DamagedState;
use super::disks::DiskDoneError;
use super::engine::{EngineError, Position};
use super::memory::MemoryError;

/// Why a machine cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The images.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The engine could not go on, or could not be made.
    #[error("{source}{}", after(.last_access))]
    Engine {
        /// What happened.
        source: EngineError,
        /// The last access to a device before it.
        last_access: Option<Access>,
    },
    /// The guest touched what is neither RAM nor a device.
    #[error(
        "the guest made a {access}, where this machine has neither RAM nor a device, near RIP {rip:#x}, position {position}"
    )]
    AccessToNothing {
        /// The access.
        access: Access,
        /// Where the guest stood after it (`soft`) or at it (`kvm`).
        rip: u64,
        /// The position after it.
        position: Position,
    },
    /// An event between two positions.
    #[error("an event came between two positions, after {position}; run to the next one first")]
    NotAtPosition {
        /// The last position.
        position: Position,
    },
    /// The machine has failed before.
    #[error("the machine has ended with an error before; make a new one")]
    Ended,
    /// Outputs that nobody took would be lost.
    #[error("outputs wait to be taken; take them before the state is saved")]
    OutputsWait,
    /// Requests whose end would be lost.
    #[error(
        "{0} disk requests are outstanding; let them end, and the guest make no further ones, before the \
         state is saved"
    )]
    DiskRequestsOutstanding(usize),
    /// An end of a disk request that cannot be.
    #[error(transparent)]
    DiskDone(#[from] DiskDoneError),
    /// Memory for the disks' bounce buffers.
    #[error("the host cannot map {bytes} bytes for bounce buffers of disks: {source}")]
    BounceMemory {
        /// Bytes asked for.
        bytes: u64,
        /// The host's answer.
        source: std::io::Error,
    },
    /// A saved state.
    #[error(transparent)]
    DamagedState(#[from] DamagedState),
}

impl From<EngineError> for MachineError {
    fn from(source: EngineError) -> Self {
        Self::Engine {
            source,
            last_access: None,
        }
    }
}

fn after(access: &Option<Access>) -> String {
    access.map_or_else(String::new, |access| {
        format!(" (last device access: {access})")
    })
}
