//! The way of an output through the output rule, stage by stage.
//!
//! ```text
//!   kick ──▶ committed ──▶ sent ──▶ acked ──▶ released
//!   the      its entry     handed   the backup  given to
//!   guest's  is in the     to the   holds it    the world
//!   doorbell log ring      transport
//! ```
//!
//! An [`OutputStamps`] travels with the held output: the vCPU's thread fills in the first stamps, the
//! thread that flushes and the one that releases fill in theirs (one and the same with inline flush).
//! Whoever releases records it into a [`StageHistograms`] of its own; those of several threads or
//! processes are merged afterwards. Nothing here locks, allocates or makes a system call.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::histogram::LatencyHistogram;

/// When an output passed each stage: nanoseconds of [`crate::stamp::now`], 0 where it did not pass.
///
/// Forty bytes, by value, in the record of the held output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutputStamps {
    /// The guest rang the device's doorbell.
    pub kick: u64,
    /// The output's log entry was committed to the ring.
    pub committed: u64,
    /// The transport was handed the entry: the submission of the send returned, or, where a ring is
    /// shared, the commit itself.
    pub sent: u64,
    /// An acknowledgement that covers the entry was seen.
    pub acked: u64,
    /// The output was given to the world.
    pub released: u64,
}

/// A stretch of an output's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// From the doorbell until the entry is in the log.
    KickToCommitted,
    /// From there until the transport has it.
    CommittedToSent,
    /// From there until the acknowledgement is seen.
    SentToAcked,
    /// From there until the world has it.
    AckedToReleased,
    /// All of it: what a packet waits inside the host.
    KickToReleased,
}

impl Stage {
    /// All, in the order in which an output passes them; the whole way last.
    pub const ALL: [Self; 5] = [
        Self::KickToCommitted,
        Self::CommittedToSent,
        Self::SentToAcked,
        Self::AckedToReleased,
        Self::KickToReleased,
    ];

    /// Name in files and plots.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KickToCommitted => "kick-committed",
            Self::CommittedToSent => "committed-sent",
            Self::SentToAcked => "sent-acked",
            Self::AckedToReleased => "acked-released",
            Self::KickToReleased => "kick-released",
        }
    }

    /// How long `output` took for it; `None` where one of the two ends was not passed, as all inner
    /// stages are in an unprotected run.
    #[must_use]
    pub fn of(self, output: &OutputStamps) -> Option<u64> {
        let (from, to) = match self {
            Self::KickToCommitted => (output.kick, output.committed),
            Self::CommittedToSent => (output.committed, output.sent),
            Self::SentToAcked => (output.sent, output.acked),
            Self::AckedToReleased => (output.acked, output.released),
            Self::KickToReleased => (output.kick, output.released),
        };
        // Two threads' stamps of nearly the same instant may stand in the wrong order by some tens of
        // nanoseconds; and an inline flush may see the ack before its own send returns. Both are 0.
        (from != 0 && to != 0).then(|| to.saturating_sub(from))
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thread's histograms of all stages: a little over a mebibyte, taken when it is made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StageHistograms {
    kick_committed: LatencyHistogram,
    committed_sent: LatencyHistogram,
    sent_acked: LatencyHistogram,
    acked_released: LatencyHistogram,
    kick_released: LatencyHistogram,
}

impl StageHistograms {
    /// Empty ones.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records an output that was released. Stages that it did not pass are left alone.
    pub fn record(&mut self, output: &OutputStamps) {
        for stage in Stage::ALL {
            if let Some(ns) = stage.of(output) {
                self.get_mut(stage).record(ns);
            }
        }
    }

    /// The histogram of one stage.
    #[must_use]
    pub fn get(&self, stage: Stage) -> &LatencyHistogram {
        match stage {
            Stage::KickToCommitted => &self.kick_committed,
            Stage::CommittedToSent => &self.committed_sent,
            Stage::SentToAcked => &self.sent_acked,
            Stage::AckedToReleased => &self.acked_released,
            Stage::KickToReleased => &self.kick_released,
        }
    }

    fn get_mut(&mut self, stage: Stage) -> &mut LatencyHistogram {
        match stage {
            Stage::KickToCommitted => &mut self.kick_committed,
            Stage::CommittedToSent => &mut self.committed_sent,
            Stage::SentToAcked => &mut self.sent_acked,
            Stage::AckedToReleased => &mut self.acked_released,
            Stage::KickToReleased => &mut self.kick_released,
        }
    }

    /// Adds what another thread or process recorded.
    pub fn merge(&mut self, other: &Self) {
        for stage in Stage::ALL {
            self.get_mut(stage).merge(other.get(stage));
        }
    }

    /// Forgets everything: the warm-up is over.
    pub fn reset(&mut self) {
        for stage in Stage::ALL {
            self.get_mut(stage).reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_stages_of_an_output_add_up_to_the_whole_way() {
        let output = OutputStamps {
            kick: 1_000,
            committed: 1_300,
            sent: 1_310,
            acked: 15_000,
            released: 15_500,
        };
        let taken: Vec<u64> = Stage::ALL
            .iter()
            .map(|stage| stage.of(&output).expect("passed"))
            .collect();
        assert_eq!(taken, [300, 10, 13_690, 500, 14_500]);
        assert_eq!(taken[..4].iter().sum::<u64>(), taken[4]);
    }

    #[test]
    fn an_unprotected_output_has_a_whole_way_and_no_stages() {
        let mut stages = StageHistograms::new();
        stages.record(&OutputStamps {
            kick: 5,
            released: 25,
            ..OutputStamps::default()
        });
        for stage in Stage::ALL {
            let expected = u64::from(stage == Stage::KickToReleased);
            assert_eq!(stages.get(stage).count(), expected, "{stage}");
        }
    }

    #[test]
    fn stamps_in_the_wrong_order_count_as_no_time_at_all() {
        let output = OutputStamps {
            sent: 1_020,
            acked: 1_000,
            ..OutputStamps::default()
        };
        assert_eq!(Stage::SentToAcked.of(&output), Some(0));
    }

    proptest! {
        #[test]
        fn what_two_threads_recorded_merges_to_what_one_would_have(
            outputs in prop::collection::vec((any::<[u32; 5]>(), any::<bool>()), 0..50)
        ) {
            let (mut one, mut vcpu, mut channel) =
                (StageHistograms::new(), StageHistograms::new(), StageHistograms::new());
            for (stamps, on_vcpu) in outputs {
                let [kick, committed, sent, acked, released] = stamps.map(u64::from);
                let output = OutputStamps { kick, committed, sent, acked, released };
                one.record(&output);
                if on_vcpu { vcpu.record(&output) } else { channel.record(&output) }
            }
            vcpu.merge(&channel);
            prop_assert_eq!(&vcpu, &one);
            let text = serde_json::to_string(&vcpu).expect("serializes");
            let back: StageHistograms = serde_json::from_str(&text).expect("its own form");
            prop_assert_eq!(back, one);
        }
    }
}
