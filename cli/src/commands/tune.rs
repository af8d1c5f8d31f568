//! `lockstep tune`: what can be set, and what on this host costs latency.

use clap::{Args, Subcommand};
use lockstep_tuning::{checks, knobs, profiles};
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
    /// The profiles: which knobs each turns, and why
    Profiles,
    /// What on this host costs latency, and what to do about it
    Check,
}

/// Prints what was asked for.
pub fn tune(arguments: &TuneArguments, settings: &Settings) {
    match arguments.subject {
        Subject::Knobs if arguments.json => {
            println!("{}", serde_json::json!(knobs::rows(settings)));
        }
        Subject::Knobs => print!("{}", knobs::table(settings)),
        Subject::Profiles if arguments.json => {
            println!("{}", serde_json::json!(profiles::PROFILES));
        }
        Subject::Profiles => print!("{}", profiles::listing()),
        Subject::Check => {
            let findings = checks::run(settings);
            if arguments.json {
                println!("{}", serde_json::json!(findings));
            } else {
                print!("{}", checks::text(&findings));
            }
        }
    }
}
