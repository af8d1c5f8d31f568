//! Comparison and branch as one op.

use iced_x86::{ConditionCode, Instruction, Mnemonic};

use crate::core::CodeSize;
use crate::exec::alu::{Add, And, Cmp, Shape, Sub, Test};
use crate::exec::branch::{fused_mi, fused_mr, fused_ri, fused_rm, fused_rr};
use crate::exec::{by_condition, by_size_form};
use crate::op::{Handler, Op};

/// An op that a branch behind it may join.
pub(super) struct First {
    mnemonic: Mnemonic,
    shape: Shape,
    size: usize,
}

/// Number of a condition in its encoding.
pub(super) fn condition(ins: &Instruction) -> Option<u8> {
    Some(match ins.condition_code() {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
        ConditionCode::None => return None,
    })
}

/// Whether an op may be the first of a pair.
pub(super) fn first(ins: &Instruction, op: &Op, size: CodeSize) -> Option<First> {
    if size != CodeSize::Bits64 {
        return None;
    }
    let mnemonic = ins.mnemonic();
    let compares = matches!(mnemonic, Mnemonic::Cmp | Mnemonic::Test);
    if !compares && !matches!(mnemonic, Mnemonic::Sub | Mnemonic::Add | Mnemonic::And) {
        return None;
    }
    let (shape, size) = super::integer::shape(ins, op)?;
    if !compares && !matches!(shape, Shape::RegReg | Shape::RegImm) {
        return None;
    }
    // The immediate shares its field with the branch target.
    let has_immediate = matches!(shape, Shape::RegImm | Shape::MemImm(_));
    if has_immediate && size == 8 && i32::try_from(op.imm as i64).is_err() {
        return None;
    }
    Some(First {
        mnemonic,
        shape,
        size,
    })
}

/// Joins a branch to the op before it. Whether it could.
pub(super) fn fuse(first: First, last: &mut Op, branch: &Op, ins: &Instruction) -> bool {
    if !ins.is_jcc_short_or_near() {
        return false;
    }
    let Some(cc) = condition(ins) else {
        return false;
    };
    let Ok(target) = i32::try_from(branch.imm as i64) else {
        return false;
    };
    last.handler = match first.mnemonic {
        Mnemonic::Cmp => compare::<Cmp>(&first, cc),
        Mnemonic::Test => compare::<Test>(&first, cc),
        Mnemonic::Sub => arithmetic::<Sub>(&first, cc),
        Mnemonic::Add => arithmetic::<Add>(&first, cc),
        _ => arithmetic::<And>(&first, cc),
    };
    last.imm = (last.imm & 0xffff_ffff) | (target as u32 as u64) << 32;
    last.aux = cc.into();
    last.len += branch.len;
    true
}

/// The handler of a pair whose first half has no memory operand.
fn arithmetic<O: crate::exec::alu::Alu>(first: &First, cc: u8) -> Handler {
    match (first.shape, first.size) {
        (Shape::RegReg, 1) => by_condition!(cc, fused_rr, u8, O),
        (Shape::RegReg, 2) => by_condition!(cc, fused_rr, u16, O),
        (Shape::RegReg, 4) => by_condition!(cc, fused_rr, u32, O),
        (Shape::RegReg, _) => by_condition!(cc, fused_rr, u64, O),
        (_, 1) => by_condition!(cc, fused_ri, u8, O),
        (_, 2) => by_condition!(cc, fused_ri, u16, O),
        (_, 4) => by_condition!(cc, fused_ri, u32, O),
        (_, _) => by_condition!(cc, fused_ri, u64, O),
    }
}

fn compare<O: crate::exec::alu::Alu>(first: &First, cc: u8) -> Handler {
    match first.shape {
        Shape::RegMem(e) => by_size_form!(first.size, e, fused_rm, O),
        Shape::MemReg(e) => by_size_form!(first.size, e, fused_mr, O),
        Shape::MemImm(e) => by_size_form!(first.size, e, fused_mi, O),
        _ => arithmetic::<O>(first, cc),
    }
}
