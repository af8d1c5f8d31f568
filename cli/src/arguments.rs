//! The command line.

use crate::commands::bench::BenchArguments;
use crate::commands::guest::GuestArguments;
use crate::commands::machine::{MachineArguments, PairArguments};
use crate::commands::replay::ReplayArguments;
use crate::commands::snapshot::SnapshotArguments;
use crate::commands::status::StatusArguments;
use crate::commands::switch::SwitchArguments;
use crate::commands::tune::TuneArguments;
use crate::demo::DemoArguments;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use lockstep_tuning::knobs::{self, KnobError};
use lockstep_tuning::profiles;
use lockstep_vmm::settings::Settings;

/// Keeps a virtual machine running through the loss of its host
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, max_term_width = 100)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The argument that names a profile. Knobs have dotted names, so none is called that.
const PROFILE: &str = "profile";

/// Commands that take every knob as an argument.
const WITH_KNOBS: [&str; 7] = [
    "demo", "primary", "backup", "run", "snapshot", "bench", "tune",
];

/// The command line, with the knobs, which come from a table of their own.
#[must_use]
pub fn command() -> clap::Command {
    WITH_KNOBS
        .iter()
        .fold(Arguments::command(), |command, name| {
            command.mut_subcommand(*name, |command| match *name {
                "bench" => command.mut_subcommand("output-latency", with_knobs),
                "tune" => command.mut_subcommand("knobs", with_knobs),
                _ => with_knobs(command),
            })
        })
}

/// A command's arguments, the profile, and each knob.
fn with_knobs(command: clap::Command) -> clap::Command {
    let profile = clap::Arg::new(PROFILE)
        .long(PROFILE)
        .value_name("NAME")
        .value_parser(clap::builder::PossibleValuesParser::new(profiles::names()))
        .help("Set knobs for a purpose, see `lockstep tune profiles`; knobs given beside it win");
    knobs::arguments(command.arg(profile))
}

/// Reads the command line, or ends the process with clap's message.
#[must_use]
pub fn read() -> (Arguments, Turned) {
    let matches = command().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    (arguments, Turned(matches))
}

/// The knobs that the command line turned.
#[derive(Debug)]
pub struct Turned(ArgMatches);

impl Turned {
    /// `base`, with those knobs.
    ///
    /// # Errors
    /// Values that do not go together.
    pub fn on(&self, base: Settings) -> Result<Settings, KnobError> {
        let Some((name, mut matches)) = self.0.subcommand() else {
            return Ok(base);
        };
        let nested = match name {
            "bench" => Some("output-latency"),
            "tune" => Some("knobs"),
            _ => None,
        };
        match (nested, matches.subcommand()) {
            (Some(nested), Some((name, inner))) if name == nested => matches = inner,
            (Some(_), _) => return Ok(base),
            (None, _) => {}
        }
        let base = match matches
            .get_one::<String>(PROFILE)
            .map(|name| profiles::by_name(name))
        {
            Some(Ok(profile)) => profile.apply(base)?,
            // The parser lets no other name through.
            Some(Err(_)) | None => base,
        };
        knobs::settings_from(matches, base)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Protect a guest on this machine alone, kill its primary under load, and count what was lost
    Demo(DemoArguments),
    /// Run a machine as the primary: wait for its backup, then execute under its protection
    Primary {
        /// The machine
        #[command(flatten)]
        machine: MachineArguments,
        /// The pair
        #[command(flatten)]
        pair: PairArguments,
    },
    /// Follow a primary, and take its place when it is gone
    Backup {
        /// The machine
        #[command(flatten)]
        machine: MachineArguments,
        /// The pair
        #[command(flatten)]
        pair: PairArguments,
        /// Overwrite what this side's own disks hold, though it is not known to be a copy of the primary's
        #[arg(long)]
        overwrite_disk: bool,
    },
    /// Run a machine without fault tolerance
    Run {
        /// The machine
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Build guests from Debian's packages
    Guest(GuestArguments),
    /// Measure, and write histograms and plots
    Bench(BenchArguments),
    /// See what can be set, and what on this host costs latency
    Tune(TuneArguments),
    /// Execute a saved log again, and print the digest of the final state
    Replay(ReplayArguments),
    /// Boot a machine by itself until it is ready, and save it for both sides to start from
    Snapshot(SnapshotArguments),
    /// Ask a running process how it is
    Status(StatusArguments),
    /// Be a network for machines on a host without a tap
    Switch(SwitchArguments),
}
