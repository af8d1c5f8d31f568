//! Registers and memory operands of an instruction, as ops name them.

use iced_x86::{MemorySize, OpKind, Register};

use super::Builder;
use crate::exec::{ADDRESS_16, ADDRESS_32, ANY, BASE, BASED, FULL, RIP_RELATIVE};
use crate::op::{DS, FS, GS, RIP, SS, ZERO};

/// Byte offset and width of a general register.
pub(super) fn general(register: Register) -> Option<(u8, usize)> {
    let n = register as u32;
    let within = |first: Register, count: u32| n.checked_sub(first as u32).filter(|&i| i < count);
    if let Some(i) = within(Register::AL, 20) {
        // AL CL DL BL, AH CH DH BH, SPL BPL SIL DIL, R8L..R15L.
        let offset = match i {
            0..=3 => i * 8,
            4..=7 => (i - 4) * 8 + 1,
            _ => (i - 4) * 8,
        };
        return Some((offset as u8, 1));
    }
    for (first, size) in [(Register::AX, 2), (Register::EAX, 4), (Register::RAX, 8)] {
        if let Some(i) = within(first, 16) {
            return Some((i as u8 * 8, size));
        }
    }
    None
}

/// Number of a segment register.
pub(super) fn segment(register: Register) -> Option<u8> {
    match register {
        Register::ES => Some(0),
        Register::CS => Some(1),
        Register::SS => Some(2),
        Register::DS => Some(3),
        Register::FS => Some(4),
        Register::GS => Some(5),
        _ => None,
    }
}

/// Bytes of an integer memory operand.
pub(super) fn memory_bytes(size: MemorySize) -> usize {
    match size {
        MemorySize::UInt8 | MemorySize::Int8 => 1,
        MemorySize::UInt16 | MemorySize::Int16 | MemorySize::WordOffset => 2,
        MemorySize::UInt32 | MemorySize::Int32 | MemorySize::DwordOffset => 4,
        _ => 8,
    }
}

impl Builder<'_> {
    pub(super) fn is_register(&self, i: u32) -> bool {
        self.ins.op_count() > i && self.ins.op_kind(i) == OpKind::Register
    }

    pub(super) fn is_memory(&self, i: u32) -> bool {
        self.ins.op_count() > i && self.ins.op_kind(i) == OpKind::Memory
    }

    pub(super) fn is_immediate(&self, i: u32) -> bool {
        self.ins.op_count() > i
            && matches!(
                self.ins.op_kind(i),
                OpKind::Immediate8
                    | OpKind::Immediate16
                    | OpKind::Immediate32
                    | OpKind::Immediate64
                    | OpKind::Immediate8to16
                    | OpKind::Immediate8to32
                    | OpKind::Immediate8to64
                    | OpKind::Immediate32to64
            )
    }

    /// Place and width of the general register that operand `i` is.
    pub(super) fn register(&self, i: u32) -> Option<(u8, usize)> {
        if self.is_register(i) {
            general(self.ins.op_register(i))
        } else {
            None
        }
    }

    /// Width of operand `i`, a general register or integer in memory.
    pub(super) fn width(&self, i: u32) -> usize {
        match self.register(i) {
            Some((_, size)) => size,
            None => memory_bytes(self.ins.memory_size()),
        }
    }

    /// Fills in the memory operand and returns its cheapest form.
    pub(super) fn memory(&mut self) -> u8 {
        let form = self.memory_parts();
        if form == BASE && self.op.index != ZERO {
            FULL
        } else {
            form
        }
    }

    /// Fills in the memory operand for handlers that exist in form [`ANY`] only.
    pub(super) fn any_memory(&mut self) {
        self.memory_parts();
    }

    /// Fills in the memory operand of an LEA, to which segments do not matter.
    pub(super) fn lea_memory(&mut self) -> u8 {
        let form = self.memory();
        match form {
            ANY => ANY,
            _ if self.op.index != ZERO => FULL,
            _ => BASE,
        }
    }

    /// Segment of the memory operand. In 64-bit code prefixes other than FS and GS do nothing, so the
    /// base register alone decides between #SS and #GP.
    pub(super) fn effective_segment(&self, base: Register) -> u8 {
        let named = segment(self.ins.memory_segment()).unwrap_or(DS);
        if !self.long() || matches!(named, FS | GS) {
            return named;
        }
        match base.full_register() {
            Register::RSP | Register::RBP => SS,
            _ => DS,
        }
    }

    fn memory_parts(&mut self) -> u8 {
        let ins = self.ins;
        let (base, index) = (ins.memory_base(), ins.memory_index());
        let seg = self.effective_segment(base);
        self.op.seg = seg;
        self.op.scale = ins.memory_index_scale() as u8;
        self.op.index = general(index).map_or(ZERO, |(r, _)| r);
        self.op.base = general(base).map_or(ZERO, |(r, _)| r);
        let mut wide = true;
        if base == Register::RIP || base == Register::EIP {
            self.op.base = RIP;
            // iced gives the target relative to the block's start, where its addresses begin.
            let target = ins.memory_displacement64() as i64;
            match i32::try_from(target) {
                Ok(disp) if base == Register::RIP => self.op.disp = disp,
                _ => {
                    self.op.disp = target.wrapping_sub(ins.next_ip() as i64) as i32;
                    self.op.scale |= RIP_RELATIVE;
                    wide = false;
                    if base == Register::EIP {
                        self.op.scale |= ADDRESS_32;
                    }
                }
            }
        } else {
            self.op.disp = ins.memory_displacement64() as i32;
            let parts = [base, index];
            let sized = |bytes: usize| {
                parts
                    .iter()
                    .any(|&r| general(r).is_some_and(|(_, n)| n == bytes))
            };
            // Without registers the displacement's own size decides.
            let bytes = if sized(2) {
                2
            } else if sized(4) {
                4
            } else if sized(8) {
                8
            } else {
                ins.memory_displ_size() as usize
            };
            match bytes {
                2 => self.op.scale |= ADDRESS_16,
                4 | 1 | 0
                    if !self.long() || sized(4) || (!sized(8) && ins.memory_displ_size() == 4) =>
                {
                    self.op.scale |= ADDRESS_32;
                }
                _ => {}
            }
            wide = self.op.scale & (ADDRESS_16 | ADDRESS_32) == 0;
        }
        if !self.long() || !wide {
            return ANY;
        }
        if seg == FS || seg == GS { BASED } else { BASE }
    }
}
