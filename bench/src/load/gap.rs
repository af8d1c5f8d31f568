//! The longest silence.

use std::time::Duration;

/// A stretch of time in which requests were in flight and no reply came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Gap {
    /// When it began, nanoseconds of `CLOCK_MONOTONIC`: the last reply before it, or the request that
    /// ended an idle time.
    pub start_ns: u64,
    /// How long it was.
    pub length: Duration,
}

/// Finds the longest.
#[derive(Debug, Default)]
pub(crate) struct GapTracker {
    waiting_since: Option<u64>,
    worst: Gap,
}

impl GapTracker {
    pub(crate) fn sent(&mut self, now: u64) {
        self.waiting_since.get_or_insert(now);
    }

    /// A reply came, and leaves `outstanding` requests in flight.
    pub(crate) fn replied(&mut self, now: u64, outstanding: usize) {
        self.close(now);
        self.waiting_since = (outstanding > 0).then_some(now);
    }

    /// The run is over, and so is a gap that no reply ended.
    pub(crate) fn finish(mut self, now: u64) -> Gap {
        self.close(now);
        self.worst
    }

    fn close(&mut self, now: u64) {
        if let Some(since) = self.waiting_since {
            let length = Duration::from_nanos(now.saturating_sub(since));
            if length > self.worst.length {
                self.worst = Gap {
                    start_ns: since,
                    length,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(start_ns: u64, length_ns: u64) -> Gap {
        Gap {
            start_ns,
            length: Duration::from_nanos(length_ns),
        }
    }

    #[test]
    fn a_time_without_requests_is_no_gap() {
        let mut tracker = GapTracker::default();
        tracker.sent(100);
        tracker.replied(130, 0);
        tracker.sent(9_000);
        tracker.replied(9_020, 0);
        assert_eq!(tracker.finish(50_000), gap(100, 30));
    }

    #[test]
    fn a_gap_begins_at_the_last_reply_while_others_wait() {
        let mut tracker = GapTracker::default();
        tracker.sent(100);
        tracker.sent(110);
        tracker.replied(120, 1);
        tracker.sent(300);
        tracker.replied(500, 1);
        tracker.replied(501, 0);
        assert_eq!(tracker.finish(900), gap(120, 380));
    }

    #[test]
    fn a_silence_that_never_ends_counts_until_the_end() {
        let mut tracker = GapTracker::default();
        tracker.sent(100);
        assert_eq!(tracker.finish(1_100), gap(100, 1_000));
    }
}
