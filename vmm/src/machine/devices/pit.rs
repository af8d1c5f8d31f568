//! The 8254 programmable interval timer (Intel 8254 data sheet, order number 231164) and the system
//! control port 0x61 that holds the gate and shows the output of its channel 2.
//!
//! Channel 0 raises IRQ 0. Channel 1 (memory refresh, once) and channel 2 (speaker) only count: that
//! is what kernels calibrate their clocks against. Counts are binary; a BCD request is counted in
//! binary, as no known guest asks for one.

use serde::{Deserialize, Serialize};

use crate::ft::vm::VirtualTime;
use crate::machine::clock::{ticks, time_of_tick};

/// Input clock in hertz: a third of the NTSC colour subcarrier's four-fold, as in every PC.
pub const PIT_HERTZ: u64 = 1_193_182;

/// Which bytes of the count the data port moves (control word bits 4 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    /// Low byte first, then high byte.
    Both,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Channel {
    /// 0 to 5 (data sheet, "Mode Definitions").
    mode: u8,
    access: Access,
    /// The low byte of a count of two bytes whose high byte is still to come.
    low_byte: Option<u8>,
    /// The next read of an unlatched count of two bytes is its high byte.
    high_byte_next: bool,
    /// Bytes of a latched count, to be read before the running one.
    latched: [u8; 2],
    latched_bytes: u8,
    latched_status: Option<u8>,
    /// Initial count, 1 to 65536; 0 before the first.
    reload: u32,
    /// Tick at which the count began; while the gate stops it, the ticks already counted.
    began: u64,
    running: bool,
    gate: bool,
    /// Tick of the next rise of OUT.
    next_rise: Option<u64>,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            access: Access::Both,
            low_byte: None,
            high_byte_next: false,
            latched: [0; 2],
            latched_bytes: 0,
            latched_status: None,
            reload: 0,
            began: 0,
            running: false,
            gate,
            next_rise: None,
        }
    }

    fn elapsed(&self, tick: u64) -> u64 {
        if self.running {
            tick.saturating_sub(self.began)
        } else {
            self.began
        }
    }

    fn count(&self, tick: u64) -> u16 {
        let (elapsed, reload) = (self.elapsed(tick), u64::from(self.reload));
        let count = match self.mode {
            _ if reload == 0 => 0,
            2 => reload - elapsed % reload,
            // Counts down by two, twice per period.
            3 => reload - (elapsed % reload) * 2 % reload,
            _ => reload.wrapping_sub(elapsed),
        };
        count as u16
    }

    fn out(&self, tick: u64) -> bool {
        let (elapsed, reload) = (self.elapsed(tick), u64::from(self.reload));
        match self.mode {
            _ if reload == 0 => self.mode != 0,
            0 | 1 => elapsed >= reload,
            2 => elapsed % reload != reload - 1,
            3 => elapsed % reload < reload.div_ceil(2),
            _ => elapsed != reload,
        }
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn begin(&mut self, tick: u64) {
        self.began = tick;
        self.running = true;
        self.next_rise = Some(tick + u64::from(self.reload));
    }

    fn write_control(&mut self, control: u8, tick: u64) {
        self.access = match control >> 4 & 3 {
            0 => {
                if self.latched_bytes == 0 {
                    self.latch(tick);
                }
                return;
            }
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        self.mode = match control >> 1 & 7 {
            mode @ 0..=5 => mode,
            // Bit 2 of modes 2 and 3 is "don't care".
            mode => mode - 4,
        };
        self.low_byte = None;
        self.high_byte_next = false;
        self.latched_bytes = 0;
        self.latched_status = None;
        self.reload = 0;
        self.began = 0;
        self.running = false;
        self.next_rise = None;
    }

    fn latch(&mut self, tick: u64) {
        let [low, high] = self.count(tick).to_le_bytes();
        (self.latched, self.latched_bytes) = match self.access {
            Access::Low => ([low, 0], 1),
            Access::High => ([high, 0], 1),
            Access::Both => ([low, high], 2),
        };
    }

    fn latch_status(&mut self, tick: u64) {
        if self.latched_status.is_none() {
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::Both => 3,
            };
            let null_count = u8::from(self.reload == 0) << 6;
            let out = u8::from(self.out(tick)) << 7;
            self.latched_status = Some(out | null_count | access << 4 | self.mode << 1);
        }
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        if self.latched_bytes > 0 {
            self.latched_bytes -= 1;
            let byte = self.latched[0];
            self.latched[0] = self.latched[1];
            return byte;
        }
        let [low, high] = self.count(tick).to_le_bytes();
        match self.access {
            Access::Low => low,
            Access::High => high,
            Access::Both => {
                self.high_byte_next = !self.high_byte_next;
                if self.high_byte_next { low } else { high }
            }
        }
    }

    fn write(&mut self, value: u8, tick: u64) {
        let count = match (self.access, self.low_byte.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, None) => {
                self.low_byte = Some(value);
                return;
            }
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
        };
        self.reload = if count == 0 {
            0x1_0000
        } else {
            u32::from(count)
        };
        match self.mode {
            // Started by a rising gate, not by the count.
            1 | 5 => {}
            _ if self.gate => self.begin(tick),
            _ => {
                self.began = 0;
                self.running = false;
            }
        }
    }

    fn set_gate(&mut self, gate: bool, tick: u64) {
        let was = std::mem::replace(&mut self.gate, gate);
        if was == gate || self.reload == 0 {
            return;
        }
        match self.mode {
            0 | 4 if gate => {
                let counted = self.began;
                self.began = tick.saturating_sub(counted);
                self.running = true;
            }
            0 | 4 => {
                self.began = self.elapsed(tick);
                self.running = false;
            }
            2 | 3 if !gate => {
                self.began = 0;
                self.running = false;
            }
            _ if gate => self.begin(tick),
            _ => {}
        }
    }
}

/// The timer chip with port 0x61.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pit {
    channels: [Channel; 3],
    /// Bit 1 of port 0x61: the speaker would sound.
    speaker: bool,
}

impl Default for Pit {
    fn default() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: false,
        }
    }
}

impl Pit {
    /// Reads one of the ports 0x40 to 0x43 and 0x61 at time `now`.
    pub fn read(&mut self, port: u16, now: VirtualTime) -> u8 {
        let tick = ticks(now, PIT_HERTZ);
        match port {
            0x40..=0x42 => self.channels[usize::from(port - 0x40)].read(tick),
            0x61 => {
                let speaker = &self.channels[2];
                // Bit 4 toggles with each memory refresh, 15 microseconds apart.
                let refresh = ((tick / 18) & 1) as u8;
                u8::from(speaker.gate)
                    | u8::from(self.speaker) << 1
                    | refresh << 4
                    | u8::from(speaker.out(tick)) << 5
            }
            _ => 0xff,
        }
    }

    /// Writes one of the ports 0x40 to 0x43 and 0x61 at time `now`. Afterwards
    /// [`Pit::deadline`] may be another.
    pub fn write(&mut self, port: u16, value: u8, now: VirtualTime) {
        let tick = ticks(now, PIT_HERTZ);
        match port {
            0x40..=0x42 => self.channels[usize::from(port - 0x40)].write(value, tick),
            0x43 if value >> 6 == 3 => {
                // Read-back command: bits 1 to 3 choose channels, bits 5 and 4 are active low.
                for (index, channel) in self.channels.iter_mut().enumerate() {
                    if value & (2 << index) != 0 {
                        if value & 0x20 == 0 && channel.latched_bytes == 0 {
                            channel.latch(tick);
                        }
                        if value & 0x10 == 0 {
                            channel.latch_status(tick);
                        }
                    }
                }
            }
            0x43 => self.channels[usize::from(value >> 6)].write_control(value, tick),
            0x61 => {
                self.speaker = value & 2 != 0;
                self.channels[2].set_gate(value & 1 != 0, tick);
            }
            _ => {}
        }
    }

    /// Whether a saved state is one that the chip can be in.
    pub fn is_sound(&self) -> bool {
        self.channels.iter().all(|channel| {
            channel.mode <= 5
                && channel.reload <= 0x1_0000
                && channel.latched_bytes <= 2
                && (channel.next_rise.is_none() || channel.reload > 0)
        })
    }

    /// When channel 0 next raises IRQ 0.
    pub fn deadline(&self) -> Option<VirtualTime> {
        self.channels[0]
            .next_rise
            .map(|tick| time_of_tick(tick, PIT_HERTZ))
    }

    /// Whether channel 0's output rose by `now`; rises since the last call count as one, as they do
    /// in an interrupt controller that has not been served.
    pub fn take_rise(&mut self, now: VirtualTime) -> bool {
        let tick = ticks(now, PIT_HERTZ);
        let channel = &mut self.channels[0];
        match channel.next_rise {
            Some(rise) if rise <= tick => {
                channel.next_rise = channel.is_periodic().then(|| {
                    let period = u64::from(channel.reload);
                    rise + ((tick - rise) / period + 1) * period
                });
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tick: u64) -> VirtualTime {
        time_of_tick(tick, PIT_HERTZ)
    }

    fn program(pit: &mut Pit, control: u8, count: u16, tick: u64) {
        let port = 0x40 + u16::from(control >> 6);
        pit.write(0x43, control, at(tick));
        for byte in count.to_le_bytes() {
            pit.write(port, byte, at(tick));
        }
    }

    #[test]
    fn mode_0_and_mode_4_raise_the_line_once() {
        for control in [0x30, 0x38] {
            let mut pit = Pit::default();
            program(&mut pit, control, 1000, 50);
            assert_eq!(pit.deadline(), Some(at(1050)));
            assert!(!pit.take_rise(at(1049)));
            assert!(pit.take_rise(at(1050)));
            assert!(!pit.take_rise(at(100_000)));
            assert_eq!(pit.deadline(), None);
        }
    }

    #[test]
    fn mode_2_and_mode_3_raise_the_line_every_period() {
        for control in [0x34, 0x36, 0x3c] {
            let mut pit = Pit::default();
            program(&mut pit, control, 1000, 0);
            for period in 1..5 {
                assert_eq!(pit.deadline(), Some(at(period * 1000)));
                assert!(pit.take_rise(at(period * 1000)));
            }
            assert!(pit.take_rise(at(9999)), "missed rises count as one");
            assert_eq!(pit.deadline(), Some(at(10_000)), "and the phase stays");
        }
    }

    #[test]
    fn a_count_of_zero_is_65536() {
        let mut pit = Pit::default();
        program(&mut pit, 0x34, 0, 0);
        assert_eq!(pit.deadline(), Some(at(65536)));
    }

    #[test]
    fn a_latched_count_stands_still_while_it_is_read() {
        let mut pit = Pit::default();
        program(&mut pit, 0x34, 1000, 0);
        pit.write(0x43, 0x00, at(100));
        assert_eq!(pit.read(0x40, at(200)), (900 & 0xff) as u8);
        assert_eq!(pit.read(0x40, at(300)), (900 >> 8) as u8);
        assert_eq!(pit.read(0x40, at(999)), 1);
    }

    #[test]
    fn read_back_latches_status_before_count() {
        let mut pit = Pit::default();
        program(&mut pit, 0x34, 1000, 0);
        pit.write(0x43, 0xc2, at(10));
        assert_eq!(pit.read(0x40, at(10)), 0b1011_0100);
        assert_eq!(pit.read(0x40, at(10)), (990 & 0xff) as u8);
    }

    /// What Linux's `pit_calibrate_tsc` and `quick_pit_calibrate` do.
    #[test]
    fn channel_2_counts_while_its_gate_is_open_and_shows_its_output_on_port_0x61() {
        let mut pit = Pit::default();
        pit.write(0x61, 0x01, 0);
        program(&mut pit, 0xb0, 5000, 0);
        assert_eq!(pit.read(0x61, at(4999)) & 0x20, 0);
        assert_eq!(pit.read(0x61, at(5000)) & 0x20, 0x20);
        program(&mut pit, 0xb0, 0xffff, 6000);
        assert_eq!(pit.read(0x42, at(6000 + 0xff)), 0);
        assert_eq!(pit.read(0x42, at(6000 + 0xff)), 0xff);
        assert_eq!(pit.deadline(), None, "channel 2 raises no interrupt");
    }

    #[test]
    fn a_closed_gate_stops_mode_0_and_opening_it_goes_on() {
        let mut pit = Pit::default();
        pit.write(0x61, 1, 0);
        program(&mut pit, 0xb0, 1000, 0);
        pit.write(0x61, 0, at(400));
        assert_eq!(pit.read(0x61, at(5000)) & 0x20, 0);
        pit.write(0x61, 1, at(5000));
        assert_eq!(pit.read(0x61, at(5599)) & 0x20, 0);
        assert_eq!(pit.read(0x61, at(5600)) & 0x20, 0x20);
    }

    #[test]
    fn a_new_mode_disarms_the_channel() {
        let mut pit = Pit::default();
        program(&mut pit, 0x34, 1000, 0);
        pit.write(0x43, 0x30, at(10));
        assert_eq!(pit.deadline(), None);
        pit.write(0x40, 5, at(11));
        assert_eq!(pit.deadline(), None, "half a count starts nothing");
    }
}
