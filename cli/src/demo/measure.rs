//! The two quiet runs: the same machine and load, without and with protection.

use crate::commands::report::RunReport;
use crate::progress::Progress;
use crate::scenario::{Host, Pair, Scenario, ScenarioError};
use lockstep_bench::load::{Load, LoadConfig, LoadReport, Verification};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// From a process's start: what it does before is warm-up, in its histograms too.
const WARM_UP: Duration = Duration::from_secs(3);

/// Time between two looks at a running load.
const LOOK: Duration = Duration::from_millis(100);

/// A quiet run.
#[derive(Debug)]
pub(super) struct Measured {
    /// What the client saw.
    pub load: LoadReport,
    /// Whether the server knows what it acknowledged.
    pub verification: Verification,
    /// What the machine's process reports.
    pub run: RunReport,
}

/// The machine by itself.
pub(super) fn unprotected(
    scenario: &mut Scenario,
    config: &LoadConfig,
    duration: Duration,
    progress: &Progress,
) -> Result<Measured, ScenarioError> {
    progress.step("unprotected: starting");
    let started = Instant::now();
    let process = scenario.unprotected(Host::A, WARM_UP)?;
    let (load, verification) =
        measure(scenario, config, duration, started, "unprotected", progress)?;
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
    config: &LoadConfig,
    duration: Duration,
    progress: &Progress,
) -> Result<Measured, ScenarioError> {
    progress.step("protected: starting a primary and its backup");
    let started = Instant::now();
    let Pair {
        primary,
        mut backup,
        ..
    } = scenario.pair(Host::A, WARM_UP)?;
    let (load, verification) = measure(scenario, config, duration, started, "protected", progress)?;
    let run = scenario.end(primary)?;
    // An orderly end is not a failure: the backup ends too, and does not go live.
    backup.wait_end(Duration::from_secs(10))?;
    Ok(Measured {
        load,
        verification,
        run,
    })
}

fn measure(
    scenario: &Scenario,
    config: &LoadConfig,
    duration: Duration,
    started: Instant,
    what: &str,
    progress: &Progress,
) -> Result<(LoadReport, Verification), ScenarioError> {
    let mut load = scenario.client(config.clone())?;
    progress.step(&format!("{what}: warming up"));
    let left = WARM_UP.saturating_sub(started.elapsed());
    load.run(left.max(Duration::from_millis(500)))?;
    progress.step(&format!("{what}: measuring for {} s", duration.as_secs()));
    let report = watched(&mut load, duration, what, progress, || Ok(()))?;
    progress.step(&format!("{what}: looking for every acknowledged write"));
    let verification = load.verify()?;
    progress.note(&format!(
        "{what}: {} requests, {} acknowledged writes, {} lost",
        report.answered, verification.acknowledged_writes, verification.lost_writes
    ));
    Ok((report, verification))
}

/// Runs the load in a thread, shows how far it is, and does `meanwhile` in this one.
pub(super) fn watched(
    load: &mut Load,
    duration: Duration,
    what: &str,
    progress: &Progress,
    meanwhile: impl FnOnce() -> Result<(), ScenarioError>,
) -> Result<LoadReport, ScenarioError> {
    let shown = load.progress();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let running = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn_scoped(scope, || load.run(duration))
            .map_err(|source| ScenarioError::Files {
                what: "starting the load's thread",
                source,
            })?;
        let watch = scope.spawn(|| {
            // Relaxed: the flag carries nothing but itself.
            while !over.load(Ordering::Relaxed) {
                progress.live(&format!(
                    "{what}: {} requests answered",
                    shown.answered.get()
                ));
                std::thread::park_timeout(LOOK);
            }
        });
        let done = meanwhile();
        if done.is_err() {
            shown.stop();
        }
        let report = running.join();
        // Relaxed: pairs with the load above; the unpark makes it look.
        over.store(true, Ordering::Relaxed);
        watch.thread().unpark();
        done?;
        match report {
            Ok(report) => Ok(report?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
