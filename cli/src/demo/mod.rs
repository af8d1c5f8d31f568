//! `lockstep demo`: a guest protected end to end, on this machine alone.
//!
//! Three network namespaces stand for three machines. The guest runs by itself, then protected, each
//! under the same load, which gives what protection adds; then protected machines lose their primary
//! under load, as often as asked, and every acknowledged write is looked for. Nothing is left on the
//! host but the results.

mod dice;
mod measure;
mod outcome;
mod strikes;

pub use outcome::Outcome;

use crate::commands::bench::redis::REDIS_PORT;
use crate::commands::guest::cache_directory;
use crate::commands::{command_line, results_directory};
use crate::progress::Progress;
use crate::scenario::{Fault, Scenario, ScenarioError, ScenarioOptions, Tenant, Workload};
use clap::Args;
use lockstep_bench::load::{Arrivals, LoadConfig, Pace};
use lockstep_bench::redis::RedisConfig;
use lockstep_bench::report::{Report, ReportError};
use lockstep_bench::sql::SqlConfig;
use lockstep_guest::KV_PORT;
use lockstep_vmm::host::disk::Sharing;
use lockstep_vmm::host::namespaces::{self, GUEST_ADDRESS, NamespaceError};
use lockstep_vmm::machine::engine::EngineChoice;
use lockstep_vmm::settings::Settings;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Where the databases listen.
const POSTGRESQL_PORT: u16 = 5432;
const SQLITE_PORT: u16 = 5433;

/// Arguments of `lockstep demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Write the outcome as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Protect and lose the primary this many times
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub kills: u32,
    /// What befalls the primary
    #[arg(long, value_enum, default_value_t = Fault::Kill)]
    pub fault: Fault,
    /// Fixes the moments of the kills and the order of the requests
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// What executes the guest
    #[arg(long, value_name = "auto|soft|kvm", default_value = "auto", value_parser = engine)]
    pub engine: EngineChoice,
    /// What runs in the machine: Debian with Redis, PostgreSQL or SQLite, or the small key-value store of
    /// this program
    #[arg(long, value_enum, default_value_t = TenantName::Redis)]
    pub tenant: TenantName,
    /// Whether both hosts reach one disk, or each has its own
    #[arg(long, value_enum, default_value_t = DiskSharing::Shared)]
    pub disk_sharing: DiskSharing,
    /// Requests a second [default: 1000; of databases, whose requests are transactions, 40]
    #[arg(long, value_name = "NUMBER")]
    pub rate: Option<f64>,
    /// Length of each of the two measured runs
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub duration: u64,
    /// Directory for histograms and plots, made anew [default: results/demo-<time>]
    #[arg(long, value_name = "DIRECTORY")]
    pub results: Option<PathBuf>,
}

/// Whose the disk of a tenant with data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DiskSharing {
    /// One file, which both hosts reach.
    Shared,
    /// Each host has its own; what the primary writes is written to both.
    Own,
}

impl From<DiskSharing> for Sharing {
    fn from(sharing: DiskSharing) -> Self {
        match sharing {
            DiskSharing::Shared => Self::Shared,
            DiskSharing::Own => Self::Own,
        }
    }
}

/// A tenant that has a client here who checks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TenantName {
    /// Debian's kernel and Redis, from Debian's packages.
    Redis,
    /// Debian's kernel and PostgreSQL, its data on a disk.
    Postgresql,
    /// The same with SQLite.
    Sqlite,
    /// The freestanding key-value store: nothing to fetch, nothing to boot.
    Bare,
}

impl TenantName {
    fn words(self) -> &'static str {
        match self {
            Self::Redis => "Debian with Redis",
            Self::Postgresql => "Debian with PostgreSQL",
            Self::Sqlite => "Debian with SQLite",
            Self::Bare => "bare",
        }
    }

    /// What makes its guest, if it is a Debian.
    fn recipe(self) -> Option<&'static str> {
        match self {
            Self::Redis => Some("redis"),
            Self::Postgresql => Some("postgresql"),
            Self::Sqlite => Some("sqlite"),
            Self::Bare => None,
        }
    }

    /// What its client asks, `rate` times a second.
    fn workload(self, rate: Option<f64>) -> Workload {
        let requests = rate.unwrap_or(1000.0);
        let pace = |rate| Pace::Open {
            rate,
            arrivals: Arrivals::Uniform,
        };
        let database = |port| SqlConfig {
            pace: pace(rate.unwrap_or(40.0)),
            ..SqlConfig::new((GUEST_ADDRESS, port).into())
        };
        match self {
            Self::Bare => Workload::Memcached(LoadConfig {
                rate: requests,
                ..LoadConfig::new((GUEST_ADDRESS, KV_PORT).into())
            }),
            Self::Redis => Workload::Redis(RedisConfig {
                pace: pace(requests),
                // What is in flight at once on a key could have happened in any order. One request a
                // connection keeps a history checkable, however long a failover takes.
                depth: 1,
                ..RedisConfig::new((GUEST_ADDRESS, REDIS_PORT).into())
            }),
            Self::Postgresql => Workload::Postgresql(database(POSTGRESQL_PORT)),
            Self::Sqlite => Workload::Sqlite(database(SQLITE_PORT)),
        }
    }
}

/// An engine by its name in configuration files.
///
/// # Errors
/// There is none of that name; the error lists those that there are.
pub fn engine(name: &str) -> Result<EngineChoice, String> {
    use serde::Deserialize;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};
    let name: StrDeserializer<'_, Error> = name.into_deserializer();
    EngineChoice::deserialize(name).map_err(|error| error.to_string())
}

/// The demo could not be played to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The host cannot give it its network.
    #[error("the demo needs network namespaces of its own: {0}")]
    Namespaces(#[from] NamespaceError),
    /// A part of it failed.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// Its results could not be written.
    #[error(transparent)]
    Results(#[from] ReportError),
    /// The JSON file could not be written.
    #[error("--json {}: {source}", path.display())]
    Json {
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
}

/// Plays the demo. Call it before the process has other threads.
///
/// # Errors
/// It could not be played to its end. An outcome that is bad is not an error but a failure code.
pub fn demo(arguments: &DemoArguments, settings: Settings) -> Result<ExitCode, DemoError> {
    namespaces::gain()?;
    let host = |step| move |source| DemoError::Host { step, source };
    let results = results_directory(arguments.results.as_deref(), "demo");
    let mut report = Report::create(&results, "demo", &command_line())?;
    let program = std::env::current_exe().map_err(host("finding our own program"))?;
    let progress = Progress::new();
    let tenant = match arguments.tenant.recipe() {
        None => Tenant::Bare,
        Some(recipe) => {
            let cache = cache_directory(None);
            Tenant::debian(recipe, &program, arguments.engine, &cache, &progress)?
        }
    };
    let options = ScenarioOptions {
        program,
        engine: arguments.engine,
        settings,
        save_logs: false,
        tenant,
        disk_sharing: arguments.disk_sharing.into(),
        evidence: Some(results.clone()),
    };
    let transport = options.settings.channel.transport;
    progress.step("building the network: clients, host-a, host-b");
    let mut scenario = Scenario::new(options)?;
    leave_nothing_behind(scenario.directory())?;

    let workload = arguments
        .tenant
        .workload(arguments.rate)
        .seeded(arguments.seed);
    let duration = Duration::from_secs(arguments.duration);
    let unprotected = measure::unprotected(&mut scenario, &workload, duration, &progress)?;
    let protected = measure::protected(&mut scenario, &workload, duration, &progress)?;
    let plan = strikes::Plan {
        fault: arguments.fault,
        rounds: arguments.kills,
        seed: arguments.seed,
        workload,
    };
    let strikes = strikes::play(&mut scenario, &plan, &progress)?;
    drop(scenario);
    drop(progress);

    let outcome = Outcome::new(
        &unprotected,
        &protected,
        &strikes,
        transport,
        arguments.tenant.words(),
    );
    outcome::record(&mut report, &outcome, &unprotected, &protected, &strikes)?;
    report.finish()?;
    println!(
        "{}",
        outcome::Table {
            outcome: &outcome,
            results: &results
        }
    );
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&outcome.json()).map_err(io::Error::other);
        text.and_then(|text| std::fs::write(path, text + "\n"))
            .map_err(|source| DemoError::Json {
                path: path.clone(),
                source,
            })?;
    }
    Ok(if outcome.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Removes the temporary directory also when the demo is interrupted; processes and namespaces go
/// with this one by themselves.
fn leave_nothing_behind(directory: &Path) -> Result<(), DemoError> {
    /// 128 and the number of SIGINT, as shells have it.
    const INTERRUPTED: i32 = 130;
    let directory = directory.to_owned();
    crate::signals::on_end(move || {
        drop(std::fs::remove_dir_all(&directory));
        std::process::exit(INTERRUPTED);
    })
    .map_err(|source| DemoError::Host {
        step: "listening to signals",
        source,
    })
}
