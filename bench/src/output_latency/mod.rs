//! What the output rule adds to a packet: unprotected, and protected over each transport, in one run.
//!
//! Each [`Arm`] is a way to run the same guest. In every round each arm is started anew, warmed up,
//! measured under the same load, and stopped; then the next. Two things are measured at once:
//! - inside the host, from the guest's doorbell until the output is given to the world, by the stage
//!   stamps of the process that runs the guest;
//! - outside, what a client sees, in an open loop, from when a request was due.
//!
//! **Added by the output rule** is the kick-to-released latency of a protected arm minus that of the
//! unprotected one, percentile by percentile. It is the difference of two percentiles, and not the
//! percentile of a difference: no packet was sent both ways. A percentile is left out where fewer than
//! one value of either arm lies beyond it.
//!
//! [`Yardstick`]s are measured in the same rounds: the bare round trip of the link, by which the
//! addition is judged.

mod added;
mod arm;
mod results;

use std::time::{Duration, Instant, SystemTime};

use lockstep_perf::interval::{Interval, Series};

use crate::load::{LoadConfig, LoadError};
use crate::report::{Report, ReportError};
use crate::rounds;

pub use added::Added;
pub use arm::{AddedPromise, Arm, ArmError, Running, Yardstick};
pub use results::Outcome;

use results::Gathered;

/// How much is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Times that each arm takes its turn; at least 1.
    pub rounds: usize,
    /// Load before each measurement that is not counted.
    pub warm_up: Duration,
    /// Length of each measurement.
    pub measure: Duration,
    /// The load; its target is replaced by each arm's, its seed by one for each round.
    pub load: LoadConfig,
}

/// The suite could not be brought to its end.
#[derive(Debug, thiserror::Error)]
pub enum OutputLatencyError {
    /// The arms are not what a comparison needs.
    #[error(
        "output-latency compares with exactly one unprotected arm, and got {unprotected} of {arms}"
    )]
    Arms {
        /// Unprotected ones.
        unprotected: usize,
        /// All.
        arms: usize,
    },
    /// There are no rounds.
    #[error("output-latency: rounds is 0; use at least 1")]
    NoRounds,
    /// An arm or a yardstick failed.
    #[error("{name}, round {round}: {step}: {source}")]
    Step {
        /// Which.
        name: String,
        /// In which round, from 1.
        round: usize,
        /// Doing what.
        step: &'static str,
        /// Why.
        source: ArmError,
    },
    /// The results could not be written.
    #[error(transparent)]
    Report(#[from] ReportError),
}

enum Turn<'a, 'b> {
    Arm(&'a mut dyn Arm, Box<Gathered>),
    Yardstick(&'a mut Yardstick<'b>, Series),
}

/// Measures, and writes everything to `report`, which the caller finishes. `watch` is told what is
/// being done, for whoever waits.
///
/// # Errors
/// An arm or a yardstick fails, or the results cannot be written. Lost writes and broken promises are
/// no errors here: they are in the outcome.
pub fn run(
    options: &Options,
    arms: &mut [Box<dyn Arm + '_>],
    yardsticks: &mut [Yardstick<'_>],
    report: &mut Report,
    watch: &mut dyn FnMut(&str),
) -> Result<Outcome, OutputLatencyError> {
    let unprotected = arms.iter().filter(|arm| !arm.protected()).count();
    if unprotected != 1 {
        return Err(OutputLatencyError::Arms {
            unprotected,
            arms: arms.len(),
        });
    }
    if options.rounds == 0 {
        return Err(OutputLatencyError::NoRounds);
    }
    report.fact("rounds", options.rounds);
    report.fact("warm-up ms", options.warm_up.as_millis() as u64);
    report.fact("measured ms a round", options.measure.as_millis() as u64);
    let mut load = serde_json::to_value(&options.load).unwrap_or_default();
    if let Some(fields) = load.as_object_mut() {
        // Each arm has its own.
        fields.remove("target");
    }
    report.fact("load", load);

    let arms = arms
        .iter_mut()
        .map(|arm| Turn::Arm(arm.as_mut(), Box::default()));
    let yardsticks = yardsticks
        .iter_mut()
        .map(|yardstick| Turn::Yardstick(yardstick, Series::new()));
    let mut turns: Vec<Turn<'_, '_>> = arms.chain(yardsticks).collect();
    rounds::alternate(options.rounds, &mut turns, |round, turn| match turn {
        Turn::Arm(arm, gathered) => {
            watch(&format!(
                "round {} of {}: {}",
                round + 1,
                options.rounds,
                arm.name()
            ));
            measure_arm(options, round, *arm, gathered)
        }
        Turn::Yardstick(yardstick, series) => {
            watch(&format!(
                "round {} of {}: {}",
                round + 1,
                options.rounds,
                yardstick.name()
            ));
            measure_yardstick(round, yardstick, series)
        }
    })?;
    let mut arms = Vec::new();
    let mut yardsticks = Vec::new();
    for turn in &turns {
        match turn {
            Turn::Arm(arm, gathered) => arms.push((&**arm, &**gathered)),
            Turn::Yardstick(yardstick, series) => yardsticks.push((yardstick.name(), series)),
        }
    }
    Ok(results::write(&arms, &yardsticks, report)?)
}

fn measure_arm(
    options: &Options,
    round: usize,
    arm: &mut dyn Arm,
    gathered: &mut Gathered,
) -> Result<(), OutputLatencyError> {
    let name = arm.name().to_owned();
    let failed = |step: &'static str| {
        let name = name.clone();
        move |source: ArmError| OutputLatencyError::Step {
            name,
            round: round + 1,
            step,
            source,
        }
    };
    let of_load = |error: LoadError| -> ArmError { error.into() };
    let running = arm.start(options.warm_up).map_err(failed("starting"))?;
    let started = Instant::now();
    let load = LoadConfig {
        // The same requests for every arm of a round.
        seed: options.load.seed.wrapping_add(round as u64),
        ..options.load.clone()
    };
    let mut client = running
        .client(&load)
        .map_err(failed("connecting the client"))?;
    client
        .prepare()
        .map_err(of_load)
        .map_err(failed("preparing the keys"))?;
    let rest = options.warm_up.saturating_sub(started.elapsed());
    client
        .run(rest)
        .map_err(of_load)
        .map_err(failed("warming up"))?;
    let start = SystemTime::now();
    let seen = client
        .run(options.measure)
        .map_err(of_load)
        .map_err(failed("measuring"))?;
    let verdict = client
        .verify()
        .map_err(of_load)
        .map_err(failed("reading the writes again"))?;
    let stages = running.stop().map_err(failed("stopping"))?;

    gathered.add(start, seen, &stages, &verdict);
    Ok(())
}

fn measure_yardstick(
    round: usize,
    yardstick: &mut Yardstick<'_>,
    series: &mut Series,
) -> Result<(), OutputLatencyError> {
    let start = SystemTime::now();
    let begun = Instant::now();
    let latencies = yardstick
        .measure()
        .map_err(|source| OutputLatencyError::Step {
            name: yardstick.name().to_owned(),
            round: round + 1,
            step: "measuring",
            source,
        })?;
    series.push(Interval {
        start,
        length: begun.elapsed(),
        latencies,
    });
    Ok(())
}
