//! What is executed.

use lockstep_vmm::machine::MachineConfig;
use lockstep_vmm::machine::boot::ImageKind;
use lockstep_vmm::machine::engine::EngineKind;

/// A program for a machine, and how to know how far it is.
#[derive(Debug, Clone)]
pub struct Guest {
    /// What the report calls it.
    pub name: String,
    /// A bzImage, or an ELF image with a 64-bit entry and PVH's 32-bit one.
    pub kernel: Vec<u8>,
    /// For a bzImage.
    pub initrd: Option<Vec<u8>>,
    /// Given to every contender, with what Lockstep's machine adds to it (the TSC's rate).
    pub command_line: String,
    /// RAM.
    pub memory_bytes: u64,
    /// Said on the serial port where the measurement begins; nothing: at the machine's start.
    pub begin: Option<String>,
    /// Said where it ends.
    pub end: String,
}

impl Guest {
    /// The boot of a stock kernel: from the machine's start until `end` is said.
    #[must_use]
    pub fn boot(kernel: Vec<u8>, initrd: Vec<u8>, command_line: String, end: String) -> Self {
        Self {
            name: "boot".into(),
            kernel,
            initrd: Some(initrd),
            command_line,
            memory_bytes: 256 << 20,
            begin: None,
            end,
        }
    }

    /// What Lockstep's machine for it is made of.
    pub(super) fn machine(&self) -> MachineConfig {
        MachineConfig {
            engine: EngineKind::Soft,
            memory_bytes: self.memory_bytes,
            command_line: self.command_line.clone(),
            nic: false,
            ..MachineConfig::default()
        }
    }

    /// The command line that every contender gets, to the letter.
    pub(super) fn full_command_line(&self) -> String {
        let kind = if self.is_boot() {
            ImageKind::OperatingSystem
        } else {
            ImageKind::Bare
        };
        self.machine().full_command_line(kind)
    }

    /// Whether this is a stock kernel's boot.
    pub(super) fn is_boot(&self) -> bool {
        self.begin.is_none()
    }
}

/// The bare loops. Each says `BEGIN`, does one thing many times, says `END`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BareGuest {
    /// Arithmetic on registers, a call and an unpredictable branch in each of its rounds.
    Compute,
    /// Dependent loads all over 16 MiB, four times what the translation caches reach.
    Memory,
    /// SYSCALL from ring 3 and SYSRET.
    Syscall,
    /// A page fault, its handler, which maps the page, and IRETQ.
    Fault,
}

/// Stands before the number of iterations in the images.
const COUNT_MARK: &[u8] = b"ITERATES";

impl BareGuest {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Compute, Self::Memory, Self::Syscall, Self::Fault];

    /// What the report calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Memory => "memory",
            Self::Syscall => "syscall",
            Self::Fault => "fault",
        }
    }

    fn image(self) -> &'static [u8] {
        match self {
            Self::Compute => include_bytes!(concat!(env!("OUT_DIR"), "/compute.elf")),
            Self::Memory => include_bytes!(concat!(env!("OUT_DIR"), "/memory.elf")),
            Self::Syscall => include_bytes!(concat!(env!("OUT_DIR"), "/syscall.elf")),
            Self::Fault => include_bytes!(concat!(env!("OUT_DIR"), "/fault.elf")),
        }
    }

    /// About a second of the software CPU.
    fn iterations(self) -> u64 {
        match self {
            Self::Compute => 10_000_000,
            Self::Memory => 20_000_000,
            Self::Syscall => 8_000_000,
            Self::Fault => 4_000_000,
        }
    }

    /// The guest, with the usual number of iterations divided by `divisor`.
    #[must_use]
    pub fn guest(self, divisor: u64) -> Guest {
        let mut kernel = self.image().to_vec();
        let count = (self.iterations() / divisor.max(1)).max(1);
        let at = kernel
            .windows(COUNT_MARK.len())
            .position(|part| part == COUNT_MARK)
            .expect("boot.S has the mark")
            + COUNT_MARK.len();
        kernel[at..at + 8].copy_from_slice(&count.to_le_bytes());
        Guest {
            name: self.name().to_owned(),
            kernel,
            initrd: None,
            command_line: String::new(),
            memory_bytes: 64 << 20,
            begin: Some("BEGIN".into()),
            end: "END".into(),
        }
    }
}
