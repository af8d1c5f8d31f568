//! From instruction bytes to blocks of ops.
//!
//! `iced-x86` finds the instruction; the modules here choose its handler. What they do not know is
//! #UD, so an instruction that the CPU model lacks cannot slip in.

mod control;
mod fuse;
mod integer;
mod operands;
mod sse;
mod system;
mod x87;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::blocks::{Draft, MAX_OPS};
use crate::core::{CodeSize, Core, Raised};
use crate::exec::{branch, system as exec_system};
use crate::op::{Handler, Op, ZERO};
use crate::opcodes::{Support, support};

/// The model has no BMI (F3 0F BC is BSF), and no LAHF or SAHF in 64-bit mode.
const OPTIONS: u32 =
    DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_LAHF_SAHF_64;

/// Most instructions of a block: [`Op::rest`] counts them.
const MAX_COUNT: usize = u8::MAX as usize;

/// Longest instruction (SDM vol. 2, 2.3.11).
const MAX_LENGTH: usize = 15;

/// A decoded instruction on its way to an op.
pub(super) struct Builder<'a> {
    pub ins: &'a Instruction,
    /// Its bytes, and perhaps those behind it.
    pub raw: &'a [u8],
    pub size: CodeSize,
    pub op: Op,
    /// The op is the last of its block.
    pub ends: bool,
    /// The op does nothing at all, so that none is needed.
    pub nothing: bool,
}

impl Builder<'_> {
    /// Chooses the handler.
    pub(super) fn with(mut self, handler: Handler) -> Self {
        self.op.handler = handler;
        self
    }

    /// The instruction does nothing.
    pub(super) fn nothing(mut self) -> Self {
        self.op.handler = crate::exec::data::nop;
        self.nothing = true;
        self
    }

    /// Chooses the handler of an op that ends its block.
    pub(super) fn ending(mut self, handler: Handler) -> Self {
        self.op.handler = handler;
        self.ends = true;
        self
    }

    pub(super) fn long(&self) -> bool {
        self.size == CodeSize::Bits64
    }

    /// The instruction is not one that this CPU has.
    pub(super) fn undefined(self) -> Self {
        self.ending(exec_system::ud)
    }
}

fn empty_op() -> Op {
    Op {
        handler: exec_system::ud,
        imm: 0,
        disp: 0,
        dst: 0,
        src: 0,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: 0,
        rest: 0,
        len: 0,
        offset: 0,
        aux: 0,
    }
}

/// Builds the op of one instruction.
fn build<'a>(ins: &'a Instruction, raw: &'a [u8], size: CodeSize) -> Builder<'a> {
    let builder = Builder {
        ins,
        raw,
        size,
        op: empty_op(),
        ends: false,
        nothing: false,
    };
    if support(ins.mnemonic()) == Support::Absent {
        return builder.undefined();
    }
    [
        integer::build,
        control::build,
        sse::build,
        x87::build,
        system::build,
    ]
    .into_iter()
    .try_fold(builder, |builder, build| match build(builder) {
        Ok(done) => Err(done),
        Err(builder) => Ok(builder),
    })
    .map_or_else(|done| done, Builder::undefined)
}

impl Core {
    /// Decodes the block at RIP, whose first byte lies at `physical`; one instruction if `alone`.
    pub(crate) fn decode_block(
        &mut self,
        physical: u64,
        key: u64,
        alone: bool,
    ) -> Result<Draft, Raised> {
        let mut block = Draft {
            key,
            ops: std::mem::take(&mut self.blocks.scratch),
            count: 0,
            length: 0,
            second: None,
        };
        block.ops.clear();
        let bits = match self.code_size {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        };
        let mut bytes = [0; MAX_OPS * MAX_LENGTH];
        let in_page = (0x1000 - (physical & 0xfff) as usize).min(bytes.len());
        self.memory.read(physical, &mut bytes[..in_page]);
        let mut available = in_page;
        let mut offset = 0;
        let mut fusible = None;
        loop {
            let mut decoder =
                Decoder::with_ip(bits, &bytes[offset..available], offset as u64, OPTIONS);
            let mut ins = decoder.decode();
            if decoder.last_error() == DecoderError::NoMoreBytes && available - offset < MAX_LENGTH
            {
                if offset > 0 {
                    break;
                }
                // The instruction crosses into the next page, or runs out of bytes there.
                let next = self.fetch_linear((self.rip() | 0xfff).wrapping_add(1))?;
                let second = self.fetch_page(next)?;
                self.memory
                    .read(second, &mut bytes[available..available + MAX_LENGTH]);
                available += MAX_LENGTH;
                block.second = Some(second);
                decoder = Decoder::with_ip(bits, &bytes[..available], 0, OPTIONS);
                ins = decoder.decode();
            }
            if decoder.last_error() != DecoderError::None
                && prefixes(&bytes[offset..available]) >= MAX_LENGTH
            {
                // SDM vol. 3A 6.15, interrupt 13: longer than 15 bytes.
                return Err(self.gp());
            }
            let built = build(&ins, &bytes[offset..available], self.code_size);
            let mut op = built.op;
            let ends = built.ends;
            let length = ins.len().clamp(1, MAX_LENGTH);
            // For now what comes before it.
            op.rest = block.count as u8;
            op.len = length as u8;
            op.offset = offset as u16;
            offset += length;
            block.count += 1;
            let fused = match (fusible.take(), block.ops.last_mut()) {
                (Some(first), Some(last)) if !alone => fuse::fuse(first, last, &op, &ins),
                _ => false,
            };
            if built.nothing && !alone {
                // Counted, and stepped over.
            } else if !fused {
                block.ops.push(op);
                fusible = fuse::first(&ins, &op, self.code_size);
            }
            if ends
                || alone
                || block.second.is_some()
                || offset >= available
                || block.ops.len() + 1 >= MAX_OPS
                || usize::from(block.count) + 1 >= MAX_COUNT
            {
                break;
            }
        }
        // Behind a branch it is never reached; it is there so that every op has one behind it.
        let mut fall = empty_op();
        fall.handler = branch::fall;
        fall.offset = offset as u16;
        fall.rest = block.count as u8;
        block.ops.push(fall);
        for op in &mut block.ops {
            op.rest = block.count as u8 - op.rest;
        }
        block.length = offset;
        Ok(block)
    }
}

/// Prefix bytes in front.
fn prefixes(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take_while(|b| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3))
        .count()
}
