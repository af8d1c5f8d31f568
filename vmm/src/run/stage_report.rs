//! Stage histograms of a run, without its warm-up.

use lockstep_perf::stages::{OutputStamps, StageHistograms};

/// Records outputs that were kicked after the warm-up.
#[derive(Debug)]
pub(super) struct StageReport {
    histograms: StageHistograms,
    from: u64,
}

impl StageReport {
    /// Counts what was kicked at `from` or later, on the stamps' clock.
    pub fn from(from: u64) -> Self {
        Self {
            histograms: StageHistograms::new(),
            from,
        }
    }

    pub fn record(&mut self, stamps: &OutputStamps) {
        if stamps.kick >= self.from {
            self.histograms.record(stamps);
        }
    }

    pub fn into_histograms(self) -> StageHistograms {
        self.histograms
    }
}
