//! Protected machines that lose their primary under load, at random moments.

use super::dice::Dice;
use super::measure::watched;
use crate::progress::Progress;
use crate::scenario::{Fault, Host, Judgement, Scenario, ScenarioError};
use lockstep_bench::load::{LoadConfig, LoadReport, Verification};
use std::time::Duration;

/// Length of a round's load.
const ROUND: Duration = Duration::from_millis(2000);

/// The strike falls between these, milliseconds from the load's start.
const STRIKE_BETWEEN_MS: (u64, u64) = (200, 1200);

/// What is to be played.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub fault: Fault,
    pub rounds: u32,
    pub seed: u64,
    pub load: LoadConfig,
}

/// One strike and what became of it.
#[derive(Debug)]
pub(super) struct Round {
    /// What the client saw.
    pub load: LoadReport,
    /// Whether the new primary knows what the old one acknowledged.
    pub verification: Verification,
    /// Whether all was as it must be.
    pub judgement: Judgement,
}

/// Plays all rounds. Primary and backup change places from round to round.
pub(super) fn play(
    scenario: &mut Scenario,
    plan: &Plan,
    progress: &Progress,
) -> Result<Vec<Round>, ScenarioError> {
    let mut dice = Dice::new(plan.seed);
    let mut rounds = Vec::new();
    for number in 1..=plan.rounds {
        let what = format!("losing the primary, {number} of {}", plan.rounds);
        progress.step(&what);
        let moment = dice.between(STRIKE_BETWEEN_MS.0 * 1000, STRIKE_BETWEEN_MS.1 * 1000);
        let load = LoadConfig {
            seed: dice.next(),
            ..plan.load.clone()
        };
        let primary_on = if number % 2 == 1 { Host::A } else { Host::B };
        let moment = Duration::from_micros(moment);
        let round = play_one(
            scenario, plan.fault, load, moment, primary_on, &what, progress,
        )?;
        progress.note(&format!(
            "{what}: struck after {:.0} ms, live again {:.1} ms later; {} acknowledged writes, {} lost",
            moment.as_secs_f64() * 1e3,
            round.judgement.failover.total as f64 / 1e6,
            round.verification.acknowledged_writes,
            round.verification.lost_writes,
        ));
        rounds.push(round);
    }
    Ok(rounds)
}

fn play_one(
    scenario: &mut Scenario,
    fault: Fault,
    config: LoadConfig,
    moment: Duration,
    primary_on: Host,
    what: &str,
    progress: &Progress,
) -> Result<Round, ScenarioError> {
    let mut pair = scenario.pair(primary_on, Duration::ZERO)?;
    let mut client = scenario.client(config)?;
    let mut strike = None;
    let load = watched(&mut client, ROUND, what, progress, || {
        std::thread::sleep(moment);
        strike = Some(pair.strike(fault)?);
        Ok(())
    })?;
    let strike = strike.expect("the load's run ends in an error without a strike");
    let judgement = pair.judge(strike, scenario)?;
    // After the judgement: a resumed primary that answers would be believed by now.
    let verification = client.verify()?;
    Ok(Round {
        load,
        verification,
        judgement,
    })
}
