//! Whether spinning before a sleep is worth its while.

/// What a wait that spinning ended is worth, in waits that outlasted it: at a third of short waits
/// spinning goes on, for a side of a request and its answer waits in turn for the near thing and for
/// the far one.
const HIT: u8 = 2;

/// The most that is remembered.
const MEMORY: u8 = 8;

/// Remembers whether the last waits were short enough for spinning to end them. Where fewer than a
/// third are, a thread soon sleeps at once and leaves its core to others, who may be what it waits for;
/// short waits bring spinning back. (KVM's halt polling grows and shrinks its time for the same reason.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpinWorth {
    credit: u8,
}

impl Default for SpinWorth {
    fn default() -> Self {
        Self::new()
    }
}

impl SpinWorth {
    /// Nothing is known yet: spinning is tried.
    #[must_use]
    pub const fn new() -> Self {
        Self { credit: MEMORY }
    }

    /// Whether the next wait should begin by spinning.
    #[must_use]
    pub const fn worth(self) -> bool {
        self.credit > 0
    }

    /// A wait has ended after `took` nanoseconds, by an event or because time was up; spinning would
    /// have gone on for `spin`.
    pub const fn ended(&mut self, took: u64, spin: u64) {
        self.credit = if took > spin {
            self.credit.saturating_sub(1)
        } else if self.credit > MEMORY - HIT {
            MEMORY
        } else {
            self.credit + HIT
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_in_vain_stops_spinning_and_a_short_wait_brings_it_back() {
        let mut spin = SpinWorth::default();
        for _ in 0..MEMORY {
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

    #[test]
    fn four_long_waits_for_each_short_one_are_mostly_slept_through() {
        let mut spin = SpinWorth::default();
        let spun: usize = (0..1_000)
            .flat_map(|_| [60, 900, 900, 900, 900])
            .map(|took| {
                let worth = usize::from(spin.worth());
                spin.ended(took, 100);
                worth
            })
            .sum();
        assert!(spun < 5_000 / 2, "{spun} of 5000");
    }
}
