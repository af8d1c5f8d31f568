//! `lockstep bench`: suites that end in histograms and plots.

mod arms;
pub(crate) mod redis;

use crate::demo::engine;
use crate::progress::Progress;
use crate::scenario::{Scenario, ScenarioError, ScenarioOptions, Tenant};
use arms::{OwnedArm, round_trip};
use clap::{Args, Subcommand};
use lockstep_bench::channel::{self, ChannelBenchError};
use lockstep_bench::cpu::{self, CpuBenchError, CpuOptions, Guest};
use lockstep_bench::disk::{self, DiskBenchError, Pattern};
use lockstep_bench::load::LoadConfig;
use lockstep_bench::output_latency::{self, Arm, OutputLatencyError, Yardstick};
use lockstep_bench::pingpong::Waiting;
use lockstep_bench::report::{Report, ReportError, Summary};
use lockstep_bench::ring::{self, RingBenchError, RingOptions};
use lockstep_guest::debian::{COMMAND_LINE, READY_MARKER};
use lockstep_vmm::host::disk::Sharing;
use lockstep_vmm::host::namespaces::{self, NamespaceError};
use lockstep_vmm::machine::engine::EngineChoice;
use lockstep_vmm::settings::{Settings, TransportKind, Wait};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of all suites.
#[derive(Debug, Args)]
pub struct SuiteArguments {
    /// Directory for histograms, plots and summary.json, made anew [default: results/<suite>-<time>]
    #[arg(long, value_name = "DIRECTORY", global = true)]
    results: Option<PathBuf>,
    /// Print summary.json instead of a table
    #[arg(long, global = true)]
    json: bool,
    /// Measure just enough to see that the suite works
    #[arg(long, global = true)]
    small: bool,
}

/// Arguments of `lockstep bench`.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Which suite
    #[command(subcommand)]
    suite: Suite,
    /// For all of them
    #[command(flatten)]
    all: SuiteArguments,
}

/// The suites.
#[derive(Debug, Subcommand)]
enum Suite {
    /// The log ring beside other rings and a bare cache-line hand-off
    Ring,
    /// The logging channel beside a bare TCP ping-pong
    Channel(ChannelArguments),
    /// What the output rule adds to a packet: unprotected, shm and tcp in one run
    OutputLatency(OutputLatencyArguments),
    /// Requests a second of Redis in Debian, protected and unprotected
    Redis(redis::RedisArguments),
    /// The host's side of a disk beside fio, the bounce buffers, and the output rule for writes
    Disk(DiskArguments),
    /// The software CPU beside QEMU's, with and without -icount: a kernel's boot, and bare loops
    Cpu(CpuArguments),
}

/// Arguments of `lockstep bench channel`.
#[derive(Debug, Args)]
struct ChannelArguments {
    /// Times that each arm takes its turn
    #[arg(long, value_name = "NUMBER", default_value_t = channel::ROUNDS)]
    rounds: usize,
    /// Longest of each measurement of an arm's turn: closed loop, open loop, throughput
    #[arg(long, value_name = "MILLISECONDS", default_value_t = channel::LAP.as_millis() as u64,
        value_parser = clap::value_parser!(u64).range(1..=60_000))]
    lap: u64,
    /// Entries a second of the open loop
    #[arg(long, value_name = "NUMBER", default_value_t = channel::RATE,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
}

/// Arguments of `lockstep bench cpu`.
#[derive(Debug, Args)]
struct CpuArguments {
    /// The kernel whose boot is measured, a bzImage: that of 'lockstep guest build', for one
    #[arg(long, value_name = "FILE", requires = "initrd")]
    kernel: Option<PathBuf>,
    /// Its initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// What the guest says on its serial port when user space is there
    #[arg(long, value_name = "TEXT", default_value = READY_MARKER)]
    until: String,
    /// The kernel's command line
    #[arg(long, value_name = "WORDS", default_value = COMMAND_LINE)]
    append: String,
    /// Times that each contender takes its turn
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    rounds: usize,
    /// The program that is compared with
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
}

/// Arguments of `lockstep bench disk`.
#[derive(Debug, Args)]
struct DiskArguments {
    /// Where a file of 1 GiB is made for the measurement: on the storage in question [default: the
    /// directory for temporary files]
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// Times that each contender takes its turn at each point
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    rounds: usize,
    /// What is asked of the disk, one or several: random-read, random-write (4 KiB), sequential-read,
    /// sequential-write (1 MiB) [default: all]
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',')]
    patterns: Vec<Pattern>,
    /// Requests under way, one or several numbers
    #[arg(long, value_name = "NUMBER,...", value_delimiter = ',', default_values_t = [1, 4, 16, 64],
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    depths: Vec<u32>,
    /// Length of each measurement
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1500)]
    lap: u64,
    /// Leave out what protection adds to a request
    #[arg(long)]
    host_only: bool,
    /// The program that is compared with
    #[arg(long, value_name = "PROGRAM", default_value = "fio")]
    fio: PathBuf,
}

/// Arguments of `lockstep bench output-latency`.
#[derive(Debug, Args)]
struct OutputLatencyArguments {
    /// What executes the guest
    #[arg(long, value_name = "auto|soft|kvm", default_value = "auto", value_parser = engine)]
    engine: EngineChoice,
    /// Requests a second
    #[arg(long, value_name = "NUMBER", default_value_t = 1000.0)]
    rate: f64,
    /// Times that each arm takes its turn
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    rounds: usize,
    /// Length of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    duration: u64,
}

/// A suite could not be brought to its end.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// `ring`
    #[error(transparent)]
    Ring(#[from] RingBenchError),
    /// `channel`
    #[error(transparent)]
    Channel(#[from] ChannelBenchError),
    /// `disk`
    #[error(transparent)]
    Disk(#[from] DiskBenchError),
    /// `output-latency`
    #[error(transparent)]
    OutputLatency(#[from] OutputLatencyError),
    /// `cpu`
    #[error(transparent)]
    Cpu(#[from] CpuBenchError),
    /// An image.
    #[error("{}: {source}", path.display())]
    Image {
        /// Where it was looked for.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Its network.
    #[error("output-latency needs network namespaces of its own: {0}")]
    Namespaces(#[from] NamespaceError),
    /// Its machines.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// The results.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Our own program.
    #[error("finding our own program: {0}")]
    Program(io::Error),
}

/// Runs a suite. Call it before the process has other threads. The exit code says whether every
/// promise was kept.
///
/// # Errors
/// The suite could not be brought to its end.
pub fn bench(arguments: &BenchArguments, settings: Settings) -> Result<ExitCode, BenchError> {
    let name = match &arguments.suite {
        Suite::Ring => "ring",
        Suite::Channel(_) => "channel",
        Suite::OutputLatency(_) => "output-latency",
        Suite::Cpu(_) => "cpu",
        Suite::Disk(_) => "disk",
        Suite::Redis(_) => "redis",
    };
    if matches!(arguments.suite, Suite::OutputLatency(_) | Suite::Redis(_)) {
        namespaces::gain()?;
    }
    let directory = super::results_directory(arguments.all.results.as_deref(), name);
    let mut report = Report::create(&directory, name, &super::command_line())?;
    let small = arguments.all.small;
    let right = match &arguments.suite {
        Suite::Ring => {
            let options = if small {
                RingOptions::small()
            } else {
                RingOptions::default()
            };
            ring::run(&options, &mut report)?;
            true
        }
        Suite::Channel(suite) => {
            channel::run(&channel_options(suite, small), &mut report)?;
            true
        }
        Suite::OutputLatency(suite) => output_latency(suite, settings, small, &mut report)?,
        Suite::Redis(suite) => {
            let program = std::env::current_exe().map_err(BenchError::Program)?;
            let engine = EngineChoice::Soft;
            let cache = super::guest::cache_directory(None);
            let tenant = Tenant::debian("redis", &program, engine, &cache, &Progress::new())?;
            let options = ScenarioOptions {
                program,
                engine,
                settings,
                save_logs: false,
                tenant,
                disk_sharing: Sharing::Shared,
                evidence: None,
            };
            redis::run(suite, &options, small, &mut report)?
        }
        Suite::Cpu(suite) => {
            let options = cpu_options(suite, small)?;
            let progress = Progress::new();
            let missing = cpu::run(&options, &mut report, &mut |doing| progress.step(doing))?;
            for what in missing {
                progress.note(&what);
            }
            true
        }
        Suite::Disk(suite) => {
            let options = disk_options(suite, small);
            let progress = Progress::new();
            let missing = disk::run(&options, &mut report, &mut |doing| progress.step(doing))?;
            for what in missing {
                progress.note(&what);
            }
            true
        }
    };
    let summary: Summary = report.finish()?;
    if arguments.all.json {
        println!("{}", serde_json::json!(summary));
    } else {
        println!("{summary}");
        println!("histograms and plots: {}", directory.display());
    }
    Ok(if right && summary.promises_kept() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn cpu_options(arguments: &CpuArguments, small: bool) -> Result<CpuOptions, BenchError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| BenchError::Image {
            path: path.to_owned(),
            source,
        })
    };
    let boot = match (&arguments.kernel, &arguments.initrd) {
        (Some(kernel), Some(initrd)) => Some(Guest::boot(
            read(kernel)?,
            read(initrd)?,
            arguments.append.clone(),
            arguments.until.clone(),
        )),
        _ => None,
    };
    let options = if small {
        CpuOptions::small()
    } else {
        CpuOptions {
            rounds: arguments.rounds.max(1),
            ..CpuOptions::default()
        }
    };
    Ok(CpuOptions {
        boot,
        qemu: arguments.qemu.clone(),
        ..options
    })
}

fn disk_options(arguments: &DiskArguments, small: bool) -> disk::Options {
    let directory = arguments.directory.clone();
    let directory = directory.unwrap_or_else(std::env::temp_dir);
    if small {
        return disk::Options {
            fio: arguments.fio.clone(),
            ..disk::Options::small(directory)
        };
    }
    let patterns = match arguments.patterns.as_slice() {
        [] => Pattern::ALL.to_vec(),
        chosen => chosen.to_vec(),
    };
    disk::Options {
        rounds: arguments.rounds.max(1),
        patterns,
        additions: !arguments.host_only,
        depths: arguments.depths.clone(),
        lap: Duration::from_millis(arguments.lap.max(1)),
        fio: arguments.fio.clone(),
        ..disk::Options::new(directory)
    }
}

fn channel_options(arguments: &ChannelArguments, small: bool) -> channel::Options {
    let options = channel::Options {
        rounds: arguments.rounds,
        rate: arguments.rate,
        ..channel::Options::of_laps(Duration::from_millis(arguments.lap))
    };
    if !small {
        return options;
    }
    channel::Options {
        entries: 500,
        rounds: 2,
        open_loop: Duration::from_millis(100),
        throughput_bytes: 4 << 20,
        ..options
    }
}

/// Whether nothing was lost.
fn output_latency(
    arguments: &OutputLatencyArguments,
    settings: Settings,
    small: bool,
    report: &mut Report,
) -> Result<bool, BenchError> {
    let program = std::env::current_exe().map_err(BenchError::Program)?;
    let scenario = |transport: TransportKind| {
        let mut settings = settings.clone();
        settings.channel.transport = transport;
        Scenario::new(ScenarioOptions {
            program: program.clone(),
            engine: arguments.engine,
            settings,
            save_logs: false,
            tenant: Tenant::Bare,
            disk_sharing: Sharing::Shared,
            evidence: None,
        })
    };
    let link = scenario(TransportKind::Tcp)?;
    let mut arms: Vec<Box<dyn Arm>> = vec![
        Box::new(OwnedArm::unprotected(scenario(TransportKind::Tcp)?)),
        Box::new(OwnedArm::protected(
            scenario(TransportKind::Shm)?,
            TransportKind::Shm,
        )),
        Box::new(OwnedArm::protected(
            scenario(TransportKind::Tcp)?,
            TransportKind::Tcp,
        )),
    ];
    let (rounds, measure) = if small {
        (1, Duration::from_millis(500))
    } else {
        (arguments.rounds, Duration::from_secs(arguments.duration))
    };
    // Judged by the first, which waits as the channel's own ends do (those that spin only for a
    // while have long been asleep when the next packet comes) and is used as often as they are. The
    // other two are the best that the link can do when it does nothing else.
    let waiting = match settings.cpu.receive_wait {
        Wait::Spin => Waiting::Spin,
        Wait::SpinThenBlock | Wait::Block => Waiting::Block,
    };
    let play = measure.min(Duration::from_secs(2));
    let interval = Duration::from_secs_f64(1.0 / arguments.rate.max(1.0));
    let mut yardsticks = [
        (
            format!("ping-pong-{}-at-rate", waiting.name()),
            waiting,
            interval,
        ),
        ("ping-pong-block".to_owned(), Waiting::Block, Duration::ZERO),
        ("ping-pong-spin".to_owned(), Waiting::Spin, Duration::ZERO),
    ]
    .map(|(name, waiting, interval)| {
        let link = &link;
        Yardstick::new(name, move || round_trip(link, waiting, interval, play))
    });
    let options = output_latency::Options {
        rounds,
        warm_up: Duration::from_secs(2),
        measure,
        load: LoadConfig {
            rate: arguments.rate,
            ..LoadConfig::new(link.target())
        },
    };
    let progress = Progress::new();
    let outcome =
        output_latency::run(&options, &mut arms, &mut yardsticks, report, &mut |doing| {
            progress.step(doing)
        })?;
    Ok(outcome.wrong_keys == 0)
}
