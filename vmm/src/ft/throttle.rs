//! Execution lag (paper 3.2): a primary that its backup cannot follow gives up a little of its vCPU
//! time, more while the lag stays, and gets it back the same way.
//!
//! Lag matters because failover has to replay it. It is measured in virtual time: the clock of the
//! last entry that the primary has written, less the clock up to which the backup has replayed.

use crate::settings::ReplaySettings;

/// A share of vCPU time, in thousandths.
pub type PerMille = u32;

/// Most that is ever given up. What is left keeps the guest alive, and the log full is the last
/// resort.
pub const MAX_GIVEN_UP: PerMille = 900;

/// Taken away at a time.
const STEP_UP: PerMille = 30;
/// Given back at a time.
const STEP_DOWN: PerMille = 15;
/// Time between two adjustments, nanoseconds. Long enough for the last one to show.
const INTERVAL: u64 = 100_000_000;

/// From reported lag to the share of vCPU time to give up.
#[derive(Debug, Clone)]
pub struct Throttle {
    limit: u64,
    given_up: PerMille,
    adjusted: Option<u64>,
    lag: u64,
}

impl Throttle {
    /// Acts above a lag of `limit` nanoseconds.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self {
            limit,
            given_up: 0,
            adjusted: None,
            lag: 0,
        }
    }

    /// As the settings say.
    #[must_use]
    pub fn from_settings(settings: &ReplaySettings) -> Self {
        Self::new(u64::from(settings.lag_limit_ms) * 1_000_000)
    }

    /// The backup reports that it lags `lag` nanoseconds behind. Returns the share to give up from
    /// here on.
    ///
    /// Above the limit, and not shrinking: more is taken. Below half the limit: some is given back.
    /// In between nothing changes, so the share settles instead of swinging.
    pub fn report(&mut self, now: u64, lag: u64) -> PerMille {
        let Some(adjusted) = self.adjusted else {
            self.adjusted = Some(now);
            self.lag = lag;
            return self.given_up;
        };
        if now.saturating_sub(adjusted) >= INTERVAL {
            if lag > self.limit && lag >= self.lag {
                self.given_up = (self.given_up + STEP_UP).min(MAX_GIVEN_UP);
            } else if lag < self.limit / 2 {
                self.given_up = self.given_up.saturating_sub(STEP_DOWN);
            }
            self.adjusted = Some(now);
            self.lag = lag;
        }
        self.given_up
    }

    /// The share being given up.
    #[must_use]
    pub const fn given_up(&self) -> PerMille {
        self.given_up
    }

    /// How long the vCPU has to stand still after it ran for `ran` nanoseconds.
    #[must_use]
    pub const fn pause_after(&self, ran: u64) -> u64 {
        let given_up = self.given_up as u64;
        ran.saturating_mul(given_up) / (1000 - given_up)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A backup that replays at `speed` thousandths of the primary's, for `seconds`; returns the
    /// lag over time.
    fn follow(throttle: &mut Throttle, from: u64, lag: u64, speed: u64, seconds: u64) -> Vec<u64> {
        let step = SECOND / 100;
        let mut lag = lag;
        (0..seconds * 100)
            .map(|tick| {
                let given_up = u64::from(throttle.report(from + tick * step, lag));
                lag = (lag + step * (1000 - given_up) / 1000).saturating_sub(step * speed / 1000);
                lag
            })
            .collect()
    }

    proptest! {
        #[test]
        fn the_lag_of_a_slower_backup_stays_bounded(speed in 150u64..1000) {
            let mut throttle = Throttle::new(SECOND);
            let lags = follow(&mut throttle, 0, 0, speed, 120);
            // Without a throttle the lag would grow by (1 - speed) seconds each second.
            let late = &lags[60 * 100..];
            prop_assert!(late.iter().all(|lag| *lag < 4 * SECOND), "{:?}", late.iter().max());
        }

        #[test]
        fn all_time_is_given_back_once_the_backup_keeps_up(speed in 150u64..1000) {
            let mut throttle = Throttle::new(SECOND);
            let lags = follow(&mut throttle, 0, 0, speed, 60);
            follow(&mut throttle, 60 * SECOND, lags[lags.len() - 1], 2000, 60);
            prop_assert_eq!(throttle.given_up(), 0);
        }
    }

    #[test]
    fn a_small_lag_costs_nothing() {
        let mut throttle = Throttle::new(SECOND);
        for tick in 0..1000 {
            assert_eq!(throttle.report(tick * INTERVAL, SECOND), 0);
        }
        assert_eq!(throttle.pause_after(SECOND), 0);
    }

    #[test]
    fn one_report_changes_little() {
        let mut throttle = Throttle::new(SECOND);
        let mut last = 0;
        for tick in 0..1000 {
            let now = throttle.report(tick * INTERVAL / 3, 100 * SECOND);
            assert!(now - last <= STEP_UP);
            last = now;
        }
        assert_eq!(last, MAX_GIVEN_UP);
        assert_eq!(
            throttle.pause_after(100),
            900,
            "900 of each 1000 are given up"
        );
    }
}
