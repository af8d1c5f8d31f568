//! The backup's role.
//!
//! ```text
//! Replaying ──suspicion──▶ Sealing ──▶ Draining ──▶ Arbitrating ──won──▶ Live
//!     │  └──divergence──▶ Refused ◀───────┘             └──────lost──▶ Halted
//!     └──the log ended in order──▶ Ended
//! ```
//!
//! The order matters. First the backup stops acknowledging ([`BackupAction::Seal`]): what it
//! acknowledged, the primary may have released, so everything acknowledged must be replayed, and
//! nothing may be acknowledged that will not be. Then it drains. Only a machine that has the whole
//! log, and is known to equal the primary's, asks the arbiter.

use std::collections::VecDeque;

use super::arbiter::{Answer, Arbitration, ArbitrationSettings, Claim, Party, Verdict};
use super::detector::{Detector, DetectorSettings, Suspicion};
use super::gate::ReleaseLimit;
use super::log::{EndReason, Sequence};
use super::times::FailoverTimes;

/// Where a backup stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupState {
    /// It follows the primary.
    Replaying,
    /// The primary is suspected; acknowledging is being stopped.
    Sealing(Suspicion),
    /// Nothing more is acknowledged; the rest of the log is being replayed.
    Draining(Suspicion),
    /// The log is replayed; the arbiter decides.
    Arbitrating(Suspicion),
    /// It won: it is the machine now.
    Live,
    /// It must not go on.
    Halted(BackupHalt),
    /// The log ended in order.
    Ended(EndReason),
}

/// Why a backup halted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupHalt {
    /// The arbiter gave the generation to the other side.
    #[error("{to} won generation {generation}: this backup must not go live; clone it again")]
    Lost {
        /// The winner.
        to: Party,
        /// The pairing's.
        generation: u64,
    },
    /// It is not known to equal the primary. The message names what differs.
    #[error("refused to go on: {0}; clone this backup again")]
    Refused(String),
    /// It acknowledged entries that it does not have.
    #[error(
        "entries up to {acknowledged} were acknowledged, and only those up to {replayed} replayed: \
         the log was damaged; this backup must not go live"
    )]
    LogLost {
        /// The last entry acknowledged.
        acknowledged: Sequence,
        /// The last entry replayed.
        replayed: Sequence,
    },
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupAction {
    /// From here on nothing may be acknowledged: seal the shared ring, or stop the receiver and close
    /// the connection. Stop the heartbeats. Then call [`Backup::sealed`].
    Seal(Suspicion),
    /// Replay the rest of the log until a step finds no complete entry, then call
    /// [`Backup::drained`].
    Drain,
    /// Put the claim to the arbiter and hand the answer to [`Backup::arbiter_answered`]. May come
    /// again before the last one was answered.
    TestAndSet(Claim),
    /// Take [`super::replayer::Replayer::go_live`], announce the MAC, send the outputs it returns, run
    /// on.
    GoLive,
    /// Close the channel, execute nothing and send nothing, ever again. The primary will notice, and
    /// go on alone.
    Halt(BackupHalt),
}

/// The backup's role as a state machine.
///
/// Every method takes `now`, which never goes back. After each call the driver carries out
/// [`Backup::next_action`] until there is none.
#[derive(Debug)]
pub struct Backup {
    state: BackupState,
    claim: Claim,
    settings: ArbitrationSettings,
    detector: Detector,
    arbitration: Option<Arbitration>,
    /// The last entry that may have been acknowledged, once sealed.
    acknowledged: Sequence,
    times: Option<FailoverTimes>,
    actions: VecDeque<BackupAction>,
}

impl Backup {
    /// A backup that has just been paired. `claim` is what it will put to the arbiter should the
    /// primary be lost.
    #[must_use]
    pub fn new(
        claim: Claim,
        detector: DetectorSettings,
        arbitration: ArbitrationSettings,
        now: u64,
    ) -> Self {
        Self {
            state: BackupState::Replaying,
            claim,
            settings: arbitration,
            detector: Detector::new(detector, now),
            arbitration: None,
            acknowledged: Sequence::NONE,
            times: None,
            actions: VecDeque::with_capacity(4),
        }
    }

    /// Where it stands.
    #[must_use]
    pub const fn state(&self) -> &BackupState {
        &self.state
    }

    /// Whether what is received may be acknowledged.
    #[must_use]
    pub const fn may_acknowledge(&self) -> bool {
        matches!(self.state, BackupState::Replaying)
    }

    /// Whether the replayer should be stepped.
    #[must_use]
    pub const fn may_replay(&self) -> bool {
        matches!(
            self.state,
            BackupState::Replaying | BackupState::Draining(_)
        )
    }

    /// How far outputs may leave at this moment: all of them once it is live, none before.
    #[must_use]
    pub const fn release_limit(&self) -> ReleaseLimit {
        match self.state {
            BackupState::Live => ReleaseLimit::Everything,
            _ => ReleaseLimit::Nothing,
        }
    }

    /// Something to do, oldest first.
    pub fn next_action(&mut self) -> Option<BackupAction> {
        self.actions.pop_front()
    }

    /// A heartbeat, an entry, anything valid came from the primary.
    pub fn heard(&mut self, now: u64) {
        self.detector.heard(now);
    }

    /// The log has been received up to `sequence`; `outstanding` says that the primary is known to
    /// have released, or written, entries behind it.
    pub fn received(&mut self, now: u64, sequence: Sequence, outstanding: bool) {
        self.detector.progress(now, sequence.0, outstanding);
    }

    /// The primary is lost: the connection is gone, or what comes is not the protocol.
    pub fn suspect(&mut self, now: u64, suspicion: Suspicion) {
        if self.state != BackupState::Replaying {
            return;
        }
        self.times = Some(FailoverTimes::suspected(self.detector.last_heard(), now));
        self.state = BackupState::Sealing(suspicion);
        self.actions.push_back(BackupAction::Seal(suspicion));
    }

    /// Nothing is acknowledged any more. `acknowledged` is the last entry that was, as far as the
    /// receiver knows; on a sealed ring, where a commit is the acknowledgement, it is
    /// [`Sequence::NONE`] and the ring itself holds everything.
    pub fn sealed(&mut self, acknowledged: Sequence) {
        if let BackupState::Sealing(suspicion) = self.state {
            self.acknowledged = acknowledged;
            self.state = BackupState::Draining(suspicion);
            self.actions.push_back(BackupAction::Drain);
        }
    }

    /// A step that began after [`BackupAction::Drain`] found no complete entry; the last one
    /// replayed is `replayed`.
    pub fn drained(&mut self, now: u64, replayed: Sequence) {
        let BackupState::Draining(suspicion) = self.state else {
            return;
        };
        if replayed < self.acknowledged {
            let acknowledged = self.acknowledged;
            return self.halt(BackupHalt::LogLost {
                acknowledged,
                replayed,
            });
        }
        if let Some(times) = &mut self.times {
            times.caught_up = Some(now);
        }
        self.state = BackupState::Arbitrating(suspicion);
        self.arbitration = Some(Arbitration::new(self.claim.clone(), self.settings, now));
        self.tick(now);
    }

    /// Replay failed (the error's text), or the machine did. This side will never go live.
    pub fn refuse(&mut self, why: String) {
        use BackupState::{Arbitrating, Draining, Replaying, Sealing};
        if matches!(
            self.state,
            Replaying | Sealing(_) | Draining(_) | Arbitrating(_)
        ) {
            self.halt(BackupHalt::Refused(why));
        }
    }

    /// The replayer reached the log's end.
    pub fn ended(&mut self, reason: EndReason) {
        use BackupState::{Draining, Replaying, Sealing};
        if matches!(self.state, Replaying | Sealing(_) | Draining(_)) {
            self.state = BackupState::Ended(reason);
        }
    }

    /// Time has passed. To be called at [`Backup::deadline`] at the latest, and at least every
    /// quarter of the shorter timeout, after everything that had arrived was handed in.
    pub fn tick(&mut self, now: u64) {
        match &self.state {
            BackupState::Replaying => {
                if let Some(suspicion) = self.detector.poll(now) {
                    self.suspect(now, suspicion);
                }
            }
            BackupState::Arbitrating(_) => {
                if let Some(claim) = self.arbitration.as_mut().and_then(|a| a.poll(now)) {
                    self.actions
                        .push_back(BackupAction::TestAndSet(claim.clone()));
                }
            }
            BackupState::Sealing(_)
            | BackupState::Draining(_)
            | BackupState::Live
            | BackupState::Halted(_)
            | BackupState::Ended(_) => {}
        }
    }

    /// When [`Backup::tick`] has something to do if nothing happens until then.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        match self.state {
            BackupState::Replaying => Some(self.detector.deadline()),
            BackupState::Arbitrating(_) => self.arbitration.as_ref()?.deadline(),
            _ => None,
        }
    }

    /// The arbiter answered an attempt, or could not.
    pub fn arbiter_answered(&mut self, now: u64, answer: Answer) {
        let BackupState::Arbitrating(_) = self.state else {
            return;
        };
        let Some(verdict) = self.arbitration.as_mut().and_then(|a| a.answer(answer)) else {
            return;
        };
        match verdict.clone() {
            Verdict::Won => {
                self.state = BackupState::Live;
                self.actions.push_back(BackupAction::GoLive);
            }
            Verdict::Lost { to } => {
                self.halt(BackupHalt::Lost {
                    to,
                    generation: self.claim.generation,
                });
            }
        }
        if let Some(times) = &mut self.times {
            times.arbitrated = Some(now);
        }
    }

    /// The first output after going live has left.
    pub fn output_left(&mut self, now: u64) {
        if let (BackupState::Live, Some(times)) = (&self.state, &mut self.times) {
            times.first_output.get_or_insert(now);
        }
    }

    fn halt(&mut self, why: BackupHalt) {
        self.state = BackupState::Halted(why.clone());
        self.actions.push_back(BackupAction::Halt(why));
    }

    /// How long the failover took, once there was one.
    #[must_use]
    pub const fn times(&self) -> Option<&FailoverTimes> {
        self.times.as_ref()
    }
}

#[cfg(test)]
mod tests;
