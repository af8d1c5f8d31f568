//! Why an engine could not go on. Each variant that is the guest's doing names its RIP.

use std::fmt;
use std::io;

use super::EngineKind;

/// An engine could not go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An exception could not be delivered, nor the double fault after it (SDM vol. 3A 6.15).
    #[error("triple fault at RIP {rip:#x}: {cause}")]
    TripleFault {
        /// Where the guest stood.
        rip: u64,
        /// What the engine knows of the first fault.
        cause: TripleFaultCause,
    },
    /// Exceptions without end.
    #[error(
        "exception {vector} is raised again and again at RIP {rip:#x} with no instruction retired"
    )]
    FaultLoop {
        /// Address at which it goes round.
        rip: u64,
        /// Vector of the last exception.
        vector: u8,
    },
    /// The soft engine lacks something that the guest asked for.
    #[error("the soft engine lacks {what}, which the guest used at RIP {rip:#x}")]
    Unsupported {
        /// The instruction that asked.
        rip: u64,
        /// What is lacking.
        what: &'static str,
    },
    /// KVM could not emulate an instruction (KVM_EXIT_INTERNAL_ERROR).
    #[error(
        "neither KVM nor the software CPU can execute the instruction at RIP {rip:#x} (internal error, suberror {suberror}, bytes {bytes}); \
         last exit: {last_exit}; run this guest on the soft engine"
    )]
    Emulation {
        /// The instruction.
        rip: u64,
        /// KVM's suberror: 1 is an emulation failure.
        suberror: u32,
        /// The instruction's bytes, if KVM gave them, else KVM's data words.
        bytes: HexBytes,
        /// What went before.
        last_exit: KvmExit,
    },
    /// The CPU refused to enter the guest (KVM_EXIT_FAIL_ENTRY).
    #[error(
        "the host's CPU refused to enter the guest at RIP {rip:#x}, hardware reason {reason:#x}; last exit: {last_exit}"
    )]
    EntryFailed {
        /// Where the guest stood.
        rip: u64,
        /// The hardware's code.
        reason: u64,
        /// What went before.
        last_exit: KvmExit,
    },
    /// An exit that this machine never asks for.
    #[error(
        "KVM exit {reason} at RIP {rip:#x} is none that this machine handles; last exit: {last_exit}"
    )]
    UnexpectedExit {
        /// Where the guest stood.
        rip: u64,
        /// KVM_EXIT_* number.
        reason: u32,
        /// What went before.
        last_exit: KvmExit,
    },
    /// The guest stands in the middle of an instruction or of an event's delivery, which a
    /// [`lockstep_cpu::CpuState`] cannot hold.
    #[error("the vCPU's state cannot be taken at this position: {0}")]
    InFlight(&'static str),
    /// A call that is allowed only at a position.
    #[error("{operation} was asked for between two positions; run to the next position first")]
    NotAtPosition {
        /// The call.
        operation: &'static str,
    },
    /// A state that the engine cannot take over.
    #[error("the {engine} engine cannot hold this CPU state: {reason}")]
    State {
        /// Which engine.
        engine: EngineKind,
        /// What is wrong with it.
        reason: String,
    },
    /// The host refused a KVM call.
    #[error("{call} failed: {source}")]
    Host {
        /// The call.
        call: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The host's KVM lacks something that this engine cannot do without.
    #[error("KVM cannot be used on this host: {0}")]
    Unusable(#[from] super::kvm::capabilities::Unusable),
}

/// What is known of the exception that began a triple fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TripleFaultCause {
    /// The exception's vector.
    Vector(u8),
    /// KVM does not tell; what went before is all there is.
    After(KvmExit),
}

impl fmt::Display for TripleFaultCause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vector(vector) => write!(formatter, "exception {vector} could not be delivered"),
            Self::After(exit) => write!(formatter, "last exit: {exit}"),
        }
    }
}

/// The last exit that was handled before a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvmExit {
    /// None yet.
    #[default]
    None,
    /// A port access.
    Port {
        /// Port.
        port: u16,
        /// Whether the guest wrote.
        write: bool,
    },
    /// An access to memory that is not RAM.
    Memory {
        /// Guest-physical address.
        address: u64,
        /// Whether the guest wrote.
        write: bool,
    },
    /// HLT.
    Halt,
    /// An instruction that KVM gave up on and the software CPU executed.
    Instruction {
        /// Where it stands.
        rip: u64,
    },
}

impl fmt::Display for KvmExit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("none"),
            Self::Port { port, write: true } => write!(formatter, "OUT to port {port:#x}"),
            Self::Port { port, write: false } => write!(formatter, "IN from port {port:#x}"),
            Self::Memory {
                address,
                write: true,
            } => write!(formatter, "store to {address:#x}"),
            Self::Memory {
                address,
                write: false,
            } => write!(formatter, "load from {address:#x}"),
            Self::Halt => formatter.write_str("HLT"),
            Self::Instruction { rip } => {
                write!(
                    formatter,
                    "an instruction at {rip:#x} that KVM cannot emulate"
                )
            }
        }
    }
}

/// Up to 32 bytes that print as hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HexBytes {
    bytes: [u8; 32],
    length: u8,
}

impl HexBytes {
    /// The first 32 of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut kept = Self::default();
        let length = bytes.len().min(kept.bytes.len());
        kept.bytes[..length].copy_from_slice(&bytes[..length]);
        kept.length = length as u8;
        kept
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Display for HexBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length == 0 {
            return formatter.write_str("unknown");
        }
        for (index, byte) in self.as_slice().iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(formatter, "{space}{byte:02x}")?;
        }
        Ok(())
    }
}
