//! A 16550A serial port (National Semiconductor PC16550D data sheet) that transmits in no time.
//!
//! Why not `vm-superio`'s: its interrupt is a pulse per event, and every cause is forgotten when
//! IIR is read, so a guest that reads IIR before it has served each cause loses an interrupt. Here
//! the interrupt is the level that the data sheet's table of causes defines.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Received bytes that wait for the guest; more are dropped and counted.
pub const RECEIVE_LIMIT: usize = 4096;

const IER_RECEIVED: u8 = 0x01;
const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFOS: u8 = 0xc0;
const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVER: u8 = 0x02;
const LCR_DIVISOR_LATCH: u8 = 0x80;
const LSR_DATA_READY: u8 = 0x01;
/// Holding register and shift register empty.
const LSR_TRANSMITTER_IDLE: u8 = 0x60;
const MCR_LOOPBACK: u8 = 0x10;
/// Carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// The serial port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Uart {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    fifos: bool,
    /// The transmitter-empty cause; reading IIR while it is the reported one clears it.
    transmitter_empty: bool,
    received: VecDeque<u8>,
    /// Bytes dropped because the guest did not read.
    lost: u64,
}

impl Uart {
    /// Whether a saved state is one that the port can be in.
    pub fn is_sound(&self) -> bool {
        self.received.len() <= RECEIVE_LIMIT
    }

    /// Reads register `offset` (0 to 7).
    pub fn read(&mut self, offset: u16) -> u8 {
        let divisor_latch = self.line_control & LCR_DIVISOR_LATCH != 0;
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            0 if divisor_latch => divisor_low,
            1 if divisor_latch => divisor_high,
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.interrupt_enable,
            2 => {
                let cause = self.cause();
                if cause == IIR_TRANSMITTER_EMPTY {
                    self.transmitter_empty = false;
                }
                cause | if self.fifos { IIR_FIFOS } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 if self.received.is_empty() => LSR_TRANSMITTER_IDLE,
            5 => LSR_TRANSMITTER_IDLE | LSR_DATA_READY,
            6 if self.modem_control & MCR_LOOPBACK != 0 => {
                // DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
                let out = self.modem_control;
                (out & 1) << 5 | (out & 2) << 3 | (out & 0x0c) << 4
            }
            6 => MSR_CONNECTED,
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes register `offset` (0 to 7). Returns the byte that left the port, if one did.
    pub fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        let divisor_latch = self.line_control & LCR_DIVISOR_LATCH != 0;
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            0 if divisor_latch => self.divisor = u16::from_le_bytes([value, divisor_high]),
            1 if divisor_latch => self.divisor = u16::from_le_bytes([divisor_low, value]),
            0 => {
                self.transmitter_empty = true;
                if self.modem_control & MCR_LOOPBACK == 0 {
                    return Some(value);
                }
                self.receive_byte(value);
            }
            1 => {
                let newly = value & !self.interrupt_enable;
                self.interrupt_enable = value & 0x0f;
                if newly & IER_TRANSMITTER_EMPTY != 0 {
                    self.transmitter_empty = true;
                }
            }
            2 => {
                self.fifos = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVER != 0 {
                    self.received.clear();
                }
            }
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
        None
    }

    /// Bytes from the world. They wait until the guest reads, up to [`RECEIVE_LIMIT`].
    pub fn receive(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.receive_byte(*byte);
        }
    }

    fn receive_byte(&mut self, byte: u8) {
        if self.received.len() < RECEIVE_LIMIT {
            self.received.push_back(byte);
        } else {
            self.lost = self.lost.wrapping_add(1);
        }
    }

    /// Bytes dropped so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn cause(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVED != 0 && !self.received.is_empty() {
            IIR_RECEIVED
        } else if self.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 && self.transmitter_empty {
            IIR_TRANSMITTER_EMPTY
        } else {
            IIR_NONE
        }
    }

    /// The interrupt line.
    pub fn line(&self) -> bool {
        self.cause() != IIR_NONE
    }

    /// The line while a byte is being transmitted, before the transmitter is empty again: between
    /// the two an edge-triggered controller sees the edge that announces it.
    pub fn line_while_transmitting(&self) -> bool {
        self.cause() == IIR_RECEIVED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_16550a_is_recognised_by_its_fifo_bits() {
        let mut uart = Uart::default();
        assert_eq!(uart.read(2), 0x01);
        uart.write(2, 0x01);
        assert_eq!(uart.read(2), 0xc1);
    }

    #[test]
    fn transmitted_bytes_leave_at_once_and_the_transmitter_is_idle() {
        let mut uart = Uart::default();
        assert_eq!(uart.write(0, b'x'), Some(b'x'));
        assert_eq!(uart.read(5), 0x60);
    }

    #[test]
    fn transmitter_empty_interrupts_until_iir_is_read_and_again_after_a_byte() {
        let mut uart = Uart::default();
        uart.write(1, IER_TRANSMITTER_EMPTY);
        assert!(uart.line());
        assert_eq!(uart.read(2), IIR_TRANSMITTER_EMPTY);
        assert!(!uart.line());
        uart.write(0, b'x');
        assert!(uart.line());
        assert!(!uart.line_while_transmitting());
    }

    #[test]
    fn received_bytes_interrupt_until_all_are_read_and_hide_the_other_cause() {
        let mut uart = Uart::default();
        uart.write(1, IER_RECEIVED | IER_TRANSMITTER_EMPTY);
        uart.receive(b"ab");
        assert_eq!(uart.read(2), IIR_RECEIVED);
        assert_eq!(
            uart.read(2),
            IIR_RECEIVED,
            "reading IIR does not clear this cause"
        );
        assert_eq!((uart.read(0), uart.read(5) & 1), (b'a', 1));
        assert_eq!((uart.read(0), uart.read(5) & 1), (b'b', 0));
        assert_eq!(uart.read(2), IIR_TRANSMITTER_EMPTY);
    }

    #[test]
    fn the_divisor_latch_hides_data_and_interrupt_enable() {
        let mut uart = Uart::default();
        uart.write(3, 0x83);
        uart.write(0, 0x01);
        uart.write(1, 0x02);
        assert_eq!((uart.read(0), uart.read(1)), (1, 2));
        uart.write(3, 0x03);
        assert_eq!(uart.read(1), 0);
    }

    #[test]
    fn loopback_returns_bytes_and_modem_lines() {
        let mut uart = Uart::default();
        // What Linux's autoconfig writes, and the answer it wants.
        uart.write(4, 0x1a);
        assert_eq!(uart.read(6) & 0xf0, 0x90);
        assert_eq!(uart.write(0, b'l'), None);
        assert_eq!(uart.read(0), b'l');
    }

    #[test]
    fn bytes_beyond_the_limit_are_dropped_and_counted() {
        let mut uart = Uart::default();
        uart.receive(&vec![1; RECEIVE_LIMIT + 5]);
        assert_eq!(uart.lost(), 5);
        assert_eq!(uart.received.len(), RECEIVE_LIMIT);
    }
}
