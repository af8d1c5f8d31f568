//! Operand widths, and the arithmetic whose flags all are defined, done by the host's instruction.

use std::arch::asm;

use crate::flags::{CF, PF, SF, ZF};

/// An unsigned operand of 8, 16, 32 or 64 bits. Flags are in the layout of [`crate::flags`].
pub(crate) trait Int: Copy + Eq + Ord + 'static {
    const BYTES: usize;
    const BITS: u32;
    /// Truncates.
    fn of(v: u64) -> Self;
    /// Zero-extends.
    fn u(self) -> u64;
    /// Sign-extends.
    fn i(self) -> i64;
    fn add(self, b: Self) -> (Self, u16);
    fn sub(self, b: Self) -> (Self, u16);
    fn adc(self, b: Self, flags: u16) -> (Self, u16);
    fn sbb(self, b: Self, flags: u16) -> (Self, u16);
    /// SF, ZF and PF of a result; the others zero.
    fn szp(self) -> u16;
}

macro_rules! arithmetic {
    ($name:ident, $class:ident, $template:literal) => {
        #[inline(always)]
        fn $name(self, b: Self) -> (Self, u16) {
            let mut a = self;
            let flags: u16;
            // SAFETY: registers only; LAHF is there on every x86-64 CPU since 2006.
            unsafe {
                asm!($template, "lahf", "seto al", a = inout($class) a, b = in($class) b,
                    out("ax") flags, options(pure, nomem, nostack));
            }
            (a, flags)
        }
    };
    (carry $name:ident, $class:ident, $template:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, old: u16) -> (Self, u16) {
            let mut a = self;
            let flags: u16;
            // SAFETY: registers only.
            unsafe {
                asm!("bt {f:e}, 8", $template, "lahf", "seto al", a = inout($class) a,
                    b = in($class) b, f = in(reg) u32::from(old), out("ax") flags,
                    options(pure, nomem, nostack));
            }
            (a, flags)
        }
    };
}

macro_rules! int {
    ($t:ty, $s:ty, $class:ident, $add:literal, $sub:literal, $adc:literal, $sbb:literal, $test:literal) => {
        impl Int for $t {
            const BYTES: usize = std::mem::size_of::<$t>();
            const BITS: u32 = <$t>::BITS;
            #[inline(always)]
            fn of(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn u(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn i(self) -> i64 {
                self as $s as i64
            }
            arithmetic!(add, $class, $add);
            arithmetic!(sub, $class, $sub);
            arithmetic!(carry adc, $class, $adc);
            arithmetic!(carry sbb, $class, $sbb);
            #[inline(always)]
            fn szp(self) -> u16 {
                let flags: u16;
                // SAFETY: registers only.
                unsafe {
                    asm!($test, "lahf", a = in($class) self, out("ax") flags,
                        options(pure, nomem, nostack));
                }
                // TEST clears CF and OF and leaves AF undefined: by rule AF is zero.
                flags & (SF | ZF | PF)
            }
        }
    };
}

int!(
    u8,
    i8,
    reg_byte,
    "add {a}, {b}",
    "sub {a}, {b}",
    "adc {a}, {b}",
    "sbb {a}, {b}",
    "test {a}, {a}"
);
int!(
    u16,
    i16,
    reg,
    "add {a:x}, {b:x}",
    "sub {a:x}, {b:x}",
    "adc {a:x}, {b:x}",
    "sbb {a:x}, {b:x}",
    "test {a:x}, {a:x}"
);
int!(
    u32,
    i32,
    reg,
    "add {a:e}, {b:e}",
    "sub {a:e}, {b:e}",
    "adc {a:e}, {b:e}",
    "sbb {a:e}, {b:e}",
    "test {a:e}, {a:e}"
);
int!(
    u64,
    i64,
    reg,
    "add {a}, {b}",
    "sub {a}, {b}",
    "adc {a}, {b}",
    "sbb {a}, {b}",
    "test {a}, {a}"
);

/// INC: ADD of 1 that keeps CF.
#[inline(always)]
pub(crate) fn inc<S: Int>(a: S, old: u16) -> (S, u16) {
    let (r, f) = a.add(S::of(1));
    (r, (f & !CF) | (old & CF))
}

/// DEC: SUB of 1 that keeps CF.
#[inline(always)]
pub(crate) fn dec<S: Int>(a: S, old: u16) -> (S, u16) {
    let (r, f) = a.sub(S::of(1));
    (r, (f & !CF) | (old & CF))
}
