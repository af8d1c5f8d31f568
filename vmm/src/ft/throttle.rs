//! Execution lag (paper 3.2): a primary that its backup cannot follow gives up vCPU time, a little
//! just above the limit, more the further the lag is above it, and none below.
//!
//! Lag matters because failover has to replay it. So it is measured as what failover would execute:
//! the positions between the last entry written and what the backup has replayed, at the pace of the
//! primary's own vCPU. Time that the guest slept is not in it, for replay skips that.

use crate::settings::ReplaySettings;

/// A share of vCPU time, in thousandths.
pub type PerMille = u32;

/// Most that is ever given up, at twice the limit. What is left keeps the guest alive, and the log
/// full is the last resort.
pub const MAX_GIVEN_UP: PerMille = 900;

/// Pauses are saved up to this length, nanoseconds: a thread that sleeps for less gives its core to
/// nobody.
const SHORTEST_PAUSE: u64 = 500_000;

/// Pauses are no longer than this, nanoseconds: a slice of the vCPU that the host itself suspended is no
/// reason to stand still for as long again. At the default slice a pause comes to about a tenth of this;
/// slices that themselves execute for more than 2 ms are slowed by less than [`MAX_GIVEN_UP`].
const LONGEST_PAUSE: u64 = 20_000_000;

/// The pace is that of about this much execution, nanoseconds.
const PACE_OVER: u64 = 1_000_000_000;

/// What the vCPU executed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ran {
    /// For how long, nanoseconds.
    pub ns: u64,
    /// How far.
    pub positions: u64,
}

/// From the backup's lag to pauses of the primary's vCPU.
#[derive(Debug, Clone)]
pub struct Throttle {
    limit: u64,
    pace: Ran,
    lag: u64,
    owed: u64,
}

impl Throttle {
    /// Acts above a lag of `limit` nanoseconds; 0 is taken for 1.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            limit: limit.max(1),
            pace: Ran::default(),
            lag: 0,
            owed: 0,
        }
    }

    /// As the settings say.
    #[must_use]
    pub fn from_settings(settings: &ReplaySettings) -> Self {
        Self::new(u64::from(settings.lag_limit_ms) * 1_000_000)
    }

    /// The vCPU executed `ran` since the last call, and the backup has `behind` positions of the log
    /// yet to replay. Returns for how long the vCPU has to stand still now, nanoseconds; mostly 0, for
    /// short pauses are saved up.
    pub fn pause_after(&mut self, ran: Ran, behind: u64) -> u64 {
        self.pace.ns += ran.ns;
        self.pace.positions += ran.positions;
        if self.pace.ns > PACE_OVER {
            self.pace.ns /= 2;
            self.pace.positions /= 2;
        }
        let lag = u128::from(behind) * u128::from(self.pace.ns);
        let lag = lag / u128::from(self.pace.positions.max(1));
        self.lag = u64::try_from(lag).unwrap_or(u64::MAX);
        let given_up = u64::from(self.given_up());
        if given_up == 0 {
            self.owed = 0;
            return 0;
        }
        self.owed = self
            .owed
            .saturating_add(ran.ns.saturating_mul(given_up) / (1000 - given_up));
        if self.owed < SHORTEST_PAUSE {
            return 0;
        }
        std::mem::take(&mut self.owed).min(LONGEST_PAUSE)
    }

    /// vCPU time that the backup has yet to replay, nanoseconds.
    #[must_use]
    pub const fn lag_ns(&self) -> u64 {
        self.lag
    }

    /// The share of vCPU time being given up: in proportion to the lag above the limit. Lag grows by
    /// what the primary executes and shrinks by what the backup does, so it settles where the two are
    /// equal, and below twice the limit (unless slices are long, see `LONGEST_PAUSE`).
    #[must_use]
    pub fn given_up(&self) -> PerMille {
        let above = self.lag.saturating_sub(self.limit).min(self.limit);
        let share = u128::from(above) * u128::from(MAX_GIVEN_UP) / u128::from(self.limit);
        PerMille::try_from(share).unwrap_or(MAX_GIVEN_UP)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const LIMIT: u64 = SECOND / 10;
    /// One position a nanosecond.
    const TURN: u64 = 50_000;
    /// The backup's report is this many turns old.
    const DELAY: usize = 200;

    /// A backup that replays at `speed` thousandths of the primary's, for `seconds`, from `lag` on;
    /// returns the lag over time, and the share of the time in which the primary executed.
    fn follow(throttle: &mut Throttle, lag: u64, speed: u64, seconds: u64) -> (Vec<u64>, f64) {
        let (mut now, mut executed, mut replayed) = (0, lag, 0);
        let mut lags = vec![lag];
        while now < seconds * SECOND {
            executed += TURN;
            let ran = Ran {
                ns: TURN,
                positions: TURN,
            };
            let known = lags[lags.len().saturating_sub(DELAY)];
            let took = TURN + throttle.pause_after(ran, known);
            now += took;
            replayed = executed.min(replayed + took * speed / 1000);
            lags.push(executed - replayed);
        }
        let share = (executed - lag) as f64 / now as f64;
        (lags, share)
    }

    proptest! {
        #[test]
        fn the_lag_of_a_slower_backup_stays_below_twice_the_limit(speed in 150u64..1000) {
            let (lags, share) = follow(&mut Throttle::new(LIMIT), 0, speed, 20);
            prop_assert!(lags.iter().all(|lag| *lag < 2 * LIMIT), "{:?}", lags.iter().max());
            // It gives up what the backup lacks, and no more.
            let speed = speed as f64 / 1000.0;
            prop_assert!((share - speed).abs() < 0.02, "{share} beside {speed}");
        }

        #[test]
        fn a_lag_that_the_backup_makes_up_for_is_soon_forgotten(
            lag in 0u64..10 * LIMIT,
            speed in 1100u64..4000,
        ) {
            let mut throttle = Throttle::new(LIMIT);
            let (lags, _) = follow(&mut throttle, lag, speed, 10);
            prop_assert!(lags[lags.len() - 1] <= LIMIT);
            prop_assert_eq!(throttle.given_up(), 0);
        }
    }

    #[test]
    fn a_lag_up_to_the_limit_costs_nothing() {
        let mut throttle = Throttle::new(LIMIT);
        let ran = Ran {
            ns: TURN,
            positions: TURN,
        };
        for _ in 0..1000 {
            assert_eq!(throttle.pause_after(ran, LIMIT), 0);
        }
        assert_eq!((throttle.given_up(), throttle.lag_ns()), (0, LIMIT));
    }

    #[test]
    fn pauses_are_long_enough_to_give_a_core_away() {
        let mut throttle = Throttle::new(LIMIT);
        let ran = Ran {
            ns: TURN,
            positions: TURN,
        };
        let pauses: Vec<u64> = (0..1000)
            .map(|_| throttle.pause_after(ran, LIMIT + LIMIT / 9))
            .collect();
        assert_eq!(throttle.given_up(), 99);
        assert!(pauses.iter().all(|p| *p == 0 || *p >= SHORTEST_PAUSE));
        let sum: u64 = pauses.iter().sum();
        let due = 1000 * TURN * 99 / 901;
        assert!(due - sum < 2 * SHORTEST_PAUSE, "{sum} of {due}");
    }

    #[test]
    fn a_slice_that_the_host_suspended_is_not_answered_with_a_pause_many_times_as_long() {
        let mut throttle = Throttle::new(LIMIT);
        let ran = Ran {
            ns: SECOND,
            positions: SECOND,
        };
        assert_eq!(throttle.pause_after(ran, 2 * LIMIT), LONGEST_PAUSE);
        // Nor is what was left out made up for later.
        let ran = Ran {
            ns: TURN,
            positions: TURN,
        };
        let owed = TURN * u64::from(MAX_GIVEN_UP) / 100;
        assert!(throttle.pause_after(ran, 2 * LIMIT) <= owed);
    }

    #[test]
    fn a_guest_that_has_not_executed_has_no_lag() {
        let mut throttle = Throttle::new(LIMIT);
        assert_eq!(throttle.pause_after(Ran::default(), u64::MAX), 0);
        assert_eq!(throttle.lag_ns(), 0);
    }

    #[test]
    fn no_number_of_positions_is_too_many() {
        let mut throttle = Throttle::new(0);
        let ran = Ran {
            ns: u64::from(u32::MAX),
            positions: 1,
        };
        throttle.pause_after(ran, u64::MAX);
        assert_eq!(
            (throttle.given_up(), throttle.lag_ns()),
            (MAX_GIVEN_UP, u64::MAX)
        );
    }
}
