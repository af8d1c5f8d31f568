//! How a guest ends itself, and why a machine stopped for good.

use serde::{Deserialize, Serialize};

/// PM1a control register (ACPI 6.5, 4.8.3.2.1), 16 bits wide.
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// Keyboard controller's command port.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// Reset control register of PIIX and ICH bridges.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;

/// SLP_EN in PM1a control.
const SLEEP_ENABLE: u16 = 1 << 13;
/// Keyboard controller command: pulse the CPU's reset pin.
const PULSE_RESET: u8 = 0xfe;
/// Bit of the reset control register whose rise resets the CPU.
const RESET_CPU: u8 = 1 << 2;

/// Why the machine is off. A machine that would reset is off as well: starting over is the
/// operator's decision, as a new VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum PowerOffReason {
    /// The guest set SLP_EN in the PM1 control register.
    AcpiSleep = 1,
    /// The guest had the keyboard controller reset the CPU.
    KeyboardReset = 2,
    /// The guest wrote the reset control register.
    ResetControl = 3,
    /// The guest halted with interrupts disabled: nothing can wake it.
    HaltedForever = 4,
    /// The operator pressed the power button.
    PowerButton = 5,
}

impl std::fmt::Display for PowerOffReason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::AcpiSleep => "the guest powered off",
            Self::KeyboardReset => "the guest asked for a reset (keyboard controller)",
            Self::ResetControl => "the guest asked for a reset (port 0xcf9)",
            Self::HaltedForever => "the guest halted with interrupts disabled",
            Self::PowerButton => "the operator powered the machine off",
        })
    }
}

/// What a write to `port` asks for, if it ends the machine.
pub fn decode(port: u16, data: &[u8]) -> Option<PowerOffReason> {
    match (port, data) {
        (PM1_CONTROL_PORT, [low, high, ..])
            if u16::from_le_bytes([*low, *high]) & SLEEP_ENABLE != 0 =>
        {
            Some(PowerOffReason::AcpiSleep)
        }
        (KEYBOARD_COMMAND_PORT, [PULSE_RESET, ..]) => Some(PowerOffReason::KeyboardReset),
        (RESET_CONTROL_PORT, [value, ..]) if value & RESET_CPU != 0 => {
            Some(PowerOffReason::ResetControl)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_writes_end_the_machine() {
        assert_eq!(
            decode(0x604, &[0x00, 0x20]),
            Some(PowerOffReason::AcpiSleep)
        );
        assert_eq!(decode(0x604, &[0x00, 0x1c]), None);
        assert_eq!(decode(0x604, &[0x20]), None, "a byte does not reach SLP_EN");
        assert_eq!(decode(0x64, &[0xfe]), Some(PowerOffReason::KeyboardReset));
        assert_eq!(decode(0x64, &[0xd1]), None);
        assert_eq!(decode(0xcf9, &[0x06]), Some(PowerOffReason::ResetControl));
        assert_eq!(decode(0xcf9, &[0x02]), None);
    }
}
