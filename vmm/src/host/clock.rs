//! The host's monotonic clock: the `now` that the roles in [`crate::ft`] and the channel protocol
//! are given. It is a vDSO read, no system call, and the same clock in all processes of a host.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds on `CLOCK_MONOTONIC`: since some point before the host's start, never backwards, not
/// moved by anybody who sets the date.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The kernel never reports a negative monotonic time, and 2^64 ns are 584 years.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::now_ns;
    use std::time::{Duration, Instant};

    #[test]
    fn counts_nanoseconds_and_never_goes_back() {
        let instant = Instant::now();
        let before = now_ns();
        std::thread::sleep(Duration::from_millis(5));
        let after = now_ns();
        let elapsed = u64::try_from(instant.elapsed().as_nanos()).expect("a short test");
        assert!(after >= before + 5_000_000, "{before} {after}");
        assert!(after - before <= elapsed, "{} > {elapsed}", after - before);
    }
}
