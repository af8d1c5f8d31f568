//! A measurement as it went along: one histogram an interval, and the `.hlog` file of them.
//!
//! The total hides when something happened; the interval log keeps it. The file is the one that
//! HdrHistogram's `HistogramLogWriter` writes: `Tag=name,start,length,max,histogram`, seconds since
//! `BaseTime`, the maximum in milliseconds for the reader's eye, and the histogram in V2 encoding,
//! compressed and in base64. Its values are nanoseconds.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};

use crate::histogram::LatencyHistogram;

/// More intervals than this are not kept apart: bounds the memory (each is some 220 KiB).
pub const INTERVALS_MAX: usize = 64;

/// What was recorded in one stretch of time.
#[derive(Debug, Clone)]
pub struct Interval {
    /// When it began.
    pub start: SystemTime,
    /// How long it was.
    pub length: Duration,
    /// What it saw.
    pub latencies: LatencyHistogram,
}

/// Latencies of one kind, over time.
#[derive(Debug, Clone, Default)]
pub struct Series {
    intervals: Vec<Interval>,
}

impl Series {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends what came after everything so far.
    pub fn push(&mut self, interval: Interval) {
        self.intervals.push(interval);
    }

    /// Appends all of `later`.
    pub fn append(&mut self, later: Self) {
        self.intervals.extend(later.intervals);
    }

    /// The intervals, earliest first.
    #[must_use]
    pub fn intervals(&self) -> &[Interval] {
        &self.intervals
    }

    /// Everything recorded.
    #[must_use]
    pub fn total(&self) -> LatencyHistogram {
        let mut total = LatencyHistogram::new();
        for interval in &self.intervals {
            total.merge(&interval.latencies);
        }
        total
    }

    /// Writes the interval log. `tag` names the series in it, for tools that take several logs
    /// apart; characters that a tag may not hold (space, comma, line ends) are written as `-`.
    ///
    /// # Errors
    /// `to` could not be written.
    pub fn write_log(&self, tag: &str, to: &mut impl Write) -> io::Result<()> {
        let tag = tag.replace([' ', ',', '\r', '\n'], "-");
        let origin = self
            .intervals
            .first()
            .map_or(SystemTime::UNIX_EPOCH, |interval| interval.start);
        let mut encoding = V2DeflateSerializer::new();
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment("[Histogram log format version 1.3]")
            .add_comment("[Values are nanoseconds; Interval_Max is in milliseconds]")
            .with_start_time(origin)
            .with_base_time(origin)
            .with_max_value_divisor(1e6)
            .begin_log_with(to, &mut encoding)?;
        for interval in &self.intervals {
            // The wall clock may be set back during a run; the log's times are not negative.
            let start = interval.start.duration_since(origin).unwrap_or_default();
            log.write_histogram(
                interval.latencies.hdr(),
                start,
                interval.length,
                Tag::new(&tag),
            )
            .map_err(|error| match error {
                IntervalLogWriterError::IoError(error) => error,
                IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
            })?;
        }
        Ok(())
    }
}

/// Records a series whose length is known before it starts, without allocating while it runs.
pub struct IntervalRecorder {
    started: SystemTime,
    start_ns: u64,
    interval_ns: u64,
    latencies: Vec<LatencyHistogram>,
}

impl IntervalRecorder {
    /// For a measurement that takes `length`: intervals of one second, or longer ones if that would
    /// be more than [`INTERVALS_MAX`]. Takes all memory now. The first interval begins now, too,
    /// unless [`IntervalRecorder::begin`] says otherwise.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        let length_ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let interval_ns = length_ns.div_ceil(INTERVALS_MAX as u64).max(1_000_000_000);
        let count = length_ns.div_ceil(interval_ns).max(1);
        let latencies = (0..count).map(|_| LatencyHistogram::new()).collect();
        Self {
            started: SystemTime::now(),
            start_ns: crate::stamp::now(),
            interval_ns,
            latencies,
        }
    }

    /// The first interval begins at `start_ns` of [`crate::stamp::now`]: now, or soon. Nothing is
    /// recorded yet.
    pub fn begin(&mut self, start_ns: u64) {
        let ahead = start_ns.saturating_sub(crate::stamp::now());
        self.started = SystemTime::now() + Duration::from_nanos(ahead);
        self.start_ns = start_ns;
    }

    /// Records the latency `ns` of something that ended at `at_ns`. What ends after the last interval
    /// belongs to the last.
    pub fn record(&mut self, at_ns: u64, ns: u64) {
        let index = at_ns.saturating_sub(self.start_ns) / self.interval_ns;
        let last = self.latencies.len() - 1;
        let index = usize::try_from(index).map_or(last, |index| index.min(last));
        self.latencies[index].record(ns);
    }

    /// The series; its last interval ends at `end_ns`, and intervals that never began are left out.
    #[must_use]
    pub fn finish(self, end_ns: u64) -> Series {
        let length_ns = end_ns.saturating_sub(self.start_ns);
        let last = self.latencies.len() - 1;
        let mut series = Series::new();
        for (index, latencies) in self.latencies.into_iter().enumerate() {
            let offset_ns = index as u64 * self.interval_ns;
            if offset_ns > length_ns && latencies.count() == 0 {
                break;
            }
            let rest_ns = length_ns.saturating_sub(offset_ns);
            let length_ns = if index == last {
                rest_ns
            } else {
                rest_ns.min(self.interval_ns)
            };
            series.push(Interval {
                start: self.started + Duration::from_nanos(offset_ns),
                length: Duration::from_nanos(length_ns),
                latencies,
            });
        }
        series
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_latency_belongs_to_the_interval_in_which_it_ended() {
        let mut recorder = IntervalRecorder::new(Duration::from_millis(2500));
        recorder.begin(5 * SECOND);
        recorder.record(5 * SECOND, 10);
        recorder.record(6 * SECOND - 1, 10);
        recorder.record(6 * SECOND, 20);
        recorder.record(7 * SECOND + 1, 30);
        recorder.record(60 * SECOND, 40);
        let series = recorder.finish(8 * SECOND);
        let seen: Vec<_> = series
            .intervals()
            .iter()
            .map(|interval| (interval.latencies.count(), interval.length.as_millis()))
            .collect();
        assert_eq!(seen, [(2, 1000), (1, 1000), (2, 1000)]);
        assert_eq!(series.total().count(), 5);
    }

    #[test]
    fn intervals_are_bounded_however_long_the_run() {
        let recorder = IntervalRecorder::new(Duration::from_secs(1_000_000));
        assert_eq!(recorder.latencies.len(), INTERVALS_MAX);
    }

    #[test]
    fn a_run_that_was_stopped_early_has_no_intervals_behind_its_end() {
        let mut recorder = IntervalRecorder::new(Duration::from_secs(10));
        recorder.begin(0);
        recorder.record(SECOND / 2, 7);
        let series = recorder.finish(SECOND * 3 / 2);
        assert_eq!(series.intervals().len(), 2);
        assert_eq!(series.intervals()[1].length, Duration::from_millis(500));
    }

    #[test]
    fn the_log_holds_every_interval_under_its_tag() {
        let mut series = Series::new();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for n in 0..3_u32 {
            let mut latencies = LatencyHistogram::new();
            for value in 0..=n {
                latencies.record(u64::from(value) * 1_000_000 + 1);
            }
            series.push(Interval {
                start: start + Duration::from_secs(u64::from(n)),
                length: Duration::from_secs(1),
                latencies,
            });
        }
        let mut bytes = Vec::new();
        series
            .write_log("two words,comma", &mut bytes)
            .expect("memory");
        let text = String::from_utf8(bytes.clone()).expect("ASCII");
        assert!(
            text.contains("#[BaseTime: 1700000000.000 (seconds since epoch)]"),
            "{text}"
        );
        let mut starts = Vec::new();
        for entry in IntervalLogIterator::new(&bytes) {
            if let LogEntry::Interval(interval) = entry.expect("the log parses") {
                assert_eq!(interval.tag().as_deref(), Some("two-words-comma"));
                starts.push((interval.start_timestamp().as_secs(), interval.max().round()));
            }
        }
        assert_eq!(starts, [(0, 0.0), (1, 1.0), (2, 2.0)]);
    }
}
