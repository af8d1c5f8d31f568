//! The zero page, `struct boot_params` (Linux, `Documentation/arch/x86/zero-page.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use super::acpi::RSDP_START;
use super::{COMMAND_LINE_START, Initrd, KERNEL_START};
use crate::machine::memory::{GuestRam, MemoryError};

/// Where the zero page lies.
const ZERO_PAGE_START: u64 = 0x7000;
/// End of conventional memory; firmware's data and ROMs follow on a PC.
const CONVENTIONAL_END: u64 = 0x9fc00;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// A loader without a number of its own.
const LOADER_TYPE: u8 = 0xff;

/// Writes the zero page and returns its address. Programs that are no bzImage get a header with what
/// a loader fills in.
pub fn write(
    ram: &GuestRam,
    header: Option<setup_header>,
    initrd: Option<Initrd>,
    command_line_bytes: usize,
) -> Result<u64, MemoryError> {
    let mut params = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: 0x020f,
            cmdline_size: command_line_bytes as u32,
            ..Default::default()
        }),
        ..Default::default()
    };
    params.acpi_rsdp_addr = RSDP_START;
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.cmd_line_ptr = COMMAND_LINE_START as u32;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = initrd.bytes as u32;
    }
    let mut map = vec![
        (0, CONVENTIONAL_END, E820_RAM),
        (CONVENTIONAL_END, KERNEL_START, E820_RESERVED),
    ];
    for (start, bytes) in ram.ranges() {
        map.push((start.max(KERNEL_START), start + bytes, E820_RAM));
    }
    params.e820_entries = map.len() as u8;
    for (index, (start, end, kind)) in map.into_iter().enumerate() {
        params.e820_table[index] = boot_e820_entry {
            addr: start,
            size: end - start,
            r#type: kind,
        };
    }
    ram.write(ZERO_PAGE_START, params.as_slice())?;
    Ok(ZERO_PAGE_START)
}
