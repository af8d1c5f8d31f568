//! Four-level paging (SDM vol. 3A ch. 4) and the slow path of every memory access.

use crate::core::{
    CR0_PG, CR0_WP, CR4_PGE, CodeSize, Core, EFER_NXE, Exception, Leave, Raised, VECTOR_AC,
    VECTOR_GP, VECTOR_PF, VECTOR_SS, canonical,
};
use crate::exec::int::Int;
use crate::memory::PHYSICAL_BITS;
use crate::op::{At, Flow, SS, ok};
use crate::tlb::{Access, ENTRIES, Insertion, slot};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Address bits that the CPU model does not have.
const RESERVED: u64 = FRAME & !((1 << PHYSICAL_BITS) - 1);

/// What a walk found.
struct Translation {
    physical: u64,
    /// A later write needs no walk: writable at this privilege, and dirty.
    write_ready: bool,
    global: bool,
    large: bool,
}

/// Where a read-modify-write goes on: a host address, or (0) through the slow path.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    host: u64,
    linear: u64,
}

/// What an operand's address must be a multiple of while alignment is checked (SDM vol. 3A, table 6-7).
/// Of 16 bytes and more SSE asks by itself, or not at all.
fn alignment(length: usize) -> u64 {
    match length {
        2 | 4 | 8 => length as u64,
        // An 80-bit float; the x87 state in its 16-bit and 32-bit forms.
        10 => 8,
        14 | 94 => 2,
        28 | 108 => 4,
        _ => 1,
    }
}

impl Core {
    /// Loads from memory at the present privilege. `segment` decides between #SS and #GP.
    #[inline(always)]
    pub(crate) fn load<S: Int>(&mut self, linear: u64, segment: u8) -> Result<S, Raised> {
        // SAFETY: `slot` is below 2 * ENTRIES: ten bits, and a bank of 0 or ENTRIES.
        let entry = unsafe { self.tlb.read.get_unchecked(slot(linear, self.bank)) };
        if entry.tag == linear.wrapping_add(S::BYTES as u64 - 1) & !0xfff {
            let host = linear.wrapping_add(entry.addend) as usize;
            // SAFETY: the tag says that first and last byte lie in one page, which an insertion
            // found to be RAM at this addend; RAM stays mapped as long as `memory` lives.
            return Ok(unsafe { std::ptr::with_exposed_provenance::<S>(host).read_unaligned() });
        }
        self.load_slow(linear, segment, S::BYTES).map(S::of)
    }

    /// Stores to memory at the present privilege.
    #[inline(always)]
    pub(crate) fn store<S: Int>(
        &mut self,
        linear: u64,
        segment: u8,
        value: S,
    ) -> Result<(), Raised> {
        // SAFETY: as in `load`.
        let entry = unsafe { self.tlb.write.get_unchecked(slot(linear, self.bank)) };
        if entry.tag == linear.wrapping_add(S::BYTES as u64 - 1) & !0xfff {
            let host = linear.wrapping_add(entry.addend) as usize;
            // SAFETY: as in `load`; pages in the write cache hold no decoded code.
            unsafe { std::ptr::with_exposed_provenance_mut::<S>(host).write_unaligned(value) };
            return Ok(());
        }
        self.store_slow(linear, segment, S::BYTES, value.u())
    }

    /// Loads, then goes on with `then`: the way for handlers, which so need no stack frame while the
    /// cache hits, since what follows a miss lives in a function of its own. `then` captures nothing.
    #[inline(always)]
    pub(crate) fn load_then<S: Int>(
        &mut self,
        op: At,
        linear: u64,
        segment: u8,
        then: impl FnOnce(&mut Core, At, S) -> Flow,
    ) -> Flow {
        // SAFETY: as in `load`.
        let entry = unsafe { self.tlb.read.get_unchecked(slot(linear, self.bank)) };
        if entry.tag == linear.wrapping_add(S::BYTES as u64 - 1) & !0xfff {
            let host = linear.wrapping_add(entry.addend) as usize;
            // SAFETY: as in `load`.
            let value = unsafe { std::ptr::with_exposed_provenance::<S>(host).read_unaligned() };
            return then(self, op, value);
        }
        self.load_slow_then(op, linear, segment, then)
    }

    #[cold]
    #[inline(never)]
    fn load_slow_then<S: Int>(
        &mut self,
        op: At,
        linear: u64,
        segment: u8,
        then: impl FnOnce(&mut Core, At, S) -> Flow,
    ) -> Flow {
        match self.load_slow(linear, segment, S::BYTES) {
            Ok(value) => then(self, op, S::of(value)),
            Err(Raised) => op.leave(self),
        }
    }

    /// Stores, then goes on with `then`, as [`Core::load_then`].
    #[inline(always)]
    pub(crate) fn store_then<S: Int>(
        &mut self,
        op: At,
        linear: u64,
        segment: u8,
        value: S,
        then: impl FnOnce(&mut Core, At) -> Flow,
    ) -> Flow {
        // SAFETY: as in `load`.
        let entry = unsafe { self.tlb.write.get_unchecked(slot(linear, self.bank)) };
        if entry.tag == linear.wrapping_add(S::BYTES as u64 - 1) & !0xfff {
            let host = linear.wrapping_add(entry.addend) as usize;
            // SAFETY: as in `store`.
            unsafe { std::ptr::with_exposed_provenance_mut::<S>(host).write_unaligned(value) };
            return then(self, op);
        }
        self.store_slow_then(op, linear, segment, value, then)
    }

    #[cold]
    #[inline(never)]
    fn store_slow_then<S: Int>(
        &mut self,
        op: At,
        linear: u64,
        segment: u8,
        value: S,
        then: impl FnOnce(&mut Core, At) -> Flow,
    ) -> Flow {
        match self.store_slow(linear, segment, S::BYTES, value.u()) {
            Ok(()) => then(self, op),
            Err(Raised) => op.leave(self),
        }
    }

    /// Loads, computes a replacement and flags with `change`, stores it and goes on with the next op.
    #[inline(always)]
    pub(crate) fn modify<S: Int>(
        &mut self,
        op: At,
        linear: u64,
        segment: u8,
        change: impl FnOnce(&mut Core, At, S) -> (S, u16),
    ) -> Flow {
        // SAFETY: as in `load`.
        let entry = unsafe { self.tlb.write.get_unchecked(slot(linear, self.bank)) };
        if entry.tag == linear.wrapping_add(S::BYTES as u64 - 1) & !0xfff {
            let host = linear.wrapping_add(entry.addend) as usize;
            let place = std::ptr::with_exposed_provenance_mut::<S>(host);
            // SAFETY: as in `load`.
            let value = unsafe { place.read_unaligned() };
            let (value, flags) = change(self, op, value);
            // SAFETY: as in `store`; `change` runs no guest code and moves no memory.
            unsafe { place.write_unaligned(value) };
            self.flags = flags;
            return op.next(self);
        }
        self.modify_slow(op, linear, segment, change)
    }

    #[cold]
    #[inline(never)]
    fn modify_slow<S: Int>(
        &mut self,
        op: At,
        linear: u64,
        segment: u8,
        change: impl FnOnce(&mut Core, At, S) -> (S, u16),
    ) -> Flow {
        let value = ok!(
            self,
            op,
            self.load_for_write_slow(linear, segment, S::BYTES)
        );
        let (value, flags) = change(self, op, S::of(value));
        ok!(
            self,
            op,
            self.store_slow(linear, segment, S::BYTES, value.u())
        );
        self.flags = flags;
        op.next(self)
    }

    /// Loads for modification: checks that the store will succeed.
    #[inline(always)]
    pub(crate) fn load_for_write<S: Int>(
        &mut self,
        linear: u64,
        segment: u8,
    ) -> Result<(S, Place), Raised> {
        // SAFETY: as in `load`.
        let entry = unsafe { self.tlb.write.get_unchecked(slot(linear, self.bank)) };
        if entry.tag == linear.wrapping_add(S::BYTES as u64 - 1) & !0xfff {
            let host = linear.wrapping_add(entry.addend);
            // SAFETY: as in `load`.
            let value =
                unsafe { std::ptr::with_exposed_provenance::<S>(host as usize).read_unaligned() };
            return Ok((value, Place { host, linear }));
        }
        let value = self.load_for_write_slow(linear, segment, S::BYTES)?;
        Ok((S::of(value), Place { host: 0, linear }))
    }

    /// Stores what [`Core::load_for_write`] prepared.
    #[inline(always)]
    pub(crate) fn store_back<S: Int>(
        &mut self,
        place: Place,
        segment: u8,
        value: S,
    ) -> Result<(), Raised> {
        if place.host != 0 {
            // SAFETY: `load_for_write` found this address in the write cache within this very
            // instruction.
            unsafe {
                std::ptr::with_exposed_provenance_mut::<S>(place.host as usize)
                    .write_unaligned(value)
            };
            return Ok(());
        }
        self.store_slow(place.linear, segment, S::BYTES, value.u())
    }

    /// Whether one instruction may reach `length` bytes from `linear` at all.
    fn check_linear(&mut self, linear: u64, length: usize, segment: u8) -> Result<(), Raised> {
        let bits_64 = self.code_size == CodeSize::Bits64;
        if bits_64 && !canonical(linear) {
            return Err(self.not_canonical(segment));
        }
        if self.alignment_checked() && linear & (alignment(length) - 1) != 0 {
            return Err(self.raise_code(VECTOR_AC, 0));
        }
        if bits_64 && !canonical(linear.wrapping_add(length as u64 - 1)) {
            return Err(self.not_canonical(segment));
        }
        Ok(())
    }

    fn not_canonical(&mut self, segment: u8) -> Raised {
        let vector = if segment == SS { VECTOR_SS } else { VECTOR_GP };
        self.raise_code(vector, 0)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow(
        &mut self,
        linear: u64,
        segment: u8,
        length: usize,
    ) -> Result<u64, Raised> {
        self.check_linear(linear, length, segment)?;
        let mut bytes = [0; 8];
        self.read_linear(linear, &mut bytes[..length], self.cpl == 3)?;
        self.watch(linear, length, false);
        Ok(u64::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow(
        &mut self,
        linear: u64,
        segment: u8,
        length: usize,
        value: u64,
    ) -> Result<(), Raised> {
        self.check_linear(linear, length, segment)?;
        self.write_linear(linear, &value.to_le_bytes()[..length], self.cpl == 3)?;
        self.watch(linear, length, true);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn load_for_write_slow(
        &mut self,
        linear: u64,
        segment: u8,
        length: usize,
    ) -> Result<u64, Raised> {
        self.check_linear(linear, length, segment)?;
        let user = self.cpl == 3;
        let last = linear.wrapping_add(length as u64 - 1);
        let physical = self.translate(linear, Access::Write, user)?;
        self.alone_if_special(physical, length.min(0x1000 - (linear & 0xfff) as usize))?;
        if (linear ^ last) & !0xfff != 0 {
            let second = self.translate(last & !0xfff, Access::Write, user)?;
            self.alone_if_special(second, (last & 0xfff) as usize + 1)?;
        }
        let mut bytes = [0; 8];
        self.read_linear(linear, &mut bytes[..length], user)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads 16 bytes (an SSE operand).
    #[inline]
    pub(crate) fn load_128(&mut self, linear: u64, segment: u8) -> Result<u128, Raised> {
        let entry = self.tlb.read[slot(linear, self.bank)];
        if entry.tag == linear.wrapping_add(15) & !0xfff {
            let host = linear.wrapping_add(entry.addend) as usize;
            // SAFETY: as in `load`.
            return Ok(unsafe { std::ptr::with_exposed_provenance::<u128>(host).read_unaligned() });
        }
        let mut bytes = [0; 16];
        self.load_bytes(linear, segment, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Writes 16 bytes.
    #[inline]
    pub(crate) fn store_128(
        &mut self,
        linear: u64,
        segment: u8,
        value: u128,
    ) -> Result<(), Raised> {
        let entry = self.tlb.write[slot(linear, self.bank)];
        if entry.tag == linear.wrapping_add(15) & !0xfff {
            let host = linear.wrapping_add(entry.addend) as usize;
            // SAFETY: as in `store`.
            unsafe { std::ptr::with_exposed_provenance_mut::<u128>(host).write_unaligned(value) };
            return Ok(());
        }
        self.store_bytes(linear, segment, &value.to_le_bytes())
    }

    /// Reads an operand of any length up to a page, at the present privilege.
    pub(crate) fn load_bytes(
        &mut self,
        linear: u64,
        segment: u8,
        bytes: &mut [u8],
    ) -> Result<(), Raised> {
        self.check_linear(linear, bytes.len(), segment)?;
        self.read_linear(linear, bytes, self.cpl == 3)?;
        self.watch(linear, bytes.len(), false);
        Ok(())
    }

    /// Writes an operand of any length up to a page, at the present privilege.
    pub(crate) fn store_bytes(
        &mut self,
        linear: u64,
        segment: u8,
        bytes: &[u8],
    ) -> Result<(), Raised> {
        self.check_linear(linear, bytes.len(), segment)?;
        self.write_linear(linear, bytes, self.cpl == 3)?;
        self.watch(linear, bytes.len(), true);
        Ok(())
    }

    /// Reads a descriptor, a gate or the TSS: with the supervisor's rights, whatever the CPL.
    pub(crate) fn load_system<S: Int>(&mut self, linear: u64) -> Result<S, Raised> {
        let linear = self.clip(linear);
        let mut bytes = [0; 8];
        self.read_linear(linear, &mut bytes[..S::BYTES], false)?;
        Ok(S::of(u64::from_le_bytes(bytes)))
    }

    /// Writes a descriptor (its busy or accessed bit) with the supervisor's rights.
    pub(crate) fn store_system<S: Int>(&mut self, linear: u64, value: S) -> Result<(), Raised> {
        let linear = self.clip(linear);
        self.write_linear(linear, &value.u().to_le_bytes()[..S::BYTES], false)
    }

    /// Outside long mode linear addresses have 32 bits.
    fn clip(&self, linear: u64) -> u64 {
        if self.long_mode() {
            linear
        } else {
            linear & 0xffff_ffff
        }
    }

    /// Reads across at most two pages.
    fn read_linear(&mut self, linear: u64, bytes: &mut [u8], user: bool) -> Result<(), Raised> {
        let first = bytes.len().min(0x1000 - (linear & 0xfff) as usize);
        let physical = self.translate(linear, Access::Read, user)?;
        if first < bytes.len() {
            let next = self.next_page(linear);
            let second = self.translate(next, Access::Read, user)?;
            let (head, tail) = bytes.split_at_mut(first);
            self.read_physical(physical, head)?;
            return self.read_physical(second, tail);
        }
        self.read_physical(physical, bytes)
    }

    /// Writes across at most two pages; nothing when either faults.
    pub(crate) fn write_linear(
        &mut self,
        linear: u64,
        bytes: &[u8],
        user: bool,
    ) -> Result<(), Raised> {
        let first = bytes.len().min(0x1000 - (linear & 0xfff) as usize);
        let physical = self.translate(linear, Access::Write, user)?;
        self.alone_if_special(physical, first)?;
        if first < bytes.len() {
            let next = self.next_page(linear);
            let second = self.translate(next, Access::Write, user)?;
            self.alone_if_special(second, bytes.len() - first)?;
            self.write_physical(physical, &bytes[..first]);
            self.write_physical(second, &bytes[first..]);
        } else {
            self.write_physical(physical, bytes);
        }
        Ok(())
    }

    fn next_page(&self, linear: u64) -> u64 {
        let next = (linear | 0xfff).wrapping_add(1);
        if self.code_size == CodeSize::Bits64 {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    /// A write there concerns the bus or decoded code: it must be made by an op alone in its block.
    fn alone_if_special(&mut self, physical: u64, length: usize) -> Result<(), Raised> {
        if self.alone {
            return Ok(());
        }
        if self.memory.host(physical).is_none() || self.blocks.holds_code(physical, length) {
            self.leave = Leave::Alone;
            return Err(Raised);
        }
        Ok(())
    }

    /// Reads inside one physical page.
    fn read_physical(&mut self, physical: u64, bytes: &mut [u8]) -> Result<(), Raised> {
        if self.memory.host(physical).is_some() {
            self.memory.read(physical, bytes);
            return Ok(());
        }
        if !self.alone {
            self.leave = Leave::Alone;
            return Err(Raised);
        }
        let at = self.position();
        for (i, part) in bytes.chunks_mut(8).enumerate() {
            self.bus().mmio_read(at, physical + 8 * i as u64, part);
        }
        Ok(())
    }

    /// Writes inside one physical page.
    fn write_physical(&mut self, physical: u64, bytes: &[u8]) {
        if self.memory.host(physical).is_some() {
            self.memory.write(physical, bytes);
            self.code_written(physical, bytes.len());
            return;
        }
        let at = self.position();
        for (i, part) in bytes.chunks(8).enumerate() {
            self.bus().mmio_write(at, physical + 8 * i as u64, part);
        }
    }

    /// Drops the decoded code of a written page, if what was written was code.
    pub(crate) fn code_written(&mut self, physical: u64, length: usize) {
        if self.blocks.holds_code(physical, length) {
            self.blocks.drop_page(physical);
        }
    }

    /// Translates one address: from the caches, or by a walk whose result, where nothing speaks against
    /// it, they then hold. What they hold is a function of the instructions executed, not of how the
    /// run was cut or what code was decoded: a walk may set accessed and dirty bits.
    pub(crate) fn translate(
        &mut self,
        linear: u64,
        access: Access,
        user: bool,
    ) -> Result<u64, Raised> {
        let bank = if user { ENTRIES } else { 0 };
        if let Some(page) = self.tlb.find(access, bank, linear) {
            if access == Access::Write && !self.blocks.is_code_page(page) {
                self.tlb.unprotect(bank, linear);
            }
            return Ok(page | linear & 0xfff);
        }
        let found = match self.walk(linear, access, user) {
            Ok(found) => found,
            Err(error) => {
                self.leave = Leave::Exception(Exception {
                    vector: VECTOR_PF,
                    error: Some(error),
                    address: linear,
                });
                return Err(Raised);
            }
        };
        let page = found.physical & !0xfff;
        let insertion = |addend| Insertion {
            bank,
            linear: linear & !0xfff,
            addend,
            physical: page,
            global: found.global,
            large: found.large,
        };
        if access == Access::Fetch {
            self.tlb.insert(access, insertion(page));
            return Ok(found.physical);
        }
        let Some(host) = self.memory.host(page) else {
            return Ok(found.physical);
        };
        if self.alignment_checked() || self.watched(linear) {
            return Ok(found.physical);
        }
        let addend = host.wrapping_sub(linear & !0xfff);
        self.tlb.insert(Access::Read, insertion(addend));
        if found.write_ready {
            self.tlb.insert(Access::Write, insertion(addend));
            if self.blocks.is_code_page(page) {
                self.tlb.protect(host);
            }
        }
        Ok(found.physical)
    }

    /// Walks the page tables, setting accessed and dirty bits; an error is the page fault's code.
    fn walk(&mut self, linear: u64, access: Access, user: bool) -> Result<Translation, u32> {
        if self.cr0 & CR0_PG == 0 {
            return Ok(Translation {
                physical: linear & 0xffff_ffff,
                write_ready: true,
                global: false,
                large: false,
            });
        }
        let no_execute = self.efer & EFER_NXE != 0;
        let code = u32::from(access == Access::Write) << 1
            | u32::from(user) << 2
            | u32::from(access == Access::Fetch && no_execute) << 4;
        let reserved = RESERVED | if no_execute { 0 } else { NO_EXECUTE };
        let mut table = self.cr3 & FRAME;
        let mut rights = USER | WRITABLE;
        let mut forbidden = 0;
        let mut shift = 39;
        loop {
            let place = table + ((linear >> shift) & 0x1ff) * 8;
            let entry = self.memory.read_u64(place);
            if entry & PRESENT == 0 {
                return Err(code);
            }
            let large = shift != 12 && entry & LARGE != 0;
            let mut bad = entry & reserved;
            if large {
                // Bit 12 of a large entry is PAT; below the frame the rest is reserved.
                bad |= if shift == 39 {
                    LARGE
                } else {
                    entry & ((1 << shift) - 1) & FRAME & !0x1000
                };
            }
            if bad != 0 {
                return Err(code | 1 | 8);
            }
            rights &= entry;
            forbidden |= entry & NO_EXECUTE;
            if shift != 12 && !large {
                if entry & ACCESSED == 0 {
                    self.memory.write_u64(place, entry | ACCESSED);
                    self.code_written(place, 8);
                }
                table = entry & FRAME;
                shift -= 9;
                continue;
            }
            let writable = rights & WRITABLE != 0 || (!user && self.cr0 & CR0_WP == 0);
            if (user && rights & USER == 0)
                || (access == Access::Write && !writable)
                || (access == Access::Fetch && forbidden != 0)
            {
                return Err(code | 1);
            }
            let marks = ACCESSED | if access == Access::Write { DIRTY } else { 0 };
            if entry & marks != marks {
                self.memory.write_u64(place, entry | marks);
                self.code_written(place, 8);
            }
            let offset = (1_u64 << shift) - 1;
            return Ok(Translation {
                physical: (entry & FRAME & !offset) | (linear & offset),
                write_ready: writable && (entry | marks) & DIRTY != 0,
                global: entry & GLOBAL != 0 && self.cr4 & CR4_PGE != 0,
                large,
            });
        }
    }
}
