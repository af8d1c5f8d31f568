//! The interrupt controllers of a PC, wired together: devices to the 8259A pair and to the I/O APIC,
//! the pair's output to pin LINT0 of the local APIC. A guest uses the one or the other; which it is,
//! its masks say.

use serde::{Deserialize, Serialize};

use super::DamagedState;
use super::ioapic::IoApic;
use super::lapic::{Effect, LocalApic};
use super::pic::PicPair;
use crate::ft::vm::VirtualTime;
use crate::machine::config::DISKS_MAXIMUM;

/// A device's interrupt line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Interval timer: IRQ 0, I/O APIC pin 2 as on every PC.
    Pit,
    /// Serial console: IRQ 4.
    Uart,
    /// Network interface.
    Network,
    /// Source of entropy; known by ACPI only, so not wired to the 8259A.
    Entropy,
    /// A disk, by its number.
    Disk(u8),
}

/// IRQ of the network interface at the 8259A pair.
pub const NETWORK_IRQ: u8 = 5;
/// IRQs of the disks at the 8259A pair, in their order.
pub const DISK_IRQS: [u8; DISKS_MAXIMUM] = [10, 11, 12, 14];
/// I/O APIC pin of the first disk.
const DISK_PIN: usize = 18;

/// Inputs of the 8259A pair that are lines and not edges.
const LEVEL_IRQS: u16 = {
    let mut irqs = 1 << NETWORK_IRQ;
    let mut disk = 0;
    while disk < DISK_IRQS.len() {
        irqs |= 1 << DISK_IRQS[disk];
        disk += 1;
    }
    irqs
};

impl Line {
    /// The pin of the I/O APIC, which is also the ACPI "global system interrupt".
    pub const fn pin(self) -> usize {
        match self {
            Self::Pit => 2,
            Self::Uart => 4,
            Self::Network => 16,
            Self::Entropy => 17,
            Self::Disk(number) => DISK_PIN + number as usize,
        }
    }

    /// The input of the 8259A pair, if it has one.
    pub const fn irq(self) -> Option<u8> {
        match self {
            Self::Pit => Some(0),
            Self::Uart => Some(4),
            Self::Network => Some(NETWORK_IRQ),
            Self::Entropy => None,
            Self::Disk(number) => Some(DISK_IRQS[number as usize]),
        }
    }
}

/// All controllers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Interrupts {
    pic: PicPair,
    ioapic: IoApic,
    lapic: LocalApic,
}

impl Default for Interrupts {
    fn default() -> Self {
        Self {
            pic: PicPair::new(LEVEL_IRQS),
            ioapic: IoApic::default(),
            lapic: LocalApic::default(),
        }
    }
}

impl Interrupts {
    /// Checks a saved state.
    ///
    /// # Errors
    /// It is none that the controllers can be in.
    pub fn check(&self) -> Result<(), DamagedState> {
        if !self.pic.is_sound() {
            return Err(DamagedState("interrupt controllers"));
        }
        if !self.ioapic.is_sound() {
            return Err(DamagedState("I/O APIC"));
        }
        if !self.lapic.is_sound() {
            return Err(DamagedState("local APIC"));
        }
        Ok(())
    }

    /// Drives a device's line.
    pub fn set_line(&mut self, line: Line, high: bool) {
        if let Some(irq) = line.irq() {
            self.pic.set_line(irq, high);
        }
        self.ioapic.set_line(line.pin(), high, &mut self.lapic);
    }

    /// A line goes up and down again: an edge.
    pub fn pulse(&mut self, line: Line) {
        self.set_line(line, true);
        self.set_line(line, false);
    }

    /// Whether an interrupt of `line` can reach the CPU once earlier ones are served.
    pub fn is_unmasked(&self, line: Line) -> bool {
        self.ioapic.is_unmasked(line.pin())
            || line.irq().is_some_and(|irq| self.pic.is_unmasked(irq))
                && self.lapic.passes_ext_int()
    }

    /// Whether the CPU is asked to take an interrupt.
    pub fn output(&self) -> bool {
        self.lapic.pending().is_some() || (self.lapic.passes_ext_int() && self.pic.output())
    }

    /// The CPU takes it: returns the vector.
    pub fn acknowledge(&mut self) -> u8 {
        match self.lapic.begin_service() {
            Some(vector) => vector,
            None => self.pic.acknowledge(),
        }
    }

    /// The ports of the 8259A pair.
    pub fn pic(&mut self) -> &mut PicPair {
        &mut self.pic
    }

    /// The local APIC, to be looked at.
    pub fn lapic(&self) -> &LocalApic {
        &self.lapic
    }

    /// Serves the local APIC's timer.
    pub fn serve_timer(&mut self, now: VirtualTime) {
        self.lapic.serve_timer(now);
    }

    /// Writes IA32_TSC_DEADLINE.
    pub fn set_tsc_deadline(&mut self, value: u64) {
        self.lapic.set_tsc_deadline(value);
    }

    /// Reads a register of the local APIC.
    pub fn read_lapic(&self, offset: u64, now: VirtualTime) -> u32 {
        self.lapic.read(offset, now)
    }

    /// Writes a register of the local APIC.
    pub fn write_lapic(&mut self, offset: u64, value: u32, now: VirtualTime) {
        if let Effect::EndOfInterrupt(vector) = self.lapic.write(offset, value, now) {
            self.ioapic.end_of_interrupt(vector, &mut self.lapic);
        }
    }

    /// Reads a register of the I/O APIC.
    pub fn read_ioapic(&self, offset: u64) -> u32 {
        self.ioapic.read(offset)
    }

    /// Writes a register of the I/O APIC.
    pub fn write_ioapic(&mut self, offset: u64, value: u32) {
        self.ioapic.write(offset, value, &mut self.lapic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a PC's BIOS does it, vectors at 0x20 and 0x28, all unmasked.
    fn with_pic() -> Interrupts {
        let mut interrupts = Interrupts::default();
        for (port, values) in [(0x20, [0x11, 0x20, 4, 1]), (0xa0, [0x11, 0x28, 2, 1])] {
            interrupts.pic().write(port, values[0]);
            for value in &values[1..] {
                interrupts.pic().write(port + 1, *value);
            }
        }
        interrupts
    }

    #[test]
    fn a_guest_that_knows_the_8259a_alone_is_interrupted_through_the_virtual_wire() {
        let mut interrupts = with_pic();
        interrupts.pulse(Line::Pit);
        assert!(interrupts.output());
        assert_eq!(interrupts.acknowledge(), 0x20);
        assert!(!interrupts.output());
        assert!(interrupts.is_unmasked(Line::Network));
    }

    #[test]
    fn with_lint0_masked_the_8259a_is_not_heard() {
        let mut interrupts = with_pic();
        interrupts.write_lapic(0x350, 1 << 16, 0);
        interrupts.pulse(Line::Pit);
        assert!(!interrupts.output());
        assert!(!interrupts.is_unmasked(Line::Pit));
    }

    #[test]
    fn a_level_line_goes_through_the_io_apic_until_it_falls() {
        let mut interrupts = Interrupts::default();
        interrupts.write_ioapic(0, 0x10 + 2 * Line::Network.pin() as u32);
        interrupts.write_ioapic(0x10, 1 << 15 | 0x41);
        interrupts.set_line(Line::Network, true);
        assert_eq!(interrupts.acknowledge(), 0x41);
        interrupts.write_lapic(0xb0, 0, 0);
        assert_eq!(interrupts.acknowledge(), 0x41, "still high after its end");
        interrupts.set_line(Line::Network, false);
        interrupts.write_lapic(0xb0, 0, 0);
        assert!(!interrupts.output());
    }
}
