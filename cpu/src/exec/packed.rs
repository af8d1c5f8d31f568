//! Packed-integer, logical and shuffle operations of MMX and SSE2.
//!
//! SSE2's intrinsics define every bit of these. The MMX form of an operation is computed with the SSE2
//! one on registers whose upper halves are zero; what is not lane by lane is rearranged around it.

use std::arch::x86_64::*;

use crate::core::{CR0_EM, CR0_TS, CR4_OSFXSR, Core, Raised, VECTOR_GP, VECTOR_MF, VECTOR_NM};
use crate::exec::run_time_address;
use crate::op::{At, Flow, ok};

/// `Op::aux` bit: the source is in memory.
pub(crate) const IN_MEMORY: u16 = 1;

/// As the intrinsics take it.
#[inline(always)]
pub(crate) fn vector(v: u128) -> __m128i {
    // SAFETY: both are 16 bytes without invalid patterns.
    unsafe { std::mem::transmute(v) }
}

/// As the registers keep it.
#[inline(always)]
pub(crate) fn bits(v: __m128i) -> u128 {
    // SAFETY: both are 16 bytes without invalid patterns.
    unsafe { std::mem::transmute(v) }
}

impl Core {
    /// #UD or #NM unless SSE is switched on (SDM vol. 2, table 2-21 and kin).
    #[inline(always)]
    pub(crate) fn sse(&mut self) -> Result<(), Raised> {
        if self.cr0 & (CR0_EM | CR0_TS) == 0 && self.cr4 & CR4_OSFXSR != 0 {
            return Ok(());
        }
        Err(self.no_sse())
    }

    #[cold]
    fn no_sse(&mut self) -> Raised {
        if self.cr0 & CR0_EM != 0 || self.cr4 & CR4_OSFXSR == 0 {
            self.ud()
        } else {
            self.raise(VECTOR_NM)
        }
    }

    /// #UD, #NM or #MF unless MMX is switched on and no x87 exception waits.
    pub(crate) fn mmx(&mut self) -> Result<(), Raised> {
        if self.cr0 & CR0_EM != 0 {
            return Err(self.ud());
        }
        if self.cr0 & CR0_TS != 0 {
            return Err(self.raise(VECTOR_NM));
        }
        if self.fpu.exception_pending() {
            return Err(self.raise(VECTOR_MF));
        }
        Ok(())
    }

    /// The operation happens: MMX registers alias the x87 stack, which is full and unrotated after.
    pub(crate) fn enter_mmx(&mut self) {
        self.fpu.status &= !0x3800;
        self.fpu.tags = 0xff;
    }

    pub(crate) fn mm(&self, i: u8) -> u64 {
        self.fpu.st[usize::from(i & 7)] as u64
    }

    pub(crate) fn set_mm(&mut self, i: u8, v: u64) {
        self.fpu.st[usize::from(i & 7)] = u128::from(v) | 0xffff << 64;
    }

    #[inline(always)]
    pub(crate) fn xmm(&self, i: u8) -> u128 {
        self.fpu.xmm[usize::from(i & 15)]
    }

    #[inline(always)]
    pub(crate) fn set_xmm(&mut self, i: u8, v: u128) {
        self.fpu.xmm[usize::from(i & 15)] = v;
    }

    /// A 16-byte operand, which in memory must be aligned.
    pub(crate) fn source_128(&mut self, op: At) -> Result<u128, Raised> {
        if op.aux & IN_MEMORY == 0 {
            return Ok(self.xmm(op.src));
        }
        let at = run_time_address(self, op, 16, false)?;
        self.aligned(at)?;
        self.load_128(at, op.seg)
    }

    /// #GP(0) for an address that is not a multiple of 16.
    #[inline(always)]
    pub(crate) fn aligned(&mut self, at: u64) -> Result<(), Raised> {
        if at & 15 != 0 {
            Err(self.raise_code(VECTOR_GP, 0))
        } else {
            Ok(())
        }
    }

    /// An MMX register or 8 bytes of memory.
    pub(crate) fn source_64(&mut self, op: At) -> Result<u64, Raised> {
        if op.aux & IN_MEMORY == 0 {
            return Ok(self.mm(op.src));
        }
        let at = run_time_address(self, op, 8, false)?;
        self.load::<u64>(at, op.seg)
    }
}

/// How the MMX form follows from the SSE2 form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lanes {
    /// Each lane by itself.
    Each,
    /// Both operands' lanes side by side.
    Pack,
    /// Interleaves the lower halves: MMX reads only 32 bits of memory.
    UnpackLow,
    /// Interleaves the upper halves.
    UnpackHigh,
    /// The source (a count) counts with 64 bits.
    Count,
}

/// A two-operand operation on 128 bits.
pub(crate) trait Packed: 'static {
    const LANES: Lanes;
    fn apply(a: __m128i, b: __m128i) -> __m128i;
}

macro_rules! packed {
    ($($name:ident $lanes:ident |$a:ident, $b:ident| $body:expr;)*) => {
        $(
            pub(crate) struct $name;
            impl Packed for $name {
                const LANES: Lanes = Lanes::$lanes;
                #[inline(always)]
                fn apply($a: __m128i, $b: __m128i) -> __m128i {
                    // SAFETY: SSE2 is part of every x86-64 host.
                    #[allow(unused_unsafe)]
                    unsafe { $body }
                }
            }
        )*
    };
}

packed! {
    Paddb Each |a, b| _mm_add_epi8(a, b);
    Paddw Each |a, b| _mm_add_epi16(a, b);
    Paddd Each |a, b| _mm_add_epi32(a, b);
    Paddq Each |a, b| _mm_add_epi64(a, b);
    Psubb Each |a, b| _mm_sub_epi8(a, b);
    Psubw Each |a, b| _mm_sub_epi16(a, b);
    Psubd Each |a, b| _mm_sub_epi32(a, b);
    Psubq Each |a, b| _mm_sub_epi64(a, b);
    Paddsb Each |a, b| _mm_adds_epi8(a, b);
    Paddsw Each |a, b| _mm_adds_epi16(a, b);
    Paddusb Each |a, b| _mm_adds_epu8(a, b);
    Paddusw Each |a, b| _mm_adds_epu16(a, b);
    Psubsb Each |a, b| _mm_subs_epi8(a, b);
    Psubsw Each |a, b| _mm_subs_epi16(a, b);
    Psubusb Each |a, b| _mm_subs_epu8(a, b);
    Psubusw Each |a, b| _mm_subs_epu16(a, b);
    Pand Each |a, b| _mm_and_si128(a, b);
    Pandn Each |a, b| _mm_andnot_si128(a, b);
    Por Each |a, b| _mm_or_si128(a, b);
    Pxor Each |a, b| _mm_xor_si128(a, b);
    Pcmpeqb Each |a, b| _mm_cmpeq_epi8(a, b);
    Pcmpeqw Each |a, b| _mm_cmpeq_epi16(a, b);
    Pcmpeqd Each |a, b| _mm_cmpeq_epi32(a, b);
    Pcmpgtb Each |a, b| _mm_cmpgt_epi8(a, b);
    Pcmpgtw Each |a, b| _mm_cmpgt_epi16(a, b);
    Pcmpgtd Each |a, b| _mm_cmpgt_epi32(a, b);
    Pmullw Each |a, b| _mm_mullo_epi16(a, b);
    Pmulhw Each |a, b| _mm_mulhi_epi16(a, b);
    Pmulhuw Each |a, b| _mm_mulhi_epu16(a, b);
    Pmaddwd Each |a, b| _mm_madd_epi16(a, b);
    Pmuludq Each |a, b| _mm_mul_epu32(a, b);
    Pavgb Each |a, b| _mm_avg_epu8(a, b);
    Pavgw Each |a, b| _mm_avg_epu16(a, b);
    Pminub Each |a, b| _mm_min_epu8(a, b);
    Pmaxub Each |a, b| _mm_max_epu8(a, b);
    Pminsw Each |a, b| _mm_min_epi16(a, b);
    Pmaxsw Each |a, b| _mm_max_epi16(a, b);
    Psadbw Each |a, b| _mm_sad_epu8(a, b);
    Packsswb Pack |a, b| _mm_packs_epi16(a, b);
    Packssdw Pack |a, b| _mm_packs_epi32(a, b);
    Packuswb Pack |a, b| _mm_packus_epi16(a, b);
    Punpcklbw UnpackLow |a, b| _mm_unpacklo_epi8(a, b);
    Punpcklwd UnpackLow |a, b| _mm_unpacklo_epi16(a, b);
    Punpckldq UnpackLow |a, b| _mm_unpacklo_epi32(a, b);
    Punpcklqdq Each |a, b| _mm_unpacklo_epi64(a, b);
    Punpckhbw UnpackHigh |a, b| _mm_unpackhi_epi8(a, b);
    Punpckhwd UnpackHigh |a, b| _mm_unpackhi_epi16(a, b);
    Punpckhdq UnpackHigh |a, b| _mm_unpackhi_epi32(a, b);
    Punpckhqdq Each |a, b| _mm_unpackhi_epi64(a, b);
    Psllw Count |a, b| _mm_sll_epi16(a, b);
    Pslld Count |a, b| _mm_sll_epi32(a, b);
    Psllq Count |a, b| _mm_sll_epi64(a, b);
    Psrlw Count |a, b| _mm_srl_epi16(a, b);
    Psrld Count |a, b| _mm_srl_epi32(a, b);
    Psrlq Count |a, b| _mm_srl_epi64(a, b);
    Psraw Count |a, b| _mm_sra_epi16(a, b);
    Psrad Count |a, b| _mm_sra_epi32(a, b);
}

/// UNPCKHPS is PUNPCKHDQ by another name, and so on: the decoder maps them.
pub(crate) fn xmm<P: Packed>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let b = ok!(c, op, c.source_128(op));
    c.set_xmm(op.dst, bits(P::apply(vector(c.xmm(op.dst)), vector(b))));
    op.next(c)
}

pub(crate) fn mm<P: Packed>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.mmx());
    let b = if P::LANES == Lanes::UnpackLow && op.aux & IN_MEMORY != 0 {
        let at = ok!(c, op, run_time_address(c, op, 4, false));
        u64::from(ok!(c, op, c.load::<u32>(at, op.seg)))
    } else {
        ok!(c, op, c.source_64(op))
    };
    let a = c.mm(op.dst);
    let wide = |v: u64| vector(v.into());
    let r = match P::LANES {
        Lanes::Each | Lanes::Count | Lanes::UnpackLow => bits(P::apply(wide(a), wide(b))),
        Lanes::Pack => {
            let both = vector(u128::from(a) | u128::from(b) << 64);
            bits(P::apply(both, both))
        }
        Lanes::UnpackHigh => {
            // The upper halves moved to where the operation looks for them.
            bits(P::apply(
                vector(u128::from(a >> 32) << 64),
                vector(u128::from(b >> 32) << 64),
            ))
        }
    };
    c.enter_mmx();
    c.set_mm(op.dst, r as u64);
    op.next(c)
}

/// PSLLW and kin by an immediate.
pub(crate) fn xmm_count<P: Packed>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    c.set_xmm(
        op.dst,
        bits(P::apply(vector(c.xmm(op.dst)), vector(op.imm.into()))),
    );
    op.next(c)
}

/// See [`xmm_count`].
pub(crate) fn mm_count<P: Packed>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.mmx());
    let r = bits(P::apply(vector(c.mm(op.dst).into()), vector(op.imm.into()))) as u64;
    c.enter_mmx();
    c.set_mm(op.dst, r);
    op.next(c)
}

/// PSLLDQ (`LEFT`) and PSRLDQ.
pub(crate) fn shift_bytes<const LEFT: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let n = (op.imm as u32).min(16) * 8;
    let v = c.xmm(op.dst);
    let r = if LEFT {
        v.checked_shl(n)
    } else {
        v.checked_shr(n)
    };
    c.set_xmm(op.dst, r.unwrap_or(0));
    op.next(c)
}

/// Picks four lanes of `width` bits out of `v` by an immediate.
fn pick(v: u128, width: u32, imm: u64) -> u128 {
    (0..4).fold(0, |r, i| {
        let lane = v >> ((imm >> (2 * i) & 3) as u32 * width) & ((1 << width) - 1);
        r | lane << (i * width)
    })
}

pub(crate) fn pshufd(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let v = ok!(c, op, c.source_128(op));
    c.set_xmm(op.dst, pick(v, 32, op.imm));
    op.next(c)
}

/// PSHUFLW (`HIGH` false) and PSHUFHW.
pub(crate) fn pshufw_half<const HIGH: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let v = ok!(c, op, c.source_128(op));
    let low = v & u128::from(u64::MAX);
    let r = if HIGH {
        pick(v >> 64, 16, op.imm) << 64 | low
    } else {
        pick(low, 16, op.imm) | v >> 64 << 64
    };
    c.set_xmm(op.dst, r);
    op.next(c)
}

pub(crate) fn pshufw(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.mmx());
    let v = ok!(c, op, c.source_64(op));
    c.enter_mmx();
    c.set_mm(op.dst, pick(v.into(), 16, op.imm) as u64);
    op.next(c)
}

pub(crate) fn shufps(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let b = ok!(c, op, c.source_128(op));
    let a = c.xmm(op.dst);
    let low = pick(a, 32, op.imm & 15) & u128::from(u64::MAX);
    let high = pick(b, 32, op.imm >> 4 & 15) << 64;
    c.set_xmm(op.dst, low | high);
    op.next(c)
}

pub(crate) fn shufpd(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let b = ok!(c, op, c.source_128(op));
    let a = c.xmm(op.dst);
    let half = |v: u128, high: u64| v >> (64 * high as u32) & u128::from(u64::MAX);
    c.set_xmm(op.dst, half(a, op.imm & 1) | half(b, op.imm >> 1 & 1) << 64);
    op.next(c)
}

/// PEXTRW to a general register, from XMM or MMX.
pub(crate) fn pextrw<const MMX: bool>(c: &mut Core, op: At) -> Flow {
    let v = if MMX {
        ok!(c, op, c.mmx());
        c.enter_mmx();
        c.mm(op.src) >> (16 * (op.imm & 3))
    } else {
        ok!(c, op, c.sse());
        (c.xmm(op.src) >> (16 * (op.imm & 7))) as u64
    };
    c.set_reg(op.dst, v & 0xffff);
    op.next(c)
}

/// PINSRW from a general register or 16 bits of memory.
pub(crate) fn pinsrw<const MMX: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, if MMX { c.mmx() } else { c.sse() });
    let word = if op.aux & IN_MEMORY != 0 {
        let at = ok!(c, op, run_time_address(c, op, 2, false));
        ok!(c, op, c.load::<u16>(at, op.seg))
    } else {
        c.reg::<u16>(op.src)
    };
    if MMX {
        let shift = 16 * (op.imm & 3);
        let v = c.mm(op.dst) & !(0xffff << shift) | u64::from(word) << shift;
        c.enter_mmx();
        c.set_mm(op.dst, v);
    } else {
        let shift = 16 * (op.imm & 7);
        let v = c.xmm(op.dst) & !(0xffff << shift) | u128::from(word) << shift;
        c.set_xmm(op.dst, v);
    }
    op.next(c)
}

/// PMOVMSKB.
pub(crate) fn pmovmskb<const MMX: bool>(c: &mut Core, op: At) -> Flow {
    let v = if MMX {
        ok!(c, op, c.mmx());
        c.enter_mmx();
        c.mm(op.src).into()
    } else {
        ok!(c, op, c.sse());
        c.xmm(op.src)
    };
    // SAFETY: SSE2 is part of every x86-64 host.
    #[allow(unused_unsafe)]
    let mask = unsafe { _mm_movemask_epi8(vector(v)) };
    c.set_reg(op.dst, u64::from(mask as u32));
    op.next(c)
}

/// MOVMSKPS and MOVMSKPD: the sign bits of lanes of `WIDTH` bits.
pub(crate) fn movmsk<const WIDTH: u32>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let v = c.xmm(op.src);
    let mask = (0..128 / WIDTH).fold(0, |m, i| {
        m | ((v >> (i * WIDTH + WIDTH - 1)) as u64 & 1) << i
    });
    c.set_reg(op.dst, mask);
    op.next(c)
}
