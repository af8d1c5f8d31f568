//! The ACPI PM1 registers (ACPI 6.5, 4.8.3): events, of which none happen, and control.
//!
//! The machine is in ACPI mode from the start (no SMI command port), so SCI_EN reads as set. The
//! sleep bits of the control register end the machine: see [`super::power`].

use serde::{Deserialize, Serialize};

/// First port of the event registers: status, then enable, 16 bits each. Control follows, then the
/// timer.
pub const PM1_EVENT_PORT: u16 = 0x600;
/// SCI_EN, in the low byte of the control register.
const SCI_ENABLED: u8 = 1;

/// The event registers. Status bits never rise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pm1 {
    enabled: [u8; 2],
}

impl Pm1 {
    /// Reads a byte at `offset` from [`PM1_EVENT_PORT`].
    pub fn read(&self, offset: u16) -> u8 {
        match offset {
            2 | 3 => self.enabled[usize::from(offset - 2)],
            4 => SCI_ENABLED,
            _ => 0,
        }
    }

    /// Writes a byte. A write to the status register clears what is clear already.
    pub fn write(&mut self, offset: u16, value: u8) {
        if let 2 | 3 = offset {
            self.enabled[usize::from(offset - 2)] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_event_happens_and_the_machine_is_in_acpi_mode() {
        let mut pm1 = Pm1::default();
        for offset in 0..6 {
            pm1.write(offset, 0xff);
        }
        let bytes: Vec<u8> = (0..6).map(|offset| pm1.read(offset)).collect();
        assert_eq!(bytes, [0, 0, 0xff, 0xff, 1, 0]);
    }
}
