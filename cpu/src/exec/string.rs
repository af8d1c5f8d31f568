//! MOVS STOS LODS SCAS CMPS, alone and repeated; INS and OUTS.
//!
//! Each iteration of a REP counts as one instruction, and so does a REP that does nothing. RCX, RSI
//! and RDI are committed after every iteration, so an event can land between any two; until the last
//! one RIP stays. An op that runs alone makes one iteration at a time.

use crate::core::{CodeSize, Core, Raised};
use crate::exec::int::Int;
use crate::flags::{DF, ZF};
use crate::op::{At, ES, Flow, ok};
use crate::tlb::slot;

/// RCX, RSI, RDI in `Core::regs`.
const CX: usize = 1;
const SI: usize = 6;
const DI: usize = 7;

/// `Op::aux`: address width in bytes, plus one of these.
pub(crate) const REP: u16 = 0x10;
/// REPNE.
pub(crate) const REPNE: u16 = 0x20;

fn address_mask(op: At) -> u64 {
    match op.aux & 0xf {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// Writes an index or count register at the address width.
fn set_index(c: &mut Core, op: At, register: usize, value: u64) {
    match op.aux & 0xf {
        2 => c.set_reg(register as u8 * 8, value as u16),
        4 => c.set_reg(register as u8 * 8, value as u32),
        _ => c.regs[register] = value,
    }
}

fn linear(
    c: &mut Core,
    op: At,
    register: usize,
    segment: u8,
    size: usize,
    write: bool,
) -> Result<u64, Raised> {
    let offset = c.regs[register] & address_mask(op);
    if c.code_size == CodeSize::Bits64 {
        Ok(offset.wrapping_add(c.seg_base[usize::from(segment & 7)]))
    } else {
        c.segment_linear(segment, offset, size as u64, write)
    }
}

/// Moves an index register by `n` elements in the direction of DF.
fn step<S: Int>(c: &mut Core, op: At, register: usize, n: u64) {
    let by = n.wrapping_mul(S::BYTES as u64);
    let by = if c.system_flags & DF != 0 {
        by.wrapping_neg()
    } else {
        by
    };
    let value = c.regs[register].wrapping_add(by);
    set_index(c, op, register, value);
}

/// Repeats `body` as the prefix and the budget say. `body` makes between one and the given number of
/// iterations and returns how many, and whether a condition ends the repetition.
#[inline(always)]
fn repeat(
    c: &mut Core,
    op: At,
    body: impl Fn(&mut Core, At, u64) -> Result<(u64, bool), Raised>,
) -> Flow {
    if op.aux & (REP | REPNE) == 0 {
        ok!(c, op, body(c, op, 1));
        return if c.bus_used { op.sync(c) } else { op.done(c) };
    }
    let count = c.regs[CX] & address_mask(op);
    if count == 0 {
        if op.aux & 0xf == 4 {
            // An address size of 32 bits clears the upper half of RCX even so.
            set_index(c, op, CX, 0);
        }
        return op.done(c);
    }
    // The block's count holds one iteration already.
    let allowed = if c.alone {
        1
    } else {
        c.widen_slice(count);
        count.min(c.remaining.saturating_add(1))
    };
    let mut made = 0;
    let finished = loop {
        match body(c, op, allowed - made) {
            Ok((n, ended)) => {
                made += n;
                set_index(c, op, CX, count - made);
                if ended || made == count {
                    break true;
                }
                if made == allowed || c.bus_used {
                    break false;
                }
            }
            Err(Raised) => {
                c.remaining = c.remaining.wrapping_sub(made);
                if made > 0 {
                    c.deliveries = 0;
                }
                let flow = op.leave(c);
                c.trim_slice();
                return flow;
            }
        }
    };
    c.remaining -= made - 1;
    if !c.alone {
        c.trim_slice();
    }
    if finished && !c.bus_used {
        return op.done(c);
    }
    c.unfinished = !finished;
    c.advance(if finished {
        op.end()
    } else {
        u64::from(op.offset)
    });
    Flow::Sync
}

/// Elements from `at` to the end of its page.
fn in_page<S: Int>(at: u64) -> u64 {
    (0x1000 - (at & 0xfff)) / S::BYTES as u64
}

/// Host address of `at`, where the write cache has it.
fn write_hit(c: &Core, at: u64) -> Option<u64> {
    let entry = c.tlb.write[slot(at, c.bank)];
    (entry.tag == at & !0xfff).then(|| at.wrapping_add(entry.addend))
}

/// Host address of `at`, where the read cache has it.
fn read_hit(c: &Core, at: u64) -> Option<u64> {
    let entry = c.tlb.read[slot(at, c.bank)];
    (entry.tag == at & !0xfff).then(|| at.wrapping_add(entry.addend))
}

pub(crate) fn movs<S: Int>(c: &mut Core, op: At) -> Flow {
    repeat(c, op, |c, op, max| {
        let from = linear(c, op, SI, op.seg, S::BYTES, false)?;
        let to = linear(c, op, DI, ES, S::BYTES, true)?;
        if max > 1
            && c.system_flags & DF == 0
            && c.code_size == CodeSize::Bits64
            && op.aux & 0xf == 8
        {
            let n = max.min(in_page::<S>(from)).min(in_page::<S>(to));
            if n > 1
                && let (Some(source), Some(target)) = (read_hit(c, from), write_hit(c, to))
            {
                copy_up::<S>(source, target, n);
                step::<S>(c, op, SI, n);
                step::<S>(c, op, DI, n);
                return Ok((n, false));
            }
        }
        let v = c.load::<S>(from, op.seg)?;
        c.store::<S>(to, ES, v)?;
        step::<S>(c, op, SI, 1);
        step::<S>(c, op, DI, 1);
        Ok((1, false))
    })
}

/// Copies `n` elements upward, one after the other where they overlap.
fn copy_up<S: Int>(source: u64, target: u64, n: u64) {
    let bytes = n * S::BYTES as u64;
    let from = std::ptr::with_exposed_provenance::<u8>(source as usize);
    let to = std::ptr::with_exposed_provenance_mut::<u8>(target as usize);
    // SAFETY: the caller found both addresses in the translation caches, and `n` elements from
    // either do not leave its page of RAM. `copy` allows overlap; it gives the upward result unless
    // the target starts inside the source, which the loop below serves.
    unsafe {
        if target.wrapping_sub(source) >= bytes {
            to.copy_from(from, bytes as usize);
        } else {
            for i in 0..n as usize {
                to.cast::<S>()
                    .add(i)
                    .write_unaligned(from.cast::<S>().add(i).read_unaligned());
            }
        }
    }
}

pub(crate) fn stos<S: Int>(c: &mut Core, op: At) -> Flow {
    repeat(c, op, |c, op, max| {
        let to = linear(c, op, DI, ES, S::BYTES, true)?;
        let v = c.reg::<S>(0);
        if max > 1
            && c.system_flags & DF == 0
            && c.code_size == CodeSize::Bits64
            && op.aux & 0xf == 8
        {
            let n = max.min(in_page::<S>(to));
            if n > 1
                && let Some(target) = write_hit(c, to)
            {
                for i in 0..n as usize {
                    let place = target as usize + i * S::BYTES;
                    // SAFETY: `n` elements from an address in the write cache stay in its page.
                    unsafe { std::ptr::with_exposed_provenance_mut::<S>(place).write_unaligned(v) };
                }
                step::<S>(c, op, DI, n);
                return Ok((n, false));
            }
        }
        c.store::<S>(to, ES, v)?;
        step::<S>(c, op, DI, 1);
        Ok((1, false))
    })
}

pub(crate) fn lods<S: Int>(c: &mut Core, op: At) -> Flow {
    repeat(c, op, |c, op, _| {
        let from = linear(c, op, SI, op.seg, S::BYTES, false)?;
        let v = c.load::<S>(from, op.seg)?;
        c.set_reg(0, v);
        step::<S>(c, op, SI, 1);
        Ok((1, false))
    })
}

/// Whether the comparison just made ends a repetition.
fn ends(c: &Core, op: At) -> bool {
    let equal = c.flags & ZF != 0;
    (op.aux & REP != 0 && !equal) || (op.aux & REPNE != 0 && equal)
}

pub(crate) fn scas<S: Int>(c: &mut Core, op: At) -> Flow {
    repeat(c, op, |c, op, _| {
        let at = linear(c, op, DI, ES, S::BYTES, false)?;
        let v = c.load::<S>(at, ES)?;
        c.flags = c.reg::<S>(0).sub(v).1;
        step::<S>(c, op, DI, 1);
        Ok((1, ends(c, op)))
    })
}

pub(crate) fn cmps<S: Int>(c: &mut Core, op: At) -> Flow {
    repeat(c, op, |c, op, _| {
        // The second operand is read first, as processors do: it matters when both fault.
        let second = linear(c, op, DI, ES, S::BYTES, false)?;
        let b = c.load::<S>(second, ES)?;
        let first = linear(c, op, SI, op.seg, S::BYTES, false)?;
        let a = c.load::<S>(first, op.seg)?;
        c.flags = a.sub(b).1;
        step::<S>(c, op, SI, 1);
        step::<S>(c, op, DI, 1);
        Ok((1, ends(c, op)))
    })
}

/// INS: the destination is checked before the port is read, since a port is read once.
pub(crate) fn ins<S: Int>(c: &mut Core, op: At) -> Flow {
    // Before the count is looked at: a repetition of none needs the right as well.
    ok!(c, op, c.port_allowed(c.regs[2] as u16, S::BYTES as u16));
    repeat(c, op, |c, op, _| {
        let port = c.regs[2] as u16;
        let to = linear(c, op, DI, ES, S::BYTES, true)?;
        let (_, place) = c.load_for_write::<S>(to, ES)?;
        let v = c.port_in::<S>(port);
        c.store_back(place, ES, v)?;
        step::<S>(c, op, DI, 1);
        Ok((1, false))
    })
}

pub(crate) fn outs<S: Int>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.port_allowed(c.regs[2] as u16, S::BYTES as u16));
    repeat(c, op, |c, op, _| {
        let port = c.regs[2] as u16;
        let from = linear(c, op, SI, op.seg, S::BYTES, false)?;
        let v = c.load::<S>(from, op.seg)?;
        c.port_out::<S>(port, v);
        step::<S>(c, op, SI, 1);
        Ok((1, false))
    })
}
