//! `lockstep run`, `primary` and `backup`: a machine by itself, and the two sides of a pair.

use super::HALTED_EXIT_CODE;
use super::machine::{
    MachineArguments, MachineError, Network, PairArguments, Prepared, file_error, pair, prepare,
};
use super::report::{Role, RunReport};
use crate::config::VmFile;
use lockstep_tuning::knobs::KnobError;
use lockstep_vmm::run::{self, AloneEnd, BackupEnd, PrimaryEnd};
use lockstep_vmm::settings::Settings;
use std::process::ExitCode;

/// Settings, with the knobs that the command line turned.
pub type Knobs<'a> = dyn Fn(Settings) -> Result<Settings, KnobError> + 'a;

/// Runs a machine without fault tolerance.
///
/// # Errors
/// It cannot be made, or fails.
pub fn unprotected(
    arguments: &MachineArguments,
    knobs: &Knobs<'_>,
) -> Result<ExitCode, MachineError> {
    let file = VmFile::read(&arguments.config)?;
    let settings = knobs(file.settings.clone())?;
    let Prepared {
        vm,
        options,
        status,
    } = prepare(&file, settings, arguments, Network::Plugged)?;
    let ended = run::unprotected(&vm, options)?;
    drop(status);
    let end = match ended.end {
        AloneEnd::PoweredOff => "the guest powered off",
        AloneEnd::Stopped => "stopped",
    };
    let report = RunReport {
        role: Role::Unprotected,
        engine: vm.machine.engine,
        end: end.to_owned(),
        halted: false,
        failover: None,
        digest: None,
        stages: ended.stages,
        disk_stages: ended.disk_stages,
    };
    publish(&report, arguments)
}

/// Waits for a backup, and runs a machine under its protection.
///
/// # Errors
/// The machine or the channel cannot be made, or the machine fails.
pub fn primary(
    arguments: &MachineArguments,
    pairing: &PairArguments,
    knobs: &Knobs<'_>,
) -> Result<ExitCode, MachineError> {
    let file = VmFile::read(&arguments.config)?;
    let pair = pair(&file, pairing)?;
    let settings = knobs(file.settings.clone())?;
    let Prepared {
        vm,
        options,
        status,
    } = prepare(&file, settings, arguments, Network::Plugged)?;
    let ended = run::primary(&vm, &pair, options)?;
    drop(status);
    let end = match &ended.end {
        PrimaryEnd::PoweredOff => "the guest powered off".to_owned(),
        PrimaryEnd::Stopped => "stopped".to_owned(),
        PrimaryEnd::Halted(why) => format!("halted: {why}"),
    };
    let report = RunReport {
        role: Role::Primary,
        engine: vm.machine.engine,
        end,
        halted: matches!(ended.end, PrimaryEnd::Halted(_)),
        failover: ended.times.map(|times| {
            serde_json::json!({
                "suspicion": ended.suspicion.map(|why| why.to_string()),
                "times": times,
            })
        }),
        digest: None,
        stages: ended.stages,
        disk_stages: ended.disk_stages,
    };
    publish(&report, arguments)
}

/// Follows a primary, and takes its place when it is gone.
///
/// # Errors
/// The machine or the channel cannot be made, the primary refuses, or the machine fails once live.
pub fn backup(
    arguments: &MachineArguments,
    pairing: &PairArguments,
    overwrite_disks: bool,
    knobs: &Knobs<'_>,
) -> Result<ExitCode, MachineError> {
    let file = VmFile::read(&arguments.config)?;
    let pair = pair(&file, pairing)?;
    let settings = knobs(file.settings.clone())?;
    let Prepared {
        vm,
        mut options,
        status,
    } = prepare(&file, settings, arguments, Network::Plugged)?;
    options.overwrite_disks = overwrite_disks;
    let ended = run::backup(&vm, &pair, options)?;
    drop(status);
    let end = match &ended.end {
        BackupEnd::LogEnded(reason) => format!("the log ended in order ({reason:?})"),
        BackupEnd::PoweredOff => "live, and the guest powered off".to_owned(),
        BackupEnd::Stopped => "stopped".to_owned(),
        BackupEnd::Halted(why) => format!("halted: {why}"),
    };
    let report = RunReport {
        role: Role::Backup,
        engine: vm.machine.engine,
        end,
        halted: matches!(ended.end, BackupEnd::Halted(_)),
        failover: ended.failover.map(|failover| serde_json::json!(failover)),
        digest: ended.digest,
        stages: ended.stages,
        disk_stages: ended.disk_stages,
    };
    publish(&report, arguments)
}

/// Prints the report and writes it where it was asked for.
fn publish(report: &RunReport, arguments: &MachineArguments) -> Result<ExitCode, MachineError> {
    let text = serde_json::to_string(report).expect("a report of strings and numbers");
    if let Some(path) = &arguments.report {
        std::fs::write(path, &text).map_err(file_error("--report", path))?;
    }
    if arguments.json {
        println!("{text}");
    } else {
        eprint!("{report}");
    }
    Ok(if report.halted {
        ExitCode::from(HALTED_EXIT_CODE)
    } else {
        ExitCode::SUCCESS
    })
}
