//! A machine without fault tolerance: what protection is measured against.

use std::collections::VecDeque;

use lockstep_perf::disk_stages::DiskHistograms;
use lockstep_perf::stages::StageHistograms;
use lockstep_perf::{pin, stamp};

use super::alone::{Alone, AloneEnd};
use super::disk_desk::Part;
use super::idle::Idle;
use super::live::{Live, LiveParts};
use super::metronome::Metronome;
use super::status::Standing;
use super::{RunError, RunOptions, VmSpec};
use crate::ft::log::{Sequence, Unlogged};

/// How an unprotected run ended.
#[derive(Debug)]
pub struct UnprotectedReport {
    /// Why.
    pub end: AloneEnd,
    /// From the guest's kick to the output's release; the stages in between do not exist here.
    pub stages: StageHistograms,
    /// Where disk requests spent their time.
    pub disk_stages: DiskHistograms,
}

/// Runs `vm` on the calling thread until it powers off or is stopped.
///
/// # Errors
/// The machine cannot be made, or fails.
pub fn unprotected(vm: &VmSpec, options: RunOptions) -> Result<UnprotectedReport, RunError> {
    let machine = vm.build()?;
    vm.check_disks(&options.disks)?;
    let _metronome = Metronome::start(machine.kicker())
        .map_err(RunError::host("starting the thread that kicks the vCPU"))?;
    let (cpu, control) = (options.settings.cpu.clone(), options.control.clone());
    if let pin::Placement::Refused { why, .. } = pin::place(cpu.vcpu_core) {
        tracing::warn!(%why, "the vCPU thread is not pinned");
    }
    options.status.engine(vm.machine.engine);
    options.status.stand(Standing::Unprotected);
    let parts = LiveParts::of(options, &vm.machine, &machine, Part::Alone)?;
    let live = Live::new(machine, parts, stamp::now(), 0);
    let mut alone = Alone {
        live,
        log: Unlogged::after(Sequence::NONE),
        idle: Idle::new(cpu.idle_wait, cpu.spin_us),
        control,
        announcements: VecDeque::new(),
    };
    let end = alone.run(|_| ())?;
    let (stages, disk_stages) = alone.live.into_stages();
    Ok(UnprotectedReport {
        end,
        stages,
        disk_stages,
    })
}
