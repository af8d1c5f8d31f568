//! When the peer is taken for dead (paper 2.3). Both roles use it.
//!
//! A suspicion may be wrong: a pause, a partition. That is why acting on it goes through the
//! [`crate::ft::arbiter`]. Three signs are watched, each with a reason of its own: the connection is
//! gone (at once); the peer is silent; it sends heartbeats but the log, or its acknowledgement,
//! does not move although it should.

use crate::settings::FailureSettings;

/// Times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetectorSettings {
    /// A peer silent for this long is taken for dead.
    pub silence: u64,
    /// Something outstanding that does not move for this long means the same.
    pub stall: u64,
}

impl From<&FailureSettings> for DetectorSettings {
    fn from(settings: &FailureSettings) -> Self {
        Self {
            silence: u64::from(settings.heartbeat_timeout_ms) * 1_000_000,
            stall: u64::from(settings.stall_timeout_ms) * 1_000_000,
        }
    }
}

/// Why the peer is taken for dead, or for useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Suspicion {
    /// The channel's connection was closed or reset.
    #[error("the connection to the peer was lost")]
    ConnectionLost,
    /// What came over the channel is not the protocol.
    #[error("the peer broke the channel's protocol")]
    ProtocolBroken,
    /// Nothing was heard.
    #[error("the peer was silent for {silent_ns} ns, expected a heartbeat within {timeout_ns} ns")]
    Silent {
        /// How long.
        silent_ns: u64,
        /// The limit.
        timeout_ns: u64,
    },
    /// Something is outstanding, and no progress was seen.
    #[error(
        "no progress beyond {reached} for {stalled_ns} ns, expected some within {timeout_ns} ns"
    )]
    Stalled {
        /// Where it stands: an entry's number, or a count of bytes.
        reached: u64,
        /// How long.
        stalled_ns: u64,
        /// The limit.
        timeout_ns: u64,
    },
    /// The backup sealed the shared ring: it is going live.
    #[error("the backup sealed the log: it takes this primary for dead")]
    Sealed,
    /// The backup refuses to follow any further.
    #[error("the backup refused to go on")]
    Refused,
}

/// Watches one peer.
///
/// Ordering contract: before [`Detector::poll`], the caller has handed in what had arrived: a process
/// that was stopped for a while must read its sockets before it judges its peer's silence.
#[derive(Debug, Clone)]
pub struct Detector {
    settings: DetectorSettings,
    heard: u64,
    /// Silence counts from here: later than `heard` after a pause of our own.
    silent_since: u64,
    polled: u64,
    /// A pause of our own has been allowed for since the peer was last heard.
    excused: bool,
    reached: u64,
    stalled_since: Option<u64>,
}

impl Detector {
    /// Starts to watch at `now`, as if the peer had just been heard.
    #[must_use]
    pub const fn new(settings: DetectorSettings, now: u64) -> Self {
        Self {
            settings,
            heard: now,
            silent_since: now,
            polled: now,
            excused: false,
            reached: 0,
            stalled_since: None,
        }
    }

    /// Something valid came from the peer, at `now` or a little earlier.
    pub fn heard(&mut self, now: u64) {
        self.heard = self.heard.max(now);
        self.silent_since = self.silent_since.max(now);
        self.excused = false;
    }

    /// Where the log stands: the primary hands in the acknowledged entry, the backup the received
    /// one, and whether anything beyond it is known to exist. A number that grows is progress.
    pub const fn progress(&mut self, now: u64, reached: u64, outstanding: bool) {
        let moved = reached > self.reached;
        if moved {
            self.reached = reached;
        }
        if !outstanding {
            self.stalled_since = None;
        } else if moved || self.stalled_since.is_none() {
            self.stalled_since = Some(now);
        }
    }

    /// Looks at the clock. To be called at least every quarter of the shorter timeout.
    ///
    /// When this very process was not running for long (calls further apart than half the silence
    /// allowed), its peer's silence may be its own: the peer gets half the time again, once until it
    /// is heard.
    pub fn poll(&mut self, now: u64) -> Option<Suspicion> {
        let DetectorSettings { silence, stall } = self.settings;
        let paused = now.saturating_sub(self.polled) > silence / 2;
        self.polled = now;
        if paused && !self.excused {
            self.excused = true;
            self.silent_since = self.silent_since.max(now.saturating_sub(silence / 2));
            if let Some(since) = &mut self.stalled_since {
                *since = now;
            }
        }
        if now.saturating_sub(self.silent_since) >= silence {
            let silent_ns = now.saturating_sub(self.heard);
            return Some(Suspicion::Silent {
                silent_ns,
                timeout_ns: silence,
            });
        }
        let stalled_ns = now.saturating_sub(self.stalled_since?);
        (stalled_ns >= stall).then_some(Suspicion::Stalled {
            reached: self.reached,
            stalled_ns,
            timeout_ns: stall,
        })
    }

    /// When [`Detector::poll`] has something to say if nothing happens until then.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        let silent = self.silent_since.saturating_add(self.settings.silence);
        let stalled = self
            .stalled_since
            .map(|since| since.saturating_add(self.settings.stall));
        stalled.map_or(silent, |stalled| stalled.min(silent))
    }

    /// When the peer was last heard.
    #[must_use]
    pub const fn last_heard(&self) -> u64 {
        self.heard
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: DetectorSettings = DetectorSettings {
        silence: 100,
        stall: 60,
    };

    proptest! {
        /// Polled in time, the detector speaks at the first poll at or behind the timeout since the
        /// peer was last heard, and never before.
        #[test]
        fn silence_is_noticed_in_time_and_not_before(
            gaps in proptest::collection::vec((1u64..25, prop::bool::weighted(0.2)), 1..200)
        ) {
            let mut detector = Detector::new(SETTINGS, 0);
            let (mut now, mut heard) = (0, 0);
            for (gap, hears) in gaps {
                now += gap;
                if hears {
                    detector.heard(now);
                    heard = now;
                }
                let silent = now - heard >= SETTINGS.silence;
                prop_assert_eq!(detector.poll(now).is_some(), silent);
                if silent {
                    break;
                }
                prop_assert_eq!(detector.deadline(), heard + SETTINGS.silence);
            }
        }

        #[test]
        fn a_stall_is_outstanding_work_without_progress(
            steps in proptest::collection::vec((1u64..20, 0u64..2, any::<bool>()), 1..200)
        ) {
            let mut detector = Detector::new(SETTINGS, 0);
            let (mut now, mut reached, mut since) = (0, 0, None);
            for (gap, advance, outstanding) in steps {
                now += gap;
                reached += advance;
                detector.heard(now);
                detector.progress(now, reached, outstanding);
                if !outstanding {
                    since = None;
                } else if advance > 0 || since.is_none() {
                    since = Some(now);
                }
                let stalled = since.is_some_and(|since| now - since >= SETTINGS.stall);
                prop_assert_eq!(detector.poll(now).is_some(), stalled);
                if stalled {
                    break;
                }
            }
        }

        /// However irregularly it is polled: a peer that stays silent is suspected within twice the
        /// timeout and one gap.
        #[test]
        fn a_dead_peer_is_always_found(gaps in proptest::collection::vec(1u64..400, 60)) {
            let mut detector = Detector::new(SETTINGS, 0);
            let mut now = 0;
            let mut found = None;
            for gap in gaps {
                now += gap;
                if detector.poll(now).is_some() {
                    found = Some((now, gap));
                    break;
                }
            }
            if let Some((now, gap)) = found {
                prop_assert!(now <= 2 * SETTINGS.silence + 2 * gap + 400);
            } else {
                prop_assert!(now < 2 * SETTINGS.silence + 400);
            }
        }
    }

    #[test]
    fn a_process_that_was_stopped_does_not_blame_its_peer() {
        let mut detector = Detector::new(SETTINGS, 0);
        assert_eq!(detector.poll(10), None);
        // Stopped for ten timeouts; the peer's heartbeats are on their way again.
        assert_eq!(detector.poll(1_010), None);
        detector.heard(1_020);
        assert_eq!(detector.poll(1_025), None);
    }

    #[test]
    fn after_its_own_pause_it_waits_half_a_timeout_only() {
        let mut detector = Detector::new(SETTINGS, 0);
        detector.poll(10);
        assert_eq!(detector.poll(1_010), None);
        assert_eq!(detector.poll(1_035), None);
        assert_eq!(
            detector.poll(1_060),
            Some(Suspicion::Silent {
                silent_ns: 1_060,
                timeout_ns: 100
            })
        );
    }
}
