//! Whether spinning before a sleep is worth its while.

/// Waits in a row that outlasted their spinning before no more is tried. More than one, for a side of
/// a request and its answer waits in turn for the near thing and for the far one.
const MISSES: u8 = 8;

/// Remembers whether the last waits were short enough for spinning to end them. A side whose peer is
/// idle then sleeps at once, and takes no core from others; the first short wait brings spinning back.
/// (KVM's halt polling grows and shrinks its time for the same reason.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpinWorth {
    misses: u8,
}

impl SpinWorth {
    /// Nothing is known yet: spinning is tried.
    #[must_use]
    pub const fn new() -> Self {
        Self { misses: 0 }
    }

    /// Whether the next wait should begin by spinning.
    #[must_use]
    pub const fn worth(self) -> bool {
        self.misses < MISSES
    }

    /// A wait has ended after `took` nanoseconds, by an event or because time was up; spinning would
    /// have gone on for `spin`.
    pub const fn ended(&mut self, took: u64, spin: u64) {
        self.misses = if took <= spin {
            0
        } else {
            self.misses.saturating_add(1)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_in_vain_stops_spinning_and_one_short_wait_brings_it_back() {
        let mut spin = SpinWorth::default();
        for _ in 0..MISSES {
            assert!(spin.worth());
            spin.ended(1_000_000, 100);
        }
        for _ in 0..1_000 {
            assert!(!spin.worth());
            spin.ended(1_000_000, 100);
        }
        spin.ended(100, 100);
        assert!(spin.worth());
    }

    #[test]
    fn a_long_wait_for_each_short_one_leaves_spinning_on() {
        let mut spin = SpinWorth::default();
        for _ in 0..1_000 {
            spin.ended(900_000, 100);
            assert!(spin.worth());
            spin.ended(60, 100);
        }
    }
}
