//! How long a failover took, part by part.

/// Moments of one failover, in nanoseconds on the clock of the side that went through it. Each part
/// is reported by itself: they have different causes and different remedies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FailoverTimes {
    /// The peer was heard for the last time.
    pub last_heard: u64,
    /// The peer was taken for dead.
    pub suspected: u64,
    /// The log was drained (a backup; on a primary the same moment as `suspected`).
    pub caught_up: Option<u64>,
    /// The arbiter's verdict was there.
    pub arbitrated: Option<u64>,
    /// The first output left.
    pub first_output: Option<u64>,
}

impl FailoverTimes {
    /// The peer is suspected now.
    #[must_use]
    pub const fn suspected(last_heard: u64, now: u64) -> Self {
        let suspected = now;
        Self {
            last_heard,
            suspected,
            caught_up: None,
            arbitrated: None,
            first_output: None,
        }
    }

    /// From the last sign of life to suspicion. A peer that died between two signs died later than
    /// the first, so this is an upper bound.
    #[must_use]
    pub const fn detection(&self) -> u64 {
        self.suspected.saturating_sub(self.last_heard)
    }

    /// From suspicion to the last entry replayed.
    #[must_use]
    pub fn catch_up(&self) -> Option<u64> {
        Some(self.caught_up?.saturating_sub(self.suspected))
    }

    /// From the last entry replayed to the verdict.
    #[must_use]
    pub fn arbitration(&self) -> Option<u64> {
        Some(self.arbitrated?.saturating_sub(self.caught_up?))
    }

    /// From the verdict to the first output.
    #[must_use]
    pub fn first_output_after(&self) -> Option<u64> {
        Some(self.first_output?.saturating_sub(self.arbitrated?))
    }
}
