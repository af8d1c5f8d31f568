//! BT BTS BTR BTC, BSF BSR, and the flag instructions.
//!
//! BT and kin define CF only (and ZF stays): the others keep their values. BSF and BSR define ZF
//! only; by rule the others keep theirs, and a source of zero leaves the destination.

use crate::core::Core;
use crate::exec::int::Int;
use crate::exec::{run_time_address, stepped_address};
use crate::flags::{AF, CF, DF, IF, PF, SF, ZF};
use crate::op::{At, Flow, ok};

pub(crate) const TEST: u8 = 0;
pub(crate) const SET: u8 = 1;
pub(crate) const RESET: u8 = 2;
pub(crate) const COMPLEMENT: u8 = 3;

#[inline(always)]
fn change<S: Int, const K: u8>(c: &mut Core, v: S, bit: u64) -> S {
    let mask = 1 << (bit & u64::from(S::BITS - 1));
    c.flags = (c.flags & !CF) | if v.u() & mask != 0 { CF } else { 0 };
    S::of(match K {
        TEST => v.u(),
        SET => v.u() | mask,
        RESET => v.u() & !mask,
        _ => v.u() ^ mask,
    })
}

pub(crate) fn r<S: Int, const K: u8>(c: &mut Core, op: At) -> Flow {
    let bit = if op.aux != 0 {
        op.imm
    } else {
        c.reg::<S>(op.src).u()
    };
    let v = change::<S, K>(c, c.reg::<S>(op.dst), bit);
    if K != TEST {
        c.set_reg(op.dst, v);
    }
    op.next(c)
}

/// In memory; a register bit number reaches beyond the operand (SDM vol. 2, BT).
pub(crate) fn m<S: Int, const K: u8>(c: &mut Core, op: At) -> Flow {
    let bit = if op.aux != 0 {
        op.imm
    } else {
        c.reg::<S>(op.src).i() as u64
    };
    let step = if op.aux != 0 {
        0
    } else {
        (bit as i64 >> S::BITS.trailing_zeros()) * S::BYTES as i64
    };
    let at = ok!(c, op, stepped_address(c, op, step, S::BYTES, K != TEST));
    if K == TEST {
        let v = ok!(c, op, c.load::<S>(at, op.seg));
        change::<S, K>(c, v, bit);
    } else {
        let (v, place) = ok!(c, op, c.load_for_write::<S>(at, op.seg));
        let old = c.flags;
        let v = change::<S, K>(c, v, bit);
        let new = std::mem::replace(&mut c.flags, old);
        ok!(c, op, c.store_back(place, op.seg, v));
        c.flags = new;
    }
    op.next(c)
}

/// BSF (`LAST` false) and BSR; `op.aux` is 1 when the source is in memory.
pub(crate) fn scan<S: Int, const LAST: bool>(c: &mut Core, op: At) -> Flow {
    let v = if op.aux != 0 {
        let at = ok!(c, op, run_time_address(c, op, S::BYTES, false));
        ok!(c, op, c.load::<S>(at, op.seg))
    } else {
        c.reg::<S>(op.src)
    };
    if v.u() == 0 {
        c.flags |= ZF;
    } else {
        c.flags &= !ZF;
        let bit = if LAST {
            63 - v.u().leading_zeros()
        } else {
            v.u().trailing_zeros()
        };
        c.set_reg(op.dst, S::of(u64::from(bit)));
    }
    op.next(c)
}

pub(crate) fn clc(c: &mut Core, op: At) -> Flow {
    c.flags &= !CF;
    op.next(c)
}

pub(crate) fn stc(c: &mut Core, op: At) -> Flow {
    c.flags |= CF;
    op.next(c)
}

pub(crate) fn cmc(c: &mut Core, op: At) -> Flow {
    c.flags ^= CF;
    op.next(c)
}

pub(crate) fn cld(c: &mut Core, op: At) -> Flow {
    c.system_flags &= !DF;
    op.next(c)
}

pub(crate) fn std(c: &mut Core, op: At) -> Flow {
    c.system_flags |= DF;
    op.next(c)
}

pub(crate) fn lahf(c: &mut Core, op: At) -> Flow {
    let v = crate::flags::to_rflags(c.flags) as u8 | 2;
    c.set_reg(1, v);
    op.next(c)
}

pub(crate) fn sahf(c: &mut Core, op: At) -> Flow {
    let mask = SF | ZF | AF | PF | CF;
    let v = u16::from(c.reg::<u8>(1)) << 8;
    c.flags = crate::flags::replace(c.flags, mask, v);
    op.next(c)
}

/// CLI, without virtual interrupts.
pub(crate) fn cli(c: &mut Core, op: At) -> Flow {
    if u64::from(c.cpl) > (c.system_flags & crate::flags::IOPL) >> 12 {
        c.gp();
        return op.leave(c);
    }
    c.system_flags &= !IF;
    op.next(c)
}
