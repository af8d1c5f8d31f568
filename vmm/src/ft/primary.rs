//! The primary's role.
//!
//! ```text
//! Protected ──suspicion──▶ Arbitrating ──won──▶ Alone
//!     │                        └──────lost──▶ Halted
//!     └──the log ended in order──▶ Ended
//! ```
//!
//! While [`PrimaryState::Arbitrating`] nothing is released and the vCPU stands still; an arbiter out
//! of reach prolongs that, for ever if need be.

use std::collections::VecDeque;

use super::arbiter::{Answer, Arbitration, ArbitrationSettings, Claim, Party, Verdict};
use super::detector::{Detector, DetectorSettings, Suspicion};
use super::gate::ReleaseLimit;
use super::log::Sequence;
use super::times::FailoverTimes;

/// Where a primary stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryState {
    /// A backup follows; outputs wait for it.
    Protected,
    /// The backup is suspected; the arbiter decides.
    Arbitrating(Suspicion),
    /// It won: it goes on without a backup.
    Alone,
    /// It must not go on.
    Halted(PrimaryHalt),
    /// The machine ended in order, and so did the log.
    Ended,
}

/// Why a primary halted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrimaryHalt {
    /// The arbiter gave the generation to the other side.
    #[error("{to} won generation {generation}: this primary must not go on")]
    Lost {
        /// The winner.
        to: Party,
        /// The pairing's.
        generation: u64,
    },
    /// The machine or its host failed.
    #[error("the primary's machine failed: {0}")]
    Failed(String),
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryAction {
    /// Stop the vCPU at its next position, close the channel, stop the heartbeats: whatever the
    /// backup makes of it, the arbiter decides between the two.
    Disconnect(Suspicion),
    /// Put the claim to the arbiter and hand the answer to [`Primary::arbiter_answered`]. May come
    /// again before the last one was answered.
    TestAndSet(Claim),
    /// Release everything held and run on, recording into [`super::log::Unlogged`].
    GoAlone,
    /// Release nothing, execute nothing, ever again.
    Halt(PrimaryHalt),
}

/// The primary's role as a state machine.
///
/// Every method takes `now`, which never goes back. After each call the driver carries out
/// [`Primary::next_action`] until there is none.
#[derive(Debug)]
pub struct Primary {
    state: PrimaryState,
    claim: Claim,
    settings: ArbitrationSettings,
    detector: Detector,
    arbitration: Option<Arbitration>,
    acknowledged: Sequence,
    /// Nothing is released before this entry is acknowledged.
    fence: Sequence,
    times: Option<FailoverTimes>,
    actions: VecDeque<PrimaryAction>,
}

impl Primary {
    /// A primary whose backup has just been paired with it. `claim` is what it will put to the
    /// arbiter should that backup be lost.
    #[must_use]
    pub fn new(
        claim: Claim,
        detector: DetectorSettings,
        arbitration: ArbitrationSettings,
        now: u64,
    ) -> Self {
        Self {
            state: PrimaryState::Protected,
            claim,
            settings: arbitration,
            detector: Detector::new(detector, now),
            arbitration: None,
            acknowledged: Sequence::NONE,
            fence: Sequence::NONE,
            times: None,
            actions: VecDeque::with_capacity(4),
        }
    }

    /// Where it stands.
    #[must_use]
    pub const fn state(&self) -> &PrimaryState {
        &self.state
    }

    /// How far outputs may leave at this moment. Cheap: to be asked again before each release.
    #[must_use]
    pub fn release_limit(&self) -> ReleaseLimit {
        match self.state {
            PrimaryState::Protected if self.acknowledged < self.fence => ReleaseLimit::Nothing,
            PrimaryState::Protected => ReleaseLimit::UpTo(self.acknowledged),
            PrimaryState::Alone => ReleaseLimit::Everything,
            PrimaryState::Ended => ReleaseLimit::UpTo(self.acknowledged),
            PrimaryState::Arbitrating(_) | PrimaryState::Halted(_) => ReleaseLimit::Nothing,
        }
    }

    /// Whether the vCPU may execute.
    #[must_use]
    pub const fn may_run(&self) -> bool {
        matches!(self.state, PrimaryState::Protected | PrimaryState::Alone)
    }

    /// Something to do, oldest first.
    pub fn next_action(&mut self) -> Option<PrimaryAction> {
        self.actions.pop_front()
    }

    /// The backup has every entry up to `sequence`; `outstanding` says that there are entries (or a
    /// vCPU waiting to write one) behind it. Also to be called when only `outstanding` changed.
    ///
    /// On shared memory, where a commit is the acknowledgement: the entry was committed, and the ring
    /// was found not sealed *after* that. Acknowledgements count for nothing once the backup is
    /// suspected.
    pub fn acknowledged(&mut self, now: u64, sequence: Sequence, outstanding: bool) {
        if self.state == PrimaryState::Protected || self.state == PrimaryState::Ended {
            self.acknowledged = self.acknowledged.max(sequence);
            self.detector
                .progress(now, self.acknowledged.0, outstanding);
        }
    }

    /// This process stood still for so long that the backup may have gone live meanwhile; `written`
    /// is an entry that was written after that. Acknowledgements that had arrived before prove
    /// nothing any more: what they would release, the new primary has sent again, and sending it from
    /// here would draw the network's traffic back to a machine that is about to halt. Only a backup
    /// that still is one acknowledges `written`.
    pub fn stood_still(&mut self, written: Sequence) {
        self.fence = self.fence.max(written);
    }

    /// A heartbeat, an acknowledgement, anything valid came from the backup.
    pub fn heard(&mut self, now: u64) {
        self.detector.heard(now);
    }

    /// The backup is lost, or useless: the connection is gone, the ring is sealed, it refused.
    pub fn suspect(&mut self, now: u64, suspicion: Suspicion) {
        if self.state != PrimaryState::Protected {
            return;
        }
        let mut times = FailoverTimes::suspected(self.detector.last_heard(), now);
        times.caught_up = Some(now);
        self.times = Some(times);
        self.state = PrimaryState::Arbitrating(suspicion);
        self.actions.push_back(PrimaryAction::Disconnect(suspicion));
        self.arbitration = Some(Arbitration::new(self.claim.clone(), self.settings, now));
        self.tick(now);
    }

    /// Time has passed. To be called at [`Primary::deadline`] at the latest, and at least every
    /// quarter of the shorter timeout, after everything that had arrived was handed in.
    pub fn tick(&mut self, now: u64) {
        match &self.state {
            PrimaryState::Protected => {
                if let Some(suspicion) = self.detector.poll(now) {
                    self.suspect(now, suspicion);
                }
            }
            PrimaryState::Arbitrating(_) => {
                if let Some(claim) = self.arbitration.as_mut().and_then(|a| a.poll(now)) {
                    self.actions
                        .push_back(PrimaryAction::TestAndSet(claim.clone()));
                }
            }
            PrimaryState::Alone | PrimaryState::Halted(_) | PrimaryState::Ended => {}
        }
    }

    /// When [`Primary::tick`] has something to do if nothing happens until then.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        match self.state {
            PrimaryState::Protected => Some(self.detector.deadline()),
            PrimaryState::Arbitrating(_) => self.arbitration.as_ref()?.deadline(),
            PrimaryState::Alone | PrimaryState::Halted(_) | PrimaryState::Ended => None,
        }
    }

    /// The arbiter answered an attempt, or could not.
    pub fn arbiter_answered(&mut self, now: u64, answer: Answer) {
        let PrimaryState::Arbitrating(_) = self.state else {
            return;
        };
        let Some(verdict) = self.arbitration.as_mut().and_then(|a| a.answer(answer)) else {
            return;
        };
        match verdict.clone() {
            Verdict::Won => {
                self.state = PrimaryState::Alone;
                self.actions.push_back(PrimaryAction::GoAlone);
            }
            Verdict::Lost { to } => {
                self.halt(PrimaryHalt::Lost {
                    to,
                    generation: self.claim.generation,
                });
            }
        }
        if let Some(times) = &mut self.times {
            times.arbitrated = Some(now);
        }
    }

    /// The first output after going alone has left.
    pub fn output_left(&mut self, now: u64) {
        if let (PrimaryState::Alone, Some(times)) = (&self.state, &mut self.times) {
            times.first_output.get_or_insert(now);
        }
    }

    /// The machine, or what it stands on, failed. The backup may do better: no arbitration, it will
    /// find this side gone.
    pub fn failed(&mut self, why: String) {
        if !matches!(self.state, PrimaryState::Halted(_) | PrimaryState::Ended) {
            self.halt(PrimaryHalt::Failed(why));
        }
    }

    /// The log's end was written: the backup's leaving is expected from here on.
    pub fn ended(&mut self) {
        if matches!(self.state, PrimaryState::Protected | PrimaryState::Alone) {
            self.state = PrimaryState::Ended;
        }
    }

    fn halt(&mut self, why: PrimaryHalt) {
        self.state = PrimaryState::Halted(why.clone());
        self.actions.push_back(PrimaryAction::Halt(why));
    }

    /// How long the failover took, once there was one.
    #[must_use]
    pub const fn times(&self) -> Option<&FailoverTimes> {
        self.times.as_ref()
    }
}

#[cfg(test)]
mod tests;
