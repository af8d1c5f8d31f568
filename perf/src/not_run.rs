//! Tests that this host cannot run, named and counted.
//!
//! A test whose host lacks something (`/dev/kvm`, a tap device, network namespaces, a program) must
//! not pass in silence: a suite that skips everything is green and worth nothing. Such a test calls
//! [`report`] and returns. Each call leaves one line in a file of this run in the directory that the
//! environment variable [`DIRECTORY`] names (the workspace sets it for every `cargo` command), so
//! that the last test of the run, and whoever started it, can print the list and its length, and
//! can treat the list as an error on a host that is known to have what is missing.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Environment variable naming the directory in which [`report`] writes. Unset: standard error only.
pub const DIRECTORY: &str = "LOCKSTEP_NOT_RUN";

/// The file of this run: all test processes of one `cargo test` are its children, so the run is
/// told by the parent's process id. `None` where [`DIRECTORY`] is not set.
#[must_use]
pub fn file_of_this_run() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY)?);
    Some(directory.join(format!("{}.tsv", std::os::unix::process::parent_id())))
}

/// Says that `test` did not run, and `why`: what is missing, and what to do about it.
///
/// Appends the line `test<TAB>why` to [`file_of_this_run`], if there is one, and prints the
/// same to standard error behind `NOT RUN:`. The line is one `write` to a file opened for appending,
/// so tests that run at the same time, in threads or in processes, do not mix their lines.
///
/// The message goes past the test harness's capture of output: it is to be seen in runs that pass.
///
/// # Panics
/// The file is named but cannot be written. A test that can neither run nor say so has failed.
pub fn report(test: &str, why: &str) {
    let line = line(test, why);
    // A closed standard error is no reason to fail: the file is the record.
    let _ = io::stderr().write_all(format!("NOT RUN: {line}").as_bytes());
    if let Some(path) = file_of_this_run()
        && let Err(error) = append(&path, &line)
    {
        panic!(
            "{} cannot be appended to: {error}; the test that could not run: {line}",
            path.display()
        );
    }
}

/// One line, one tab: what is in the two texts cannot forge another line or column.
fn line(test: &str, why: &str) -> String {
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}\t{}\n", flat(test), flat(why))
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)?
        .write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line_with_one_tab_whatever_the_texts_hold() {
        assert_eq!(
            line("a\ttest\n", "no /dev/kvm:\n\tload the module"),
            "a test\tno /dev/kvm: load the module\n"
        );
    }

    #[test]
    fn reports_made_at_the_same_time_do_not_mix() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("not-run");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let path = path.as_path();
                scope.spawn(move || {
                    for n in 0..50 {
                        let line = line(&format!("test-{thread}-{n}"), &"x".repeat(100));
                        append(path, &line).expect("append");
                    }
                });
            }
        });
        let text = std::fs::read_to_string(&path).expect("the file");
        assert_eq!(text.lines().count(), 400);
        for line in text.lines() {
            let (test, why) = line.split_once('\t').expect("a tab");
            assert!(test.starts_with("test-"), "mixed line: {line:?}");
            assert_eq!(why, "x".repeat(100), "mixed line: {line:?}");
        }
    }
}
