//! Instructions that read or change system state. Most are the last of their block.

use crate::core::{
    CR0_AM, CR0_EM, CR0_MP, CR0_NE, CR0_PE, CR0_PG, CR0_TS, CR0_WP, CR4_DE, CR4_OSFXSR,
    CR4_OSXMMEXCPT, CR4_PAE, CR4_PGE, CR4_TSD, CodeSize, Core, EFER_LMA, EFER_LME, EFER_SCE, Leave,
    Raised, SHADOW_SS, SHADOW_STI, VECTOR_BP, VECTOR_DB, canonical,
};
use crate::exec::run_time_address;
use crate::flags::{IF, IOPL, RF, TF, VM, ZF};
use crate::memory::PHYSICAL_BITS;
use crate::op::{At, CS, Flow, GS, SS, ok};
use crate::state::{DescriptorTable, Segment};

/// CR0 bits that exist: PE MP EM TS ET NE WP AM NW CD PG.
const CR0_BITS: u64 = CR0_PE
    | CR0_MP
    | CR0_EM
    | CR0_TS
    | 1 << 4
    | CR0_NE
    | CR0_WP
    | CR0_AM
    | 1 << 29
    | 1 << 30
    | CR0_PG;
/// CR4 bits that the model has: TSD DE PSE PAE PGE PCE OSFXSR OSXMMEXCPT.
const CR4_BITS: u64 =
    CR4_TSD | CR4_DE | 1 << 4 | CR4_PAE | CR4_PGE | 1 << 8 | CR4_OSFXSR | CR4_OSXMMEXCPT;

pub(crate) fn ud(c: &mut Core, op: At) -> Flow {
    c.ud();
    op.leave(c)
}

pub(crate) fn hlt(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    c.halted = true;
    op.sync(c)
}

pub(crate) fn sti(c: &mut Core, op: At) -> Flow {
    if u64::from(c.cpl) > (c.system_flags & IOPL) >> 12 {
        c.gp();
        return op.leave(c);
    }
    if !c.interrupts_enabled() {
        c.system_flags |= IF;
        c.shadow |= SHADOW_STI;
        return op.sync(c);
    }
    op.done(c)
}

pub(crate) fn cpuid(c: &mut Core, op: At) -> Flow {
    let [a, b, cx, d] = c.model.cpuid(c.regs[0] as u32, c.regs[1] as u32);
    c.regs[0] = a.into();
    c.regs[3] = b.into();
    c.regs[1] = cx.into();
    c.regs[2] = d.into();
    op.done(c)
}

pub(crate) fn rdtsc(c: &mut Core, op: At) -> Flow {
    if c.cr4 & CR4_TSD != 0 {
        ok!(c, op, c.privileged());
    }
    let tsc = c.tsc(c.position());
    c.regs[0] = tsc & 0xffff_ffff;
    c.regs[2] = tsc >> 32;
    op.done(c)
}

/// RDPMC: the model has no counters.
pub(crate) fn rdpmc(c: &mut Core, op: At) -> Flow {
    c.gp();
    op.leave(c)
}

pub(crate) fn rdmsr(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    let v = ok!(c, op, c.read_msr(c.regs[1] as u32));
    c.regs[0] = v & 0xffff_ffff;
    c.regs[2] = v >> 32;
    op.sync(c)
}

pub(crate) fn wrmsr(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    let v = c.regs[0] & 0xffff_ffff | c.regs[2] << 32;
    ok!(c, op, c.write_msr(c.regs[1] as u32, v));
    op.sync(c)
}

/// SGDT (`IDT` false) and SIDT.
pub(crate) fn store_table<const IDT: bool>(c: &mut Core, op: At) -> Flow {
    let table = if IDT { c.idtr } else { c.gdtr };
    let length = if c.code_size == CodeSize::Bits64 {
        10
    } else {
        6
    };
    let at = ok!(c, op, run_time_address(c, op, length, true));
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    ok!(c, op, c.store_bytes(at, op.seg, &bytes[..length]));
    op.next(c)
}

/// LGDT and LIDT.
pub(crate) fn load_table<const IDT: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    let length = if c.code_size == CodeSize::Bits64 {
        10
    } else {
        6
    };
    let at = ok!(c, op, run_time_address(c, op, length, false));
    let mut bytes = [0; 10];
    ok!(c, op, c.load_bytes(at, op.seg, &mut bytes[..length]));
    let table = DescriptorTable {
        limit: u16::from_le_bytes([bytes[0], bytes[1]]),
        base: u64::from_le_bytes(std::array::from_fn(|i| bytes[2 + i])),
    };
    if !canonical(table.base) {
        c.gp();
        return op.leave(c);
    }
    if IDT {
        c.idtr = table;
    } else {
        c.gdtr = table;
    }
    op.done(c)
}

/// A 16-bit operand: register, or (`op.aux` & 1) memory.
fn word(c: &mut Core, op: At) -> Result<u16, Raised> {
    if op.aux & 1 == 0 {
        return Ok(c.reg::<u16>(op.src));
    }
    let at = run_time_address(c, op, 2, false)?;
    c.load::<u16>(at, op.seg)
}

/// Stores a selector or machine status word: to memory 16 bits, to a register of `op.aux >> 4` bytes.
fn put_word(c: &mut Core, op: At, value: u64) -> Result<(), Raised> {
    if op.aux & 1 == 0 {
        match op.aux >> 4 {
            2 => c.set_reg(op.dst, value as u16),
            4 => c.set_reg(op.dst, value as u32),
            _ => c.set_reg(op.dst, value),
        }
        return Ok(());
    }
    let at = run_time_address(c, op, 2, true)?;
    c.store::<u16>(at, op.seg, value as u16)
}

pub(crate) fn lldt(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    let selector = ok!(c, op, word(c, op));
    ok!(c, op, c.load_ldt(selector));
    op.done(c)
}

pub(crate) fn ltr(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    let selector = ok!(c, op, word(c, op));
    ok!(c, op, c.load_task_register(selector));
    op.done(c)
}

pub(crate) fn sldt(c: &mut Core, op: At) -> Flow {
    let v = u64::from(c.ldtr.selector);
    ok!(c, op, put_word(c, op, v));
    op.next(c)
}

pub(crate) fn str(c: &mut Core, op: At) -> Flow {
    let v = u64::from(c.tr.selector);
    ok!(c, op, put_word(c, op, v));
    op.next(c)
}

pub(crate) fn smsw(c: &mut Core, op: At) -> Flow {
    let v = c.cr0;
    ok!(c, op, put_word(c, op, v));
    op.next(c)
}

pub(crate) fn lmsw(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    let v = u64::from(ok!(c, op, word(c, op)));
    // PE can be set, not cleared.
    let new = c.cr0 & !0xe | v & 0xe | v & 1;
    ok!(c, op, c.write_cr0(new));
    op.sync(c)
}

pub(crate) fn clts(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    c.cr0 &= !CR0_TS;
    op.done(c)
}

/// MOV from CR`aux`.
pub(crate) fn read_control(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    let v = match op.aux {
        0 => c.cr0,
        2 => c.cr2,
        3 => c.cr3,
        4 => c.cr4,
        8 => c.cr8,
        _ => return ud(c, op),
    };
    if c.code_size == CodeSize::Bits64 {
        c.set_reg(op.dst, v)
    } else {
        c.set_reg(op.dst, v as u32)
    }
    op.next(c)
}

/// MOV to CR`aux`.
pub(crate) fn write_control(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    let v = if c.code_size == CodeSize::Bits64 {
        c.reg::<u64>(op.src)
    } else {
        c.reg::<u32>(op.src).into()
    };
    match op.aux {
        0 => ok!(c, op, c.write_cr0(v)),
        2 => c.cr2 = v,
        3 => {
            if c.long_mode() && v >> PHYSICAL_BITS != 0 {
                c.gp();
                return op.leave(c);
            }
            c.cr3 = v;
            c.tlb.flush_local();
        }
        4 => ok!(c, op, c.write_cr4(v)),
        8 => {
            if v > 15 {
                c.gp();
                return op.leave(c);
            }
            c.cr8 = v;
        }
        _ => return ud(c, op),
    }
    op.sync(c)
}

impl Core {
    fn write_cr0(&mut self, value: u64) -> Result<(), Raised> {
        let value = value & (CR0_BITS | !0xffff_ffff) | 1 << 4;
        let (nw, cd) = (value >> 29 & 1, value >> 30 & 1);
        let paging = value & CR0_PG != 0;
        if value >> 32 != 0 || (nw == 1 && cd == 0) || (paging && value & CR0_PE == 0) {
            return Err(self.gp());
        }
        let changed = self.cr0 ^ value;
        if value & CR0_PE == 0 {
            self.leave = Leave::Unsupported("real mode (CR0.PE cleared)");
            return Err(Raised);
        }
        if changed & CR0_PG != 0 {
            if paging {
                if self.efer & EFER_LME == 0 {
                    self.leave = Leave::Unsupported(
                        "paging outside long mode (CR0.PG set without EFER.LME)",
                    );
                    return Err(Raised);
                }
                if self.cr4 & CR4_PAE == 0
                    || self.segments[usize::from(CS)].attributes & 1 << 13 != 0
                {
                    return Err(self.gp());
                }
                self.efer |= EFER_LMA;
            } else {
                if self.code_size == CodeSize::Bits64 {
                    return Err(self.gp());
                }
                self.efer &= !EFER_LMA;
            }
        }
        self.cr0 = value;
        if changed & (CR0_PG | CR0_WP | CR0_AM) != 0 {
            self.tlb.flush();
            self.mode_changed();
        }
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Raised> {
        if value & !CR4_BITS != 0 || (self.long_mode() && value & CR4_PAE == 0) {
            return Err(self.gp());
        }
        if (self.cr4 ^ value) & (CR4_PGE | CR4_PAE | 1 << 4) != 0 {
            self.tlb.flush();
        }
        self.cr4 = value;
        Ok(())
    }

    /// #UD for DR4 and DR5 under CR4.DE, #DB under DR7.GD.
    fn debug_access(&mut self) -> Result<(), Raised> {
        self.privileged()?;
        if self.dr7 & 1 << 13 != 0 {
            self.dr7 &= !(1 << 13);
            self.dr6 |= 1 << 13;
            return Err(self.raise(VECTOR_DB));
        }
        Ok(())
    }
}

/// MOV from DR`aux`.
pub(crate) fn read_debug(c: &mut Core, op: At) -> Flow {
    if matches!(op.aux, 4 | 5) && c.cr4 & CR4_DE != 0 {
        return ud(c, op);
    }
    ok!(c, op, c.debug_access());
    let v = match op.aux {
        i @ 0..=3 => c.dr[usize::from(i)],
        4 | 6 => c.dr6,
        _ => c.dr7,
    };
    if c.code_size == CodeSize::Bits64 {
        c.set_reg(op.dst, v)
    } else {
        c.set_reg(op.dst, v as u32)
    }
    op.done(c)
}

/// MOV to DR`aux`.
pub(crate) fn write_debug(c: &mut Core, op: At) -> Flow {
    if matches!(op.aux, 4 | 5) && c.cr4 & CR4_DE != 0 {
        return ud(c, op);
    }
    ok!(c, op, c.debug_access());
    let v = if c.code_size == CodeSize::Bits64 {
        c.reg::<u64>(op.src)
    } else {
        c.reg::<u32>(op.src).into()
    };
    match op.aux {
        i @ 0..=3 => c.dr[usize::from(i)] = v,
        _ if v >> 32 != 0 => {
            c.gp();
            return op.leave(c);
        }
        4 | 6 => c.dr6 = v & 0xe00f | 0xffff_0ff0,
        _ => c.dr7 = v & 0xffff_2fff | 0x400,
    }
    // Pages that a breakpoint now watches must miss.
    c.tlb.flush();
    op.sync(c)
}

pub(crate) fn invlpg(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    // No limit or canonical check: an address that cannot be mapped has nothing to drop.
    let linear = crate::exec::offset(c, op).wrapping_add(c.seg_base[usize::from(op.seg & 7)]);
    c.tlb.invalidate(linear);
    op.sync(c)
}

/// INVD, WBINVD: there is no cache.
pub(crate) fn cache(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    op.done(c)
}

/// CLFLUSH: a load as far as faults go (SDM vol. 2).
pub(crate) fn clflush(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, run_time_address(c, op, 1, false));
    ok!(c, op, c.load::<u8>(at, op.seg));
    op.next(c)
}

pub(crate) fn int(c: &mut Core, op: At) -> Flow {
    interrupt(c, op, Core::software_interrupt)
}

/// INT1: as INT n with vector 1, but the gate's DPL does not count (SDM vol. 2, INT1).
pub(crate) fn int1(c: &mut Core, op: At) -> Flow {
    interrupt(c, op, Core::privileged_interrupt)
}

fn interrupt(c: &mut Core, op: At, deliver: fn(&mut Core, u8, u64) -> Result<(), Raised>) -> Flow {
    let next = c.rip().wrapping_add(op.end());
    let alone = std::mem::replace(&mut c.alone, true);
    let result = deliver(c, op.imm as u8, next);
    c.alone = alone;
    ok!(c, op, result);
    c.untraced = true;
    Flow::Sync
}

/// INTO, outside 64-bit code.
pub(crate) fn into(c: &mut Core, op: At) -> Flow {
    if c.flags & crate::flags::OF != 0 {
        int(c, op)
    } else {
        op.done(c)
    }
}

/// The vector that INT3 raises.
pub(crate) const BREAKPOINT: u64 = VECTOR_BP as u64;

pub(crate) fn swapgs(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.privileged());
    let gs = &mut c.segments[usize::from(GS)].base;
    std::mem::swap(gs, &mut c.kernel_gs_base);
    c.seg_base[usize::from(GS)] = c.segments[usize::from(GS)].base;
    op.next(c)
}

/// Flat CS and SS, as SYSCALL and kin load them.
fn flat(selector: u16, code: bool, long: bool, dpl: u8) -> Segment {
    let kind = if code { 0xb } else { 3 };
    let size = if code && long { 0x2000 } else { 0x4000 };
    Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        attributes: kind | 0x10 | u32::from(dpl) << 5 | 0x80 | size | 0x8000,
    }
}

impl Core {
    fn set_flat(&mut self, cs: u16, ss: u16, long: bool, cpl: u8) {
        self.segments[usize::from(CS)] = flat(cs, true, long, cpl);
        self.segments[usize::from(SS)] = flat(ss, false, false, cpl);
        self.cpl = cpl;
        self.mode_changed();
    }
}

pub(crate) fn syscall(c: &mut Core, op: At) -> Flow {
    if c.efer & EFER_SCE == 0 || !c.long_mode() {
        return ud(c, op);
    }
    let next = c.rip().wrapping_add(op.end());
    let target = if c.code_size == CodeSize::Bits64 {
        c.lstar
    } else {
        c.cstar
    };
    c.regs[1] = if c.code_size == CodeSize::Bits64 {
        next
    } else {
        next & 0xffff_ffff
    };
    c.regs[11] = c.rflags() & !RF;
    let flags = c.rflags() & !c.sfmask & !RF;
    let cs = (c.star >> 32) as u16 & !3;
    c.set_flat(cs, cs.wrapping_add(8), true, 0);
    c.set_rflags(flags);
    c.set_rip(target);
    c.untraced = flags & TF == 0;
    Flow::Sync
}

/// SYSRET; `op.aux` is 8 with REX.W (to 64-bit code).
pub(crate) fn sysret(c: &mut Core, op: At) -> Flow {
    if c.efer & EFER_SCE == 0 || c.code_size != CodeSize::Bits64 {
        return ud(c, op);
    }
    ok!(c, op, c.privileged());
    let long = op.aux == 8;
    let rip = if long {
        c.regs[1]
    } else {
        c.regs[1] & 0xffff_ffff
    };
    // As on Intel's: a target that is not canonical faults here, still in ring 0.
    if !canonical(rip) {
        c.gp();
        return op.leave(c);
    }
    let base = (c.star >> 48) as u16;
    let cs = if long { base.wrapping_add(16) } else { base } | 3;
    let flags = c.regs[11] & !(RF | VM);
    c.set_flat(cs, base.wrapping_add(8) | 3, long, 3);
    c.set_rflags(flags);
    c.set_rip(rip);
    Flow::Sync
}

pub(crate) fn sysenter(c: &mut Core, op: At) -> Flow {
    if c.sysenter_cs & 0xfffc == 0 {
        c.gp();
        return op.leave(c);
    }
    if !c.long_mode() {
        c.leave = Leave::Unsupported("SYSENTER outside long mode");
        return op.leave(c);
    }
    let cs = c.sysenter_cs as u16 & !3;
    c.system_flags &= !(IF | RF);
    c.set_flat(cs, cs.wrapping_add(8), true, 0);
    c.regs[4] = c.sysenter_esp;
    c.set_rip(c.sysenter_eip);
    Flow::Sync
}

/// SYSEXIT; `op.aux` is 8 with REX.W.
pub(crate) fn sysexit(c: &mut Core, op: At) -> Flow {
    if c.sysenter_cs & 0xfffc == 0 {
        c.gp();
        return op.leave(c);
    }
    ok!(c, op, c.privileged());
    let long = op.aux == 8;
    let (rip, sp) = if long {
        (c.regs[2], c.regs[1])
    } else {
        (c.regs[2] & 0xffff_ffff, c.regs[1] & 0xffff_ffff)
    };
    if !canonical(rip) || !canonical(sp) {
        c.gp();
        return op.leave(c);
    }
    let base = c.sysenter_cs as u16 & !3;
    let cs = base.wrapping_add(if long { 32 } else { 16 }) | 3;
    c.set_flat(cs, cs.wrapping_add(8), long, 3);
    c.regs[4] = sp;
    c.set_rip(rip);
    Flow::Sync
}

/// MOV to a segment register.
pub(crate) fn load_segment(c: &mut Core, op: At) -> Flow {
    let selector = ok!(c, op, word(c, op));
    ok!(c, op, c.load_data_segment(op.dst, selector));
    if op.dst == SS {
        c.shadow |= SHADOW_SS;
    }
    op.sync(c)
}

/// MOV from a segment register (number in `op.base` for registers, where no address needs it).
pub(crate) fn store_segment<const S: u8>(c: &mut Core, op: At) -> Flow {
    let v = u64::from(c.segments[usize::from(S)].selector);
    ok!(c, op, put_word(c, op, v));
    op.next(c)
}

/// LDS LES LFS LGS LSS; `op.aux` is the offset's size.
pub(crate) fn load_far_pointer<const S: u8>(c: &mut Core, op: At) -> Flow {
    let size = usize::from(op.aux);
    let at = ok!(c, op, run_time_address(c, op, size + 2, false));
    let mut bytes = [0; 10];
    ok!(c, op, c.load_bytes(at, op.seg, &mut bytes[..size + 2]));
    ok!(
        c,
        op,
        c.load_data_segment(S, u16::from_le_bytes([bytes[size], bytes[size + 1]]))
    );
    let mut offset = [0; 8];
    offset[..size].copy_from_slice(&bytes[..size]);
    let v = u64::from_le_bytes(offset);
    match size {
        2 => c.set_reg(op.dst, v as u16),
        4 => c.set_reg(op.dst, v as u32),
        _ => c.set_reg(op.dst, v),
    }
    // Unlike MOV SS and POP SS, LSS loads pointer and segment at once, and holds nothing off.
    op.sync(c)
}

/// What LAR, LSL, VERR and VERW ask.
pub(crate) const LAR: u8 = 0;
pub(crate) const LSL: u8 = 1;
pub(crate) const VERR: u8 = 2;
pub(crate) const VERW: u8 = 3;

/// LAR LSL VERR VERW; `op.aux`: bit 0 memory source, the rest destination's size times 16.
pub(crate) fn inspect<const K: u8>(c: &mut Core, op: At) -> Flow {
    let selector = ok!(c, op, word(c, op));
    let found = ok!(c, op, visible::<K>(c, selector));
    match found {
        None => c.flags &= !ZF,
        Some(value) => {
            c.flags |= ZF;
            if K == LAR || K == LSL {
                match op.aux >> 4 {
                    2 => c.set_reg(op.dst, value as u16),
                    4 => c.set_reg(op.dst, value as u32),
                    _ => c.set_reg(op.dst, value),
                }
            }
        }
    }
    op.next(c)
}

fn visible<const K: u8>(c: &mut Core, selector: u16) -> Result<Option<u64>, Raised> {
    if selector & !3 == 0 {
        return Ok(None);
    }
    let before = c.leave;
    let d = match c.descriptor(selector, 0) {
        Ok(d) => d,
        Err(Raised) => {
            // Beyond the table: not visible. A page fault stays one.
            if matches!(c.leave, Leave::Exception(e) if e.vector == crate::core::VECTOR_GP) {
                c.leave = before;
                return Ok(None);
            }
            return Err(Raised);
        }
    };
    let rpl = (selector & 3) as u8;
    let conforming = d.is_code() && d.conforming();
    let reachable = conforming || (c.cpl <= d.dpl() && rpl <= d.dpl());
    let kind_fits = match K {
        // In long mode of the system types: LDT, TSS; for LAR call gates too (SDM vol. 2, LAR).
        LAR => !d.is_system() || matches!(d.kind(), 2 | 9 | 11 | 12),
        LSL => !d.is_system() || matches!(d.kind(), 2 | 9 | 11),
        VERR => !d.is_system() && (!d.is_code() || d.bit1()),
        _ => !d.is_system() && !d.is_code() && d.bit1(),
    };
    if !reachable || !kind_fits {
        return Ok(None);
    }
    Ok(Some(match K {
        LAR => d.0 >> 32 & 0x00ff_ff00,
        LSL => u64::from(d.load(selector).limit),
        _ => 0,
    }))
}
