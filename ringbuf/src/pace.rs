//! Keeping a distance: a reader that is as fast as its writer must not be at its heels.
//!
//! Whoever looks at the writer's cursor takes that cache line from it, and the writer's next commit
//! waits until it has the line back; whoever reads the newest bytes has its prefetcher take the lines
//! that the writer is about to write. A reader that looks again as soon as it has read everything
//! makes both happen at each entry: of 64-byte entries, two at a look, 18 million a second then go
//! through, where writing alone does 180 and reading alone 230 (on the host of bench/RESULTS.md). So
//! between looks that find little, and find it at once, a spinning reader leaves a gap, during which
//! the writer has its lines to itself.
//!
//! The gap is of the time from look to look, so a reader that has something to do with what it reads
//! never notices it. A gap must bring something: each is twice the one before only while what a look
//! finds grows with it, by as much as a look without a gap finds in each [`LEAST`]. In a conversation,
//! where the writer waits for an answer before it goes on, it does not, however long the gap; there
//! looking goes on without.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Bytes found by a look from which on looking is not too frequent; in a small ring, less.
const PLENTY: u64 = 8 << 10;
/// The first gap, nanoseconds: less than a conversation's shortest round trip, so that it delays none.
const LEAST: u32 = 250;
/// The longest gap, and so what a reader may see an entry of a stream late by, nanoseconds.
const MOST: u32 = 2_000;
/// Pauses between two readings of the clock, which cost more than a pause.
const PAUSES_PER_CLOCK: u32 = 8;

/// The distance that one reader keeps.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes found by a look from which on looking is not too frequent.
    plenty: u64,
    /// Nanoseconds from look to look; 0: look at once.
    gap: Cell<u32>,
    /// Bytes found by the last look before there was a gap.
    without: Cell<u64>,
    /// The last look, if a gap is to follow it.
    last: Cell<Option<Instant>>,
}

impl Pace {
    /// Longest time that [`Pace::keep`] takes.
    pub(crate) const MOST: Duration = Duration::from_nanos(MOST as u64);

    /// The pace of a reader of a ring of `capacity` bytes.
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            plenty: PLENTY.min(capacity / 8),
            gap: Cell::new(0),
            without: Cell::new(0),
            last: Cell::new(None),
        }
    }

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
        if gap == 0 {
            self.without.set(bytes);
        }
        let worth = self.without.get() * u64::from(1 + gap / LEAST);
        let next = if bytes == 0 {
            0
        } else if bytes >= self.plenty {
            // As much is there without so long a gap.
            let shorter = gap - gap / 4;
            if shorter < LEAST { 0 } else { shorter }
        } else if bytes >= worth {
            (2 * gap).clamp(LEAST, MOST)
        } else {
            0
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

    /// A reader of a stream of `rate` bytes a microsecond in entries of `entry`, with a first look that
    /// finds one of them: the gaps it comes to keep, and the last look's bytes.
    fn stream(pace: &Pace, rate: u64, entry: u64) -> Vec<(u32, u64)> {
        let mut kept = Vec::new();
        let mut bytes = entry;
        for _ in 0..20 {
            pace.found(bytes);
            kept.push((pace.gap(), bytes));
            let came = u64::from(pace.gap()) * rate / 1000;
            bytes = (came / entry * entry).max(entry);
        }
        kept
    }

    #[test]
    fn a_reader_of_a_stream_comes_to_look_as_seldom_as_finds_plenty_or_is_allowed() {
        // 20 ns an entry of 64 bytes.
        let pace = Pace::new(1 << 20);
        assert_eq!(pace.gap(), 0);
        let kept = stream(&pace, 3200, 64);
        assert!(kept.iter().all(|(gap, _)| *gap <= MOST), "{kept:?}");
        assert_eq!(kept.last(), Some(&(MOST, 6400)));
        // 50 ns an entry of 1 KiB: a shorter gap finds plenty.
        let kept = stream(&Pace::new(1 << 20), 20_480, 1024);
        assert!(kept[10..].iter().all(|(gap, _)| *gap < MOST), "{kept:?}");
    }

    #[test]
    fn a_conversation_is_not_delayed_whatever_its_messages() {
        for message in 1..9 {
            // The first look met the writer after one entry; from then on all of a message is there
            // however long the reader waits for it.
            let pace = Pace::new(1 << 20);
            pace.found(64);
            for _ in 0..10 {
                pace.found(64 * message);
                // A message of one entry: no more than the first gap, which is no delay.
                let most = LEAST * (2 * (message as u32 - 1)).max(1);
                assert!(pace.gap() <= most, "{message}: {}", pace.gap());
            }
        }
    }

    #[test]
    fn a_look_that_finds_nothing_ends_the_gap() {
        let pace = Pace::new(1 << 20);
        stream(&pace, 3200, 64);
        pace.found(0);
        assert_eq!((pace.gap(), pace.last.get()), (0, None));
        // And where there is plenty without a gap, there is none.
        pace.found(PLENTY);
        assert_eq!((pace.gap(), pace.last.get()), (0, None));
    }

    #[test]
    fn the_gap_counts_from_the_last_look_and_passes_once() {
        let pace = Pace::new(1 << 20);
        stream(&pace, 3200, 64);
        let last = pace.last.get().expect("something was found");
        pace.keep();
        assert!(last.elapsed() >= Pace::MOST);
        assert_eq!(pace.last.get(), None);
    }
}
