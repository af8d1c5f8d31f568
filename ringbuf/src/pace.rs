//! Keeping a distance: a reader that is as fast as its writer must not be at its heels.
//!
//! Whoever looks at the writer's cursor takes that cache line from it, and the writer's next commit
//! waits until it has the line back; whoever reads the newest bytes has its prefetcher take the lines
//! that the writer is about to write. A reader that looks again as soon as it has read everything
//! makes both happen at each entry: of 64-byte entries, two at a look, 18 million a second then go
//! through, where writing alone could do 180 and reading alone 230 (`lockstep bench ring` on the host
//! of its results). So between looks that find little, and find it at once, a spinning reader leaves a
//! gap, during which the writer has its lines to itself.
//!
//! The gap is of the time from look to look, so a reader that has something to do with what it reads
//! never notices it. A look that finds nothing ends it: whoever waits for the next entry of a
//! conversation looks without a pause.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Bytes found by a look from which on looking is not too frequent.
const PLENTY: u64 = 8 << 10;
/// The first gap, nanoseconds: about what the cache line takes there and back.
const LEAST: u32 = 250;
/// The longest gap, and so what a reader may see an entry of a stream late by, nanoseconds.
const MOST: u32 = 2_000;
/// Pauses between two readings of the clock, which cost more than a pause.
const PAUSES_PER_CLOCK: u32 = 8;

/// The distance that one reader keeps.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Nanoseconds from look to look; 0: look at once.
    gap: Cell<u32>,
    /// The last look, if it found something.
    last: Cell<Option<Instant>>,
}

impl Pace {
    /// Longest time that [`Pace::keep`] takes.
    pub(crate) const MOST: Duration = Duration::from_nanos(MOST as u64);

    /// Spins until it is time for the next look.
    #[inline]
    pub(crate) fn keep(&self) {
        if let Some(last) = self.last.take() {
            let gap = Duration::from_nanos(self.gap.get().into());
            while last.elapsed() < gap {
                for _ in 0..PAUSES_PER_CLOCK {
                    std::hint::spin_loop();
                }
            }
        }
    }

    /// The first look of a wait found `bytes` new ones.
    #[inline]
    pub(crate) fn found(&self, bytes: u64) {
        let gap = self.gap.get();
        let next = match bytes {
            0 => 0,
            1..PLENTY => (2 * gap).clamp(LEAST, MOST),
            _ => gap - gap / 4,
        };
        self.gap.set(next);
        self.last.set((next > 0).then(Instant::now));
    }

    #[cfg(test)]
    fn gap(&self) -> u32 {
        self.gap.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meagre_looks_widen_the_gap_to_its_limit_and_rich_ones_narrow_it() {
        let pace = Pace::default();
        assert_eq!(pace.gap(), 0);
        for _ in 0..10 {
            pace.found(64);
            assert!((LEAST..=MOST).contains(&pace.gap()));
        }
        assert_eq!(pace.gap(), MOST);
        for _ in 0..10 {
            let before = pace.gap();
            pace.found(PLENTY);
            assert!(pace.gap() < before);
        }
    }

    #[test]
    fn a_look_that_finds_nothing_ends_the_gap() {
        let pace = Pace::default();
        pace.found(64);
        pace.found(64);
        pace.found(0);
        assert_eq!((pace.gap(), pace.last.get()), (0, None));
        // And so does having enough from the start: there was none.
        pace.found(PLENTY);
        assert_eq!((pace.gap(), pace.last.get()), (0, None));
    }

    #[test]
    fn the_gap_counts_from_the_last_look_and_passes_once() {
        let pace = Pace::default();
        for _ in 0..10 {
            pace.found(64);
        }
        let last = pace.last.get().expect("something was found");
        pace.keep();
        assert!(last.elapsed() >= Pace::MOST);
        assert_eq!(pace.last.get(), None);
    }
}
