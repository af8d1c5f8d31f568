//! What befalls a primary, and what must be true afterwards.

use super::pair::Pair;
use super::{Scenario, ScenarioError, VM_NAME};
use crate::commands::HALTED_EXIT_CODE;
use lockstep_perf::stamp;
use lockstep_vmm::ft::times::FailoverTimes;
use lockstep_vmm::host::arbiter_file::ArbiterFile;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a backup may take to be live, its first output included. Far beyond what is promised:
/// what is promised is measured, and a scenario that ends here says so.
const LIVE_PATIENCE: Duration = Duration::from_secs(20);

/// How long a resumed primary may take to find that it lost.
const HALT_PATIENCE: Duration = Duration::from_secs(10);

/// A side that must be silent is listened to for this long.
const SILENCE: Duration = Duration::from_millis(50);

/// What befalls the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL: it is gone.
    Kill,
    /// SIGSTOP: it is silent, and comes back when the other side is live.
    Stop,
}

/// A primary that was struck.
#[derive(Debug, Clone, Copy)]
pub struct Strike {
    /// By what.
    pub fault: Fault,
    /// When, nanoseconds of the host's monotonic clock.
    pub at_ns: u64,
}

/// How a failover went, nanoseconds; the parts add up to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FailoverParts {
    /// From the strike until the backup took its primary for dead.
    pub detection: u64,
    /// From there until the log was replayed to its end.
    pub catch_up: u64,
    /// From there until the arbiter's verdict.
    pub arbitration: u64,
    /// From there until the first output of the new primary left.
    pub first_output: u64,
    /// From the strike until then.
    pub total: u64,
}

/// What must be true after a strike, and whether it is.
#[derive(Debug, Clone, Serialize)]
pub struct Judgement {
    /// How long the failover took.
    pub failover: FailoverParts,
    /// Why the backup gave its primary up, in its words.
    pub suspicion: String,
    /// Sides that were live after the backup was: 1, or something is wrong.
    pub live_sides: u32,
    /// What is wrong; nothing, if all is well.
    pub violations: Vec<String>,
}

/// What of a process's status is looked at.
#[derive(Debug, Deserialize)]
struct LiveStatus {
    role: String,
    generation: u64,
    failover: Option<LiveFailover>,
}

#[derive(Debug, Deserialize)]
struct LiveFailover {
    suspicion: String,
    times: FailoverTimes,
}

impl Pair {
    /// Strikes the primary, now.
    ///
    /// # Errors
    /// It could not be signalled.
    pub fn strike(&mut self, fault: Fault) -> Result<Strike, ScenarioError> {
        // Before the signal: what the signal itself takes counts as failover.
        let at_ns = stamp::monotonic();
        self.primary.signal(match fault {
            Fault::Kill => Signal::KILL,
            Fault::Stop => Signal::STOP,
        })?;
        Ok(Strike { fault, at_ns })
    }

    /// Waits for the backup to be live, brings a stopped primary back, and judges. Only what a
    /// client or an operator could see is looked at: status, exit code, arbiter, frames on the wire.
    ///
    /// # Errors
    /// The backup does not come to be live, or cannot be understood.
    pub fn judge(
        &mut self,
        strike: Strike,
        scenario: &Scenario,
    ) -> Result<Judgement, ScenarioError> {
        let spoken =
            self.backup
                .wait_for("being live and having spoken", LIVE_PATIENCE, |status| {
                    let status = LiveStatus::deserialize(status).ok()?;
                    let failover = status.failover.filter(|_| status.role == "alone")?;
                    failover.times.first_output?;
                    Some((status.generation, failover.suspicion, failover.times))
                });
        let (generation, suspicion, times) = spoken.map_err(|source| ScenarioError::NotLive {
            primary_said: self.primary.last_words(),
            source: Box::new(source),
        })?;
        let mut violations = Vec::new();
        let port = self.primary_on.client_port();
        let heard = || scenario.topology().clients.frames_received(port);
        let before = heard()?;
        let primary_lives = !self.primary_is_out(strike.fault, &mut violations)?;
        std::thread::sleep(SILENCE);
        let after = heard()?;
        if after != before {
            violations.push(format!(
                "{} frames came from the struck primary's host after its backup was live",
                after - before
            ));
        }
        match ArbiterFile::new(&self.arbiter, VM_NAME)?.winner(generation)? {
            Some(winner) if winner.party.starts_with("backup") => {}
            Some(winner) => violations.push(format!(
                "{} won generation {generation} at the arbiter, and the backup is live",
                winner.party
            )),
            None => violations.push(format!(
                "nobody won generation {generation} at the arbiter, and the backup is live"
            )),
        }
        let failover = parts(strike, &times).ok_or_else(|| ScenarioError::Report {
            name: self.backup.name().to_owned(),
            what: "failover times",
            why: format!("{times:?} with a strike at {}", strike.at_ns),
        })?;
        Ok(Judgement {
            failover,
            suspicion,
            live_sides: 1 + u32::from(primary_lives || after != before),
            violations,
        })
    }

    /// Whether the struck primary is out for good. A stopped one is resumed, and must halt.
    fn primary_is_out(
        &mut self,
        fault: Fault,
        violations: &mut Vec<String>,
    ) -> Result<bool, ScenarioError> {
        if fault == Fault::Stop {
            self.primary.signal(Signal::CONT)?;
        }
        match (self.primary.wait_end(HALT_PATIENCE), fault) {
            (Ok(_), Fault::Kill) => Ok(true),
            (Ok(status), Fault::Stop) => {
                if status.code() != Some(i32::from(HALTED_EXIT_CODE)) {
                    violations.push(format!(
                        "the resumed primary ended with {status}, expected exit code \
                         {HALTED_EXIT_CODE} (halted); it said:\n{}",
                        self.primary.last_words()
                    ));
                }
                Ok(true)
            }
            (Err(late), _) => {
                violations.push(format!("the struck primary goes on: {late}"));
                Ok(false)
            }
        }
    }
}

/// The parts of a failover that began at the strike. `None` if a part is missing or out of order.
fn parts(strike: Strike, times: &FailoverTimes) -> Option<FailoverParts> {
    let (caught_up, arbitrated) = (times.caught_up?, times.arbitrated?);
    let first_output = times.first_output?;
    Some(FailoverParts {
        detection: times.suspected.checked_sub(strike.at_ns)?,
        catch_up: caught_up.checked_sub(times.suspected)?,
        arbitration: arbitrated.checked_sub(caught_up)?,
        first_output: first_output.checked_sub(arbitrated)?,
        total: first_output.checked_sub(strike.at_ns)?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Fault, Strike, parts};
    use lockstep_vmm::ft::times::FailoverTimes;

    const STRIKE: Strike = Strike {
        fault: Fault::Kill,
        at_ns: 100,
    };

    fn times() -> FailoverTimes {
        FailoverTimes {
            last_heard: 90,
            suspected: 130,
            caught_up: Some(150),
            arbitrated: Some(155),
            first_output: Some(200),
        }
    }

    #[test]
    fn the_parts_of_a_failover_add_up_from_the_strike() {
        let parts = parts(STRIKE, &times()).expect("in order");
        assert_eq!(
            (
                parts.detection,
                parts.catch_up,
                parts.arbitration,
                parts.first_output
            ),
            (30, 20, 5, 45)
        );
        assert_eq!(parts.total, 100);
    }

    #[test]
    fn times_that_cannot_be_are_no_failover() {
        let missing = FailoverTimes {
            first_output: None,
            ..times()
        };
        assert!(parts(STRIKE, &missing).is_none());
        let early = FailoverTimes {
            suspected: 99,
            ..times()
        };
        assert!(
            parts(STRIKE, &early).is_none(),
            "suspected before the strike"
        );
        let disordered = FailoverTimes {
            arbitrated: Some(149),
            ..times()
        };
        assert!(parts(STRIKE, &disordered).is_none());
    }
}
