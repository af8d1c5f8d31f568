//! The software CPU beside QEMU's TCG, with and without `-icount`.
//!
//! Guests take turns on the contenders: the boot of a stock kernel to user space, if one is given,
//! and four bare loops ([`BareGuest`]). Each is the same image, the same initrd and the same command
//! line for everybody, and is measured by what it says on the serial port. Time is the wall clock's;
//! processor time is reported beside it, because on a busy host that is what a contender used up.
//!
//! - `lockstep` is the whole machine on the `soft` engine, in this thread: what a replica executes.
//! - `qemu -icount` is `-accel tcg -icount shift=0,sleep=off`: one nanosecond an instruction, as on the
//!   `soft` engine, and idle time skipped, as here. It is the fastest that QEMU counts instructions.
//! - `qemu` is `-accel tcg` alone, which counts nothing.
//!
//! QEMU's machine is `microvm`, the nearest to Lockstep's: no PCI, virtio-mmio, ACPI.
//!
//! Promised, and marked kept or broken in the report: the boot takes at most as long as under
//! `qemu -icount`, by the median of the rounds' ratios.

mod console;
mod guest;
mod qemu;
mod soft;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::interval::{Interval, Series};
use lockstep_vmm::machine::MachineError;

pub use guest::{BareGuest, Guest};

use crate::report::{Report, ReportError};
use crate::rounds;
use qemu::Qemu;
use soft::Soft;

/// The package that brings `qemu-system-x86_64`, on Debian.
pub const QEMU_PACKAGE: &str = "qemu-system-x86";
const OURS: &str = "lockstep";
const COUNTING: &str = "qemu -icount";
const PLAIN: &str = "qemu";

/// How much to measure.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// The stock kernel's boot, if it is to be measured.
    pub boot: Option<Guest>,
    /// Times that each contender runs each guest.
    pub rounds: usize,
    /// Divides the bare guests' iterations.
    pub divisor: u64,
    /// A run that takes longer is an error.
    pub patience: Duration,
    /// QEMU's program.
    pub qemu: PathBuf,
}

impl Default for CpuOptions {
    /// About two minutes without a boot.
    fn default() -> Self {
        Self {
            boot: None,
            rounds: 5,
            divisor: 1,
            patience: Duration::from_secs(300),
            qemu: "qemu-system-x86_64".into(),
        }
    }
}

impl CpuOptions {
    /// As small as still measures something: for tests.
    #[must_use]
    pub fn small() -> Self {
        Self {
            rounds: 1,
            divisor: 200,
            ..Self::default()
        }
    }
}

/// The suite could not be run.
#[derive(Debug, thiserror::Error)]
pub enum CpuBenchError {
    /// The machine refused the guest, or the guest ended itself.
    #[error("{guest} on the software CPU: {source}")]
    Machine {
        /// Which guest.
        guest: String,
        /// What the machine said.
        source: MachineError,
    },
    /// QEMU could not be used.
    #[error("{guest} in {contender}: {source}")]
    Qemu {
        /// Which guest.
        guest: String,
        /// Which way of running it.
        contender: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The guest ended, or sleeps for ever, without a word.
    #[error("{guest} in {contender} ended before it said {mark:?}; its last words: {words}")]
    Ended {
        /// Which guest.
        guest: String,
        /// Where it ran.
        contender: &'static str,
        /// What it was to say.
        mark: String,
        /// The end of what it did say.
        words: String,
    },
    /// It takes too long.
    #[error(
        "{guest} in {contender} did not say {mark:?} within {} s; its last words: {words}",
        patience.as_secs()
    )]
    TooLong {
        /// Which guest.
        guest: String,
        /// Where it ran.
        contender: &'static str,
        /// What it was to say.
        mark: String,
        /// How long it was waited for.
        patience: Duration,
        /// The end of what it did say.
        words: String,
    },
    /// The report could not be written.
    #[error(transparent)]
    Report(#[from] ReportError),
}

/// One run of one guest.
#[derive(Debug, Clone, Copy)]
struct Lap {
    wall: Duration,
    /// Processor time of everything that took part.
    processor: Duration,
    /// Retired in that time, where that is counted.
    instructions: Option<u64>,
}

/// Somebody who executes guests.
trait Contender {
    fn name(&self) -> &'static str;
    fn run(&mut self, guest: &Guest, patience: Duration) -> Result<Lap, CpuBenchError>;
}

/// A contender and what it did with the present guest.
struct Lane {
    contender: Box<dyn Contender>,
    laps: Vec<(SystemTime, Lap)>,
}

/// What a run of the suite could not measure, in words for the user; empty if nothing.
pub type NotMeasured = Vec<String>;

/// Runs the suite and reports it.
///
/// # Errors
/// A guest could not be run, or the report could not be written. That QEMU is absent is none: the
/// answer then says so.
pub fn run(
    options: &CpuOptions,
    report: &mut Report,
    progress: &mut dyn FnMut(&str),
) -> Result<NotMeasured, CpuBenchError> {
    let mut missing = Vec::new();
    let mut lanes = vec![Lane {
        contender: Box::new(Soft),
        laps: Vec::new(),
    }];
    match qemu::version(&options.qemu) {
        Ok(version) => {
            report.fact("qemu", version);
            for (name, flags) in [
                (COUNTING, &["-icount", "shift=0,sleep=off"][..]),
                (PLAIN, &[]),
            ] {
                lanes.push(Lane {
                    contender: Box::new(Qemu::new(name, &options.qemu, flags)),
                    laps: Vec::new(),
                });
            }
        }
        Err(error) => {
            let what = format!(
                "nothing was compared: {} does not run ({error}); install the package {QEMU_PACKAGE}",
                options.qemu.display()
            );
            report.fact("qemu", what.clone());
            missing.push(what);
        }
    }
    report.fact("rounds", options.rounds);
    match &options.boot {
        Some(boot) => {
            report.fact("command line", boot.full_command_line());
            report.fact("memory bytes", boot.memory_bytes);
            measure(boot, options, &mut lanes, report, progress)?;
        }
        None => missing.push(
            "no boot was measured: make a guest with 'lockstep guest build --out DIRECTORY', and \
             name it with --kernel DIRECTORY/kernel --initrd DIRECTORY/initramfs"
                .into(),
        ),
    }
    for bare in BareGuest::ALL {
        let guest = bare.guest(options.divisor);
        measure(&guest, options, &mut lanes, report, progress)?;
    }
    Ok(missing)
}

fn measure(
    guest: &Guest,
    options: &CpuOptions,
    lanes: &mut [Lane],
    report: &mut Report,
    progress: &mut dyn FnMut(&str),
) -> Result<(), CpuBenchError> {
    rounds::alternate(options.rounds, lanes, |round, lane| {
        progress(&format!(
            "{} in {}, round {} of {}",
            guest.name,
            lane.contender.name(),
            round + 1,
            options.rounds
        ));
        let start = SystemTime::now();
        let lap = lane.contender.run(guest, options.patience)?;
        lane.laps.push((start, lap));
        Ok::<_, CpuBenchError>(())
    })?;
    let mut names = Vec::new();
    for lane in lanes.iter() {
        let name = format!("{}/{}", guest.name, lane.contender.name());
        let mut series = Series::new();
        for &(start, lap) in &lane.laps {
            let mut latencies = LatencyHistogram::new();
            latencies.record(u64::try_from(lap.wall.as_nanos()).unwrap_or(u64::MAX));
            series.push(Interval {
                start,
                length: lap.wall,
                latencies,
            });
        }
        report.series(&name, &series)?;
        names.push(name);
        figures(guest, lane, report);
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    report.plot(
        &guest.name,
        &format!("{}: wall time of a run", guest.name),
        &names,
    )?;
    if let Some((ours, others)) = lanes.split_first() {
        for other in others {
            compare(guest, ours, other, report);
        }
    }
    for lane in lanes {
        lane.laps.clear();
    }
    Ok(())
}

fn figures(guest: &Guest, lane: &Lane, report: &mut Report) {
    let name = format!("{}, {}", guest.name, lane.contender.name());
    let of = |value: fn(&Lap) -> f64| median(lane.laps.iter().map(|(_, lap)| value(lap)).collect());
    let wall = of(|lap| lap.wall.as_secs_f64());
    report.figure(&format!("{name}: wall"), wall, "s");
    report.figure(
        &format!("{name}: processor"),
        of(|lap| lap.processor.as_secs_f64()),
        "s",
    );
    if let Some(instructions) = lane.laps.first().and_then(|(_, lap)| lap.instructions) {
        let millions = instructions as f64 / 1e6;
        report.figure(&format!("{name}: retired"), millions, "M instructions");
        report.figure(
            &format!("{name}: speed"),
            millions / wall,
            "M instructions/s",
        );
    }
}

/// Our time over the other's, round by round.
fn compare(guest: &Guest, ours: &Lane, other: &Lane, report: &mut Report) {
    let ratios = |value: fn(&Lap) -> Duration| {
        let mut ratios: Vec<f64> = (ours.laps.iter().zip(&other.laps))
            .map(|((_, a), (_, b))| value(a).as_secs_f64() / value(b).as_secs_f64().max(1e-9))
            .collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    };
    let name = format!("{}: {OURS} / {}", guest.name, other.contender.name());
    for (kind, ratios) in [
        ("wall", ratios(|lap| lap.wall)),
        ("processor", ratios(|lap| lap.processor)),
    ] {
        let middle = median(ratios.clone());
        report.figure(&format!("{name}, {kind}, median"), middle, "times");
        report.figure(&format!("{name}, {kind}, least"), ratios[0], "times");
        report.figure(
            &format!("{name}, {kind}, most"),
            ratios[ratios.len() - 1],
            "times",
        );
        if kind == "wall" && guest.is_boot() && other.contender.name() == COUNTING {
            report.at_most(&name, middle, 1.0, "times");
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
