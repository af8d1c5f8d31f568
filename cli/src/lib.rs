//! The program `lockstep`: arguments, configuration file, demo.

pub mod arguments;
pub mod commands;
pub mod config;
pub mod demo;
pub mod progress;
pub mod scenario;
pub mod signals;

use arguments::{Command, Turned};
use lockstep_vmm::settings::Settings;
use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Environment variable that says what is logged, in the syntax of `tracing_subscriber`'s filters.
const LOG: &str = "LOCKSTEP_LOG";

/// The program. Exit codes: 0 all is well, 1 it is not, 2 the command line is wrong,
/// [`commands::HALTED_EXIT_CODE`] this side must not go on.
#[must_use]
pub fn main() -> ExitCode {
    let (arguments, turned) = arguments::read();
    let log = std::env::var(LOG).unwrap_or_else(|_| "info".to_owned());
    let filter = match EnvFilter::try_new(&log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!(
                "lockstep: {LOG}=\"{log}\": {error}; say a level (error, warn, info, debug, trace), or \
                 `crate=level` pairs with commas between them"
            );
            return ExitCode::from(2);
        }
    };
    // Escapes are for people: not for files, nor for who asks for none (no-color.org).
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|wish| wish.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
    run(arguments.command, &turned).unwrap_or_else(|error| {
        eprintln!("lockstep: {error}");
        ExitCode::FAILURE
    })
}

fn run(command: Command, turned: &Turned) -> Result<ExitCode, Box<dyn Error>> {
    let knobs = |base| turned.on(base);
    let defaults = || turned.on(Settings::default());
    Ok(match command {
        Command::Demo(arguments) => demo::demo(&arguments, defaults()?)?,
        Command::Primary { machine, pair } => commands::roles::primary(&machine, &pair, &knobs)?,
        Command::Backup {
            machine,
            pair,
            overwrite_disk,
        } => commands::roles::backup(&machine, &pair, overwrite_disk, &knobs)?,
        Command::Run { machine } => commands::roles::unprotected(&machine, &knobs)?,
        Command::Bench(arguments) => commands::bench::bench(&arguments, defaults()?)?,
        Command::Guest(arguments) => {
            commands::guest::guest(&arguments)?;
            ExitCode::SUCCESS
        }
        Command::Tune(arguments) => {
            commands::tune::tune(&arguments, &defaults()?);
            ExitCode::SUCCESS
        }
        Command::Replay(arguments) => commands::replay::replay(&arguments)?,
        Command::Snapshot(arguments) => commands::snapshot::snapshot(&arguments, &knobs)?,
        Command::Status(arguments) => {
            commands::status::status(&arguments)?;
            ExitCode::SUCCESS
        }
        Command::Switch(arguments) => {
            commands::switch::switch(&arguments)?;
            ExitCode::SUCCESS
        }
    })
}
