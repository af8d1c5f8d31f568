//! SSE and SSE2 floating point: the host's instruction under the guest's rounding, all exceptions
//! masked, flags read back. RCPPS and RSQRTPS, whose results differ between processors, are computed
//! as the correctly rounded quotient instead.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use crate::core::{CR4_OSXMMEXCPT, Core, Raised, VECTOR_XM};
use crate::exec::packed::{IN_MEMORY, bits, vector};
use crate::exec::run_time_address;
use crate::flags::{CF, PF, ZF};
use crate::op::{At, Flow, ok};

/// MXCSR: flags, and their masks.
const FLAGS: u32 = 0x3f;
const MASKS: u32 = 0x1f80;

/// Runs one host instruction on `a` (destination, first source) and `b`; returns the result and the
/// flags it raised.
pub(crate) type Arithmetic = fn(__m128i, __m128i, u32) -> (__m128i, u32);

/// An instruction with an XMM destination and an XMM or memory source.
pub(crate) trait Float: 'static {
    /// Bytes of a memory source. 16 must be aligned.
    const BYTES: usize;
    /// Width and number of the result's lanes that can underflow.
    const LANES: (u32, u32);
    fn apply(a: __m128i, b: __m128i, control: u32) -> (__m128i, u32);
}

macro_rules! float {
    ($($name:ident $text:literal $bytes:literal $width:literal $lanes:literal;)*) => {
        $(
            pub(crate) struct $name;
            impl Float for $name {
                const BYTES: usize = $bytes;
                const LANES: (u32, u32) = ($width, $lanes);
                fn apply(a: __m128i, b: __m128i, control: u32) -> (__m128i, u32) {
                    let mut a = a;
                    // The guest's MXCSR, then the host's.
                    let mut mxcsr = [control & !FLAGS | MASKS, 0];
                    // SAFETY: touches two registers and `mxcsr`; the host's MXCSR is put back, and no
                    // exception can be taken while all are masked.
                    unsafe {
                        asm!("stmxcsr [{p} + 4]", "ldmxcsr [{p}]", concat!($text, " {a}, {b}"), "stmxcsr [{p}]", "ldmxcsr [{p} + 4]",
                            p = in(reg) mxcsr.as_mut_ptr(), a = inout(xmm_reg) a, b = in(xmm_reg) b, options(nostack));
                    }
                    (a, mxcsr[0] & FLAGS)
                }
            }
        )*
    };
}

float! {
    Addps "addps" 16 32 4; Addpd "addpd" 16 64 2; Addss "addss" 4 32 1; Addsd "addsd" 8 64 1;
    Subps "subps" 16 32 4; Subpd "subpd" 16 64 2; Subss "subss" 4 32 1; Subsd "subsd" 8 64 1;
    Mulps "mulps" 16 32 4; Mulpd "mulpd" 16 64 2; Mulss "mulss" 4 32 1; Mulsd "mulsd" 8 64 1;
    Divps "divps" 16 32 4; Divpd "divpd" 16 64 2; Divss "divss" 4 32 1; Divsd "divsd" 8 64 1;
    Minps "minps" 16 0 0; Minpd "minpd" 16 0 0; Minss "minss" 4 0 0; Minsd "minsd" 8 0 0;
    Maxps "maxps" 16 0 0; Maxpd "maxpd" 16 0 0; Maxss "maxss" 4 0 0; Maxsd "maxsd" 8 0 0;
    Sqrtps "sqrtps" 16 0 0; Sqrtpd "sqrtpd" 16 0 0; Sqrtss "sqrtss" 4 0 0; Sqrtsd "sqrtsd" 8 0 0;
    Cvtps2pd "cvtps2pd" 8 0 0; Cvtpd2ps "cvtpd2ps" 16 32 2; Cvtss2sd "cvtss2sd" 4 0 0; Cvtsd2ss "cvtsd2ss" 8 32 1;
    Cvtdq2ps "cvtdq2ps" 16 0 0; Cvtps2dq "cvtps2dq" 16 0 0; Cvttps2dq "cvttps2dq" 16 0 0;
    Cvtdq2pd "cvtdq2pd" 8 0 0; Cvtpd2dq "cvtpd2dq" 16 0 0; Cvttpd2dq "cvttpd2dq" 16 0 0;
}

macro_rules! compare {
    ($($name:ident $text:literal $bytes:literal;)*) => {
        $(
            /// All eight predicates.
            pub(crate) fn $name(predicate: u8) -> Arithmetic {
                macro_rules! one {
                    ($p:literal) => {{
                        fn run(a: __m128i, b: __m128i, control: u32) -> (__m128i, u32) {
                            let mut a = a;
                            let mut mxcsr = [control & !FLAGS | MASKS, 0];
                            // SAFETY: as for `Float`.
                            unsafe {
                                asm!("stmxcsr [{p} + 4]", "ldmxcsr [{p}]", concat!($text, " {a}, {b}, ", $p), "stmxcsr [{p}]", "ldmxcsr [{p} + 4]",
                                    p = in(reg) mxcsr.as_mut_ptr(), a = inout(xmm_reg) a, b = in(xmm_reg) b, options(nostack));
                            }
                            (a, mxcsr[0] & FLAGS)
                        }
                        run as Arithmetic
                    }};
                }
                match predicate & 7 {
                    0 => one!(0), 1 => one!(1), 2 => one!(2), 3 => one!(3),
                    4 => one!(4), 5 => one!(5), 6 => one!(6), _ => one!(7),
                }
            }
        )*
    };
}

compare! {
    cmpps "cmpps" 16; cmppd "cmppd" 16; cmpss "cmpss" 4; cmpsd "cmpsd" 8;
}

/// MXCSR: the underflow flag, its mask, and flush-to-zero.
const UNDERFLOW: u32 = 0x10;
const UNDERFLOW_MASK: u32 = UNDERFLOW << 7;
const FLUSH: u32 = 1 << 15;

/// Accounts for raised flags: sticky if masked, else #XM (or #UD) and no result.
pub(crate) fn accept(c: &mut Core, flags: u32) -> Result<(), Raised> {
    let unmasked = flags & !(c.fpu.mxcsr >> 7);
    if unmasked == 0 {
        c.fpu.mxcsr |= flags;
        return Ok(());
    }
    // An unmasked exception of the operands (invalid, denormal, divide by zero) ends the operation
    // before there is a result that could be inexact or out of range (SDM vol. 1, 11.5.2).
    c.fpu.mxcsr |= if unmasked & 7 != 0 { flags & 7 } else { flags };
    Err(if c.cr4 & CR4_OSXMMEXCPT != 0 {
        c.raise(VECTOR_XM)
    } else {
        c.ud()
    })
}

/// Whether a lane of the result is a denormal number.
fn tiny((width, lanes): (u32, u32), r: u128) -> bool {
    let (exponent, mask) = if width == 32 {
        (0xff << 23, u32::MAX.into())
    } else {
        (0x7ff << 52, u64::MAX)
    };
    (0..lanes).any(|i| {
        let lane = (r >> (i * width)) as u64 & mask;
        lane & exponent == 0 && lane & (mask >> 1) != 0
    })
}

/// A source of `n` bytes, aligned if 16.
fn source(c: &mut Core, op: At, n: usize) -> Result<u128, Raised> {
    if op.aux & IN_MEMORY == 0 {
        return Ok(c.xmm(op.src));
    }
    if n == 16 {
        return c.source_128(op);
    }
    let at = run_time_address(c, op, n, false)?;
    if n == 4 {
        c.load::<u32>(at, op.seg).map(u128::from)
    } else {
        c.load::<u64>(at, op.seg).map(u128::from)
    }
}

pub(crate) fn arithmetic<F: Float>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let b = ok!(c, op, source(c, op, F::BYTES));
    // Unmasked, underflow is raised by exact tiny results too, and FTZ does nothing.
    let trapping = F::LANES.1 != 0 && c.fpu.mxcsr & UNDERFLOW_MASK == 0;
    let control = if trapping {
        c.fpu.mxcsr & !FLUSH
    } else {
        c.fpu.mxcsr
    };
    let (r, mut flags) = F::apply(vector(c.xmm(op.dst)), vector(b), control);
    if trapping && tiny(F::LANES, bits(r)) {
        flags |= UNDERFLOW;
    }
    ok!(c, op, accept(c, flags));
    c.set_xmm(op.dst, bits(r));
    op.next(c)
}

/// CMPPS and kin; `KIND`: 0 ps, 1 pd, 2 ss, 3 sd.
pub(crate) fn compare<const KIND: u8>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let bytes = [16, 16, 4, 8][usize::from(KIND)];
    let b = ok!(c, op, source(c, op, bytes));
    let run = match KIND {
        0 => cmpps(op.imm as u8),
        1 => cmppd(op.imm as u8),
        2 => cmpss(op.imm as u8),
        _ => cmpsd(op.imm as u8),
    };
    let (r, flags) = run(vector(c.xmm(op.dst)), vector(b), c.fpu.mxcsr);
    ok!(c, op, accept(c, flags));
    c.set_xmm(op.dst, bits(r));
    op.next(c)
}

macro_rules! ordered {
    ($name:ident, $text:literal, $bytes:literal) => {
        /// Compares into ZF, PF and CF; the others become zero.
        pub(crate) fn $name(c: &mut Core, op: At) -> Flow {
            ok!(c, op, c.sse());
            let b = vector(ok!(c, op, source(c, op, $bytes)));
            let a = vector(c.xmm(op.dst));
            let mut mxcsr = [c.fpu.mxcsr & !FLAGS | MASKS, 0];
            let status: u16;
            // SAFETY: as for `Float`.
            unsafe {
                asm!("stmxcsr [{p} + 4]", "ldmxcsr [{p}]", concat!($text, " {a}, {b}"), "lahf", "stmxcsr [{p}]", "ldmxcsr [{p} + 4]",
                    p = in(reg) mxcsr.as_mut_ptr(), a = in(xmm_reg) a, b = in(xmm_reg) b, out("ax") status, options(nostack));
            }
            ok!(c, op, accept(c, mxcsr[0] & FLAGS));
            c.flags = status & (ZF | PF | CF);
            op.next(c)
        }
    };
}

ordered!(ucomiss, "ucomiss", 4);
ordered!(ucomisd, "ucomisd", 8);
ordered!(comiss, "comiss", 4);
ordered!(comisd, "comisd", 8);

/// CVTSI2SS and CVTSI2SD; `LONG`: from 64 bits.
macro_rules! from_integer {
    ($name:ident, $text:literal) => {
        pub(crate) fn $name<const LONG: bool>(c: &mut Core, op: At) -> Flow {
            ok!(c, op, c.sse());
            let n = if LONG { 8 } else { 4 };
            let v = if op.aux & IN_MEMORY != 0 {
                let at = ok!(c, op, run_time_address(c, op, n, false));
                if LONG { ok!(c, op, c.load::<u64>(at, op.seg)) } else { ok!(c, op, c.load::<u32>(at, op.seg)) as i32 as i64 as u64 }
            } else if LONG {
                c.reg::<u64>(op.src)
            } else {
                c.reg::<u32>(op.src) as i32 as i64 as u64
            };
            let mut a = vector(c.xmm(op.dst));
            let mut mxcsr = [c.fpu.mxcsr & !FLAGS | MASKS, 0];
            // SAFETY: as for `Float`. A sign-extended 32-bit source converts alike from 64 bits.
            unsafe {
                asm!("stmxcsr [{p} + 4]", "ldmxcsr [{p}]", concat!($text, " {a}, {v}"), "stmxcsr [{p}]", "ldmxcsr [{p} + 4]",
                    p = in(reg) mxcsr.as_mut_ptr(), a = inout(xmm_reg) a, v = in(reg) v, options(nostack));
            }
            ok!(c, op, accept(c, mxcsr[0] & FLAGS));
            c.set_xmm(op.dst, bits(a));
            op.next(c)
        }
    };
}

from_integer!(cvtsi2ss, "cvtsi2ss");
from_integer!(cvtsi2sd, "cvtsi2sd");

macro_rules! to_integer {
    ($name:ident, $text:literal, $bytes:literal) => {
        pub(crate) fn $name<const LONG: bool>(c: &mut Core, op: At) -> Flow {
            ok!(c, op, c.sse());
            let b = vector(ok!(c, op, source(c, op, $bytes)));
            let mut mxcsr = [c.fpu.mxcsr & !FLAGS | MASKS, 0];
            let r: u64;
            // SAFETY: as for `Float`.
            unsafe {
                if LONG {
                    asm!("stmxcsr [{p} + 4]", "ldmxcsr [{p}]", concat!($text, " {r}, {b}"), "stmxcsr [{p}]", "ldmxcsr [{p} + 4]",
                        p = in(reg) mxcsr.as_mut_ptr(), b = in(xmm_reg) b, r = out(reg) r, options(nostack));
                } else {
                    asm!("stmxcsr [{p} + 4]", "ldmxcsr [{p}]", concat!($text, " {r:e}, {b}"), "stmxcsr [{p}]", "ldmxcsr [{p} + 4]",
                        p = in(reg) mxcsr.as_mut_ptr(), b = in(xmm_reg) b, r = out(reg) r, options(nostack));
                }
            }
            ok!(c, op, accept(c, mxcsr[0] & FLAGS));
            c.set_reg(op.dst, r);
            op.next(c)
        }
    };
}

to_integer!(cvtss2si, "cvtss2si", 4);
to_integer!(cvttss2si, "cvttss2si", 4);
to_integer!(cvtsd2si, "cvtsd2si", 8);
to_integer!(cvttsd2si, "cvttsd2si", 8);

/// CVTPI2PS and CVTPI2PD: two 32-bit integers of an MMX register or memory. `DOUBLE`: to doubles.
/// A memory source leaves the x87 state alone.
pub(crate) fn from_mmx<const DOUBLE: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let touches = op.aux & IN_MEMORY == 0;
    if touches {
        ok!(c, op, c.mmx());
    }
    let b = vector(ok!(c, op, c.source_64(op)).into());
    let a = c.xmm(op.dst);
    let (r, flags) = if DOUBLE {
        Cvtdq2pd::apply(vector(a), b, c.fpu.mxcsr)
    } else {
        Cvtdq2ps::apply(vector(a), b, c.fpu.mxcsr)
    };
    ok!(c, op, accept(c, flags));
    if touches {
        c.enter_mmx();
    }
    let low = u128::from(u64::MAX);
    c.set_xmm(
        op.dst,
        if DOUBLE {
            bits(r)
        } else {
            a & !low | bits(r) & low
        },
    );
    op.next(c)
}

/// CVTPS2PI CVTTPS2PI CVTPD2PI CVTTPD2PI, by the conversion to XMM that does the same.
pub(crate) fn to_mmx<F: Float, const DOUBLE: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    ok!(c, op, c.mmx());
    let b = ok!(c, op, source(c, op, if DOUBLE { 16 } else { 8 }));
    // The upper two singles take no part: zeros raise nothing.
    let b = if DOUBLE { b } else { b & u128::from(u64::MAX) };
    let (r, flags) = F::apply(vector(0), vector(b), c.fpu.mxcsr);
    ok!(c, op, accept(c, flags));
    c.enter_mmx();
    c.set_mm(op.dst, bits(r) as u64);
    op.next(c)
}

/// RCP of one lane: denormals count as zeros, results too small become zeros (SDM vol. 2, RCPPS).
fn reciprocal(x: u32) -> u32 {
    let v = f32::from_bits(x);
    if v.is_nan() {
        return x | 0x0040_0000;
    }
    let sign = x & 0x8000_0000;
    if x & 0x7f80_0000 == 0 {
        return sign | 0x7f80_0000;
    }
    let r = (1.0 / v).to_bits();
    if r & 0x7f80_0000 == 0 { sign } else { r }
}

/// RSQRT of one lane.
fn reciprocal_root(x: u32) -> u32 {
    let v = f32::from_bits(x);
    if v.is_nan() {
        return x | 0x0040_0000;
    }
    let sign = x & 0x8000_0000;
    if x & 0x7f80_0000 == 0 {
        return sign | 0x7f80_0000;
    }
    if sign != 0 {
        return 0xffc0_0000;
    }
    // In double precision, so that the one rounding that matters is the last.
    ((1.0 / f64::from(v).sqrt()) as f32).to_bits()
}

/// RCPPS RCPSS RSQRTPS RSQRTSS.
pub(crate) fn approximate<const ROOT: bool, const SCALAR: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let b = ok!(c, op, source(c, op, if SCALAR { 4 } else { 16 }));
    let lanes = if SCALAR { 1 } else { 4 };
    let mut r = if SCALAR {
        c.xmm(op.dst) & !0xffff_ffff
    } else {
        0
    };
    for i in 0..lanes {
        let x = (b >> (32 * i)) as u32;
        let y = if ROOT {
            reciprocal_root(x)
        } else {
            reciprocal(x)
        };
        r |= u128::from(y) << (32 * i);
    }
    c.set_xmm(op.dst, r);
    op.next(c)
}
