//! A protected machine, a load, a strike in the middle, and what came of it.

use super::client::{Client, Seen, Verdict, Workload};
use super::pair::Host;
use super::pgbench::{self, Pgbench};
use super::strike::{Fault, Judgement};
use super::{Scenario, ScenarioError};
use lockstep_bench::load::Progress;
use std::time::{Duration, Instant};

/// Longest time between two looks at a running load.
const LOOK: Duration = Duration::from_millis(100);

/// What is to befall a protected machine.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// What befalls the primary.
    pub fault: Fault,
    /// When, from the load's start.
    pub moment: Duration,
    /// Length of the load.
    pub length: Duration,
    /// Where the primary is.
    pub primary_on: Host,
}

/// What came of it.
#[derive(Debug)]
pub struct Round {
    /// What the client saw.
    pub load: Seen,
    /// Whether the new primary knows what the old one acknowledged.
    pub verification: Verdict,
    /// Whether one side lives, and how long it took.
    pub judgement: Judgement,
    /// What was wrong with the data on the disk once the service had ended, in words; nothing, if all was
    /// well or the tenant has no disk.
    pub at_rest: Option<String>,
    /// Transactions of a pgbench beside the load, or what was wrong with it. `None`: the tenant is not
    /// PostgreSQL, or this host has no pgbench.
    pub pgbench: Option<Result<u64, String>>,
}

impl Round {
    /// Everything that is wrong, in words; nothing, if all is well.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.judgement.violations.clone();
        failures.extend(self.verification.wrong.clone());
        failures.extend(self.load.wrong.iter().cloned());
        failures.extend(self.at_rest.clone());
        failures.extend(self.pgbench.clone().and_then(Result::err));
        failures
    }
}

impl Scenario {
    /// Starts a pair, loads it, strikes its primary, and judges.
    ///
    /// # Errors
    /// A part of it could not be played. What is wrong with the outcome is no error: it is in the
    /// round.
    pub fn lose_primary(
        &mut self,
        loss: &Loss,
        workload: Workload,
        watch: &mut dyn FnMut(&Progress),
    ) -> Result<Round, ScenarioError> {
        let mut pair = self.pair(loss.primary_on, Duration::ZERO)?;
        let mut client = self.client(workload)?;
        let beside = pgbench::program()
            .filter(|_| self.options.tenant.is("postgresql"))
            .map(|program| self.pgbench(&program, loss.length))
            .transpose()?;
        let mut strike = None;
        let mut meanwhile = || {
            strike = Some(pair.strike(loss.fault)?);
            Ok(())
        };
        let load = under_load(
            &mut client,
            loss.length,
            watch,
            Some((loss.moment, &mut meanwhile)),
        )?;
        let Some(strike) = strike else {
            return Err(ScenarioError::NoStrike {
                moment: loss.moment,
                length: loss.length,
            });
        };
        let judgement = pair.judge(strike, self)?;
        let pgbench = beside.map(Pgbench::end).transpose()?;
        // After the judgement: a resumed primary that answers would be believed by now.
        let verification = client.verify()?;
        if !verification.passed()
            && let Some(directory) = &self.options.evidence
        {
            client.keep_evidence(&directory.join(format!("failover-{}", self.runs)))?;
        }
        let at_rest = match self.options.tenant.disk() {
            Some(_) => self.check_at_rest()?,
            None => None,
        };
        Ok(Round {
            load,
            verification,
            judgement,
            at_rest,
            pgbench,
        })
    }
}

/// Something to be done at a moment, counted from the load's start.
pub type Meanwhile<'a> = (Duration, &'a mut dyn FnMut() -> Result<(), ScenarioError>);

/// Runs `client` in a thread for `length`; does `meanwhile` in this one, and lets `watch` look at how
/// far it is.
///
/// # Errors
/// The load or `meanwhile` failed.
pub fn under_load(
    client: &mut Client,
    length: Duration,
    watch: &mut dyn FnMut(&Progress),
    mut meanwhile: Option<Meanwhile<'_>>,
) -> Result<Seen, ScenarioError> {
    let shown = client.progress();
    std::thread::scope(|scope| {
        let running = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn_scoped(scope, || client.run(length))
            .map_err(|source| ScenarioError::Files {
                what: "starting the load's thread",
                source,
            })?;
        let started = Instant::now();
        let mut done = Ok(());
        while !running.is_finished() {
            let pause = match &meanwhile {
                Some((moment, _)) => moment.saturating_sub(started.elapsed()).min(LOOK),
                None => LOOK,
            };
            std::thread::sleep(pause);
            watch(&shown);
            let due = meanwhile.take_if(|(moment, _)| started.elapsed() >= *moment);
            if let Some((_, act)) = due {
                done = act();
                if done.is_err() {
                    shown.stop();
                }
            }
        }
        let report = running.join();
        done?;
        match report {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
