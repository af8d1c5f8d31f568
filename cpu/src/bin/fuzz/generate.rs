//! Random cases from a seed.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use lockstep_cpu::opcodes::{Support, support};

use crate::{CODE, DATA, DATA_PAGES, GS_BASE, Registers};

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// A number that is often at an edge.
    pub fn value(&mut self) -> u64 {
        let v = match self.below(8) {
            0 => [
                0,
                1,
                2,
                0x7f,
                0x80,
                0xff,
                0x7fff,
                0x8000,
                0xffff,
                0x7fff_ffff,
                0x8000_0000,
                0xffff_ffff,
                i64::MAX as u64,
                i64::MIN as u64,
                u64::MAX,
            ][self.below(15) as usize],
            1 => self.below(256),
            2 => 1 << self.below(64),
            3 => self.next() as i32 as i64 as u64,
            _ => self.next(),
        };
        if self.chance(4) {
            v.wrapping_sub(self.below(4))
        } else {
            v
        }
    }
}

/// One case.
pub struct Case {
    pub code: Vec<u8>,
    pub instructions: Vec<Instruction>,
    pub registers: Registers,
    pub memory: Vec<u8>,
}

/// The options that the CPU decodes with; the fuzzer must see the same instructions.
const OPTIONS: u32 =
    DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_LAHF_SAHF_64;

/// Whether host and engine must agree about an instruction of user code.
fn wanted(ins: &Instruction) -> bool {
    if support(ins.mnemonic()) != Support::Exact {
        return false;
    }
    // The thread's own FS, and segment registers, belong to the C library.
    let uses_fs = ins.segment_prefix() == Register::FS;
    let segments = (0..ins.op_count()).any(|i| {
        ins.op_kind(i) == OpKind::Register
            && (ins.op_register(i).is_segment_register()
                || ins.op_register(i).is_cr()
                || ins.op_register(i).is_dr()
                || ins.op_register(i).is_tr())
    });
    let far = (0..ins.op_count())
        .any(|i| matches!(ins.op_kind(i), OpKind::FarBranch16 | OpKind::FarBranch32));
    // The host has BMI and the like: what its prefixes mean there, it does here not.
    let prefixed_scan = matches!(ins.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr)
        && (ins.has_rep_prefix() || ins.has_repne_prefix());
    // Vendors differ about 16-bit branches in 64-bit code.
    let short_branch = matches!(
        ins.code(),
        Code::Jmp_rel16
            | Code::Call_rel16
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
            | Code::Retnw
            | Code::Retnw_imm16
            | Code::Jmp_rm16
            | Code::Call_rm16
            | Code::Pextrw_r32m16_xmm_imm8
            | Code::Pextrw_r64m16_xmm_imm8
    );
    // A branch back into the case might never end.
    let back = ins.op_count() == 1
        && matches!(ins.op_kind(0), OpKind::NearBranch64)
        && (CODE - 16..CODE + 32).contains(&ins.near_branch_target());
    !(back || uses_fs || segments || far || prefixed_scan || short_branch)
}

/// One random instruction at `ip`.
fn instruction(random: &mut Random, ip: u64) -> (Vec<u8>, Instruction) {
    loop {
        let mut bytes = Vec::new();
        if random.chance(6) {
            bytes.push(0x66);
        }
        if random.chance(20) {
            bytes.push(0x67);
        }
        if random.chance(20) {
            bytes.push(0x65);
        }
        if random.chance(30) {
            bytes.push(0xf0);
        }
        match random.below(8) {
            0 => bytes.push(0xf2),
            1 => bytes.push(0xf3),
            _ => {}
        }
        if random.chance(2) {
            bytes.push(0x40 | random.below(16) as u8);
        }
        match random.below(5) {
            0 | 1 => bytes.push(random.next() as u8),
            2 => bytes.push(0xd8 + random.below(8) as u8),
            _ => bytes.extend([0x0f, random.next() as u8]),
        }
        bytes.push(random.next() as u8);
        for _ in 0..12 {
            bytes.push(if random.chance(3) {
                random.below(8) as u8
            } else {
                random.next() as u8
            });
        }
        let ins = Decoder::with_ip(64, &bytes, ip, OPTIONS).decode();
        if !ins.is_invalid() && wanted(&ins) {
            bytes.truncate(ins.len());
            return (bytes, ins);
        }
    }
}

/// An address in or about the data pages.
fn place(random: &mut Random, aligned: bool) -> u64 {
    let end = DATA + DATA_PAGES * 4096;
    let at = match random.below(12) {
        // At page ends, also where nothing or nothing writable follows.
        0 => DATA + 4096 - random.below(20),
        1 => end - 4096 - random.below(20),
        2 if random.chance(3) => end - random.below(20),
        3 if random.chance(3) => end - random.below(4096),
        4 if random.chance(4) => end + random.below(4096),
        5 if random.chance(8) => random.next(),
        _ => DATA + random.below(2 * 4096 - 64),
    };
    if aligned || random.chance(2) {
        at & !15
    } else {
        at
    }
}

fn gpr_index(register: Register) -> Option<usize> {
    let full = register.full_register();
    (full as usize)
        .checked_sub(Register::RAX as usize)
        .filter(|&i| i < 16)
}

/// Points the memory operand of `ins` to `target`, by its base or index or displacement.
fn aim(random: &mut Random, ins: &Instruction, code: &mut [u8], registers: &mut Registers) {
    let implicit = (0..ins.op_count()).any(|i| {
        matches!(
            ins.op_kind(i),
            OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    });
    if implicit {
        registers.gpr[6] = place(random, false);
        registers.gpr[7] = place(random, false);
        if ins.has_rep_prefix() || ins.has_repne_prefix() {
            registers.gpr[1] = registers.gpr[1] & !0xffff_ffff | random.below(40);
            if ins.memory_segment() == Register::GS || random.chance(2) {
                registers.gpr[1] = random.below(40);
            }
        }
    }
    if ins.is_stack_instruction() || matches!(ins.mnemonic(), Mnemonic::Leave | Mnemonic::Enter) {
        registers.gpr[4] = place(random, false) & !7;
        registers.gpr[5] = place(random, false) & !7;
    }
    if !(0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory) {
        return;
    }
    if matches!(
        ins.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && ins.op_kind(1) == OpKind::Register
        && let Some(i) = gpr_index(ins.op_register(1))
    {
        registers.gpr[i] = random.below(0x2000).wrapping_sub(0x1000)
            & if random.chance(2) {
                u64::MAX
            } else {
                0xffff_ffff
            };
    }
    let aligned = ins.memory_size().size() == 16 && !random.chance(4);
    let mut target = place(random, aligned);
    if ins.memory_segment() == Register::GS {
        target = target.wrapping_sub(GS_BASE);
    }
    let (base, index) = (ins.memory_base(), ins.memory_index());
    let displacement = ins.memory_displacement64();
    if ins.is_ip_rel_memory_operand() || (base == Register::None && index == Register::None) {
        if ins.memory_displ_size() == 8 {
            return;
        }
        // The displacement is the last but the immediate: find it by value.
        let raw = if ins.is_ip_rel_memory_operand() {
            displacement.wrapping_sub(ins.next_ip()) as u32
        } else {
            displacement as u32
        };
        let wanted = if ins.is_ip_rel_memory_operand() {
            target.wrapping_sub(ins.next_ip()) as u32
        } else {
            target as u32
        };
        if let Some(at) = code.windows(4).position(|w| w == raw.to_le_bytes()) {
            code[at..at + 4].copy_from_slice(&wanted.to_le_bytes());
        }
        return;
    }
    let scale = u64::from(ins.memory_index_scale());
    match (gpr_index(base), gpr_index(index)) {
        (Some(b), Some(i)) if b != i => {
            if random.chance(2) {
                registers.gpr[i] = random.below(64);
            }
            let wide = if index.size() == 4 {
                registers.gpr[i] & 0xffff_ffff
            } else {
                registers.gpr[i]
            };
            registers.gpr[b] = target
                .wrapping_sub(displacement)
                .wrapping_sub(wide.wrapping_mul(scale));
        }
        (Some(b), None) => registers.gpr[b] = target.wrapping_sub(displacement),
        (Some(b), Some(_)) => registers.gpr[b] = target.wrapping_sub(displacement) / (1 + scale),
        (None, Some(i)) => registers.gpr[i] = target.wrapping_sub(displacement) / scale,
        (None, None) => {}
    }
}

/// A float of interest, as the bytes of an operand.
fn float(random: &mut Random, wide: bool) -> u64 {
    let fraction = if random.chance(2) {
        random.next()
    } else {
        random.value() << random.below(40)
    };
    if wide {
        let exponent = match random.below(8) {
            0 => 0,
            1 => 0x7ff,
            2 => random.below(0x800),
            _ => 0x3ff - 40 + random.below(80),
        };
        (random.next() & 1) << 63 | exponent << 52 | fraction & ((1 << 52) - 1)
    } else {
        let mut lane = || {
            let exponent = match random.below(8) {
                0 => 0,
                1 => 0xff,
                2 => random.below(0x100),
                _ => 0x7f - 30 + random.below(60),
            };
            (random.next() & 1) << 31 | exponent << 23 | random.next() & 0x7f_ffff
        };
        lane() | lane() << 32
    }
}

fn extended(random: &mut Random) -> [u8; 10] {
    let mut bytes = [0; 10];
    let exponent: u16 = match random.below(10) {
        0 => 0,
        1 => 0x7fff,
        2 => random.next() as u16 & 0x7fff,
        _ => (0x3fff - 70 + random.below(140)) as u16,
    };
    let mut mantissa = if random.chance(2) {
        random.next()
    } else {
        random.value()
    };
    if exponent != 0 && !random.chance(12) {
        mantissa |= 1 << 63;
    }
    if exponent == 0 && !random.chance(12) {
        mantissa &= !(1 << 63);
    }
    bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent | (random.next() as u16 & 0x8000)).to_le_bytes());
    bytes
}

fn registers(random: &mut Random) -> Registers {
    let mut r = Registers {
        gpr: std::array::from_fn(|_| random.value()),
        ..Registers::default()
    };
    // IF is always set in user code; status flags and DF at random.
    r.rflags = 0x202 | random.next() & 0x8d5 | if random.chance(8) { 0x400 } else { 0 };
    let control: u16 = (random.next() as u16 & 0xf00)
        | if random.chance(4) {
            random.next() as u16 & 0x3f
        } else {
            0x3f
        }
        | 0x40;
    let mut status: u16 = random.next() as u16 & 0x7f00;
    let flags = if random.chance(3) {
        random.next() as u16 & 0x7f
    } else {
        0
    };
    status |= if random.chance(4) {
        flags
    } else {
        flags & (control | 0x40)
    };
    if status & !control & 0x3f != 0 {
        status |= 0x8080;
    }
    r.fx[0..2].copy_from_slice(&control.to_le_bytes());
    r.fx[2..4].copy_from_slice(&status.to_le_bytes());
    r.fx[4] = if random.chance(3) {
        random.next() as u8
    } else {
        0xff
    };
    let mask = if random.chance(4) {
        random.next() as u32 & 0x1f80
    } else {
        0x1f80
    };
    let mxcsr = mask | random.next() as u32 & if random.chance(4) { 0xe07f } else { 0x603f };
    r.fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    r.fx[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
    for i in 0..8 {
        r.fx[32 + 16 * i..42 + 16 * i].copy_from_slice(&extended(random));
    }
    for i in 0..16 {
        for half in 0..2 {
            let v = match random.below(3) {
                0 => random.value(),
                1 => float(random, true),
                _ => float(random, false),
            };
            r.fx[160 + 16 * i + 8 * half..][..8].copy_from_slice(&v.to_le_bytes());
        }
    }
    r
}

/// Which of their flags are undefined depends on the count.
pub fn shifts(ins: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        ins.mnemonic(),
        Shl | Sal | Shr | Sar | Shld | Shrd | Rol | Ror | Rcl | Rcr
    )
}

/// Case number `index` of a seed.
pub fn case(seed: u64, index: u64) -> Case {
    let mut random = Random(seed ^ index.wrapping_mul(0xd134_2543_de82_ef95));
    random.next();
    let mut registers = registers(&mut random);
    let mut memory = vec![0; (DATA_PAGES * 4096) as usize];
    let style = random.below(4);
    for chunk in memory.chunks_exact_mut(8) {
        let v = match style {
            0 => float(&mut random, true),
            1 => float(&mut random, false),
            _ => random.next(),
        };
        chunk.copy_from_slice(&v.to_le_bytes());
    }
    let mut code = Vec::new();
    let mut instructions = Vec::new();
    let wanted = if random.chance(4) { 2 } else { 1 };
    while instructions.len() < wanted {
        let (mut bytes, ins) = instruction(&mut random, CODE + code.len() as u64);
        if instructions.is_empty()
            && wanted == 2
            && (ins.rflags_undefined() != 0
                || shifts(&ins)
                || ins.flow_control() != iced_x86::FlowControl::Next)
        {
            continue;
        }
        aim(&mut random, &ins, &mut bytes, &mut registers);
        let ip = CODE + code.len() as u64;
        instructions.push(Decoder::with_ip(64, &bytes, ip, OPTIONS).decode());
        code.extend(bytes);
    }
    for ins in &instructions {
        furnish(&mut random, ins, &mut registers, &mut memory);
    }
    Case {
        code,
        instructions,
        registers,
        memory,
    }
}

/// Gives operands that are rarely legal by chance a legal value.
fn furnish(random: &mut Random, ins: &Instruction, registers: &mut Registers, memory: &mut [u8]) {
    if random.chance(3) {
        return;
    }
    let landing = CODE + 64 + random.below(4000);
    let value = match ins.mnemonic() {
        Mnemonic::Ret | Mnemonic::Jmp | Mnemonic::Call => landing,
        Mnemonic::Ldmxcsr => random.next() & 0xffff,
        _ => return,
    };
    let at = if ins.mnemonic() == Mnemonic::Ret {
        registers.gpr[4]
    } else if ins.op0_kind() == OpKind::Register {
        if let Some(i) = gpr_index(ins.op0_register()) {
            registers.gpr[i] = value;
        }
        return;
    } else if ins.op0_kind() == OpKind::Memory {
        let register = |r: Register, _: usize, _: usize| match r {
            Register::GS => Some(GS_BASE),
            r if r.is_segment_register() => Some(0),
            r => {
                let v = registers.gpr[gpr_index(r)?];
                Some(if r.size() == 4 { v & 0xffff_ffff } else { v })
            }
        };
        match ins.virtual_address(0, 0, register) {
            Some(at) => at,
            None => return,
        }
    } else {
        return;
    };
    let offset = at.wrapping_sub(DATA) as usize;
    if let Some(bytes) = offset
        .checked_add(8)
        .and_then(|end| memory.get_mut(offset..end))
    {
        let n = if ins.mnemonic() == Mnemonic::Ldmxcsr {
            4
        } else {
            8
        };
        bytes[..n].copy_from_slice(&value.to_le_bytes()[..n]);
    }
}
