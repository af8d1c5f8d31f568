//! Every encoding that user code may use, by instruction, so that each gets its share of the cases.

use std::collections::BTreeMap;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use lockstep_cpu::opcodes::{Support, support};

use crate::random::Random;
use crate::{CODE, CODE_PAGES};

/// The options that the CPU decodes with; the fuzzer must see the same instructions.
pub const OPTIONS: u32 =
    DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_LAHF_SAHF_64;

/// The start of an instruction, up to its ModRM byte.
#[derive(Debug, Clone, Copy)]
struct Template {
    /// 0x66, 0xf2, 0xf3, 0x67 or 0 for none.
    prefix: u8,
    wide: bool,
    two_byte: bool,
    opcode: u8,
    modrm: u8,
}

/// One instruction in iced's sense (mnemonic with operand types) and its encodings.
struct Group {
    code: Code,
    /// Those with the fewest prefixes.
    plain: Vec<Template>,
    all: Vec<Template>,
}

/// See the module.
pub struct Opcodes {
    groups: Vec<Group>,
}

/// Instructions of the CPU model that user code may not use: #GP(0), whatever their operands.
fn privileged(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        In | Out
            | Insb
            | Insw
            | Insd
            | Outsb
            | Outsw
            | Outsd
            | Hlt
            | Cli
            | Sti
            | Rdmsr
            | Wrmsr
            | Lgdt
            | Lidt
            | Lldt
            | Ltr
            | Lmsw
            | Clts
            | Invlpg
            | Invd
            | Wbinvd
            | Swapgs
            | Int
    )
}

/// One-byte opcodes that 64-bit mode does not have, and the instruction that is there to be undefined.
const UNDEFINED: [&[u8]; 22] = [
    &[0x06],
    &[0x07],
    &[0x0e],
    &[0x16],
    &[0x17],
    &[0x1e],
    &[0x1f],
    &[0x27],
    &[0x2f],
    &[0x37],
    &[0x3f],
    &[0x60],
    &[0x61],
    &[0x82],
    &[0x9a],
    &[0xce],
    &[0xd4],
    &[0xd5],
    &[0xd6],
    &[0xea],
    &[0x0f, 0x0b],
    &[0x0f, 0x04],
];

/// Whether host and engine must agree about an instruction, run in ring 3.
pub fn wanted(ins: &Instruction) -> bool {
    let registers = || {
        (0..ins.op_count())
            .filter(|&i| ins.op_kind(i) == OpKind::Register)
            .map(|i| ins.op_register(i))
    };
    let control = registers().any(|r| r.is_cr() || r.is_dr());
    let exact = matches!(support(ins.mnemonic()), Support::Exact | Support::ByRule);
    if control {
        // MOV to and from CR8..15 and the like differ in what is #UD first.
        return ins.mnemonic() == Mnemonic::Mov
            && registers()
                .all(|r| !r.is_cr() || matches!(r, Register::CR0 | Register::CR3 | Register::CR4))
            && registers().all(|r| !r.is_dr() || (r as u32) < Register::DR4 as u32);
    }
    if !exact && !privileged(ins.mnemonic()) {
        return false;
    }
    // 0x80 is Linux's own; 3 and 4 are open to user code.
    if ins.mnemonic() == Mnemonic::Int && matches!(ins.immediate8(), 0x80 | 3 | 4) {
        return false;
    }
    // The thread's own FS belongs to the C library; a selector loaded is the kernel's business.
    let uses_fs = ins.segment_prefix() == Register::FS;
    let loads_segment = ins.op_count() > 0
        && ins.op_kind(0) == OpKind::Register
        && ins.op_register(0).is_segment_register()
        && ins.mnemonic() != Mnemonic::Push;
    let far = (0..ins.op_count())
        .any(|i| matches!(ins.op_kind(i), OpKind::FarBranch16 | OpKind::FarBranch32));
    // The host has BMI and the like: what its prefixes mean there, it does here not.
    let prefixed_scan = matches!(ins.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr)
        && (ins.has_rep_prefix() || ins.has_repne_prefix());
    // Vendors differ about 16-bit branches in 64-bit code; PEXTRW to memory is SSE4.1's.
    let elsewhere = matches!(
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
    !(uses_fs || loads_segment || far || prefixed_scan || elsewhere)
}

impl Template {
    fn decode(self, tail: u8) -> Instruction {
        let mut bytes = [0; 16];
        let mut n = 0;
        let mut push = |byte: u8| {
            bytes[n] = byte;
            n += 1;
        };
        if self.prefix != 0 {
            push(self.prefix);
        }
        if self.wide {
            push(0x48);
        }
        if self.two_byte {
            push(0x0f);
        }
        push(self.opcode);
        push(self.modrm);
        bytes[n..].fill(tail);
        Decoder::new(64, &bytes, OPTIONS).decode()
    }
}

impl Opcodes {
    /// Decodes every combination of mandatory prefix, REX.W, opcode and ModRM, and sorts the outcome.
    pub fn enumerate() -> Opcodes {
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        let mut enter = |template: Template| {
            let ins = template.decode(0x11);
            if ins.is_invalid() || !wanted(&ins) {
                return false;
            }
            let group = groups.entry(ins.code() as usize).or_insert_with(|| Group {
                code: ins.code(),
                plain: Vec::new(),
                all: Vec::new(),
            });
            group.all.push(template);
            true
        };
        for prefix in [0, 0x66, 0xf2, 0xf3, 0x67] {
            for wide in [false, true] {
                for two_byte in [false, true] {
                    for opcode in 0..=0xff_u8 {
                        let is_prefix = matches!(
                            opcode,
                            0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x0f
                        );
                        if !two_byte && is_prefix {
                            continue;
                        }
                        for modrm in (0..64).step_by(8).chain(0xc0..=0xff) {
                            enter(Template {
                                prefix,
                                wide,
                                two_byte,
                                opcode,
                                modrm,
                            });
                        }
                    }
                }
            }
        }
        for group in groups.values_mut() {
            let prefixes = |t: &Template| u8::from(t.prefix != 0) + u8::from(t.wide);
            let fewest = group.all.iter().map(prefixes).min().unwrap_or(0);
            group.plain = group
                .all
                .iter()
                .copied()
                .filter(|t| prefixes(t) == fewest)
                .collect();
        }
        Opcodes {
            groups: groups.into_values().collect(),
        }
    }

    /// How many instructions there are to choose from.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Random bytes of one instruction at `ip`; each instruction is as likely as any other.
    pub fn instruction(&self, random: &mut Random, ip: u64, bytes: &mut Vec<u8>) -> Instruction {
        bytes.clear();
        // How many bytes of an undefined instruction are fetched first is up to the processor.
        let room = ip + 15 < CODE + CODE_PAGES * 4096;
        if room && random.chance(200) {
            bytes.extend(random.pick(&UNDEFINED));
            bytes.extend([random.next() as u8; 4]);
            let ins = Decoder::with_ip(64, bytes, ip, OPTIONS).decode();
            return ins;
        }
        let group = &self.groups[random.below(self.groups.len() as u64) as usize];
        for attempt in 0.. {
            let any = random.chance(4);
            let template = random.pick(if any { &group.all } else { &group.plain });
            encode(random, template, attempt < 4, bytes);
            let ins = Decoder::with_ip(64, bytes, ip, OPTIONS).decode();
            if (ins.code() == group.code || attempt > 16) && !ins.is_invalid() && wanted(&ins) {
                bytes.truncate(ins.len());
                return lock(random, bytes, ip, ins);
            }
        }
        unreachable!("templates decode to what they were entered for")
    }
}

/// Now and then a LOCK prefix: where it is not allowed the instruction is undefined.
fn lock(random: &mut Random, bytes: &mut Vec<u8>, ip: u64, ins: Instruction) -> Instruction {
    use Mnemonic::*;
    let lockable = matches!(
        ins.mnemonic(),
        Add | Adc
            | And
            | Btc
            | Btr
            | Bts
            | Cmpxchg
            | Cmpxchg8b
            | Dec
            | Inc
            | Neg
            | Not
            | Or
            | Sbb
            | Sub
            | Xadd
            | Xchg
            | Xor
    );
    let room = ip + 16 < CODE + CODE_PAGES * 4096;
    if !room || !random.chance(if lockable { 6 } else { 150 }) || bytes.len() > 14 {
        return ins;
    }
    bytes.insert(0, 0xf0);
    let locked = Decoder::with_ip(64, bytes, ip, OPTIONS).decode();
    // AMD reads LOCK MOV CR0 as MOV CR8.
    if ins.mnemonic() == Mov && locked.code() != ins.code() && !locked.is_invalid() {
        bytes.remove(0);
        return ins;
    }
    locked
}

fn encode(random: &mut Random, template: Template, free: bool, bytes: &mut Vec<u8>) {
    bytes.clear();
    if random.chance(20) {
        bytes.push(0x67);
    }
    match random.below(40) {
        0 | 1 => bytes.push(0x65),
        2 => bytes.push(random.pick(&[0x26, 0x2e, 0x36, 0x3e])),
        _ => {}
    }
    if template.prefix != 0 {
        bytes.push(template.prefix);
    }
    if template.wide || random.chance(2) {
        bytes.push(0x40 | u8::from(template.wide) << 3 | random.below(8) as u8);
    }
    if template.two_byte {
        bytes.push(0x0f);
    }
    bytes.push(template.opcode);
    let mut modrm = template.modrm;
    if modrm < 0xc0 {
        // Memory: any addressing form.
        modrm = modrm & 0x38 | (random.below(3) as u8) << 6 | random.below(8) as u8;
    } else if free {
        modrm = modrm & 0xf8 | random.below(8) as u8;
    }
    if free {
        modrm = modrm & 0xc7 | (random.below(8) as u8) << 3;
    }
    bytes.push(modrm);
    for _ in 0..12 {
        bytes.push(if random.chance(3) {
            random.below(8) as u8
        } else {
            random.next() as u8
        });
    }
}
