//! Handlers of MMX, SSE and SSE2.

use iced_x86::{Mnemonic, OpKind, Register};

use super::Builder;
use super::operands::general;
use crate::exec::by_form;
use crate::exec::float::{self, arithmetic};
use crate::exec::packed::{self, IN_MEMORY, Packed};
use crate::exec::sse::{self, load, store};
use crate::op::Handler;

type Outcome<'a> = Result<Builder<'a>, Builder<'a>>;

/// Number of an XMM register below 16.
fn xmm(register: Register) -> Option<u8> {
    (register as u32)
        .checked_sub(Register::XMM0 as u32)
        .filter(|&i| i < 16)
        .map(|i| i as u8)
}

fn mm(register: Register) -> Option<u8> {
    (register as u32)
        .checked_sub(Register::MM0 as u32)
        .filter(|&i| i < 8)
        .map(|i| i as u8)
}

impl Builder<'_> {
    fn xmm(&self, i: u32) -> Option<u8> {
        if self.is_register(i) {
            xmm(self.ins.op_register(i))
        } else {
            None
        }
    }

    fn mm(&self, i: u32) -> Option<u8> {
        if self.is_register(i) {
            mm(self.ins.op_register(i))
        } else {
            None
        }
    }

    /// Fills in destination and source of any kind, memory at run time.
    fn vector_operands(mut self) -> Self {
        let number = |b: &Self, i: u32| {
            if !b.is_register(i) {
                return None;
            }
            let r = b.ins.op_register(i);
            xmm(r)
                .or_else(|| mm(r))
                .or_else(|| general(r).map(|(offset, _)| offset))
        };
        if let Some(dst) = number(&self, 0) {
            self.op.dst = dst;
        }
        if let Some(src) = number(&self, 1) {
            self.op.src = src;
        }
        if self.is_memory(0) || self.is_memory(1) {
            self.any_memory();
            self.op.aux |= IN_MEMORY;
        }
        let last = self.ins.op_count().saturating_sub(1);
        if self.is_immediate(last) {
            self.op.imm = self.ins.immediate(last);
        }
        self
    }
}

/// XMM or MMX form of a packed operation, or its form with an immediate count.
fn packed_op<P: Packed>(b: Builder<'_>) -> Builder<'_> {
    let b = b.vector_operands();
    let (wide, count) = (b.xmm(0).is_some(), b.is_immediate(1));
    let handler: Handler = match (wide, count) {
        (true, false) => packed::xmm::<P>,
        (false, false) => packed::mm::<P>,
        (true, true) => packed::xmm_count::<P>,
        (false, true) => packed::mm_count::<P>,
    };
    b.with(handler)
}

fn float_op<F: float::Float>(b: Builder<'_>) -> Builder<'_> {
    b.vector_operands().with(arithmetic::<F>)
}

macro_rules! table {
    ($b:ident, $m:ident; packed: $($p:ident)*; alias: $($from:ident => $to:ident,)*; float: $($f:ident)*;) => {
        match $m {
            $(Mnemonic::$p => return Ok(packed_op::<packed::$p>($b)),)*
            $(Mnemonic::$from => return Ok(packed_op::<packed::$to>($b)),)*
            $(Mnemonic::$f => return Ok(float_op::<float::$f>($b)),)*
            _ => {}
        }
    };
}

pub(super) fn build(b: Builder<'_>) -> Outcome<'_> {
    let m = b.ins.mnemonic();
    table! { b, m;
        packed: Paddb Paddw Paddd Paddq Psubb Psubw Psubd Psubq Paddsb Paddsw Paddusb Paddusw Psubsb Psubsw Psubusb Psubusw
            Pand Pandn Por Pxor Pcmpeqb Pcmpeqw Pcmpeqd Pcmpgtb Pcmpgtw Pcmpgtd Pmullw Pmulhw Pmulhuw Pmaddwd Pmuludq
            Pavgb Pavgw Pminub Pmaxub Pminsw Pmaxsw Psadbw Packsswb Packssdw Packuswb Punpcklbw Punpcklwd Punpckldq Punpcklqdq
            Punpckhbw Punpckhwd Punpckhdq Punpckhqdq Psllw Pslld Psllq Psrlw Psrld Psrlq Psraw Psrad;
        alias: Andps => Pand, Andpd => Pand, Andnps => Pandn, Andnpd => Pandn, Orps => Por, Orpd => Por, Xorps => Pxor, Xorpd => Pxor,
            Unpcklps => Punpckldq, Unpckhps => Punpckhdq, Unpcklpd => Punpcklqdq, Unpckhpd => Punpckhqdq,;
        float: Addps Addpd Addss Addsd Subps Subpd Subss Subsd Mulps Mulpd Mulss Mulsd Divps Divpd Divss Divsd Minps Minpd Minss Minsd
            Maxps Maxpd Maxss Maxsd Sqrtps Sqrtpd Sqrtss Sqrtsd Cvtps2pd Cvtpd2ps Cvtss2sd Cvtsd2ss Cvtdq2ps Cvtps2dq Cvttps2dq
            Cvtdq2pd Cvtpd2dq Cvttpd2dq;
    }
    match moves(b) {
        Ok(done) => Ok(done),
        Err(b) => rest(b),
    }
}

fn full_move(mut b: Builder<'_>, aligned: bool) -> Builder<'_> {
    match (b.xmm(0), b.xmm(1)) {
        (Some(dst), Some(src)) => {
            (b.op.dst, b.op.src) = (dst, src);
            b.with(sse::mov_rr)
        }
        (Some(dst), None) => {
            b.op.dst = dst;
            let e = b.memory();
            if aligned {
                b.with(by_form!(e, load; true))
            } else {
                b.with(by_form!(e, load; false))
            }
        }
        _ => {
            b.op.src = b.xmm(1).unwrap_or(0);
            let e = b.memory();
            if aligned {
                b.with(by_form!(e, store; true))
            } else {
                b.with(by_form!(e, store; false))
            }
        }
    }
}

fn moves(b: Builder<'_>) -> Outcome<'_> {
    use Mnemonic::*;
    let m = b.ins.mnemonic();
    match m {
        Movaps | Movapd | Movdqa | Movntps | Movntpd | Movntdq => return Ok(full_move(b, true)),
        Movups | Movupd | Movdqu => return Ok(full_move(b, false)),
        _ => {}
    }
    if m == Movsd
        && b.ins.op_count() > 0
        && !matches!(b.ins.op_kind(0), OpKind::Register | OpKind::Memory)
    {
        return Err(b);
    }
    let (to_xmm, from_xmm) = (b.xmm(0).is_some(), b.xmm(1).is_some());
    let (to_mm, from_mm) = (b.mm(0).is_some(), b.mm(1).is_some());
    let (to_memory, from_memory) = (b.is_memory(0), b.is_memory(1));
    let wide = b.ins.memory_size() == iced_x86::MemorySize::UInt64
        || b.ins.memory_size() == iced_x86::MemorySize::Int64
        || b.register(0).is_some_and(|r| r.1 == 8)
        || b.register(1).is_some_and(|r| r.1 == 8);
    let handler: Handler = match m {
        Movss if to_memory => sse::scalar_store::<4>,
        Movss if from_memory => sse::scalar_load::<4>,
        Movss => sse::scalar_rr::<4>,
        Movsd if to_memory => sse::scalar_store::<8>,
        Movsd if from_memory => sse::scalar_load::<8>,
        Movsd => sse::scalar_rr::<8>,
        Movlps | Movlpd if to_memory => sse::half_store::<false>,
        Movlps | Movlpd => sse::half_load::<false>,
        Movhps | Movhpd if to_memory => sse::half_store::<true>,
        Movhps | Movhpd => sse::half_load::<true>,
        Movhlps => sse::movhlps,
        Movlhps => sse::movlhps,
        Movd | Movq if to_xmm && from_xmm => sse::movq_rr,
        Movd if to_xmm && from_memory => sse::scalar_load::<4>,
        Movq if to_xmm && from_memory => sse::scalar_load::<8>,
        Movd | Movq if to_xmm => {
            if wide {
                sse::from_general::<8>
            } else {
                sse::from_general::<4>
            }
        }
        Movd if from_xmm && to_memory => sse::scalar_store::<4>,
        Movq if from_xmm && to_memory => sse::scalar_store::<8>,
        Movd | Movq if from_xmm => {
            if wide {
                sse::to_general::<8>
            } else {
                sse::to_general::<4>
            }
        }
        Movq if to_mm && (from_mm || from_memory) => sse::mmx_load,
        Movq | Movntq if from_mm && to_memory => sse::mmx_store,
        Movd | Movq if to_mm => {
            if wide {
                sse::mmx_from::<8>
            } else {
                sse::mmx_from::<4>
            }
        }
        Movd | Movq if from_mm => {
            if wide {
                sse::mmx_to::<8>
            } else {
                sse::mmx_to::<4>
            }
        }
        Movnti if wide => sse::movnti::<8>,
        Movnti => sse::movnti::<4>,
        Movdq2q => sse::movdq2q,
        Movq2dq => sse::movq2dq,
        _ => return Err(b),
    };
    Ok(b.vector_operands().with(handler))
}

fn rest(b: Builder<'_>) -> Outcome<'_> {
    use Mnemonic::*;
    let long = b.register(0).is_some_and(|r| r.1 == 8)
        || b.register(1).is_some_and(|r| r.1 == 8)
        || matches!(
            b.ins.memory_size(),
            iced_x86::MemorySize::Int64 | iced_x86::MemorySize::UInt64
        );
    let destination_long = b.register(0).is_some_and(|r| r.1 == 8);
    let mmx = b.mm(0).is_some() || b.mm(1).is_some();
    let handler: Handler = match b.ins.mnemonic() {
        Cmpps => float::compare::<0>,
        Cmppd => float::compare::<1>,
        Cmpss => float::compare::<2>,
        Cmpsd if b.xmm(0).is_some() => float::compare::<3>,
        Ucomiss => float::ucomiss,
        Ucomisd => float::ucomisd,
        Comiss => float::comiss,
        Comisd => float::comisd,
        Cvtsi2ss if long => float::cvtsi2ss::<true>,
        Cvtsi2ss => float::cvtsi2ss::<false>,
        Cvtsi2sd if long => float::cvtsi2sd::<true>,
        Cvtsi2sd => float::cvtsi2sd::<false>,
        Cvtss2si if destination_long => float::cvtss2si::<true>,
        Cvtss2si => float::cvtss2si::<false>,
        Cvttss2si if destination_long => float::cvttss2si::<true>,
        Cvttss2si => float::cvttss2si::<false>,
        Cvtsd2si if destination_long => float::cvtsd2si::<true>,
        Cvtsd2si => float::cvtsd2si::<false>,
        Cvttsd2si if destination_long => float::cvttsd2si::<true>,
        Cvttsd2si => float::cvttsd2si::<false>,
        Cvtpi2ps => float::from_mmx::<false>,
        Cvtpi2pd => float::from_mmx::<true>,
        Cvtps2pi => float::to_mmx::<float::Cvtps2dq, false>,
        Cvttps2pi => float::to_mmx::<float::Cvttps2dq, false>,
        Cvtpd2pi => float::to_mmx::<float::Cvtpd2dq, true>,
        Cvttpd2pi => float::to_mmx::<float::Cvttpd2dq, true>,
        Rcpps => float::approximate::<false, false>,
        Rcpss => float::approximate::<false, true>,
        Rsqrtps => float::approximate::<true, false>,
        Rsqrtss => float::approximate::<true, true>,
        Pshufd => packed::pshufd,
        Pshuflw => packed::pshufw_half::<false>,
        Pshufhw => packed::pshufw_half::<true>,
        Pshufw => packed::pshufw,
        Shufps => packed::shufps,
        Shufpd => packed::shufpd,
        // The form with a memory destination is SSE4.1's.
        Pextrw
            if b.is_memory(0)
                || b.ins.code() == iced_x86::Code::Pextrw_r32m16_xmm_imm8
                || b.ins.code() == iced_x86::Code::Pextrw_r64m16_xmm_imm8 =>
        {
            return Err(b);
        }
        Pextrw if mmx => packed::pextrw::<true>,
        Pextrw => packed::pextrw::<false>,
        Pinsrw if mmx => packed::pinsrw::<true>,
        Pinsrw => packed::pinsrw::<false>,
        Pmovmskb if mmx => packed::pmovmskb::<true>,
        Pmovmskb => packed::pmovmskb::<false>,
        Movmskps => packed::movmsk::<32>,
        Movmskpd => packed::movmsk::<64>,
        Pslldq => packed::shift_bytes::<true>,
        Psrldq => packed::shift_bytes::<false>,
        Maskmovdqu | Maskmovq => return Ok(masked(b, mmx)),
        Emms => sse::emms,
        Ldmxcsr => sse::ldmxcsr,
        Stmxcsr => sse::stmxcsr,
        Fxsave | Fxrstor => return Ok(state(b, 4)),
        Fxsave64 | Fxrstor64 => return Ok(state(b, 8)),
        _ => return Err(b),
    };
    Ok(b.vector_operands().with(handler))
}

/// The operand is \[RDI\], implicit; the registers are operands 1 and 2.
fn masked(mut b: Builder<'_>, mmx: bool) -> Builder<'_> {
    let number = |b: &Builder<'_>, i: u32| b.xmm(i).or_else(|| b.mm(i)).unwrap_or(0);
    b.op.dst = number(&b, 1);
    b.op.src = number(&b, 2);
    b.op.base = 7 * 8;
    b.op.seg = b.effective_segment(iced_x86::Register::None);
    match b.ins.op_kind(0) {
        OpKind::MemorySegDI => b.op.scale |= crate::exec::ADDRESS_16,
        OpKind::MemorySegEDI => b.op.scale |= crate::exec::ADDRESS_32,
        _ => {}
    }
    let mmx = mmx || b.mm(2).is_some();
    if mmx {
        b.with(sse::maskmov::<true>)
    } else {
        b.with(sse::maskmov::<false>)
    }
}

fn state(mut b: Builder<'_>, width: u16) -> Builder<'_> {
    b.any_memory();
    b.op.aux = width;
    if matches!(b.ins.mnemonic(), Mnemonic::Fxsave | Mnemonic::Fxsave64) {
        b.with(sse::fxsave)
    } else {
        b.with(sse::fxrstor)
    }
}
