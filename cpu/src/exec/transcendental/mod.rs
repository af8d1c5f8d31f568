//! FSIN FCOS FSINCOS FPTAN FPATAN F2XM1 FYL2X FYL2XP1.
//!
//! Results of these differ between processors in the last place (SDM vol. 1, 8.3.10 promises one unit),
//! so they are computed here, the same on every host: the exact result, rounded once in the direction
//! that the control word names, unless it lies within 2^-50 units in the last place of a point between
//! two roundings (see [`functions`]). Trigonometric ones reduce their argument by the x87's own pi of 66
//! bits (SDM vol. 1, 8.3.8), as silicon does. Precision control has no effect on them (8.1.5.2).
//!
//! What the manual leaves open: F2XM1 of an operand beyond 1 in magnitude returns it unchanged; FYL2XP1
//! takes any operand above -1, and is invalid from there down.

mod functions;
#[cfg(test)]
mod vectors;
mod wide;

use std::cmp::Ordering;

use self::wide::Wide;
use super::x87::{DEFAULT_NAN, run_register_form};
use crate::core::Core;
use crate::op::{At, Flow, ok};

const INVALID: u16 = 1;
const DENORMAL: u16 = 1 << 1;
const ZERO_DIVIDE: u16 = 1 << 2;
const OVERFLOW: u16 = 1 << 3;
const UNDERFLOW: u16 = 1 << 4;
const PRECISION: u16 = 1 << 5;
const STACK_FAULT: u16 = 1 << 6;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;

const SIGN: u128 = 1 << 79;
const INTEGER_BIT: u128 = 1 << 63;
const INFINITY: u128 = 0x7fff << 64 | INTEGER_BIT;
const LARGEST: u128 = 0x7ffe << 64 | u64::MAX as u128;
const ONE: u128 = 0x3fff << 64 | INTEGER_BIT;
const HALF: u128 = 0x3ffe << 64 | INTEGER_BIT;
const EXPONENT_MAX: i32 = 0x3fff;
const EXPONENT_MIN: i32 = -0x3ffe;
/// What an unmasked overflow or underflow takes off or adds to an exponent (SDM vol. 1, 8.5.4).
const BIAS_ADJUST: i32 = 24576;

/// An operand that is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Zero,
    Finite { exponent: i32, mantissa: u64 },
    Infinite,
}

#[derive(Debug, Clone, Copy)]
struct Operand {
    negative: bool,
    number: Number,
    denormal: bool,
}

impl Operand {
    /// `None` for NaNs and encodings that are no number.
    fn of(v: u128) -> Option<Operand> {
        let (exponent, mantissa) = ((v >> 64) as i32 & 0x7fff, v as u64);
        let number = match exponent {
            0 if mantissa == 0 => Number::Zero,
            0 => {
                let shift = mantissa.leading_zeros();
                Number::Finite {
                    exponent: EXPONENT_MIN - shift as i32,
                    mantissa: mantissa << shift,
                }
            }
            _ if mantissa >> 63 == 0 => return None,
            0x7fff if mantissa << 1 != 0 => return None,
            0x7fff => Number::Infinite,
            _ => Number::Finite {
                exponent: exponent - EXPONENT_MAX,
                mantissa,
            },
        };
        Some(Operand {
            negative: v & SIGN != 0,
            number,
            denormal: exponent == 0 && mantissa != 0,
        })
    }

    fn wide(self) -> Wide {
        match self.number {
            Number::Finite { exponent, mantissa } => {
                Wide::scaled(mantissa.into(), exponent - 63).negate_if(self.negative)
            }
            _ => Wide::ZERO,
        }
    }
}

/// A result with the exceptions that come with it.
#[derive(Debug, Clone, Copy)]
struct Answer {
    bits: u128,
    flags: u16,
    /// Rounded away from zero.
    up: bool,
}

impl Answer {
    fn exactly(bits: u128, negative: bool) -> Answer {
        Answer {
            bits: if negative { bits | SIGN } else { bits },
            flags: 0,
            up: false,
        }
    }

    fn invalid() -> Answer {
        Answer {
            bits: DEFAULT_NAN,
            flags: INVALID,
            up: false,
        }
    }
}

/// Whether rounding moves a magnitude up, by RC (control word bits 10 and 11).
fn rounds_up(control: u16, negative: bool, odd: bool, half: Ordering, rest: bool) -> bool {
    match control >> 10 & 3 {
        0 => half.is_gt() || (half.is_eq() && odd),
        1 => negative && rest,
        2 => !negative && rest,
        _ => false,
    }
}

/// Rounds to 64 bits. A `value` that is not `exact` stands for one a little beyond it.
fn round(value: Wide, exact: bool, control: u16) -> Answer {
    if value.is_zero() {
        return Answer::exactly(0, value.negative);
    }
    let mut exponent = value.exponent;
    let mut flags = 0;
    let normal = round_at(value, 64, exact, control);
    let (mut mantissa, mut inexact, mut up) = normal;
    // As if the exponent had no end; a carry out of the mantissa leaves a power of two.
    let carry = mantissa >> 64 != 0;
    let place = exponent + i32::from(carry);
    if place < EXPONENT_MIN {
        if control & UNDERFLOW == 0 {
            flags |= UNDERFLOW;
            exponent += BIAS_ADJUST;
        } else {
            let lost = (EXPONENT_MIN - exponent) as u32;
            (mantissa, inexact, up) = round_at(value, 64u32.saturating_sub(lost), exact, control);
            if inexact {
                flags |= UNDERFLOW | PRECISION;
            }
            let bits = if mantissa >> 63 != 0 {
                1 << 64 | mantissa
            } else {
                mantissa
            };
            return Answer {
                flags,
                up,
                ..Answer::exactly(bits, value.negative)
            };
        }
    } else if place > EXPONENT_MAX {
        flags |= OVERFLOW;
        if control & OVERFLOW == 0 {
            exponent -= BIAS_ADJUST;
        } else {
            let beyond = rounds_up(control, value.negative, true, Ordering::Greater, true);
            let bits = if beyond { INFINITY } else { LARGEST };
            return Answer {
                flags: flags | PRECISION,
                up: beyond,
                ..Answer::exactly(bits, value.negative)
            };
        }
    }
    if carry {
        mantissa >>= 1;
        exponent += 1;
    }
    if inexact {
        flags |= PRECISION;
    }
    let bits = ((exponent + EXPONENT_MAX) as u128 & 0x7fff) << 64 | mantissa;
    Answer {
        flags,
        up,
        ..Answer::exactly(bits, value.negative)
    }
}

/// The upper `bits` bits of the mantissa, rounded, whether that lost anything, and whether it went up.
fn round_at(value: Wide, bits: u32, exact: bool, control: u16) -> (u128, bool, bool) {
    let drop = 128 - bits;
    let kept = value.mantissa.checked_shr(drop).unwrap_or(0);
    let rest = if drop >= 128 {
        value.mantissa
    } else {
        value.mantissa & ((1 << drop) - 1)
    };
    let half = if bits == 0 && value.mantissa >> 127 == 0 {
        Ordering::Less
    } else {
        match rest.cmp(&(1 << (drop.min(128) - 1))) {
            Ordering::Equal if !exact => Ordering::Greater,
            order => order,
        }
    };
    let inexact = rest != 0 || !exact;
    let up = rounds_up(control, value.negative, kept & 1 == 1, half, inexact);
    (kept + u128::from(up), inexact, up)
}

pub(crate) const SIN: u8 = 0;
pub(crate) const COS: u8 = 1;
pub(crate) const SINCOS: u8 = 2;
pub(crate) const TAN: u8 = 3;
pub(crate) const EXP: u8 = 4;
pub(crate) const ATAN: u8 = 5;
pub(crate) const LOG: u8 = 6;
pub(crate) const LOG_PLUS_1: u8 = 7;

/// FSQRT and FADDP do with NaNs, other non-numbers and an empty stack what these do, with any mask.
const FSQRT: (u8, u8) = (0xd9, 0xfa);
const FADDP: (u8, u8) = (0xde, 0xc1);

/// One of the eight.
pub(crate) fn execute<const K: u8>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87_waiting());
    c.note_x87(op);
    match K {
        SIN | COS | EXP => one_operand::<K>(c),
        SINCOS | TAN => pushing::<K>(c),
        _ => two_operands::<K>(c),
    }
    op.next(c)
}

impl Core {
    fn is_empty(&self, i: usize) -> bool {
        self.fpu.tags >> ((self.fpu.top() + i) & 7) & 1 == 0
    }

    fn st(&self, i: usize) -> u128 {
        self.fpu.st[(self.fpu.top() + i) & 7]
    }

    fn set_st(&mut self, i: usize, v: u128) {
        let register = (self.fpu.top() + i) & 7;
        self.fpu.st[register] = v;
        self.fpu.tags |= 1 << register;
    }

    fn move_top(&mut self, by: usize) {
        let top = (self.fpu.top() + by) & 7;
        self.fpu.status = self.fpu.status & !0x3800 | (top as u16) << 11;
    }

    /// Notes exceptions. Whether results are to be stored: no unmasked one of those found before there is
    /// a result.
    fn account(&mut self, flags: u16, up: bool) -> bool {
        let before = flags & (INVALID | DENORMAL | ZERO_DIVIDE) & !self.fpu.control != 0;
        let flags = if before {
            flags & !(OVERFLOW | UNDERFLOW | PRECISION)
        } else {
            flags
        };
        self.fpu.status |= flags;
        if up && !before {
            self.fpu.status |= C1;
        }
        self.fpu.summarize();
        !before
    }
}

fn trigonometric(x: Operand, control: u16, function: fn(i32, u64) -> Wide, odd: bool) -> Answer {
    match x.number {
        Number::Zero if odd => Answer::exactly(0, x.negative),
        Number::Zero => Answer::exactly(ONE, false),
        Number::Infinite => Answer::invalid(),
        Number::Finite { exponent, mantissa } => {
            let value = function(exponent, mantissa);
            round(value.negate_if(odd && x.negative), false, control)
        }
    }
}

fn sine(exponent: i32, mantissa: u64) -> Wide {
    functions::sine_cosine(exponent, mantissa).0
}

fn cosine(exponent: i32, mantissa: u64) -> Wide {
    functions::sine_cosine(exponent, mantissa).1
}

fn exponential(x: Operand, bits: u128, control: u16) -> Answer {
    match x.number {
        Number::Zero => Answer::exactly(0, x.negative),
        Number::Infinite if x.negative => Answer::exactly(ONE, true),
        Number::Infinite => Answer::exactly(INFINITY, false),
        Number::Finite { .. } => match x.wide().compare_magnitude(Wide::ONE) {
            Ordering::Greater => Answer::exactly(bits & !SIGN, x.negative),
            Ordering::Equal if x.negative => Answer::exactly(HALF, true),
            Ordering::Equal => Answer::exactly(ONE, false),
            Ordering::Less => round(functions::exponential_minus_one(x.wide()), false, control),
        },
    }
}

/// Beyond what the trigonometric instructions take.
fn too_large(x: Operand) -> bool {
    matches!(x.number, Number::Finite { exponent, .. } if exponent >= 63)
}

fn denormal(x: Operand) -> u16 {
    if x.denormal { DENORMAL } else { 0 }
}

fn one_operand<const K: u8>(c: &mut Core) {
    let bits = c.st(0);
    let Some(x) = Operand::of(bits).filter(|_| !c.is_empty(0)) else {
        run_register_form(c, FSQRT);
        if K != EXP {
            c.fpu.status &= !C2;
        }
        return;
    };
    c.fpu.status &= !C1;
    if K != EXP {
        c.fpu.status &= !C2;
        if too_large(x) {
            c.fpu.status |= C2;
            return;
        }
    }
    let control = c.fpu.control;
    let mut answer = match K {
        SIN => trigonometric(x, control, sine, true),
        COS => trigonometric(x, control, cosine, false),
        _ => exponential(x, bits, control),
    };
    answer.flags |= denormal(x);
    if c.account(answer.flags, answer.up) {
        c.set_st(0, answer.bits);
    }
}

/// FSINCOS and FPTAN: the result replaces ST(0), and the cosine or 1 is pushed.
fn pushing<const K: u8>(c: &mut Core) {
    c.fpu.status &= !(C1 | C2);
    let control = c.fpu.control;
    let overflow = !c.is_empty(7);
    let bits = c.st(0);
    if overflow || c.is_empty(0) {
        let up = if overflow { C1 } else { 0 };
        c.fpu.status |= up;
        if c.account(INVALID | STACK_FAULT, false) {
            c.set_st(0, DEFAULT_NAN);
            c.move_top(7);
            c.set_st(0, DEFAULT_NAN);
        }
        return;
    }
    let Some(x) = Operand::of(bits) else {
        run_register_form(c, FSQRT);
        if c.fpu.status & INVALID & !control == 0 {
            let nan = c.st(0);
            c.move_top(7);
            c.set_st(0, nan);
        }
        return;
    };
    if too_large(x) {
        c.fpu.status |= C2;
        return;
    }
    let (first, second) = if K == SINCOS {
        (
            trigonometric(x, control, sine, true),
            trigonometric(x, control, cosine, false),
        )
    } else {
        let tangent = trigonometric(x, control, functions::tangent, true);
        let pushed = if tangent.flags & INVALID != 0 {
            tangent
        } else {
            Answer::exactly(ONE, false)
        };
        (tangent, pushed)
    };
    let up = if K == SINCOS { second.up } else { first.up };
    if c.account(first.flags | second.flags | denormal(x), up) {
        c.set_st(0, first.bits);
        c.move_top(7);
        c.set_st(0, second.bits);
    }
}

fn arc(y: Operand, x: Operand, control: u16) -> Answer {
    use Number::{Finite, Infinite, Zero};
    let (pi, half) = (functions::PI, functions::HALF_PI);
    let quarter = Wide {
        exponent: half.exponent - 1,
        ..half
    };
    let angle = match (y.number, x.number) {
        (Zero, _) | (Finite { .. }, Infinite) if !x.negative => {
            return Answer::exactly(0, y.negative);
        }
        (Zero, _) | (Finite { .. }, Infinite) => pi,
        (Infinite, Infinite) if x.negative => pi.sub(quarter),
        (Infinite, Infinite) => quarter,
        (Infinite, _) | (Finite { .. }, Zero) => half,
        (Finite { .. }, Finite { .. }) => {
            let angle = functions::arc_tangent(y.wide().abs(), x.wide().abs());
            if x.negative { pi.sub(angle) } else { angle }
        }
    };
    round(angle.negate_if(y.negative), false, control)
}

fn logarithm(y: Operand, x: Operand, control: u16) -> Answer {
    use Number::{Finite, Infinite, Zero};
    if x.negative && x.number != Zero {
        return Answer::invalid();
    }
    match (x.number, y.number) {
        (Zero | Infinite, Zero) => Answer::invalid(),
        // The logarithm of zero is minus infinity.
        (Zero, Infinite) => Answer::exactly(INFINITY, !y.negative),
        (Zero, Finite { .. }) => Answer {
            flags: ZERO_DIVIDE,
            ..Answer::exactly(INFINITY, !y.negative)
        },
        (Infinite, _) => Answer::exactly(INFINITY, y.negative),
        (Finite { mantissa, .. }, _) => {
            let log = functions::logarithm(x.wide());
            product(log, mantissa << 1 == 0, y, control)
        }
    }
}

/// `log * y`; `exact` says whether the logarithm is.
fn product(log: Wide, exact: bool, y: Operand, control: u16) -> Answer {
    match y.number {
        Number::Infinite if log.is_zero() => Answer::invalid(),
        Number::Infinite => Answer::exactly(INFINITY, y.negative != log.negative),
        Number::Zero => Answer::exactly(0, y.negative != log.negative),
        Number::Finite { .. } if log.is_zero() => Answer::exactly(0, y.negative != log.negative),
        Number::Finite { .. } => round(log.mul(y.wide()), exact, control),
    }
}

fn logarithm_plus_1(y: Operand, x: Operand, control: u16) -> Answer {
    match x.number {
        Number::Zero => product(Wide::ZERO.negate_if(x.negative), true, y, control),
        Number::Infinite if x.negative || y.number == Number::Zero => Answer::invalid(),
        Number::Infinite => Answer::exactly(INFINITY, y.negative),
        Number::Finite { .. } => {
            let w = x.wide();
            if w.negative && !w.compare_magnitude(Wide::ONE).is_lt() {
                return Answer::invalid();
            }
            let log = functions::logarithm_of_one_plus(w);
            product(log, false, y, control)
        }
    }
}

/// FPATAN, FYL2X and FYL2XP1: the result replaces ST(1), and ST(0) is popped.
fn two_operands<const K: u8>(c: &mut Core) {
    let numbers = (Operand::of(c.st(1)), Operand::of(c.st(0)));
    let (Some(y), Some(x), false) = (numbers.0, numbers.1, c.is_empty(0) || c.is_empty(1)) else {
        run_register_form(c, FADDP);
        return;
    };
    c.fpu.status &= !C1;
    let control = c.fpu.control;
    let mut answer = match K {
        ATAN => arc(y, x, control),
        LOG => logarithm(y, x, control),
        _ => logarithm_plus_1(y, x, control),
    };
    if answer.flags & (INVALID | ZERO_DIVIDE) == 0 {
        answer.flags |= denormal(x) | denormal(y);
    }
    if c.account(answer.flags, answer.up) {
        c.set_st(1, answer.bits);
        let top = c.fpu.top();
        c.fpu.tags &= !(1 << top);
        c.move_top(1);
    }
}
