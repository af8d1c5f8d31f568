//! `lockstep tune`: what can be set, and what on this host costs latency.

use clap::{Args, Subcommand};
use lockstep_tuning::knobs;
use lockstep_vmm::settings::Settings;

/// Arguments of `lockstep tune`.
#[derive(Debug, Args)]
pub struct TuneArguments {
    /// What to look at
    #[command(subcommand)]
    subject: Subject,
    /// Print as JSON
    #[arg(long, global = true)]
    json: bool,
}

/// What there is to look at.
#[derive(Debug, Subcommand)]
enum Subject {
    /// Every knob with its value, unit, range and default; knobs given on this command line are set
    Knobs,
}

/// Prints what was asked for.
pub fn tune(arguments: &TuneArguments, settings: &Settings) {
    match arguments.subject {
        Subject::Knobs if arguments.json => {
            println!("{}", serde_json::json!(knobs::rows(settings)));
        }
        Subject::Knobs => print!("{}", knobs::table(settings)),
    }
}
