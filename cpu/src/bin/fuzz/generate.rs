//! Random cases from a seed: case `i` of seed `s` is always the same.

use iced_x86::{CpuidFeature, Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register};

use lockstep_cpu::opcodes::{Support, support};

use crate::opcodes::{OPTIONS, Opcodes};
use crate::random::Random;
use crate::{CODE, CODE_PAGES, DATA, DATA_PAGES, GS_BASE, Registers};

/// Contents of the data pages that a case starts from.
pub struct Pools([Vec<u8>; 4]);

impl Pools {
    /// Doubles, singles, 80-bit floats and anything, of a seed.
    pub fn new(seed: u64) -> Pools {
        let mut random = Random(!seed);
        let bytes = (DATA_PAGES * 4096) as usize;
        Pools(std::array::from_fn(|style| {
            let mut pool = Vec::with_capacity(bytes + 16);
            while pool.len() < bytes {
                match style {
                    0 => pool.extend(random.float(true).to_le_bytes()),
                    1 => pool.extend(random.float(false).to_le_bytes()),
                    2 => {
                        pool.extend(random.extended());
                        pool.extend([0; 6]);
                    }
                    _ => pool.extend(random.value().to_le_bytes()),
                }
            }
            pool.truncate(bytes);
            pool
        }))
    }

    /// The pool of a case.
    pub fn of(&self, case: &Case) -> &[u8] {
        &self.0[case.pool]
    }
}

/// One case.
pub struct Case {
    /// Address of the first instruction.
    pub start: u64,
    pub code: Vec<u8>,
    pub instructions: Vec<Instruction>,
    pub registers: Registers,
    /// Which of the [`Pools`] the data pages hold, but for the patches: offsets and bytes.
    pub pool: usize,
    pub patches: Vec<(usize, Vec<u8>)>,
}

/// An address in or about the data pages.
fn place(random: &mut Random, align: u64) -> u64 {
    let end = DATA + DATA_PAGES * 4096;
    let at = match random.below(12) {
        // At page ends, also where nothing or nothing writable follows.
        0 => DATA + 4096 - random.below(20),
        1 => end - 4096 - random.below(20),
        2 if random.chance(3) => end - random.below(20),
        3 if random.chance(3) => end - random.below(4096),
        4 if random.chance(4) => end + random.below(4096),
        5 if random.chance(4) => match random.below(4) {
            // About the ends of what is canonical.
            0 => (1 << 47) - random.below(16),
            1 => 0u64.wrapping_sub(random.below(16)),
            2 => (0xffff_8000 << 32) - random.below(16),
            _ => random.next(),
        },
        // Code, where no case starts, so that none can jump to itself.
        6 if random.chance(20) => CODE + 512 + random.below(2048),
        _ => DATA + random.below(2 * 4096 - 64),
    };
    if align > 1 || random.chance(2) {
        at & !(align.max(16) - 1)
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

/// An index or base register's value as it takes part in the address.
fn width(register: Register, value: u64) -> u64 {
    match register.size() {
        1 => value & 0xff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// Points the memory operand of `ins` to somewhere of interest, by its base or index or displacement.
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
        registers.gpr[6] = place(random, 1);
        registers.gpr[7] = place(random, 1);
        if ins.has_rep_prefix() || ins.has_repne_prefix() {
            let count = if random.chance(40) {
                random.below(5000)
            } else {
                random.below(40)
            };
            registers.gpr[1] = registers.gpr[1] & !0xffff_ffff | count;
            if ins.memory_segment() == Register::GS || random.chance(2) {
                registers.gpr[1] = count;
            }
        }
    }
    if ins.is_stack_instruction() || matches!(ins.mnemonic(), Mnemonic::Leave | Mnemonic::Enter) {
        let align = if random.chance(4) { 1 } else { 8 };
        registers.gpr[4] = place(random, 1) & !(align - 1);
        registers.gpr[5] = place(random, 1) & !(align - 1);
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
    let aligned = matches!(ins.memory_size().size(), 16 | 512) && !random.chance(6);
    let mut target = place(random, if aligned { 16 } else { 1 });
    if ins.memory_segment() == Register::GS {
        target = target.wrapping_sub(GS_BASE);
    }
    let (base, index) = (ins.memory_base(), ins.memory_index());
    let displacement = ins.memory_displacement64();
    if ins.is_ip_rel_memory_operand() || (base == Register::None && index == Register::None) {
        if ins.memory_displ_size() == 8 && !ins.is_ip_rel_memory_operand() {
            let offset = (1..=code.len().saturating_sub(8))
                .find(|&i| code[i..i + 8] == displacement.to_le_bytes());
            if let Some(at) = offset {
                code[at..at + 8].copy_from_slice(&target.to_le_bytes());
            }
            return;
        }
        // The displacement is the last but the immediate: find it by value.
        let relative = |address: u64| {
            if ins.is_ip_rel_memory_operand() {
                address.wrapping_sub(ins.next_ip()) as u32
            } else {
                address as u32
            }
        };
        let (raw, wanted) = (relative(displacement), relative(target));
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
            let wide = width(index, registers.gpr[i]);
            registers.gpr[b] = target
                .wrapping_sub(displacement)
                .wrapping_sub(wide.wrapping_mul(scale));
        }
        (Some(b), None) => registers.gpr[b] = target.wrapping_sub(displacement),
        (Some(b), Some(_)) => registers.gpr[b] = target.wrapping_sub(displacement) / (1 + scale),
        (None, Some(i)) => registers.gpr[i] = target.wrapping_sub(displacement) / scale,
        (None, None) => {}
    }
    // 32-bit addresses ignore what stands above.
    if base.size() == 4
        && random.chance(2)
        && let Some(b) = gpr_index(base)
    {
        registers.gpr[b] |= random.next() << 32;
    }
}

fn registers(random: &mut Random) -> Registers {
    let mut r = Registers {
        gpr: std::array::from_fn(|_| random.value()),
        ..Registers::default()
    };
    // IF is always set in user code; status flags and DF at random.
    r.rflags = 0x202 | random.next() & 0x8d5 | if random.chance(8) { 0x400 } else { 0 };
    // With AC, unaligned accesses of ring 3 are #AC.
    if random.chance(40) {
        r.rflags |= 0x4_0000;
    }
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
    status |= if random.chance(8) {
        flags
    } else {
        flags & (control | 0x40)
    };
    if status & !control & 0x3f != 0 {
        status |= 0x8080;
    }
    r.fx[0..2].copy_from_slice(&control.to_le_bytes());
    r.fx[2..4].copy_from_slice(&status.to_le_bytes());
    r.fx[4] = match random.below(6) {
        0 | 1 => random.next() as u8,
        // The upper half of the stack is in use: there is room to push.
        2 => 0xff << ((status >> 11) & 7),
        _ => 0xff,
    };
    let mask = if random.chance(4) {
        random.next() as u32 & 0x1f80
    } else {
        0x1f80
    };
    let mxcsr = mask | random.next() as u32 & if random.chance(3) { 0xe07f } else { 0x603f };
    r.fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    r.fx[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
    for i in 0..8 {
        r.fx[32 + 16 * i..42 + 16 * i].copy_from_slice(&random.extended());
    }
    for i in 0..16 {
        let style = random.below(4);
        for half in 0..2 {
            let v = match style {
                0 => random.value(),
                1 => random.float(true),
                2 => random.float(false),
                _ => random.next(),
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

/// Where a case's code starts: mostly at the page's start, else so that it straddles the next page, or
/// runs against the end of what is mapped.
fn start(random: &mut Random) -> u64 {
    match random.below(24) {
        0 => CODE + 4096 - 1 - random.below(12),
        1 => CODE + CODE_PAGES * 4096 - 1 - random.below(12),
        2 => CODE + random.below(64),
        _ => CODE,
    }
}

fn changes_stack(ins: &Instruction) -> bool {
    ins.cpuid_features()
        .iter()
        .any(|f| !matches!(f, CpuidFeature::INTEL8086 | CpuidFeature::X64))
}

/// Case number `index` of a seed.
pub fn case(opcodes: &Opcodes, seed: u64, index: u64) -> Case {
    let mut random = Random(seed ^ index.wrapping_mul(0xd134_2543_de82_ef95));
    random.next();
    let mut case = Case {
        start: start(&mut random),
        code: Vec::with_capacity(32),
        instructions: Vec::with_capacity(2),
        registers: registers(&mut random),
        pool: random.below(4) as usize,
        patches: Vec::new(),
    };
    let wanted = if random.chance(4) { 2 } else { 1 };
    let mut bytes = Vec::with_capacity(24);
    while case.instructions.len() < wanted {
        let ip = case.start + case.code.len() as u64;
        let ins = opcodes.instruction(&mut random, ip, &mut bytes);
        // A branch back into the case might never end.
        let back = ins.op_count() == 1
            && matches!(ins.op_kind(0), OpKind::NearBranch64)
            && (case.start - 16..case.start + 32).contains(&ins.near_branch_target());
        let leads = case.instructions.is_empty() && wanted == 2;
        // The comparison must know what these find in ST(0).
        let domain = matches!(ins.mnemonic(), Mnemonic::F2xm1 | Mnemonic::Fyl2xp1)
            && case.instructions.iter().any(changes_stack);
        // No other instruction may move the stack from under its operand.
        let popf = matches!(ins.mnemonic(), Mnemonic::Popf | Mnemonic::Popfq) && wanted == 2;
        if back
            || domain
            || popf
            || leads
                && (ins.rflags_undefined() != 0
                    || shifts(&ins)
                    || support(ins.mnemonic()) == Support::ByRule
                    || ins.flow_control() != FlowControl::Next)
        {
            continue;
        }
        aim(&mut random, &ins, &mut bytes, &mut case.registers);
        let ins = Decoder::with_ip(64, &bytes, ip, OPTIONS).decode();
        case.instructions.push(ins);
        case.code.extend(&bytes);
    }
    for i in 0..case.instructions.len() {
        let ins = case.instructions[i];
        furnish(&mut random, &ins, &mut case);
    }
    case
}

/// Offset in the data pages of the memory operand, where it lies there.
pub fn operand(ins: &Instruction, registers: &Registers) -> Option<usize> {
    let register = |r: Register, _: usize, _: usize| match r {
        Register::GS => Some(GS_BASE),
        r if r.is_segment_register() => Some(0),
        r => Some(width(r, registers.gpr[gpr_index(r)?])),
    };
    let operand = (0..ins.op_count()).find(|&i| ins.op_kind(i) == OpKind::Memory)?;
    let at = ins.virtual_address(operand, 0, register)?;
    inside(at)
}

fn inside(at: u64) -> Option<usize> {
    let offset = at.wrapping_sub(DATA);
    (offset < DATA_PAGES * 4096 - 8).then_some(offset as usize)
}

/// Gives operands that are rarely legal, or rarely lead on, by chance a value that does.
fn furnish(random: &mut Random, ins: &Instruction, case: &mut Case) {
    use Mnemonic::*;
    // POPF of a random value would single-step the handler.
    if matches!(ins.mnemonic(), Popf | Popfq) {
        let value = random.next() & 0x20_0cd5 | u64::from(random.chance(4)) << 18;
        let at = (random.below(DATA_PAGES * 4096 / 8 - 1) * 8) as usize;
        case.registers.gpr[4] = DATA + at as u64;
        case.patches.push((at, value.to_le_bytes().to_vec()));
        return;
    }
    if random.chance(4) {
        return;
    }
    let mut landing = CODE + random.below(4096);
    if (case.start - 16..case.start + 48).contains(&landing) {
        landing = CODE + 256;
    }
    let accumulator = case.registers.gpr[0];
    let (value, bytes) = match ins.mnemonic() {
        Ret | Jmp | Call => (landing, 8),
        Ldmxcsr => (random.next() & 0xffff, 4),
        Cmpxchg => (accumulator, ins.memory_size().size().max(1)),
        Cmpxchg8b => (accumulator & 0xffff_ffff | case.registers.gpr[2] << 32, 8),
        // A quotient that fits.
        Div => {
            case.registers.gpr[2] = random.below(4);
            return;
        }
        Idiv => {
            let negative = random.chance(2);
            case.registers.gpr[2] = if negative { u64::MAX } else { 0 };
            if random.chance(2) {
                case.registers.gpr[0] = random.next() as i32 as i64 as u64;
            }
            return;
        }
        // An operand inside the function's domain.
        F2xm1 | Fyl2xp1 => {
            let exponent = (0x3ffe - random.below(70)) as u16 | random.next() as u16 & 0x8000;
            case.registers.fx[40..42].copy_from_slice(&exponent.to_le_bytes());
            case.registers.fx[39] |= 0x80;
            return;
        }
        // MXCSR, and the reserved fields' room.
        Fxrstor | Fxrstor64 => {
            if let Some(offset) = operand(ins, &case.registers)
                && offset + 32 < (DATA_PAGES * 4096) as usize
            {
                let mxcsr = random.next() as u32 & 0xffff;
                case.patches
                    .push((offset + 24, mxcsr.to_le_bytes().to_vec()));
            }
            return;
        }
        _ => return,
    };
    let offset = if ins.mnemonic() == Ret {
        inside(case.registers.gpr[4])
    } else if ins.op0_kind() == OpKind::Register {
        if matches!(ins.mnemonic(), Jmp | Call)
            && let Some(i) = gpr_index(ins.op0_register())
        {
            case.registers.gpr[i] = value;
        }
        None
    } else {
        operand(ins, &case.registers)
    };
    if let Some(offset) = offset {
        case.patches
            .push((offset, value.to_le_bytes()[..bytes].to_vec()));
    }
}
