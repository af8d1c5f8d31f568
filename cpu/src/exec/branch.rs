//! Jumps, calls, returns, and comparisons fused with the branch behind them.

use crate::blocks::jump;
use crate::core::{CodeSize, Core, Raised};
use crate::exec::alu::Alu;
use crate::exec::int::Int;
use crate::exec::{address, run_time_address};
use crate::flags::condition;
use crate::op::{At, Flow, RIP, SS, ok};

/// Ends a block that runs into the next: counts nothing.
pub(crate) fn fall(c: &mut Core, op: At) -> Flow {
    op.fall(c)
}

/// Moves RIP in 64-bit code.
#[inline(always)]
fn go(c: &mut Core, by: u64) {
    let rip = &mut c.regs[usize::from(RIP / 8)];
    *rip = rip.wrapping_add(by);
}

pub(crate) fn jmp(c: &mut Core, op: At) -> Flow {
    go(c, op.imm);
    op.take(c, op.imm)
}

pub(crate) fn jcc<const CC: u8>(c: &mut Core, op: At) -> Flow {
    branch(c, op, condition(CC, c.flags), op.imm)
}

#[inline(always)]
fn branch(c: &mut Core, op: At, taken: bool, target: u64) -> Flow {
    if taken {
        go(c, target);
        op.take(c, target)
    } else {
        go(c, op.end());
        op.pass(c)
    }
}

/// The immediate of a fused pair.
#[inline(always)]
fn low(op: At) -> u64 {
    op.imm as i32 as i64 as u64
}

/// The branch target of a fused pair.
#[inline(always)]
fn target(op: At) -> u64 {
    (op.imm as i64 >> 32) as u64
}

pub(crate) fn fused_rr<S: Int, O: Alu, const CC: u8>(c: &mut Core, op: At) -> Flow {
    let (r, f) = O::apply(c.reg::<S>(op.dst), c.reg::<S>(op.src), c.flags);
    if O::KEEPS {
        c.set_reg(op.dst, r);
    }
    c.flags = f;
    branch(c, op, condition(CC, f), target(op))
}

pub(crate) fn fused_ri<S: Int, O: Alu, const CC: u8>(c: &mut Core, op: At) -> Flow {
    let (r, f) = O::apply(c.reg::<S>(op.dst), S::of(low(op)), c.flags);
    if O::KEEPS {
        c.set_reg(op.dst, r);
    }
    c.flags = f;
    branch(c, op, condition(CC, f), target(op))
}

/// A comparison with memory; `op.aux` is the condition.
pub(crate) fn fused_rm<S: Int, O: Alu, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    c.load_then::<S>(op, at, op.seg, |c, op, b| {
        let (_, f) = O::apply(c.reg::<S>(op.dst), b, c.flags);
        c.flags = f;
        branch(c, op, condition(op.aux as u8, f), target(op))
    })
}

/// See [`fused_rm`].
pub(crate) fn fused_mr<S: Int, O: Alu, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    c.load_then::<S>(op, at, op.seg, |c, op, a| {
        let (_, f) = O::apply(a, c.reg::<S>(op.src), c.flags);
        c.flags = f;
        branch(c, op, condition(op.aux as u8, f), target(op))
    })
}

/// See [`fused_rm`].
pub(crate) fn fused_mi<S: Int, O: Alu, const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, S::BYTES, false));
    c.load_then::<S>(op, at, op.seg, |c, op, a| {
        let (_, f) = O::apply(a, S::of(low(op)), c.flags);
        c.flags = f;
        branch(c, op, condition(op.aux as u8, f), target(op))
    })
}

/// CALL rel in 64-bit code.
pub(crate) fn call(c: &mut Core, op: At) -> Flow {
    let next = c.rip().wrapping_add(op.end());
    let sp = c.regs[4].wrapping_sub(8);
    c.store_then::<u64>(op, sp, SS, next, |c, op| {
        c.regs[4] = c.regs[4].wrapping_sub(8);
        go(c, op.imm);
        op.take(c, op.imm)
    })
}

fn call_to(c: &mut Core, op: At, to: u64) -> Flow {
    let next = c.rip().wrapping_add(op.end());
    let sp = c.regs[4].wrapping_sub(8);
    // As on Intel's: the return address is written even if the target then faults.
    ok!(c, op, c.store::<u64>(sp, SS, next));
    if !crate::core::canonical(to) {
        return not_canonical(c, op);
    }
    c.regs[4] = sp;
    c.set_rip(to);
    jump(c)
}

pub(crate) fn call_r(c: &mut Core, op: At) -> Flow {
    let to = c.reg::<u64>(op.src);
    call_to(c, op, to)
}

pub(crate) fn call_m<const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, 8, false));
    let to = ok!(c, op, c.load::<u64>(at, op.seg));
    call_to(c, op, to)
}

pub(crate) fn jmp_r(c: &mut Core, op: At) -> Flow {
    jump_to(c, op, c.reg::<u64>(op.src))
}

pub(crate) fn jmp_m<const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, 8, false));
    let to = ok!(c, op, c.load::<u64>(at, op.seg));
    jump_to(c, op, to)
}

#[inline(always)]
fn jump_to(c: &mut Core, op: At, to: u64) -> Flow {
    if !crate::core::canonical(to) {
        return not_canonical(c, op);
    }
    c.set_rip(to);
    jump(c)
}

/// RET in 64-bit code, with the bytes to release in `imm`.
pub(crate) fn ret(c: &mut Core, op: At) -> Flow {
    c.load_then::<u64>(op, c.regs[4], SS, |c, op, to| {
        if !crate::core::canonical(to) {
            return not_canonical(c, op);
        }
        c.regs[4] = c.regs[4].wrapping_add(8).wrapping_add(op.imm);
        c.set_rip(to);
        jump(c)
    })
}

#[cold]
#[inline(never)]
fn not_canonical(c: &mut Core, op: At) -> Flow {
    c.gp();
    op.leave(c)
}

/// Address width of LOOP and JRCXZ, in `op.aux`, as a mask.
fn counter_mask(op: At) -> u64 {
    match op.aux {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

fn set_counter(c: &mut Core, op: At, value: u64) {
    match op.aux {
        2 => c.set_reg(8, value as u16),
        4 => c.set_reg(8, value as u32),
        _ => c.set_reg(8, value),
    }
}

pub(crate) const LOOP: u8 = 0;
pub(crate) const LOOPE: u8 = 1;
pub(crate) const LOOPNE: u8 = 2;

pub(crate) fn count_loop<const K: u8>(c: &mut Core, op: At) -> Flow {
    let left = c.regs[1].wrapping_sub(1) & counter_mask(op);
    let zero = c.flags & crate::flags::ZF != 0;
    let taken = left != 0
        && match K {
            LOOP => true,
            LOOPE => zero,
            _ => !zero,
        };
    ok!(c, op, narrow_target(c, op, taken));
    set_counter(c, op, left);
    narrow_branch(c, op, taken)
}

pub(crate) fn jrcxz(c: &mut Core, op: At) -> Flow {
    let taken = c.regs[1] & counter_mask(op) == 0;
    ok!(c, op, narrow_target(c, op, taken));
    narrow_branch(c, op, taken)
}

/// Checks a direct target outside 64-bit code against CS's limit.
fn narrow_target(c: &mut Core, op: At, taken: bool) -> Result<(), Raised> {
    if c.code_size == CodeSize::Bits64 || !taken {
        return Ok(());
    }
    let to = c.rip().wrapping_add(op.imm) & 0xffff_ffff;
    if to > u64::from(c.segments[1].limit) {
        Err(c.gp())
    } else {
        Ok(())
    }
}

fn narrow_branch(c: &mut Core, op: At, taken: bool) -> Flow {
    if taken {
        c.advance(op.imm);
        op.take(c, op.imm)
    } else {
        op.done(c)
    }
}

/// Branches outside 64-bit code. A 16-bit operand size cuts the target to 16 bits (`op.src` = 2).
pub(crate) fn narrow_jmp(c: &mut Core, op: At) -> Flow {
    if op.src == 2 {
        return narrow_indirect(c, op, c.rip().wrapping_add(op.imm) & 0xffff);
    }
    ok!(c, op, narrow_target(c, op, true));
    narrow_branch(c, op, true)
}

/// See [`narrow_jmp`]; `op.aux` is the condition.
pub(crate) fn narrow_jcc(c: &mut Core, op: At) -> Flow {
    let taken = condition(op.aux as u8, c.flags);
    if taken && op.src == 2 {
        return narrow_indirect(c, op, c.rip().wrapping_add(op.imm) & 0xffff);
    }
    ok!(c, op, narrow_target(c, op, taken));
    narrow_branch(c, op, taken)
}

fn narrow_indirect(c: &mut Core, op: At, to: u64) -> Flow {
    if to > u64::from(c.segments[1].limit) {
        c.gp();
        return op.leave(c);
    }
    c.set_rip(to);
    Flow::Indirect
}

/// CALL with an operand size of `op.aux` bytes, outside 64-bit code; the target is relative
/// (`KIND` 0), in a register (1) or in memory (2).
pub(crate) fn narrow_call<const KIND: u8>(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let to = ok!(c, op, narrow_operand::<KIND>(c, op));
    if to > u64::from(c.segments[1].limit) {
        c.gp();
        return op.leave(c);
    }
    let next = c.rip().wrapping_add(op.end());
    let sp = c.stack_offset(0u64.wrapping_sub(size));
    ok!(c, op, c.stack_store(sp, size, next));
    c.set_stack_pointer(sp);
    c.set_rip(to);
    Flow::Indirect
}

/// JMP as [`narrow_call`].
pub(crate) fn narrow_jmp_indirect<const KIND: u8>(c: &mut Core, op: At) -> Flow {
    let to = ok!(c, op, narrow_operand::<KIND>(c, op));
    narrow_indirect(c, op, to)
}

fn narrow_operand<const KIND: u8>(c: &mut Core, op: At) -> Result<u64, Raised> {
    let size = usize::from(op.aux);
    let mask = if size == 2 { 0xffff } else { 0xffff_ffff };
    let value = match KIND {
        0 => c.rip().wrapping_add(op.imm),
        1 => c.reg::<u64>(op.src),
        _ => {
            let at = run_time_address(c, op, size, false)?;
            if size == 2 {
                c.load::<u16>(at, op.seg)?.u()
            } else {
                c.load::<u32>(at, op.seg)?.u()
            }
        }
    };
    Ok(value & mask)
}

/// RET outside 64-bit code; operand size in `op.aux`.
pub(crate) fn narrow_ret(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let to = ok!(c, op, c.stack_load(0, size));
    if to > u64::from(c.segments[1].limit) {
        c.gp();
        return op.leave(c);
    }
    let sp = c.stack_offset(size.wrapping_add(op.imm));
    c.set_stack_pointer(sp);
    c.set_rip(to);
    Flow::Indirect
}

/// Far JMP, CALL, RET and IRET; operand size in `op.aux`, immediate selector in `imm`'s high half
/// (64-bit far pointers come from memory).
pub(crate) const FAR_JMP: u8 = 0;
pub(crate) const FAR_CALL: u8 = 1;

pub(crate) fn far<const KIND: u8, const MEMORY: bool>(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let (selector, to) = if MEMORY {
        let at = ok!(c, op, run_time_address(c, op, op.aux as usize + 2, false));
        let mut bytes = [0; 10];
        ok!(
            c,
            op,
            c.load_bytes(at, op.seg, &mut bytes[..op.aux as usize + 2])
        );
        let mut offset = [0; 8];
        offset[..size as usize].copy_from_slice(&bytes[..size as usize]);
        (
            u16::from_le_bytes([bytes[size as usize], bytes[size as usize + 1]]),
            u64::from_le_bytes(offset),
        )
    } else {
        ((op.imm >> 32) as u16, op.imm & 0xffff_ffff)
    };
    let done = if KIND == FAR_CALL {
        let next = c.rip().wrapping_add(op.end());
        c.far_call(selector, to, next, size)
    } else {
        c.far_jump(selector, to)
    };
    ok!(c, op, done);
    Flow::Sync
}

pub(crate) fn far_ret(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.far_return(u64::from(op.aux), op.imm));
    Flow::Sync
}

pub(crate) fn iret(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.interrupt_return(u64::from(op.aux)));
    Flow::Sync
}
