//! Where a suite's results go: a directory that can be read without this program.
//!
//! | file | what |
//! |---|---|
//! | `<series>.hgrm` | percentiles of the series, microseconds, for HdrHistogram plotters |
//! | `<series>.hlog` | its interval log, nanoseconds, for HdrHistogram's log tools (tag: the series) |
//! | `<plot>.svg` | percentiles of several series in one picture |
//! | `summary.json` | [`Summary`]: how it was made, where, and every number |
//!
//! ```no_run
//! # use lockstep_bench::report::Report;
//! # use lockstep_perf::interval::Series;
//! # fn suite(spsc: &Series, other: &Series) -> Result<(), lockstep_bench::report::ReportError> {
//! let mut report = Report::create("results/ring".as_ref(), "ring", "lockstep bench ring")?;
//! report.fact("entry bytes", 64);
//! report.series("ours/64", spsc)?;
//! report.series("rtrb/64", other)?;
//! report.figure("ours/64 throughput", 31.5e6, "entries/s");
//! report.at_most("one-way p50 beside a bare hand-off", 1.12, 1.3, "times");
//! report.plot("one-way", "Ring: one-way latency", &["ours/64", "rtrb/64"])?;
//! println!("{}", report.finish()?);
//! # Ok(())
//! # }
//! ```

mod host;
mod plot;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_perf::hgrm;
use lockstep_perf::histogram::{LatencyHistogram, Percentiles};
use lockstep_perf::interval::Series;
use serde::Serialize;

pub use host::HostFacts;

/// A result could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Results of two runs in one directory would be taken for one.
    #[error("{} is not empty: name a new directory, or remove this one", .0.display())]
    NotEmpty(PathBuf),
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was to be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A plot names a series that the report was not given.
    #[error("plot {plot:?} asks for series {series:?}; the report has {known:?}")]
    UnknownSeries {
        /// The plot.
        plot: String,
        /// What it asked for.
        series: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Two series of one name would overwrite one another.
    #[error("series {0:?} was already reported: give it a name of its own")]
    DuplicateSeries(String),
    /// The drawing library refused.
    #[error("plot {plot:?} could not be drawn: {why}")]
    Plot {
        /// The plot.
        plot: String,
        /// What it said.
        why: String,
    },
}

impl ReportError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// A number that is no latency.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: String,
}

/// A number that was promised to stay within a limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Promise {
    /// What was promised.
    pub name: String,
    /// What was measured.
    pub found: f64,
    /// `at most` or `at least`.
    pub bound: Bound,
    /// The limit.
    pub limit: f64,
    /// Unit of both.
    pub unit: String,
    /// Whether it was kept.
    pub kept: bool,
}

/// Which side of its limit a promised number stays on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Not above.
    AtMost,
    /// Not below.
    AtLeast,
}

/// What `summary.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The suite.
    pub suite: String,
    /// How it was called.
    pub command: String,
    /// When it began, seconds since 1970.
    pub started: u64,
    /// How long it took, seconds.
    pub seconds: f64,
    /// Where it ran.
    pub host: HostFacts,
    /// What the suite says about this run: engine, rates, sizes.
    pub facts: BTreeMap<String, serde_json::Value>,
    /// Percentiles of each series, microseconds.
    pub series: BTreeMap<String, Percentiles>,
    /// Other numbers, in the order in which the suite gave them.
    pub figures: Vec<Figure>,
    /// Promises, kept and broken.
    pub promises: Vec<Promise>,
    /// The directory's other files.
    pub files: Vec<String>,
}

impl Summary {
    /// Whether every promise was kept.
    #[must_use]
    pub fn promises_kept(&self) -> bool {
        self.promises.iter().all(|promise| promise.kept)
    }
}

/// A result directory being written.
pub struct Report {
    directory: PathBuf,
    totals: BTreeMap<String, LatencyHistogram>,
    summary: Summary,
}

impl Report {
    /// Makes `directory`, and notes the host as it is now. `command` is the command line that makes
    /// this run again.
    ///
    /// # Errors
    /// It cannot be made, or is there and holds something.
    pub fn create(directory: &Path, suite: &str, command: &str) -> Result<Self, ReportError> {
        fs::create_dir_all(directory).map_err(ReportError::io(directory))?;
        let mut entries = fs::read_dir(directory).map_err(ReportError::io(directory))?;
        if entries.next().is_some() {
            return Err(ReportError::NotEmpty(directory.to_owned()));
        }
        Ok(Self {
            directory: directory.to_owned(),
            totals: BTreeMap::new(),
            summary: Summary {
                suite: suite.to_owned(),
                command: command.to_owned(),
                started: since_1970().as_secs(),
                seconds: 0.0,
                host: HostFacts::gather(),
                facts: BTreeMap::new(),
                series: BTreeMap::new(),
                figures: Vec::new(),
                promises: Vec::new(),
                files: Vec::new(),
            },
        })
    }

    /// Where the report is written.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether a series of that name was reported.
    #[must_use]
    pub fn has(&self, series: &str) -> bool {
        self.totals.contains_key(series)
    }

    /// Notes something about the run that is no measurement.
    pub fn fact(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.summary.facts.insert(name.to_owned(), value.into());
    }

    /// Writes a series' `.hgrm` and `.hlog`, and notes its percentiles. In file names, everything in
    /// `name` but letters, digits, `-`, `_` and `.` becomes `-`, and `/` becomes `.`.
    ///
    /// # Errors
    /// There is one of that name already, or the files cannot be written.
    pub fn series(&mut self, name: &str, series: &Series) -> Result<(), ReportError> {
        if self.totals.contains_key(name) {
            return Err(ReportError::DuplicateSeries(name.to_owned()));
        }
        let total = series.total();
        let stem = file_stem(name);
        self.write(&format!("{stem}.hgrm"), |file| hgrm::write(&total, file))?;
        self.write(&format!("{stem}.hlog"), |file| series.write_log(name, file))?;
        let percentiles = total.percentiles();
        self.summary.series.insert(name.to_owned(), percentiles);
        self.totals.insert(name.to_owned(), total);
        Ok(())
    }

    /// Notes a number that is no latency.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.summary.figures.push(Figure {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
        });
    }

    /// Notes a promise that `found` is at most `limit`; returns whether it is kept.
    pub fn at_most(&mut self, name: &str, found: f64, limit: f64, unit: &str) -> bool {
        self.promise(name, found, Bound::AtMost, limit, unit)
    }

    /// Notes a promise that `found` is at least `limit`; returns whether it is kept.
    pub fn at_least(&mut self, name: &str, found: f64, limit: f64, unit: &str) -> bool {
        self.promise(name, found, Bound::AtLeast, limit, unit)
    }

    fn promise(&mut self, name: &str, found: f64, bound: Bound, limit: f64, unit: &str) -> bool {
        // Not a number keeps no promise.
        let kept = match bound {
            Bound::AtMost => found <= limit,
            Bound::AtLeast => found >= limit,
        };
        self.summary.promises.push(Promise {
            name: name.to_owned(),
            found,
            bound,
            limit,
            unit: unit.to_owned(),
            kept,
        });
        kept
    }

    /// Draws the percentiles of the named series, in this order, into `<file>.svg`. Series without a
    /// single value are left out.
    ///
    /// # Errors
    /// A series is unknown, or the file cannot be drawn.
    pub fn plot(&mut self, file: &str, title: &str, series: &[&str]) -> Result<(), ReportError> {
        let mut curves = Vec::new();
        for name in series {
            let total = self
                .totals
                .get(*name)
                .ok_or_else(|| ReportError::UnknownSeries {
                    plot: file.to_owned(),
                    series: (*name).to_owned(),
                    known: self.totals.keys().cloned().collect(),
                })?;
            if total.count() > 0 {
                curves.push((*name, total));
            }
        }
        let svg =
            plot::percentiles(title, &self.summary.host.line(), &curves).map_err(|error| {
                ReportError::Plot {
                    plot: file.to_owned(),
                    why: error.to_string(),
                }
            })?;
        self.write(&format!("{}.svg", file_stem(file)), |file| {
            file.write_all(svg.as_bytes())
        })
    }

    /// Writes `summary.json` and hands it back. The directory is complete when this returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> Result<Summary, ReportError> {
        let now = since_1970();
        self.summary.seconds = (now.as_secs_f64() - self.summary.started as f64).max(0.0);
        let mut summary = self.summary.clone();
        summary.files.sort();
        self.write("summary.json", |file| {
            serde_json::to_writer_pretty(&mut *file, &summary)?;
            writeln!(file)
        })?;
        Ok(summary)
    }

    fn write(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), ReportError> {
        let path = self.directory.join(name);
        let written = File::create_new(&path).and_then(|file| {
            let mut file = BufWriter::new(file);
            body(&mut file)?;
            file.flush()
        });
        written.map_err(ReportError::io(&path))?;
        self.summary.files.push(name.to_owned());
        Ok(())
    }
}

/// The numbers as a table for the terminal.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.suite, self.host.line())?;
        if !self.series.is_empty() {
            let width = self.series.keys().map(String::len).max().unwrap_or(0);
            writeln!(
                f,
                "{:width$} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "µs", "count", "p50", "p90", "p99", "p99.9", "p99.99", "max"
            )?;
            for (name, p) in &self.series {
                write!(f, "{name:width$} {:10}", p.count)?;
                for value in [p.p50, p.p90, p.p99, p.p99_9, p.p99_99, p.max] {
                    write!(f, " {value:10.2}")?;
                }
                writeln!(f)?;
            }
        }
        for Figure { name, value, unit } in &self.figures {
            writeln!(f, "{name}: {value:.2} {unit}")?;
        }
        for promise in &self.promises {
            let verdict = if promise.kept { "kept" } else { "BROKEN" };
            let bound = match promise.bound {
                Bound::AtMost => "at most",
                Bound::AtLeast => "at least",
            };
            let Promise {
                name,
                found,
                limit,
                unit,
                ..
            } = promise;
            writeln!(
                f,
                "{verdict}: {name}: {found:.2} {unit}, promised {bound} {limit:.2}"
            )?;
        }
        Ok(())
    }
}

fn since_1970() -> std::time::Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn file_stem(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            '/' => '.',
            c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') => c,
            _ => '-',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_perf::interval::Interval;
    use std::time::Duration;

    fn series(values: impl Iterator<Item = u64>) -> Series {
        let mut latencies = LatencyHistogram::new();
        values.for_each(|value| latencies.record(value));
        let mut series = Series::new();
        series.push(Interval {
            start: SystemTime::now(),
            length: Duration::from_secs(1),
            latencies,
        });
        series
    }

    #[test]
    fn a_report_is_complete_and_its_summary_names_every_file() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let directory = home.path().join("new/results");
        let mut report = Report::create(&directory, "suite", "the command").expect("created");
        report.fact("rate", 10_000);
        report
            .series("a/client", &series((1..10_000).map(|n| n * 100)))
            .expect("written");
        report
            .series("b client", &series((1..1_000).map(|n| n * 3000)))
            .expect("written");
        report.figure("throughput", 2.5, "GB/s");
        assert!(report.at_most("p50", 1.0, 1.5, "times"));
        assert!(!report.at_least("speed", 0.9, 1.0, "times"));
        assert!(!report.at_most("nothing measured", f64::NAN, 1.0, "µs"));
        report
            .plot("both", "Both", &["a/client", "b client"])
            .expect("drawn");
        let summary = report.finish().expect("written");

        assert_eq!(
            summary.files,
            [
                "a.client.hgrm",
                "a.client.hlog",
                "b-client.hgrm",
                "b-client.hlog",
                "both.svg"
            ]
        );
        for file in &summary.files {
            let length = fs::metadata(directory.join(file)).expect("there").len();
            assert!(length > 100, "{file}: {length} bytes");
        }
        let text = fs::read_to_string(directory.join("summary.json")).expect("there");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["command"], "the command");
        assert_eq!(json["facts"]["rate"], 10_000);
        assert_eq!(json["series"]["a/client"]["count"], 9_999);
        assert!(
            (json["series"]["b client"]["p50"]
                .as_f64()
                .expect("a number")
                - 1500.0)
                .abs()
                < 2.0
        );
        assert!(!summary.promises_kept());
        let table = summary.to_string();
        assert!(
            table.contains("BROKEN: speed") && table.contains("kept: p50"),
            "{table}"
        );
    }

    #[test]
    fn results_of_two_runs_never_share_a_directory() {
        let home = tempfile::tempdir().expect("a temporary directory");
        Report::create(home.path(), "suite", "")
            .expect("empty")
            .finish()
            .expect("written");
        let again = Report::create(home.path(), "suite", "");
        assert!(matches!(again, Err(ReportError::NotEmpty(path)) if path == home.path()));
    }

    #[test]
    fn a_name_used_twice_or_never_is_an_error_that_names_it() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mut report = Report::create(home.path(), "suite", "").expect("empty");
        report.series("one", &series(1..5)).expect("written");
        assert!(matches!(
            report.series("one", &series(1..5)),
            Err(ReportError::DuplicateSeries(name)) if name == "one"
        ));
        let error = report.plot("p", "P", &["one", "two"]).expect_err("unknown");
        assert!(
            error
                .to_string()
                .contains(r#""two"; the report has ["one"]"#),
            "{error}"
        );
    }
}
