//! The bzImage, its boot parameters and an initrd (Linux: Documentation/arch/x86/boot.rst).

use lockstep_cpu::{CpuState, DescriptorTable, Segment};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const GDT: u64 = 0x500;
const PAGE_TABLES: u64 = 0x1000;
const PARAMETERS: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const KERNEL: u64 = 0x100_0000;

fn put(memory: &GuestMemoryMmap, at: u64, bytes: &[u8]) -> Result<(), String> {
    memory
        .write_slice(bytes, GuestAddress(at))
        .map_err(|e| format!("at {at:#x}: {e}"))
}

/// Loads everything and returns the state of the 64-bit entry.
pub fn load(
    memory: &GuestMemoryMmap,
    ram: u64,
    kernel: &[u8],
    initrd: &[u8],
    command_line: &str,
) -> Result<CpuState, String> {
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        return Err("not a bzImage: no HdrS at 0x202".into());
    }
    let setup = (usize::from(kernel[0x1f1]).max(1) + 1) * 512;
    put(memory, KERNEL, &kernel[setup..])?;
    let initrd_at = (ram - initrd.len() as u64) & !0xfff;
    put(memory, initrd_at, initrd)?;
    put(memory, COMMAND_LINE, command_line.as_bytes())?;
    put(memory, COMMAND_LINE + command_line.len() as u64, &[0])?;

    let mut p = vec![0; 4096];
    let header_end = 0x202 + usize::from(kernel[0x201]);
    p[0x1f1..header_end].copy_from_slice(&kernel[0x1f1..header_end]);
    p[0x210] = 0xff;
    p[0x211] |= 1;
    p[0x218..0x21c].copy_from_slice(&(initrd_at as u32).to_le_bytes());
    p[0x21c..0x220].copy_from_slice(&(initrd.len() as u32).to_le_bytes());
    p[0x228..0x22c].copy_from_slice(&(COMMAND_LINE as u32).to_le_bytes());
    for (i, (start, length)) in [(0, 0x9_fc00), (0x10_0000, ram - 0x10_0000)]
        .into_iter()
        .enumerate()
    {
        let at = 0x2d0 + 20 * i;
        p[at..at + 8].copy_from_slice(&u64::to_le_bytes(start));
        p[at + 8..at + 16].copy_from_slice(&u64::to_le_bytes(length));
        p[at + 16..at + 20].copy_from_slice(&1_u32.to_le_bytes());
    }
    p[0x1e8] = 2;
    put(memory, PARAMETERS, &p)?;

    let quad = |at: u64, value: u64| put(memory, at, &value.to_le_bytes());
    quad(PAGE_TABLES, 0x2003)?;
    for i in 0..4 {
        quad(0x2000 + 8 * i, 0x3003 + 0x1000 * i)?;
    }
    for i in 0..2048 {
        quad(0x3000 + 8 * i, i << 21 | 0x83)?;
    }
    quad(GDT + 0x10, 0x00af_9b00_0000_ffff)?;
    quad(GDT + 0x18, 0x00cf_9300_0000_ffff)?;

    let segment = |selector, attributes| Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        attributes,
    };
    let data = segment(0x18, 0xc093);
    let mut fxsave = vec![0; 512];
    fxsave[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    fxsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    let mut gpr = [0; 16];
    gpr[6] = PARAMETERS;
    gpr[4] = 0x9000;
    Ok(CpuState {
        gpr,
        rip: KERNEL + 0x200,
        rflags: 2,
        segments: [data, segment(0x10, 0xa09b), data, data, data, data],
        ldtr: Segment {
            attributes: 0x1_0000,
            ..Segment::default()
        },
        tr: Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            attributes: 0x8b,
        },
        gdtr: DescriptorTable {
            base: GDT,
            limit: 0x1f,
        },
        idtr: DescriptorTable { base: 0, limit: 0 },
        cr0: 0x8000_0033,
        cr2: 0,
        cr3: PAGE_TABLES,
        cr4: 0x20,
        cr8: 0,
        efer: 0x500,
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
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        fxsave,
        halted: false,
        interrupt_shadow: 0,
        nmi_blocked: false,
        nmi_pending: false,
        pending_debug: 0,
    })
}

/// A newc archive with busybox and an init.
pub fn initrd(busybox: &[u8]) -> Vec<u8> {
    let init = b"#!/bin/busybox sh\n/bin/busybox mkdir -p /proc /sys /dev\n/bin/busybox mount -t proc proc /proc\n\
        /bin/busybox mount -t sysfs sys /sys\n/bin/busybox mount -t devtmpfs dev /dev\n/bin/busybox uname -a\n\
        /bin/busybox cat /proc/cpuinfo\n/bin/busybox ls -l /proc/self/\n/bin/busybox md5sum /bin/busybox\n\
        echo LOCKSTEP-BOOTED\nexec /bin/busybox sh\n";
    let mut archive = Vec::new();
    let mut add = |inode: u32, name: &str, mode: u32, data: &[u8]| {
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            if name.starts_with("dev/") { 5 } else { 0 },
            1,
            name.len() as u32 + 1,
            0,
        ];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    add(1, "bin", 0o040755, b"");
    add(2, "dev", 0o040755, b"");
    add(3, "dev/console", 0o020600, b"");
    add(4, "bin/busybox", 0o100755, busybox);
    add(5, "init", 0o100755, init);
    add(6, "TRAILER!!!", 0, b"");
    archive
}
