//! The CPU as the 64-bit boot protocol wants it at a kernel's entry.

use lockstep_cpu::{CpuState, DescriptorTable, Segment};

use crate::machine::memory::{GuestRam, MemoryError};

/// Index of RSI in [`CpuState::gpr`].
pub const RSI: usize = 6;
const RSP: usize = 4;

const GDT_START: u64 = 0x500;
/// Null, unused, 64-bit code at 0x10, data at 0x18.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const STACK_END: u64 = 0x9000;
const PML4_START: u64 = 0x9000;
const PDPT_START: u64 = 0xa000;
/// Four directories of 512 pages of 2 MiB.
const DIRECTORIES_START: u64 = 0xb000;
const DIRECTORIES: u64 = 4;
const TABLE_BYTES: u64 = 4096;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// Present, writable.
const TABLE_ENTRY: u64 = 0x3;
/// Present, writable, a page and not a table.
const LARGE_PAGE_ENTRY: u64 = 0x83;

/// PE, ET, NE, WP, PG.
const CR0: u64 = 0x8001_0031;
/// PAE, and OSFXSR with OSXMMEXCPT so that SSE can be used.
const CR4: u64 = 0x0000_0620;
/// LME, LMA, and NXE and SCE off as after a real loader.
const EFER: u64 = 0x0000_0500;
/// Bit 1 is always set; interrupts are disabled.
const RFLAGS: u64 = 0x2;
/// PAT after reset (SDM vol. 3A, 13.12.4).
const PAT: u64 = 0x0007_0406_0007_0406;
/// Bootstrap processor, local APIC switched off: this machine has none.
const APIC_BASE: u64 = 0xfee0_0100;
const DR6: u64 = 0xffff_0ff0;
const DR7: u64 = 0x400;
const FXSAVE_BYTES: usize = 512;
/// x87 control word after FNINIT.
const FCW: u16 = 0x037f;
const MXCSR: u32 = 0x1f80;
const MXCSR_MASK: u32 = 0xffff;

/// Writes descriptor and page tables, and returns the state of a CPU at `entry`.
///
/// # Errors
/// RAM is too small for the tables.
pub fn long_mode(ram: &GuestRam, entry: u64) -> Result<CpuState, MemoryError> {
    for (index, descriptor) in GDT.iter().enumerate() {
        ram.write(GDT_START + 8 * index as u64, &descriptor.to_le_bytes())?;
    }
    ram.write(PML4_START, &(PDPT_START | TABLE_ENTRY).to_le_bytes())?;
    for directory in 0..DIRECTORIES {
        let address = DIRECTORIES_START + directory * TABLE_BYTES;
        ram.write(
            PDPT_START + 8 * directory,
            &(address | TABLE_ENTRY).to_le_bytes(),
        )?;
    }
    for page in 0..DIRECTORIES * TABLE_BYTES / 8 {
        let entry = (page * LARGE_PAGE_BYTES) | LARGE_PAGE_ENTRY;
        ram.write(DIRECTORIES_START + 8 * page, &entry.to_le_bytes())?;
    }
    let mut fxsave = vec![0; FXSAVE_BYTES];
    fxsave[..2].copy_from_slice(&FCW.to_le_bytes());
    fxsave[24..28].copy_from_slice(&MXCSR.to_le_bytes());
    fxsave[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    // Present, accessed; code: execute/read, 64 bits; data: read/write, 32 bits.
    let code = flat(CODE_SELECTOR, 0xa09b);
    let data = flat(DATA_SELECTOR, 0xc093);
    let mut gpr = [0; 16];
    gpr[RSP] = STACK_END;
    Ok(CpuState {
        gpr,
        rip: entry,
        rflags: RFLAGS,
        segments: [data, code, data, data, data, data],
        ldtr: Segment {
            attributes: 0x1_0000,
            ..Segment::default()
        },
        // VMX does not enter a guest without a busy TSS.
        tr: Segment {
            limit: 0x67,
            attributes: 0x8b,
            ..Segment::default()
        },
        gdtr: DescriptorTable {
            base: GDT_START,
            limit: (GDT.len() * 8 - 1) as u16,
        },
        idtr: DescriptorTable::default(),
        cr0: CR0,
        cr2: 0,
        cr3: PML4_START,
        cr4: CR4,
        cr8: 0,
        efer: EFER,
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        pat: PAT,
        apic_base: APIC_BASE,
        dr: [0, 0, 0, 0, DR6, DR7],
        fxsave,
        halted: false,
        interrupt_shadow: 0,
        nmi_blocked: false,
        nmi_pending: false,
        pending_debug: 0,
    })
}

fn flat(selector: u16, attributes: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes,
    }
}
