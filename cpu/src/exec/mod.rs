//! The handlers, by kind of instruction.

pub(crate) mod alu;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod data;
pub(crate) mod float;
pub(crate) mod int;
pub(crate) mod io;
pub(crate) mod muldiv;
pub(crate) mod packed;
pub(crate) mod shift;
pub(crate) mod sse;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;
pub(crate) mod transcendental;
pub(crate) mod x87;

use crate::core::{CodeSize, Core, Raised};
use crate::op::{At, RIP};

/// Forms of a memory operand, cheapest first; a const parameter of the handlers.
pub(crate) const BASE: u8 = 0;
/// Base, index, displacement.
pub(crate) const FULL: u8 = 1;
/// As [`FULL`], with the base of FS or GS.
pub(crate) const BASED: u8 = 2;
/// Anything else: 32- and 16-bit addresses, segments with limits. `Op::scale` then also holds
/// [`ADDRESS_32`] and kin.
pub(crate) const ANY: u8 = 3;

/// The bits of `Op::scale` that hold the factor 1, 2, 4 or 8.
pub(crate) const FACTOR: u8 = 0xf;
/// Flags in `Op::scale` of form [`ANY`]: addresses have 32 bits.
pub(crate) const ADDRESS_32: u8 = 0x10;
/// Addresses have 16 bits.
pub(crate) const ADDRESS_16: u8 = 0x20;
/// The displacement counts from the end of the instruction.
pub(crate) const RIP_RELATIVE: u8 = 0x40;

/// Linear address of the memory operand.
#[inline(always)]
pub(crate) fn address<const E: u8>(
    c: &mut Core,
    op: At,
    size: usize,
    write: bool,
) -> Result<u64, Raised> {
    let base = c.reg::<u64>(op.base).wrapping_add(op.disp as i64 as u64);
    match E {
        BASE => Ok(base),
        FULL => Ok(base.wrapping_add(c.reg::<u64>(op.index).wrapping_mul(u64::from(op.scale)))),
        BASED => Ok(base
            .wrapping_add(c.reg::<u64>(op.index).wrapping_mul(u64::from(op.scale)))
            .wrapping_add(c.seg_base[usize::from(op.seg & 7)])),
        _ => any_address(c, op, size, write),
    }
}

/// Offset of a memory operand in its segment.
pub(crate) fn offset(c: &Core, op: At) -> u64 {
    let mut base = c.reg::<u64>(op.base);
    if op.scale & RIP_RELATIVE != 0 {
        debug_assert_eq!(op.base, RIP);
        base = base.wrapping_add(op.end());
    }
    let sum = base.wrapping_add(op.disp as i64 as u64).wrapping_add(
        c.reg::<u64>(op.index)
            .wrapping_mul(u64::from(op.scale & FACTOR)),
    );
    if op.scale & ADDRESS_32 != 0 {
        sum & 0xffff_ffff
    } else if op.scale & ADDRESS_16 != 0 {
        sum & 0xffff
    } else {
        sum
    }
}

#[inline(never)]
fn any_address(c: &mut Core, op: At, size: usize, write: bool) -> Result<u64, Raised> {
    let offset = offset(c, op);
    if c.code_size == CodeSize::Bits64 {
        Ok(offset.wrapping_add(c.seg_base[usize::from(op.seg & 7)]))
    } else {
        c.segment_linear(op.seg, offset, size as u64, write)
    }
}

/// The handler of a width: 1, 2, 4 or 8 bytes.
macro_rules! by_size {
    ($n:expr, $h:ident $(, $t:ty)* $(; $k:tt)*) => {
        match $n {
            1 => $h::<u8 $(, $t)* $(, $k)*> as $crate::op::Handler,
            2 => $h::<u16 $(, $t)* $(, $k)*>,
            4 => $h::<u32 $(, $t)* $(, $k)*>,
            _ => $h::<u64 $(, $t)* $(, $k)*>,
        }
    };
}
pub(crate) use by_size;

/// The handler of a width and a form of memory operand.
macro_rules! by_size_form {
    ($n:expr, $e:expr, $h:ident $(, $t:ty)*) => {
        match $e {
            $crate::exec::BASE => $crate::exec::by_size!($n, $h $(, $t)*; 0),
            $crate::exec::FULL => $crate::exec::by_size!($n, $h $(, $t)*; 1),
            $crate::exec::BASED => $crate::exec::by_size!($n, $h $(, $t)*; 2),
            _ => $crate::exec::by_size!($n, $h $(, $t)*; 3),
        }
    };
}
pub(crate) use by_size_form;

/// The handler of a form of memory operand.
macro_rules! by_form {
    ($e:expr, $h:ident $(, $t:ty)* $(; $k:tt)*) => {
        match $e {
            $crate::exec::BASE => $h::<$($t,)* $($k,)* 0> as $crate::op::Handler,
            $crate::exec::FULL => $h::<$($t,)* $($k,)* 1>,
            $crate::exec::BASED => $h::<$($t,)* $($k,)* 2>,
            _ => $h::<$($t,)* $($k,)* 3>,
        }
    };
}
pub(crate) use by_form;

/// The handler of a condition code.
macro_rules! by_condition {
    ($cc:expr, $h:ident $(, $t:ty)* $(; $k:tt)*) => {
        match $cc {
            0 => $h::<$($t,)* $($k,)* 0> as $crate::op::Handler,
            1 => $h::<$($t,)* $($k,)* 1>,
            2 => $h::<$($t,)* $($k,)* 2>,
            3 => $h::<$($t,)* $($k,)* 3>,
            4 => $h::<$($t,)* $($k,)* 4>,
            5 => $h::<$($t,)* $($k,)* 5>,
            6 => $h::<$($t,)* $($k,)* 6>,
            7 => $h::<$($t,)* $($k,)* 7>,
            8 => $h::<$($t,)* $($k,)* 8>,
            9 => $h::<$($t,)* $($k,)* 9>,
            10 => $h::<$($t,)* $($k,)* 10>,
            11 => $h::<$($t,)* $($k,)* 11>,
            12 => $h::<$($t,)* $($k,)* 12>,
            13 => $h::<$($t,)* $($k,)* 13>,
            14 => $h::<$($t,)* $($k,)* 14>,
            _ => $h::<$($t,)* $($k,)* 15>,
        }
    };
}
pub(crate) use by_condition;

/// Linear address of a memory operand whose form is not known to the handler: for rarer
/// instructions, whose handlers exist once. The decoder prepares it as form [`ANY`].
pub(crate) fn run_time_address(
    c: &mut Core,
    op: At,
    size: usize,
    write: bool,
) -> Result<u64, Raised> {
    any_address(c, op, size, write)
}

/// As [`run_time_address`], `step` bytes further on, wrapped at the address width.
pub(crate) fn stepped_address(
    c: &mut Core,
    op: At,
    step: i64,
    size: usize,
    write: bool,
) -> Result<u64, Raised> {
    let mut offset = offset(c, op).wrapping_add(step as u64);
    if op.scale & ADDRESS_32 != 0 {
        offset &= 0xffff_ffff;
    } else if op.scale & ADDRESS_16 != 0 {
        offset &= 0xffff;
    }
    if c.code_size == CodeSize::Bits64 {
        Ok(offset.wrapping_add(c.seg_base[usize::from(op.seg & 7)]))
    } else {
        c.segment_linear(op.seg, offset, size as u64, write)
    }
}
