//! The ACPI power-management timer (ACPI 6.5, 4.8.2.1 "PM Timer"), 32 bits wide. A guest without
//! ACPI tables is told of it by `pmtmr=0x608` on Linux's command line.

use crate::ft::vm::VirtualTime;
use crate::machine::clock::ticks;

/// First of the timer's four ports.
pub const PM_TIMER_PORT: u16 = 0x608;
/// Frequency that ACPI fixes.
pub const PM_TIMER_HERTZ: u64 = 3_579_545;

/// The counter at time `now`. It holds no state of its own.
pub fn read(now: VirtualTime) -> u32 {
    ticks(now, PM_TIMER_HERTZ) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::clock::NANOSECONDS;

    #[test]
    fn the_counter_runs_at_the_frequency_of_acpi_and_wraps_at_32_bits() {
        assert_eq!(read(NANOSECONDS), 3_579_545);
        assert_eq!(
            read(1200 * NANOSECONDS),
            (1200 * PM_TIMER_HERTZ % (1 << 32)) as u32
        );
    }
}
