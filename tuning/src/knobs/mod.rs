//! The table of knobs: every field of [`Settings`], with its unit, its range and its meaning.
//!
//! A knob is named `group.field`, as in the configuration file (`[channel]`, `ring-bytes = …`); on
//! the command line that is `--channel-ring-bytes`. Names, types and defaults are those of
//! [`Settings`] as serde sees it, so the table cannot promise what the program does not have: a test
//! holds the two against each other.
//!
//! Order of precedence, weakest first: [`Settings::default`], configuration file
//! ([`from_toml`]), profile ([`crate::profiles`]), command line ([`settings_from`]).

mod arguments;
mod assign;
mod domain;
mod error;
mod file;
mod listing;
mod table;

pub use arguments::{HEADING, arguments, settings_from};
pub use assign::{check, get, set};
pub use domain::Domain;
pub use error::KnobError;
pub use file::{from_table, from_toml, to_toml};
pub use listing::{Row, rows, table};
pub use table::TABLE;

use lockstep_vmm::settings::Settings;
use serde_json::Value;
use std::fmt;

/// What a knob's number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Not a number.
    None,
    /// Bytes; the command line also takes `KiB`, `MiB` and `GiB` behind the number.
    Bytes,
    /// Log entries.
    Entries,
    /// Ethernet frames.
    Frames,
    /// Disk requests.
    Requests,
    /// Guest instructions.
    Instructions,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// The number of a core, as the kernel counts them.
    Core,
}

impl fmt::Display for Unit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::None => "",
            Self::Bytes => "bytes",
            Self::Entries => "entries",
            Self::Frames => "frames",
            Self::Requests => "requests",
            Self::Instructions => "instructions",
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::Core => "core",
        })
    }
}

/// One thing that an operator can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knob {
    /// `group.field`.
    pub name: &'static str,
    /// `group-field`: the long argument, without the leading `--`.
    pub argument: &'static str,
    /// What the number counts.
    pub unit: Unit,
    /// The values that it can have.
    pub domain: Domain,
    /// What it does, in one line.
    pub meaning: &'static str,
}

impl Knob {
    /// The name's two parts.
    #[must_use]
    pub fn path(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }

    /// The value that [`Settings::default`] gives it.
    #[must_use]
    pub fn default(&self) -> Value {
        get(&Settings::default(), self)
    }

    /// Unit and values together, for people: `ms, 1 to 10000`.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self.unit {
            Unit::None => self.domain.to_string(),
            unit => format!("{unit}, {}", self.domain),
        }
    }
}

/// Every knob, in the order of [`Settings`].
#[must_use]
pub const fn all() -> &'static [Knob] {
    TABLE
}

/// The knob of that name.
///
/// # Errors
/// There is none; the error holds the name that comes nearest.
pub fn find(name: &str) -> Result<&'static Knob, KnobError> {
    TABLE
        .iter()
        .find(|knob| knob.name == name)
        .ok_or_else(|| KnobError::unknown(name))
}

#[cfg(test)]
mod tests;
