//! `lockstep bench redis`: requests a second of Redis in Debian, protected and unprotected.
//!
//! Both arms keep the same cores busy. In the unprotected one a second, unconnected machine under the
//! same load takes the place of the backup, in a network of its own: what is compared is the price of
//! protection, not that of a neighbour.

use super::BenchError;
use crate::progress::Progress;
use crate::scenario::{Host, Scenario, ScenarioError, ScenarioOptions, Seen, Workload};
use clap::Args;
use lockstep_bench::redis::RedisConfig;
use lockstep_bench::report::Report;
use lockstep_perf::interval::Series;
use lockstep_vmm::host::namespaces::GUEST_ADDRESS;
use std::time::Duration;

/// Where Redis listens.
pub(crate) const REDIS_PORT: u16 = 6379;

/// Protected requests a second over unprotected ones, at least.
const LEAST_RATIO: f64 = 0.95;

/// Arguments of `lockstep bench redis`.
#[derive(Debug, Args)]
pub(super) struct RedisArguments {
    /// Connections, each with one request in flight
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    connections: u32,
    /// Times that each arm takes its turn
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    rounds: usize,
    /// Length of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    duration: u64,
}

/// What one arm did in all rounds.
#[derive(Default)]
struct Arm {
    rates: Vec<f64>,
    latency: Series,
    wrong: Vec<String>,
}

impl Arm {
    fn add(&mut self, seen: Seen) {
        self.rates.push(seen.rate);
        self.latency.append(seen.latency);
        self.wrong.extend(seen.wrong);
    }
}

/// Measures. Whether nothing was wrong.
pub(super) fn run(
    arguments: &RedisArguments,
    options: &ScenarioOptions,
    small: bool,
    report: &mut Report,
) -> Result<bool, BenchError> {
    let progress = Progress::new();
    let (rounds, warm_up, length) = if small {
        (1, Duration::from_millis(200), Duration::from_millis(300))
    } else {
        let length = Duration::from_secs(arguments.duration);
        (arguments.rounds, Duration::from_secs(1), length)
    };
    // What is asked here is not checked: a closed loop makes more history than anybody could check.
    let mut config = RedisConfig::new((GUEST_ADDRESS, REDIS_PORT).into());
    config.registers = 64;
    config.counters = 64;
    let workload = Workload::Redis(config.closed(arguments.connections));
    let mut scenario = Scenario::new(options.clone())?;
    let mut neighbour = Scenario::new(options.clone())?;
    let (mut unprotected, mut protected) = (Arm::default(), Arm::default());
    for round in 1..=rounds {
        // The one that begins changes, so that a host that slows down favours neither.
        for turn in 0..2 {
            if (round + turn) % 2 == 1 {
                progress.step(&format!(
                    "round {round} of {rounds}: unprotected, beside another"
                ));
                let seen = beside(&mut scenario, &mut neighbour, &workload, warm_up, length)?;
                unprotected.add(seen);
            } else {
                progress.step(&format!("round {round} of {rounds}: protected"));
                let pair = scenario.pair(Host::A, Duration::ZERO)?;
                let mut client = scenario.client(workload.clone())?;
                client.run(warm_up)?;
                protected.add(client.run(length)?);
                drop(pair);
            }
        }
    }
    drop(progress);
    report.fact("connections", arguments.connections);
    report.fact("rounds", rounds);
    for (name, arm) in [("unprotected", &unprotected), ("protected", &protected)] {
        report.series(&format!("{name}/client"), &arm.latency)?;
        report.figure(
            &format!("{name}: requests a second, median"),
            median(arm.rates.clone()),
            "/s",
        );
    }
    report.plot(
        "client",
        "Redis in Debian: what a client waits, in a closed loop",
        &["unprotected/client", "protected/client"],
    )?;
    let pairs = protected.rates.iter().zip(&unprotected.rates);
    let ratio = median(pairs.map(|(with, without)| with / without).collect());
    report.at_least(
        "requests a second, protected over unprotected, median of the rounds",
        ratio,
        LEAST_RATIO,
        "times",
    );
    let wrong: Vec<_> = unprotected.wrong.iter().chain(&protected.wrong).collect();
    report.fact("wrong", serde_json::json!(wrong));
    Ok(wrong.is_empty())
}

/// A machine on the first host and, elsewhere, one on the second, both under the load.
fn beside(
    scenario: &mut Scenario,
    neighbour: &mut Scenario,
    workload: &Workload,
    warm_up: Duration,
    length: Duration,
) -> Result<Seen, ScenarioError> {
    let machine = scenario.unprotected(Host::A, Duration::ZERO)?;
    let other = neighbour.unprotected(Host::B, Duration::ZERO)?;
    let mut client = scenario.client(workload.clone())?;
    let mut others = neighbour.client(workload.clone())?;
    let seen = std::thread::scope(|scope| {
        let beside = scope.spawn(|| others.run(warm_up + length));
        let seen = client.run(warm_up).and_then(|_| client.run(length));
        match beside.join() {
            Ok(theirs) => theirs.map(drop).and(seen),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    drop((machine, other));
    Ok(seen)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
