//! Protected machines that lose their primary under load, at random moments.

use super::dice::Dice;
use crate::progress::Progress as Terminal;
use crate::scenario::{Fault, Host, Loss, Round, Scenario, ScenarioError, Workload};
use lockstep_bench::load::Progress;
use std::time::Duration;

/// Length of a round's load.
const ROUND: Duration = Duration::from_millis(2000);

/// The strike falls between these, microseconds from the load's start.
const STRIKE_BETWEEN_US: (u64, u64) = (200_000, 1_200_000);

/// What is to be played.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub fault: Fault,
    pub rounds: u32,
    pub seed: u64,
    pub workload: Workload,
}

/// Plays all rounds. Primary and backup change places from round to round.
pub(super) fn play(
    scenario: &mut Scenario,
    plan: &Plan,
    terminal: &Terminal,
) -> Result<Vec<Round>, ScenarioError> {
    let mut dice = Dice::new(plan.seed);
    let mut rounds = Vec::new();
    for number in 1..=plan.rounds {
        let what = format!("losing the primary, {number} of {}", plan.rounds);
        terminal.step(&what);
        let loss = Loss {
            fault: plan.fault,
            moment: Duration::from_micros(dice.between(STRIKE_BETWEEN_US.0, STRIKE_BETWEEN_US.1)),
            length: ROUND,
            primary_on: if number % 2 == 1 { Host::A } else { Host::B },
        };
        let workload = plan.workload.clone().seeded(dice.next());
        let mut watch = |shown: &Progress| {
            terminal.live(&format!(
                "{what}: {} requests answered",
                shown.answered.get()
            ));
        };
        let round = scenario.lose_primary(&loss, workload, &mut watch)?;
        terminal.note(&format!(
            "{what}: struck after {:.0} ms, live again {:.1} ms later, the client waited {:.1} ms; {} acknowledged writes, {} lost",
            loss.moment.as_secs_f64() * 1e3,
            round.judgement.failover.total as f64 / 1e6,
            round.load.worst_gap.length.as_secs_f64() * 1e3,
            round.verification.acknowledged_writes,
            round.verification.lost_writes,
        ));
        rounds.push(round);
    }
    Ok(rounds)
}
