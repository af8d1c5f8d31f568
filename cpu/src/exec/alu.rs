//! ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NEG NOT.

use crate::core::Core;
use crate::exec::int::{self, Int};
use crate::exec::{address, by_size, by_size_form};
use crate::flags::{CF, OF};
use crate::op::{At, Flow, Handler, ok};

/// A two-operand operation.
pub(crate) trait Alu: 'static {
    /// Whether the result is kept (CMP and TEST drop it).
    const KEEPS: bool;
    fn apply<S: Int>(a: S, b: S, flags: u16) -> (S, u16);
}

macro_rules! alu {
    ($name:ident, $keeps:literal, |$a:ident, $b:ident, $f:ident| $body:expr) => {
        pub(crate) struct $name;
        impl Alu for $name {
            const KEEPS: bool = $keeps;
            #[inline(always)]
            fn apply<S: Int>($a: S, $b: S, $f: u16) -> (S, u16) {
                $body
            }
        }
    };
}

fn logic<S: Int>(r: u64) -> (S, u16) {
    let r = S::of(r);
    (r, r.szp())
}

alu!(Add, true, |a, b, _f| a.add(b));
alu!(Or, true, |a, b, _f| logic(a.u() | b.u()));
alu!(Adc, true, |a, b, f| a.adc(b, f));
alu!(Sbb, true, |a, b, f| a.sbb(b, f));
alu!(And, true, |a, b, _f| logic(a.u() & b.u()));
alu!(Sub, true, |a, b, _f| a.sub(b));
alu!(Xor, true, |a, b, _f| logic(a.u() ^ b.u()));
alu!(Cmp, false, |a, b, _f| a.sub(b));
alu!(Test, false, |a, b, _f| logic(a.u() & b.u()));

fn rr<S: Int, O: Alu>(c: &mut Core, op: At) -> Flow {
    let (r, f) = O::apply(c.reg::<S>(op.dst), c.reg::<S>(op.src), c.flags);
    c.flags = f;
    if O::KEEPS {
        c.set_reg(op.dst, r);
    }
    op.next(c)
}

fn ri<S: Int, O: Alu>(c: &mut Core, op: At) -> Flow {
    let (r, f) = O::apply(c.reg::<S>(op.dst), S::of(op.imm), c.flags);
    c.flags = f;
    if O::KEEPS {
        c.set_reg(op.dst, r);
    }
    op.next(c)
}

fn rm<S: Int, O: Alu, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    c.load_then::<S>(op, at, op.seg, |c, op, b| {
        let (r, f) = O::apply(c.reg::<S>(op.dst), b, c.flags);
        c.flags = f;
        if O::KEEPS {
            c.set_reg(op.dst, r);
        }
        op.next(c)
    })
}

fn mr<S: Int, O: Alu, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, O::KEEPS));
    if O::KEEPS {
        return c.modify::<S>(op, at, op.seg, |c, op, a| {
            O::apply(a, c.reg::<S>(op.src), c.flags)
        });
    }
    c.load_then::<S>(op, at, op.seg, |c, op, a| {
        c.flags = O::apply(a, c.reg::<S>(op.src), c.flags).1;
        op.next(c)
    })
}

fn mi<S: Int, O: Alu, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, O::KEEPS));
    if O::KEEPS {
        return c.modify::<S>(op, at, op.seg, |c, op, a| {
            O::apply(a, S::of(op.imm), c.flags)
        });
    }
    c.load_then::<S>(op, at, op.seg, |c, op, a| {
        c.flags = O::apply(a, S::of(op.imm), c.flags).1;
        op.next(c)
    })
}

/// Where the operands are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    RegReg,
    RegImm,
    /// Destination register; the memory operand's form.
    RegMem(u8),
    MemReg(u8),
    MemImm(u8),
}

pub(crate) fn handler<O: Alu>(shape: Shape, size: usize) -> Handler {
    match shape {
        Shape::RegReg => by_size!(size, rr, O),
        Shape::RegImm => by_size!(size, ri, O),
        Shape::RegMem(e) => by_size_form!(size, e, rm, O),
        Shape::MemReg(e) => by_size_form!(size, e, mr, O),
        Shape::MemImm(e) => by_size_form!(size, e, mi, O),
    }
}

/// A one-operand operation.
pub(crate) trait Unary: 'static {
    fn apply<S: Int>(a: S, flags: u16) -> (S, u16);
}

macro_rules! unary {
    ($name:ident, |$a:ident, $f:ident| $body:expr) => {
        pub(crate) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<S: Int>($a: S, $f: u16) -> (S, u16) {
                $body
            }
        }
    };
}

unary!(Inc, |a, f| int::inc(a, f));
unary!(Dec, |a, f| int::dec(a, f));
unary!(Neg, |a, _f| S::of(0).sub(a));
unary!(Not, |a, f| (S::of(!a.u()), f));

fn unary_r<S: Int, O: Unary>(c: &mut Core, op: At) -> Flow {
    let (r, f) = O::apply(c.reg::<S>(op.dst), c.flags);
    c.flags = f;
    c.set_reg(op.dst, r);
    op.next(c)
}

fn unary_m<S: Int, O: Unary, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, true));
    c.modify::<S>(op, at, op.seg, |c, _, a| O::apply(a, c.flags))
}

/// `form` of the memory operand, or none for a register.
pub(crate) fn unary_handler<O: Unary>(form: Option<u8>, size: usize) -> Handler {
    match form {
        None => by_size!(size, unary_r, O),
        Some(e) => by_size_form!(size, e, unary_m, O),
    }
}

/// What CF and OF both are after MUL: whether the upper half is significant.
pub(crate) fn overflow(significant: bool) -> u16 {
    if significant { CF | OF } else { 0 }
}
