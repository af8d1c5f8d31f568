//! The MC146818 real-time clock and its battery-backed RAM (Motorola data sheet MC146818A; PC/AT
//! assignment of the RAM), ports 0x70 and 0x71.
//!
//! The time of day is the wall clock at the VM's start, from the configuration, plus virtual time.
//! It cannot be set: a write to a time register is dropped. Alarm and periodic interrupts (IRQ 8)
//! are not raised.

use serde::{Deserialize, Serialize};

use crate::ft::vm::VirtualTime;
use crate::machine::clock::NANOSECONDS;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Register A: 32768 Hz time base, and the divider chain's usual rate.
const DIVIDER: u8 = 0x26;
/// Register A, bit 7: an update is about to happen within 244 microseconds.
const UPDATE_IN_PROGRESS: u8 = 0x80;
const UPDATE_NANOSECONDS: u64 = 244_000;
/// Register B: 24-hour form.
const HOURS_24: u8 = 0x02;
/// Register B: binary form (else BCD).
const BINARY: u8 = 0x04;
/// Register D: RAM and time are valid.
const VALID: u8 = 0x80;

/// Bytes that the index can name.
const RAM_BYTES: usize = 128;

/// The clock chip.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rtc {
    /// Seconds since 1970-01-01 00:00 UTC at virtual time 0.
    started: u64,
    index: u8,
    control: u8,
    /// The 128 bytes that the index can name; those of the time are computed instead.
    ram: Vec<u8>,
}

impl Rtc {
    /// A clock that showed `started` seconds since 1970 when the VM started.
    pub fn new(started: u64) -> Self {
        Self {
            started,
            index: 0,
            control: HOURS_24,
            ram: vec![0; RAM_BYTES],
        }
    }

    /// Whether a saved state is one that the chip can be in.
    pub fn is_sound(&self) -> bool {
        self.ram.len() == RAM_BYTES && usize::from(self.index) < RAM_BYTES
    }

    /// Reads port 0x70 or 0x71 at time `now`.
    pub fn read(&self, port: u16, now: VirtualTime) -> u8 {
        if port == 0x70 {
            return 0xff;
        }
        let date = Date::of(self.started.saturating_add(now / NANOSECONDS));
        match self.index {
            0 => self.encode(date.second),
            2 => self.encode(date.minute),
            4 => self.encode_hour(date.hour),
            6 => self.encode(date.weekday),
            7 => self.encode(date.day),
            8 => self.encode(date.month),
            9 => self.encode((date.year % 100) as u8),
            CENTURY => self.encode((date.year / 100 % 100) as u8),
            REGISTER_A => {
                let updating = now % NANOSECONDS >= NANOSECONDS - UPDATE_NANOSECONDS;
                DIVIDER | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            REGISTER_B => self.control,
            REGISTER_C => 0,
            REGISTER_D => VALID,
            index => self.ram[usize::from(index)],
        }
    }

    /// Writes port 0x70 or 0x71.
    pub fn write(&mut self, port: u16, value: u8) {
        match (port, self.index) {
            // Bit 7 masks NMI, of which there is none.
            (0x70, _) => self.index = value & 0x7f,
            (_, 0 | 2 | 4 | 6..=REGISTER_A | REGISTER_C | REGISTER_D | CENTURY) => {}
            (_, REGISTER_B) => self.control = value,
            (_, index) => self.ram[usize::from(index)] = value,
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.control & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.control & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }
}

/// A moment in the proleptic Gregorian calendar, UTC.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Date {
    /// Days are counted from 0000-03-01, so that a leap day is the last of its year
    /// (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    fn of(seconds: u64) -> Self {
        let (days, second) = (seconds / 86400, seconds % 86400);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(rtc: &mut Rtc, index: u8, now: VirtualTime) -> u8 {
        rtc.write(0x70, index);
        rtc.read(0x71, now)
    }

    #[test]
    fn known_dates_are_computed() {
        let date = |seconds| {
            let date = Date::of(seconds);
            (
                date.year,
                date.month,
                date.day,
                date.weekday,
                date.hour,
                date.minute,
                date.second,
            )
        };
        assert_eq!(date(0), (1970, 1, 1, 5, 0, 0, 0));
        assert_eq!(date(951_827_696), (2000, 2, 29, 3, 12, 34, 56));
        assert_eq!(date(1_709_251_199), (2024, 2, 29, 5, 23, 59, 59));
        assert_eq!(date(4_102_444_800), (2100, 1, 1, 6, 0, 0, 0));
    }

    #[test]
    fn the_clock_shows_its_start_plus_virtual_time_in_bcd() {
        let mut rtc = Rtc::new(951_827_696);
        let now = 4 * NANOSECONDS;
        let shown: Vec<u8> = [0x32, 9, 8, 7, 4, 2, 0]
            .iter()
            .map(|index| register(&mut rtc, *index, now))
            .collect();
        assert_eq!(shown, [0x20, 0x00, 0x02, 0x29, 0x12, 0x35, 0x00]);
    }

    #[test]
    fn binary_and_12_hour_forms_follow_register_b() {
        let mut rtc = Rtc::new(951_827_696 + 3600);
        rtc.write(0x70, REGISTER_B);
        rtc.write(0x71, BINARY);
        assert_eq!(register(&mut rtc, 4, 0), 0x80 | 1);
        assert_eq!(register(&mut rtc, 2, 0), 34);
    }

    #[test]
    fn the_time_cannot_be_set_and_the_ram_can() {
        let mut rtc = Rtc::new(0);
        for index in [9, 0x40] {
            rtc.write(0x70, index);
            rtc.write(0x71, 0x42);
        }
        assert_eq!(register(&mut rtc, 9, 0), 0x70);
        assert_eq!(register(&mut rtc, 0x40, 0), 0x42);
    }

    #[test]
    fn an_update_is_announced_before_the_second_changes() {
        let mut rtc = Rtc::new(0);
        assert_eq!(register(&mut rtc, REGISTER_A, NANOSECONDS - 1) & 0x80, 0x80);
        assert_eq!(register(&mut rtc, REGISTER_A, NANOSECONDS) & 0x80, 0);
    }
}
