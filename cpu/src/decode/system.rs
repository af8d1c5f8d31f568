//! Handlers of system instructions.

use iced_x86::{Mnemonic, Register};

use super::Builder;
use super::operands::segment;
use crate::exec::system as exec;
use crate::op::Handler;

type Outcome<'a> = Result<Builder<'a>, Builder<'a>>;

pub(super) fn build(mut b: Builder<'_>) -> Outcome<'_> {
    use Mnemonic::*;
    Ok(match b.ins.mnemonic() {
        Hlt => b.ending(exec::hlt),
        Cli => b.with(crate::exec::bits::cli),
        Sti => b.ending(exec::sti),
        Cpuid => b.ending(exec::cpuid),
        Rdtsc => b.ending(exec::rdtsc),
        Rdpmc => b.ending(exec::rdpmc),
        Rdmsr => b.ending(exec::rdmsr),
        Wrmsr => b.ending(exec::wrmsr),
        Sgdt => memory(b, exec::store_table::<false>, false),
        Sidt => memory(b, exec::store_table::<true>, false),
        Lgdt => memory(b, exec::load_table::<false>, true),
        Lidt => memory(b, exec::load_table::<true>, true),
        Lldt => word(b, exec::lldt, true),
        Ltr => word(b, exec::ltr, true),
        Lmsw => word(b, exec::lmsw, true),
        Sldt => word(b, exec::sldt, false),
        Str => word(b, exec::str, false),
        Smsw => word(b, exec::smsw, false),
        Clts => b.ending(exec::clts),
        Invlpg => memory(b, exec::invlpg, true),
        Invd | Wbinvd => b.ending(exec::cache),
        Clflush => memory(b, exec::clflush, false),
        Swapgs => b.with(exec::swapgs),
        Syscall => b.ending(exec::syscall),
        Sysret => sized(b, 4, exec::sysret),
        Sysretq => sized(b, 8, exec::sysret),
        Sysenter => b.ending(exec::sysenter),
        Sysexit => sized(b, 4, exec::sysexit),
        Sysexitq => sized(b, 8, exec::sysexit),
        Lar => inspect(b, exec::inspect::<{ exec::LAR }>),
        Lsl => inspect(b, exec::inspect::<{ exec::LSL }>),
        Verr => word(b, exec::inspect::<{ exec::VERR }>, false),
        Verw => word(b, exec::inspect::<{ exec::VERW }>, false),
        Lds => far_pointer(b, exec::load_far_pointer::<3>),
        Les => far_pointer(b, exec::load_far_pointer::<0>),
        Lfs => far_pointer(b, exec::load_far_pointer::<4>),
        Lgs => far_pointer(b, exec::load_far_pointer::<5>),
        Lss => far_pointer(b, exec::load_far_pointer::<2>),
        Mov => {
            if b.is_register(0) {
                let to = b.ins.op_register(0);
                if let Some(s) = segment(to) {
                    if s == 1 {
                        return Err(b);
                    }
                    b.op.dst = s;
                    return Ok(word_operand(b, 1).ending(exec::load_segment));
                }
                if let Some((handler, n)) = special(to, exec::write_control, exec::write_debug) {
                    b.op.aux = n;
                    b.op.src = b.register(1).map_or(0, |r| r.0);
                    return Ok(b.ending(handler));
                }
            }
            if b.is_register(1) {
                let from = b.ins.op_register(1);
                if let Some(s) = segment(from) {
                    let handler: Handler = match s {
                        0 => exec::store_segment::<0>,
                        1 => exec::store_segment::<1>,
                        2 => exec::store_segment::<2>,
                        3 => exec::store_segment::<3>,
                        4 => exec::store_segment::<4>,
                        _ => exec::store_segment::<5>,
                    };
                    return Ok(word_operand(b, 0).with(handler));
                }
                if let Some((handler, n)) = special(from, exec::read_control, exec::read_debug) {
                    b.op.aux = n;
                    b.op.dst = b.register(0).map_or(0, |r| r.0);
                    return Ok(b.ending(handler));
                }
            }
            return Err(b);
        }
        _ => return Err(b),
    })
}

fn sized(mut b: Builder<'_>, size: u16, handler: Handler) -> Builder<'_> {
    b.op.aux = size;
    b.ending(handler)
}

fn memory(mut b: Builder<'_>, handler: Handler, ends: bool) -> Builder<'_> {
    b.any_memory();
    if ends {
        b.ending(handler)
    } else {
        b.with(handler)
    }
}

/// Fills in a 16-bit operand: register, or memory with `aux` bit 0.
fn word_operand(mut b: Builder<'_>, i: u32) -> Builder<'_> {
    if let Some((register, size)) = b.register(i) {
        if i == 0 {
            b.op.dst = register;
        }
        b.op.src = register;
        b.op.aux = (size as u16) << 4;
    } else {
        b.op.aux = 1;
        b.any_memory();
    }
    b
}

fn word(b: Builder<'_>, handler: Handler, ends: bool) -> Builder<'_> {
    let b = word_operand(b, 0);
    if ends {
        b.ending(handler)
    } else {
        b.with(handler)
    }
}

fn inspect(b: Builder<'_>, handler: Handler) -> Builder<'_> {
    let (dst, size) = b.register(0).unwrap_or((0, 8));
    let mut b = word_operand(b, 1);
    b.op.dst = dst;
    b.op.aux = b.op.aux & 1 | (size as u16) << 4;
    b.with(handler)
}

fn far_pointer(mut b: Builder<'_>, handler: Handler) -> Builder<'_> {
    let (dst, size) = b.register(0).unwrap_or((0, 8));
    b.op.dst = dst;
    b.op.aux = size as u16;
    b.any_memory();
    b.ending(handler)
}

/// Number of a control or debug register, with the handler for its kind.
fn special(register: Register, control: Handler, debug: Handler) -> Option<(Handler, u16)> {
    let n = register as u32;
    let within = |first: Register| {
        n.checked_sub(first as u32)
            .filter(|&i| i < 16)
            .map(|i| i as u16)
    };
    if let Some(i) = within(Register::CR0) {
        return Some((control, i));
    }
    within(Register::DR0).map(|i| (debug, i))
}
