//! What this host's KVM can do: what the engine cannot do without, and by trial, what the back end
//! does with the guest's instructions. Not every `/dev/kvm` stands on hardware virtualization.

use std::fmt;
use std::io;

use kvm_ioctls::{Cap, Kvm};
use lockstep_cpu::{Bus, MsrFault};

use super::KvmEngine;
use crate::machine::boot;
use crate::machine::engine::{Engine, EngineError};
use crate::machine::memory::GuestRam;

/// The KVM API's only version.
const API_VERSION: i32 = 12;

/// What the engine cannot do without.
const REQUIRED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (
        Cap::DestroyMemoryRegionWorks,
        "KVM_CAP_DESTROY_MEMORY_REGION_WORKS",
    ),
    (
        Cap::JoinMemoryRegionsWorks,
        "KVM_CAP_JOIN_MEMORY_REGIONS_WORKS",
    ),
];

/// Why KVM cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The device cannot be opened.
    #[error("/dev/kvm: {0}; load the kvm module, and give this user access to the device")]
    Device(io::Error),
    /// Another API.
    #[error("the KVM API has version {0}, expected {API_VERSION}")]
    ApiVersion(i32),
    /// A capability is missing.
    #[error("the host's kernel lacks {0}")]
    Missing(&'static str),
}

/// What a trial showed about this host's KVM, once it can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvmCapabilities {
    /// KVM_SET_CPUID2 decides what the guest's CPUID answers.
    pub masks_cpuid: bool,
    /// Ring 0 executes POPCNT: the whole instruction set runs, not only what KVM's emulator knows.
    pub full_instruction_set: bool,
}

impl KvmCapabilities {
    /// Opens `/dev/kvm` and tries it with a guest of a few instructions.
    ///
    /// # Errors
    /// KVM is not there or lacks something needed, or not even the trial guest runs.
    pub fn probe() -> Result<Self, EngineError> {
        let masks_cpuid = match try_code(&CPUID_TRIAL) {
            Ok(answer) => answer == u32::from_le_bytes(*b"Lock"),
            Err(EngineError::Emulation { .. }) => false,
            Err(error) => return Err(error),
        };
        let full_instruction_set = match try_code(&POPCNT_TRIAL) {
            Ok(answer) => answer == POPCNT_ANSWER,
            Err(EngineError::Emulation { .. }) => false,
            Err(error) => return Err(error),
        };
        Ok(Self {
            masks_cpuid,
            full_instruction_set,
        })
    }

    /// What an operator should know about, one sentence each.
    pub fn limits(&self) -> Vec<&'static str> {
        let mut limits = Vec::new();
        if !self.masks_cpuid {
            limits.push("the guest sees the host's CPUID: primary and backup need equal CPUs");
        }
        if !self.full_instruction_set {
            limits.push(
                "ring 0 is emulated instruction by instruction, and not all of them: only guests \
                 built for it run (the bare tenant does)",
            );
        }
        limits
    }
}

impl fmt::Display for KvmCapabilities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = self.limits();
        if limits.is_empty() {
            formatter.write_str("hardware virtualization, no limits found")
        } else {
            formatter.write_str(&limits.join("; "))
        }
    }
}

/// Opens KVM if it has what the engine needs.
///
/// # Errors
/// [`EngineError::Unusable`].
pub fn open() -> Result<Kvm, EngineError> {
    let kvm = Kvm::new().map_err(|error| Unusable::Device(error.into()))?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(Unusable::ApiVersion(version).into());
    }
    match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(Unusable::Missing(name).into()),
        None => Ok(kvm),
    }
}

/// `mov eax, 0x40000000; cpuid; mov eax, ebx; out 0x10, eax; hlt`: the hypervisor leaf's name, which
/// is the CPU model's only where CPUID is masked.
const CPUID_TRIAL: [u8; 12] = [
    0xb8, 0x00, 0x00, 0x00, 0x40, 0x0f, 0xa2, 0x89, 0xd8, 0xe7, 0x10, 0xf4,
];

/// `mov eax, 0xff; popcnt eax, eax; out 0x10, eax; hlt`.
const POPCNT_TRIAL: [u8; 12] = [
    0xb8, 0xff, 0x00, 0x00, 0x00, 0xf3, 0x0f, 0xb8, 0xc0, 0xe7, 0x10, 0xf4,
];
const POPCNT_ANSWER: u32 = 8;

/// RAM of a trial guest.
const TRIAL_BYTES: u64 = 4 << 20;

/// Executes `code` in ring 0, in the state in which kernels start, up to its first port access, and
/// returns what it wrote there.
fn try_code(code: &[u8]) -> Result<u32, EngineError> {
    let failed = |error: &dyn fmt::Display| EngineError::Host {
        call: "the set-up of a trial guest",
        source: io::Error::other(error.to_string()),
    };
    let ram = GuestRam::new(TRIAL_BYTES).map_err(|error| failed(&error))?;
    ram.write(boot::KERNEL_START, code)
        .map_err(|error| failed(&error))?;
    let state = boot::long_mode(&ram, boot::KERNEL_START).map_err(|error| failed(&error))?;
    let mut engine = KvmEngine::new(ram.accessor().clone())?;
    engine.set_state(&state)?;
    let mut bus = TrialBus { answer: 0 };
    engine.run(1, &mut bus)?;
    Ok(bus.answer)
}

/// Notes what the trial guest says.
struct TrialBus {
    answer: u32,
}

impl Bus for TrialBus {
    fn port_read(&mut self, _at: u64, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&mut self, _at: u64, _port: u16, data: &[u8]) {
        if let Ok(bytes) = data.try_into() {
            self.answer = u32::from_le_bytes(bytes);
        }
    }

    fn mmio_read(&mut self, _at: u64, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&mut self, _at: u64, _address: u64, _data: &[u8]) {}

    fn msr_read(&mut self, _at: u64, _index: u32) -> Result<u64, MsrFault> {
        Err(MsrFault)
    }

    fn msr_write(&mut self, _at: u64, _index: u32, _value: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }

    fn interrupt_line(&self) -> bool {
        false
    }

    fn acknowledge_interrupt(&mut self) -> u8 {
        0
    }

    fn stop_requested(&self) -> bool {
        false
    }
}
