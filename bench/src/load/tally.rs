//! What every client counts and times while it runs, and what those report that keep connections.

use super::gap::{Gap, GapTracker};
use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::interval::{IntervalRecorder, Series};
use std::time::Duration;

/// Errors and losses that are kept as text.
pub(crate) const EXAMPLES: usize = 8;

/// What a run records. Times are nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) struct Tally {
    pub(crate) latency: IntervalRecorder,
    pub(crate) service: LatencyHistogram,
    pub(crate) own_delay: LatencyHistogram,
    pub(crate) gap: GapTracker,
    pub(crate) requests: u64,
    pub(crate) answered: u64,
    pub(crate) acknowledged_writes: u64,
    pub(crate) errors: u64,
    pub(crate) error_examples: Vec<String>,
}

impl Tally {
    /// For a run of about `length`.
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            latency: IntervalRecorder::new(length),
            service: LatencyHistogram::new(),
            own_delay: LatencyHistogram::new(),
            gap: GapTracker::default(),
            requests: 0,
            answered: 0,
            acknowledged_writes: 0,
            errors: 0,
            error_examples: Vec::new(),
        }
    }

    /// A request that was due at `due` is sent.
    pub(crate) fn sent(&mut self, now: u64, due: u64) {
        self.requests += 1;
        self.own_delay.record(now.saturating_sub(due));
        self.gap.sent(now);
    }

    /// Its reply came, and leaves `outstanding` requests in flight.
    pub(crate) fn replied(&mut self, now: u64, due: u64, sent: u64, outstanding: usize) {
        self.answered += 1;
        self.gap.replied(now, outstanding);
        self.service.record(now.saturating_sub(sent));
        self.latency.record(now, now.saturating_sub(due));
    }

    /// The reply was not what it should be.
    pub(crate) fn error(&mut self, text: impl FnOnce() -> String) {
        self.errors += 1;
        if self.error_examples.len() < EXAMPLES {
            self.error_examples.push(text());
        }
    }
}

/// What one run over connections saw.
#[derive(Debug, Clone)]
pub struct ConnectionReport {
    /// Latency from when a request was due (open loop) or asked (closed loop) until its reply, one
    /// interval a second. A request without a reply is not in it.
    pub latency: Series,
    /// Latency from when a request was handed to its connection until its reply.
    pub service: LatencyHistogram,
    /// From when a request was due until then: the client's own part, and what waited for room on a
    /// connection. Open loop only.
    pub own_delay: LatencyHistogram,
    /// Requests sent.
    pub requests: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests that were due and not sent, because the run ended before.
    pub unsent: u64,
    /// Writes acknowledged: what stored something, and said so.
    pub acknowledged_writes: u64,
    /// Error replies, replies of another kind than the request has, and reads that showed less than was
    /// acknowledged.
    pub errors: u64,
    /// The first few of them.
    pub error_examples: Vec<String>,
    /// Connections lost since they were opened.
    pub connections_lost: u32,
    /// Why, for the first few.
    pub losses: Vec<String>,
    /// The longest time in which requests were in flight and no reply came.
    pub worst_gap: Gap,
    /// How long the run took, the wait for the last replies included.
    pub length: Duration,
    /// The run ended before its time, and why.
    pub ended_early: Option<String>,
}

impl ConnectionReport {
    /// Of a run from `start` to `end`.
    pub(crate) fn new(tally: Tally, start: u64, end: u64) -> Self {
        Self {
            latency: tally.latency.finish(end),
            service: tally.service,
            own_delay: tally.own_delay,
            requests: tally.requests,
            answered: tally.answered,
            unsent: 0,
            acknowledged_writes: tally.acknowledged_writes,
            errors: tally.errors,
            error_examples: tally.error_examples,
            connections_lost: 0,
            losses: Vec::new(),
            worst_gap: tally.gap.finish(end),
            length: Duration::from_nanos(end - start),
            ended_early: None,
        }
    }

    /// Requests answered a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.length.as_secs_f64().max(1e-9)
    }
}
