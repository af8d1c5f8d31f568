//! Scenarios: processes of the shipping program in namespaces that stand for hosts, a client's load,
//! faults, and a verdict. The demo, the integration tests and the latency suite are made of them.
//!
//! All processes are children of the thread that made the [`Scenario`] and die with it; all files are
//! in one temporary directory that goes with it; the network goes with both.

mod at_rest;
mod booted;
mod client;
mod pair;
mod pgbench;
mod process;
mod round;
mod strike;
mod tenant;

pub use client::{Client, Seen, Verdict, Workload};
pub use pair::{Host, Pair};
pub use process::{Process, ProcessError};
pub use round::{Loss, Meanwhile, Round, under_load};
pub use strike::{Fault, Judgement, Strike};
pub use tenant::{DebianTenant, Tenant};

use crate::commands::report::RunReport;
use crate::config::{ArbiterSection, ChannelSection, NetworkSection, VmFile};
use lockstep_bench::load::{Load, LoadConfig, LoadError};
use lockstep_bench::redis::RedisError;
use lockstep_bench::sql::SqlError;
use lockstep_guest::KV_PORT;
use lockstep_guest::debian::GuestBuildError;
use lockstep_vmm::host::arbiter_file::ArbiterError;
use lockstep_vmm::host::disk::Sharing;
use lockstep_vmm::host::disk_template;
use lockstep_vmm::host::namespaces::{
    GUEST_ADDRESS, LOG_ADDRESS_A, LOG_ADDRESS_B, NamespaceError, TAP_NAME, Topology,
};
use lockstep_vmm::machine::engine::EngineChoice;
use lockstep_vmm::settings::{Settings, TransportKind};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Name of the VM that a scenario protects.
const VM_NAME: &str = "demo";

/// TCP port of the log and UDP port of the heartbeats, on the logging network.
const LOG_PORT: u16 = 7070;
const HEARTBEAT_PORT: u16 = 7071;

/// How long a process may take to come to where it is ready.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// How long a guest may take to boot, on a busy host.
const BOOT_PATIENCE: Duration = Duration::from_secs(300);

/// How long a process that was asked to end may take.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A scenario could not be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The network could not be built.
    #[error(transparent)]
    Network(#[from] NamespaceError),
    /// A process did not do what it should.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The backup did not take the struck primary's place.
    #[error("{source}\nand its primary had said:\n{primary_said}")]
    NotLive {
        /// What the backup did.
        source: Box<ProcessError>,
        /// The end of the primary's words.
        primary_said: String,
    },
    /// The load could not do its work.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The client of Redis could not do its work.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// The client of a database could not do its work.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The guest's control port does not answer.
    #[error("asking the guest to check its data: {0}")]
    Control(io::Error),
    /// The guest could not be built.
    #[error("the Debian guest: {0} (`--tenant bare` does without Debian)")]
    Guest(#[from] GuestBuildError),
    /// The guest does not come to serve.
    #[error("booting the guest {}: `lockstep snapshot` ended with {status}; it said:\n{said}", guest.display())]
    Boot {
        /// Its directory.
        guest: PathBuf,
        /// How the program ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        said: String,
    },
    /// The arbiter's directory, as the scenario itself reads it.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// The scenario's own files.
    #[error("{what}: {source}")]
    Files {
        /// Which.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The load was over before the strike.
    #[error(
        "the strike was to fall {} ms after the load's start, and the load of {} ms was over before",
        moment.as_millis(),
        length.as_millis()
    )]
    NoStrike {
        /// When it was to fall.
        moment: Duration,
        /// How long the load was to be.
        length: Duration,
    },
    /// A process reported something that cannot be used.
    #[error("{name} reported {what} that cannot be used: {why}")]
    Report {
        /// Which process.
        name: String,
        /// What.
        what: &'static str,
        /// Why not.
        why: String,
    },
}

/// What all runs of a scenario have in common.
#[derive(Debug, Clone)]
pub struct ScenarioOptions {
    /// The program `lockstep` itself.
    pub program: PathBuf,
    /// What executes the guests.
    pub engine: EngineChoice,
    /// The knobs.
    pub settings: Settings,
    /// Whether backups save the logs that they replay ([`Pair::saved_log`]).
    pub save_logs: bool,
    /// What the machine runs.
    pub tenant: Tenant,
    /// Whether the hosts of a pair reach one disk, or each has its own.
    pub disk_sharing: Sharing,
    /// Where what speaks against it is kept, should something be wrong after a failover.
    pub evidence: Option<PathBuf>,
}

/// A network, and the means to start machines on it.
#[derive(Debug)]
pub struct Scenario {
    options: ScenarioOptions,
    directory: TempDir,
    topology: Topology,
    runs: u32,
    /// The next pair boots from the disks that the last run left.
    kept: bool,
}

impl Scenario {
    /// Builds the network. The process must be allowed to
    /// ([`lockstep_vmm::host::namespaces::probe`]).
    ///
    /// # Errors
    /// The host lacks something; the error says what.
    pub fn new(options: ScenarioOptions) -> Result<Self, ScenarioError> {
        let directory = tempfile::Builder::new()
            .prefix("lockstep-")
            .tempdir()
            .map_err(|source| ScenarioError::Files {
                what: "a temporary directory",
                source,
            })?;
        Ok(Self {
            options,
            directory,
            topology: Topology::build()?,
            runs: 0,
            kept: false,
        })
    }

    /// Has the next pair boot from its hosts' own disks as the last run left them, instead of starting from a
    /// snapshot and a copy of its disk.
    pub const fn keep_disks(&mut self) {
        self.kept = true;
    }

    /// The own disks of the last run, of host A and of host B.
    #[must_use]
    pub fn own_disks(&self) -> [PathBuf; 2] {
        [Host::A, Host::B].map(|host| self.disk_path(self.runs, host))
    }

    /// The network.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Where the processes' files are, until the scenario is dropped.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the bare tenant's key-value store answers, seen from the clients.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        (GUEST_ADDRESS, KV_PORT).into()
    }

    /// A client in the clients' namespace that has asked for nothing yet.
    ///
    /// # Errors
    /// A setting is out of range, or the host refused the sockets.
    pub fn connect(&self, config: LoadConfig) -> Result<Load, ScenarioError> {
        Ok(self.topology.clients.run(|| Load::connect(config))??)
    }

    /// Starts a machine without fault tolerance on `host`, and waits until it runs. Outputs of its
    /// first `warm_up` are left out of its stage histograms.
    ///
    /// # Errors
    /// It does not come to run.
    pub fn unprotected(&mut self, host: Host, warm_up: Duration) -> Result<Process, ScenarioError> {
        let run = self.next_run(false)?;
        let name = format!("unprotected-{run}");
        let configuration = self.configuration(host, host, run);
        let disk = self.state_arguments(run, host, Sharing::Shared, false)?;
        let mut process = self.start("run", &name, host, &configuration, &disk, warm_up)?;
        process.wait_for("running", START_PATIENCE, role_is("unprotected"))?;
        Ok(process)
    }

    /// Starts a pair, its primary on `primary_on` and its backup on the other host, and waits until
    /// the machine is protected.
    ///
    /// # Errors
    /// It does not come to be protected.
    pub fn pair(&mut self, primary_on: Host, warm_up: Duration) -> Result<Pair, ScenarioError> {
        let kept = std::mem::take(&mut self.kept);
        let run = self.next_run(kept)?;
        let backup_name = format!("backup-{run}");
        let primary_name = format!("primary-{run}");
        let backup_on = primary_on.other();
        let of_primary = self.configuration(primary_on, primary_on, run);
        let of_backup = self.configuration(backup_on, primary_on, run);
        let saved_log = self.directory.path().join(format!("{backup_name}.saved"));
        let saved_log = self.options.save_logs.then_some(saved_log);
        let sharing = self.options.disk_sharing;
        let disk = self.state_arguments(run, primary_on, sharing, kept)?;
        let mut more = match sharing {
            // One file, which both hosts reach.
            Sharing::Shared => disk.clone(),
            Sharing::Own => self.state_arguments(run, backup_on, sharing, kept)?,
        };
        if let Some(path) = &saved_log {
            more.extend(["--save-log".into(), path.into()]);
        }
        let primary = self.start(
            "primary",
            &primary_name,
            primary_on,
            &of_primary,
            &disk,
            warm_up,
        )?;
        let backup = self.start(
            "backup",
            &backup_name,
            backup_on,
            &of_backup,
            &more,
            warm_up,
        )?;
        let mut pair = Pair {
            primary,
            backup,
            primary_on,
            saved_log,
            arbiter: self.arbiter_directory(run),
        };
        pair.primary
            .wait_for("being protected", START_PATIENCE, role_is("primary"))?;
        pair.backup
            .wait_for("following", START_PATIENCE, role_is("backup"))?;
        if kept {
            pair.primary.wait_words("LOCKSTEP READY", BOOT_PATIENCE)?;
        }
        Ok(pair)
    }

    /// Begins a run; `kept` takes the disks of the last one into it.
    fn next_run(&mut self, kept: bool) -> Result<u32, ScenarioError> {
        for host in [Host::A, Host::B] {
            let last = self.disk_path(self.runs, host);
            if !kept {
                // Machines of the last run may still have them open; nobody will open them again.
                drop(std::fs::remove_file(&last));
                drop(std::fs::remove_file(record_of(&last)));
                continue;
            }
            let next = self.disk_path(self.runs + 1, host);
            std::fs::rename(record_of(&last), record_of(&next))
                .and_then(|()| std::fs::rename(&last, &next))
                .map_err(|source| ScenarioError::Files {
                    what: "taking the disks of the last run, and their copy records, into the next",
                    source,
                })?;
        }
        self.runs += 1;
        let directory = self.arbiter_directory(self.runs);
        std::fs::create_dir(directory).map_err(|source| ScenarioError::Files {
            what: "the arbiter's directory",
            source,
        })?;
        Ok(self.runs)
    }

    /// The disk that `host` reaches in `run`.
    fn disk_path(&self, run: u32, host: Host) -> PathBuf {
        let name = match (self.options.disk_sharing, host) {
            (Sharing::Shared, _) => format!("disk-{run}"),
            (Sharing::Own, Host::A) => format!("disk-{run}-a"),
            (Sharing::Own, Host::B) => format!("disk-{run}-b"),
        };
        self.directory.path().join(name)
    }

    /// The arguments that say from what state `host` begins the run: a snapshot, if the tenant has one, and a disk
    /// of its own, if it has one. `kept`: the disk that is there, and no snapshot.
    fn state_arguments(
        &self,
        run: u32,
        host: Host,
        sharing: Sharing,
        kept: bool,
    ) -> Result<Vec<OsString>, ScenarioError> {
        let mut arguments = Vec::new();
        if let Some(snapshot) = self.options.tenant.snapshot().filter(|_| !kept) {
            arguments.extend(["--from-snapshot".into(), snapshot.into()]);
        }
        let Some(template) = self.options.tenant.disk() else {
            return Ok(arguments);
        };
        let path = self.disk_path(run, host);
        if !kept {
            disk_template::copy(&template, &path).map_err(|source| ScenarioError::Files {
                what: "copying the machine's disk",
                source,
            })?;
        }
        let mut argument = OsString::from(match sharing {
            Sharing::Shared => "shared:",
            Sharing::Own => "own:",
        });
        argument.push(path);
        arguments.extend(["--disk".into(), argument]);
        Ok(arguments)
    }

    fn arbiter_directory(&self, run: u32) -> PathBuf {
        self.directory.path().join(format!("arbiter-{run}"))
    }

    fn start(
        &self,
        command: &str,
        name: &str,
        host: Host,
        configuration: &VmFile,
        more: &[OsString],
        warm_up: Duration,
    ) -> Result<Process, ScenarioError> {
        let text = toml::to_string(configuration).map_err(io::Error::other);
        let path = self.configuration_path(name);
        text.and_then(|text| std::fs::write(&path, text))
            .map_err(|source| ScenarioError::Files {
                what: "a VM configuration",
                source,
            })?;
        let mut arguments: Vec<OsString> = vec![
            command.into(),
            "--config".into(),
            path.into(),
            "--report".into(),
            self.report_path(name).into(),
            "--warm-up-ms".into(),
            warm_up.as_millis().to_string().into(),
        ];
        arguments.extend_from_slice(more);
        let namespace = match host {
            Host::A => &self.topology.host_a,
            Host::B => &self.topology.host_b,
        };
        let directory = self.directory.path();
        let program = &self.options.program;
        Ok(Process::start(
            program, arguments, name, directory, namespace,
        )?)
    }

    /// Ends `process` in order, and reads its report.
    ///
    /// # Errors
    /// It does not end, or leaves no report.
    pub fn end(&self, mut process: Process) -> Result<RunReport, ScenarioError> {
        process.terminate(END_PATIENCE)?;
        self.report_of(&process)
    }

    /// What a process that has ended reports.
    fn report_of(&self, process: &Process) -> Result<RunReport, ScenarioError> {
        let unreadable = |why: String| ScenarioError::Report {
            name: process.name().to_owned(),
            what: "a run",
            why: format!("{why}; it said:\n{}", process.last_words()),
        };
        let text = std::fs::read(self.report_path(process.name()))
            .map_err(|error| unreadable(error.to_string()))?;
        serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))
    }

    /// Ends a pair in order, and reads the reports of its primary and its backup. An orderly end is no failure: the backup
    /// ends by itself, and does not go live.
    ///
    /// # Errors
    /// One of them does not end, or not in order.
    pub fn end_pair(&self, pair: Pair) -> Result<(RunReport, RunReport), ScenarioError> {
        let Pair {
            primary,
            mut backup,
            ..
        } = pair;
        let report = self.end(primary)?;
        let status = backup.wait_end(END_PATIENCE)?;
        let of_backup = self.report_of(&backup)?;
        if !status.success() || of_backup.digest.is_none() {
            return Err(ScenarioError::Report {
                name: backup.name().to_owned(),
                what: "an end",
                why: format!(
                    "expected the end of the log and a digest, found {status}, {}",
                    of_backup.end
                ),
            });
        }
        Ok((report, of_backup))
    }

    /// The file that `lockstep --report` writes for the process `name`, once it has ended in order.
    fn report_path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.json"))
    }

    /// The configuration file of the process `name`.
    #[must_use]
    pub fn configuration_path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.toml"))
    }

    /// The configuration of the machine as `host` runs it, in whatever role.
    fn configuration(&self, host: Host, primary_on: Host, run: u32) -> VmFile {
        let (own, other) = match host {
            Host::A => (LOG_ADDRESS_A, LOG_ADDRESS_B),
            Host::B => (LOG_ADDRESS_B, LOG_ADDRESS_A),
        };
        let address = match self.options.settings.channel.transport {
            TransportKind::Tcp => {
                let primary = if host == primary_on { own } else { other };
                format!("{primary}:{LOG_PORT}")
            }
            TransportKind::Shm => {
                let path = self.directory.path().join(format!("channel-{run}"));
                format!("unix:{}", path.display())
            }
        };
        VmFile {
            vm: self.options.tenant.machine(self.options.engine),
            network: Some(NetworkSection {
                tap: Some(TAP_NAME.to_owned()),
                switch: None,
            }),
            channel: ChannelSection {
                address: Some(address),
                heartbeat_listen: Some((own, HEARTBEAT_PORT).into()),
                heartbeat_peer: Some((other, HEARTBEAT_PORT).into()),
            },
            arbiter: Some(ArbiterSection {
                directory: self.arbiter_directory(run),
            }),
            disk: Vec::new(),
            settings: self.settings_on(host),
        }
    }

    /// The core on which `host`'s machine executes; negative if that is the scheduler's choice.
    pub fn core_of(&self, host: Host) -> i32 {
        self.settings_on(host).cpu.vcpu_core
    }

    /// The knobs as they are on `host`. Two hosts do not share a core, so here each gets one of its
    /// own if there are two and the operator has not placed anything himself. The clients, and the
    /// network between, take what is left of both.
    fn settings_on(&self, host: Host) -> Settings {
        let mut settings = self.options.settings.clone();
        let cores = lockstep_perf::pin::cores();
        let untouched = settings.cpu.vcpu_core < 0 && settings.cpu.channel_core < 0;
        if let (true, [first, .., last]) = (untouched, cores.as_slice()) {
            let core = match host {
                Host::A => *first,
                Host::B => *last,
            };
            // A host has fewer cores than this type numbers.
            let core = i32::try_from(core).unwrap_or(-1);
            settings.cpu.vcpu_core = core;
            settings.cpu.channel_core = core;
        }
        settings
    }
}

/// The copy record of an own disk.
fn record_of(disk: &Path) -> PathBuf {
    let mut record = disk.as_os_str().to_owned();
    record.push(".copy");
    record.into()
}

/// Looks for a role in a status.
fn role_is(role: &str) -> impl Fn(&serde_json::Value) -> Option<()> {
    move |status| (status["role"] == role).then_some(())
}
