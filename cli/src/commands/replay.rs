//! `lockstep replay`: executes a saved log again, offline.

use super::disk_argument::DiskArgument;
use super::machine::{MachineError, vm_spec};
use crate::config::VmFile;
use clap::Args;
use lockstep_vmm::run;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `lockstep replay`.
#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// The saved log (`lockstep backup --save-log FILE`)
    #[arg(value_name = "FILE")]
    log: PathBuf,
    /// The VM configuration file with which it was made
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The snapshot from which it started, if it did
    #[arg(long, value_name = "FILE")]
    from_snapshot: Option<PathBuf>,
    /// A disk that the machine had, for its size; nothing is read from it. Repeated, in the same order
    #[arg(long = "disk", value_name = "FILE")]
    disks: Vec<DiskArgument>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// Replays with every check that a backup makes, and prints the digest of the final state.
///
/// # Errors
/// The log or the configuration cannot be read or do not belong together, or the replay diverges.
pub fn replay(arguments: &ReplayArguments) -> Result<ExitCode, MachineError> {
    let file = VmFile::read(&arguments.config)?;
    let report = run::replay(
        &vm_spec(
            &file,
            arguments.from_snapshot.as_deref(),
            &arguments.disks,
            file.settings.disk.bounce_bytes,
        )?,
        &arguments.log,
    )?;
    if arguments.json {
        println!("{}", serde_json::json!(report));
    } else {
        println!("entries   {}", report.entries);
        println!("position  {}", report.position);
        println!("clock     {} ns", report.clock);
        println!("end       {}", report.end.as_deref().unwrap_or("cut off"));
        println!(
            "digest    state {:016x} memory {:016x}",
            report.digest.state, report.digest.memory
        );
    }
    Ok(ExitCode::SUCCESS)
}
