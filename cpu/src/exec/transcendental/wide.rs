//! Floating point with 128 bits of mantissa: enough to spare that what is rounded to 64 is right.

use std::cmp::Ordering;

/// `mantissa * 2^(exponent - 127)`, its top bit set; or zero, with a mantissa of zero.
///
/// Every operation errs by less than 2^-126 of its result, and towards zero, but for a subtraction,
/// which errs by less than 2^-126 of its larger operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wide {
    pub negative: bool,
    pub exponent: i32,
    pub mantissa: u128,
}

/// High 128 bits of a product.
fn high_product(a: u128, b: u128) -> u128 {
    let low = |v: u128| v & u128::from(u64::MAX);
    let (a1, a0, b1, b0) = (a >> 64, low(a), b >> 64, low(b));
    let middle = ((a0 * b0) >> 64) + low(a1 * b0) + low(a0 * b1);
    a1 * b1 + ((a1 * b0) >> 64) + ((a0 * b1) >> 64) + (middle >> 64)
}

impl Wide {
    pub(super) const ZERO: Wide = Wide {
        negative: false,
        exponent: 0,
        mantissa: 0,
    };
    pub(super) const ONE: Wide = Wide::new(0, 1 << 127);

    /// A positive number whose mantissa has its top bit set.
    pub(super) const fn new(exponent: i32, mantissa: u128) -> Wide {
        Wide {
            negative: false,
            exponent,
            mantissa,
        }
    }

    /// `value * 2^exponent`, exactly.
    pub(super) fn scaled(value: u128, exponent: i32) -> Wide {
        if value == 0 {
            return Wide::ZERO;
        }
        let shift = value.leading_zeros();
        Wide::new(exponent + 127 - shift as i32, value << shift)
    }

    pub(super) fn is_zero(self) -> bool {
        self.mantissa == 0
    }

    pub(super) fn abs(self) -> Wide {
        Wide {
            negative: false,
            ..self
        }
    }

    /// With the sign flipped if `flip`.
    pub(super) fn negate_if(self, flip: bool) -> Wide {
        Wide {
            negative: self.negative != flip,
            ..self
        }
    }

    /// Compares magnitudes.
    pub(super) fn compare_magnitude(self, other: Wide) -> Ordering {
        match (self.is_zero(), other.is_zero()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            _ => (self.exponent, self.mantissa).cmp(&(other.exponent, other.mantissa)),
        }
    }

    pub(super) fn add(self, other: Wide) -> Wide {
        let (large, small) = if self.compare_magnitude(other) == Ordering::Less {
            (other, self)
        } else {
            (self, other)
        };
        if small.is_zero() {
            return large;
        }
        let apart = (large.exponent - small.exponent) as u32;
        let aligned = small.mantissa.checked_shr(apart).unwrap_or(0);
        if large.negative == small.negative {
            let (sum, carry) = large.mantissa.overflowing_add(aligned);
            return if carry {
                Wide {
                    exponent: large.exponent + 1,
                    mantissa: sum >> 1 | 1 << 127,
                    ..large
                }
            } else {
                Wide {
                    mantissa: sum,
                    ..large
                }
            };
        }
        // What was shifted out makes the difference smaller still: a sum is never beyond the true one, so
        // that rounding in a direction knows on which side of a number the result lies.
        let lost = apart > 0 && (apart >= 128 || small.mantissa.trailing_zeros() < apart);
        let difference = large.mantissa - aligned - u128::from(lost);
        if difference == 0 {
            return Wide::ZERO;
        }
        let shift = difference.leading_zeros();
        Wide {
            exponent: large.exponent - shift as i32,
            mantissa: difference << shift,
            ..large
        }
    }

    pub(super) fn sub(self, other: Wide) -> Wide {
        self.add(other.negate_if(true))
    }

    pub(super) fn mul(self, other: Wide) -> Wide {
        if self.is_zero() || other.is_zero() {
            return Wide::ZERO;
        }
        let product = high_product(self.mantissa, other.mantissa);
        let negative = self.negative != other.negative;
        let exponent = self.exponent + other.exponent;
        if product >> 127 == 1 {
            Wide {
                negative,
                exponent: exponent + 1,
                mantissa: product,
            }
        } else {
            // One bit of the low half is needed.
            let low = self.mantissa.wrapping_mul(other.mantissa) >> 127;
            Wide {
                negative,
                exponent,
                mantissa: product << 1 | low,
            }
        }
    }

    /// Divides by a number that is not zero.
    pub(super) fn div(self, other: Wide) -> Wide {
        if self.is_zero() {
            return self;
        }
        let negative = self.negative != other.negative;
        let mut exponent = self.exponent - other.exponent;
        let mut rest = self.mantissa;
        let mut over = false;
        if rest < other.mantissa {
            exponent -= 1;
            over = rest >> 127 == 1;
            rest <<= 1;
        }
        let mut mantissa = 0;
        for _ in 0..128 {
            mantissa <<= 1;
            if over || rest >= other.mantissa {
                rest = rest.wrapping_sub(other.mantissa);
                mantissa |= 1;
            }
            over = rest >> 127 == 1;
            rest <<= 1;
        }
        Wide {
            negative,
            exponent,
            mantissa,
        }
    }

    /// Divides by a small number that is not zero.
    pub(super) fn over(self, divisor: u64) -> Wide {
        if self.is_zero() {
            return self;
        }
        let divisor = u128::from(divisor);
        let quotient = self.mantissa / divisor;
        let shift = quotient.leading_zeros();
        // The remainder gives the bits that the shift makes room for.
        let rest = (self.mantissa % divisor) << shift;
        Wide {
            exponent: self.exponent - shift as i32,
            mantissa: (quotient << shift) | (rest / divisor),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(v: Wide) -> f64 {
        let m = v.mantissa as f64 / 2f64.powi(127);
        m * 2f64.powi(v.exponent) * if v.negative { -1.0 } else { 1.0 }
    }

    #[test]
    fn arithmetic_agrees_with_doubles() {
        let mut seed = 1_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 11
        };
        for _ in 0..10_000 {
            let (m, n) = (next(), next());
            let (e, f) = ((next() % 40) as i32, (next() % 40) as i32);
            let a = Wide::scaled(m.into(), e - 60).negate_if(next() % 2 == 0);
            let b = Wide::scaled(n.max(1).into(), f - 60).negate_if(next() % 2 == 0);
            let (x, y) = (value(a), value(b));
            let near = |w: Wide, f: f64, scale: f64| {
                assert!(
                    (value(w) - f).abs() <= scale * 1e-15,
                    "{a:?} {b:?}: {w:?} {f}"
                );
            };
            near(a.add(b), x + y, x.abs().max(y.abs()));
            near(a.sub(b), x - y, x.abs().max(y.abs()));
            near(a.mul(b), x * y, (x * y).abs());
            near(a.div(b), x / y, (x / y).abs());
            let k = next() % 1000 + 1;
            near(a.over(k), x / k as f64, x.abs());
        }
    }

    #[test]
    fn a_difference_too_small_to_see_still_lies_below() {
        let tiny = Wide::scaled(1, -300);
        let d = Wide::ONE.sub(tiny);
        assert_eq!(d.compare_magnitude(Wide::ONE), Ordering::Less);
        assert_eq!(d.exponent, -1);
        assert_eq!(d.mantissa >> 1, u128::MAX >> 1);
    }
}
