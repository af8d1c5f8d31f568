//! What the demo comes to: the table, the JSON file, the histograms and plots.

use super::measure::Measured;
use crate::scenario::Round;
use lockstep_bench::report::{HostFacts, Report, ReportError};
use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::interval::{Interval, Series};
use lockstep_perf::stages::Stage;
use lockstep_vmm::machine::engine::EngineKind;
use lockstep_vmm::settings::TransportKind;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Everything that is reported.
#[derive(Debug, Clone)]
pub struct Outcome {
    json: Json,
    /// Failovers played.
    pub rounds: usize,
    /// Half of them took at most this, milliseconds from strike to first output.
    pub failover_median_ms: f64,
    /// Most sides that were live at once after a failover.
    pub live_sides: u32,
    /// What is wrong, in words. Empty: nothing was lost, and one side lived.
    pub failures: Vec<String>,
}

/// The file that `--json` names.
#[derive(Debug, Clone, Serialize)]
pub struct Json {
    /// Requests answered.
    pub requests: u64,
    /// Acknowledged writes that were not found again.
    pub lost_writes: u64,
    /// What protection adds to the time from the guest's kick to the frame's release, microseconds:
    /// each quantile of the protected run less that of the unprotected one.
    pub added_us: Added,
    /// The failover that took longest, milliseconds.
    pub failover_ms: FailoverMs,
    /// The longest time in which the client waited and nothing came, milliseconds.
    pub client_gap_ms: f64,
    /// The same in half of the failovers, at most.
    pub client_gap_median_ms: f64,
    /// Operations whose history was checked for linearizability.
    pub checked_operations: usize,
    /// Indexes, tables and files that a database checked by its own means.
    pub database_checks: u64,
    /// Transactions of pgbench, beside the load, while primaries were lost; `null` where none ran.
    pub pgbench_transactions: Option<u64>,
    /// What ran in the machine.
    pub tenant: String,
    /// What executed the guest.
    pub engine: EngineKind,
    /// What carried the log.
    pub transport: TransportKind,
    /// Where it ran.
    pub host: HostFacts,
}

/// See [`Json::added_us`].
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Added {
    pub p50: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

/// The parts add up to `total`.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct FailoverMs {
    /// From the strike until the backup took its primary for dead.
    pub detection: f64,
    /// From there until the log was replayed to its end.
    pub catch_up: f64,
    /// From there until the arbiter's verdict.
    pub arbitration: f64,
    /// From there until the first output.
    pub first_output: f64,
    /// From the strike until then.
    pub total: f64,
}

impl Outcome {
    pub(super) fn new(
        unprotected: &Measured,
        protected: &Measured,
        strikes: &[Round],
        transport: TransportKind,
        tenant: &str,
    ) -> Self {
        let mut failures = Vec::new();
        let measured = [("unprotected", unprotected), ("protected", protected)];
        for (what, measured) in measured {
            let wrong = measured
                .load
                .wrong
                .iter()
                .chain(&measured.verification.wrong);
            failures.extend(wrong.map(|wrong| format!("{what}: {wrong}")));
        }
        for (index, round) in strikes.iter().enumerate() {
            let of_round = round.failures().into_iter();
            failures.extend(of_round.map(|failure| format!("failover {}: {failure}", index + 1)));
        }
        let loads = || {
            let quiet = measured.iter().map(|(_, measured)| &measured.load);
            quiet.chain(strikes.iter().map(|round| &round.load))
        };
        let verifications = measured.iter().map(|(_, measured)| &measured.verification);
        let verifications = verifications.chain(strikes.iter().map(|round| &round.verification));
        let mut gaps: Vec<f64> = strikes
            .iter()
            .map(|round| round.load.worst_gap.length.as_secs_f64() * 1e3)
            .collect();
        gaps.sort_by(f64::total_cmp);
        let mut totals: Vec<u64> = strikes
            .iter()
            .map(|round| round.judgement.failover.total)
            .collect();
        totals.sort_unstable();
        let median = totals.get(totals.len().saturating_sub(1) / 2);
        let json = Json {
            requests: loads().map(|load| load.answered).sum(),
            checked_operations: verifications
                .clone()
                .map(|verification| verification.checked_operations)
                .sum(),
            database_checks: verifications
                .clone()
                .map(|verification| verification.database_checks)
                .sum(),
            pgbench_transactions: strikes
                .iter()
                .map(|round| round.pgbench.as_ref()?.as_ref().ok().copied())
                .sum(),
            lost_writes: verifications
                .map(|verification| verification.lost_writes)
                .sum(),
            added_us: added(host_time(unprotected), host_time(protected)),
            failover_ms: worst(strikes),
            client_gap_ms: gaps.last().copied().unwrap_or(0.0),
            client_gap_median_ms: gaps
                .get(gaps.len().saturating_sub(1) / 2)
                .copied()
                .unwrap_or(0.0),
            tenant: tenant.to_owned(),
            engine: protected.run.engine,
            transport,
            host: HostFacts::gather(),
        };
        Self {
            json,
            rounds: strikes.len(),
            failover_median_ms: median.map_or(0.0, |ns| ms(*ns)),
            live_sides: strikes
                .iter()
                .map(|round| round.judgement.live_sides)
                .max()
                .unwrap_or(0),
            failures,
        }
    }

    /// What `--json` writes.
    #[must_use]
    pub fn json(&self) -> &Json {
        &self.json
    }
}

/// From the guest's kick until the frame is given to the world.
fn host_time(measured: &Measured) -> &LatencyHistogram {
    measured.run.stages.get(Stage::KickToReleased)
}

fn added(without: &LatencyHistogram, with: &LatencyHistogram) -> Added {
    let (without, with) = (without.percentiles(), with.percentiles());
    Added {
        p50: with.p50 - without.p50,
        p99: with.p99 - without.p99,
        p99_9: with.p99_9 - without.p99_9,
        max: with.max - without.max,
    }
}

fn worst(strikes: &[Round]) -> FailoverMs {
    let parts = strikes.iter().map(|round| round.judgement.failover);
    parts
        .max_by_key(|parts| parts.total)
        .map_or_else(FailoverMs::default, |parts| FailoverMs {
            detection: ms(parts.detection),
            catch_up: ms(parts.catch_up),
            arbitration: ms(parts.arbitration),
            first_output: ms(parts.first_output),
            total: ms(parts.total),
        })
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// Writes histograms, plots and promises.
pub(super) fn record(
    report: &mut Report,
    outcome: &Outcome,
    unprotected: &Measured,
    protected: &Measured,
    strikes: &[Round],
) -> Result<(), ReportError> {
    report.fact("engine", serde_json::json!(outcome.json.engine));
    report.fact("transport", serde_json::json!(outcome.json.transport));
    report.series("client/unprotected", &unprotected.load.latency)?;
    report.series("client/protected", &protected.load.latency)?;
    for (name, measured) in [
        ("output/unprotected", unprotected),
        ("output/protected", protected),
    ] {
        report.series(name, &one_interval(host_time(measured)))?;
    }
    for stage in Stage::ALL {
        if stage != Stage::KickToReleased {
            let name = format!("stage/{}", stage.name());
            report.series(&name, &one_interval(protected.run.stages.get(stage)))?;
        }
    }
    let mut failover = Series::new();
    for round in strikes {
        failover.append(round.load.latency.clone());
    }
    if !strikes.is_empty() {
        report.series("client/failover", &failover)?;
    }
    report.plot(
        "output",
        "Demo: from the guest's kick to the frame's release",
        &["output/unprotected", "output/protected"],
    )?;
    report.plot(
        "client",
        "Demo: what the client waits",
        &["client/unprotected", "client/protected"],
    )?;
    for (index, round) in strikes.iter().enumerate() {
        let total = ms(round.judgement.failover.total);
        report.figure(&format!("failover {}", index + 1), total, "ms");
    }
    report.at_most(
        "lost writes",
        outcome.json.lost_writes as f64,
        0.0,
        "writes",
    );
    if !strikes.is_empty() {
        report.at_most("live sides", f64::from(outcome.live_sides), 1.0, "sides");
    }
    Ok(())
}

/// A histogram without times as a series.
fn one_interval(latencies: &LatencyHistogram) -> Series {
    let mut series = Series::new();
    series.push(Interval {
        start: SystemTime::now(),
        length: Duration::ZERO,
        latencies: latencies.clone(),
    });
    series
}

/// The demo's last word on the terminal.
pub(super) struct Table<'a> {
    pub outcome: &'a Outcome,
    pub results: &'a Path,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { json, .. } = self.outcome;
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<34} {value}");
        let name = |value: serde_json::Value| value.as_str().unwrap_or("?").to_owned();
        let engine = name(serde_json::json!(json.engine));
        let transport = name(serde_json::json!(json.transport));
        row(
            "tenant, engine, transport",
            format!("{}, {engine}, {transport}", json.tenant),
        )?;
        row("requests answered", json.requests.to_string())?;
        let added = &json.added_us;
        row("added latency p50", format!("{:.1} us", added.p50))?;
        row("added latency p99", format!("{:.1} us", added.p99))?;
        row("added latency p99.9", format!("{:.1} us", added.p99_9))?;
        row("added latency max", format!("{:.1} us", added.max))?;
        if self.outcome.rounds > 0 {
            let failover = &json.failover_ms;
            let of = match self.outcome.rounds {
                1 => String::new(),
                rounds => format!(
                    " (worst of {rounds}, median {:.1} ms)",
                    self.outcome.failover_median_ms
                ),
            };
            row("failover, total", format!("{:.1} ms{of}", failover.total))?;
            row("  detection", format!("{:.2} ms", failover.detection))?;
            row("  catch-up", format!("{:.2} ms", failover.catch_up))?;
            row("  arbitration", format!("{:.2} ms", failover.arbitration))?;
            row("  first output", format!("{:.2} ms", failover.first_output))?;
            let of = match self.outcome.rounds {
                1 => String::new(),
                _ => format!(" (worst; median {:.1} ms)", json.client_gap_median_ms),
            };
            row(
                "longest silence for the client",
                format!("{:.1} ms{of}", json.client_gap_ms),
            )?;
            row(
                "live sides after failover",
                self.outcome.live_sides.to_string(),
            )?;
        }
        if json.checked_operations > 0 {
            let checked = format!("{} operations", json.checked_operations);
            row("checked for linearizability", checked)?;
        }
        if json.database_checks > 0 {
            let checked = format!("{} indexes, tables or files", json.database_checks);
            row("checked by the database itself", checked)?;
        }
        if self.outcome.rounds > 0
            && let Some(transactions) = json.pgbench_transactions
        {
            row(
                "transactions of pgbench beside it",
                transactions.to_string(),
            )?;
        }
        row("acknowledged writes lost", json.lost_writes.to_string())?;
        row("histograms and plots", self.results.display().to_string())?;
        for failure in &self.outcome.failures {
            writeln!(f, "  FAILED: {failure}")?;
        }
        Ok(())
    }
}
