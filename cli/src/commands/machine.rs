//! From a VM configuration file to what `lockstep_vmm::run` takes: the part that `run`, `primary`
//! and `backup` have in common.

use super::disk_argument::{DiskArgument, disk_specs};
use crate::config::{BARE_TENANT, ConfigError, VmFile, needed};
use clap::Args;
use lockstep_logchan::transport::connect::ConnectError;
use lockstep_tuning::knobs::KnobError;
use lockstep_vmm::host::arbiter_file::{ArbiterError, ArbiterFile};
use lockstep_vmm::host::port::NetworkPort;
use lockstep_vmm::host::snapshot_file::{SnapshotError, SnapshotFile};
use lockstep_vmm::host::status_socket::{StatusError, StatusSocket};
use lockstep_vmm::host::switch::{SwitchError, SwitchPort};
use lockstep_vmm::host::tap::{Tap, TapError};
use lockstep_vmm::machine::engine::EngineError;
use lockstep_vmm::machine::{self, MachineConfig};
use lockstep_vmm::run::{
    Control, DiskBacking, PairSpec, RunError, RunOptions, Status, VmSpec, World,
};
use lockstep_vmm::settings::Settings;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Largest kernel image or initial RAM disk that is read, bytes.
const LARGEST_IMAGE: u64 = 1 << 30;

/// Arguments of every command that runs a machine.
#[derive(Debug, Args)]
pub struct MachineArguments {
    /// The VM configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Start from this snapshot (`lockstep snapshot`) of this machine instead of booting
    #[arg(long, value_name = "FILE")]
    pub from_snapshot: Option<PathBuf>,
    /// Back the machine's next disk with this file or block device: shared, which both hosts reach
    /// (the default), or own. Repeated for further disks; the same order on both sides
    #[arg(long = "disk", value_name = "[shared:|own:]FILE")]
    pub disks: Vec<DiskArgument>,
    /// Keep the copy records of own disks in this directory [default: each beside its disk]
    #[arg(long, value_name = "DIRECTORY")]
    pub copy_records: Option<PathBuf>,
    /// Do not send what the guest reads: the backup reads the disks itself
    #[arg(long)]
    pub backup_reads: bool,
    /// Serve the process's status at this Unix socket, for `lockstep status`
    #[arg(long, value_name = "PATH")]
    pub status: Option<PathBuf>,
    /// Write the run's report, as JSON, to this file at its end
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Append what the guest says on its console to this file, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Leave outputs of the first while out of the report's histograms
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub warm_up_ms: u64,
    /// Print the report as JSON on standard output; the console then goes to standard error
    #[arg(long)]
    pub json: bool,
}

/// Arguments of the two sides of a pair.
#[derive(Debug, Args)]
pub struct PairArguments {
    /// Generation of the pairing [default: the first that nobody has won at the arbiter]
    #[arg(long, value_name = "NUMBER")]
    pub generation: Option<u64>,
    /// Save the log that the backup replays in this file, for `lockstep replay`
    #[arg(long, value_name = "FILE")]
    pub save_log: Option<PathBuf>,
}

/// A machine could not be run.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value in it that no machine can have.
    #[error("[vm]: {0}")]
    Machine(#[from] machine::ConfigError),
    /// The engine that it asks for.
    #[error("vm.engine: {0}")]
    Engine(#[from] EngineError),
    /// The kernel or the initial RAM disk that it names.
    #[error("vm.{key}: {}: {source}", path.display())]
    Image {
        /// Which of the two.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its tap.
    #[error("network.tap: {0}")]
    Tap(#[from] TapError),
    /// Its switch.
    #[error("network.switch: {0}")]
    Switch(#[from] SwitchError),
    /// A disk is described, and nothing backs it.
    #[error(
        "the VM's file describes {sections} disks ([[disk]]), and {arguments} are backed; give --disk FILE for each"
    )]
    DiskSections {
        /// Described.
        sections: usize,
        /// Backed.
        arguments: usize,
    },
    /// One of its disks.
    #[error("--disk {}: {source}; it must be a file or a block device that this user may open", path.display())]
    Disk {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Where the two sides meet.
    #[error("channel.address: {0}")]
    Address(ConnectError),
    /// Who decides between them.
    #[error("[arbiter]: {0}")]
    Arbiter(#[from] ArbiterError),
    /// The status socket.
    #[error("--status: {0}")]
    Status(#[from] StatusError),
    /// A file that was asked for on the command line.
    #[error("{option} {}: {source}", path.display())]
    File {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The host refused a resource.
    #[error("{step}: {source}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The snapshot that it is to start from.
    #[error("--from-snapshot: {0}")]
    Snapshot(#[from] SnapshotError),
    /// A knob.
    #[error(transparent)]
    Knob(#[from] KnobError),
    /// The run itself.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// A machine, ready to be run.
pub struct Prepared {
    /// What it is.
    pub vm: VmSpec,
    /// How it is run.
    pub options: RunOptions,
    /// Serves its status as long as this lives.
    pub status: Option<StatusSocket>,
}

/// Whether the machine's interface is connected to anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// To what the file says.
    Plugged,
    /// To nothing.
    Unplugged,
}

/// Reads everything that the file names, opens the network and the console, starts to listen to
/// signals and to serve the status. Call it before the process has other threads.
///
/// # Errors
/// Whatever is missing or wrong, by the name of its key or option.
pub fn prepare(
    file: &VmFile,
    settings: Settings,
    arguments: &MachineArguments,
    network: Network,
) -> Result<Prepared, MachineError> {
    let control = Control::new().map_err(host("making the doorbell"))?;
    let stop = control.clone();
    crate::signals::on_end(move || stop.stop()).map_err(host("listening to signals"))?;

    let mut settings = settings;
    settings.disk.backup_reads |= arguments.backup_reads;
    let vm = vm_spec(
        file,
        arguments.from_snapshot.as_deref(),
        &arguments.disks,
        settings.disk.bounce_bytes,
    )?;
    let status = Arc::new(Status::default());
    let served = match &arguments.status {
        Some(path) => {
            let shown = Arc::clone(&status);
            Some(StatusSocket::serve(path, move || {
                serde_json::json!(shown.report())
            })?)
        }
        None => None,
    };
    let port = match network {
        Network::Plugged => port(file)?,
        Network::Unplugged => None,
    };
    let world = World::new(port, console(arguments)?);
    Ok(Prepared {
        vm,
        options: RunOptions {
            settings,
            world,
            disks: backings(arguments),
            overwrite_disks: false,
            control,
            status,
            warm_up: Duration::from_millis(arguments.warm_up_ms),
        },
        status: served,
    })
}

fn backings(arguments: &MachineArguments) -> Vec<DiskBacking> {
    let records = arguments.copy_records.as_deref();
    let disks = arguments.disks.iter();
    disks.map(|disk| disk.backing(records)).collect()
}

/// The machine that the file describes, with these disks, whose bounce buffers have `bounce_bytes`.
///
/// # Errors
/// The kernel, the snapshot or a disk cannot be read, or no machine can be so.
pub fn vm_spec(
    file: &VmFile,
    snapshot: Option<&Path>,
    disks: &[DiskArgument],
    bounce_bytes: u64,
) -> Result<VmSpec, MachineError> {
    let kernel = kernel(&file.vm.kernel)?;
    let initrd = file.vm.initrd.as_deref();
    let initrd = initrd.map(|path| image("initrd", path)).transpose()?;
    let selection = file.vm.engine.select(&kernel)?;
    tracing::info!(engine = ?selection.kind, reason = selection.reason, "engine");
    let machine = MachineConfig {
        engine: selection.kind,
        memory_bytes: file.vm.memory_mib.saturating_mul(1 << 20),
        command_line: file.vm.command_line.clone(),
        nic: file.network.is_some(),
        mac: file.vm.mac.0,
        wall_clock_start: file.vm.wall_clock_start,
        disks: disk_specs(disks, &file.disk)?,
        bounce_bytes,
    };
    machine.validate()?;
    let snapshot = snapshot.map(|path| SnapshotFile::open(path).map(Arc::new));
    Ok(VmSpec {
        name: file.vm.name.clone(),
        machine,
        kernel,
        initrd,
        snapshot: snapshot.transpose()?,
    })
}

/// Where the two sides meet, and who decides between them.
///
/// # Errors
/// A key that both sides need is missing or wrong, or the arbiter is out of reach.
pub fn pair(file: &VmFile, arguments: &PairArguments) -> Result<PairSpec, MachineError> {
    let channel = &file.channel;
    let address = needed(
        channel.address.as_ref(),
        "channel",
        "address",
        "where the primary listens, for example \"10.78.0.1:7070\", or \"unix:/run/lockstep/web\" \
         with transport shm; the same on both sides",
    )?;
    let heartbeat_listen = needed(
        channel.heartbeat_listen.as_ref(),
        "channel",
        "heartbeat-listen",
        "this side's UDP address for heartbeats, for example \"10.78.0.1:7071\"",
    )?;
    let heartbeat_peer = needed(
        channel.heartbeat_peer.as_ref(),
        "channel",
        "heartbeat-peer",
        "the other side's UDP address for heartbeats, for example \"10.78.0.2:7071\"",
    )?;
    let section = needed(
        file.arbiter.as_ref(),
        "arbiter",
        "directory",
        "a directory on storage that both hosts have mounted; without it nobody could decide who \
         lives",
    )?;
    let arbiter = ArbiterFile::new(&section.directory, &file.vm.name)?;
    let generation = match arguments.generation {
        Some(generation) => generation,
        None => arbiter.next_generation()?,
    };
    Ok(PairSpec {
        address: address.parse().map_err(MachineError::Address)?,
        heartbeat_listen,
        heartbeat_peer,
        arbiter,
        generation,
        save_log: arguments.save_log.clone(),
        guest_ip: file.vm.ip.map(|ip| ip.octets()),
    })
}

fn kernel(name: &str) -> Result<Vec<u8>, MachineError> {
    if name == BARE_TENANT {
        return Ok(lockstep_guest::bare_tenant().to_vec());
    }
    image("kernel", Path::new(name))
}

fn image(key: &'static str, path: &Path) -> Result<Vec<u8>, MachineError> {
    let read = || {
        let mut image = Vec::new();
        let file = File::open(path)?;
        file.take(LARGEST_IMAGE + 1).read_to_end(&mut image)?;
        if image.len() as u64 > LARGEST_IMAGE {
            let why = format!("larger than {LARGEST_IMAGE} bytes: no such image is");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(image)
    };
    read().map_err(|source| MachineError::Image {
        key,
        path: path.to_owned(),
        source,
    })
}

fn port(file: &VmFile) -> Result<Option<Box<dyn NetworkPort>>, MachineError> {
    let Some(network) = &file.network else {
        return Ok(None);
    };
    Ok(match (&network.tap, &network.switch) {
        (Some(tap), _) => Some(Box::new(Tap::open(tap)?)),
        (None, Some(switch)) => Some(Box::new(SwitchPort::connect(switch)?)),
        (None, None) => None,
    })
}

fn console(arguments: &MachineArguments) -> Result<Box<dyn Write + Send>, MachineError> {
    match &arguments.console {
        Some(path) => {
            let file = File::options().append(true).create(true).open(path);
            Ok(Box::new(file.map_err(file_error("--console", path))?))
        }
        None if arguments.json => Ok(Box::new(io::stderr())),
        None => Ok(Box::new(io::stdout())),
    }
}

/// An error about a file that `option` names.
pub fn file_error(option: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MachineError {
    let path = path.to_owned();
    move |source| MachineError::File {
        option,
        path,
        source,
    }
}

fn host(step: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { step, source }
}
