//! Shifts and rotates.
//!
//! OF is defined for counts of 1 only; by rule, the formula for a count of 1 is applied to every
//! count. AF is cleared. A masked count of 0 changes no flag.

use crate::core::Core;
use crate::exec::int::Int;
use crate::exec::{address, by_size, by_size_form};
use crate::flags::{CF, OF, replace};
use crate::op::{At, Flow, Handler, ok};

/// A shift or rotate by a count that is not zero and already masked to 5 or 6 bits.
pub(crate) trait Shift: 'static {
    fn apply<S: Int>(a: S, count: u32, flags: u16) -> (S, u16);
}

fn carry(bit: u64) -> u16 {
    if bit & 1 != 0 { CF } else { 0 }
}

fn overflow(bit: u64) -> u16 {
    if bit & 1 != 0 { OF } else { 0 }
}

fn msb<S: Int>(v: u64) -> u64 {
    v >> (S::BITS - 1) & 1
}

macro_rules! shift {
    ($name:ident, |$a:ident, $n:ident, $f:ident| $body:block) => {
        pub(crate) struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<S: Int>($a: S, $n: u32, $f: u16) -> (S, u16) $body
        }
    };
}

shift!(Shl, |a, n, _f| {
    let (r, c) = if S::BITS == 64 {
        (a.u() << n, a.u() >> (64 - n))
    } else {
        (a.u() << n, a.u() << n >> S::BITS)
    };
    let r = S::of(r);
    (r, r.szp() | carry(c) | overflow(msb::<S>(r.u()) ^ c & 1))
});

shift!(Shr, |a, n, _f| {
    let r = S::of(a.u() >> n);
    let c = a.u() >> (n - 1);
    (
        r,
        r.szp() | carry(c) | overflow(msb::<S>(r.u()) ^ msb::<S>(r.u() << 1)),
    )
});

shift!(Sar, |a, n, _f| {
    let r = S::of((a.i() >> n) as u64);
    (r, r.szp() | carry((a.i() >> (n - 1)) as u64))
});

shift!(Rol, |a, n, f| {
    let n = n % S::BITS;
    let r = if n == 0 {
        a.u()
    } else {
        a.u() << n | a.u() >> (S::BITS - n)
    };
    let r = S::of(r);
    (
        r,
        replace(
            f,
            CF | OF,
            carry(r.u()) | overflow(msb::<S>(r.u()) ^ r.u() & 1),
        ),
    )
});

shift!(Ror, |a, n, f| {
    let n = n % S::BITS;
    let r = if n == 0 {
        a.u()
    } else {
        a.u() >> n | a.u() << (S::BITS - n)
    };
    let r = S::of(r);
    let top = msb::<S>(r.u());
    (
        r,
        replace(
            f,
            CF | OF,
            carry(top) | overflow(top ^ msb::<S>(r.u() << 1)),
        ),
    )
});

shift!(Rcl, |a, n, f| {
    let width = S::BITS + 1;
    let n = n % width;
    let wide = u128::from(a.u()) | u128::from(f & CF != 0) << S::BITS;
    let r = if n == 0 {
        wide
    } else {
        wide << n | wide >> (width - n)
    };
    let c = (r >> S::BITS) as u64;
    let r = S::of(r as u64);
    (
        r,
        replace(f, CF | OF, carry(c) | overflow(msb::<S>(r.u()) ^ c & 1)),
    )
});

shift!(Rcr, |a, n, f| {
    let width = S::BITS + 1;
    let n = n % width;
    let wide = u128::from(a.u()) | u128::from(f & CF != 0) << S::BITS;
    let r = if n == 0 {
        wide
    } else {
        wide >> n | wide << (width - n)
    };
    let c = (r >> S::BITS) as u64;
    let r = S::of(r as u64);
    (
        r,
        replace(
            f,
            CF | OF,
            carry(c) | overflow(msb::<S>(r.u()) ^ msb::<S>(r.u() << 1)),
        ),
    )
});

fn mask<S: Int>() -> u32 {
    if S::BITS == 64 { 63 } else { 31 }
}

/// By a constant that the decoder found not to be zero once masked.
fn r_imm<S: Int, O: Shift>(c: &mut Core, op: At) -> Flow {
    let (r, f) = O::apply(c.reg::<S>(op.dst), op.imm as u32 & mask::<S>(), c.flags);
    c.flags = f;
    c.set_reg(op.dst, r);
    op.next(c)
}

fn r_cl<S: Int, O: Shift>(c: &mut Core, op: At) -> Flow {
    let n = u32::from(c.reg::<u8>(8)) & mask::<S>();
    let a = c.reg::<S>(op.dst);
    let r = if n == 0 {
        a
    } else {
        let (r, f) = O::apply(a, n, c.flags);
        c.flags = f;
        r
    };
    c.set_reg(op.dst, r);
    op.next(c)
}

/// In memory; `op.aux` is 1 when the count is in CL.
fn m<S: Int, O: Shift, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, true));
    let n = if op.aux != 0 {
        u32::from(c.reg::<u8>(8))
    } else {
        op.imm as u32
    } & mask::<S>();
    let (a, place) = ok!(c, op, c.load_for_write::<S>(at, op.seg));
    let (r, f) = if n == 0 {
        (a, c.flags)
    } else {
        O::apply(a, n, c.flags)
    };
    ok!(c, op, c.store_back(place, op.seg, r));
    c.flags = f;
    op.next(c)
}

/// `cl`: the count is in CL. Register destinations with a constant count of 0 are not passed here.
pub(crate) fn handler<O: Shift>(form: Option<u8>, size: usize, cl: bool) -> Handler {
    match (form, cl) {
        (None, false) => by_size!(size, r_imm, O),
        (None, true) => by_size!(size, r_cl, O),
        (Some(e), _) => by_size_form!(size, e, m, O),
    }
}

/// SHLD and SHRD. A 16-bit one by more than 16 (undefined) shifts in the destination again.
fn double<S: Int, const LEFT: bool>(a: S, b: S, n: u32) -> (S, u16) {
    let bits = S::BITS;
    let (r, c) = if LEFT {
        let wide = match bits {
            16 => u128::from(a.u()) << 32 | u128::from(b.u()) << 16 | u128::from(a.u()),
            _ => u128::from(a.u()) << bits | u128::from(b.u()),
        };
        let width = if bits == 16 { 48 } else { 2 * bits };
        let shifted = wide >> (width - bits - n);
        (shifted as u64, (wide >> (width - n)) as u64)
    } else {
        let wide = match bits {
            16 => u128::from(a.u()) << 32 | u128::from(b.u()) << 16 | u128::from(a.u()),
            _ => u128::from(b.u()) << bits | u128::from(a.u()),
        };
        ((wide >> n) as u64, (wide >> (n - 1)) as u64)
    };
    let r = S::of(r);
    (r, r.szp() | carry(c) | overflow(msb::<S>(a.u() ^ r.u())))
}

fn double_count<S: Int>(c: &Core, op: At) -> u32 {
    (if op.aux != 0 {
        u32::from(c.reg::<u8>(8))
    } else {
        op.imm as u32
    }) & mask::<S>()
}

pub(crate) fn double_r<S: Int, const LEFT: bool>(c: &mut Core, op: At) -> Flow {
    let n = double_count::<S>(c, op);
    let mut r = c.reg::<S>(op.dst);
    if n != 0 {
        let f;
        (r, f) = double::<S, LEFT>(r, c.reg::<S>(op.src), n);
        c.flags = f;
    }
    c.set_reg(op.dst, r);
    op.next(c)
}

pub(crate) fn double_m<S: Int, const LEFT: bool>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, crate::exec::run_time_address(c, op, S::BYTES, true));
    let n = double_count::<S>(c, op);
    let (a, place) = ok!(c, op, c.load_for_write::<S>(at, op.seg));
    let (r, f) = if n == 0 {
        (a, c.flags)
    } else {
        double::<S, LEFT>(a, c.reg::<S>(op.src), n)
    };
    ok!(c, op, c.store_back(place, op.seg, r));
    c.flags = f;
    op.next(c)
}
