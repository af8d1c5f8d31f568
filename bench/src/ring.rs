//! The log ring beside other rings.
//!
//! For each entry size, in rounds that take turns: how many entries a second go from one core to
//! another, and how long one entry takes on its way (half of a round trip through two rings).
//! Everybody writes each entry in full and reads it in full, publishes each by itself, and holds the
//! same number of bytes. The yardsticks of the latency are a bare cache line handed over in the same
//! run, and the same with as many bytes beside it as the entry has.
//!
//! Promised, and marked kept or broken in the report: throughput at least that of the fastest other
//! contender; a one-way median within [`HANDOFF_FACTOR`] of the bare hand-off's: of the line alone for
//! an entry of one line, of the one that carries as much for longer ones.

mod contender;
mod entry;
mod handoff;
mod measure;

use lockstep_perf::interval::Series;
use lockstep_perf::pin::{self, PinError};
use serde::{Deserialize, Serialize};

use self::contender::{Crossbeam, Lockstep, RingbufSlices, RingbufValues, RtrbChunks, RtrbValues};
use self::handoff::{Carried, Handoff};
use self::measure::{Arm, Cores, Ways};
use crate::report::{Report, ReportError};
use crate::rounds;

/// The sizes measured, bytes.
pub const ENTRY_BYTES: [usize; 4] = [64, 256, 1024, 2048];
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;
/// How much longer than a bare hand-off an entry may take.
pub const HANDOFF_FACTOR: f64 = 1.3;

/// How much to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingOptions {
    /// Rounds of each contender.
    pub rounds: usize,
    /// Bytes streamed in a round.
    pub stream_bytes: u64,
    /// Round trips in a round.
    pub trips: u64,
    /// Bytes that each contender holds, a power of two from a page up.
    pub capacity: usize,
    /// The two cores; `None`: the first two that the process may use.
    pub cores: Option<[usize; 2]>,
}

impl Default for RingOptions {
    /// About half a minute.
    fn default() -> Self {
        Self {
            rounds: 15,
            stream_bytes: 64 << 20,
            trips: 20_000,
            capacity: 256 << 10,
            cores: None,
        }
    }
}

impl RingOptions {
    /// As small as still measures something: for tests.
    #[must_use]
    pub fn small() -> Self {
        Self {
            rounds: 3,
            stream_bytes: 1 << 20,
            trips: 500,
            ..Self::default()
        }
    }
}

/// The suite could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RingBenchError {
    /// Two spinning threads on one core measure the scheduler.
    #[error("the ring suite needs two cores, this process may use {usable:?}; see taskset(1)")]
    OneCore {
        /// What the process may use.
        usable: Vec<usize>,
    },
    /// A thread could not be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The report could not be written.
    #[error(transparent)]
    Report(#[from] ReportError),
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RingReport {
    /// How it was measured.
    pub options: RingOptions,
    /// Between which cores.
    pub cores: [usize; 2],
    /// One for each of [`ENTRY_BYTES`].
    pub sizes: Vec<SizeReport>,
}

/// What was measured with entries of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SizeReport {
    /// Bytes an entry.
    pub entry_bytes: usize,
    /// Half a round trip of a bare cache line, median of the rounds' medians, nanoseconds.
    pub handoff_ns: f64,
    /// The same with `entry_bytes` handed over beside it.
    pub carried_ns: f64,
    /// The log ring first, then the others.
    pub contenders: Vec<ContenderReport>,
}

/// What one contender did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContenderReport {
    /// Which.
    pub name: String,
    /// Entries a second, median of the rounds.
    pub entries_per_second: f64,
    /// Half a round trip, median of the rounds' medians, nanoseconds.
    pub one_way_ns: f64,
}

impl SizeReport {
    /// The log ring's throughput over that of the fastest other.
    #[must_use]
    pub fn throughput_factor(&self) -> f64 {
        let (ours, others) = self.contenders.split_first().expect("ours is first");
        let fastest = others
            .iter()
            .map(|other| other.entries_per_second)
            .fold(0.0, f64::max);
        ours.entries_per_second / fastest
    }

    /// The log ring's one-way latency over that of the bare hand-off: of one line for an entry that
    /// is one, of the one that carries as much for a longer entry.
    #[must_use]
    pub fn handoff_factor(&self) -> f64 {
        let bare = if self.entry_bytes <= LINE_BYTES {
            self.handoff_ns
        } else {
            self.carried_ns
        };
        self.contenders[0].one_way_ns / bare
    }
}

/// Runs the suite and reports it.
///
/// # Errors
/// There are no two cores, a thread could not be pinned, or the report could not be written.
pub fn run(options: &RingOptions, report: &mut Report) -> Result<RingReport, RingBenchError> {
    let cores = match options.cores {
        Some(cores) => cores,
        None => two_cores()?,
    };
    report.fact("cores", cores.to_vec());
    report.fact("capacity bytes", options.capacity);
    report.fact("rounds", options.rounds);
    let sizes = vec![
        size::<64>(options, cores, report)?,
        size::<256>(options, cores, report)?,
        size::<1024>(options, cores, report)?,
        size::<2048>(options, cores, report)?,
    ];
    Ok(RingReport {
        options: options.clone(),
        cores,
        sizes,
    })
}

fn two_cores() -> Result<Cores, RingBenchError> {
    match *pin::cores() {
        [first, second, ..] => Ok([first, second]),
        ref usable => Err(RingBenchError::OneCore {
            usable: usable.to_vec(),
        }),
    }
}

/// A contender and what it did so far.
struct Lane {
    arm: Box<dyn Arm>,
    /// Entries a second, one for each round.
    streams: Vec<f64>,
    one_way: Series,
}

impl Lane {
    fn new(arm: Box<dyn Arm>) -> Self {
        Self {
            arm,
            streams: Vec::new(),
            one_way: Series::new(),
        }
    }

    fn one_way_ns(&self) -> f64 {
        median(
            self.one_way
                .intervals()
                .iter()
                .map(|round| round.latencies.value_at(0.5) as f64)
                .collect(),
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn size<const N: usize>(
    options: &RingOptions,
    cores: Cores,
    report: &mut Report,
) -> Result<SizeReport, RingBenchError> {
    let capacity = options.capacity;
    let mut lanes = [
        Ways::<N, Lockstep>::open(capacity),
        Ways::<N, RtrbValues>::open(capacity),
        Ways::<N, RtrbChunks>::open(capacity),
        Ways::<N, RingbufValues>::open(capacity),
        Ways::<N, RingbufSlices>::open(capacity),
        Ways::<N, Crossbeam>::open(capacity),
    ]
    .map(Lane::new);
    let entries = (options.stream_bytes / N as u64).max(1);
    rounds::alternate(options.rounds, &mut lanes, |_, lane| {
        let took = lane.arm.stream(cores, entries)?;
        lane.streams.push(entries as f64 / took.as_secs_f64());
        Ok::<_, PinError>(())
    })?;

    // The hand-offs take turns with those that are measured against it.
    let mut lanes: Vec<Lane> = lanes.into();
    lanes.push(Lane::new(Ways::<N, Handoff>::open(capacity)));
    lanes.push(Lane::new(Ways::<N, Carried>::open(capacity)));
    rounds::alternate(options.rounds, &mut lanes, |_, lane| {
        lane.arm.ping_pong(cores, options.trips, &mut lane.one_way)
    })?;

    let mut names = Vec::new();
    for lane in &lanes {
        let name = format!("{N} B/{}", lane.arm.name());
        report.series(&name, &lane.one_way)?;
        names.push(name);
    }
    let carried = lanes.pop().expect("pushed above");
    let handoff = lanes.pop().expect("pushed above");
    let size = SizeReport {
        entry_bytes: N,
        handoff_ns: handoff.one_way_ns(),
        carried_ns: carried.one_way_ns(),
        contenders: lanes
            .into_iter()
            .map(|lane| ContenderReport {
                name: lane.arm.name().to_owned(),
                one_way_ns: lane.one_way_ns(),
                entries_per_second: median(lane.streams),
            })
            .collect(),
    };
    for contender in &size.contenders {
        let name = format!("{N} B, {}", contender.name);
        report.figure(&name, contender.entries_per_second / 1e6, "M entries/s");
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    report.plot(
        &format!("one-way-{N}"),
        &format!("Entries of {N} bytes, one way"),
        &names,
    )?;
    report.at_least(
        &format!("{N} B: throughput beside the fastest other"),
        size.throughput_factor(),
        1.0,
        "times",
    );
    report.at_most(
        &format!("{N} B: one-way median beside the bare hand-off"),
        size.handoff_factor(),
        HANDOFF_FACTOR,
        "times",
    );
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_runs_small_and_reports_every_contender_and_promise() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mut report = Report::create(home.path(), "ring", "test").expect("created");
        let options = RingOptions {
            rounds: 2,
            stream_bytes: 256 << 10,
            trips: 100,
            ..RingOptions::small()
        };
        let measured = match run(&options, &mut report) {
            Ok(measured) => measured,
            Err(error @ RingBenchError::OneCore { .. }) => {
                return lockstep_perf::not_run::report("bench::ring", &error.to_string());
            }
            Err(error) => panic!("{error}"),
        };
        let summary = report.finish().expect("written");
        let sizes: Vec<_> = measured.sizes.iter().map(|size| size.entry_bytes).collect();
        assert_eq!(sizes, ENTRY_BYTES);
        for size in &measured.sizes {
            assert!(size.handoff_ns > 0.0 && size.carried_ns > 0.0, "{size:?}");
            assert_eq!(size.contenders.len(), 6, "{size:?}");
            assert_eq!(size.contenders[0].name, "lockstep");
            for contender in &size.contenders {
                assert!(
                    contender.entries_per_second > 0.0 && contender.one_way_ns > 0.0,
                    "{contender:?}"
                );
                let series = format!("{} B/{}", size.entry_bytes, contender.name);
                // The first eighth of a round warms up and is not counted.
                assert_eq!(summary.series[&series].count, 2 * 100, "{series}");
            }
        }
        assert_eq!(summary.promises.len(), 2 * ENTRY_BYTES.len());
    }
}
