//! What must be equal, and what the manuals leave to the processor.
//!
//! Each exemption stands here with its reason, and covers no more than the reason does.

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind, RflagsBits};
use lockstep_cpu::opcodes::{Support, support};

use crate::generate::{Case, shifts};
use crate::{DATA, Outcome};

/// Linux gives user code no address from here on.
const USER_END: u64 = 0x7fff_ffff_f000;

const VECTOR_DE: u8 = 0;
const VECTOR_BP: u8 = 3;
const VECTOR_SS: u8 = 12;
const VECTOR_GP: u8 = 13;
const VECTOR_PF: u8 = 14;
const VECTOR_AC: u8 = 17;
const VECTOR_XM: u8 = 19;

/// RFLAGS that user code sees: all status flags and DF.
const FLAGS: u64 = 0xcd5;
const CF: u64 = 1;
const AF: u64 = 0x10;
const OF: u64 = 0x800;

/// RFLAGS bits that an instruction leaves undefined.
fn undefined_flags(case: &Case, ins: &Instruction) -> u64 {
    if shifts(ins) {
        return undefined_by_shift(case, ins);
    }
    let bits = ins.rflags_undefined();
    [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, 0x80),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, 4),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |mask, (_, flag)| mask | flag)
}

/// Bits of a shift's first operand.
fn operand_bits(ins: &Instruction) -> u64 {
    8 * if ins.op0_kind() == OpKind::Register {
        ins.op0_register().size() as u64
    } else {
        ins.memory_size().size() as u64
    }
}

/// The masked count of a shift, if the case tells.
fn shift_count(case: &Case, ins: &Instruction) -> Option<u64> {
    let last = ins.op_count() - 1;
    let count = match ins.op_kind(last) {
        OpKind::Immediate8 => u64::from(ins.immediate8()),
        // CL, which a first instruction may have changed.
        _ if case.instructions.len() == 1 => case.registers.gpr[1],
        _ => return None,
    };
    Some(count & if operand_bits(ins) == 64 { 63 } else { 31 })
}

/// SDM vol. 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD and SHRD, "Flags Affected".
fn undefined_by_shift(case: &Case, ins: &Instruction) -> u64 {
    use Mnemonic::*;
    let bits = operand_bits(ins);
    let double = matches!(ins.mnemonic(), Shld | Shrd);
    let Some(count) = shift_count(case, ins) else {
        // Any count.
        return if double { FLAGS & !0x400 } else { OF | AF | CF };
    };
    match (ins.mnemonic(), count) {
        (_, 0) => 0,
        (Rol | Ror | Rcl | Rcr, 1) => 0,
        (Rol | Ror | Rcl | Rcr, _) => OF,
        (Shld | Shrd, _) if count > bits => FLAGS & !0x400,
        (_, 1) => AF,
        (Shl | Sal | Shr, _) if count >= bits => OF | AF | CF,
        _ => OF | AF,
    }
}

/// Bytes of the memory operand that belong to the processor, as offsets (first, end): what FXSAVE and FNSTENV store
/// of the last instruction's address differs between makers and ages, and so do reserved fields.
fn own_bytes(ins: &Instruction) -> &'static [(usize, usize)] {
    use Mnemonic::*;
    match ins.mnemonic() {
        // FOP, FIP, FDP; MXCSR_MASK; what lies above XMM15.
        Fxsave | Fxsave64 => &[(6, 24), (28, 32), (416, 512)],
        Fnstenv | Fnsave if ins.memory_size().size() == 14 || ins.memory_size().size() == 94 => {
            &[(6, 14)]
        }
        Fnstenv | Fnsave => &[(12, 28)],
        _ => &[],
    }
}

/// What differs between the outcomes, in words; empty when nothing does.
pub struct Comparison<'a> {
    pub case: &'a Case,
    pub native: &'a Outcome,
    pub engine: &'a Outcome,
    pub native_memory: &'a [u8],
    pub engine_memory: &'a [u8],
}

impl Comparison<'_> {
    /// The instruction that faulted, if one did (and not the fetch of what follows it).
    fn faulting(&self) -> Option<&Instruction> {
        let at = |i: &&Instruction| i.ip() == self.native.rip;
        self.case
            .instructions
            .iter()
            .find(at)
            .filter(|_| self.native.vector != VECTOR_BP)
    }

    /// The instruction at which the case ended: the faulting one, or the last.
    fn ended(&self) -> &Instruction {
        self.faulting().unwrap_or_else(|| {
            self.case
                .instructions
                .last()
                .expect("a case has instructions")
        })
    }

    fn faulted(&self) -> bool {
        self.faulting().is_some()
    }

    /// A masked store on which one of the two faulted. Whether bytes that are not written can fault, and
    /// which byte a fault names, is up to the processor (SDM vol. 2, MASKMOVDQU: "implementation
    /// dependent"). The engine touches the pages of the bytes that it writes, and no other.
    fn masked_store_faults(&self) -> bool {
        self.case.instructions.iter().any(|ins| {
            let fault = |o: &Outcome| o.vector != VECTOR_BP && o.rip == ins.ip();
            matches!(ins.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu)
                && (fault(self.native) || fault(self.engine))
        })
    }

    /// An instruction that moves the x87 or SSE state faulted on both. In which order it touches its many
    /// bytes, and so which of them faults first and how much was stored before, is up to the processor; so
    /// is whether an image that is not aligned is #GP or, where that is switched on, #AC.
    fn state_faults(&self) -> bool {
        let memory =
            |o: &Outcome| matches!(o.vector, VECTOR_SS | VECTOR_GP | VECTOR_PF | VECTOR_AC);
        self.native.rip == self.engine.rip
            && memory(self.native)
            && memory(self.engine)
            && self
                .faulting()
                .is_some_and(|i| matches!(i.memory_size().size(), 14 | 28 | 94 | 108 | 512))
    }

    /// F2XM1 beyond 1 in magnitude, FYL2XP1 beyond 1 - sqrt(1/2): undefined (SDM vol. 2). What the engine
    /// does there its own tests hold.
    fn outside_domain(&self) -> bool {
        let fx = &self.case.registers.fx;
        let (mantissa, exponent) = (word(fx, 32, 8), word(fx, 40, 2) & 0x7fff);
        self.case.instructions.iter().any(|i| match i.mnemonic() {
            Mnemonic::F2xm1 => exponent >= 0x3fff && (exponent, mantissa) != (0x3fff, 1 << 63),
            Mnemonic::Fyl2xp1 => {
                exponent > 0x3ffd || exponent == 0x3ffd && mantissa > 0x95f6_1998_0c43_36f7
            }
            _ => false,
        })
    }

    /// The result in the destination is undefined: BSWAP of 16 bits; a double shift of 16 bits by more.
    fn undefined_result(&self) -> bool {
        self.case
            .instructions
            .iter()
            .any(|ins| match ins.mnemonic() {
                Mnemonic::Shld | Mnemonic::Shrd => {
                    operand_bits(ins) == 16 && shift_count(self.case, ins).is_none_or(|n| n > 16)
                }
                Mnemonic::Bswap => ins.op0_register().size() == 2,
                _ => false,
            })
    }

    /// Everything that differs.
    pub fn differences(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.masked_store_faults() {
            return found;
        }
        if self.state_faults() {
            return found;
        }
        let (native, engine) = (self.native, self.engine);
        if !engine.note.is_empty() {
            found.push(format!("engine: {}", engine.note));
        }
        check(
            &mut found,
            "vector",
            native.vector.into(),
            engine.vector.into(),
        );
        check(&mut found, "rip", native.rip, engine.rip);
        if matches!(native.vector, VECTOR_GP | VECTOR_PF) {
            // Linux reports every fault at an address that is not the user's as one of protection (P set).
            let hidden = u32::from(native.vector == VECTOR_PF && native.cr2 >= USER_END);
            check(
                &mut found,
                "error code",
                (native.error | hidden).into(),
                (engine.error | hidden).into(),
            );
        }
        if native.vector == VECTOR_PF {
            check(&mut found, "cr2", native.cr2, engine.cr2);
        }
        self.general(&mut found);
        self.floating(&mut found);
        self.memory(&mut found);
        found
    }

    fn general(&self, found: &mut Vec<String>) {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        let (a, b) = (&self.native.registers, &self.engine.registers);
        let ended = self.ended();
        let repeats = ended.has_rep_prefix() || ended.has_repne_prefix();
        let none = a.gpr[1] as u32 == 0;
        let short_repetition = repeats
            && (self.faulted() || none)
            && (0..ended.op_count())
                .any(|i| matches!(ended.op_kind(i), OpKind::MemoryESEDI | OpKind::MemorySegESI));
        if !self.undefined_result() {
            for (i, name) in NAMES.into_iter().enumerate() {
                // Whether a repetition with 32-bit addresses that faults at once, or of none, clears the
                // upper halves of RCX, RSI and RDI is up to the processor.
                let half = short_repetition && matches!(i, 1 | 6 | 7);
                let width = if half { 0xffff_ffff } else { u64::MAX };
                check(found, name, a.gpr[i] & width, b.gpr[i] & width);
            }
        }
        let mut mask = FLAGS;
        if !self.faulted() || self.native.vector == VECTOR_DE {
            mask &= !undefined_flags(self.case, ended);
        }
        if self.faulted() && repeats {
            // Intel takes back what earlier iterations did to the flags; here they stay, so that a run
            // cut between two iterations ends like one that was not.
            mask = 0x400;
        }
        check(found, "rflags", a.rflags & mask, b.rflags & mask);
    }

    fn floating(&self, found: &mut Vec<String>) {
        let (a, b) = (&self.native.registers.fx, &self.engine.registers.fx);
        let ended = self.ended();
        let faulted = self.faulted();
        // Whether an MMX instruction that faults has already changed the x87 state is up to the processor.
        let mmx = ended.cpuid_features().contains(&CpuidFeature::MMX)
            || (0..ended.op_count()).any(|i| ended.op_register(i).is_mm());
        let x87 = !(self.outside_domain() || faulted && mmx);
        let approximate = self
            .case
            .instructions
            .iter()
            .any(|i| support(i.mnemonic()) == Support::ByRule);
        check(found, "fcw", word(a, 0, 2), word(b, 0, 2));
        if x87 {
            // An approximation may be rounded the other way (C1), or be exact on one side only: PE, with it
            // a masked underflow, and the summary if PE is not masked.
            let one_sided = approximate && (word(a, 2, 2) ^ word(b, 2, 2)) & 0x20 != 0;
            let mut mask = if approximate { !0x200 } else { u64::MAX };
            // One side rounded up to the least normal number, the other not.
            let least = (0..2).any(|i| word(a, 40 + 16 * i, 2) & 0x7fff <= 1);
            if approximate && least {
                mask &= !0x10;
            }
            if one_sided {
                mask &= !0x30;
                if word(a, 0, 2) & 0x20 == 0 {
                    mask &= !0x8080;
                }
            }
            check(found, "fsw", word(a, 2, 2) & mask, word(b, 2, 2) & mask);
            check(found, "ftw", word(a, 4, 1), word(b, 4, 1));
        }
        // PE beside an unmasked overflow or underflow tells of a result with another exponent, which
        // nobody sees.
        let mxcsr = word(a, 24, 4);
        let unseen =
            self.native.vector == VECTOR_XM && (mxcsr & 0x810 == 0x10 || mxcsr & 0x408 == 8);
        let status = if unseen { !0x20 } else { u64::MAX };
        check(
            found,
            "mxcsr",
            word(a, 24, 4) & status,
            word(b, 24, 4) & status,
        );
        let same = a[32..416] == b[32..416];
        for i in (0..8).filter(|_| x87 && !same) {
            let at = 32 + 16 * i;
            if approximate && near_extended(word80(a, at), word80(b, at)) {
                continue;
            }
            check(
                found,
                &format!("st{i} mantissa"),
                word(a, at, 8),
                word(b, at, 8),
            );
            check(
                found,
                &format!("st{i} exponent"),
                word(a, at + 8, 2),
                word(b, at + 8, 2),
            );
        }
        for i in (0..16).filter(|_| !same) {
            for lane in 0..4 {
                let at = 160 + 16 * i + 4 * lane;
                let (native, engine) = (word(a, at, 4), word(b, at, 4));
                if approximate && near_single(native as u32, engine as u32) {
                    continue;
                }
                check(found, &format!("xmm{i} lane {lane}"), native, engine);
            }
        }
    }

    fn memory(&self, found: &mut Vec<String>) {
        // A store of ten bytes that faults at its end may have written its first eight; so may one of the
        // x87 state have written part.
        let torn = self.faulted()
            && matches!(
                self.ended().memory_size().size(),
                10 | 14 | 28 | 94 | 108 | 512
            );
        if self.native_memory == self.engine_memory || self.undefined_result() || torn {
            return;
        }
        let mut own = Vec::new();
        for ins in &self.case.instructions {
            let ranges = own_bytes(ins);
            if !ranges.is_empty()
                && let Some(at) = self.operand(ins)
            {
                own.extend(ranges.iter().map(|r| r.0 + at..r.1 + at));
            }
        }
        let differs = self
            .native_memory
            .iter()
            .zip(self.engine_memory)
            .enumerate()
            .find(|(i, (a, b))| a != b && !own.iter().any(|r| r.contains(i)));
        if let Some((at, _)) = differs {
            let end = (at + 16).min(self.native_memory.len());
            found.push(format!(
                "memory at {:#x}: host {:02x?}, engine {:02x?}",
                DATA + at as u64,
                &self.native_memory[at..end],
                &self.engine_memory[at..end]
            ));
        }
    }

    /// Offset in the data pages of an instruction's memory operand, by the registers before it (a
    /// single instruction) or after it (none that stores the x87 state changes a register).
    fn operand(&self, ins: &Instruction) -> Option<usize> {
        crate::generate::operand(ins, &self.native.registers)
    }
}

fn check(found: &mut Vec<String>, what: &str, native: u64, engine: u64) {
    if native != engine {
        found.push(format!("{what}: host {native:#x}, engine {engine:#x}"));
    }
}

fn word(fx: &[u8; 512], at: usize, n: usize) -> u64 {
    (0..n).rev().fold(0, |v, i| v << 8 | u64::from(fx[at + i]))
}

fn word80(fx: &[u8; 512], at: usize) -> u128 {
    u128::from(word(fx, at, 8)) | u128::from(word(fx, at + 8, 2)) << 64
}

/// Two results of a transcendental instruction: each promises to be within one unit in the last place
/// of the exact one (SDM vol. 1, 8.3.10), so they are within two of each other.
fn near_extended(a: u128, b: u128) -> bool {
    a >> 79 == b >> 79 && ordinal(a).abs_diff(ordinal(b)) <= 2
}

/// The place of an 80-bit number among those of its sign; denormals and normals in one row.
fn ordinal(v: u128) -> u128 {
    let (exponent, mantissa) = (v >> 64 & 0x7fff, v & u128::from(u64::MAX));
    (exponent.max(1) << 63) + mantissa
}

/// Two results of RCPPS or RSQRTPS: relative errors below 1.5 * 2^-12 each (SDM vol. 2), and infinities,
/// NaNs and zeros alike.
fn near_single(a: u32, b: u32) -> bool {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    // Results below the least normal number become zero, and whether one that is about as large does is
    // up to the processor.
    let least = |v: u32| v & 0x7fff_ffff <= 0x0080_0fff;
    if least(a) && least(b) && a >> 31 == b >> 31 {
        return true;
    }
    if !x.is_finite() || !y.is_finite() || x == 0.0 || y == 0.0 {
        return a == b;
    }
    let (x, y) = (f64::from(x), f64::from(y));
    (x - y).abs() <= x.abs() * 1.5 / 2048.0
}
