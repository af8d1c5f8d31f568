//! The logging channel: how long from committing an entry to knowing it acknowledged, and how much
//! goes through.
//!
//! Every arm is a primary's and a backup's end, each on a thread and, where there are two, a core of
//! its own, over the same loopback as the bare TCP ping-pong beside it: same bytes, same waiting.
//! What the arms are compared by is what the channel adds to that ping-pong. Nothing is replayed
//! while latency is measured; the rings hold a whole round.

mod arm;
mod bare;
mod measure;

use std::time::Duration;

use lockstep_perf::interval::Series;
use lockstep_perf::pin;

use crate::report::{Report, ReportError};
use crate::rounds::alternate;

pub use arm::{Arm, Flush, Transport, Waiting};

/// What the output rule may cost on TCP, in bare round trips (the median of each).
pub const TCP_LIMIT: f64 = 1.5;

/// What it may cost in shared memory, microseconds (median).
pub const SHM_LIMIT_US: f64 = 3.0;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Payload of an entry, bytes; 88 makes an entry of 128.
    pub payload_bytes: usize,
    /// Most entries a round and arm of the closed loop: one at a time, as fast as they are
    /// acknowledged.
    pub entries: usize,
    /// Longest closed loop of one round and arm. Some arms wait for the scheduler (a kernel thread
    /// that submits, on the core of an end that spins), and take 8 ms for each entry.
    pub closed_loop: Duration,
    /// Rounds; the arms take turns.
    pub rounds: usize,
    /// Entries a second of the open loop, which measures from the time an entry was due.
    pub rate: u32,
    /// Length of the open loop of one round and arm; zero leaves it out.
    pub open_loop: Duration,
    /// Most log bytes sent in one round and arm to measure throughput; 0 leaves it out.
    pub throughput_bytes: u64,
    /// Longest sending in one round and arm to measure throughput.
    pub throughput: Duration,
    /// Payload of an entry while throughput is measured, bytes.
    pub throughput_payload_bytes: usize,
    /// Pin the primary's end to the first core and the backup's to the second, where there are two.
    pub pin: bool,
    /// The arms.
    pub arms: Vec<Arm>,
}

/// Length of each measurement of one round and arm, where nothing else is asked for.
pub const LAP: Duration = Duration::from_millis(250);

/// Rounds, where nothing else is asked for.
pub const ROUNDS: usize = 5;

/// Entries a second of the open loop, where nothing else is asked for.
pub const RATE: u32 = 10_000;

impl Options {
    /// Each of the three measurements of a round and arm takes at most `lap`; the open loop just that.
    #[must_use]
    pub fn of_laps(lap: Duration) -> Self {
        Self {
            closed_loop: lap,
            open_loop: lap,
            throughput: lap,
            ..Self::default()
        }
    }
}

impl Default for Options {
    /// About 50 seconds.
    fn default() -> Self {
        Self {
            payload_bytes: 88,
            entries: 10_000,
            closed_loop: LAP,
            rounds: ROUNDS,
            rate: RATE,
            open_loop: LAP,
            throughput_bytes: 1 << 30,
            throughput: LAP,
            throughput_payload_bytes: 1460,
            pin: true,
            arms: Arm::all(),
        }
    }
}

/// The suite could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ChannelBenchError {
    /// The results could not be written.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A channel could not be made, or failed.
    #[error("arm {arm}: {why}")]
    Arm {
        /// Which.
        arm: String,
        /// What it said.
        why: String,
    },
}

/// What became of one arm.
struct Outcome {
    arm: Arm,
    closed: Series,
    open: Series,
    throughput: Vec<f64>,
    /// Why the host has no such arm.
    lacking: Option<String>,
}

/// Measures every arm of `options`.
///
/// An arm that asks for something that this kernel or this process may not have (busy polling without
/// `CAP_NET_ADMIN`) is left out and named in the report's facts.
///
/// # Errors
/// An arm failed, or the results cannot be written.
pub fn run(options: &Options, report: &mut Report) -> Result<(), ChannelBenchError> {
    let cores = cores(options);
    report.fact(
        "entry bytes",
        (options.payload_bytes + lockstep_logchan::entry::HEADER_BYTES) as u64,
    );
    report.fact(
        "acknowledgement bytes",
        lockstep_logchan::protocol::ack::ACK_BYTES as u64,
    );
    report.fact("rounds", options.rounds as u64);
    report.fact("closed loop, entries at most", options.entries as u64);
    report.fact("closed loop, ms at most", ms(options.closed_loop));
    report.fact("open loop, entries a second", options.rate);
    report.fact("open loop, ms", ms(options.open_loop));
    report.fact("throughput, ms at most", ms(options.throughput));
    report.fact("cores of the two ends", format!("{cores:?}"));

    let mut outcomes: Vec<Outcome> = options
        .arms
        .iter()
        .map(|arm| Outcome {
            arm: *arm,
            closed: Series::new(),
            open: Series::new(),
            throughput: Vec::new(),
            lacking: None,
        })
        .collect();
    alternate(options.rounds, &mut outcomes, |_, outcome| {
        if outcome.lacking.is_some() {
            return Ok(());
        }
        match measure::round(&outcome.arm, options, cores) {
            Ok(round) => {
                outcome.closed.append(round.closed);
                outcome.open.append(round.open);
                outcome.throughput.extend(round.throughput);
                Ok(())
            }
            Err(measure::RoundError::Lacking(why)) => {
                outcome.lacking = Some(why);
                Ok(())
            }
            Err(measure::RoundError::Failed(why)) => Err(ChannelBenchError::Arm {
                arm: outcome.arm.name(),
                why,
            }),
        }
    })?;
    write(&outcomes, report)
}

/// How long entries wait for their acknowledgement over `arm`, from when each was due: the open loop of
/// one round. The round's closed loop warms the channel up.
///
/// # Errors
/// The arm failed, or the host lacks it.
pub(crate) fn acknowledged_after(
    arm: &Arm,
    options: &Options,
) -> Result<Series, ChannelBenchError> {
    let cores = cores(options);
    match measure::round(arm, options, cores) {
        Ok(round) => Ok(round.open),
        Err(measure::RoundError::Lacking(why) | measure::RoundError::Failed(why)) => {
            Err(ChannelBenchError::Arm {
                arm: arm.name(),
                why,
            })
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The cores of the two ends.
fn cores(options: &Options) -> Option<[usize; 2]> {
    match (options.pin, pin::cores().as_slice()) {
        (true, [first, second, ..]) => Some([*first, *second]),
        _ => None,
    }
}

fn write(outcomes: &[Outcome], report: &mut Report) -> Result<(), ChannelBenchError> {
    let mut closed = Vec::new();
    let mut open = Vec::new();
    for outcome in outcomes {
        let name = outcome.arm.name();
        if let Some(why) = &outcome.lacking {
            report.fact(&format!("not measured: {name}"), why.as_str());
            continue;
        }
        let series = format!("closed/{name}");
        report.series(&series, &outcome.closed)?;
        closed.push(series);
        if !outcome.open.intervals().is_empty() {
            let series = format!("open/{name}");
            report.series(&series, &outcome.open)?;
            open.push(series);
        }
        let mut rates = outcome.throughput.clone();
        rates.sort_by(f64::total_cmp);
        if let Some(median) = rates.get(rates.len() / 2) {
            report.figure(
                &format!("{name}: log bytes, median of rounds"),
                *median,
                "MB/s",
            );
        }
    }
    let median = |arm: &Arm| {
        let outcome = outcomes
            .iter()
            .find(|outcome| outcome.arm == *arm && outcome.lacking.is_none())?;
        Some(outcome.closed.total().value_at(0.5) as f64 / 1000.0)
    };
    for outcome in outcomes {
        let Some(found) = median(&outcome.arm) else {
            continue;
        };
        let name = outcome.arm.name();
        match outcome.arm.transport {
            Transport::Bare => {}
            // The defaults are promised; what is a knob is only shown.
            Transport::Tcp { .. } => {
                let bare = Arm {
                    transport: Transport::Bare,
                    waiting: outcome.arm.waiting,
                };
                if let Some(bare) = median(&bare) {
                    let what = format!("{name}: p50 of commit to acknowledged");
                    if outcome.arm.transport == Transport::plain_tcp() {
                        report.at_most(&what, found / bare, TCP_LIMIT, "bare round trips");
                    } else {
                        report.figure(&what, found / bare, "bare round trips");
                    }
                }
            }
            Transport::Shm(_) => {
                if outcome.arm.waiting != Waiting::Block {
                    report.at_most(
                        &format!("{name}: p50 of commit to acknowledged"),
                        found,
                        SHM_LIMIT_US,
                        "µs",
                    );
                }
            }
        }
    }
    let plot = |report: &mut Report, file: &str, title: &str, names: &[String]| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if names.is_empty() {
            Ok(())
        } else {
            report.plot(file, title, &names)
        }
    };
    plot(
        report,
        "closed",
        "Log channel: commit to acknowledged, one at a time",
        &closed,
    )?;
    plot(
        report,
        "open",
        "Log channel: due to acknowledged, open loop",
        &open,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_runs_small_and_reports_every_arm() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mut report = Report::create(home.path(), "channel", "test").expect("created");
        let options = Options {
            entries: 50,
            // Two busy cores: longer than 50 entries can take.
            closed_loop: Duration::from_secs(60),
            rounds: 2,
            open_loop: Duration::from_millis(20),
            rate: 1000,
            throughput_bytes: 1 << 20,
            ..Options::default()
        };
        run(&options, &mut report).expect("it runs");
        let summary = report.finish().expect("written");
        for arm in Arm::all() {
            let name = arm.name();
            if summary.facts.contains_key(&format!("not measured: {name}")) {
                lockstep_perf::not_run::report(
                    "bench::channel",
                    &format!(
                        "{name}: {}",
                        summary.facts[&format!("not measured: {name}")]
                    ),
                );
                continue;
            }
            // The first fifth of a round warms up.
            let closed = &summary.series[&format!("closed/{name}")];
            assert_eq!(closed.count, 2 * 40, "{name}");
            if arm.transport != Transport::Bare {
                let open = &summary.series[&format!("open/{name}")];
                assert!(open.count > 0 && open.p50 > 0.0, "{name}");
                assert!(
                    summary
                        .figures
                        .iter()
                        .any(|figure| figure.name.starts_with(&name)),
                    "{name}"
                );
            }
        }
        let tcp = summary
            .promises
            .iter()
            .filter(|promise| promise.unit == "bare round trips");
        assert_eq!(tcp.count(), 3, "spinning, spinning then sleeping, sleeping");
    }
}
