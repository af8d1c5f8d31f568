//! Puts a kernel into guest memory and the CPU at its entry, by the 64-bit Linux boot protocol
//! (Linux, `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").
//!
//! At entry: long mode, the first 4 GiB mapped one to one by 2 MiB pages, CS = 0x10, DS = ES = SS =
//! 0x18, interrupts disabled, RSI at the zero page, RSP at the end of a small stack.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0x500 | descriptor table |
//! | 0x7000 | zero page (`struct boot_params`) |
//! | 0x8000 to 0x9000 | stack |
//! | 0x9000 to 0xf000 | page tables |
//! | 0x20000 | command line |
//! | 0xe0000 | ACPI tables |
//! | 0x100000 | kernel |
//!
//! Images are the operator's, and may be damaged: whatever is wrong with one is a [`BootError`].

use std::io::Cursor;

use linux_loader::loader::bootparam::{XLF_KERNEL_64, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use lockstep_cpu::CpuState;
use vm_memory::GuestAddress;

use super::memory::{GuestRam, MemoryError, PAGE_BYTES};

pub mod acpi;
mod elf;
mod long_mode;
mod zero_page;

pub use long_mode::long_mode;

/// Where kernels begin, and the least address of an ELF segment.
pub const KERNEL_START: u64 = 1 << 20;
const COMMAND_LINE_START: u64 = 0x20000;
/// From the start of a bzImage's protected-mode code to its 64-bit entry.
const ENTRY_64_OFFSET: u64 = 0x200;
/// First version of the boot protocol with `xloadflags`.
const VERSION_WITH_XLOADFLAGS: u16 = 0x020c;
/// A bzImage's magic number, and where it stands.
const BZIMAGE_MAGIC: &[u8] = b"HdrS";
const BZIMAGE_MAGIC_OFFSET: usize = 0x202;

/// What kind of program a kernel image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A bzImage, or an ELF image that carries a note of Linux.
    OperatingSystem,
    /// Any other ELF image.
    Bare,
}

/// Why a guest cannot be booted from these images.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither format.
    #[error("the kernel image ({0} bytes) is neither an ELF64 executable for x86-64 nor a bzImage")]
    UnknownFormat(usize),
    /// The image contradicts itself.
    #[error("the kernel image is damaged: {0}")]
    Damaged(String),
    /// A segment outside RAM, or over the boot structures.
    #[error(
        "the kernel image wants guest-physical {start:#x} to {end:#x}; it must lie between {KERNEL_START:#x} and \
         the end of low RAM, {limit:#x}: link it there, or give the VM more memory"
    )]
    Placement {
        /// First address.
        start: u64,
        /// End.
        end: u64,
        /// End of low RAM.
        limit: u64,
    },
    /// The entry point is not in the image.
    #[error("the kernel's entry point {entry:#x} lies outside its segments, which end at {end:#x}")]
    Entry {
        /// Entry point.
        entry: u64,
        /// End of the last segment.
        end: u64,
    },
    /// A 32-bit kernel.
    #[error(
        "the bzImage has no 64-bit entry (boot protocol {version:#06x}, xloadflags {flags:#x}); use a 64-bit kernel"
    )]
    No64BitEntry {
        /// Version of the boot protocol.
        version: u16,
        /// `xloadflags`.
        flags: u16,
    },
    /// The kernel takes shorter command lines only.
    #[error("the command line has {found} bytes; this kernel takes {limit} at most")]
    CommandLine {
        /// Length found.
        found: usize,
        /// Longest that the kernel takes.
        limit: usize,
    },
    /// The initrd does not fit.
    #[error(
        "the initrd of {bytes} bytes does not fit between the kernel's end, {start:#x}, and {limit:#x}: give the VM more memory"
    )]
    Initrd {
        /// Its size.
        bytes: usize,
        /// End of the kernel.
        start: u64,
        /// Where it must end.
        limit: u64,
    },
    /// An initrd for a program that is no Linux.
    #[error("an initrd can only be given to a bzImage")]
    InitrdWithoutLinux,
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Where the initrd lies.
#[derive(Debug, Clone, Copy)]
struct Initrd {
    start: u64,
    bytes: u64,
}

/// A kernel in memory.
struct Loaded {
    entry: u64,
    end: u64,
    header: Option<setup_header>,
}

/// What kind of program `kernel` is, if any.
pub fn image_kind(kernel: &[u8]) -> Option<ImageKind> {
    if is_bzimage(kernel) {
        return Some(ImageKind::OperatingSystem);
    }
    let image = elf::Image::parse(kernel).ok()??;
    Some(if image.has_note_of("Linux") {
        ImageKind::OperatingSystem
    } else {
        ImageKind::Bare
    })
}

fn is_bzimage(kernel: &[u8]) -> bool {
    kernel
        .get(BZIMAGE_MAGIC_OFFSET..)
        .is_some_and(|rest| rest.starts_with(BZIMAGE_MAGIC))
}

/// Loads `kernel` and `initrd` into fresh RAM and returns the CPU's state at the entry.
///
/// # Errors
/// The images are damaged or do not fit; guest memory is unspecified then.
pub fn load(
    ram: &GuestRam,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    command_line: &str,
) -> Result<CpuState, BootError> {
    let loaded = if is_bzimage(kernel) {
        load_bzimage(ram, kernel)?
    } else {
        load_elf(ram, kernel)?
    };
    if let Some(header) = loaded.header {
        let limit = header.cmdline_size as usize;
        // Zero: a kernel from before the field was there.
        if limit != 0 && command_line.len() > limit {
            return Err(BootError::CommandLine {
                found: command_line.len(),
                limit,
            });
        }
    }
    let initrd = match initrd {
        None => None,
        Some(bytes) => Some(load_initrd(ram, &loaded, bytes)?),
    };
    ram.write(COMMAND_LINE_START, command_line.as_bytes())?;
    ram.write(COMMAND_LINE_START + command_line.len() as u64, &[0])?;
    let zero_page = zero_page::write(ram, loaded.header, initrd, command_line.len())?;
    let mut state = long_mode(ram, loaded.entry)?;
    state.gpr[long_mode::RSI] = zero_page;
    Ok(state)
}

fn load_elf(ram: &GuestRam, kernel: &[u8]) -> Result<Loaded, BootError> {
    let image = elf::Image::parse(kernel)
        .map_err(BootError::Damaged)?
        .ok_or(BootError::UnknownFormat(kernel.len()))?;
    let mut end = 0;
    for segment in &image.loads {
        let segment_end = segment.address.checked_add(segment.memory_bytes);
        match segment_end {
            Some(segment_end)
                if segment.address >= KERNEL_START && segment_end <= ram.low_end() =>
            {
                end = end.max(segment_end);
            }
            _ => {
                return Err(BootError::Placement {
                    start: segment.address,
                    end: segment_end.unwrap_or(u64::MAX),
                    limit: ram.low_end(),
                });
            }
        }
    }
    let inside = |segment: &elf::Load| {
        (segment.address..segment.address + segment.memory_bytes).contains(&image.entry)
    };
    if !image.loads.iter().any(inside) {
        return Err(BootError::Entry {
            entry: image.entry,
            end,
        });
    }
    Elf::load(ram.accessor(), None, &mut Cursor::new(kernel), None)
        .map_err(|error| BootError::Damaged(error.to_string()))?;
    Ok(Loaded {
        entry: image.entry,
        end,
        header: None,
    })
}

fn load_bzimage(ram: &GuestRam, kernel: &[u8]) -> Result<Loaded, BootError> {
    // Unpacked, the kernel needs more than its image: checked before anything is written.
    if kernel.len() as u64 > ram.low_end() - KERNEL_START {
        return Err(BootError::Placement {
            start: KERNEL_START,
            end: KERNEL_START + kernel.len() as u64,
            limit: ram.low_end(),
        });
    }
    let start = GuestAddress(KERNEL_START);
    let result = BzImage::load(ram.accessor(), Some(start), &mut Cursor::new(kernel), None)
        .map_err(|error| BootError::Damaged(error.to_string()))?;
    let header = result
        .setup_header
        .ok_or_else(|| BootError::Damaged("no set-up header".into()))?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < VERSION_WITH_XLOADFLAGS || flags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry { version, flags });
    }
    // It moves itself to its preferred address if that is higher, and unpacks there.
    let (preferred, needed) = (header.pref_address, u64::from(header.init_size));
    let end = preferred.max(KERNEL_START).checked_add(needed);
    match end {
        Some(end) if end <= ram.low_end() => Ok(Loaded {
            entry: KERNEL_START + ENTRY_64_OFFSET,
            end: end.max(result.kernel_end),
            header: Some(header),
        }),
        _ => Err(BootError::Placement {
            start: KERNEL_START,
            end: end.unwrap_or(u64::MAX),
            limit: ram.low_end(),
        }),
    }
}

/// As high as the kernel allows, so that it is out of the way.
fn load_initrd(ram: &GuestRam, kernel: &Loaded, bytes: &[u8]) -> Result<Initrd, BootError> {
    let header = kernel.header.ok_or(BootError::InitrdWithoutLinux)?;
    let limit = (u64::from(header.initrd_addr_max) + 1).min(ram.low_end());
    let start = limit
        .checked_sub(bytes.len() as u64)
        .map(|start| start - start % PAGE_BYTES)
        .filter(|start| *start >= kernel.end)
        .ok_or(BootError::Initrd {
            bytes: bytes.len(),
            start: kernel.end,
            limit,
        })?;
    ram.write(start, bytes)?;
    Ok(Initrd {
        start,
        bytes: bytes.len() as u64,
    })
}

#[cfg(test)]
mod tests;
