//! Handlers of general-purpose instructions.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Builder;
use super::operands::{general, memory_bytes};
use crate::exec::alu::{self, Shape};
use crate::exec::{
    ANY, BASE, BASED, FACTOR, FULL, bits, by_condition, by_form, by_size, by_size_form, data,
    muldiv, shift, string,
};
use crate::op::{FS, GS, Handler, Op, ZERO};

type Outcome<'a> = Result<Builder<'a>, Builder<'a>>;

/// The form of an op's memory operand, from what the operand became.
fn form_of(op: &Op) -> u8 {
    if op.scale & !FACTOR != 0 {
        ANY
    } else if op.seg == FS || op.seg == GS {
        BASED
    } else if op.index != ZERO {
        FULL
    } else {
        BASE
    }
}

/// Shape and width of a two-operand arithmetic instruction of 64-bit code that has become an op.
pub(super) fn shape(ins: &Instruction, op: &Op) -> Option<(Shape, usize)> {
    let register = |i: u32| general(ins.op_register(i)).map(|(_, size)| size);
    Some(match (ins.op_kind(0), ins.op_kind(1)) {
        (OpKind::Register, OpKind::Register) => (Shape::RegReg, register(0)?),
        (OpKind::Register, OpKind::Memory) => (Shape::RegMem(form_of(op)), register(0)?),
        (OpKind::Memory, OpKind::Register) => (Shape::MemReg(form_of(op)), register(1)?),
        (OpKind::Memory, _) => (Shape::MemImm(form_of(op)), memory_bytes(ins.memory_size())),
        (OpKind::Register, _) => (Shape::RegImm, register(0)?),
        _ => return None,
    })
}

pub(super) fn build(b: Builder<'_>) -> Outcome<'_> {
    use Mnemonic::*;
    Ok(match b.ins.mnemonic() {
        Add => alu_op(b, alu::handler::<alu::Add>),
        Or => alu_op(b, alu::handler::<alu::Or>),
        Adc => alu_op(b, alu::handler::<alu::Adc>),
        Sbb => alu_op(b, alu::handler::<alu::Sbb>),
        And => alu_op(b, alu::handler::<alu::And>),
        Sub => alu_op(b, alu::handler::<alu::Sub>),
        Xor => alu_op(b, alu::handler::<alu::Xor>),
        Cmp => alu_op(b, alu::handler::<alu::Cmp>),
        Test => alu_op(b, alu::handler::<alu::Test>),
        Inc => unary(b, alu::unary_handler::<alu::Inc>),
        Dec => unary(b, alu::unary_handler::<alu::Dec>),
        Neg => unary(b, alu::unary_handler::<alu::Neg>),
        Not => unary(b, alu::unary_handler::<alu::Not>),
        Mov => return mov(b),
        Movzx => extend(b, false),
        Movsx | Movsxd => extend(b, true),
        Lea => lea(b),
        Xchg => exchange(
            b,
            |s| by_size!(s, xchg_rr),
            |s, e| by_size_form!(s, e, xchg_mr),
        ),
        Xadd => exchange(
            b,
            |s| by_size!(s, xadd_rr),
            |s, e| by_size_form!(s, e, xadd_mr),
        ),
        Cmpxchg => exchange(
            b,
            |s| by_size!(s, cmpxchg_rr),
            |s, e| by_size_form!(s, e, cmpxchg_mr),
        ),
        Cmpxchg8b => {
            let mut b = b;
            let e = b.memory();
            b.with(by_form!(e, cmpxchg8b))
        }
        Bswap => {
            let mut b = b;
            let size = b.width(0);
            b.op.dst = b.register(0).map_or(0, |r| r.0);
            b.with(by_size!(size, bswap))
        }
        Cbw => b.with(data::extend::<u16, u8>),
        Cwde => b.with(data::extend::<u32, u16>),
        Cdqe => b.with(data::extend::<u64, u32>),
        Cwd => b.with(data::sign::<u16>),
        Cdq => b.with(data::sign::<u32>),
        Cqo => b.with(data::sign::<u64>),
        Xlatb => {
            // iced gives AL as the index; its handler knows.
            let mut b = b;
            b.any_memory();
            b.op.index = ZERO;
            b.with(data::xlat)
        }
        Shl | Sal => shifts(b, shift::handler::<shift::Shl>),
        Shr => shifts(b, shift::handler::<shift::Shr>),
        Sar => shifts(b, shift::handler::<shift::Sar>),
        Rol => shifts(b, shift::handler::<shift::Rol>),
        Ror => shifts(b, shift::handler::<shift::Ror>),
        Rcl => shifts(b, shift::handler::<shift::Rcl>),
        Rcr => shifts(b, shift::handler::<shift::Rcr>),
        Shld => double_shift::<true>(b),
        Shrd => double_shift::<false>(b),
        Mul => one_source(b, |s, m| {
            if m {
                by_size!(s, mul; true)
            } else {
                by_size!(s, mul; false)
            }
        }),
        Div => one_source(b, |s, m| {
            if m {
                by_size!(s, div; true)
            } else {
                by_size!(s, div; false)
            }
        }),
        Idiv => one_source(b, |s, m| {
            if m {
                by_size!(s, idiv; true)
            } else {
                by_size!(s, idiv; false)
            }
        }),
        Imul => imul(b),
        Bt => bit_op::<{ bits::TEST }>(b),
        Bts => bit_op::<{ bits::SET }>(b),
        Btr => bit_op::<{ bits::RESET }>(b),
        Btc => bit_op::<{ bits::COMPLEMENT }>(b),
        Bsf => scan::<false>(b),
        Bsr => scan::<true>(b),
        Clc => b.with(bits::clc),
        Stc => b.with(bits::stc),
        Cmc => b.with(bits::cmc),
        Cld => b.with(bits::cld),
        Std => b.with(bits::std),
        Lahf => b.with(bits::lahf),
        Sahf => b.with(bits::sahf),
        Movsb | Movsw | Movsd | Movsq | Stosb | Stosw | Stosd | Stosq | Lodsb | Lodsw | Lodsd
        | Lodsq | Scasb | Scasw | Scasd | Scasq | Cmpsb | Cmpsw | Cmpsd | Cmpsq | Insb | Insw
        | Insd | Outsb | Outsw | Outsd => return strings(b),
        Nop | Pause | Prefetch | Prefetchw | Prefetchwt1 | Prefetchnta | Prefetcht0
        | Prefetcht1 | Prefetcht2 | Lfence | Mfence | Sfence | Endbr32 | Endbr64 | Reservednop => {
            b.nothing()
        }
        _ => return conditional(b),
    })
}

use data::{
    bswap, cmov_rm, cmov_rr, cmpxchg_mr, cmpxchg_rr, cmpxchg8b, lea as lea_handler, mov_mi,
    mov_moffs, mov_mr, mov_ri, mov_rm, mov_rr, movsx_rm, movsx_rr, movzx_rm, movzx_rr, setcc_m,
    setcc_r, xadd_mr, xadd_rr, xchg_mr, xchg_rr,
};
use muldiv::{div, idiv, imul as imul_wide, imul_rm, imul_rmi, imul_rr, imul_rri, mul};

fn alu_op(mut b: Builder<'_>, handler: fn(Shape, usize) -> Handler) -> Builder<'_> {
    let size;
    let shape;
    if b.is_memory(0) {
        let e = b.memory();
        if let Some((src, width)) = b.register(1) {
            (b.op.src, size, shape) = (src, width, Shape::MemReg(e));
        } else {
            size = memory_bytes(b.ins.memory_size());
            b.op.imm = b.ins.immediate(1);
            shape = Shape::MemImm(e);
        }
    } else {
        let (dst, width) = b.register(0).unwrap_or((0, 8));
        (b.op.dst, size) = (dst, width);
        shape = if b.is_memory(1) {
            Shape::RegMem(b.memory())
        } else if let Some((src, _)) = b.register(1) {
            b.op.src = src;
            Shape::RegReg
        } else {
            b.op.imm = b.ins.immediate(1);
            Shape::RegImm
        };
    }
    b.with(handler(shape, size))
}

fn unary(mut b: Builder<'_>, handler: fn(Option<u8>, usize) -> Handler) -> Builder<'_> {
    let size = b.width(0);
    let form = destination(&mut b);
    b.with(handler(form, size))
}

/// Fills in operand 0, a register (none) or memory (its form).
fn destination(b: &mut Builder<'_>) -> Option<u8> {
    match b.register(0) {
        Some((dst, _)) => {
            b.op.dst = dst;
            None
        }
        None => Some(b.memory()),
    }
}

fn mov(mut b: Builder<'_>) -> Outcome<'_> {
    let first = b.register(0);
    let second = b.register(1);
    if let (Some((dst, size)), Some((src, _))) = (first, second) {
        (b.op.dst, b.op.src) = (dst, src);
        return Ok(b.with(by_size!(size, mov_rr)));
    }
    // A 64-bit absolute address has no base, no index and eight bytes of displacement.
    let absolute = b.ins.op_kind(0) == OpKind::Memory || b.ins.op_kind(1) == OpKind::Memory;
    if absolute
        && b.long()
        && b.ins.memory_displ_size() == 8
        && b.ins.memory_base() == iced_x86::Register::None
        && b.ins.memory_index() == iced_x86::Register::None
        && matches!(b.ins.len(), 9..)
        && moffs(b.ins)
    {
        b.op.imm = b.ins.memory_displacement64();
        b.op.seg = b.effective_segment(iced_x86::Register::None);
        return Ok(match (first, second) {
            (Some((_, size)), _) => b.with(by_size!(size, mov_moffs; false)),
            (_, Some((_, size))) => b.with(by_size!(size, mov_moffs; true)),
            _ => return Err(b),
        });
    }
    if let Some((dst, size)) = first {
        b.op.dst = dst;
        if b.is_memory(1) {
            let e = b.memory();
            return Ok(b.with(by_size_form!(size, e, mov_rm)));
        }
        if b.is_immediate(1) {
            b.op.imm = b.ins.immediate(1);
            return Ok(b.with(by_size!(size, mov_ri)));
        }
        return Err(b);
    }
    if b.is_memory(0) {
        if let Some((src, size)) = second {
            b.op.src = src;
            let e = b.memory();
            return Ok(b.with(by_size_form!(size, e, mov_mr)));
        }
        if b.is_immediate(1) {
            let size = memory_bytes(b.ins.memory_size());
            b.op.imm = b.ins.immediate(1);
            let e = b.memory();
            return Ok(b.with(by_size_form!(size, e, mov_mi)));
        }
    }
    Err(b)
}

/// MOV between the accumulator and an absolute address.
fn moffs(ins: &Instruction) -> bool {
    use iced_x86::Code::*;
    matches!(
        ins.code(),
        Mov_AL_moffs8
            | Mov_AX_moffs16
            | Mov_EAX_moffs32
            | Mov_RAX_moffs64
            | Mov_moffs8_AL
            | Mov_moffs16_AX
            | Mov_moffs32_EAX
            | Mov_moffs64_RAX
    )
}

fn extend(mut b: Builder<'_>, signed: bool) -> Builder<'_> {
    let (dst, to) = b.register(0).unwrap_or((0, 8));
    b.op.dst = dst;
    let from = b.width(1);
    let memory = b.is_memory(1);
    let e = if memory { b.memory() } else { BASE };
    if let Some((src, _)) = b.register(1) {
        b.op.src = src;
    }
    macro_rules! pick {
        ($d:ty, $s:ty) => {
            match (memory, signed) {
                (false, false) => movzx_rr::<$d, $s> as Handler,
                (false, true) => movsx_rr::<$d, $s>,
                (true, false) => by_form!(e, movzx_rm, $d, $s),
                (true, true) => by_form!(e, movsx_rm, $d, $s),
            }
        };
    }
    let handler = match (to, from) {
        (2, 1) => pick!(u16, u8),
        (2, 2) => pick!(u16, u16),
        (4, 1) => pick!(u32, u8),
        (4, 2) => pick!(u32, u16),
        (4, _) => pick!(u32, u32),
        (_, 1) => pick!(u64, u8),
        (_, 2) => pick!(u64, u16),
        (2, _) => pick!(u16, u16),
        (_, _) => pick!(u64, u32),
    };
    b.with(handler)
}

fn lea(mut b: Builder<'_>) -> Builder<'_> {
    let (dst, size) = b.register(0).unwrap_or((0, 8));
    b.op.dst = dst;
    let e = b.lea_memory();
    b.with(by_size_form!(size, e, lea_handler))
}

fn exchange(
    mut b: Builder<'_>,
    rr: fn(usize) -> Handler,
    mr: fn(usize, u8) -> Handler,
) -> Builder<'_> {
    // iced puts the memory operand of XCHG first or second.
    if b.is_memory(0) || b.is_memory(1) {
        let r = if b.is_memory(0) { 1 } else { 0 };
        let (src, size) = b.register(r).unwrap_or((0, 8));
        b.op.src = src;
        let e = b.memory();
        return b.with(mr(size, e));
    }
    let (dst, size) = b.register(0).unwrap_or((0, 8));
    b.op.dst = dst;
    b.op.src = b.register(1).map_or(0, |r| r.0);
    b.with(rr(size))
}

fn shifts(mut b: Builder<'_>, handler: fn(Option<u8>, usize, bool) -> Handler) -> Builder<'_> {
    let size = b.width(0);
    let form = destination(&mut b);
    let cl = b.is_register(1);
    if cl {
        b.op.aux = 1;
    } else {
        b.op.imm = b.ins.immediate(1);
        let mask = if size == 8 { 63 } else { 31 };
        if b.op.imm & mask == 0 && form.is_none() {
            // No flag changes, but a 32-bit register is still written.
            b.op.src = b.op.dst;
            return b.with(by_size!(size, mov_rr));
        }
    }
    b.with(handler(form, size, cl))
}

fn double_shift<const LEFT: bool>(mut b: Builder<'_>) -> Builder<'_> {
    use shift::{double_m, double_r};
    let (src, size) = b.register(1).unwrap_or((0, 8));
    b.op.src = src;
    if b.is_register(2) {
        b.op.aux = 1;
    } else {
        b.op.imm = b.ins.immediate(2);
    }
    macro_rules! pick {
        ($h:ident) => {
            match size {
                2 => $h::<u16, LEFT> as Handler,
                4 => $h::<u32, LEFT>,
                _ => $h::<u64, LEFT>,
            }
        };
    }
    if let Some((dst, _)) = b.register(0) {
        b.op.dst = dst;
        return b.with(pick!(double_r));
    }
    b.any_memory();
    b.with(pick!(double_m))
}

fn one_source(mut b: Builder<'_>, handler: fn(usize, bool) -> Handler) -> Builder<'_> {
    let size = b.width(0);
    let memory = b.is_memory(0);
    if memory {
        b.any_memory();
    } else {
        b.op.src = b.register(0).map_or(0, |r| r.0);
    }
    b.with(handler(size, memory))
}

fn imul(mut b: Builder<'_>) -> Builder<'_> {
    if b.ins.op_count() == 1 {
        return one_source(b, |s, m| {
            if m {
                by_size!(s, imul_wide; true)
            } else {
                by_size!(s, imul_wide; false)
            }
        });
    }
    let (dst, size) = b.register(0).unwrap_or((0, 8));
    b.op.dst = dst;
    let three = b.ins.op_count() == 3;
    if three {
        b.op.imm = b.ins.immediate(2);
    }
    if b.is_memory(1) {
        let e = b.memory();
        return if three {
            b.with(by_size_form!(size, e, imul_rmi))
        } else {
            b.with(by_size_form!(size, e, imul_rm))
        };
    }
    b.op.src = b.register(1).map_or(0, |r| r.0);
    if three {
        b.with(by_size!(size, imul_rri))
    } else {
        b.with(by_size!(size, imul_rr))
    }
}

fn bit_op<const K: u8>(mut b: Builder<'_>) -> Builder<'_> {
    let size = b.width(0);
    if let Some((src, _)) = b.register(1) {
        b.op.src = src;
    } else {
        b.op.imm = b.ins.immediate(1);
        b.op.aux = 1;
    }
    macro_rules! pick {
        ($h:path) => {{
            use $h as h;
            match size {
                2 => h::<u16, K> as Handler,
                4 => h::<u32, K>,
                _ => h::<u64, K>,
            }
        }};
    }
    if let Some((dst, _)) = b.register(0) {
        b.op.dst = dst;
        return b.with(pick!(bits::r));
    }
    b.any_memory();
    b.with(pick!(bits::m))
}

fn scan<const LAST: bool>(mut b: Builder<'_>) -> Builder<'_> {
    let (dst, size) = b.register(0).unwrap_or((0, 8));
    b.op.dst = dst;
    if let Some((src, _)) = b.register(1) {
        b.op.src = src;
    } else {
        b.op.aux = 1;
        b.any_memory();
    }
    b.with(match size {
        2 => bits::scan::<u16, LAST> as Handler,
        4 => bits::scan::<u32, LAST>,
        _ => bits::scan::<u64, LAST>,
    })
}

/// CMOVcc and SETcc.
fn conditional(mut b: Builder<'_>) -> Outcome<'_> {
    let Some(cc) = super::fuse::condition(b.ins) else {
        return Err(b);
    };
    if is_setcc(b.ins.mnemonic()) {
        b.op.aux = cc.into();
        if let Some((dst, _)) = b.register(0) {
            b.op.dst = dst;
            return Ok(b.with(by_condition!(cc, setcc_r)));
        }
        let e = b.memory();
        return Ok(b.with(by_form!(e, setcc_m)));
    }
    if !is_cmovcc(b.ins.mnemonic()) {
        return Err(b);
    }
    let (dst, size) = b.register(0).unwrap_or((0, 8));
    b.op.dst = dst;
    b.op.aux = cc.into();
    if let Some((src, _)) = b.register(1) {
        b.op.src = src;
        return Ok(b.with(match size {
            2 => by_condition!(cc, cmov_rr, u16),
            4 => by_condition!(cc, cmov_rr, u32),
            _ => by_condition!(cc, cmov_rr, u64),
        }));
    }
    let e = b.memory();
    Ok(b.with(by_size_form!(size, e, cmov_rm)))
}

fn is_setcc(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Seto | Setno
            | Setb
            | Setae
            | Sete
            | Setne
            | Setbe
            | Seta
            | Sets
            | Setns
            | Setp
            | Setnp
            | Setl
            | Setge
            | Setle
            | Setg
    )
}

fn is_cmovcc(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Cmovo
            | Cmovno
            | Cmovb
            | Cmovae
            | Cmove
            | Cmovne
            | Cmovbe
            | Cmova
            | Cmovs
            | Cmovns
            | Cmovp
            | Cmovnp
            | Cmovl
            | Cmovge
            | Cmovle
            | Cmovg
    )
}

fn strings(mut b: Builder<'_>) -> Outcome<'_> {
    use Mnemonic::*;
    use string::{cmps, ins, lods, movs, outs, scas, stos};
    let m = b.ins.mnemonic();
    // MOVSD and CMPSD are SSE2 instructions too: those have explicit operands.
    let kinds = [b.ins.op_kind(0), b.ins.op_kind(1)];
    let width = kinds.iter().find_map(|k| match k {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    });
    let Some(width) = width else { return Err(b) };
    b.op.aux = width;
    if b.ins.has_repne_prefix() {
        b.op.aux |= string::REPNE;
    } else if b.ins.has_rep_prefix() {
        b.op.aux |= string::REP;
    }
    b.op.seg = b.effective_segment(iced_x86::Register::None);
    Ok(match m {
        Movsb => b.ending(movs::<u8>),
        Movsw => b.ending(movs::<u16>),
        Movsd => b.ending(movs::<u32>),
        Movsq => b.ending(movs::<u64>),
        Stosb => b.ending(stos::<u8>),
        Stosw => b.ending(stos::<u16>),
        Stosd => b.ending(stos::<u32>),
        Stosq => b.ending(stos::<u64>),
        Lodsb => b.ending(lods::<u8>),
        Lodsw => b.ending(lods::<u16>),
        Lodsd => b.ending(lods::<u32>),
        Lodsq => b.ending(lods::<u64>),
        Scasb => b.ending(scas::<u8>),
        Scasw => b.ending(scas::<u16>),
        Scasd => b.ending(scas::<u32>),
        Scasq => b.ending(scas::<u64>),
        Cmpsb => b.ending(cmps::<u8>),
        Cmpsw => b.ending(cmps::<u16>),
        Cmpsd => b.ending(cmps::<u32>),
        Cmpsq => b.ending(cmps::<u64>),
        Insb => b.ending(ins::<u8>),
        Insw => b.ending(ins::<u16>),
        Insd => b.ending(ins::<u32>),
        Outsb => b.ending(outs::<u8>),
        Outsw => b.ending(outs::<u16>),
        _ => b.ending(outs::<u32>),
    })
}
