//! The I/O APIC (Intel 82093AA data sheet, order number 290566): 24 pins, each with an entry that says
//! which interrupt it becomes.
//!
//! Lines are driven as asserted or not: the polarity that an entry declares is kept and changes
//! nothing. Of the delivery modes, fixed and lowest priority are delivered; the others are not of
//! this machine.

use serde::{Deserialize, Serialize};

use super::lapic::LocalApic;

/// Guest-physical address of the registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Bytes that they take.
pub const IOAPIC_BYTES: u64 = 4096;
/// Pins.
pub const PINS: usize = 24;
/// Its APIC number after reset.
pub const IOAPIC_ID: u8 = 1;

/// Register select and window (3.1).
const SELECT: u64 = 0;
const WINDOW: u64 = 0x10;
/// Version 0x11, and the number of the last entry (3.2.2).
const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x11;

/// Fields of an entry (3.2.4).
const VECTOR: u64 = 0xff;
const DELIVERY: u64 = 7 << 8;
const LOWEST_PRIORITY: u64 = 1 << 8;
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger, mask, destination.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IoApic {
    id: u32,
    select: u8,
    /// Pins that are asserted.
    lines: u32,
    entries: [u64; PINS],
}

impl Default for IoApic {
    fn default() -> Self {
        Self {
            id: u32::from(IOAPIC_ID) << 24,
            select: 0,
            lines: 0,
            entries: [MASKED; PINS],
        }
    }
}

impl IoApic {
    /// Whether a saved state is one that the chip can be in.
    pub fn is_sound(&self) -> bool {
        let writable = WRITABLE | REMOTE_IRR;
        self.lines >> PINS == 0 && self.entries.iter().all(|entry| entry & !writable == 0)
    }

    /// Whether `pin` can get through to the CPU.
    pub fn is_unmasked(&self, pin: usize) -> bool {
        self.entries[pin] & MASKED == 0
    }

    /// Drives the line of `pin`.
    pub fn set_line(&mut self, pin: usize, high: bool, lapic: &mut LocalApic) {
        let bit = 1 << pin;
        let rises = high && self.lines & bit == 0;
        if high {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if rises || (high && self.entries[pin] & LEVEL != 0) {
            self.deliver(pin, lapic);
        }
    }

    /// Sends the pin's message, unless the entry is masked or still waits for the end of the last.
    /// An edge on a masked pin is lost (3.2.4, bit 16).
    fn deliver(&mut self, pin: usize, lapic: &mut LocalApic) {
        let entry = self.entries[pin];
        if entry & (MASKED | REMOTE_IRR) != 0 || entry & DELIVERY > LOWEST_PRIORITY {
            return;
        }
        let level = entry & LEVEL != 0;
        if lapic.is_addressed((entry >> 56) as u8, entry & LOGICAL != 0)
            && lapic.accept((entry & VECTOR) as u8, level)
            && level
        {
            self.entries[pin] |= REMOTE_IRR;
        }
    }

    /// The local APIC ended the service of `vector`: its pins may interrupt again.
    pub fn end_of_interrupt(&mut self, vector: u8, lapic: &mut LocalApic) {
        for pin in 0..PINS {
            if self.entries[pin] & REMOTE_IRR != 0
                && self.entries[pin] & VECTOR == u64::from(vector)
            {
                self.entries[pin] &= !REMOTE_IRR;
                self.deliver_level(pin, lapic);
            }
        }
    }

    fn deliver_level(&mut self, pin: usize, lapic: &mut LocalApic) {
        if self.entries[pin] & LEVEL != 0 && self.lines & 1 << pin != 0 {
            self.deliver(pin, lapic);
        }
    }

    /// Reads the 32-bit register at `offset`; what does not exist reads as zero.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => u32::from(self.select),
            WINDOW => match self.select {
                // The arbitration number follows the other.
                0 | 2 => self.id,
                1 => VERSION,
                _ => self
                    .entry_half()
                    .map_or(0, |(pin, shift)| (self.entries[pin] >> shift) as u32),
            },
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset`.
    pub fn write(&mut self, offset: u64, value: u32, lapic: &mut LocalApic) {
        match (offset, self.select) {
            (SELECT, _) => self.select = value as u8,
            (WINDOW, 0) => self.id = value & 0x0f00_0000,
            (WINDOW, _) => {
                if let Some((pin, shift)) = self.entry_half() {
                    self.set_entry(pin, shift, value, lapic);
                }
            }
            _ => {}
        }
    }

    /// The entry that is selected, and where the selected half of it begins.
    fn entry_half(&self) -> Option<(usize, u32)> {
        let index = usize::from(self.select.checked_sub(0x10)?);
        (index / 2 < PINS).then_some((index / 2, index as u32 % 2 * 32))
    }

    fn set_entry(&mut self, pin: usize, shift: u32, value: u32, lapic: &mut LocalApic) {
        let half = 0xffff_ffff << shift;
        let before = self.entries[pin];
        let mut entry = before & !half | u64::from(value) << shift & half;
        entry = entry & WRITABLE | before & REMOTE_IRR;
        if entry & LEVEL == 0 {
            // Meaningless for edges (3.2.4, bit 14); kernels clear it by passing through edge mode.
            entry &= !REMOTE_IRR;
        }
        self.entries[pin] = entry;
        self.deliver_level(pin, lapic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_entry(ioapic: &mut IoApic, lapic: &mut LocalApic, pin: u32, entry: u64) {
        for half in 0..2 {
            ioapic.write(SELECT, 0x10 + 2 * pin + half, lapic);
            ioapic.write(WINDOW, (entry >> (32 * half)) as u32, lapic);
        }
    }

    fn entry(ioapic: &mut IoApic, lapic: &mut LocalApic, pin: u32) -> u64 {
        ioapic.write(SELECT, 0x10 + 2 * pin, lapic);
        u64::from(ioapic.read(WINDOW))
    }

    fn end_of_interrupt(ioapic: &mut IoApic, lapic: &mut LocalApic) {
        if let super::super::lapic::Effect::EndOfInterrupt(vector) = lapic.write(0xb0, 0, 0) {
            ioapic.end_of_interrupt(vector, lapic);
        }
    }

    #[test]
    fn every_pin_is_masked_after_reset() {
        let (mut ioapic, mut lapic) = (IoApic::default(), LocalApic::default());
        for pin in 0..PINS {
            ioapic.set_line(pin, true, &mut lapic);
        }
        assert_eq!(lapic.pending(), None);
        assert_eq!(entry(&mut ioapic, &mut lapic, 23), MASKED);
        ioapic.write(SELECT, 1, &mut lapic);
        assert_eq!(ioapic.read(WINDOW), 0x0017_0011);
    }

    #[test]
    fn an_edge_interrupts_once_and_is_lost_on_a_masked_pin() {
        let (mut ioapic, mut lapic) = (IoApic::default(), LocalApic::default());
        ioapic.set_line(4, true, &mut lapic);
        set_entry(&mut ioapic, &mut lapic, 4, 0x34);
        assert_eq!(lapic.pending(), None, "the edge came while masked");
        ioapic.set_line(4, false, &mut lapic);
        ioapic.set_line(4, true, &mut lapic);
        assert_eq!(lapic.begin_service(), Some(0x34));
        ioapic.set_line(4, true, &mut lapic);
        end_of_interrupt(&mut ioapic, &mut lapic);
        assert_eq!(lapic.pending(), None);
    }

    #[test]
    fn a_level_interrupts_again_after_its_end_while_the_line_is_asserted() {
        let (mut ioapic, mut lapic) = (IoApic::default(), LocalApic::default());
        set_entry(&mut ioapic, &mut lapic, 16, 0x41 | LEVEL);
        ioapic.set_line(16, true, &mut lapic);
        assert_ne!(entry(&mut ioapic, &mut lapic, 16) & REMOTE_IRR, 0);
        assert_eq!(lapic.begin_service(), Some(0x41));
        ioapic.set_line(16, true, &mut lapic);
        assert_eq!(lapic.pending(), None, "remote IRR holds it back");
        end_of_interrupt(&mut ioapic, &mut lapic);
        assert_eq!(lapic.begin_service(), Some(0x41), "still asserted");
        ioapic.set_line(16, false, &mut lapic);
        end_of_interrupt(&mut ioapic, &mut lapic);
        assert_eq!(lapic.pending(), None);
        assert_eq!(entry(&mut ioapic, &mut lapic, 16) & REMOTE_IRR, 0);
    }

    #[test]
    fn a_level_asserted_while_masked_interrupts_when_it_is_unmasked() {
        let (mut ioapic, mut lapic) = (IoApic::default(), LocalApic::default());
        ioapic.set_line(16, true, &mut lapic);
        set_entry(&mut ioapic, &mut lapic, 16, 0x41 | LEVEL | MASKED);
        assert_eq!(lapic.pending(), None);
        set_entry(&mut ioapic, &mut lapic, 16, 0x41 | LEVEL);
        assert_eq!(lapic.pending(), Some(0x41));
    }

    #[test]
    fn passing_through_edge_mode_clears_remote_irr_and_reserved_bits_cannot_be_set() {
        let (mut ioapic, mut lapic) = (IoApic::default(), LocalApic::default());
        set_entry(&mut ioapic, &mut lapic, 16, 0x41 | LEVEL);
        ioapic.set_line(16, true, &mut lapic);
        set_entry(&mut ioapic, &mut lapic, 16, !LEVEL);
        let found = ioapic.entries[16];
        assert_eq!(found & REMOTE_IRR, 0);
        assert_eq!(found & !WRITABLE, 0);
        assert!(ioapic.is_sound());
    }

    #[test]
    fn a_message_for_another_cpu_goes_nowhere() {
        let (mut ioapic, mut lapic) = (IoApic::default(), LocalApic::default());
        set_entry(&mut ioapic, &mut lapic, 4, 0x34 | 7 << 56);
        ioapic.set_line(4, true, &mut lapic);
        assert_eq!(lapic.pending(), None);
        ioapic.set_line(4, false, &mut lapic);
        lapic.write(0xd0, 0x0100_0000, 0);
        set_entry(&mut ioapic, &mut lapic, 4, 0x34 | LOGICAL | 3 << 56);
        ioapic.set_line(4, true, &mut lapic);
        assert_eq!(lapic.pending(), Some(0x34), "a bit of a flat logical set");
    }
}
