//! The two 8259A interrupt controllers of a PC, cascaded on IRQ 2 (Intel 8259A data sheet, order
//! number 231468; PC/AT wiring), with the edge/level control registers (ELCR) of an ISA bridge.
//!
//! Ordering contract: a device changes its line by [`PicPair::set_line`]; the CPU looks at
//! [`PicPair::output`] and, when it takes the interrupt, calls [`PicPair::acknowledge`] exactly
//! once. Nothing else changes a pending interrupt.

use serde::{Deserialize, Serialize};

/// IRQ of the master to which the slave is wired.
const CASCADE: u8 = 2;
/// The interrupt that an 8259A answers with when the request has gone before the INTA cycle.
const SPURIOUS: u8 = 7;
/// IRQs that ELCR cannot make level-triggered: timer, keyboard, cascade; RTC, coprocessor.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// Which initialization word the data port takes next (data sheet, "Initialization Command Words").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Initialization {
    /// None: the data port is the mask register (OCW1).
    Done,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Pic {
    requested: u8,
    masked: u8,
    in_service: u8,
    /// Levels of the eight inputs as last driven.
    lines: u8,
    /// Level-triggered inputs.
    level: u8,
    /// ICW1's LTIM: all inputs level-triggered.
    all_level: bool,
    vector_base: u8,
    initialization: Initialization,
    /// ICW1: no ICW3 follows.
    single: bool,
    /// ICW1: an ICW4 follows.
    icw4_follows: bool,
    auto_end: bool,
    rotate_on_auto_end: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// The input of highest priority; priorities go round from there.
    highest: u8,
    /// A read of the command port returns ISR (else IRR).
    read_in_service: bool,
    /// The next read of either port is a poll.
    poll: bool,
}

impl Pic {
    fn new(level: u8) -> Self {
        Self {
            requested: 0,
            masked: 0xff,
            in_service: 0,
            lines: 0,
            level,
            all_level: false,
            vector_base: 0,
            initialization: Initialization::Done,
            single: false,
            icw4_follows: false,
            auto_end: false,
            rotate_on_auto_end: false,
            special_mask: false,
            special_fully_nested: false,
            highest: 0,
            read_in_service: false,
            poll: false,
        }
    }

    fn is_level(&self, irq: u8) -> bool {
        self.all_level || self.level & (1 << irq) != 0
    }

    fn set_line(&mut self, irq: u8, high: bool) {
        let bit = 1 << irq;
        let was_high = self.lines & bit != 0;
        if high {
            self.lines |= bit;
            if self.is_level(irq) || !was_high {
                self.requested |= bit;
            }
        } else {
            self.lines &= !bit;
            if self.is_level(irq) {
                self.requested &= !bit;
            }
        }
    }

    /// Distance from the highest priority of the first bit set, or 8.
    fn priority_of(&self, bits: u8) -> u8 {
        bits.rotate_right(u32::from(self.highest))
            .trailing_zeros()
            .min(8) as u8
    }

    /// The request that would be served now, if any.
    fn pending(&self) -> Option<u8> {
        let wanted = self.priority_of(self.requested & !self.masked);
        if wanted == 8 {
            return None;
        }
        let mut serving = self.in_service;
        if self.special_mask {
            serving &= !self.masked;
        }
        if self.special_fully_nested {
            // The cascade input may interrupt itself: the slave holds a request of higher priority.
            serving &= !(1 << CASCADE);
        }
        (wanted < self.priority_of(serving)).then_some((wanted + self.highest) & 7)
    }

    fn begin_service(&mut self, irq: u8) {
        if !self.is_level(irq) {
            self.requested &= !(1 << irq);
        }
        if !self.auto_end {
            self.in_service |= 1 << irq;
        } else if self.rotate_on_auto_end {
            self.highest = (irq + 1) & 7;
        }
    }

    /// INTA: the vector of the request served, or the spurious one.
    fn acknowledge(&mut self) -> (u8, Option<u8>) {
        match self.pending() {
            Some(irq) => {
                self.begin_service(irq);
                (self.vector_base | irq, Some(irq))
            }
            None => (self.vector_base | SPURIOUS, None),
        }
    }

    fn end_of_interrupt(&mut self, irq: u8, rotate: bool) {
        self.in_service &= !(1 << irq);
        if rotate {
            self.highest = (irq + 1) & 7;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialize(value);
        } else if value & 0x08 != 0 {
            // OCW3
            if value & 0x04 != 0 {
                self.poll = true;
            }
            if value & 0x02 != 0 {
                self.read_in_service = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.operate(value >> 5, value & 7);
        }
    }

    /// ICW1. Line levels are the devices', and stay; edge-triggered inputs need a new edge.
    fn initialize(&mut self, icw1: u8) {
        *self = Self {
            lines: self.lines,
            level: self.level,
            all_level: icw1 & 0x08 != 0,
            initialization: Initialization::Icw2,
            single: icw1 & 0x02 != 0,
            icw4_follows: icw1 & 0x01 != 0,
            masked: 0,
            ..Self::new(self.level)
        };
        for irq in 0..8 {
            if self.is_level(irq) {
                self.requested |= self.lines & (1 << irq);
            }
        }
    }

    /// OCW2: end of interrupt and rotation.
    fn operate(&mut self, command: u8, irq: u8) {
        let first_in_service = || {
            let first = self.priority_of(self.in_service);
            (first < 8).then_some((first + self.highest) & 7)
        };
        match command {
            0 => self.rotate_on_auto_end = false,
            4 => self.rotate_on_auto_end = true,
            1 | 5 => {
                if let Some(served) = first_in_service() {
                    self.end_of_interrupt(served, command == 5);
                }
            }
            3 | 7 => self.end_of_interrupt(irq, command == 7),
            6 => self.highest = (irq + 1) & 7,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.initialization {
            Initialization::Done => self.masked = value,
            Initialization::Icw2 => {
                self.vector_base = value & 0xf8;
                self.initialization = match (self.single, self.icw4_follows) {
                    (false, _) => Initialization::Icw3,
                    (true, true) => Initialization::Icw4,
                    (true, false) => Initialization::Done,
                };
            }
            // How the two are wired is fixed.
            Initialization::Icw3 => {
                self.initialization = if self.icw4_follows {
                    Initialization::Icw4
                } else {
                    Initialization::Done
                };
            }
            Initialization::Icw4 => {
                self.auto_end = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.initialization = Initialization::Done;
            }
        }
    }

    fn read(&mut self, data_port: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.acknowledge() {
                (_, Some(irq)) => 0x80 | irq,
                (_, None) => 0,
            };
        }
        match (data_port, self.read_in_service) {
            (true, _) => self.masked,
            (false, true) => self.in_service,
            (false, false) => self.requested,
        }
    }
}

/// The interrupt controller that the CPU sees.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PicPair {
    master: Pic,
    slave: Pic,
}

impl PicPair {
    /// After reset: everything masked. `level_irqs` has a bit for each of the 16 IRQs that firmware
    /// would have declared level-triggered in ELCR.
    pub fn new(level_irqs: u16) -> Self {
        let [master, slave] = level_irqs.to_le_bytes();
        Self {
            master: Pic::new(master & ELCR_WRITABLE[0]),
            slave: Pic::new(slave & ELCR_WRITABLE[1]),
        }
    }

    /// Whether a saved state is one that the chips can be in.
    pub fn is_sound(&self) -> bool {
        [&self.master, &self.slave]
            .iter()
            .all(|pic| pic.highest < 8 && pic.vector_base & 7 == 0)
    }

    /// Drives the line of `irq` (0 to 15; the cascade, 2, is not a device's).
    pub fn set_line(&mut self, irq: u8, high: bool) {
        debug_assert!(irq < 16 && irq != CASCADE);
        if irq < 8 {
            self.master.set_line(irq, high);
        } else {
            self.slave.set_line(irq - 8, high);
            self.cascade();
        }
    }

    /// A line goes up and down again: an edge.
    pub fn pulse(&mut self, irq: u8) {
        self.set_line(irq, true);
        self.set_line(irq, false);
    }

    /// Whether `irq` can get through to the CPU once earlier ones are served.
    pub fn is_unmasked(&self, irq: u8) -> bool {
        if irq < 8 {
            self.master.masked & (1 << irq) == 0
        } else {
            (u16::from(self.master.masked) & (1 << CASCADE)) == 0
                && self.slave.masked & (1 << (irq - 8)) == 0
        }
    }

    /// The INTR pin.
    pub fn output(&self) -> bool {
        self.master.pending().is_some()
    }

    /// The INTA cycle: returns the vector.
    pub fn acknowledge(&mut self) -> u8 {
        let (vector, irq) = self.master.acknowledge();
        if irq != Some(CASCADE) {
            return vector;
        }
        let (vector, _) = self.slave.acknowledge();
        self.cascade();
        vector
    }

    /// The slave's INTR pin drives the master's IRQ 2. The slave drops it at INTA and raises it
    /// again when more is pending: that is the edge the master needs.
    fn cascade(&mut self) {
        self.master.set_line(CASCADE, false);
        self.master.requested &= !(1 << CASCADE);
        if self.slave.pending().is_some() {
            self.master.set_line(CASCADE, true);
        }
    }

    /// Reads one of the ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            0x20 | 0x21 => self.master.read(port & 1 != 0),
            0xa0 | 0xa1 => {
                let value = self.slave.read(port & 1 != 0);
                self.cascade();
                value
            }
            0x4d0 => self.master.level,
            0x4d1 => self.slave.level,
            _ => 0xff,
        }
    }

    /// Writes one of the ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.master.write_command(value),
            0x21 => self.master.write_data(value),
            0xa0 => self.slave.write_command(value),
            0xa1 => self.slave.write_data(value),
            0x4d0 => self.master.level = value & ELCR_WRITABLE[0],
            0x4d1 => self.slave.level = value & ELCR_WRITABLE[1],
            _ => {}
        }
        self.cascade();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux and every PC BIOS does it: vectors at `master` and `slave`.
    fn initialized(master: u8, slave: u8, icw4: u8) -> PicPair {
        let mut pic = PicPair::new(1 << 5);
        for (port, values) in [
            (0x20, [0x11, master, 4, icw4]),
            (0xa0, [0x11, slave, 2, icw4]),
        ] {
            pic.write(port, values[0]);
            for value in &values[1..] {
                pic.write(port + 1, *value);
            }
        }
        pic
    }

    #[test]
    fn all_requests_are_masked_after_reset() {
        let mut pic = PicPair::new(0);
        for irq in [0, 1, 3, 7, 8, 15] {
            pic.pulse(irq);
        }
        assert!(!pic.output());
    }

    #[test]
    fn the_lower_irq_is_served_first_and_the_other_after_end_of_interrupt() {
        let mut pic = initialized(0x20, 0x28, 1);
        pic.pulse(4);
        pic.pulse(0);
        assert_eq!(pic.acknowledge(), 0x20);
        assert!(!pic.output(), "IRQ 4 waits while IRQ 0 is in service");
        pic.write(0x20, 0x20);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x24);
    }

    #[test]
    fn a_higher_irq_interrupts_one_in_service() {
        let mut pic = initialized(0x20, 0x28, 1);
        pic.pulse(4);
        assert_eq!(pic.acknowledge(), 0x24);
        pic.pulse(1);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x21);
    }

    #[test]
    fn slave_requests_pass_through_the_cascade_one_after_the_other() {
        let mut pic = initialized(0x30, 0x70, 1);
        pic.pulse(12);
        pic.pulse(8);
        assert_eq!(pic.acknowledge(), 0x70);
        assert!(!pic.output());
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x20);
        assert!(
            pic.output(),
            "the second request of the slave makes a new edge"
        );
        assert_eq!(pic.acknowledge(), 0x74);
    }

    #[test]
    fn a_level_line_asks_again_until_it_falls() {
        let mut pic = initialized(0x20, 0x28, 1);
        pic.set_line(5, true);
        assert_eq!(pic.acknowledge(), 0x25);
        pic.write(0x20, 0x20);
        assert!(pic.output(), "still high after end of interrupt");
        pic.set_line(5, false);
        assert!(!pic.output());
    }

    #[test]
    fn an_edge_line_asks_once() {
        let mut pic = initialized(0x20, 0x28, 1);
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x24);
        pic.write(0x20, 0x20);
        assert!(!pic.output());
    }

    #[test]
    fn automatic_end_of_interrupt_leaves_nothing_in_service() {
        let mut pic = initialized(0x20, 0x28, 3);
        pic.pulse(0);
        assert_eq!(pic.acknowledge(), 0x20);
        pic.pulse(0);
        assert!(pic.output());
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0);
    }

    #[test]
    fn a_request_that_vanished_is_answered_as_spurious() {
        let mut pic = initialized(0x20, 0x28, 1);
        pic.set_line(5, true);
        pic.set_line(5, false);
        assert!(!pic.output());
        assert_eq!(pic.acknowledge(), 0x27);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0, "a spurious interrupt is not in service");
    }

    #[test]
    fn masks_hold_requests_back_and_do_not_lose_them() {
        let mut pic = initialized(0x20, 0x28, 1);
        pic.write(0x21, 0xff);
        pic.pulse(3);
        assert!(!pic.output());
        assert!(!pic.is_unmasked(3));
        pic.write(0x21, 0xf7);
        assert_eq!(pic.acknowledge(), 0x23);
        assert_eq!(pic.read(0x21), 0xf7);
    }

    #[test]
    fn polling_serves_without_an_inta_cycle() {
        let mut pic = initialized(0x20, 0x28, 1);
        pic.pulse(6);
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), 0x86);
        assert!(!pic.output());
    }

    #[test]
    fn rotation_gives_the_served_irq_the_lowest_priority() {
        let mut pic = initialized(0x20, 0x28, 1);
        pic.pulse(0);
        assert_eq!(pic.acknowledge(), 0x20);
        pic.write(0x20, 0xa0);
        pic.pulse(0);
        pic.pulse(7);
        assert_eq!(pic.acknowledge(), 0x27);
    }

    #[test]
    fn elcr_leaves_system_irqs_edge_triggered() {
        let mut pic = PicPair::new(0xffff);
        assert_eq!((pic.read(0x4d0), pic.read(0x4d1)), (0xf8, 0xde));
        pic.write(0x4d0, 0xff);
        assert_eq!(pic.read(0x4d0), 0xf8);
    }
}
