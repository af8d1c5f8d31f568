//! The way of a disk request, stage by stage.
//!
//! ```text
//!   kick ──▶ allowed ──▶ started ──▶ ended
//!   the      its entry   handed to   the host's
//!   guest's  is acked    the kernel  disk is done
//!   doorbell
//! ```
//!
//! The first stretch is what the output rule adds; the second, what order among requests to the same
//! blocks does; the third is the disk's own.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::histogram::LatencyHistogram;

/// When a disk request passed each stage: nanoseconds of [`crate::stamp::now`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskStamps {
    /// The guest rang the device's doorbell.
    pub kick: u64,
    /// The output rule let it go; for a read, the kick.
    pub allowed: u64,
    /// It was handed to the kernel.
    pub started: u64,
    /// Its end was seen.
    pub ended: u64,
}

/// A stretch of a disk request's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskStage {
    /// From the doorbell until the output rule let it go; of requests that it holds.
    Held,
    /// From there until it was started: earlier requests to the same blocks came first.
    Queued,
    /// From there until its end was seen.
    Busy,
}

impl DiskStage {
    /// All, in the order in which a request passes them.
    pub const ALL: [Self; 3] = [Self::Held, Self::Queued, Self::Busy];

    /// Name in files and plots.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "disk-held",
            Self::Queued => "disk-queued",
            Self::Busy => "disk-busy",
        }
    }
}

impl fmt::Display for DiskStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thread's histograms of all stages of disk requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DiskHistograms {
    held: LatencyHistogram,
    queued: LatencyHistogram,
    busy: LatencyHistogram,
}

impl DiskHistograms {
    /// Empty ones.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a request that has ended; `held` says that the output rule is about it.
    pub fn record(&mut self, stamps: &DiskStamps, held: bool) {
        if held {
            self.held.record(stamps.allowed.saturating_sub(stamps.kick));
        }
        self.queued
            .record(stamps.started.saturating_sub(stamps.allowed));
        self.busy
            .record(stamps.ended.saturating_sub(stamps.started));
    }

    /// The histogram of one stage.
    #[must_use]
    pub fn get(&self, stage: DiskStage) -> &LatencyHistogram {
        match stage {
            DiskStage::Held => &self.held,
            DiskStage::Queued => &self.queued,
            DiskStage::Busy => &self.busy,
        }
    }

    /// Adds what another thread or process recorded.
    pub fn merge(&mut self, other: &Self) {
        self.held.merge(&other.held);
        self.queued.merge(&other.queued);
        self.busy.merge(&other.busy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_has_no_stretch_in_which_the_output_rule_held_it() {
        let mut stages = DiskHistograms::new();
        let stamps = DiskStamps {
            kick: 1_000,
            allowed: 3_000,
            started: 3_500,
            ended: 90_000,
        };
        stages.record(&stamps, true);
        let read = DiskStamps {
            allowed: 1_000,
            ..stamps
        };
        stages.record(&read, false);
        let counts = DiskStage::ALL.map(|stage| stages.get(stage).count());
        assert_eq!(counts, [1, 2, 2]);
        let mut all = stages.clone();
        all.merge(&stages);
        assert_eq!(all.get(DiskStage::Busy).count(), 4);
    }
}
