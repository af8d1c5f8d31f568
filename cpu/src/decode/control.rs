//! Handlers of branches and of stack instructions.

use iced_x86::{Mnemonic, OpKind};

use super::Builder;
use super::operands::{memory_bytes, segment};
use crate::exec::branch::{self, call_m, jmp_m};
use crate::exec::stack::{self, IMMEDIATE, MEMORY, REGISTER, SEGMENT, push_m};
use crate::exec::{by_condition, by_form, by_size, io, system};
use crate::op::Handler;

type Outcome<'a> = Result<Builder<'a>, Builder<'a>>;

pub(super) fn build(mut b: Builder<'_>) -> Outcome<'_> {
    use Mnemonic::*;
    Ok(match b.ins.mnemonic() {
        Jmp => jump(b),
        Call => call(b),
        Ret => {
            b.op.imm = if b.ins.op_count() > 0 {
                b.ins.immediate(0)
            } else {
                0
            };
            b.op.aux = return_size(&b);
            if b.long() && b.op.aux == 8 {
                b.ending(branch::ret)
            } else {
                b.ending(branch::narrow_ret)
            }
        }
        Retf => {
            b.op.imm = if b.ins.op_count() > 0 {
                b.ins.immediate(0)
            } else {
                0
            };
            b.op.aux = return_size(&b);
            b.ending(branch::far_ret)
        }
        Iret => sized(b, 2, branch::iret),
        Iretd => sized(b, 4, branch::iret),
        Iretq => sized(b, 8, branch::iret),
        Loop => counted(b, branch::count_loop::<{ branch::LOOP }>),
        Loope => counted(b, branch::count_loop::<{ branch::LOOPE }>),
        Loopne => counted(b, branch::count_loop::<{ branch::LOOPNE }>),
        Jcxz | Jecxz | Jrcxz => counted(b, branch::jrcxz),
        Push => push(b),
        Pop => pop(b),
        Pushf => flags(b, 2, stack::pushf),
        Pushfd => flags(b, 4, stack::pushf),
        Pushfq => flags(b, 8, stack::pushf),
        Popf => sized(b, 2, stack::popf),
        Popfd => sized(b, 4, stack::popf),
        Popfq => sized(b, 8, stack::popf),
        Leave => {
            b.op.aux = operand_size(&b);
            if b.long() && b.op.aux == 8 {
                b.with(stack::leave)
            } else {
                b.with(stack::leave_any)
            }
        }
        Enter => {
            b.op.aux = operand_size(&b);
            b.op.imm = u64::from(b.ins.immediate16()) | u64::from(b.ins.immediate8_2nd()) << 32;
            b.with(stack::enter)
        }
        Pusha => flags(b, 2, stack::pusha),
        Pushad => flags(b, 4, stack::pusha),
        Popa => flags(b, 2, stack::popa),
        Popad => flags(b, 4, stack::popa),
        In => port(b, 1, |s| by_size!(s, port_in)),
        Out => port(b, 0, |s| by_size!(s, port_out)),
        Int => {
            b.op.imm = b.ins.immediate(0);
            b.ending(system::int)
        }
        Int3 => {
            b.op.imm = system::BREAKPOINT;
            b.ending(system::int)
        }
        Int1 => {
            b.op.imm = u64::from(crate::core::VECTOR_DB);
            b.ending(system::int1)
        }
        Into => {
            b.op.imm = 4;
            b.ending(system::into)
        }
        _ => return conditional_jump(b),
    })
}

use branch::jcc;
use io::{port_in, port_out};

fn sized(mut b: Builder<'_>, size: u16, handler: Handler) -> Builder<'_> {
    b.op.aux = size;
    b.ending(handler)
}

fn flags(mut b: Builder<'_>, size: u16, handler: Handler) -> Builder<'_> {
    b.op.aux = size;
    b.with(handler)
}

/// Operand size of RET, from iced's code.
fn return_size(b: &Builder<'_>) -> u16 {
    use iced_x86::Code::*;
    match b.ins.code() {
        Retnw | Retnw_imm16 | Retfw | Retfw_imm16 => 2,
        Retnd | Retnd_imm16 | Retfd | Retfd_imm16 => 4,
        _ => 8,
    }
}

/// Operand size of LEAVE and ENTER.
fn operand_size(b: &Builder<'_>) -> u16 {
    use iced_x86::Code::*;
    match b.ins.code() {
        Leavew | Enterw_imm16_imm8 => 2,
        Leaved | Enterd_imm16_imm8 => 4,
        _ => 8,
    }
}

fn is_near(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    )
}

/// Target relative to the block's start.
fn target(b: &Builder<'_>) -> u64 {
    match b.ins.op_kind(0) {
        OpKind::NearBranch16 => i64::from(b.ins.near_branch16() as i16) as u64,
        OpKind::NearBranch32 => i64::from(b.ins.near_branch32() as i32) as u64,
        _ => b.ins.near_branch64(),
    }
}

fn conditional_jump(mut b: Builder<'_>) -> Outcome<'_> {
    if !b.ins.is_jcc_short_or_near() {
        return Err(b);
    }
    let Some(cc) = super::fuse::condition(b.ins) else {
        return Err(b);
    };
    b.op.imm = target(&b);
    if b.long() {
        return Ok(b.ending(by_condition!(cc, jcc)));
    }
    b.op.aux = cc.into();
    b.op.src = if b.ins.op_kind(0) == OpKind::NearBranch16 {
        2
    } else {
        4
    };
    Ok(b.ending(branch::narrow_jcc))
}

fn counted(mut b: Builder<'_>, handler: Handler) -> Builder<'_> {
    use iced_x86::Code::*;
    b.op.imm = target(&b);
    b.op.aux = match b.ins.code() {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX
        | Loopne_rel8_16_CX | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 2,
        Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX | Loope_rel8_16_ECX
        | Loope_rel8_32_ECX | Loope_rel8_64_ECX | Loopne_rel8_16_ECX | Loopne_rel8_32_ECX
        | Loopne_rel8_64_ECX | Jecxz_rel8_16 | Jecxz_rel8_32 | Jecxz_rel8_64 => 4,
        _ => 8,
    };
    b.ending(handler)
}

fn jump(mut b: Builder<'_>) -> Builder<'_> {
    if is_near(b.ins.op_kind(0)) {
        b.op.imm = target(&b);
        if b.long() {
            return b.ending(branch::jmp);
        }
        b.op.src = if b.ins.op_kind(0) == OpKind::NearBranch16 {
            2
        } else {
            4
        };
        return b.ending(branch::narrow_jmp);
    }
    if let Some(size) = far_memory(&b) {
        b.op.aux = size;
        b.any_memory();
        return b.ending(branch::far::<{ branch::FAR_JMP }, true>);
    }
    if far_immediate(&mut b) {
        return b.ending(branch::far::<{ branch::FAR_JMP }, false>);
    }
    if let Some((src, size)) = b.register(0) {
        b.op.src = src;
        b.op.aux = size as u16;
        return if b.long() && size == 8 {
            b.ending(branch::jmp_r)
        } else {
            b.ending(branch::narrow_jmp_indirect::<1>)
        };
    }
    b.op.aux = memory_bytes(b.ins.memory_size()) as u16;
    if b.long() && b.op.aux == 8 {
        let e = b.memory();
        return b.ending(by_form!(e, jmp_m));
    }
    b.any_memory();
    b.ending(branch::narrow_jmp_indirect::<2>)
}

fn call(mut b: Builder<'_>) -> Builder<'_> {
    if is_near(b.ins.op_kind(0)) {
        b.op.imm = target(&b);
        b.op.aux = if b.ins.op_kind(0) == OpKind::NearBranch16 {
            2
        } else {
            4
        };
        return if b.long() {
            b.ending(branch::call)
        } else {
            b.ending(branch::narrow_call::<0>)
        };
    }
    if let Some(size) = far_memory(&b) {
        b.op.aux = size;
        b.any_memory();
        return b.ending(branch::far::<{ branch::FAR_CALL }, true>);
    }
    if far_immediate(&mut b) {
        return b.ending(branch::far::<{ branch::FAR_CALL }, false>);
    }
    if let Some((src, size)) = b.register(0) {
        b.op.src = src;
        b.op.aux = size as u16;
        return if b.long() && size == 8 {
            b.ending(branch::call_r)
        } else {
            b.ending(branch::narrow_call::<1>)
        };
    }
    b.op.aux = memory_bytes(b.ins.memory_size()) as u16;
    if b.long() && b.op.aux == 8 {
        let e = b.memory();
        return b.ending(by_form!(e, call_m));
    }
    b.any_memory();
    b.ending(branch::narrow_call::<2>)
}

/// Offset size of a far pointer in memory.
fn far_memory(b: &Builder<'_>) -> Option<u16> {
    use iced_x86::Code::*;
    match b.ins.code() {
        Jmp_m1616 | Call_m1616 => Some(2),
        Jmp_m1632 | Call_m1632 => Some(4),
        Jmp_m1664 | Call_m1664 => Some(8),
        _ => None,
    }
}

fn far_immediate(b: &mut Builder<'_>) -> bool {
    match b.ins.op_kind(0) {
        OpKind::FarBranch16 => {
            b.op.aux = 2;
            b.op.imm =
                u64::from(b.ins.far_branch16()) | u64::from(b.ins.far_branch_selector()) << 32;
        }
        OpKind::FarBranch32 => {
            b.op.aux = 4;
            b.op.imm =
                u64::from(b.ins.far_branch32()) | u64::from(b.ins.far_branch_selector()) << 32;
        }
        _ => return false,
    }
    true
}

/// Operand size of PUSH and POP, from iced's stack adjustment.
fn stack_size(b: &Builder<'_>) -> u16 {
    b.ins.stack_pointer_increment().unsigned_abs() as u16
}

fn push(mut b: Builder<'_>) -> Builder<'_> {
    let size = stack_size(&b);
    b.op.aux = size;
    let fast = b.long() && size == 8;
    if let Some((src, _)) = b.register(0) {
        b.op.src = src;
        return if fast {
            b.with(stack::push_r)
        } else {
            b.with(stack::push_any::<REGISTER>)
        };
    }
    if b.is_immediate(0) {
        b.op.imm = b.ins.immediate(0);
        return if fast {
            b.with(stack::push_i)
        } else {
            b.with(stack::push_any::<IMMEDIATE>)
        };
    }
    if b.is_memory(0) {
        if fast {
            let e = b.memory();
            return b.with(by_form!(e, push_m));
        }
        b.any_memory();
        return b.with(stack::push_any::<MEMORY>);
    }
    match segment(b.ins.op_register(0)) {
        Some(s) => {
            b.op.src = s;
            b.with(stack::push_any::<SEGMENT>)
        }
        None => b.undefined(),
    }
}

fn pop(mut b: Builder<'_>) -> Builder<'_> {
    let size = stack_size(&b);
    b.op.aux = size;
    if let Some((dst, _)) = b.register(0) {
        b.op.dst = dst;
        return if b.long() && size == 8 {
            b.with(stack::pop_r)
        } else {
            b.with(stack::pop_any::<REGISTER>)
        };
    }
    if b.is_memory(0) {
        b.any_memory();
        return b.with(stack::pop_any::<MEMORY>);
    }
    match segment(b.ins.op_register(0)) {
        Some(s) => {
            b.op.dst = s;
            b.ending(stack::pop_segment)
        }
        None => b.undefined(),
    }
}

fn port(mut b: Builder<'_>, operand: u32, handler: fn(usize) -> Handler) -> Builder<'_> {
    let size = b.width(1 - operand);
    if b.is_register(operand) {
        b.op.aux = 1;
    } else {
        b.op.imm = b.ins.immediate(operand);
    }
    b.ending(handler(size))
}
