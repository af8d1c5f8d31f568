//! MOV and kin, LEA, XCHG, CMOVcc, SETcc, XADD, CMPXCHG, CMPXCHG8B, BSWAP, sign extensions.

use crate::core::Core;
use crate::exec::int::Int;
use crate::exec::{address, offset, stepped_address};
use crate::flags::{ZF, condition};
use crate::op::{At, Flow, ok};

pub(crate) fn nop(c: &mut Core, op: At) -> Flow {
    op.next(c)
}

pub(crate) fn mov_rr<S: Int>(c: &mut Core, op: At) -> Flow {
    c.set_reg(op.dst, c.reg::<S>(op.src));
    op.next(c)
}

pub(crate) fn mov_ri<S: Int>(c: &mut Core, op: At) -> Flow {
    c.set_reg(op.dst, S::of(op.imm));
    op.next(c)
}

pub(crate) fn mov_rm<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    c.load_then::<S>(op, at, op.seg, |c, op, v| {
        c.set_reg(op.dst, v);
        op.next(c)
    })
}

pub(crate) fn mov_mr<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, true));
    c.store_then(op, at, op.seg, c.reg::<S>(op.src), |c, op| op.next(c))
}

pub(crate) fn mov_mi<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, true));
    c.store_then(op, at, op.seg, S::of(op.imm), |c, op| op.next(c))
}

/// MOV between the accumulator and a 64-bit address in the immediate.
pub(crate) fn mov_moffs<S: Int, const STORE: bool>(c: &mut Core, op: At) -> Flow {
    let at = op.imm.wrapping_add(c.seg_base[usize::from(op.seg & 7)]);
    if STORE {
        ok!(c, op, c.store::<S>(at, op.seg, c.reg::<S>(0)));
    } else {
        let v = ok!(c, op, c.load::<S>(at, op.seg));
        c.set_reg(0, v);
    }
    op.next(c)
}

/// MOVZX: `D` is at most 32 bits wide (a 64-bit one is the same).
pub(crate) fn movzx_rr<D: Int, S: Int>(c: &mut Core, op: At) -> Flow {
    c.set_reg(op.dst, D::of(c.reg::<S>(op.src).u()));
    op.next(c)
}

pub(crate) fn movzx_rm<D: Int, S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    c.load_then::<S>(op, at, op.seg, |c, op, v| {
        c.set_reg(op.dst, D::of(v.u()));
        op.next(c)
    })
}

pub(crate) fn movsx_rr<D: Int, S: Int>(c: &mut Core, op: At) -> Flow {
    c.set_reg(op.dst, D::of(c.reg::<S>(op.src).i() as u64));
    op.next(c)
}

pub(crate) fn movsx_rm<D: Int, S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    c.load_then::<S>(op, at, op.seg, |c, op, v| {
        c.set_reg(op.dst, D::of(v.i() as u64));
        op.next(c)
    })
}

/// LEA; the decoder never gives it a segment base.
pub(crate) fn lea<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = if E == crate::exec::ANY {
        offset(c, op)
    } else {
        ok!(c, op, address::<E>(c, op, 1, false))
    };
    c.set_reg(op.dst, S::of(at));
    op.next(c)
}

pub(crate) fn xchg_rr<S: Int>(c: &mut Core, op: At) -> Flow {
    let (a, b) = (c.reg::<S>(op.dst), c.reg::<S>(op.src));
    c.set_reg(op.dst, b);
    c.set_reg(op.src, a);
    op.next(c)
}

pub(crate) fn xchg_mr<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, true));
    let (a, place) = ok!(c, op, c.load_for_write::<S>(at, op.seg));
    ok!(c, op, c.store_back(place, op.seg, c.reg::<S>(op.src)));
    c.set_reg(op.src, a);
    op.next(c)
}

pub(crate) fn cmov_rr<S: Int, const CC: u8>(c: &mut Core, op: At) -> Flow {
    let v = if condition(CC, c.flags) {
        c.reg::<S>(op.src)
    } else {
        c.reg::<S>(op.dst)
    };
    // A 32-bit destination's upper half is cleared either way.
    c.set_reg(op.dst, v);
    op.next(c)
}

/// CMOVcc from memory: the load happens, and faults, either way.
pub(crate) fn cmov_rm<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    let m = ok!(c, op, c.load::<S>(at, op.seg));
    let v = if condition(op.aux as u8, c.flags) {
        m
    } else {
        c.reg::<S>(op.dst)
    };
    c.set_reg(op.dst, v);
    op.next(c)
}

pub(crate) fn setcc_r<const CC: u8>(c: &mut Core, op: At) -> Flow {
    c.set_reg(op.dst, u8::from(condition(CC, c.flags)));
    op.next(c)
}

pub(crate) fn setcc_m<const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, 1, true));
    let v = u8::from(condition(op.aux as u8, c.flags));
    ok!(c, op, c.store::<u8>(at, op.seg, v));
    op.next(c)
}

pub(crate) fn xadd_rr<S: Int>(c: &mut Core, op: At) -> Flow {
    let (a, b) = (c.reg::<S>(op.dst), c.reg::<S>(op.src));
    let (r, f) = a.add(b);
    c.flags = f;
    c.set_reg(op.src, a);
    c.set_reg(op.dst, r);
    op.next(c)
}

pub(crate) fn xadd_mr<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, true));
    let (a, place) = ok!(c, op, c.load_for_write::<S>(at, op.seg));
    let (r, f) = a.add(c.reg::<S>(op.src));
    ok!(c, op, c.store_back(place, op.seg, r));
    c.flags = f;
    c.set_reg(op.src, a);
    op.next(c)
}

pub(crate) fn cmpxchg_rr<S: Int>(c: &mut Core, op: At) -> Flow {
    let old = c.reg::<S>(op.dst);
    let (_, f) = c.reg::<S>(0).sub(old);
    c.flags = f;
    if f & ZF != 0 {
        c.set_reg(op.dst, c.reg::<S>(op.src));
    } else {
        c.set_reg(0, old);
    }
    op.next(c)
}

pub(crate) fn cmpxchg_mr<S: Int, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, true));
    let (old, place) = ok!(c, op, c.load_for_write::<S>(at, op.seg));
    let (_, f) = c.reg::<S>(0).sub(old);
    // The store happens either way (SDM vol. 2, CMPXCHG).
    let new = if f & ZF != 0 { c.reg::<S>(op.src) } else { old };
    ok!(c, op, c.store_back(place, op.seg, new));
    c.flags = f;
    if f & ZF == 0 {
        c.set_reg(0, old);
    }
    op.next(c)
}

pub(crate) fn cmpxchg8b<const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, 8, true));
    let (old, place) = ok!(c, op, c.load_for_write::<u64>(at, op.seg));
    let pair = |high: usize, low: usize| c.regs[high] << 32 | c.regs[low] & 0xffff_ffff;
    let equal = pair(2, 0) == old;
    let new = if equal { pair(1, 3) } else { old };
    ok!(c, op, c.store_back(place, op.seg, new));
    if equal {
        c.flags |= ZF;
    } else {
        c.flags &= !ZF;
        c.regs[0] = old & 0xffff_ffff;
        c.regs[2] = old >> 32;
    }
    op.next(c)
}

/// BSWAP; of a 16-bit register undefined, by rule zero (as processors do).
pub(crate) fn bswap<S: Int>(c: &mut Core, op: At) -> Flow {
    let v = c.reg::<S>(op.dst);
    let r = if S::BYTES == 2 {
        0
    } else {
        v.u().swap_bytes() >> (64 - S::BITS)
    };
    c.set_reg(op.dst, S::of(r));
    op.next(c)
}

/// CBW CWDE CDQE: `H` to the accumulator of twice the width, `D`.
pub(crate) fn extend<D: Int, H: Int>(c: &mut Core, op: At) -> Flow {
    c.set_reg(0, D::of(c.reg::<H>(0).i() as u64));
    op.next(c)
}

/// CWD CDQ CQO: the accumulator's sign into RDX.
pub(crate) fn sign<S: Int>(c: &mut Core, op: At) -> Flow {
    c.set_reg(16, S::of((c.reg::<S>(0).i() >> 63) as u64));
    op.next(c)
}

/// XLAT: AL, unsigned, is the index.
pub(crate) fn xlat(c: &mut Core, op: At) -> Flow {
    let index = i64::from(c.reg::<u8>(0));
    let at = ok!(c, op, stepped_address(c, op, index, 1, false));
    let v = ok!(c, op, c.load::<u8>(at, op.seg));
    c.set_reg(0, v);
    op.next(c)
}
