//! Disks: the host's side of the way to the storage beside `fio`, and what protection adds to it.
//!
//! **The host's side** is what runs in a replica's process, from [`Disks::submit`] to
//! [`Disks::completed`](lockstep_vmm::host::disk::Disks::completed), driven at a fixed depth from one
//! thread that sleeps while nothing is done. `fio` does the same with the same means (`io_uring`,
//! `O_DIRECT`, registered buffers and files), on the same file, at the same depth; both take turns. The
//! file is written in full before, so no write has to allocate.
//!
//! **What protection adds** to a request is measured apart from any disk, as two histograms: the
//! copies between guest memory and bounce buffer, and the time that a write waits until the entry that
//! it leaves in the log is acknowledged, on requests that are due at fixed times.
//!
//! [`Disks::submit`]: lockstep_vmm::host::disk::Disks::submit

mod bounce;
mod fio;
mod ours;
mod pattern;
mod scratch;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lockstep_logchan::transport::shm::ShmAck;
use lockstep_perf::interval::Series;
use lockstep_vmm::ft::log::MARK_BYTES_MAX;
use lockstep_vmm::host::disk::DiskError;

use crate::channel::{self, Arm, ChannelBenchError, Transport, Waiting};
use crate::report::{Report, ReportError};
use crate::rounds::alternate;

use fio::Fio;
use scratch::ScratchFile;

pub use pattern::{Pattern, Point, UnknownPattern};

/// Requests a second of the host's side over `fio`'s, at least: medians over the rounds.
pub const LEAST_RATIO: f64 = 0.9;

/// What to install where `fio` is missing.
pub const FIO_REMEDY: &str = "nothing to compare with: fio is missing (apt-get install fio)";

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the file is made, and removed at the end: on the storage that is measured.
    pub directory: PathBuf,
    /// Its size, bytes; a multiple of 1 MiB.
    pub file_bytes: u64,
    /// What is asked of the disk.
    pub patterns: Vec<Pattern>,
    /// Requests under way.
    pub depths: Vec<u32>,
    /// Whether to measure what protection adds, too.
    pub additions: bool,
    /// Rounds; the two take turns in each, at each point.
    pub rounds: usize,
    /// At the start of each lap, measured and forgotten.
    pub warm_up: Duration,
    /// The measured rest of a lap.
    pub lap: Duration,
    /// The program that is compared with.
    pub fio: PathBuf,
    /// Copies of each kind.
    pub copies: usize,
    /// Writes a second whose entries wait for their acknowledgement.
    pub rate: u32,
    /// For how long, in each round.
    pub open_loop: Duration,
}

impl Options {
    /// A thorough run: about six minutes.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            file_bytes: 1 << 30,
            patterns: Pattern::ALL.to_vec(),
            depths: vec![1, 4, 16, 64],
            additions: true,
            rounds: 5,
            warm_up: Duration::from_millis(300),
            lap: Duration::from_millis(1500),
            fio: PathBuf::from("fio"),
            copies: 20_000,
            rate: 5_000,
            open_loop: Duration::from_secs(2),
        }
    }

    /// Just enough to see that it works.
    #[must_use]
    pub fn small(directory: PathBuf) -> Self {
        Self {
            file_bytes: 8 << 20,
            depths: vec![1, 16],
            rounds: 1,
            warm_up: Duration::from_millis(20),
            lap: Duration::from_millis(100),
            copies: 200,
            rate: 1_000,
            open_loop: Duration::from_millis(100),
            ..Self::new(directory)
        }
    }
}

/// The suite could not be run.
#[derive(Debug, thiserror::Error)]
pub enum DiskBenchError {
    /// The results could not be written.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The file could not be made.
    #[error("{}: {source}: name a directory with room for it (--directory)", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The host's side refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A request failed.
    #[error("{point}: request at {offset} ended as {status}, expected done")]
    Request {
        /// While measuring what.
        point: Point,
        /// Where on the disk.
        offset: u64,
        /// How it ended.
        status: String,
    },
    /// Memory for buffers.
    #[error("memory for {what}: {why}")]
    Memory {
        /// Which.
        what: &'static str,
        /// The system's answer.
        why: String,
    },
    /// `fio` said something else than numbers.
    #[error("{point}: fio: {why}")]
    Fio {
        /// While measuring what.
        point: Point,
        /// What it said.
        why: String,
    },
    /// The logging channel.
    #[error(transparent)]
    Channel(#[from] ChannelBenchError),
}

/// What one side did at one point.
#[derive(Default)]
struct Outcome {
    rates: Vec<f64>,
    latency: Series,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contender {
    Lockstep,
    Fio,
}

/// Measures. What this host lacks is returned, and named in the report's facts.
///
/// # Errors
/// The file cannot be made, a request failed, or the results cannot be written.
pub fn run(
    options: &Options,
    report: &mut Report,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<String>, DiskBenchError> {
    progress("writing the file");
    let file = ScratchFile::create(&options.directory, options.file_bytes)?;
    report.fact("file bytes", options.file_bytes);
    report.fact("lap, ms", options.lap.as_millis() as u64);
    let mut missing = Vec::new();
    let fio = match Fio::find(&options.fio) {
        Some(fio) => {
            report.fact("fio", fio.version());
            Some(fio)
        }
        None => {
            report.fact("not measured: fio", FIO_REMEDY);
            missing.push(FIO_REMEDY.to_owned());
            None
        }
    };
    for pattern in options.patterns.iter().copied() {
        for depth in &options.depths {
            let point = Point {
                pattern,
                depth: *depth,
            };
            measure(point, options, &file, fio.as_ref(), report, progress)?;
        }
    }
    for pattern in options.patterns.iter().copied() {
        let names: Vec<String> = options
            .depths
            .iter()
            .map(|depth| {
                series_name(Point {
                    pattern,
                    depth: *depth,
                })
            })
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let title = format!("Host side of a disk: {pattern}, by depth");
        report.plot(pattern.name(), &title, &names)?;
    }
    drop(file);
    if options.additions {
        progress("copying to and from bounce buffers");
        bounce::measure(options.copies, report)?;
        output_rule(options, report, progress)?;
    }
    Ok(missing)
}

fn series_name(point: Point) -> String {
    format!("host/{}-{}", point.pattern.name(), point.depth)
}

/// Both, in turns, at one point.
fn measure(
    point: Point,
    options: &Options,
    file: &ScratchFile,
    fio: Option<&Fio>,
    report: &mut Report,
    progress: &mut dyn FnMut(&str),
) -> Result<(), DiskBenchError> {
    let mut contenders = vec![Contender::Lockstep];
    contenders.extend(fio.map(|_| Contender::Fio));
    let mut outcomes: BTreeMap<Contender, Outcome> = BTreeMap::new();
    alternate(options.rounds, &mut contenders, |round, contender| {
        progress(&format!(
            "{point}: round {} of {}, {contender:?}",
            round + 1,
            options.rounds
        ));
        let outcome = outcomes.entry(*contender).or_default();
        match (*contender, fio) {
            (Contender::Fio, Some(fio)) => outcome.rates.push(fio.lap(point, options, file)?),
            _ => {
                let lap = ours::lap(point, options, file, round as u64)?;
                outcome.rates.push(lap.rate);
                outcome.latency.append(lap.latency);
                report.fact(
                    "direct, alignment",
                    format!("{}, {}", lap.direct, lap.alignment),
                );
                report.fact("registered buffers", lap.fixed_buffers);
                report.fact(
                    &format!("{point}: kernel entries a request"),
                    lap.entries_a_request,
                );
            }
        }
        Ok::<(), DiskBenchError>(())
    })?;
    let median = |contender| {
        let mut rates = outcomes.get(&contender)?.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    };
    if let Some(ours) = outcomes.get(&Contender::Lockstep) {
        report.series(&series_name(point), &ours.latency)?;
    }
    let ours = median(Contender::Lockstep).unwrap_or(f64::NAN);
    report.figure(&format!("{point}: Lockstep"), ours, "requests/s");
    if let Some(theirs) = median(Contender::Fio) {
        report.figure(&format!("{point}: fio"), theirs, "requests/s");
        report.at_least(
            &format!("{point}: requests a second beside fio"),
            ours / theirs,
            LEAST_RATIO,
            "of fio's",
        );
    }
    for (contender, outcome) in &outcomes {
        report.fact(
            &format!("{point}: rounds of {contender:?}"),
            outcome
                .rates
                .iter()
                .map(|rate| rate.round())
                .collect::<Vec<_>>(),
        );
    }
    Ok(())
}

/// How long a write waits for the acknowledgement of its entry, by transport.
fn output_rule(
    options: &Options,
    report: &mut Report,
    progress: &mut dyn FnMut(&str),
) -> Result<(), DiskBenchError> {
    let mut arms = [
        ("shm-committed", Transport::Shm(ShmAck::Committed)),
        ("shm-received", Transport::Shm(ShmAck::Received)),
        ("tcp", Transport::plain_tcp()),
    ]
    .map(|(name, transport)| (format!("output-rule/{name}"), transport, Series::new()));
    let held = channel::Options {
        // What a write leaves in the log is a mark with its digest; its data is on both sides.
        payload_bytes: MARK_BYTES_MAX,
        entries: 500,
        rate: options.rate,
        open_loop: options.open_loop,
        throughput_bytes: 0,
        ..channel::Options::default()
    };
    report.fact("output rule: writes a second, open loop", options.rate);
    alternate(options.rounds, &mut arms, |_, (name, transport, series)| {
        progress(name);
        let arm = Arm {
            transport: *transport,
            waiting: Waiting::SpinThenBlock,
        };
        series.append(channel::acknowledged_after(&arm, &held)?);
        Ok::<(), DiskBenchError>(())
    })?;
    for (name, _, series) in &arms {
        report.series(name, series)?;
    }
    let names = arms.each_ref().map(|(name, ..)| name.as_str());
    report.plot(
        "output-rule",
        "What the output rule adds to a write: due to acknowledged",
        &names,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(fio: &str) -> (crate::report::Summary, Vec<String>) {
        let home = tempfile::tempdir().expect("a temporary directory");
        let results = home.path().join("results");
        let mut report = Report::create(&results, "disk", "test").expect("created");
        let options = Options {
            fio: fio.into(),
            depths: vec![4],
            ..Options::small(home.path().to_owned())
        };
        let missing = run(&options, &mut report, &mut |_| {}).expect("it runs");
        (report.finish().expect("written"), missing)
    }

    #[test]
    fn without_fio_the_suite_measures_what_it_can_and_says_what_to_install() {
        let (summary, missing) = small("no-such-fio");
        assert_eq!(missing, [FIO_REMEDY]);
        assert_eq!(summary.facts["not measured: fio"], FIO_REMEDY);
        assert!(summary.promises.is_empty(), "nothing was compared");
        for name in [
            "host/random-read-4",
            "host/random-write-4",
            "host/sequential-read-4",
            "host/sequential-write-4",
            "bounce/write-4k",
            "bounce/read-1m",
            "output-rule/shm-committed",
            "output-rule/shm-received",
            "output-rule/tcp",
        ] {
            let series = summary.series.get(name);
            assert!(series.is_some_and(|series| series.count > 0), "{name}");
        }
    }

    #[test]
    fn with_fio_every_point_is_judged() {
        if Fio::find("fio".as_ref()).is_none() {
            return lockstep_perf::not_run::report("with_fio_every_point_is_judged", FIO_REMEDY);
        }
        let (summary, missing) = small("fio");
        assert_eq!(missing, [""; 0]);
        assert_eq!(summary.promises.len(), 4);
        for promise in summary.promises {
            assert!(
                promise.found > 0.0 && promise.limit == LEAST_RATIO,
                "{promise:?}"
            );
        }
    }
}
