//! The six status flags, kept the way LAHF and SETO deliver them.
//!
//! Computing all six eagerly costs three host instructions (the operation itself, LAHF, SETO), less
//! than saving operands for later, and leaves nothing to reconstruct on a fault.
//!
//! Layout of the 16 bits: high byte as LAHF (SF ZF 0 AF 0 PF 1 CF), low byte OF. Bits outside
//! these six carry nothing.

pub(crate) const CF: u16 = 0x100;
pub(crate) const PF: u16 = 0x400;
pub(crate) const AF: u16 = 0x1000;
pub(crate) const ZF: u16 = 0x4000;
pub(crate) const SF: u16 = 0x8000;
pub(crate) const OF: u16 = 1;

/// RFLAGS bits (SDM vol. 1, 3.4.3).
pub(crate) const RFLAGS_STATUS: u64 = 0x8d5;
pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const IOPL: u64 = 3 << 12;
pub(crate) const NT: u64 = 1 << 14;
pub(crate) const RF: u64 = 1 << 16;
pub(crate) const VM: u64 = 1 << 17;
pub(crate) const AC: u64 = 1 << 18;
pub(crate) const ID: u64 = 1 << 21;
/// RFLAGS bits that are kept outside the status flags.
pub(crate) const SYSTEM: u64 = TF | IF | DF | IOPL | NT | RF | AC | ID;

/// The status flags of an RFLAGS value.
pub(crate) fn from_rflags(rflags: u64) -> u16 {
    ((rflags as u16 & 0xd5) << 8) | ((rflags >> 11) as u16 & 1)
}

/// The RFLAGS bits of status flags.
pub(crate) fn to_rflags(flags: u16) -> u64 {
    (u64::from(flags >> 8) & 0xd5) | (u64::from(flags & 1) << 11)
}

/// Condition codes in the order of their encoding (SDM vol. 1, appendix B).
#[inline(always)]
pub(crate) fn condition(cc: u8, f: u16) -> bool {
    let less = (f >> 15) ^ (f & OF) & 1;
    let holds = match cc >> 1 {
        0 => f & OF != 0,
        1 => f & CF != 0,
        2 => f & ZF != 0,
        3 => f & (CF | ZF) != 0,
        4 => f & SF != 0,
        5 => f & PF != 0,
        6 => less & 1 != 0,
        _ => (less & 1 != 0) || f & ZF != 0,
    };
    holds != (cc & 1 != 0)
}

/// Flags after an operation that defines only some of them: the others keep their value.
#[inline(always)]
pub(crate) fn replace(old: u16, mask: u16, new: u16) -> u16 {
    (old & !mask) | (new & mask)
}
