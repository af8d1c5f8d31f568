//! The elementary functions, to about 120 bits.
//!
//! Series are summed by Horner's rule, innermost term first, so the error of a step is multiplied by
//! the (small) argument of every step behind it: a whole sum errs by a few units of 2^-126. They end
//! where the next term is below 2^-130 of the first. Rounded to 64 bits, results are therefore the correct
//! ones unless the exact value lies within 2^-50 of a unit in the last place of a rounding boundary.

use super::wide::Wide;

pub(super) const PI: Wide = Wide::new(1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);
pub(super) const HALF_PI: Wide = Wide::new(0, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);
const LN_2: Wide = Wide::new(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
const LOG2_E: Wide = Wide::new(0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88);
/// sqrt(2), to a few bits.
const ROOT_2: Wide = Wide::new(0, 0xb504 << 112);

/// atan(k/8) for k = 1..8.
const ATAN_EIGHTHS: [Wide; 8] = [
    Wide::new(-4, 0xfead_d4d5_617b_6e32_c897_989f_3e88_8ef7),
    Wide::new(-3, 0xfadb_afc9_6406_eb15_6dc7_9ef5_f7a2_17e5),
    Wide::new(-2, 0xb7b0_ca0f_26f7_8473_8aa3_2122_dcfe_4483),
    Wide::new(-2, 0xed63_382b_0dda_7b45_6fe4_45ec_bc3a_8d03),
    Wide::new(-1, 0x8f00_5d5e_f7f5_9f9b_5c83_5e16_65c4_3747),
    Wide::new(-1, 0xa4bc_7d19_34f7_0924_19a8_7f2a_457d_ac9e),
    Wide::new(-1, 0xb805_3e2b_c231_9e73_cb2d_a552_10a4_443d),
    Wide::new(-1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
];

/// Pi as x87 units have it (SDM vol. 1, 8.3.8: C90FDAA2 2168C234 C, 66 bits), times 2^64; or half of it,
/// times 2^65.
const PI_66: u128 = 0xc_90fd_aa22_168c_234c >> 2;

fn int(n: u64) -> Wide {
    Wide::scaled(n.into(), 0)
}

/// `1 +- a`, where `a` is below 1 in magnitude.
fn one_plus(a: Wide) -> Wide {
    Wide::ONE.add(a)
}

/// Takes multiples of pi/2 off `mantissa * 2^(exponent - 63)`, which is below 2^63: what remains, at most
/// pi/4 in magnitude, and the number of multiples modulo 4. With the unit's own pi this is exact, since
/// both numbers are integers at a scale of 2^-65.
fn reduce(exponent: i32, mantissa: u64) -> (Wide, u8) {
    if exponent < -2 {
        return (Wide::scaled(mantissa.into(), exponent - 63), 0);
    }
    let mut rest = 0_u128;
    let mut multiples = 0_u8;
    let mut bit = |b: u64| {
        rest = rest << 1 | u128::from(b);
        multiples <<= 1;
        if rest >= PI_66 {
            rest -= PI_66;
            multiples |= 1;
        }
    };
    for i in (0..64).rev() {
        bit(mantissa >> i & 1);
    }
    for _ in 0..exponent + 2 {
        bit(0);
    }
    if 2 * rest > PI_66 {
        let r = Wide::scaled(PI_66 - rest, -65).negate_if(true);
        return (r, multiples.wrapping_add(1) & 3);
    }
    (Wide::scaled(rest, -65), multiples & 3)
}

/// Sine for at most pi/4.
fn sine_series(x: Wide) -> Wide {
    let square = x.mul(x);
    let sum = (1..=17).rev().fold(Wide::ONE, |sum, k| {
        one_plus(square.mul(sum).over(2 * k * (2 * k + 1)).negate_if(true))
    });
    x.mul(sum)
}

/// Cosine for at most pi/4.
fn cosine_series(x: Wide) -> Wide {
    let square = x.mul(x);
    (1..=17).rev().fold(Wide::ONE, |sum, k| {
        one_plus(square.mul(sum).over((2 * k - 1) * 2 * k).negate_if(true))
    })
}

/// Sine and cosine of the positive number `mantissa * 2^(exponent - 63)`, below 2^63.
pub(super) fn sine_cosine(exponent: i32, mantissa: u64) -> (Wide, Wide) {
    let (r, quarter) = reduce(exponent, mantissa);
    let (s, c) = (sine_series(r), cosine_series(r));
    match quarter {
        0 => (s, c),
        1 => (c, s.negate_if(true)),
        2 => (s.negate_if(true), c.negate_if(true)),
        _ => (c.negate_if(true), s),
    }
}

/// Tangent, as [`sine_cosine`].
pub(super) fn tangent(exponent: i32, mantissa: u64) -> Wide {
    if exponent < -60 {
        // x + x^3/3: a little more than x.
        let x = Wide::scaled(mantissa.into(), exponent - 63);
        return x.mul(one_plus(Wide::scaled(1, -100)));
    }
    let (s, c) = sine_cosine(exponent, mantissa);
    s.div(c)
}

/// Arc tangent for at most 1/16.
fn arc_series(u: Wide) -> Wide {
    let square = u.mul(u);
    let sum = (0..17).rev().fold(Wide::ONE.over(35), |sum, k| {
        Wide::ONE.over(2 * k + 1).sub(square.mul(sum))
    });
    u.mul(sum)
}

/// Arc tangent of `a / b`, both positive.
pub(super) fn arc_tangent(a: Wide, b: Wide) -> Wide {
    if a.compare_magnitude(b).is_gt() {
        return HALF_PI.sub(arc_tangent(b, a));
    }
    // The nearest eighth k of t = a/b, and atan t = atan(k/8) + atan((t - k/8) / (1 + t k/8)).
    let t = a.div(b);
    let eighth = if t.exponent < -5 {
        0
    } else {
        (((t.mantissa >> 64) as u64 >> (-t.exponent) as u32 >> 59) + 1) >> 1
    };
    if eighth == 0 {
        return arc_series(t);
    }
    let eight_t = Wide {
        exponent: t.exponent + 3,
        ..t
    };
    let over = eight_t.sub(int(eighth));
    let under = int(8).add(t.mul(int(eighth)));
    ATAN_EIGHTHS[eighth as usize - 1].add(arc_series(over.div(under)))
}

/// `2^x - 1` for at most 1 in magnitude.
pub(super) fn exponential_minus_one(x: Wide) -> Wide {
    let y = x.mul(LN_2);
    let sum = (2..=34)
        .rev()
        .fold(Wide::ONE, |sum, k| one_plus(y.mul(sum).over(k)));
    y.mul(sum)
}

/// Base-2 logarithm of a quotient `(1 + s) / (1 - s)`, `s` at most 0.18 in magnitude.
fn logarithm_series(s: Wide) -> Wide {
    let square = s.mul(s);
    let sum = (0..28).rev().fold(Wide::ONE.over(57), |sum, k| {
        Wide::ONE.over(2 * k + 1).add(square.mul(sum))
    });
    let twice = s.mul(sum).mul(LOG2_E);
    if twice.is_zero() {
        return twice;
    }
    Wide {
        exponent: twice.exponent + 1,
        ..twice
    }
}

/// Base-2 logarithm of a positive number.
pub(super) fn logarithm(x: Wide) -> Wide {
    let mut power = x.exponent;
    let mut m = Wide { exponent: 0, ..x };
    // m between sqrt(1/2) and sqrt(2), so that no digits cancel between the two parts.
    if m.compare_magnitude(ROOT_2).is_gt() {
        power += 1;
        m.exponent = -1;
    }
    let whole = int(power.unsigned_abs().into()).negate_if(power < 0);
    let part = m.sub(Wide::ONE);
    if part.is_zero() {
        return whole;
    }
    whole.add(logarithm_series(part.div(m.add(Wide::ONE))))
}

/// Base-2 logarithm of `1 + x`, `x` above -1: for small `x` to the full precision of `x`.
pub(super) fn logarithm_of_one_plus(x: Wide) -> Wide {
    if x.exponent >= -2 {
        return logarithm(Wide::ONE.add(x));
    }
    logarithm_series(x.div(Wide::scaled(2, 0).add(x)))
}

#[cfg(test)]
mod tests {
    use super::super::vectors::VECTORS;
    use super::*;

    #[test]
    fn results_are_the_correctly_rounded_ones() {
        for &(name, e, m, f, n, negative, exponent, mantissa) in VECTORS {
            let (x, y) = (
                Wide::scaled(m.into(), e - 63),
                Wide::scaled(n.into(), f - 63),
            );
            let w = match name {
                "sin" => sine_cosine(e, m).0,
                "cos" => sine_cosine(e, m).1,
                "tan" => tangent(e, m),
                "2^x-1" => exponential_minus_one(x),
                "atan" => arc_tangent(x, y),
                "log2" => logarithm(x).mul(y),
                _ => logarithm_of_one_plus(x).mul(y),
            };
            let (mut top, mut at) = ((w.mantissa >> 64) as u64, w.exponent);
            if w.mantissa >> 63 & 1 == 1 {
                top = top.wrapping_add(1);
                if top == 0 {
                    (top, at) = (1 << 63, at + 1);
                }
            }
            assert_eq!(
                (w.negative, at, top),
                (negative, exponent, mantissa),
                "{name} of {e} {m:#x}, {f} {n:#x}: {w:x?}"
            );
        }
    }

    /// Within 2^-115.
    fn near(a: Wide, b: Wide) {
        let d = a.sub(b);
        assert!(
            d.is_zero() || d.exponent < a.exponent.max(b.exponent) - 115,
            "{a:x?} {b:x?}"
        );
    }

    #[test]
    fn identities_hold() {
        let mut seed = 5_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 1 | 1 << 63
        };
        for i in 0..2000 {
            let (e, m, n) = (i % 40 - 30, next(), next());
            let (s, c) = sine_cosine(e, m);
            near(s.mul(s).add(c.mul(c)), Wide::ONE);
            let (x, y) = (Wide::scaled(m.into(), -64), Wide::scaled(n.into(), e - 63));
            // tan(atan t) = t for what needs no reduction.
            let t = arc_tangent(x, Wide::ONE);
            near(sine_series(t).div(cosine_series(t)), x);
            near(arc_tangent(x, y).add(arc_tangent(y, x)), HALF_PI);
            near(logarithm(x).add(logarithm(y)), logarithm(x.mul(y)));
            near(exponential_minus_one(logarithm_of_one_plus(x)), x);
        }
    }
}
