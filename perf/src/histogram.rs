//! Latencies in nanoseconds, kept whole: an HDR histogram of one fixed shape, so that any two can be
//! added and any two files compared.

use std::fmt;

use hdrhistogram::Histogram;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Lowest value told from zero, nanoseconds.
pub const LOWEST_NS: u64 = 1;
/// Highest value kept, nanoseconds: one minute. What is longer is kept as this, and counted.
pub const HIGHEST_NS: u64 = 60_000_000_000;
/// Significant decimal digits kept of a value: it is known to one part in a thousand.
pub const DIGITS: u8 = 3;

/// Latencies from [`LOWEST_NS`] to [`HIGHEST_NS`], to [`DIGITS`] digits.
///
/// All memory, some 220 KiB, is taken when it is made; recording touches one counter.
#[derive(Clone)]
pub struct LatencyHistogram {
    counts: Histogram<u64>,
    above_range: u64,
}

impl LatencyHistogram {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let mut counts = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, DIGITS)
            .expect("1 <= lowest, 2 * lowest <= highest, digits <= 5");
        // Writes to every page, so that recording meets no page fault.
        counts.reset();
        Self {
            counts,
            above_range: 0,
        }
    }

    /// Records one latency.
    pub fn record(&mut self, ns: u64) {
        self.above_range += u64::from(ns > HIGHEST_NS);
        self.counts.saturating_record(ns);
    }

    /// Records one latency of a caller that means to ask every `interval_ns`, and that asked nothing
    /// while it waited: besides `ns`, the waits that those unasked questions would have seen
    /// (`ns - interval_ns`, `ns - 2 * interval_ns`, and so on down to one interval).
    ///
    /// For closed loops only. An open loop measures from the intended time of sending and needs no
    /// correction; correcting twice is as wrong as not at all. `interval_ns` 0 corrects nothing.
    ///
    /// Takes time in proportion to `ns / interval_ns`.
    pub fn record_correct(&mut self, ns: u64, interval_ns: u64) {
        self.record(ns);
        if interval_ns == 0 {
            return;
        }
        let mut missed = ns.min(HIGHEST_NS).saturating_sub(interval_ns);
        while missed >= interval_ns {
            self.counts.saturating_record(missed);
            missed -= interval_ns;
        }
    }

    /// Forgets everything: the warm-up is over.
    pub fn reset(&mut self) {
        self.counts.reset();
        self.above_range = 0;
    }

    /// Adds everything that `other` recorded.
    pub fn merge(&mut self, other: &Self) {
        self.counts
            .add(&other.counts)
            .expect("all latency histograms have one shape");
        self.above_range += other.above_range;
    }

    /// Number of values recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// Number of values longer than [`HIGHEST_NS`], kept as that.
    #[must_use]
    pub fn above_range(&self) -> u64 {
        self.above_range
    }

    /// The value, in nanoseconds, at or below which the part `quantile` (0 to 1) of all values lies;
    /// 0 when nothing is recorded. Good to [`DIGITS`] digits, rounded up.
    #[must_use]
    pub fn value_at(&self, quantile: f64) -> u64 {
        self.counts.value_at_quantile(quantile)
    }

    /// The greatest value recorded, nanoseconds, to [`DIGITS`] digits, rounded up.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.counts.max()
    }

    /// The percentiles that Lockstep reports.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        let us = |quantile| self.value_at(quantile) as f64 / 1000.0;
        Percentiles {
            count: self.count(),
            p50: us(0.5),
            p90: us(0.9),
            p99: us(0.99),
            p99_9: us(0.999),
            p99_99: us(0.9999),
            max: self.max() as f64 / 1000.0,
        }
    }

    /// The histogram underneath, for the writers of files.
    #[must_use]
    pub fn hdr(&self) -> &Histogram<u64> {
        &self.counts
    }
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for LatencyHistogram {
    fn eq(&self, other: &Self) -> bool {
        self.above_range == other.above_range && self.counts == other.counts
    }
}

impl fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.percentiles().fmt(f)
    }
}

/// Percentiles of one series, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Values recorded.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 90 of 100 are no longer.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p99_9: f64,
    /// 9,999 of 10,000.
    pub p99_99: f64,
    /// The longest.
    pub max: f64,
}

/// A histogram travels between processes as the sequence of its non-empty buckets, each a pair
/// `[nanoseconds, count]` in ascending order, so that it reads in any JSON tool. What is above the
/// range travels as values above the range.
impl Serialize for LatencyHistogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut buckets = serializer.serialize_seq(None)?;
        let mut above_range = self.above_range;
        for bucket in self.counts.iter_recorded() {
            let value = self.counts.lowest_equivalent(bucket.value_iterated_to());
            let mut count = bucket.count_at_value();
            if self.counts.equivalent(value, HIGHEST_NS) {
                count -= above_range.min(count);
            }
            if count > 0 {
                buckets.serialize_element(&(value, count))?;
            }
        }
        if above_range > 0 {
            buckets.serialize_element(&(u64::MAX, std::mem::take(&mut above_range)))?;
        }
        buckets.end()
    }
}

impl<'de> Deserialize<'de> for LatencyHistogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Buckets;
        impl<'de> Visitor<'de> for Buckets {
            type Value = LatencyHistogram;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("pairs of nanoseconds and count")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pairs: A) -> Result<Self::Value, A::Error> {
                let mut histogram = LatencyHistogram::new();
                let mut total = 0_u64;
                while let Some((value, count)) = pairs.next_element::<(u64, u64)>()? {
                    total = total.checked_add(count).ok_or_else(|| {
                        A::Error::custom("the counts add up to more than 64 bits hold")
                    })?;
                    if value > HIGHEST_NS {
                        histogram.above_range += count;
                    }
                    histogram.counts.saturating_record_n(value, count);
                }
                Ok(histogram)
            }
        }
        deserializer.deserialize_seq(Buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_is_kept_to_one_part_in_a_thousand() {
        for value in [1, 999, 1_000, 123_456, 7_654_321, 59_999_999_999] {
            let mut histogram = LatencyHistogram::new();
            histogram.record(value);
            let kept = histogram.value_at(0.5);
            assert!(
                kept >= value && kept - value <= value / 1000,
                "{value} kept as {kept}"
            );
        }
    }

    #[test]
    fn a_value_above_the_range_is_kept_as_the_highest_and_counted() {
        let mut histogram = LatencyHistogram::new();
        histogram.record(HIGHEST_NS);
        assert_eq!(histogram.above_range(), 0);
        histogram.record(u64::MAX);
        histogram.record_correct(u64::MAX, HIGHEST_NS);
        assert_eq!((histogram.count(), histogram.above_range()), (3, 2));
        assert!(histogram.max() >= HIGHEST_NS);
    }

    #[test]
    fn correction_adds_the_waits_that_nobody_asked_about() {
        // The example of the method's author: a system that stalls for 100 s of 200 s, asked each 10 ms.
        let mut plain = LatencyHistogram::new();
        let mut corrected = LatencyHistogram::new();
        for _ in 0..1000 {
            plain.record(1_000_000);
            corrected.record_correct(1_000_000, 10_000_000);
        }
        plain.record(10_000_000_000);
        corrected.record_correct(10_000_000_000, 10_000_000);
        assert_eq!(plain.count(), 1001);
        assert_eq!(corrected.count(), 2000, "the stall is half of the run");
        assert!(plain.value_at(0.99) < 1_100_000);
        assert!(corrected.value_at(0.99) > 9_700_000_000);
    }

    #[test]
    fn after_a_reset_the_warm_up_is_forgotten() {
        let mut histogram = LatencyHistogram::new();
        histogram.record(u64::MAX);
        histogram.reset();
        assert_eq!(histogram, LatencyHistogram::new());
        assert_eq!(histogram.percentiles().max, 0.0);
    }

    #[test]
    fn recording_in_two_and_merging_is_recording_in_one() {
        let (mut one, mut left, mut right) = Default::default();
        let all: &mut LatencyHistogram = &mut one;
        for n in 0..10_000_u64 {
            let value = n * n * 1009;
            all.record(value);
            let half: &mut LatencyHistogram = if n % 3 == 0 { &mut left } else { &mut right };
            half.record(value);
        }
        left.merge(&right);
        assert_eq!(left, one);
    }

    proptest! {
        #[test]
        fn a_histogram_survives_the_journey_between_processes(
            values in prop::collection::vec(prop_oneof![0..5_000_u64, any::<u64>(), 0..HIGHEST_NS], 0..200)
        ) {
            let mut histogram = LatencyHistogram::new();
            for value in values {
                histogram.record(value);
            }
            let text = serde_json::to_string(&histogram).expect("numbers serialize");
            let back: LatencyHistogram = serde_json::from_str(&text).expect("its own form");
            prop_assert_eq!(back, histogram);
        }

        #[test]
        fn no_sequence_of_pairs_breaks_the_reader(
            pairs in prop::collection::vec(any::<(u64, u64)>(), 0..20)
        ) {
            let text = serde_json::to_string(&pairs).expect("numbers serialize");
            if let Ok(histogram) = serde_json::from_str::<LatencyHistogram>(&text) {
                let total: u128 = pairs.iter().map(|pair| u128::from(pair.1)).sum();
                prop_assert_eq!(u128::from(histogram.count()), total);
            }
        }
    }
}
