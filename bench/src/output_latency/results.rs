//! What came out, and how it is written down.

use std::time::{Duration, SystemTime};

use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::interval::{Interval, Series};
use lockstep_perf::stages::{Stage, StageHistograms};

use super::{Added, AddedPromise, Arm};
use crate::load::{LoadReport, Verification};
use crate::report::{Report, ReportError};

/// What the suite found out.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What the output rule adds inside the host, for each protected arm by name.
    pub inside: Vec<(String, Added)>,
    /// The same as the client sees it.
    pub client: Vec<(String, Added)>,
    /// Acknowledged writes that were lost, stale reads, and keys that were corrupt or could not be
    /// read, over all arms and rounds: not zero means that nothing else here is worth anything.
    pub wrong_keys: u64,
    /// Whether every promise was kept.
    pub promises_kept: bool,
}

/// What an arm gathered over its rounds.
#[derive(Default)]
pub(super) struct Gathered {
    client: Series,
    service: LatencyHistogram,
    own_delay: LatencyHistogram,
    stages: Vec<(Stage, Series)>,
    requests: u64,
    gave_up: u64,
    stale_reads: u64,
    retransmissions: u64,
    acknowledged_writes: u64,
    lost_writes: u64,
    wrong_keys: u64,
}

impl Gathered {
    fn total(&self, stage: Stage) -> LatencyHistogram {
        let of_stage = self.stages.iter().find(|(of, _)| *of == stage);
        of_stage
            .map(|(_, series)| series.total())
            .unwrap_or_default()
    }

    /// Adds one round.
    pub(super) fn add(
        &mut self,
        start: SystemTime,
        seen: LoadReport,
        stages: &StageHistograms,
        verdict: &Verification,
    ) {
        self.add_stages(start, seen.length, stages);
        self.client.append(seen.latency);
        self.service.merge(&seen.service);
        self.own_delay.merge(&seen.own_delay);
        self.requests += seen.requests;
        self.gave_up += seen.gave_up;
        self.stale_reads += seen.stale_reads;
        self.retransmissions += seen.retransmissions;
        self.acknowledged_writes += verdict.acknowledged_writes;
        self.lost_writes += verdict.lost_writes;
        self.wrong_keys += verdict.corrupt_keys + verdict.unread_keys;
    }

    fn add_stages(&mut self, start: SystemTime, length: Duration, stages: &StageHistograms) {
        for stage in Stage::ALL {
            let index = match self.stages.iter().position(|(of, _)| *of == stage) {
                Some(index) => index,
                None => {
                    self.stages.push((stage, Series::new()));
                    self.stages.len() - 1
                }
            };
            self.stages[index].1.push(Interval {
                start,
                length,
                latencies: stages.get(stage).clone(),
            });
        }
    }
}

/// Writes everything that was gathered; the first yardstick is the round trip of the link.
pub(super) fn write(
    arms: &[(&dyn Arm, &Gathered)],
    yardsticks: &[(&str, &Series)],
    report: &mut Report,
) -> Result<Outcome, ReportError> {
    for (arm, gathered) in arms {
        write_arm(arm.name(), gathered, report)?;
    }
    for (name, series) in yardsticks {
        report.series(name, series)?;
    }
    write_plots(arms, yardsticks, report)?;

    let mut outcome = Outcome {
        inside: Vec::new(),
        client: Vec::new(),
        wrong_keys: arms
            .iter()
            .map(|(_, gathered)| gathered.wrong_keys + gathered.lost_writes + gathered.stale_reads)
            .sum(),
        promises_kept: true,
    };
    let Some((_, bare)) = arms.iter().find(|(arm, _)| !arm.protected()) else {
        return Ok(outcome);
    };
    let round_trip = yardsticks
        .first()
        .map(|(name, series)| (*name, series.total().percentiles().p50));
    for (arm, gathered) in arms.iter().filter(|(arm, _)| arm.protected()) {
        let name = arm.name();
        let whole = Stage::KickToReleased;
        let inside = Added::between(&gathered.total(whole), &bare.total(whole));
        let client = Added::between(&gathered.client.total(), &bare.client.total());
        inside.figures(&format!("{name}: added by the output rule"), report);
        client.figures(&format!("{name}: added to the client's latency"), report);
        let trips = round_trip
            .zip(inside.p50)
            .map(|((yardstick, trip), added)| {
                let trips = added / trip;
                let what = format!("{name}: added p50 beside {yardstick}");
                report.figure(&what, trips, "round trips");
                trips
            });
        outcome.promises_kept &= arm
            .promise()
            .is_none_or(|promise| judge(name, promise, inside.p50, trips, report));
        outcome.inside.push((name.to_owned(), inside));
        outcome.client.push((name.to_owned(), client));
    }
    Ok(outcome)
}

/// What was not measured keeps no promise.
fn judge(
    name: &str,
    promise: AddedPromise,
    added: Option<f64>,
    trips: Option<f64>,
    report: &mut Report,
) -> bool {
    let (what, found, limit, unit) = match promise {
        AddedPromise::Microseconds(limit) => ("p50", added, limit, "µs"),
        AddedPromise::RoundTrips(limit) => ("p50 in bare round trips", trips, limit, "round trips"),
    };
    let what = format!("{name}: added by the output rule, {what}");
    report.at_most(&what, found.unwrap_or(f64::NAN), limit, unit)
}

fn write_arm(name: &str, gathered: &Gathered, report: &mut Report) -> Result<(), ReportError> {
    report.series(&format!("{name}/client"), &gathered.client)?;
    for (stage, series) in &gathered.stages {
        // An unprotected run passes no inner stage.
        if series.total().count() > 0 {
            report.series(&format!("{name}/{stage}"), series)?;
        }
    }
    let us = |histogram: &LatencyHistogram, quantile| histogram.value_at(quantile) as f64 / 1000.0;
    let counts = [
        ("requests", gathered.requests),
        ("requests given up", gathered.gave_up),
        ("datagrams sent again", gathered.retransmissions),
        ("acknowledged writes", gathered.acknowledged_writes),
        ("acknowledged writes lost", gathered.lost_writes),
        ("keys corrupt or unread", gathered.wrong_keys),
        ("stale reads", gathered.stale_reads),
    ];
    for (what, count) in counts {
        report.figure(&format!("{name}: {what}"), count as f64, "");
    }
    for (what, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let service = us(&gathered.service, quantile);
        report.figure(
            &format!("{name}: client, from actual sending, {what}"),
            service,
            "µs",
        );
        let own = us(&gathered.own_delay, quantile);
        report.figure(
            &format!("{name}: the client's own delay, {what}"),
            own,
            "µs",
        );
    }
    Ok(())
}

fn write_plots(
    arms: &[(&dyn Arm, &Gathered)],
    yardsticks: &[(&str, &Series)],
    report: &mut Report,
) -> Result<(), ReportError> {
    let each = |what: &str| {
        arms.iter()
            .map(|(arm, _)| format!("{}/{what}", arm.name()))
            .collect()
    };
    let draw = |report: &mut Report, file: &str, title: &str, mut series: Vec<String>| {
        series.extend(yardsticks.iter().map(|(name, _)| (*name).to_owned()));
        series.retain(|name| report.has(name));
        let series: Vec<&str> = series.iter().map(String::as_str).collect();
        report.plot(file, title, &series)
    };
    draw(
        report,
        "client",
        "What a client sees: latency, open loop",
        each("client"),
    )?;
    let title = "Inside the host: from the guest's doorbell to the output's release";
    draw(report, "kick-released", title, each("kick-released"))?;
    for (arm, _) in arms.iter().filter(|(arm, _)| arm.protected()) {
        let name = arm.name();
        let stages: Vec<String> = Stage::ALL.map(|stage| format!("{name}/{stage}")).into();
        let stages: Vec<&str> = stages
            .iter()
            .map(String::as_str)
            .filter(|series| report.has(series))
            .collect();
        let title = format!("{name}: an output's way through the output rule");
        report.plot(&format!("{name}-stages"), &title, &stages)?;
    }
    Ok(())
}
