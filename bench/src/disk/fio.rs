//! `fio`, the field's own instrument, asked for the same.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use super::scratch::ScratchFile;
use super::{DiskBenchError, Options, Pattern, Point};

/// A `fio` that can be run.
pub(super) struct Fio {
    program: PathBuf,
    version: String,
}

/// What of its report is read.
#[derive(Debug, Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    error: i64,
    read: Direction,
    write: Direction,
}

#[derive(Debug, Deserialize)]
struct Direction {
    iops: f64,
    total_ios: u64,
}

impl Fio {
    /// The one at `program`, if there is one.
    pub(super) fn find(program: &Path) -> Option<Self> {
        let output = Command::new(program).arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then(|| Self {
            program: program.to_owned(),
            version,
        })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Requests a second of one lap at `point`.
    pub(super) fn lap(
        &self,
        point: Point,
        options: &Options,
        file: &ScratchFile,
    ) -> Result<f64, DiskBenchError> {
        let output = Command::new(&self.program)
            .args(["--name=lap", "--output-format=json", "--ioengine=io_uring"])
            .args(["--direct=1", "--fixedbufs=1", "--registerfiles=1"])
            .args(["--thread=1", "--time_based=1", "--norandommap=1"])
            .args(["--overwrite=1", "--allow_file_create=0", "--invalidate=0"])
            .arg(format!("--filename={}", file.path().display()))
            .arg(format!("--size={}", file.bytes()))
            .arg(format!("--rw={}", mode(point.pattern)))
            .arg(format!("--bs={}", point.pattern.block_bytes()))
            .arg(format!("--iodepth={}", point.depth))
            .arg(format!("--ramp_time={}", milliseconds(options.warm_up)))
            .arg(format!("--runtime={}", milliseconds(options.lap)))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(point, error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(point, said.trim()));
        }
        rate(&String::from_utf8_lossy(&output.stdout), point.pattern)
            .map_err(|why| failed(point, why))
    }
}

fn failed(point: Point, why: impl ToString) -> DiskBenchError {
    DiskBenchError::Fio {
        point,
        why: why.to_string(),
    }
}

const fn mode(pattern: Pattern) -> &'static str {
    match pattern {
        Pattern::RandomRead => "randread",
        Pattern::RandomWrite => "randwrite",
        Pattern::SequentialRead => "read",
        Pattern::SequentialWrite => "write",
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

/// Requests a second from `fio`'s report; notes may stand before it.
fn rate(report: &str, pattern: Pattern) -> Result<f64, String> {
    let json = report.find('{').map_or("", |start| &report[start..]);
    let output: Output = serde_json::from_str(json)
        .map_err(|error| format!("its report is not understood ({error}): {report:.200}"))?;
    let [job] = output.jobs.as_slice() else {
        return Err(format!("{} jobs reported, expected 1", output.jobs.len()));
    };
    let direction = if pattern.writes() {
        &job.write
    } else {
        &job.read
    };
    if job.error != 0 || direction.total_ios == 0 {
        return Err(format!(
            "error {}, {} requests",
            job.error, direction.total_ios
        ));
    }
    Ok(direction.iops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_without_the_expected_numbers_is_an_error_that_says_why() {
        let report = |error: i32, ios: u64| {
            let side = |ios| serde_json::json!({"iops": ios as f64 / 2.0, "total_ios": ios});
            let job = serde_json::json!({"error": error, "read": side(ios), "write": side(0)});
            format!("note: something\n{}", serde_json::json!({"jobs": [job]}))
        };
        assert_eq!(rate(&report(0, 30), Pattern::RandomRead), Ok(15.0));
        assert!(rate(&report(0, 30), Pattern::RandomWrite).is_err());
        assert!(rate(&report(5, 30), Pattern::RandomRead).is_err());
        let said = rate("fio: bad option", Pattern::RandomRead).expect_err("no report");
        assert!(said.contains("not understood"), "{said}");
    }
}
