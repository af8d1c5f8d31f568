//! Everything that handlers work on.

use std::ptr::NonNull;

use crate::blocks::{BlockCache, Departure};
use crate::bus::Bus;
use crate::exec::int::Int;
use crate::flags;
use crate::fpu::Fpu;
use crate::memory::PhysicalMemory;
use crate::model::CpuModel;
use crate::op::RIP;
use crate::state::{DescriptorTable, Segment};
use crate::tlb::Tlb;

/// Says that [`Core::leave`] has been filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Raised;

/// An exception with what delivery needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exception {
    pub vector: u8,
    pub error: Option<u32>,
    /// CR2, for a page fault.
    pub address: u64,
}

/// Why an op did not retire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It raised this.
    Exception(Exception),
    /// It touches the bus or decoded code, which takes an exact count and no running block around it:
    /// execute it alone.
    Alone,
    /// The machine cannot go on in a mode that this CPU does not have.
    Unsupported(&'static str),
}

/// What the code segment makes of instruction bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CodeSize {
    Bits16 = 0,
    Bits32 = 1,
    Bits64 = 2,
}

pub(crate) const VECTOR_DE: u8 = 0;
pub(crate) const VECTOR_DB: u8 = 1;
pub(crate) const VECTOR_NMI: u8 = 2;
pub(crate) const VECTOR_BP: u8 = 3;
pub(crate) const VECTOR_UD: u8 = 6;
pub(crate) const VECTOR_NM: u8 = 7;
pub(crate) const VECTOR_DF: u8 = 8;
pub(crate) const VECTOR_TS: u8 = 10;
pub(crate) const VECTOR_NP: u8 = 11;
pub(crate) const VECTOR_SS: u8 = 12;
pub(crate) const VECTOR_GP: u8 = 13;
pub(crate) const VECTOR_PF: u8 = 14;
pub(crate) const VECTOR_MF: u8 = 16;
pub(crate) const VECTOR_AC: u8 = 17;
pub(crate) const VECTOR_XM: u8 = 19;

pub(crate) const CR0_PE: u64 = 1;
pub(crate) const CR0_MP: u64 = 1 << 1;
pub(crate) const CR0_EM: u64 = 1 << 2;
pub(crate) const CR0_TS: u64 = 1 << 3;
pub(crate) const CR0_NE: u64 = 1 << 5;
pub(crate) const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_AM: u64 = 1 << 18;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_TSD: u64 = 1 << 2;
pub(crate) const CR4_DE: u64 = 1 << 3;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const CR4_PGE: u64 = 1 << 7;
pub(crate) const CR4_OSFXSR: u64 = 1 << 9;
pub(crate) const CR4_OSXMMEXCPT: u64 = 1 << 10;
pub(crate) const EFER_SCE: u64 = 1;
pub(crate) const EFER_LME: u64 = 1 << 8;
pub(crate) const EFER_LMA: u64 = 1 << 10;
pub(crate) const EFER_NXE: u64 = 1 << 11;

/// Interrupt hold-off, as in [`crate::CpuState::interrupt_shadow`].
pub(crate) const SHADOW_STI: u8 = 1;
/// See [`SHADOW_STI`].
pub(crate) const SHADOW_SS: u8 = 2;

/// Instructions for which blocks run into each other before the dispatch loop has a look: enough for
/// the look to cost nothing, and few enough for a bounded stack (see [`crate::op`]), even if all of
/// them were of a kind whose handler, with a buffer of its own, calls the next instead of jumping.
pub(crate) const SLICE: u64 = 512;

/// The processor's state, what handlers use most first: its offsets are the shortest.
#[repr(C)]
pub(crate) struct Core {
    /// RAX..R15, a zero, and the linear start of the running block (RIP between blocks).
    pub regs: [u64; 18],
    /// Bases by segment number (two places to spare); in 64-bit mode zero but for FS and GS.
    pub seg_base: [u64; 8],
    /// Instructions that may still retire in this slice; those of the running block are taken off
    /// beforehand.
    pub remaining: u64,
    /// Offset of the bank of the translation caches: by CPL.
    pub bank: usize,
    /// Status flags in the layout of [`crate::flags`].
    pub flags: u16,
    /// The running op is alone in its block and may touch the bus.
    pub alone: bool,
    /// Since the last look at the boundary, the bus was used.
    pub bus_used: bool,
    pub cpl: u8,
    pub code_size: CodeSize,
    /// The position at which `remaining` reaches zero: the slice's end.
    pub limit: u64,
    /// The position at which the run ends.
    pub end: u64,
    /// Which way the last block was left, for [`crate::op::Flow::Direct`].
    pub departure: Option<Departure>,
    /// TSC at position 0 (wrapping).
    pub tsc_offset: u64,
    pub leave: Leave,
    pub blocks: BlockCache,
    pub tlb: Tlb,
    pub memory: PhysicalMemory,
    /// RFLAGS without the status flags.
    pub system_flags: u64,
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub apic_base: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    /// DR6 bits of a debug trap to deliver at the next boundary.
    pub debug_trap: u64,
    /// The instruction was INT or SYSCALL, which lead to code that TF does not trace (unless it stays set).
    pub untraced: bool,
    /// The instruction was one iteration, not the last, of a repetition.
    pub unfinished: bool,
    pub halted: bool,
    pub shadow: u8,
    pub nmi_blocked: bool,
    pub nmi_pending: bool,
    /// Exceptions delivered since an instruction retired.
    pub deliveries: u32,
    pub fpu: Fpu,
    pub model: CpuModel,
    /// The bus of the current run. Null between runs.
    pub bus: Option<NonNull<dyn Bus>>,
}

impl Core {
    #[inline(always)]
    pub(crate) fn reg<S: Int>(&self, offset: u8) -> S {
        debug_assert!(usize::from(offset) + S::BYTES <= 18 * 8);
        // SAFETY: the decoder writes only offsets inside the register file (at most RIP's, eight
        // bytes wide); every bit pattern is an unsigned integer.
        unsafe {
            self.regs
                .as_ptr()
                .cast::<u8>()
                .add(usize::from(offset))
                .cast::<S>()
                .read_unaligned()
        }
    }

    /// Writes a register as an instruction does: 32 bits clear the upper half, fewer merge.
    #[inline(always)]
    pub(crate) fn set_reg<S: Int>(&mut self, offset: u8, value: S) {
        debug_assert!(usize::from(offset) + S::BYTES <= 16 * 8);
        // SAFETY: as in `reg`; 32-bit registers sit at multiples of 8, so the widened write stays
        // inside as well.
        unsafe {
            let place = self.regs.as_mut_ptr().cast::<u8>().add(usize::from(offset));
            if S::BYTES == 4 {
                place.cast::<u64>().write_unaligned(value.u());
            } else {
                place.cast::<S>().write_unaligned(value);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn rip(&self) -> u64 {
        self.regs[usize::from(RIP / 8)]
    }

    #[inline(always)]
    pub(crate) fn set_rip(&mut self, rip: u64) {
        self.regs[usize::from(RIP / 8)] = rip;
    }

    /// Moves RIP, relative to the block's start. Outside 64-bit mode it wraps at 32 bits.
    #[inline(always)]
    pub(crate) fn advance(&mut self, by: u64) {
        let rip = self.rip().wrapping_add(by);
        self.set_rip(if self.code_size == CodeSize::Bits64 {
            rip
        } else {
            rip & 0xffff_ffff
        });
    }

    /// Instructions retired before the running one, which is the last of its block.
    pub(crate) fn position(&self) -> u64 {
        self.limit.wrapping_sub(self.remaining).wrapping_sub(1)
    }

    /// The time-stamp counter after `retired` instructions.
    pub(crate) fn tsc(&self, retired: u64) -> u64 {
        retired.wrapping_add(self.tsc_offset)
    }

    /// Instructions retired so far, between two instructions.
    pub(crate) fn retired(&self) -> u64 {
        self.limit.wrapping_sub(self.remaining)
    }

    /// Fills the slice up as far as the run allows. False: not at all.
    pub(crate) fn extend_slice(&mut self) -> bool {
        let more = SLICE.saturating_sub(self.remaining);
        let before = self.limit;
        self.widen_slice(more);
        self.limit != before
    }

    /// Adds to the slice, as far as the run allows, what a repeated instruction may need: those take
    /// no stack. To be followed by [`Core::trim_slice`].
    pub(crate) fn widen_slice(&mut self, by: u64) {
        let more = self.end.wrapping_sub(self.limit).min(by);
        self.limit = self.limit.wrapping_add(more);
        self.remaining += more;
    }

    /// Takes from the slice what is beyond its length.
    pub(crate) fn trim_slice(&mut self) {
        let excess = self.remaining.saturating_sub(SLICE);
        self.limit = self.limit.wrapping_sub(excess);
        self.remaining -= excess;
    }

    pub(crate) fn rflags(&self) -> u64 {
        self.system_flags | flags::to_rflags(self.flags) | 2
    }

    /// Sets all of RFLAGS that exists.
    pub(crate) fn set_rflags(&mut self, rflags: u64) {
        self.flags = flags::from_rflags(rflags);
        let changed = self.system_flags ^ rflags;
        self.system_flags = rflags & flags::SYSTEM;
        if changed & flags::AC != 0 {
            self.mode_changed();
        }
    }

    pub(crate) fn interrupts_enabled(&self) -> bool {
        self.system_flags & flags::IF != 0
    }

    pub(crate) fn long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// Accesses of the present privilege must be aligned (SDM vol. 3A 6.15, interrupt 17).
    pub(crate) fn alignment_checked(&self) -> bool {
        self.cpl == 3 && self.cr0 & CR0_AM != 0 && self.system_flags & flags::AC != 0
    }

    /// Derives what is kept for speed from CS, SS, EFER and RFLAGS.AC. Call after any change of them.
    pub(crate) fn mode_changed(&mut self) {
        let cs = &self.segments[1];
        self.code_size = if self.long_mode() && cs.attributes & (1 << 13) != 0 {
            CodeSize::Bits64
        } else if cs.attributes & (1 << 14) != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.bank = if self.cpl == 3 {
            crate::tlb::ENTRIES
        } else {
            0
        };
        for (base, segment) in self.seg_base.iter_mut().zip(&self.segments) {
            *base = segment.base;
        }
        if self.code_size == CodeSize::Bits64 {
            self.seg_base[..4].fill(0);
        }
        // While alignment is checked nothing may hit in the translation caches.
        if self.alignment_checked() {
            self.tlb.flush();
        }
    }

    /// Notes an exception without an error code.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8) -> Raised {
        self.leave = Leave::Exception(Exception {
            vector,
            error: None,
            address: 0,
        });
        Raised
    }

    /// Notes an exception with an error code.
    #[cold]
    pub(crate) fn raise_code(&mut self, vector: u8, error: u32) -> Raised {
        self.leave = Leave::Exception(Exception {
            vector,
            error: Some(error),
            address: 0,
        });
        Raised
    }

    /// #GP(0).
    #[cold]
    pub(crate) fn gp(&mut self) -> Raised {
        self.raise_code(VECTOR_GP, 0)
    }

    /// #UD.
    #[cold]
    pub(crate) fn ud(&mut self) -> Raised {
        self.raise(VECTOR_UD)
    }

    /// #GP(0) unless the privilege is the kernel's.
    pub(crate) fn privileged(&mut self) -> Result<(), Raised> {
        if self.cpl == 0 {
            Ok(())
        } else {
            Err(self.gp())
        }
    }

    /// The bus of this run.
    pub(crate) fn bus(&mut self) -> &mut dyn Bus {
        let mut bus = self.bus.expect("handlers run only inside Cpu::run");
        self.bus_used = true;
        // SAFETY: `Cpu::run` stores the pointer made from the `&mut dyn Bus` that it holds for as
        // long as handlers run, uses that reference for nothing else, and clears it on return; the
        // reference made here ends before `&mut self` does, so there is never a second one.
        unsafe { bus.as_mut() }
    }
}

/// Whether an address is canonical with 48 bits.
#[inline(always)]
pub(crate) fn canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}
