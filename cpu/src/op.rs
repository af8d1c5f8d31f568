//! The pre-decoded operation: what the decoder writes and a handler executes.
//!
//! A block is an array of [`Op`]s. Each handler does its work and then calls the handler of the next
//! op as its last act, which an optimised build turns into a jump; the last op goes on to the linked
//! block in the same way. Nothing depends on those jumps but speed: blocks run into each other only
//! for [`crate::core::SLICE`] instructions at a time, so an unoptimised build needs a bounded stack.

use crate::blocks::{Exit, Way, follow};
use crate::core::Core;
use std::ops::Deref;
use std::ptr::NonNull;

/// Executes one op and those behind it, up to the end of the block.
pub(crate) type Handler = fn(&mut Core, At) -> Flow;

/// How a block was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Flow {
    /// All retired; RIP is set, [`Core::departure`] says which link goes there.
    Direct,
    /// All retired; RIP is set.
    Indirect,
    /// All retired; RIP is set, and the boundary needs a look (interrupts, stop, traps).
    Sync,
    /// An op did not retire; RIP is its address, [`Core::leave`] the why.
    Leave,
}

/// Byte offsets into the register file that are no guest register: one that is always zero, and the
/// address of the block being executed.
pub(crate) const ZERO: u8 = 16 * 8;
/// See [`ZERO`].
pub(crate) const RIP: u8 = 17 * 8;

/// Segment numbers, in the order of [`crate::CpuState::segments`].
pub(crate) const ES: u8 = 0;
pub(crate) const CS: u8 = 1;
pub(crate) const SS: u8 = 2;
pub(crate) const DS: u8 = 3;
pub(crate) const FS: u8 = 4;
pub(crate) const GS: u8 = 5;

/// One operation. Registers are byte offsets into the register file, so that AH is RAX's plus one.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub handler: Handler,
    /// Immediate; for a direct branch the target relative to the block's start; for a fused compare
    /// and branch the immediate in the low and the target in the high half.
    pub imm: u64,
    /// Displacement of the memory operand; for RIP-relative ones relative to the block's start.
    pub disp: i32,
    pub dst: u8,
    pub src: u8,
    pub base: u8,
    pub index: u8,
    pub scale: u8,
    /// Segment of the memory operand.
    pub seg: u8,
    /// Instructions of the block from this one on.
    pub rest: u8,
    /// Length in bytes (of both instructions when two are fused).
    pub len: u8,
    /// Where the instruction starts, relative to the block.
    pub offset: u16,
    /// A handler's own.
    pub aux: u16,
}

const _: () = assert!(std::mem::size_of::<Op>() == 32);

/// The place of an op in a live block.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct At(NonNull<Op>);

impl At {
    /// # Safety
    /// `op` points to the first op of a block that outlives the execution of the block.
    pub(crate) unsafe fn first(op: NonNull<Op>) -> At {
        At(op)
    }

    /// Goes on with the op behind this one.
    #[inline(always)]
    pub(crate) fn next(self, c: &mut Core) -> Flow {
        // SAFETY: the decoder ends every block with `branch::fall`, whose handler does not call
        // `next`; so a handler that does is followed by another op of the same allocation.
        let next = At(unsafe { self.0.add(1) });
        (next.handler)(c, next)
    }

    /// Leaves the block before this op; `c.leave` says why.
    #[cold]
    #[inline(never)]
    pub(crate) fn leave(self, c: &mut Core) -> Flow {
        c.regs[usize::from(RIP / 8)] =
            c.regs[usize::from(RIP / 8)].wrapping_add(u64::from(self.offset));
        // They were taken off when the block began.
        c.remaining = c.remaining.wrapping_add(u64::from(self.rest));
        Flow::Leave
    }

    /// Offset of the next instruction from the start of the block.
    #[inline(always)]
    pub(crate) fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }

    /// The exit of the block whose last op but `branch::fall` this is, or which is that one.
    #[inline(always)]
    fn exit(self, fall: bool) -> NonNull<Exit> {
        // SAFETY: behind the last op, `branch::fall`, of every block stands its exit.
        unsafe { self.0.add(if fall { 1 } else { 2 }).cast() }
    }

    /// Retires this op, the last of its block, and goes on behind it.
    #[inline(always)]
    pub(crate) fn done(self, c: &mut Core) -> Flow {
        c.advance(self.end());
        follow(c, self.exit(false), Way::Behind, self.end())
    }

    /// Retires this op, the last of its block, and goes on at a distance from the block's start, to
    /// which RIP has been moved.
    #[inline(always)]
    pub(crate) fn take(self, c: &mut Core, by: u64) -> Flow {
        follow(c, self.exit(false), Way::Target, by)
    }

    /// As [`At::take`], behind this op.
    #[inline(always)]
    pub(crate) fn pass(self, c: &mut Core) -> Flow {
        follow(c, self.exit(false), Way::Behind, self.end())
    }

    /// Goes on behind a block that runs into the next; this is its last op, and no instruction.
    #[inline(always)]
    pub(crate) fn fall(self, c: &mut Core) -> Flow {
        let by = u64::from(self.offset);
        c.advance(by);
        follow(c, self.exit(true), Way::Behind, by)
    }

    /// Retires this op, the last of its block, and has the boundary looked at.
    #[inline(always)]
    pub(crate) fn sync(self, c: &mut Core) -> Flow {
        c.advance(self.end());
        Flow::Sync
    }
}

impl Deref for At {
    type Target = Op;
    #[inline(always)]
    fn deref(&self) -> &Op {
        // SAFETY: `first` requires a live block, `next` stays inside it, and nothing overwrites a
        // block while handlers run (the block cache starts anew only in a look-up).
        unsafe { self.0.as_ref() }
    }
}

/// Unwraps a result inside a handler, or leaves the block.
macro_rules! ok {
    ($c:expr, $op:ident, $e:expr) => {
        match $e {
            Ok(v) => v,
            Err($crate::core::Raised) => return $op.leave($c),
        }
    };
}
pub(crate) use ok;
