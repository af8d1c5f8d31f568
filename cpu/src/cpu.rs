//! The CPU as the machine sees it, and the loop that runs blocks.

use std::ptr::NonNull;

use vm_memory::GuestMemoryMmap;

use crate::blocks::{self, Block, BlockCache};
use crate::bus::Bus;
use crate::core::{Core, Leave, Raised, SHADOW_SS, VECTOR_NMI};
use crate::fpu::Fpu;
use crate::memory::PhysicalMemory;
use crate::model::CpuModel;
use crate::op::Flow;
use crate::state::{CpuState, StateError};
use crate::tlb::{Access, Tlb};

/// Exceptions in a row, with no instruction retired, after which the guest is said to be stuck.
const MAX_DELIVERIES: u32 = 1 << 16;

/// Why [`Cpu::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunExit {
    /// The budget is used up.
    Budget,
    /// The guest waits in HLT and no interrupt that it would accept is pending.
    Halted,
    /// [`Bus::stop_requested`] was true after an access.
    StopRequested,
    /// An exception could not be delivered, nor the double fault that followed (SDM vol. 3A 6.15,
    /// interrupt 8). The CPU is in shutdown: every later run ends the same way, at once.
    TripleFault {
        /// Where the instruction stands that raised the first of them.
        rip: u64,
        /// Vector of the exception that could not be delivered.
        vector: u8,
    },
    /// 65,536 exceptions were delivered without one instruction retired: a handler that faults at its
    /// own first instruction, for ever.
    FaultLoop {
        /// Address at which it goes round.
        rip: u64,
        /// The last vector.
        vector: u8,
    },
    /// The guest asked for something that this CPU does not have, and that has no exception.
    Unsupported {
        /// The instruction that asked.
        rip: u64,
        /// What it is.
        what: &'static str,
    },
}

/// One virtual x86-64 processor.
///
/// `run` is a function of the state, guest memory and what the bus answers: the same inputs give the
/// same bits on every host.
pub struct Cpu {
    core: Box<Core>,
    /// Ended for good.
    dead: Option<RunExit>,
}

// SAFETY: the raw pointers inside point to heap blocks that only this CPU knows (its block cache)
// and to guest RAM, whose mapping the contained GuestMemoryMmap keeps alive and which is reached by
// address only; the bus pointer is null whenever `run` is not on the stack. So moving a CPU to
// another thread moves all that its pointers reach.
unsafe impl Send for Cpu {}

impl Cpu {
    /// A CPU in the state of [`CpuState::default`]-like zeroes: call [`Cpu::set_state`] before `run`.
    ///
    /// `memory` is the guest's RAM; addresses outside its regions go to the bus.
    pub fn new(memory: GuestMemoryMmap, model: CpuModel) -> Cpu {
        let memory = PhysicalMemory::new(memory);
        let blocks = BlockCache::new(memory.end());
        Cpu {
            core: Core::new(memory, blocks, model),
            dead: None,
        }
    }

    /// Retires exactly `budget` instructions, or fewer for the reason returned.
    ///
    /// Each iteration of a REP-prefixed string instruction counts as one instruction, and a REP with
    /// RCX = 0 as one. An instruction that raises an exception does not count; INT n, INT3 and INTO
    /// do. Interrupts are accepted at the boundary before the first instruction, after each bus
    /// access and whenever RFLAGS.IF or the interrupt shadow changes; with a budget of 0 none is.
    pub fn run(&mut self, budget: u64, bus: &mut dyn Bus) -> RunExit {
        if let Some(exit) = self.dead {
            return exit;
        }
        let core = &mut *self.core;
        let bus: NonNull<dyn Bus + '_> = NonNull::from(bus);
        // SAFETY: only the lifetime changes; the pointer is cleared below, before `bus` ends.
        core.bus =
            Some(unsafe { std::mem::transmute::<NonNull<dyn Bus + '_>, NonNull<dyn Bus>>(bus) });
        core.end = core.retired().wrapping_add(budget);
        core.limit = core.retired();
        core.remaining = 0;
        let exit = core.dispatch();
        core.bus = None;
        if matches!(
            exit,
            RunExit::TripleFault { .. } | RunExit::FaultLoop { .. } | RunExit::Unsupported { .. }
        ) {
            self.dead = Some(exit);
        }
        exit
    }

    /// Instructions retired since the count's start: the position.
    pub fn retired(&self) -> u64 {
        self.core.retired()
    }

    /// Sets the count, for a state that was saved there. The TSC keeps its present value.
    pub fn set_retired(&mut self, retired: u64) {
        let tsc = self.core.tsc(self.retired());
        self.core.remaining = 0;
        self.core.limit = retired;
        self.core.end = retired;
        self.set_tsc(tsc);
    }

    /// Sets the time-stamp counter's value at the present count; from there it counts one tick for
    /// each retired instruction.
    pub fn set_tsc(&mut self, value: u64) {
        self.core.tsc_offset = value.wrapping_sub(self.retired());
    }

    /// The architectural state, complete but for guest memory.
    pub fn state(&self) -> CpuState {
        self.core.export()
    }

    /// Whether maskable interrupts are accepted (RFLAGS.IF): what an idle machine asks, without the
    /// cost of [`Cpu::state`].
    pub fn interrupts_enabled(&self) -> bool {
        self.core.interrupts_enabled()
    }

    /// Replaces the architectural state; a CPU that had ended may run again.
    ///
    /// # Errors
    /// The state is not one that this CPU can be in; nothing has changed then.
    pub fn set_state(&mut self, state: &CpuState) -> Result<(), StateError> {
        self.core.import(state)?;
        self.dead = None;
        Ok(())
    }

    /// Tells that guest RAM was written by somebody else than this CPU (a device's DMA). To be called
    /// for each such write before the next `run`; `address` and `length` in bytes of guest-physical
    /// memory.
    pub fn memory_written(&mut self, address: u64, length: u64) {
        let core = &mut *self.core;
        let end = address.saturating_add(length).min(core.memory.end());
        let mut at = address;
        while at < end {
            let part = (0x1000 - (at & 0xfff)).min(end - at);
            core.code_written(at, part as usize);
            at += part;
        }
    }

    /// Tells that any of guest RAM may have changed (a snapshot was loaded): forgets all decoded code
    /// and all translations.
    pub fn invalidate_memory(&mut self) {
        self.core.blocks.clear();
        self.core.tlb.flush();
    }

    /// Makes a non-maskable interrupt pending; it is delivered at the next boundary at which NMIs are
    /// not blocked.
    pub fn raise_nmi(&mut self) {
        self.core.nmi_pending = true;
    }
}

impl Core {
    fn new(memory: PhysicalMemory, blocks: BlockCache, model: CpuModel) -> Box<Core> {
        Box::new(Core {
            regs: [0; 18],
            seg_base: [0; 8],
            flags: 0,
            remaining: 0,
            bank: 0,
            alone: false,
            bus_used: false,
            cpl: 0,
            code_size: crate::core::CodeSize::Bits64,
            limit: 0,
            end: 0,
            departure: None,
            tsc_offset: 0,
            leave: Leave::Alone,
            tlb: Tlb::new(),
            memory,
            blocks,
            system_flags: 0,
            segments: Default::default(),
            ldtr: Default::default(),
            tr: Default::default(),
            gdtr: Default::default(),
            idtr: Default::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            apic_base: 0xfee0_0900,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            debug_trap: 0,
            untraced: false,
            unfinished: false,
            halted: false,
            shadow: 0,
            nmi_blocked: false,
            nmi_pending: false,
            deliveries: 0,
            fpu: Fpu::reset(),
            model,
            bus: None,
        })
    }

    /// Runs until there is a reason to return.
    fn dispatch(&mut self) -> RunExit {
        self.bus_used = false;
        loop {
            match self.boundary() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(exit) => return exit,
            }
            if let Err(exit) = self.chain() {
                return exit;
            }
        }
    }

    /// Does what is due between two instructions. False: something was done, look again.
    fn boundary(&mut self) -> Result<bool, RunExit> {
        if self.bus_used {
            self.bus_used = false;
            let stop = self.bus().stop_requested();
            self.bus_used = false;
            if stop {
                return Err(RunExit::StopRequested);
            }
        }
        if self.remaining == 0 && !self.extend_slice() {
            return Err(RunExit::Budget);
        }
        // MOV SS and POP SS hold debug traps off as well, STI does not (SDM vol. 3A 6.8.3).
        if self.shadow != 0 && (self.debug_trap == 0 || self.shadow & SHADOW_SS != 0) {
            let before = self.shadow;
            if self.stepping() {
                self.step_traced()?;
            } else {
                self.shadow = 0;
                self.step()?;
            }
            // A second STI or MOV SS in the shadow of the first does not extend it. An exception ended it.
            self.shadow &= !before;
            return Ok(false);
        }
        if self.debug_trap != 0 {
            self.deliver_debug_trap()?;
            return Ok(false);
        }
        if self.nmi_pending && !self.nmi_blocked {
            self.nmi_pending = false;
            self.halted = false;
            self.nmi_blocked = true;
            self.interrupt(VECTOR_NMI)?;
            return Ok(false);
        }
        if self.interrupts_enabled() {
            let pending = self.bus().interrupt_line();
            if pending {
                let vector = self.bus().acknowledge_interrupt();
                self.bus_used = false;
                self.halted = false;
                self.interrupt(vector)?;
                return Ok(false);
            }
            self.bus_used = false;
        }
        if self.halted {
            return Err(RunExit::Halted);
        }
        if self.stepping() {
            self.step_traced()?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Runs blocks until one wants the boundary looked at.
    fn chain(&mut self) -> Result<(), RunExit> {
        let start = self.retired();
        let Ok(mut block) = self.lookup(false) else {
            return self.left();
        };
        loop {
            // SAFETY: found just now, or linked to a block that has just run: in the arena.
            let count = u64::from(unsafe { block.as_ref() }.count);
            if count > self.remaining {
                if self.extend_slice() {
                    continue;
                }
                if self.remaining > 0 {
                    self.step()?;
                }
                return Ok(());
            }
            self.remaining -= count;
            let first = Block::first(block);
            let found = match (first.handler)(self, first) {
                Flow::Direct => self.successor(),
                Flow::Indirect => self.lookup(false),
                Flow::Sync => {
                    self.deliveries = 0;
                    return Ok(());
                }
                Flow::Leave => Err(Raised),
            };
            match found {
                Ok(next) => block = next,
                Err(Raised) => {
                    if self.retired() != start {
                        self.deliveries = 0;
                    }
                    return self.left();
                }
            }
        }
    }

    /// The block behind a direct exit, linked from now on where that may be.
    #[inline(never)]
    fn successor(&mut self) -> Result<NonNull<Block>, Raised> {
        let departure = self
            .departure
            .expect("set by the exit that answered Flow::Direct");
        let link = departure.link();
        if !self.blocks.is_stub(link) {
            return Ok(link);
        }
        let epoch = self.blocks.epoch;
        let next = self.lookup(false)?;
        if self.blocks.epoch == epoch {
            departure.connect(next);
        }
        Ok(next)
    }

    /// Executes one instruction by itself. Whether it retired.
    pub(crate) fn step(&mut self) -> Result<bool, RunExit> {
        self.alone = true;
        let result = self.step_alone();
        self.alone = false;
        match result {
            Ok(()) => Ok(true),
            Err(Raised) => self.left().map(|()| false),
        }
    }

    fn step_alone(&mut self) -> Result<(), Raised> {
        let block = self.lookup(true)?;
        // SAFETY: as in `chain`.
        debug_assert_eq!(unsafe { block.as_ref() }.count, 1);
        // A slice of this one instruction, so that its exit goes nowhere.
        self.limit = self.retired().wrapping_add(1);
        self.remaining = 0;
        let first = Block::first(block);
        if (first.handler)(self, first) == Flow::Leave {
            return Err(Raised);
        }
        self.deliveries = 0;
        Ok(())
    }

    /// Acts on `leave`.
    fn left(&mut self) -> Result<(), RunExit> {
        match self.leave {
            Leave::Alone => self.step().map(|_| ()),
            Leave::Unsupported(what) => Err(RunExit::Unsupported {
                rip: self.rip(),
                what,
            }),
            Leave::Exception(exception) => {
                self.deliveries += 1;
                if self.deliveries > MAX_DELIVERIES {
                    return Err(RunExit::FaultLoop {
                        rip: self.rip(),
                        vector: exception.vector,
                    });
                }
                self.exception(exception)
            }
        }
    }

    /// The block at RIP, decoded if need be.
    #[inline(never)]
    fn lookup(&mut self, alone: bool) -> Result<NonNull<Block>, Raised> {
        let rip = self.rip();
        let linear = self.fetch_linear(rip)?;
        let physical = self.fetch_page(linear)? | linear & 0xfff;
        let key = blocks::key(physical, self.code_size, alone);
        if let Some(block) = self.blocks.find(key) {
            let Some(second) = Block::second(block) else {
                return Ok(block);
            };
            let next = self.fetch_linear(rip.wrapping_add(0x1000) & !0xfff)?;
            if self.fetch_page(next)? == second {
                return Ok(block);
            }
        }
        let draft = self.decode_block(physical, key, alone)?;
        let (block, fresh) = self.blocks.insert(&draft);
        if fresh {
            for page in [Some(physical & !0xfff), draft.second]
                .into_iter()
                .flatten()
            {
                if let Some(host) = self.memory.host(page) {
                    self.tlb.protect(host);
                }
            }
        }
        self.blocks.scratch = draft.ops;
        Ok(block)
    }

    /// Linear address of an instruction pointer.
    pub(crate) fn fetch_linear(&mut self, rip: u64) -> Result<u64, Raised> {
        if self.code_size == crate::core::CodeSize::Bits64 {
            if !crate::core::canonical(rip) {
                return Err(self.gp());
            }
            return Ok(rip);
        }
        if rip > u64::from(self.segments[1].limit) {
            return Err(self.gp());
        }
        Ok(rip.wrapping_add(self.segments[1].base) & 0xffff_ffff)
    }

    /// Physical page of a linear address, for fetching.
    pub(crate) fn fetch_page(&mut self, linear: u64) -> Result<u64, Raised> {
        if let Some(page) = self.tlb.fetch_hit(linear, self.bank) {
            return Ok(page);
        }
        let physical = self.translate(linear, Access::Fetch, self.cpl == 3)?;
        if self.memory.host(physical).is_none() {
            self.leave = Leave::Unsupported("code outside of RAM");
            return Err(Raised);
        }
        Ok(physical & !0xfff)
    }
}
