//! MUL, IMUL, DIV, IDIV.
//!
//! MUL and IMUL define CF and OF only; by rule SF, ZF and PF follow the low half and AF is cleared.
//! DIV and IDIV define no flag; by rule all keep their values.

use crate::core::{Core, Raised, VECTOR_DE};
use crate::exec::alu::overflow;
use crate::exec::int::Int;
use crate::exec::{address, run_time_address};
use crate::op::{At, Flow, ok};

/// RDX's place in the register file.
const RDX: u8 = 16;
/// AH's.
const AH: u8 = 1;

/// IMUL with a kept low half.
#[inline(always)]
fn signed_product<S: Int>(a: S, b: S) -> (S, u16) {
    let wide = i128::from(a.i()) * i128::from(b.i());
    let low = S::of(wide as u64);
    (low, low.szp() | overflow(i128::from(low.i()) != wide))
}

pub(crate) fn imul_rr<S: Int>(c: &mut Core, op: At) -> Flow {
    let (r, f) = signed_product(c.reg::<S>(op.dst), c.reg::<S>(op.src));
    c.flags = f;
    c.set_reg(op.dst, r);
    op.next(c)
}

pub(crate) fn imul_rri<S: Int>(c: &mut Core, op: At) -> Flow {
    let (r, f) = signed_product(c.reg::<S>(op.src), S::of(op.imm));
    c.flags = f;
    c.set_reg(op.dst, r);
    op.next(c)
}

pub(crate) fn imul_rm<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    let b = ok!(c, op, c.load::<S>(at, op.seg));
    let (r, f) = signed_product(c.reg::<S>(op.dst), b);
    c.flags = f;
    c.set_reg(op.dst, r);
    op.next(c)
}

pub(crate) fn imul_rmi<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    let a = ok!(c, op, c.load::<S>(at, op.seg));
    let (r, f) = signed_product(a, S::of(op.imm));
    c.flags = f;
    c.set_reg(op.dst, r);
    op.next(c)
}

fn source<S: Int, const MEMORY: bool>(c: &mut Core, op: At) -> Result<S, Raised> {
    if !MEMORY {
        return Ok(c.reg::<S>(op.src));
    }
    let at = run_time_address(c, op, S::BYTES, false)?;
    c.load::<S>(at, op.seg)
}

/// Writes a double-width result to AX, or to RDX and RAX.
fn set_wide<S: Int>(c: &mut Core, low: u64, high: u64) {
    if S::BYTES == 1 {
        c.set_reg::<u8>(0, low as u8);
        c.set_reg::<u8>(AH, high as u8);
    } else {
        c.set_reg(0, S::of(low));
        c.set_reg(RDX, S::of(high));
    }
}

pub(crate) fn mul<S: Int, const MEMORY: bool>(c: &mut Core, op: At) -> Flow {
    let b = ok!(c, op, source::<S, MEMORY>(c, op));
    let wide = u128::from(c.reg::<S>(0).u()) * u128::from(b.u());
    let high = (wide >> S::BITS) as u64;
    c.flags = S::of(wide as u64).szp() | overflow(high != 0);
    set_wide::<S>(c, wide as u64, high);
    op.next(c)
}

pub(crate) fn imul<S: Int, const MEMORY: bool>(c: &mut Core, op: At) -> Flow {
    let b = ok!(c, op, source::<S, MEMORY>(c, op));
    let wide = i128::from(c.reg::<S>(0).i()) * i128::from(b.i());
    let low = S::of(wide as u64);
    c.flags = low.szp() | overflow(i128::from(low.i()) != wide);
    set_wide::<S>(c, wide as u64, (wide >> S::BITS) as u64);
    op.next(c)
}

/// The dividend's high half: AH or RDX.
fn high<S: Int>(c: &Core) -> S {
    if S::BYTES == 1 {
        c.reg::<S>(AH)
    } else {
        c.reg::<S>(RDX)
    }
}

pub(crate) fn div<S: Int, const MEMORY: bool>(c: &mut Core, op: At) -> Flow {
    let divisor = ok!(c, op, source::<S, MEMORY>(c, op)).u();
    let (low, high) = (c.reg::<S>(0).u(), high::<S>(c).u());
    // The quotient fits exactly if the high half is below the divisor; so does this cover zero.
    if high >= divisor {
        c.raise(VECTOR_DE);
        return op.leave(c);
    }
    let (q, r) = if S::BITS <= 32 {
        let n = high << S::BITS | low;
        (n / divisor, n % divisor)
    } else if high == 0 {
        (low / divisor, low % divisor)
    } else {
        let n = u128::from(high) << 64 | u128::from(low);
        (
            (n / u128::from(divisor)) as u64,
            (n % u128::from(divisor)) as u64,
        )
    };
    set_wide::<S>(c, q, r);
    op.next(c)
}

pub(crate) fn idiv<S: Int, const MEMORY: bool>(c: &mut Core, op: At) -> Flow {
    let divisor = i128::from(ok!(c, op, source::<S, MEMORY>(c, op)).i());
    let n = i128::from(high::<S>(c).i()) << S::BITS | i128::from(c.reg::<S>(0).u());
    // The most negative dividend by -1 overflows i128 itself for 64 bits.
    let quotient = if divisor == 0 {
        None
    } else {
        n.checked_div(divisor)
    };
    match quotient {
        Some(q) if i128::from(S::of(q as u64).i()) == q => {
            let r = n - q * divisor;
            set_wide::<S>(c, q as u64, r as u64);
            op.next(c)
        }
        _ => {
            c.raise(VECTOR_DE);
            op.leave(c)
        }
    }
}
