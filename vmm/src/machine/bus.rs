//! What the CPU finds at ports and guest-physical addresses: the machine's devices, wired together.
//!
//! | ports, or guest-physical memory | device | IRQ of the 8259A pair, pin of the I/O APIC |
//! |---|---|---|
//! | 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1 | 8259A pair | |
//! | 0x40 to 0x43, 0x61 | interval timer | 0, 2 |
//! | 0x64, 0x604, 0xcf9 | power (writes only) | |
//! | 0x70, 0x71 | real-time clock | |
//! | 0x3f8 to 0x3ff | serial console | 4, 4 |
//! | 0x600 to 0x605 | ACPI events and control | |
//! | 0x608 to 0x60b | ACPI timer (reads only) | |
//! | memory 0xd0000000, 4 KiB | network interface | 5, 16 |
//! | memory 0xd0001000, 4 KiB | source of entropy | none, 17 |
//! | memory 0xd0002000, 4 KiB each | up to four disks | 10, 11, 12, 14; 18 to 21 |
//! | memory 0xfec00000, 4 KiB | I/O APIC | |
//! | memory 0xfee00000, 4 KiB; IA32_TSC_DEADLINE | local APIC | |
//!
//! All other ports read as ones and swallow writes, as on a PC. Memory that is neither RAM nor a
//! device is another matter: nothing may be there that a guest could mean, and the machine ends with
//! an error that names the address.

use std::fmt;
use std::hash::{Hash, Hasher};

use lockstep_cpu::{Bus, MsrFault};
use serde::{Deserialize, Serialize};

use super::clock::VirtualClock;
use super::config::MachineConfig;
use super::console::Console;
use super::devices::DamagedState;
use super::devices::interrupts::{Interrupts, Line};
use super::devices::ioapic::{IOAPIC_BASE, IOAPIC_BYTES};
use super::devices::lapic::{LAPIC_BASE, LAPIC_BYTES, MSR_TSC_DEADLINE};
use super::devices::pit::Pit;
use super::devices::pm_timer::{self, PM_TIMER_PORT};
use super::devices::pm1::{PM1_EVENT_PORT, Pm1};
use super::devices::power::{self, PowerOffReason};
use super::devices::rtc::Rtc;
use super::devices::uart::Uart;
use super::devices::virtio_mmio::VIRTIO_MMIO_BYTES;
use super::devices::virtio_net::{NetState, VirtioNet};
use super::devices::virtio_rng::{EntropyState, VirtioRng};
use super::disks::{DiskDoneError, Disks, DisksState};
use super::engine::{EngineKind, Position};
use super::memory::{GuestRam, WrittenRanges};
use super::outputs::Outputs;
use crate::ft::disk::DiskDone;
use crate::ft::vm::{OutputKind, VirtualTime};

/// First port of the serial console.
pub const UART_PORT: u16 = 0x3f8;
/// Guest-physical address of the network interface's registers.
pub const NETWORK_BASE: u64 = 0xd000_0000;
/// Guest-physical address of the entropy source's registers.
pub const ENTROPY_BASE: u64 = NETWORK_BASE + VIRTIO_MMIO_BYTES;

/// Guest-physical address of the registers of disk `disk`.
#[must_use]
pub const fn disk_base(disk: usize) -> u64 {
    ENTROPY_BASE + VIRTIO_MMIO_BYTES * (1 + disk as u64)
}

/// An access that the guest made, for error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// IN.
    PortRead {
        /// Port.
        port: u16,
        /// Bytes.
        size: u8,
    },
    /// OUT.
    PortWrite {
        /// Port.
        port: u16,
        /// Bytes.
        size: u8,
    },
    /// A load from memory that is not RAM.
    MemoryRead {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        size: u8,
    },
    /// A store to memory that is not RAM.
    MemoryWrite {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        size: u8,
    },
    /// RDMSR of a register outside the CPU.
    MsrRead {
        /// Register number.
        index: u32,
    },
    /// WRMSR of a register outside the CPU.
    MsrWrite {
        /// Register number.
        index: u32,
    },
}

impl fmt::Display for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortRead { port, size } => {
                write!(formatter, "read of {size} bytes from port {port:#x}")
            }
            Self::PortWrite { port, size } => {
                write!(formatter, "write of {size} bytes to port {port:#x}")
            }
            Self::MemoryRead { address, size } => {
                write!(
                    formatter,
                    "read of {size} bytes from guest-physical {address:#x}"
                )
            }
            Self::MemoryWrite { address, size } => {
                write!(
                    formatter,
                    "write of {size} bytes to guest-physical {address:#x}"
                )
            }
            Self::MsrRead { index } => write!(formatter, "RDMSR of {index:#x}"),
            Self::MsrWrite { index } => write!(formatter, "WRMSR of {index:#x}"),
        }
    }
}

/// The devices and the wires between them.
pub struct MachineBus {
    ram: GuestRam,
    clock: VirtualClock,
    interrupts: Interrupts,
    pit: Pit,
    pm1: Pm1,
    rtc: Rtc,
    uart: Uart,
    console: Console,
    nic: Option<VirtioNet>,
    entropy: VirtioRng,
    disks: Option<Disks>,
    power_off: Option<PowerOffReason>,
    outputs: Outputs,
    written: WrittenRanges,
    timer_changed: bool,
    last_access: Option<Access>,
    access_to_nothing: Option<Access>,
}

/// Saved state of all devices and the clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusState {
    clock: VirtualClock,
    interrupts: Interrupts,
    pit: Pit,
    pm1: Pm1,
    rtc: Rtc,
    uart: Uart,
    console: Console,
    nic: Option<NetState>,
    entropy: EntropyState,
    #[serde(default)]
    disks: Option<DisksState>,
    power_off: Option<PowerOffReason>,
}

impl MachineBus {
    /// The devices that `config` names, after reset, at time 0.
    ///
    /// # Errors
    /// The host lacks memory for the disks' bounce buffers.
    pub fn new(config: &MachineConfig, ram: GuestRam) -> std::io::Result<Self> {
        Ok(Self {
            disks: Disks::new(config)?,
            ram,
            clock: VirtualClock::new(config.engine),
            interrupts: Interrupts::default(),
            pit: Pit::default(),
            pm1: Pm1::default(),
            rtc: Rtc::new(config.wall_clock_start),
            uart: Uart::default(),
            console: Console::default(),
            nic: config.nic.then(|| VirtioNet::new(config.mac)),
            entropy: VirtioRng::default(),
            power_off: None,
            outputs: Outputs::default(),
            written: WrittenRanges::default(),
            timer_changed: false,
            last_access: None,
            access_to_nothing: None,
        })
    }

    /// Hashes every device's state and the time at `position`, in this order. Outputs are not state:
    /// they have been said. Nor is what the clock's time is computed from.
    pub fn hash_at<H: Hasher>(&self, position: Position, hasher: &mut H) {
        self.clock.at(position).hash(hasher);
        self.interrupts.hash(hasher);
        self.pit.hash(hasher);
        self.pm1.hash(hasher);
        self.rtc.hash(hasher);
        self.uart.hash(hasher);
        self.console.hash(hasher);
        self.nic.hash(hasher);
        self.entropy.hash(hasher);
        self.disks.hash(hasher);
        self.power_off.hash(hasher);
    }

    /// Virtual time at `position`.
    pub fn now(&self, position: Position) -> VirtualTime {
        self.clock.at(position)
    }

    /// Moves the clock at `position` to `time`, never backwards, and serves the timers that became
    /// due. Returns the time that it is then.
    pub fn advance(&mut self, position: Position, time: VirtualTime) -> VirtualTime {
        let now = self.clock.advance(position, time);
        self.serve_timers(position);
        now
    }

    /// Serves the timers that are due at `position`.
    pub fn serve_timers(&mut self, position: Position) {
        let now = self.clock.at(position);
        if self.pit.take_rise(now) {
            self.interrupts.pulse(Line::Pit);
        }
        self.interrupts.serve_timer(now);
        self.console.flush_due(now, &mut self.outputs);
    }

    /// When the next timer is due, whoever waits for it.
    fn deadline(&self) -> Option<VirtualTime> {
        let lapic = self.interrupts.lapic().deadline();
        [self.pit.deadline(), self.console.deadline(), lapic]
            .into_iter()
            .flatten()
            .min()
    }

    /// The position at which the next timer is due, if it comes by executing.
    pub fn deadline_position(&self) -> Option<Position> {
        self.clock.position_of(self.deadline()?)
    }

    /// When the next timer is due that does something visible. A masked timer interrupt is not.
    pub fn next_timer(&self) -> Option<VirtualTime> {
        let pit = self
            .pit
            .deadline()
            .filter(|_| self.interrupts.is_unmasked(Line::Pit));
        let lapic = self.interrupts.lapic().next_interrupt();
        [pit, self.console.deadline(), lapic]
            .into_iter()
            .flatten()
            .min()
    }

    /// A frame arrives from the world.
    pub fn receive_frame(&mut self, frame: &[u8]) {
        if let Some(nic) = &mut self.nic {
            nic.receive(
                frame,
                self.ram.accessor(),
                &mut self.outputs,
                &mut self.written,
            );
            self.interrupts.set_line(Line::Network, nic.line());
        }
    }

    /// Bytes are typed at the console.
    pub fn receive_console(&mut self, bytes: &[u8]) {
        self.uart.receive(bytes);
        self.interrupts.set_line(Line::Uart, self.uart.line());
    }

    /// How many bytes of entropy the guest waits for.
    pub fn entropy_wanted(&self) -> usize {
        self.entropy.wanted()
    }

    /// Entropy arrives from the world.
    pub fn receive_entropy(&mut self, bytes: &[u8]) {
        self.entropy
            .fill(bytes, self.ram.accessor(), &mut self.written);
        self.interrupts.set_line(Line::Entropy, self.entropy.line());
    }

    /// The disks, if there are any.
    pub fn disks(&self) -> Option<&Disks> {
        self.disks.as_ref()
    }

    /// A disk request has ended.
    ///
    /// # Errors
    /// There is no such request, or not with this data.
    pub fn disk_done(&mut self, done: &DiskDone<'_>) -> Result<(), DiskDoneError> {
        let Some(disks) = &mut self.disks else {
            return Err(DiskDoneError::Unknown { id: done.id });
        };
        disks.done(
            done,
            self.ram.accessor(),
            &mut self.outputs,
            &mut self.written,
        )?;
        self.drive_disk_lines();
        Ok(())
    }

    fn drive_disk_lines(&mut self) {
        if let Some(disks) = &self.disks {
            for (number, high) in (0..).zip(disks.lines()) {
                self.interrupts.set_line(Line::Disk(number), high);
            }
        }
    }

    /// Switches the machine off for good: console bytes that wait, then the power-off, are said.
    pub fn power_off(&mut self, reason: PowerOffReason) {
        if self.power_off.is_none() {
            self.power_off = Some(reason);
            self.console.flush(&mut self.outputs);
            let mut bytes = self.outputs.buffer();
            bytes.push(reason as u8);
            self.outputs.push(OutputKind::PowerOff, bytes);
        }
    }

    /// Why the machine is off, if it is.
    pub fn powered_off(&self) -> Option<PowerOffReason> {
        self.power_off
    }

    /// The queue of what was said.
    pub fn outputs(&mut self) -> &mut Outputs {
        &mut self.outputs
    }

    /// Whether the caller has outputs to take.
    pub fn output_waits(&self) -> bool {
        self.outputs.is_waiting()
    }

    /// RAM that devices wrote since this was last asked.
    pub fn take_written(&mut self) -> &mut WrittenRanges {
        &mut self.written
    }

    /// The stop that [`Bus::stop_requested`] asked for has been made.
    pub fn resume(&mut self) {
        self.timer_changed = false;
    }

    /// The last access that the guest made.
    pub fn last_access(&self) -> Option<Access> {
        self.last_access
    }

    /// The access to memory that is neither RAM nor a device, if there was one.
    pub fn access_to_nothing(&self) -> Option<Access> {
        self.access_to_nothing
    }

    /// The network interface.
    pub fn nic(&self) -> Option<&VirtioNet> {
        self.nic.as_ref()
    }

    /// Console bytes dropped because the guest did not read.
    pub fn console_lost(&self) -> u64 {
        self.uart.lost()
    }

    /// The state of all devices and the clock; nothing while disk requests are outstanding.
    pub fn save(&self) -> Option<BusState> {
        Some(BusState {
            clock: self.clock.clone(),
            interrupts: self.interrupts.clone(),
            pit: self.pit.clone(),
            pm1: self.pm1.clone(),
            rtc: self.rtc.clone(),
            uart: self.uart.clone(),
            console: self.console.clone(),
            nic: self.nic.as_ref().map(VirtioNet::save),
            entropy: self.entropy.save(),
            disks: match &self.disks {
                Some(disks) => Some(disks.save()?),
                None => None,
            },
            power_off: self.power_off,
        })
    }

    /// Puts back what [`MachineBus::save`] returned at `position`, over the same memory. Time goes on
    /// as it does on `engine`.
    ///
    /// # Errors
    /// The state is damaged, or not one of this memory.
    pub fn restore(
        &mut self,
        state: &BusState,
        engine: EngineKind,
        position: Position,
    ) -> Result<(), DamagedState> {
        let sound = [
            ("interval timer", state.pit.is_sound()),
            ("real-time clock", state.rtc.is_sound()),
            ("serial port", state.uart.is_sound()),
            ("console", state.console.is_sound()),
        ];
        if let Some((device, _)) = sound.iter().find(|(_, sound)| !sound) {
            return Err(DamagedState(device));
        }
        state.interrupts.check()?;
        self.entropy.restore(&state.entropy, self.ram.accessor())?;
        match (&mut self.nic, &state.nic) {
            (Some(nic), Some(saved)) => nic.restore(saved, self.ram.accessor())?,
            (None, None) => {}
            _ => return Err(DamagedState("network interface: there or not")),
        }
        match (&mut self.disks, &state.disks) {
            (Some(disks), Some(saved)) => disks.restore(saved, self.ram.accessor())?,
            (None, None) => {}
            _ => return Err(DamagedState("disks: there or not")),
        }
        self.clock = state.clock.on(engine, position);
        self.interrupts = state.interrupts.clone();
        self.pit = state.pit.clone();
        self.pm1 = state.pm1.clone();
        self.rtc = state.rtc.clone();
        self.uart = state.uart.clone();
        self.console = state.console.clone();
        self.power_off = state.power_off;
        Ok(())
    }

    fn port_read_byte(&mut self, now: VirtualTime, port: u16) -> u8 {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.interrupts.pic().read(port),
            0x40..=0x43 | 0x61 => self.pit.read(port, now),
            0x70 | 0x71 => self.rtc.read(port, now),
            UART_PORT..=0x3ff => {
                let value = self.uart.read(port - UART_PORT);
                self.interrupts.set_line(Line::Uart, self.uart.line());
                value
            }
            PM1_EVENT_PORT..=0x605 => self.pm1.read(port - PM1_EVENT_PORT),
            PM_TIMER_PORT..=0x60b => {
                pm_timer::read(now).to_le_bytes()[usize::from(port - PM_TIMER_PORT)]
            }
            _ => 0xff,
        }
    }

    fn port_write_byte(&mut self, now: VirtualTime, port: u16, value: u8) {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.interrupts.pic().write(port, value),
            0x40..=0x43 | 0x61 => {
                let before = self.pit.deadline();
                self.pit.write(port, value, now);
                self.timer_changed |= self.pit.deadline() != before;
            }
            0x70 | 0x71 => self.rtc.write(port, value),
            UART_PORT..=0x3ff => {
                if let Some(byte) = self.uart.write(port - UART_PORT, value) {
                    let waited = self.console.deadline();
                    self.console.write(byte, now, &mut self.outputs);
                    self.timer_changed |= self.console.deadline() != waited;
                    self.interrupts
                        .set_line(Line::Uart, self.uart.line_while_transmitting());
                }
                self.interrupts.set_line(Line::Uart, self.uart.line());
            }
            PM1_EVENT_PORT..=0x605 => self.pm1.write(port - PM1_EVENT_PORT, value),
            _ => {}
        }
    }

    /// The device at a guest-physical address, with the offset into its registers.
    fn device_at(&self, address: u64, length: usize) -> Option<(Registers, u64)> {
        let within = |base: u64, bytes: u64| {
            let offset = address.checked_sub(base)?;
            (offset.checked_add(length as u64)? <= bytes).then_some(offset)
        };
        let found = [
            (Registers::LocalApic, LAPIC_BASE, LAPIC_BYTES),
            (Registers::Network, NETWORK_BASE, VIRTIO_MMIO_BYTES),
            (Registers::IoApic, IOAPIC_BASE, IOAPIC_BYTES),
            (Registers::Entropy, ENTROPY_BASE, VIRTIO_MMIO_BYTES),
        ]
        .into_iter()
        .find_map(|(device, base, bytes)| Some((device, within(base, bytes)?)));
        let disks = self.disks.as_ref().map_or(0, Disks::count);
        let found = found.or_else(|| {
            (0..disks).find_map(|disk| {
                let offset = within(disk_base(disk), VIRTIO_MMIO_BYTES)?;
                Some((Registers::Disk(disk), offset))
            })
        })?;
        (found.0 != Registers::Network || self.nic.is_some()).then_some(found)
    }

    fn set_apic_register(&mut self, now: VirtualTime, offset: u64, value: u32) {
        let before = self.interrupts.lapic().deadline();
        self.interrupts.write_lapic(offset, value, now);
        self.timer_changed |= self.interrupts.lapic().deadline() != before;
    }

    fn nothing(&mut self, access: Access) {
        self.access_to_nothing.get_or_insert(access);
    }
}

/// A device whose registers lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registers {
    LocalApic,
    IoApic,
    Network,
    Entropy,
    Disk(usize),
}

/// Reads a register of an APIC: 32 bits wide, and other accesses are undefined (SDM vol. 3A, 10.4.1):
/// here they read as zero.
fn read_aligned(offset: u64, data: &mut [u8], read: impl FnOnce(u64) -> u32) {
    data.fill(0);
    if let (Ok(data), 0) = (<&mut [u8; 4]>::try_from(data), offset % 16) {
        *data = read(offset).to_le_bytes();
    }
}

/// The value that is written to a register of an APIC, if the access is defined.
fn aligned_value(offset: u64, data: &[u8]) -> Option<u32> {
    let value = u32::from_le_bytes(data.try_into().ok()?);
    offset.is_multiple_of(16).then_some(value)
}

impl Bus for MachineBus {
    fn port_read(&mut self, at: u64, port: u16, data: &mut [u8]) {
        self.last_access = Some(Access::PortRead {
            port,
            size: data.len() as u8,
        });
        let now = self.clock.at(at);
        // The devices are eight bits wide: a wider access is one of each port in turn.
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.port_read_byte(now, port.wrapping_add(index as u16));
        }
    }

    fn port_write(&mut self, at: u64, port: u16, data: &[u8]) {
        self.last_access = Some(Access::PortWrite {
            port,
            size: data.len() as u8,
        });
        if let Some(reason) = power::decode(port, data) {
            self.power_off(reason);
            return;
        }
        let now = self.clock.at(at);
        for (index, byte) in data.iter().enumerate() {
            self.port_write_byte(now, port.wrapping_add(index as u16), *byte);
        }
    }

    fn mmio_read(&mut self, at: u64, address: u64, data: &mut [u8]) {
        let access = Access::MemoryRead {
            address,
            size: data.len() as u8,
        };
        self.last_access = Some(access);
        let found = self.device_at(address, data.len());
        match (found, &mut self.nic) {
            (Some((Registers::LocalApic, offset)), _) => {
                let now = self.clock.at(at);
                read_aligned(offset, data, |offset| {
                    self.interrupts.read_lapic(offset, now)
                });
            }
            (Some((Registers::IoApic, offset)), _) => {
                read_aligned(offset, data, |offset| self.interrupts.read_ioapic(offset));
            }
            (Some((Registers::Entropy, offset)), _) => self.entropy.read(offset, data),
            (Some((Registers::Disk(disk), offset)), _) => {
                if let Some(disks) = &mut self.disks {
                    disks.read(disk, offset, data);
                }
            }
            (Some((Registers::Network, offset)), Some(nic)) => nic.read(offset, data),
            _ => {
                data.fill(0xff);
                self.nothing(access);
            }
        }
    }

    fn mmio_write(&mut self, at: u64, address: u64, data: &[u8]) {
        let access = Access::MemoryWrite {
            address,
            size: data.len() as u8,
        };
        self.last_access = Some(access);
        let memory = self.ram.accessor();
        let found = self.device_at(address, data.len());
        match (found, &mut self.nic) {
            (Some((Registers::LocalApic, offset)), _) => {
                if let Some(value) = aligned_value(offset, data) {
                    self.set_apic_register(self.clock.at(at), offset, value);
                }
            }
            (Some((Registers::IoApic, offset)), _) => {
                if let Some(value) = aligned_value(offset, data) {
                    self.interrupts.write_ioapic(offset, value);
                }
            }
            (Some((Registers::Entropy, offset)), _) => {
                self.entropy.write(offset, data, memory);
                self.interrupts.set_line(Line::Entropy, self.entropy.line());
            }
            (Some((Registers::Disk(disk), offset)), _) => {
                if let Some(disks) = &mut self.disks {
                    let (outputs, written) = (&mut self.outputs, &mut self.written);
                    disks.write(disk, offset, data, memory, outputs, written);
                }
                self.drive_disk_lines();
            }
            (Some((Registers::Network, offset)), Some(nic)) => {
                nic.write(offset, data, memory, &mut self.outputs, &mut self.written);
                self.interrupts.set_line(Line::Network, nic.line());
            }
            _ => self.nothing(access),
        }
    }

    fn msr_read(&mut self, _at: u64, index: u32) -> Result<u64, MsrFault> {
        self.last_access = Some(Access::MsrRead { index });
        match index {
            MSR_TSC_DEADLINE => Ok(self.interrupts.lapic().tsc_deadline()),
            _ => Err(MsrFault),
        }
    }

    fn msr_write(&mut self, _at: u64, index: u32, value: u64) -> Result<(), MsrFault> {
        self.last_access = Some(Access::MsrWrite { index });
        match index {
            MSR_TSC_DEADLINE => {
                let before = self.interrupts.lapic().deadline();
                self.interrupts.set_tsc_deadline(value);
                self.timer_changed |= self.interrupts.lapic().deadline() != before;
                Ok(())
            }
            _ => Err(MsrFault),
        }
    }

    fn interrupt_line(&self) -> bool {
        self.interrupts.output()
    }

    fn acknowledge_interrupt(&mut self) -> u8 {
        self.interrupts.acknowledge()
    }

    fn stop_requested(&self) -> bool {
        self.outputs.is_waiting()
            || self.timer_changed
            || !self.written.is_empty()
            || self.access_to_nothing.is_some()
    }
}
