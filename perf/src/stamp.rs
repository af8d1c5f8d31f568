//! Time stamps cheap enough to leave in the hot path.
//!
//! [`now`] is `CLOCK_MONOTONIC` in nanoseconds, so stamps of different threads and processes of one
//! host compare (a Linux time namespace may shift a process's clock; Lockstep makes none). Where the
//! processor's time-stamp counter runs at a constant rate and the kernel itself keeps time by it,
//! [`now`] reads the counter and converts; elsewhere it asks the kernel. [`source`] says which.
//!
//! # How the counter follows the kernel's clock
//!
//! `CLOCK_MONOTONIC` is steered (NTP), so a conversion fixed once drifts away by tens of microseconds
//! a second. Each thread therefore keeps an anchor, a pair of counter and clock read together, and
//! takes a new one every 10 ms of use; between two anchors the counter advances at the
//! rate found over the thread's anchors so far. A new anchor costs three clock reads, about 0.2 µs,
//! once in 10 ms; every other stamp costs the counter and a multiplication, half of what the kernel's
//! clock costs at its best. Until a thread's first
//! 10 ms are over no rate is known, and its stamps come from the kernel.
//!
//! Stamps of one thread never go backwards. Stamps of two threads of the same instant differ by no
//! more than the uncertainty of an anchor, some tens of nanoseconds, unless the core was taken away
//! sixteen times in a row just while an anchor was read.

use std::cell::Cell;
use std::sync::OnceLock;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// An anchor older than this is replaced, nanoseconds.
const WINDOW_NS: u64 = 10_000_000;
/// Anchors closer together than this say nothing about the rate, nanoseconds.
const BASELINE_MIN_NS: u64 = WINDOW_NS;
/// A thread's rate is measured over the last one to two times this, nanoseconds: long enough for
/// parts in ten million, short enough to follow the steering of the clock.
const BASELINE_NS: u64 = 1_000_000_000;
/// An anchor is read again while the clock's read took at least so many ticks (a microsecond or
/// two: the core was taken away, or the cache was cold), up to `ANCHOR_TRIES` times.
const ANCHOR_TICKS: u64 = 4096;
/// See `ANCHOR_TICKS`.
const ANCHOR_TRIES: u32 = 16;
/// The rate is nanoseconds a tick, scaled by two to this power.
const RATE_SHIFT: u32 = 32;

/// Where stamps come from on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "source")]
pub enum Source {
    /// The time-stamp counter, following `CLOCK_MONOTONIC`.
    Tsc,
    /// `clock_gettime(CLOCK_MONOTONIC)` for each stamp.
    ClockGettime {
        /// Why not the counter.
        why: String,
    },
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
#[inline]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        CLOCK.with(ThreadClock::now)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        monotonic()
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, asked of the kernel each time.
#[must_use]
pub fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Neither part is negative: the clock starts at 0 at boot, and 2^64 ns are 584 years.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Where [`now`] takes its stamps from. Found once a process.
#[must_use]
pub fn source() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(probe)
}

fn probe() -> Source {
    #[cfg(target_arch = "x86_64")]
    {
        if !tsc::invariant() {
            return Source::ClockGettime {
                why: "CPUID 8000_0007 EDX bit 8 says that the TSC is not invariant".into(),
            };
        }
        // An invariant counter may still differ from core to core, or jump when a hypervisor moves
        // the machine. The kernel watches for that, and keeps time by it only while it behaves.
        let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        match std::fs::read_to_string(path) {
            Ok(name) if name.trim() == "tsc" => Source::Tsc,
            Ok(name) => Source::ClockGettime {
                why: format!("the kernel keeps time by {}, not by tsc", name.trim()),
            },
            Err(error) => Source::ClockGettime {
                why: format!("{path}: {error}"),
            },
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    Source::ClockGettime {
        why: "no time-stamp counter is known for this architecture".into(),
    }
}

#[cfg(target_arch = "x86_64")]
thread_local! {
    static CLOCK: ThreadClock = const { ThreadClock::unused() };
}

/// One thread's view of the clock through the counter.
#[cfg(target_arch = "x86_64")]
struct ThreadClock {
    /// Counter at the latest anchor.
    anchor_ticks: Cell<u64>,
    /// Clock at the latest anchor, nanoseconds.
    anchor_ns: Cell<u64>,
    /// Ticks after the anchor at which it is too old. 0: no rate is known.
    window_ticks: Cell<u64>,
    /// Nanoseconds a tick, times 2^32.
    rate: Cell<u64>,
    /// The latest stamp given out.
    last: Cell<u64>,
    mode: Cell<Mode>,
    /// The anchor from which the rate is measured.
    base: Cell<Anchor>,
    /// The anchor that will be `base` when that is too old.
    next_base: Cell<Anchor>,
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Unused,
    Counter,
    Kernel,
}

/// Counter and clock at one instant.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Anchor {
    ticks: u64,
    ns: u64,
}

#[cfg(target_arch = "x86_64")]
impl ThreadClock {
    const fn unused() -> Self {
        const NONE: Anchor = Anchor { ticks: 0, ns: 0 };
        Self {
            anchor_ticks: Cell::new(0),
            anchor_ns: Cell::new(0),
            window_ticks: Cell::new(0),
            rate: Cell::new(0),
            last: Cell::new(0),
            mode: Cell::new(Mode::Unused),
            base: Cell::new(NONE),
            next_base: Cell::new(NONE),
        }
    }

    #[inline]
    fn now(&self) -> u64 {
        let elapsed = tsc::read().wrapping_sub(self.anchor_ticks.get());
        // Nothing is less than the 0 that stands here in the other modes and before a rate is known.
        let stamp = if elapsed < self.window_ticks.get() {
            // `renew` chose the window so that the product fits.
            self.anchor_ns.get() + ((elapsed * self.rate.get()) >> RATE_SHIFT)
        } else {
            self.slow()
        };
        let stamp = stamp.max(self.last.get());
        self.last.set(stamp);
        stamp
    }

    #[cold]
    fn slow(&self) -> u64 {
        match self.mode.get() {
            Mode::Kernel => monotonic(),
            Mode::Unused if *source() != Source::Tsc => {
                self.mode.set(Mode::Kernel);
                monotonic()
            }
            Mode::Unused => {
                self.mode.set(Mode::Counter);
                self.begin(Anchor::take())
            }
            Mode::Counter => {
                let clock = monotonic();
                if clock.saturating_sub(self.base.get().ns) < BASELINE_MIN_NS {
                    clock
                } else {
                    self.renew(Anchor::take())
                }
            }
        }
    }

    /// Knows no rate, and waits until `base` is old enough for one.
    fn begin(&self, base: Anchor) -> u64 {
        self.window_ticks.set(0);
        self.base.set(base);
        self.next_base.set(base);
        base.ns
    }

    /// Converts from `anchor` on.
    fn renew(&self, anchor: Anchor) -> u64 {
        let base = self.base.get();
        let ns = anchor.ns.saturating_sub(base.ns);
        let ticks = anchor.ticks.saturating_sub(base.ticks);
        let Some((rate, window_ticks)) = rate(ns, ticks) else {
            // Suspended, or moved by a hypervisor.
            return self.begin(anchor);
        };
        self.anchor_ticks.set(anchor.ticks);
        self.anchor_ns.set(anchor.ns);
        self.rate.set(rate);
        self.window_ticks.set(window_ticks);
        let next = self.next_base.get();
        if anchor.ns.saturating_sub(next.ns) > BASELINE_NS {
            self.base.set(next);
            self.next_base.set(anchor);
        }
        anchor.ns
    }
}

/// Rate and window, in ticks, of a counter that made `ticks` in `ns`; `None` if that is less than
/// 16 MHz or more than 16 GHz, which is no time-stamp counter.
///
/// The product of the two, the greatest that a conversion meets, is about `WINDOW_NS << RATE_SHIFT`,
/// less than 2^56, whatever the rate.
#[cfg(target_arch = "x86_64")]
fn rate(ns: u64, ticks: u64) -> Option<(u64, u64)> {
    if ticks == 0 || ticks / 16 > ns || ns / 64 > ticks {
        return None;
    }
    let rate = (u128::from(ns) << RATE_SHIFT) / u128::from(ticks);
    let window = (u128::from(WINDOW_NS) << RATE_SHIFT).checked_div(rate)?;
    Some((u64::try_from(rate).ok()?, u64::try_from(window).ok()?))
}

#[cfg(target_arch = "x86_64")]
impl Anchor {
    /// The tightest of three and more: the clock is read between two reads of the counter.
    fn take() -> Self {
        let mut best = Self { ticks: 0, ns: 0 };
        let mut width = u64::MAX;
        for tries in 0..ANCHOR_TRIES {
            if tries >= 3 && width < ANCHOR_TICKS {
                break;
            }
            let before = tsc::read_in_order();
            let ns = monotonic();
            let after = tsc::read_in_order();
            let this = after.wrapping_sub(before);
            if this < width {
                width = this;
                best = Self {
                    ticks: before.wrapping_add(this / 2),
                    ns,
                };
            }
        }
        best
    }
}

#[cfg(target_arch = "x86_64")]
mod tsc {
    use core::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};

    /// Ticks. The processor may take them a little early, while older instructions still wait for
    /// memory: tens of nanoseconds, which a stamp can bear and a fence would cost.
    #[inline]
    pub(super) fn read() -> u64 {
        // SAFETY: every x86-64 has RDTSC; it touches no memory, and faults only where the process
        // asked for that by PR_SET_TSC, which nothing in Lockstep does.
        unsafe { _rdtsc() }
    }

    /// Ticks, read after everything earlier and before anything later.
    pub(super) fn read_in_order() -> u64 {
        // SAFETY: LFENCE is part of SSE2, which every x86-64 has; it touches no memory.
        unsafe { _mm_lfence() };
        let ticks = read();
        // SAFETY: as above.
        unsafe { _mm_lfence() };
        ticks
    }

    /// Intel SDM volume 3, "Invariant TSC"; AMD APM volume 2, "Time-Stamp Counter": a constant rate
    /// in all power states.
    pub(super) fn invariant() -> bool {
        __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_stamp_lies_between_two_readings_of_the_kernels_clock() {
        let end = Instant::now() + Duration::from_millis(300);
        let mut readings = 0_u64;
        let mut worst = 0;
        while Instant::now() < end {
            let before = monotonic();
            let stamp = now();
            let after = monotonic();
            let outside = before
                .saturating_sub(stamp)
                .max(stamp.saturating_sub(after));
            worst = worst.max(outside);
            readings += 1;
        }
        // An anchor taken while the core was lost is off by as much as the reads took.
        assert!(
            worst < 20_000,
            "{readings} readings, the worst {worst} ns outside, source {:?}",
            source()
        );
    }

    #[test]
    fn stamps_of_one_thread_never_go_backwards() {
        let end = Instant::now() + Duration::from_millis(100);
        let mut last = now();
        while Instant::now() < end {
            for _ in 0..100 {
                let stamp = now();
                assert!(stamp >= last, "{stamp} after {last}");
                last = stamp;
            }
        }
    }

    #[test]
    fn a_thread_that_slept_past_the_window_is_right_at_once() {
        let _ = now();
        for pause in [1, 11, 25, 60] {
            std::thread::sleep(Duration::from_millis(pause));
            let before = monotonic();
            let stamp = now();
            let after = monotonic();
            assert!(
                before.saturating_sub(stamp) < 20_000 && stamp.saturating_sub(after) < 20_000,
                "{stamp} is not between {before} and {after}"
            );
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn no_plausible_rate_overflows_the_conversion() {
        for (ns, ticks) in [(64, 1), (16, 1), (1, 3), (1, 16), (u64::MAX, u64::MAX)] {
            let (rate, window) = rate(ns, ticks).expect("plausible");
            let product = rate.checked_mul(window).expect("fits");
            assert!(product < 1 << 56, "{ns} ns in {ticks} ticks");
        }
        for (ns, ticks) in [(0, 1000), (1000, 0), (1_000_000, 1), (1, 1000)] {
            assert_eq!(rate(ns, ticks), None, "{ns} ns in {ticks} ticks");
        }
    }
}
