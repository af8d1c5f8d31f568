//! Segment registers and the descriptors behind them (SDM vol. 3A ch. 3 and 5).

use crate::core::{CodeSize, Core, Leave, Raised, VECTOR_GP, VECTOR_NP, VECTOR_SS, canonical};
use crate::flags::{AC, DF, ID, IF, IOPL, NT, RF, TF, VM};
use crate::op::{CS, FS, GS, SS};
use crate::state::Segment;

/// A segment descriptor of the GDT or LDT, as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor(pub u64);

impl Descriptor {
    pub(crate) fn kind(self) -> u8 {
        (self.0 >> 40 & 0xf) as u8
    }
    pub(crate) fn is_system(self) -> bool {
        self.0 >> 44 & 1 == 0
    }
    pub(crate) fn is_code(self) -> bool {
        !self.is_system() && self.kind() & 8 != 0
    }
    pub(crate) fn conforming(self) -> bool {
        self.kind() & 4 != 0
    }
    /// Of code: readable. Of data: writable.
    pub(crate) fn bit1(self) -> bool {
        self.kind() & 2 != 0
    }
    pub(crate) fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }
    pub(crate) fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }
    pub(crate) fn long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }
    pub(crate) fn big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }
    fn base(self) -> u64 {
        (self.0 >> 16 & 0xff_ffff) | (self.0 >> 32 & 0xff00_0000)
    }
    fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 {
            raw << 12 | 0xfff
        } else {
            raw
        }
    }
    /// As a register holds it.
    pub(crate) fn load(self, selector: u16) -> Segment {
        Segment {
            selector,
            base: self.base(),
            limit: self.limit(),
            attributes: (self.0 >> 40) as u32 & 0xf0ff,
        }
    }
}

/// CS from a descriptor that passed its checks.
pub(crate) fn code_segment(selector: u16, descriptor: Descriptor) -> Segment {
    let mut segment = descriptor.load(selector);
    segment.attributes |= 1;
    segment
}

impl Core {
    /// Reads a descriptor from the GDT or LDT; #GP(selector) beyond the table's end.
    pub(crate) fn descriptor(&mut self, selector: u16, ext: u32) -> Result<Descriptor, Raised> {
        self.descriptor_or(selector, VECTOR_GP, ext)
    }

    fn descriptor_or(&mut self, selector: u16, vector: u8, ext: u32) -> Result<Descriptor, Raised> {
        let offset = u64::from(selector & !7);
        let (base, limit) = self.table(selector);
        if offset + 7 > limit {
            return Err(self.raise_code(vector, u32::from(selector & !3) | ext));
        }
        Ok(Descriptor(self.load_system(base.wrapping_add(offset))?))
    }

    /// Base and limit of the table that a selector points into; a limit of 0 for a null LDT.
    fn table(&self, selector: u16) -> (u64, u64) {
        if selector & 4 == 0 {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if self.ldtr.attributes & 0x80 == 0 || self.ldtr.attributes & 0x1_0000 != 0 {
            (0, 0)
        } else {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        }
    }

    /// Sets the accessed bit of a descriptor that was loaded.
    pub(crate) fn mark_accessed(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
    ) -> Result<(), Raised> {
        if descriptor.kind() & 1 != 0 {
            return Ok(());
        }
        let (base, _) = self.table(selector);
        let place = base.wrapping_add(u64::from(selector & !7) + 5);
        self.store_system::<u8>(place, (descriptor.0 >> 40) as u8 | 1)
    }

    /// MOV and POP to a data segment register, LSS and kin.
    pub(crate) fn load_data_segment(&mut self, segment: u8, selector: u16) -> Result<(), Raised> {
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            // A null SS is legal in 64-bit code below CPL 3 only.
            if segment == SS && (!self.in_64_bit_code() || self.cpl == 3 || rpl != self.cpl) {
                return Err(self.gp());
            }
            let base = match segment {
                // AMD keeps the base of a null FS or GS; Intel clears it. By rule: cleared.
                FS | GS => 0,
                _ => 0,
            };
            let dpl = if segment == SS {
                u32::from(rpl) << 5
            } else {
                0
            };
            self.segments[usize::from(segment)] = Segment {
                selector,
                base,
                limit: 0,
                attributes: 0x1_0000 | dpl,
            };
            self.mode_changed();
            return Ok(());
        }
        let error = u32::from(selector & !3);
        let d = self.descriptor(selector, 0)?;
        if segment == SS {
            if rpl != self.cpl || d.is_system() || d.is_code() || !d.bit1() || d.dpl() != self.cpl {
                return Err(self.raise_code(VECTOR_GP, error));
            }
            if !d.present() {
                return Err(self.raise_code(VECTOR_SS, error));
            }
        } else {
            if d.is_system() || (d.is_code() && !d.bit1()) {
                return Err(self.raise_code(VECTOR_GP, error));
            }
            if !(d.is_code() && d.conforming()) && (rpl > d.dpl() || self.cpl > d.dpl()) {
                return Err(self.raise_code(VECTOR_GP, error));
            }
            if !d.present() {
                return Err(self.raise_code(VECTOR_NP, error));
            }
        }
        self.mark_accessed(selector, d)?;
        let mut loaded = d.load(selector);
        loaded.attributes |= 1;
        self.segments[usize::from(segment)] = loaded;
        self.mode_changed();
        Ok(())
    }

    /// LLDT.
    pub(crate) fn load_ldt(&mut self, selector: u16) -> Result<(), Raised> {
        if selector & !3 == 0 {
            self.ldtr = Segment {
                selector,
                base: 0,
                limit: 0,
                attributes: 0x1_0000,
            };
            return Ok(());
        }
        let (d, high) = self.system_descriptor(selector)?;
        if !d.is_system() || d.kind() != 2 {
            return Err(self.raise_code(VECTOR_GP, u32::from(selector & !3)));
        }
        if !d.present() {
            return Err(self.raise_code(VECTOR_NP, u32::from(selector & !3)));
        }
        self.ldtr = d.load(selector);
        self.ldtr.base |= high << 32;
        Ok(())
    }

    /// LTR; marks the TSS busy.
    pub(crate) fn load_task_register(&mut self, selector: u16) -> Result<(), Raised> {
        if selector & !3 == 0 {
            return Err(self.gp());
        }
        let (d, high) = self.system_descriptor(selector)?;
        if !d.is_system() || d.kind() != 9 {
            return Err(self.raise_code(VECTOR_GP, u32::from(selector & !3)));
        }
        if !d.present() {
            return Err(self.raise_code(VECTOR_NP, u32::from(selector & !3)));
        }
        let place = self.gdtr.base.wrapping_add(u64::from(selector & !7) + 5);
        self.store_system::<u8>(place, (d.0 >> 40) as u8 | 2)?;
        self.tr = d.load(selector);
        self.tr.base |= high << 32;
        self.tr.attributes |= 2;
        Ok(())
    }

    /// A descriptor of 16 bytes (in long mode) from the GDT.
    fn system_descriptor(&mut self, selector: u16) -> Result<(Descriptor, u64), Raised> {
        let error = u32::from(selector & !3);
        let long = self.long_mode();
        let last = u64::from(selector & !7) + if long { 15 } else { 7 };
        if selector & 4 != 0 || last > u64::from(self.gdtr.limit) {
            return Err(self.raise_code(VECTOR_GP, error));
        }
        let place = self.gdtr.base.wrapping_add(u64::from(selector & !7));
        let d = Descriptor(self.load_system(place)?);
        let high: u64 = if long {
            self.load_system(place.wrapping_add(8))?
        } else {
            0
        };
        if long {
            let base = d.base() | high << 32;
            if high >> 40 & 0x1f != 0 || !canonical(base) {
                return Err(self.raise_code(VECTOR_GP, error));
            }
        }
        Ok((d, high & 0xffff_ffff))
    }

    /// Checks a target of a far JMP, CALL or RET and returns its descriptor and new privilege.
    fn far_target(&mut self, selector: u16, returns: bool) -> Result<(Descriptor, u8), Raised> {
        if selector & !3 == 0 {
            return Err(self.gp());
        }
        let error = u32::from(selector & !3);
        let rpl = (selector & 3) as u8;
        let d = self.descriptor(selector, 0)?;
        if !d.is_code() {
            if !returns && d.is_system() && d.kind() == 12 {
                self.leave = Leave::Unsupported("a far transfer through a call gate");
                return Err(Raised);
            }
            return Err(self.raise_code(VECTOR_GP, error));
        }
        let allowed = if returns {
            rpl >= self.cpl
                && if d.conforming() {
                    d.dpl() <= rpl
                } else {
                    d.dpl() == rpl
                }
        } else if d.conforming() {
            d.dpl() <= self.cpl
        } else {
            rpl <= self.cpl && d.dpl() == self.cpl
        };
        if !allowed || (self.long_mode() && d.long() && d.big()) {
            return Err(self.raise_code(VECTOR_GP, error));
        }
        if !d.present() {
            return Err(self.raise_code(VECTOR_NP, error));
        }
        Ok((d, if returns { rpl } else { self.cpl }))
    }

    /// Whether RIP may be `rip` once CS is `d`.
    fn check_target(&mut self, d: Descriptor, rip: u64) -> Result<(), Raised> {
        let legal = if self.long_mode() && d.long() {
            canonical(rip)
        } else {
            rip <= u64::from(d.limit())
        };
        if legal { Ok(()) } else { Err(self.gp()) }
    }

    /// Loads CS and RIP after all checks.
    fn enter(&mut self, selector: u16, d: Descriptor, cpl: u8, rip: u64) -> Result<(), Raised> {
        self.mark_accessed(selector, d)?;
        self.segments[usize::from(CS)] = code_segment(selector & !3 | u16::from(cpl), d);
        self.cpl = cpl;
        self.set_rip(rip);
        self.mode_changed();
        Ok(())
    }

    /// Far JMP to a code segment.
    pub(crate) fn far_jump(&mut self, selector: u16, rip: u64) -> Result<(), Raised> {
        let (d, cpl) = self.far_target(selector, false)?;
        self.check_target(d, rip)?;
        self.enter(selector, d, cpl, rip)
    }

    /// Far CALL to a code segment; `size` in bytes of what is pushed.
    pub(crate) fn far_call(
        &mut self,
        selector: u16,
        rip: u64,
        next: u64,
        size: u64,
    ) -> Result<(), Raised> {
        let (d, cpl) = self.far_target(selector, false)?;
        self.check_target(d, rip)?;
        let cs = u64::from(self.segments[usize::from(CS)].selector);
        let top = self.stack_offset(0u64.wrapping_sub(2 * size));
        self.stack_store(top.wrapping_add(size), size, cs)?;
        self.stack_store(top, size, next)?;
        self.enter(selector, d, cpl, rip)?;
        self.set_stack_pointer(top);
        Ok(())
    }

    /// Far RET; `size` of the operands, `release` bytes of arguments.
    pub(crate) fn far_return(&mut self, size: u64, release: u64) -> Result<(), Raised> {
        let rip = self.stack_load(0, size)?;
        let selector = self.stack_load(size, size)? as u16;
        let (d, cpl) = self.far_target(selector, true)?;
        self.check_target(d, rip)?;
        if cpl == self.cpl {
            let top = self.stack_offset(2 * size + release);
            self.enter(selector, d, cpl, rip)?;
            self.set_stack_pointer(top);
            return Ok(());
        }
        let sp = self.stack_load(2 * size + release, size)?;
        let ss = self.stack_load(3 * size + release, size)? as u16;
        let stack = self.return_stack(ss, cpl, d)?;
        self.enter(selector, d, cpl, rip)?;
        self.segments[usize::from(SS)] = stack;
        self.mode_changed();
        self.regs[4] = if size == 8 {
            sp.wrapping_add(release)
        } else {
            sp.wrapping_add(release) & 0xffff_ffff
        };
        self.drop_privileged_segments();
        Ok(())
    }

    /// IRET; `size` of the operands. Blocks of NMIs end here.
    pub(crate) fn interrupt_return(&mut self, size: u64) -> Result<(), Raised> {
        if !self.long_mode() {
            self.leave = Leave::Unsupported("IRET outside long mode");
            return Err(Raised);
        }
        if self.system_flags & NT != 0 {
            return Err(self.gp());
        }
        let rip = self.stack_load(0, size)?;
        let selector = self.stack_load(size, size)? as u16;
        let flags = self.stack_load(2 * size, size)?;
        let (d, cpl) = self.far_target(selector, true)?;
        let whole = self.in_64_bit_code() || cpl != self.cpl;
        if whole {
            let sp = self.stack_load(3 * size, size)?;
            let ss = self.stack_load(4 * size, size)? as u16;
            let stack = self.return_stack(ss, cpl, d)?;
            self.check_target(d, rip)?;
            let old = self.cpl;
            self.return_flags(flags, size, old);
            self.enter(selector, d, cpl, rip)?;
            self.segments[usize::from(SS)] = stack;
            self.regs[4] = if size == 8 {
                sp
            } else if size == 4 {
                sp & 0xffff_ffff
            } else {
                self.regs[4] & !0xffff | sp & 0xffff
            };
            self.mode_changed();
            if cpl != old {
                self.drop_privileged_segments();
            }
        } else {
            self.check_target(d, rip)?;
            let top = self.stack_offset(3 * size);
            let old = self.cpl;
            self.return_flags(flags, size, old);
            self.enter(selector, d, cpl, rip)?;
            self.set_stack_pointer(top);
        }
        self.nmi_blocked = false;
        Ok(())
    }

    /// SS for a return to `cpl`.
    fn return_stack(
        &mut self,
        selector: u16,
        cpl: u8,
        code: Descriptor,
    ) -> Result<Segment, Raised> {
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            if !(self.long_mode() && code.long()) || cpl == 3 || rpl != cpl {
                return Err(self.gp());
            }
            return Ok(crate::interrupts::null_stack(cpl));
        }
        let error = u32::from(selector & !3);
        let d = self.descriptor(selector, 0)?;
        if rpl != cpl || d.is_system() || d.is_code() || !d.bit1() || d.dpl() != cpl {
            return Err(self.raise_code(VECTOR_GP, error));
        }
        if !d.present() {
            return Err(self.raise_code(VECTOR_SS, error));
        }
        self.mark_accessed(selector, d)?;
        let mut loaded = d.load(selector);
        loaded.attributes |= 1;
        Ok(loaded)
    }

    /// Flags out of an IRET frame, as far as the privilege before it may change them.
    fn return_flags(&mut self, image: u64, size: u64, cpl: u8) {
        let mut mask = crate::flags::RFLAGS_STATUS | TF | DF | NT;
        if size > 2 {
            mask |= RF | AC | ID;
        }
        if cpl == 0 {
            mask |= IOPL;
        }
        if u64::from(cpl) <= (self.system_flags & IOPL) >> 12 {
            mask |= IF;
        }
        debug_assert_eq!(mask & VM, 0);
        let old = self.rflags();
        self.set_rflags(old & !mask | image & mask);
        // RF ends with the next instruction, and means something to breakpoints only.
        if !self.stepping() {
            self.system_flags &= !RF;
        }
    }

    /// A return to less privilege nulls data segments that it may not keep.
    fn drop_privileged_segments(&mut self) {
        for i in [0, 3, 4, 5] {
            let s = &mut self.segments[i];
            let code = s.attributes & 8 != 0;
            let conforming = code && s.attributes & 4 != 0;
            if s.attributes & 0x1_0000 == 0
                && !conforming
                && ((s.attributes >> 5 & 3) as u8) < self.cpl
            {
                *s = Segment {
                    selector: 0,
                    base: 0,
                    limit: 0,
                    attributes: 0x1_0000,
                };
            }
        }
        self.mode_changed();
    }

    /// The stack's address width: all of RSP in 64-bit code, else by SS.B.
    fn stack_mask(&self) -> u64 {
        if self.code_size == CodeSize::Bits64 {
            u64::MAX
        } else if self.segments[usize::from(SS)].attributes & 0x4000 != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// RSP moved by `by`, within the stack's width.
    pub(crate) fn stack_offset(&self, by: u64) -> u64 {
        let mask = self.stack_mask();
        self.regs[4] & !mask | self.regs[4].wrapping_add(by) & mask
    }

    /// Sets RSP as far as the stack is wide.
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let kept = if mask == 0xffff {
            self.regs[4] & !mask
        } else {
            0
        };
        self.regs[4] = kept | value & mask;
    }

    /// Loads `size` bytes at `offset` from the stack's top.
    pub(crate) fn stack_load(&mut self, offset: u64, size: u64) -> Result<u64, Raised> {
        let linear = self.stack_linear(self.stack_offset(offset), size)?;
        match size {
            2 => self.load::<u16>(linear, SS).map(u64::from),
            4 => self.load::<u32>(linear, SS).map(u64::from),
            _ => self.load::<u64>(linear, SS),
        }
    }

    /// Stores `size` bytes at a stack pointer.
    pub(crate) fn stack_store(
        &mut self,
        pointer: u64,
        size: u64,
        value: u64,
    ) -> Result<(), Raised> {
        let linear = self.stack_linear(pointer, size)?;
        match size {
            2 => self.store::<u16>(linear, SS, value as u16),
            4 => self.store::<u32>(linear, SS, value as u32),
            _ => self.store::<u64>(linear, SS, value),
        }
    }

    /// Faults as a store of `size` bytes at the stack's top would.
    pub(crate) fn stack_writable(&mut self, size: u64) -> Result<(), Raised> {
        let linear = self.stack_linear(self.stack_offset(0), size)?;
        match size {
            2 => self.load_for_write::<u16>(linear, SS).map(|_| ()),
            4 => self.load_for_write::<u32>(linear, SS).map(|_| ()),
            _ => self.load_for_write::<u64>(linear, SS).map(|_| ()),
        }
    }

    fn stack_linear(&mut self, pointer: u64, size: u64) -> Result<u64, Raised> {
        if self.code_size == CodeSize::Bits64 {
            return Ok(pointer);
        }
        let offset = pointer & self.stack_mask();
        self.segment_linear(SS, offset, size, false)
    }

    /// Linear address of an offset in a segment outside 64-bit code, limit and rights checked
    /// (SDM vol. 3A 5.3, 5.5).
    pub(crate) fn segment_linear(
        &mut self,
        segment: u8,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<u64, Raised> {
        let s = self.segments[usize::from(segment)];
        let vector = if segment == SS { VECTOR_SS } else { VECTOR_GP };
        let code = s.attributes & 8 != 0;
        let expand_down = !code && s.attributes & 4 != 0;
        let last = offset + (size - 1);
        let inside = if expand_down {
            let top = if s.attributes & 0x4000 != 0 {
                0xffff_ffff
            } else {
                0xffff
            };
            offset > u64::from(s.limit) && last <= top
        } else {
            last <= u64::from(s.limit)
        };
        let unusable = s.attributes & 0x1_0000 != 0;
        let right = if write {
            !code && s.attributes & 2 != 0
        } else {
            !code || s.attributes & 2 != 0
        };
        if unusable || !right || !inside {
            return Err(self.raise_code(vector, 0));
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }
}
