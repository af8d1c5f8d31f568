//! Joins the console's bytes into outputs, so that a line costs one log entry and not eighty. What
//! ends an output is a function of bytes and virtual time alone, so both replicas cut at the same
//! places.

use serde::{Deserialize, Serialize};

use super::outputs::Outputs;
use crate::ft::vm::{OutputKind, VirtualTime};

/// An output has at most this many bytes.
pub const CONSOLE_OUTPUT_BYTES: usize = 256;
/// Bytes that no newline follows go out after this long, in nanoseconds of virtual time: a prompt.
pub const CONSOLE_OUTPUT_DELAY: VirtualTime = 5_000_000;

/// Bytes written and not yet said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Console {
    bytes: Vec<u8>,
    /// When the first of them was written.
    began: VirtualTime,
}

impl Console {
    /// The guest wrote a byte at time `now`.
    pub fn write(&mut self, byte: u8, now: VirtualTime, outputs: &mut Outputs) {
        if self.bytes.is_empty() {
            self.began = now;
        }
        self.bytes.push(byte);
        if byte == b'\n' || self.bytes.len() == CONSOLE_OUTPUT_BYTES {
            self.flush(outputs);
        }
    }

    /// Whether a saved state is one that can come about.
    pub fn is_sound(&self) -> bool {
        self.bytes.len() < CONSOLE_OUTPUT_BYTES
    }

    /// When waiting bytes go out.
    pub fn deadline(&self) -> Option<VirtualTime> {
        (!self.bytes.is_empty()).then(|| self.began.saturating_add(CONSOLE_OUTPUT_DELAY))
    }

    /// Says what has waited long enough.
    pub fn flush_due(&mut self, now: VirtualTime, outputs: &mut Outputs) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.flush(outputs);
        }
    }

    /// Says what waits.
    pub fn flush(&mut self, outputs: &mut Outputs) {
        if !self.bytes.is_empty() {
            let mut bytes = outputs.buffer();
            bytes.extend_from_slice(&self.bytes);
            self.bytes.clear();
            self.began = 0;
            outputs.push(OutputKind::Console, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(outputs: &mut Outputs) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| outputs.pop().map(|output| output.bytes)).collect()
    }

    #[test]
    fn an_output_ends_at_a_newline_or_when_it_is_full() {
        let (mut console, mut outputs) = (Console::default(), Outputs::default());
        for byte in b"one\ntwo" {
            console.write(*byte, 0, &mut outputs);
        }
        assert_eq!(said(&mut outputs), [b"one\n"]);
        for _ in 0..CONSOLE_OUTPUT_BYTES {
            console.write(b'x', 0, &mut outputs);
        }
        assert_eq!(said(&mut outputs)[0].len(), CONSOLE_OUTPUT_BYTES);
    }

    #[test]
    fn a_prompt_goes_out_after_the_delay_from_its_first_byte() {
        let (mut console, mut outputs) = (Console::default(), Outputs::default());
        console.write(b'#', 100, &mut outputs);
        console.write(b' ', 4000, &mut outputs);
        assert_eq!(console.deadline(), Some(100 + CONSOLE_OUTPUT_DELAY));
        console.flush_due(99 + CONSOLE_OUTPUT_DELAY, &mut outputs);
        assert!(!outputs.is_waiting());
        console.flush_due(100 + CONSOLE_OUTPUT_DELAY, &mut outputs);
        assert_eq!(said(&mut outputs), [b"# "]);
        assert_eq!(console.deadline(), None);
    }
}
