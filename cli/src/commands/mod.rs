//! The subcommands.

pub mod bench;
mod disk_argument;
pub mod guest;
pub mod machine;
pub mod replay;
pub mod report;
pub mod roles;
pub mod snapshot;
pub mod status;
pub mod switch;
pub mod tune;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Exit code of a side that must not go on: the other one lives, or this one cannot.
pub const HALTED_EXIT_CODE: u8 = 3;

/// The directory that was asked for, or one below `results` with the time in its name.
#[must_use]
pub fn results_directory(asked_for: Option<&Path>, what: &str) -> PathBuf {
    let seconds = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    };
    asked_for.map_or_else(
        || PathBuf::from(format!("results/{what}-{}", seconds())),
        Path::to_owned,
    )
}

/// How this process was called, for reports.
#[must_use]
pub fn command_line() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    format!("lockstep {}", words.join(" "))
}
