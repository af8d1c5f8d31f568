//! The processor that the guest sees: its CPUID leaves and limits.

use crate::memory::PHYSICAL_BITS;

/// The documented CPU model: x86-64-v1 (x86-64 psABI 3.1.1), family 15 of an AMD vendor string, so
/// that kernels leave page-table isolation off (no Meltdown), with an invariant TSC.
///
/// Present: FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, PGE, CMOV, PAT, CLFLUSH, MMX, FXSR, SSE, SSE2,
/// SYSCALL, NX, 1-GiB pages, long mode, an APIC timer that takes deadlines and does not stop,
/// IA32_TSC_ADJUST. Absent, and #UD: SSE3 and later, CMPXCHG16B, LAHF/SAHF in 64-bit mode,
/// POPCNT, RDTSCP, RDRAND, RDSEED, XSAVE, AVX, FSGSBASE, MONITOR, SVM. Absent, and #GP when switched on: MCE, VME,
/// SMEP, SMAP, PCID, LA57, MTRRs. Of 32-bit code the decimal instructions (AAA and kin), BOUND and ARPL are
/// absent as well, which silicon has.
///
/// Results that differ between processors are one here, on every host: RCPPS and RSQRTPS are rounded
/// correctly, and so are the x87's transcendental instructions (but for one case in 2^50); flags that the
/// manual leaves undefined follow from one rule each. x87 pointers: selectors are zero; FXSAVE and FXRSTOR
/// move FIP, FDP and FOP only while an exception is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuModel {
    /// The TSC's rate, told to the guest nowhere (the vendor has no leaf 0x15): for the machine to
    /// put on the kernel's command line. Kilohertz; one tick is one instruction.
    pub tsc_khz: u32,
    /// CPUID says "under a hypervisor" (leaf 1, ECX bit 31); leaf 0x40000000 then names Lockstep.
    pub hypervisor: bool,
}

impl CpuModel {
    /// The model, with one tick a nanosecond.
    pub fn x86_64_v1() -> CpuModel {
        CpuModel {
            tsc_khz: 1_000_000,
            hypervisor: true,
        }
    }

    /// A name for logs' headers: two CPUs of one name behave alike to the last bit.
    pub fn name(&self) -> &'static str {
        "lockstep-x86-64-v1.4"
    }

    /// What CPUID answers: EAX, EBX, ECX, EDX.
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0 => vendor(7, b"AuthenticAMD"),
            1 => [
                // Family 15, model 107, stepping 1: the last of its family, without its errata.
                0x0006_0fb1,
                // CLFLUSH of 64 bytes; initial APIC number 0.
                0x0000_0800,
                // The local APIC's timer takes a deadline (IA32_TSC_DEADLINE, a register of the bus).
                TSC_DEADLINE | u32::from(self.hypervisor) << 31,
                FEATURES | 1 << 11 | 1 << 19 | 1 << 25 | 1 << 26,
            ],
            // The local APIC's timer does not stop while the processor sleeps.
            6 => [1 << 2, 0, 0, 0],
            // IA32_TSC_ADJUST: a guest can see that nobody has moved its TSC, and need not watch it.
            7 if subleaf == 0 => [0, 1 << 1, 0, 0],
            0x4000_0000 if self.hypervisor => vendor(0x4000_0000, b"LockstepSoft"),
            0x8000_0000 => vendor(0x8000_0008, b"AuthenticAMD"),
            0x8000_0001 => [
                0x0006_0fb1,
                0,
                // PREFETCHW, a hint.
                1 << 8,
                // SYSCALL, NX, FXSR (in FEATURES), 1-GiB pages, long mode.
                FEATURES | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29,
            ],
            0x8000_0002..=0x8000_0004 => brand(leaf - 0x8000_0002),
            // L1 caches of 64 KiB, two ways, lines of 64 bytes; TLBs; then L2.
            0x8000_0005 => [0xff08_ff08, 0xff20_ff20, 0x4002_0140, 0x4002_0140],
            0x8000_0006 => [0, 0x4200_4200, 0x0200_8140, 0],
            // Invariant TSC.
            0x8000_0007 => [0, 0, 0, 1 << 8],
            0x8000_0008 => [48 << 8 | PHYSICAL_BITS, 0, 0, 0],
            _ => [0; 4],
        }
    }
}

/// Leaf 1, ECX: the local APIC's timer has the deadline mode.
pub const TSC_DEADLINE: u32 = 1 << 24;

/// Bits that leaf 1 and leaf 0x80000001 have in common: FPU DE PSE TSC MSR PAE CX8 APIC PGE CMOV PAT
/// PSE36 MMX FXSR.
const FEATURES: u32 = 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 9
    | 1 << 13
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 23
    | 1 << 24;

fn word(text: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| {
        text.get(at + i).copied().unwrap_or(0)
    }))
}

fn vendor(highest: u32, name: &[u8; 12]) -> [u32; 4] {
    if highest >> 30 == 1 {
        return [highest, word(name, 0), word(name, 4), word(name, 8)];
    }
    [highest, word(name, 0), word(name, 8), word(name, 4)]
}

fn brand(part: u32) -> [u32; 4] {
    let text = b"Lockstep software CPU, x86-64-v1";
    std::array::from_fn(|i| word(text, part as usize * 16 + 4 * i))
}
