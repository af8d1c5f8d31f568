//! The difference of two latencies, percentile by percentile.

use lockstep_perf::histogram::LatencyHistogram;
use serde::{Deserialize, Serialize};

use crate::report::Report;

/// Protected minus unprotected, microseconds. Negative where the protected run happened to be the
/// faster one: the difference is then within the noise. `None` where a histogram holds fewer than one
/// value beyond that percentile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Added {
    /// At the median.
    pub p50: Option<f64>,
    /// At 90 %.
    pub p90: Option<f64>,
    /// At 99 %.
    pub p99: Option<f64>,
    /// At 99.9 %.
    pub p99_9: Option<f64>,
    /// At 99.99 %.
    pub p99_99: Option<f64>,
    /// The longest of one minus the longest of the other.
    pub max: Option<f64>,
}

impl Added {
    /// What `protected` has more than `unprotected`.
    #[must_use]
    pub fn between(protected: &LatencyHistogram, unprotected: &LatencyHistogram) -> Self {
        let fewest = protected.count().min(unprotected.count()) as f64;
        let us = |a: u64, b: u64| (a as f64 - b as f64) / 1000.0;
        let at = |quantile: f64, one_of: f64| {
            (fewest >= one_of)
                .then(|| us(protected.value_at(quantile), unprotected.value_at(quantile)))
        };
        Self {
            p50: at(0.5, 2.0),
            p90: at(0.9, 10.0),
            p99: at(0.99, 100.0),
            p99_9: at(0.999, 1_000.0),
            p99_99: at(0.9999, 10_000.0),
            max: (fewest >= 1.0).then(|| us(protected.max(), unprotected.max())),
        }
    }

    pub(super) fn figures(&self, what: &str, report: &mut Report) {
        let percentiles = [
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99.9", self.p99_9),
            ("p99.99", self.p99_99),
            ("max", self.max),
        ];
        for (name, value) in percentiles {
            if let Some(value) = value {
                report.figure(&format!("{what}, {name}"), value, "µs");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(count: u64, ns: impl Fn(u64) -> u64) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::new();
        (0..count).for_each(|n| histogram.record(ns(n)));
        histogram
    }

    #[test]
    fn a_constant_addition_is_found_at_every_percentile() {
        let bare = histogram(20_000, |n| 1_000 + n);
        let held = histogram(20_000, |n| 11_000 + n);
        let added = Added::between(&held, &bare);
        let Added {
            p50,
            p90,
            p99,
            p99_9,
            p99_99,
            max,
        } = added;
        for found in [p50, p90, p99, p99_9, p99_99, max] {
            assert!(
                found.is_some_and(|us| (us - 10.0).abs() < 0.04),
                "{added:?}"
            );
        }
    }

    #[test]
    fn a_percentile_that_too_few_values_reach_is_left_out() {
        let added = Added::between(&histogram(5_000, |n| n), &histogram(999, |n| n));
        assert!(added.p99.is_some() && added.p99_9.is_none() && added.p99_99.is_none());
    }

    #[test]
    fn nothing_measured_is_not_taken_for_nothing_added() {
        let added = Added::between(&LatencyHistogram::new(), &histogram(10, |n| n));
        assert_eq!((added.p50, added.max), (None, None));
    }

    #[test]
    fn noise_may_be_negative_and_is_shown() {
        let added = Added::between(&histogram(10, |_| 900), &histogram(10, |_| 1_000));
        assert!(
            added.p50.is_some_and(|us| (us + 0.1).abs() < 0.01),
            "{added:?}"
        );
    }
}
