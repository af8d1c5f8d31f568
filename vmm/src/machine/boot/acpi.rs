//! The ACPI tables (ACPI 6.5, chapter 5) by which a stock kernel finds its devices: interrupt
//! controllers, power-off, timer, serial console, and the virtio devices, which no bus could show.
//!
//! They lie in the part of the first MiB that the memory map declares reserved, where firmware of a
//! PC has them too (5.2.5.1). The hardware is the full one, not the reduced: PIC, PIT and PM timer are
//! there, and a kernel calibrates its clocks by them.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
    ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::machine::bus::{ENTROPY_BASE, NETWORK_BASE, UART_PORT, disk_base};
use crate::machine::devices::interrupts::Line;
use crate::machine::devices::ioapic::{IOAPIC_BASE, IOAPIC_ID};
use crate::machine::devices::lapic::{LAPIC_BASE, LAPIC_ID};
use crate::machine::devices::pm_timer::PM_TIMER_PORT;
use crate::machine::devices::pm1::PM1_EVENT_PORT;
use crate::machine::devices::power::{PM1_CONTROL_PORT, RESET_CONTROL_PORT};
use crate::machine::devices::virtio_mmio::VIRTIO_MMIO_BYTES;
use crate::machine::memory::{GuestRam, MemoryError};

/// Where the tables begin, and the root pointer lies.
pub const RSDP_START: u64 = 0xe_0000;
/// Where they have to end: the first MiB.
const TABLES_END: u64 = 0x10_0000;
/// Alignment of a table; that of the FACS (5.2.10), the strictest.
const ALIGNMENT: u64 = 64;

const OEM: [u8; 6] = *b"LCKSTP";
const OEM_TABLE: [u8; 8] = *b"LOCKSTEP";
const OEM_REVISION: u32 = 1;

/// Interrupt of ACPI events; none happen.
const SCI: u16 = 9;
/// Boot architecture flags (5.2.9.3): ISA devices are there, no VGA, no PCIe power management.
const BOOT_ARCHITECTURE: u16 = 1 | 1 << 2 | 1 << 4;
/// Multiple APIC flags (5.2.12): a PC/AT-compatible 8259A pair is there as well.
const PCAT_COMPATIBLE: u32 = 1;
/// Offset of these flags in the MADT, and of the checksum in every table.
const MADT_FLAGS_OFFSET: usize = 40;
const CHECKSUM_OFFSET: usize = 9;
/// Value that makes the reset control register reset the machine.
const RESET_VALUE: u8 = 6;
/// SLP_TYP of the state S5, soft off. The machine looks at SLP_EN alone.
const SLEEP_TYPE_OFF: u8 = 5;
/// ACPI name of virtio-mmio devices (virtio 1.2, 4.2.1; Linux `virtio_mmio.c`).
const VIRTIO_MMIO_HID: &str = "LNRO0005";

/// Interrupt source override (5.2.12.5): where an ISA interrupt is wired.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed)]
struct SourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    system_interrupt: U32,
    flags: U16,
}

impl SourceOverride {
    /// Polarity and trigger as the bus has them.
    const CONFORMING: u16 = 0;
    /// Active high, level-triggered.
    const HIGH_LEVEL: u16 = 1 | 3 << 2;

    const fn new(source: u8, system_interrupt: u32, flags: u16) -> Self {
        Self {
            kind: 2,
            length: 10,
            bus: 0,
            source,
            system_interrupt: U32::new(system_interrupt),
            flags: U16::new(flags),
        }
    }
}

impl Aml for SourceOverride {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

/// Writes all tables. `network` says whether there is a network interface, `disks` how many disks.
///
/// # Errors
/// RAM ends below the first MiB.
pub fn write(ram: &GuestRam, network: bool, disks: usize) -> Result<(), MemoryError> {
    let mut place = Placement {
        ram,
        next: RSDP_START + ALIGNMENT,
    };
    let dsdt = place.table(&dsdt(network, disks))?;
    let facs = place.table(&bytes_of(&FACS::new()))?;
    let fadt = place.table(&bytes_of(&fadt(dsdt, facs)))?;
    let madt = place.table(&madt())?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place.table(&bytes_of(&xsdt))?;
    ram.write(RSDP_START, &bytes_of(&Rsdp::new(OEM, xsdt)))
}

/// Puts one table behind the other.
struct Placement<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Placement<'_> {
    fn table(&mut self, bytes: &[u8]) -> Result<u64, MemoryError> {
        let address = self.next;
        self.next = (address + bytes.len() as u64).next_multiple_of(ALIGNMENT);
        assert!(
            self.next <= TABLES_END,
            "the tables are a few hundred bytes"
        );
        self.ram.write(address, bytes)?;
        Ok(address)
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, address.into())
}

fn fadt(dsdt: u64, facs: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Set: there is no such button among the fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = SCI.into();
    // Widths in bytes: status and enable; control; the timer.
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL_PORT).into();
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.x_pm1a_evt_blk = port(PM1_EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(PM1_CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(PM_TIMER_PORT, 32, AccessSize::DwordAccess);
    // Latencies above these values: the states C2 and C3 are not there (5.2.9).
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = 0x32;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(RESET_CONTROL_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

fn madt() -> Vec<u8> {
    let lapic = LocalInterruptController::Address(LAPIC_BASE as u32);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, lapic);
    madt.add_structure(ProcessorLocalApic::new(0, LAPIC_ID, EnabledStatus::Enabled));
    madt.add_structure(IoApic::new(IOAPIC_ID, IOAPIC_BASE as u32, 0));
    let timer = Line::Pit.pin() as u32;
    madt.add_structure(SourceOverride::new(0, timer, SourceOverride::CONFORMING));
    let sci = SourceOverride::new(SCI as u8, SCI.into(), SourceOverride::HIGH_LEVEL);
    madt.add_structure(sci);
    let mut bytes = bytes_of(&madt);
    // The crate has no setter for the flags: put in by hand, and taken out of the checksum.
    bytes[MADT_FLAGS_OFFSET..MADT_FLAGS_OFFSET + 4].copy_from_slice(&PCAT_COMPATIBLE.to_le_bytes());
    bytes[CHECKSUM_OFFSET] = bytes[CHECKSUM_OFFSET].wrapping_sub(PCAT_COMPATIBLE as u8);
    bytes
}

/// The devices, and how to switch off.
fn dsdt(network: bool, disks: usize) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&serial());
    if network {
        dsdt.append_slice(&virtio("NET0", 0, NETWORK_BASE, Line::Network));
    }
    dsdt.append_slice(&virtio("RNG0", 1, ENTROPY_BASE, Line::Entropy));
    for (disk, number) in (0..disks).zip(0u8..) {
        let line = Line::Disk(number);
        let name = format!("DSK{number}");
        dsdt.append_slice(&virtio(&name, 2 + number, disk_base(disk), line));
    }
    let off = Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]);
    dsdt.append_slice(&bytes_of(&Name::new(Path::new("_S5_"), &off)));
    dsdt.as_slice().to_vec()
}

/// COM1 (PNP0501, a 16550A).
fn serial() -> Vec<u8> {
    bytes_of(&Scope::new(
        Path::new("_SB_"),
        vec![&Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &ZERO),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &IO::new(UART_PORT, UART_PORT, 1, 8),
                        &Interrupt::new(true, true, false, false, Line::Uart.pin() as u32),
                    ]),
                ),
            ],
        )],
    ))
}

/// A virtio-mmio device: its registers, its interrupt (level-triggered, active high).
fn virtio(name: &str, number: u8, base: u64, line: Line) -> Vec<u8> {
    bytes_of(&Scope::new(
        Path::new("_SB_"),
        vec![&Device::new(
            Path::new(name),
            vec![
                &Name::new(Path::new("_HID"), &VIRTIO_MMIO_HID),
                &Name::new(Path::new("_UID"), &number),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, base as u32, VIRTIO_MMIO_BYTES as u32),
                        &Interrupt::new(true, false, false, false, line.pin() as u32),
                    ]),
                ),
            ],
        )],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ram: &GuestRam, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        ram.read(address, &mut bytes).unwrap();
        bytes
    }

    fn word(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn half(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    /// A table by its address, with its signature and checksum looked at.
    fn table(ram: &GuestRam, address: u64, signature: &[u8; 4]) -> Vec<u8> {
        let length = half(&read(ram, address, 8), 4) as usize;
        let bytes = read(ram, address, length);
        assert_eq!(&bytes[..4], signature);
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {signature:?}");
        bytes
    }

    #[test]
    fn every_table_is_found_from_the_root_with_a_good_checksum() {
        let ram = GuestRam::new(4 << 20).unwrap();
        write(&ram, true, 0).unwrap();
        let root = read(&ram, RSDP_START, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        for length in [20, 36] {
            let sum = root[..length]
                .iter()
                .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0);
        }
        let xsdt = table(&ram, word(&root, 24), b"XSDT");
        let fadt = table(&ram, word(&xsdt, 36), b"FACP");
        let madt = table(&ram, word(&xsdt, 44), b"APIC");
        let dsdt = table(&ram, word(&fadt, 140), b"DSDT");
        assert_eq!(half(&madt, 36), 0xfee0_0000);
        assert_eq!(half(&madt, 40), 1, "an 8259A pair is there");
        assert_eq!(read(&ram, half(&fadt, 36).into(), 4), b"FACS");
        let names = |hid: &[u8]| dsdt.windows(hid.len()).filter(|part| *part == hid).count();
        assert_eq!(names(b"LNRO0005"), 2);
        for (network, disks) in [(false, 0), (true, 4)] {
            let ram = GuestRam::new(4 << 20).unwrap();
            write(&ram, network, disks).unwrap();
        }
    }
}
