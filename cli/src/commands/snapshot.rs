//! `lockstep snapshot`: boots a machine by itself until it says that it is ready, and saves it.

use super::machine::{MachineArguments, MachineError, Network, Prepared, prepare};
use super::roles::Knobs;
use crate::config::VmFile;
use clap::Args;
use lockstep_vmm::run::{self, SnapshotReport};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `lockstep snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArguments {
    /// The machine
    #[command(flatten)]
    machine: MachineArguments,
    /// Save the machine once it has said this on its console
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    until: String,
    /// Where the snapshot is to be
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Boots without a network: what would arrive before the snapshot, nobody would remember.
///
/// # Errors
/// The machine cannot be made, fails, or cannot be saved.
pub fn snapshot(
    arguments: &SnapshotArguments,
    knobs: &Knobs<'_>,
) -> Result<ExitCode, MachineError> {
    let file = VmFile::read(&arguments.machine.config)?;
    let settings = knobs(file.settings.clone())?;
    let Prepared {
        vm,
        options,
        status,
    } = prepare(&file, settings, &arguments.machine, Network::Unplugged)?;
    let report = run::snapshot(&vm, options, arguments.until.as_bytes(), &arguments.out)?;
    drop(status);
    let marker = &arguments.until;
    Ok(match report {
        SnapshotReport::Saved {
            digest,
            position,
            clock,
        } => {
            let path = arguments.out.display();
            eprintln!("saved {path}: digest {digest:032x}, position {position}, clock {clock} ns");
            ExitCode::SUCCESS
        }
        SnapshotReport::PoweredOff => {
            eprintln!("nothing saved: the guest powered off before it said {marker:?}");
            ExitCode::FAILURE
        }
        SnapshotReport::Stopped => {
            eprintln!("nothing saved: stopped before the guest said {marker:?}");
            ExitCode::FAILURE
        }
    })
}
