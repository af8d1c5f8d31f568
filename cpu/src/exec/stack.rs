//! PUSH, POP, PUSHF, POPF, LEAVE, ENTER.

use crate::core::{Core, Raised};
use crate::exec::{address, run_time_address};
use crate::flags::{AC, DF, ID, IF, IOPL, NT, RF, RFLAGS_STATUS, TF};
use crate::op::{At, Flow, SS, ok};

/// RSP and RBP in `Core::regs`.
const SP: usize = 4;
const BP: usize = 5;

pub(crate) fn push_r(c: &mut Core, op: At) -> Flow {
    let v = c.reg::<u64>(op.src);
    push64(c, op, v)
}

pub(crate) fn push_i(c: &mut Core, op: At) -> Flow {
    push64(c, op, op.imm)
}

pub(crate) fn push_m<const E: u8>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, address::<E>(c, op, 8, false));
    let v = ok!(c, op, c.load::<u64>(at, op.seg));
    push64(c, op, v)
}

#[inline(always)]
fn push64(c: &mut Core, op: At, v: u64) -> Flow {
    let sp = c.regs[SP].wrapping_sub(8);
    c.store_then::<u64>(op, sp, SS, v, |c, op| {
        c.regs[SP] = c.regs[SP].wrapping_sub(8);
        op.next(c)
    })
}

pub(crate) fn pop_r(c: &mut Core, op: At) -> Flow {
    c.load_then::<u64>(op, c.regs[SP], SS, |c, op, v| {
        c.regs[SP] = c.regs[SP].wrapping_add(8);
        c.set_reg(op.dst, v);
        op.next(c)
    })
}

/// Where a rarer PUSH takes from and a rarer POP puts to; `op.aux` is the size.
pub(crate) const REGISTER: u8 = 0;
pub(crate) const IMMEDIATE: u8 = 1;
pub(crate) const MEMORY: u8 = 2;
pub(crate) const SEGMENT: u8 = 3;

pub(crate) fn push_any<const K: u8>(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let v = ok!(c, op, source::<K>(c, op, size));
    let sp = c.stack_offset(0u64.wrapping_sub(size));
    // Of a segment register pushed with 32 bits, processors write 16 (SDM vol. 2, PUSH).
    let width = if K == SEGMENT && size == 4 { 2 } else { size };
    ok!(c, op, c.stack_store(sp, width, v));
    c.set_stack_pointer(sp);
    op.next(c)
}

fn source<const K: u8>(c: &mut Core, op: At, size: u64) -> Result<u64, Raised> {
    Ok(match K {
        REGISTER => c.reg::<u64>(op.src),
        IMMEDIATE => op.imm,
        SEGMENT => u64::from(c.segments[usize::from(op.src)].selector),
        _ => {
            let at = run_time_address(c, op, size as usize, false)?;
            load_sized(c, at, op.seg, size)?
        }
    })
}

fn load_sized(c: &mut Core, at: u64, segment: u8, size: u64) -> Result<u64, Raised> {
    match size {
        2 => c.load::<u16>(at, segment).map(u64::from),
        4 => c.load::<u32>(at, segment).map(u64::from),
        _ => c.load::<u64>(at, segment),
    }
}

/// POP to a register or memory.
pub(crate) fn pop_any<const K: u8>(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let v = ok!(c, op, c.stack_load(0, size));
    let before = c.regs[SP];
    let sp = c.stack_offset(size);
    c.set_stack_pointer(sp);
    if K == REGISTER {
        match size {
            2 => c.set_reg(op.dst, v as u16),
            4 => c.set_reg(op.dst, v as u32),
            _ => c.set_reg(op.dst, v),
        }
        return op.next(c);
    }
    // The address is computed with the incremented RSP (SDM vol. 2, POP).
    let stored = run_time_address(c, op, size as usize, true).and_then(|at| match size {
        2 => c.store::<u16>(at, op.seg, v as u16),
        4 => c.store::<u32>(at, op.seg, v as u32),
        _ => c.store::<u64>(at, op.seg, v),
    });
    if stored.is_err() {
        c.regs[SP] = before;
        return op.leave(c);
    }
    op.next(c)
}

/// POP to a segment register: the last of its block.
pub(crate) fn pop_segment(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let v = ok!(c, op, c.stack_load(0, size));
    let sp = c.stack_offset(size);
    ok!(c, op, c.load_data_segment(op.dst, v as u16));
    c.set_stack_pointer(sp);
    if op.dst == SS {
        c.shadow |= crate::core::SHADOW_SS;
    }
    op.sync(c)
}

pub(crate) fn pushf(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let v = c.rflags() & !RF;
    let sp = c.stack_offset(0u64.wrapping_sub(size));
    ok!(c, op, c.stack_store(sp, size, v));
    c.set_stack_pointer(sp);
    op.next(c)
}

/// POPF: the last of its block, since it may open the door to interrupts or traps.
pub(crate) fn popf(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let v = ok!(c, op, c.stack_load(0, size));
    let mut mask = RFLAGS_STATUS | TF | DF | NT;
    if size > 2 {
        mask |= AC | ID;
    }
    if c.cpl == 0 {
        mask |= IOPL;
    }
    if u64::from(c.cpl) <= (c.system_flags & IOPL) >> 12 {
        mask |= IF;
    }
    let sp = c.stack_offset(size);
    c.set_stack_pointer(sp);
    let old = c.rflags();
    c.set_rflags((old & !mask | v & mask) & !RF);
    if (old ^ c.rflags()) & (IF | TF) != 0 || c.stepping() {
        return op.sync(c);
    }
    op.done(c)
}

/// LEAVE in 64-bit code.
pub(crate) fn leave(c: &mut Core, op: At) -> Flow {
    c.load_then::<u64>(op, c.regs[BP], SS, |c, op, v| {
        c.regs[SP] = c.regs[BP].wrapping_add(8);
        c.regs[BP] = v;
        op.next(c)
    })
}

/// LEAVE of `op.aux` bytes.
pub(crate) fn leave_any(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let before = c.regs[SP];
    c.set_stack_pointer(c.regs[BP]);
    let Ok(v) = c.stack_load(0, size) else {
        c.regs[SP] = before;
        return op.leave(c);
    };
    let sp = c.stack_offset(size);
    c.set_stack_pointer(sp);
    if size == 2 {
        c.set_reg(5 * 8, v as u16)
    } else {
        c.regs[BP] = v
    }
    op.next(c)
}

/// ENTER: frame size in `imm`'s low half, nesting level in its high half.
pub(crate) fn enter(c: &mut Core, op: At) -> Flow {
    let before = c.regs[SP];
    if enter_frame(c, op).is_err() {
        c.regs[SP] = before;
        return op.leave(c);
    }
    op.next(c)
}

fn enter_frame(c: &mut Core, op: At) -> Result<(), Raised> {
    let size = u64::from(op.aux);
    let frame = op.imm & 0xffff;
    let level = (op.imm >> 32) & 31;
    let push = |c: &mut Core, v: u64| -> Result<(), Raised> {
        let sp = c.stack_offset(0u64.wrapping_sub(size));
        c.stack_store(sp, size, v)?;
        c.set_stack_pointer(sp);
        Ok(())
    };
    let bp = c.regs[BP];
    push(c, bp)?;
    let base = c.regs[SP];
    if level > 0 {
        let mut display = bp;
        for _ in 1..level {
            display = display.wrapping_sub(size);
            let sp = c.regs[SP];
            c.set_stack_pointer(display);
            let v = c.stack_load(0, size);
            c.regs[SP] = sp;
            let v = v?;
            push(c, v)?;
        }
        push(c, base)?;
    }
    let sp = c.stack_offset(0u64.wrapping_sub(frame));
    c.set_stack_pointer(sp);
    // The new top must be writable (SDM vol. 2, ENTER).
    c.stack_writable(size)?;
    if size == 2 {
        c.set_reg(5 * 8, base as u16);
    } else {
        c.regs[BP] = base;
    }
    Ok(())
}

/// PUSHA, outside 64-bit code.
pub(crate) fn pusha(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    for i in 0..8 {
        let sp = c.stack_offset(0u64.wrapping_sub(size * (i + 1)));
        let v = c.regs[i as usize];
        ok!(c, op, c.stack_store(sp, size, v));
    }
    let sp = c.stack_offset(0u64.wrapping_sub(size * 8));
    c.set_stack_pointer(sp);
    op.next(c)
}

/// POPA, outside 64-bit code.
pub(crate) fn popa(c: &mut Core, op: At) -> Flow {
    let size = u64::from(op.aux);
    let mut values = [0; 8];
    for (i, v) in values.iter_mut().enumerate() {
        *v = ok!(c, op, c.stack_load(size * i as u64, size));
    }
    let sp = c.stack_offset(size * 8);
    c.set_stack_pointer(sp);
    for (i, v) in values.iter().enumerate() {
        let register = 7 - i as u8;
        if usize::from(register) != SP {
            if size == 2 {
                c.set_reg(register * 8, *v as u16)
            } else {
                c.set_reg(register * 8, *v as u32)
            }
        }
    }
    op.next(c)
}
