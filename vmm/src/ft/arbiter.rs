//! Who of the two goes on (paper 2.3): a test-and-set on storage that both can reach.
//!
//! For each VM and generation (a pairing of one primary with one backup) there is one flag. The
//! first party to set it wins, for ever: nothing resets it, a new pairing takes a new generation. A
//! side that cannot reach the storage waits; it never guesses.
//!
//! The flag records who set it. So a party whose answer was lost may ask again and learns that it
//! was itself that won: asking is idempotent, and attempts may overlap.

use std::fmt;

use lockstep_logchan::protocol::Role;

use crate::settings::FailureSettings;

/// One of the two sides of a pairing, unmistakable: a restarted process is another party. The name
/// is what the storage records.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Party(String);

impl Party {
    /// The party in `role`; `instance` is drawn at random when a process takes the role.
    #[must_use]
    pub fn new(role: Role, instance: u64) -> Self {
        Self(format!("{role}-{instance:016x}"))
    }

    /// A party as the storage names it.
    #[must_use]
    pub const fn named(name: String) -> Self {
        Self(name)
    }

    /// The name to record.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a party asks for: to go on alone. The door to the storage knows the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The pairing.
    pub generation: u64,
    /// Who asks.
    pub party: Party,
}

/// The storage could not be asked, or did not answer. Whether the flag is set is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the arbiter is out of reach: {reason}")]
pub struct OutOfReach {
    /// What failed.
    pub reason: String,
}

/// What the storage answers: whose the flag is after the attempt, the asking party's own if it won,
/// now or earlier.
pub type Answer = Result<Party, OutOfReach>;

/// How the arbiter decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This side goes on.
    Won,
    /// The other side goes on, or has gone on.
    Lost {
        /// Whose the flag is.
        to: Party,
    },
}

/// Times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArbitrationSettings {
    /// Between an attempt that failed, or that has not been answered, and the next.
    pub retry: u64,
}

impl From<&FailureSettings> for ArbitrationSettings {
    fn from(settings: &FailureSettings) -> Self {
        Self {
            retry: u64::from(settings.arbiter_retry_ms.max(1)) * 1_000_000,
        }
    }
}

/// One party's way to a verdict, without I/O: says when to ask, takes the answers.
#[derive(Debug, Clone)]
pub struct Arbitration {
    claim: Claim,
    settings: ArbitrationSettings,
    attempts: u32,
    next_attempt: u64,
    verdict: Option<Verdict>,
}

impl Arbitration {
    /// Begins; the first attempt is due at once.
    #[must_use]
    pub const fn new(claim: Claim, settings: ArbitrationSettings, now: u64) -> Self {
        Self {
            claim,
            settings,
            attempts: 0,
            next_attempt: now,
            verdict: None,
        }
    }

    /// The claim to put to the arbiter now, if an attempt is due. An attempt that brings no answer
    /// in time is simply repeated: a driver whose storage still hangs may skip it.
    pub fn poll(&mut self, now: u64) -> Option<&Claim> {
        if self.verdict.is_some() || now < self.next_attempt {
            return None;
        }
        self.attempts += 1;
        self.next_attempt = now.saturating_add(self.settings.retry);
        Some(&self.claim)
    }

    /// An attempt was answered, this one or an earlier one: the flag never changes once it is set,
    /// so a late answer is as good as any.
    pub fn answer(&mut self, answer: Answer) -> Option<&Verdict> {
        if let (None, Ok(holder)) = (&self.verdict, answer) {
            let won = holder == self.claim.party;
            self.verdict = Some(if won {
                Verdict::Won
            } else {
                Verdict::Lost { to: holder }
            });
        }
        self.verdict.as_ref()
    }

    /// When [`Arbitration::poll`] has an attempt to make; `None` once decided.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        match &self.verdict {
            None => Some(self.next_attempt),
            Some(_) => None,
        }
    }

    /// How often the arbiter was asked.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: ArbitrationSettings = ArbitrationSettings { retry: 10 };

    fn claim(role: Role) -> Claim {
        Claim {
            generation: 1,
            party: Party::new(role, 7),
        }
    }

    fn out_of_reach() -> Answer {
        Err(OutOfReach {
            reason: "test".into(),
        })
    }

    proptest! {
        /// Two parties, one flag, any of the requests and answers lost, in any order: exactly one
        /// winner, and both decide once answers come through.
        #[test]
        fn exactly_one_party_wins(
            moves in proptest::collection::vec((0usize..2, any::<bool>(), any::<bool>()), 0..60)
        ) {
            let claims = [claim(Role::Primary), claim(Role::Backup)];
            let mut sides = claims.map(|claim| Arbitration::new(claim, SETTINGS, 0));
            let mut flag: Option<Party> = None;
            let mut verdicts = [None, None];
            let fair = [(0, false, false), (1, false, false)];
            let mut now = 0;
            for (side, request_lost, answer_lost) in moves.into_iter().chain(fair) {
                now += 10;
                let Some(claim) = sides[side].poll(now) else {
                    prop_assert!(verdicts[side].is_some());
                    continue;
                };
                let answer = if request_lost {
                    out_of_reach()
                } else {
                    let holder = flag.get_or_insert_with(|| claim.party.clone()).clone();
                    if answer_lost { out_of_reach() } else { Ok(holder) }
                };
                if let Some(verdict) = sides[side].answer(answer) {
                    verdicts[side] = Some(verdict.clone());
                }
            }
            let won = verdicts.iter().filter(|verdict| **verdict == Some(Verdict::Won)).count();
            prop_assert_eq!(won, 1);
            prop_assert!(verdicts.iter().all(Option::is_some));
        }
    }

    #[test]
    fn ones_own_earlier_attempt_is_a_win() {
        let mut side = Arbitration::new(claim(Role::Backup), SETTINGS, 0);
        let party = side.poll(0).map(|claim| claim.party.clone()).unwrap();
        assert_eq!(
            side.answer(out_of_reach()),
            None,
            "the flag was set, the answer lost"
        );
        assert_eq!(side.poll(9), None);
        assert!(side.poll(10).is_some());
        assert_eq!(side.answer(Ok(party)), Some(&Verdict::Won));
        assert_eq!(side.deadline(), None);
    }

    #[test]
    fn a_verdict_stands() {
        let mut side = Arbitration::new(claim(Role::Backup), SETTINGS, 0);
        let other = claim(Role::Primary).party;
        side.poll(0);
        let lost = Verdict::Lost { to: other.clone() };
        assert_eq!(side.answer(Ok(other)), Some(&lost));
        assert_eq!(side.answer(Ok(claim(Role::Backup).party)), Some(&lost));
    }

    #[test]
    fn a_restarted_process_is_another_party() {
        assert_ne!(Party::new(Role::Backup, 1), Party::new(Role::Backup, 2));
        assert_ne!(Party::new(Role::Backup, 1), Party::new(Role::Primary, 1));
    }
}
