//! The two quiet runs: the same machine and load, without and with protection.

use crate::commands::report::RunReport;
use crate::progress::Progress as Terminal;
use crate::scenario::{Host, Scenario, ScenarioError, Seen, Verdict, Workload, under_load};
use lockstep_bench::load::Progress;
use std::time::{Duration, Instant};

/// From a process's start: what it does before is warm-up, in its histograms too.
const WARM_UP: Duration = Duration::from_secs(3);

/// A quiet run.
#[derive(Debug)]
pub(super) struct Measured {
    /// What the client saw.
    pub load: Seen,
    /// Whether the server knows what it acknowledged.
    pub verification: Verdict,
    /// What the machine's process reports.
    pub run: RunReport,
}

/// The machine by itself.
pub(super) fn unprotected(
    scenario: &mut Scenario,
    workload: &Workload,
    duration: Duration,
    terminal: &Terminal,
) -> Result<Measured, ScenarioError> {
    terminal.step("unprotected: starting");
    let started = Instant::now();
    let process = scenario.unprotected(Host::A, WARM_UP)?;
    let (load, verification) = measure(
        scenario,
        workload,
        duration,
        started,
        "unprotected",
        terminal,
    )?;
    let run = scenario.end(process)?;
    Ok(Measured {
        load,
        verification,
        run,
    })
}

/// The machine protected; nothing befalls it.
pub(super) fn protected(
    scenario: &mut Scenario,
    workload: &Workload,
    duration: Duration,
    terminal: &Terminal,
) -> Result<Measured, ScenarioError> {
    terminal.step("protected: starting a primary and its backup");
    let started = Instant::now();
    let pair = scenario.pair(Host::A, WARM_UP)?;
    let (load, verification) =
        measure(scenario, workload, duration, started, "protected", terminal)?;
    let (run, _) = scenario.end_pair(pair)?;
    Ok(Measured {
        load,
        verification,
        run,
    })
}

fn measure(
    scenario: &Scenario,
    workload: &Workload,
    duration: Duration,
    started: Instant,
    what: &str,
    terminal: &Terminal,
) -> Result<(Seen, Verdict), ScenarioError> {
    let mut load = scenario.client(workload.clone())?;
    terminal.step(&format!("{what}: warming up"));
    let left = WARM_UP.saturating_sub(started.elapsed());
    load.run(left.max(Duration::from_millis(500)))?;
    terminal.step(&format!("{what}: measuring for {} s", duration.as_secs()));
    let mut watch = |shown: &Progress| {
        terminal.live(&format!(
            "{what}: {} requests answered",
            shown.answered.get()
        ));
    };
    let report = under_load(&mut load, duration, &mut watch, None)?;
    terminal.step(&format!("{what}: looking for every acknowledged write"));
    let verification = load.verify()?;
    terminal.note(&format!(
        "{what}: {} requests, {} acknowledged writes, {} lost",
        report.answered, verification.acknowledged_writes, verification.lost_writes
    ));
    Ok((report, verification))
}
