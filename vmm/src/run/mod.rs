//! The threads that drive a machine, its channel and its network.
//!
//! - [`unprotected`]: a machine by itself, the yardstick;
//! - [`primary`]: records and executes; outputs wait for the backup;
//! - [`backup`]: replays; goes live when the primary is gone;
//! - [`replay`]: re-executes a saved log;
//! - [`snapshot`]: boots a machine by itself, and saves it.
//!
//! Decisions are made in [`crate::ft`], without I/O; here they are carried out.

mod alone;
mod arbiter_desk;
mod backup;
mod control;
mod disk_desk;
mod door;
mod doorbell;
mod idle;
mod live;
mod log_source;
mod metronome;
mod pair;
mod primary;
mod priority;
mod pulse;
mod receiver;
mod resync;
mod saved;
mod snapshot;
mod stage_report;
mod status;
mod unprotected;
mod world;

pub use alone::AloneEnd;
pub use backup::{BackupEnd, BackupReport, Failover, backup};
pub use control::Control;
pub use disk_desk::{BackingError, DiskBacking};
pub use doorbell::Doorbell;
pub use pair::PairSpec;
pub use primary::{PrimaryEnd, PrimaryReport, primary};
pub use resync::{ResyncError, ResyncProgress};
pub use saved::{ReplayReport, replay};
pub use snapshot::{SnapshotReport, snapshot};
pub use status::{Standing, Status, StatusReport};
pub use unprotected::{UnprotectedReport, unprotected};
pub use world::World;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::ft::recorder::RecordError;
use crate::host::arbiter_file::ArbiterError;
use crate::host::disk::{CopyError, DiskError};
use crate::host::snapshot_file::{Origin, SnapshotError, SnapshotFile};
use crate::machine::{Machine, MachineConfig};
use crate::settings::Settings;

/// What a virtual machine is made from. Both sides of a pair must be given the same.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Its name: it identifies the VM at the arbiter and to its peer.
    pub name: String,
    /// The machine.
    pub machine: MachineConfig,
    /// The kernel image, ELF64 or bzImage.
    pub kernel: Vec<u8>,
    /// The initial RAM disk of a Linux kernel.
    pub initrd: Option<Vec<u8>>,
    /// The machine starts from here instead of booting. It must have been booted from these images.
    pub snapshot: Option<Arc<SnapshotFile>>,
}

/// How a machine is run, whatever its role.
pub struct RunOptions {
    /// The knobs.
    pub settings: Settings,
    /// Its network and its console.
    pub world: World,
    /// What backs its disks here, in their order.
    pub disks: Vec<DiskBacking>,
    /// A backup may overwrite what its own disks hold, though it may not be a copy of the primary's.
    pub overwrite_disks: bool,
    /// The operator's handle.
    pub control: Control,
    /// Where it says how it is.
    pub status: Arc<Status>,
    /// Outputs of the first while are left out of the stage histograms.
    pub warm_up: Duration,
}

/// A run could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The guest ended itself, or its engine failed.
    #[error("the machine failed: {0}")]
    Machine(#[source] Box<dyn Error + Send + Sync>),
    /// The recorder was asked for what cannot be: a defect of this program.
    #[error("recording failed: {0}")]
    Record(String),
    /// The host refused a resource.
    #[error("{step}: {source}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// A disk's file or device cannot be used, or its ring failed.
    #[error("a disk: {0}")]
    Disk(#[from] DiskError),
    /// The machine's disks are not backed.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The arbiter cannot be asked in this side's name.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// The copies of the disks could not be made equal.
    #[error("making the disks of both sides equal: {0}")]
    Resync(#[from] ResyncError),
    /// The copy of a disk of the side's own, or its record.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Setting up the channel failed.
    #[error("setting up the channel: {0}")]
    Channel(#[source] Box<dyn Error + Send + Sync>),
    /// A snapshot could not be saved or used.
    #[error("the snapshot: {0}")]
    Snapshot(#[from] SnapshotError),
    /// A saved log could not be read, or does not replay.
    #[error("replaying the saved log: {0}")]
    Replay(#[source] Box<dyn Error + Send + Sync>),
}

impl RunError {
    fn of_record<E: Error + Send + Sync + 'static>(error: RecordError<E>) -> Self {
        match error {
            RecordError::Vm(error) => Self::Machine(Box::new(error)),
            other => Self::Record(other.to_string()),
        }
    }

    fn host(step: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Host { step, source }
    }
}

impl VmSpec {
    fn build(&self) -> Result<Machine, RunError> {
        if let Some(snapshot) = &self.snapshot {
            let began = std::time::Instant::now();
            snapshot.check(&self.machine, &self.origin())?;
            let machine = snapshot.restore(self.machine.engine)?;
            tracing::info!(
                digest = format_args!("{:032x}", snapshot.digest()),
                mib = snapshot.memory_bytes() >> 20,
                ms = began.elapsed().as_millis(),
                "the snapshot is loaded"
            );
            return Ok(machine);
        }
        Machine::with_initrd(&self.machine, &self.kernel, self.initrd.as_deref())
            .map_err(|error| RunError::Machine(Box::new(error)))
    }

    /// That `disks` hold what the snapshot expects there, for who is the first to start from it.
    fn check_disks(&self, disks: &[DiskBacking]) -> Result<(), RunError> {
        let Some(snapshot) = &self.snapshot else {
            return Ok(());
        };
        let paths: Vec<&Path> = disks.iter().map(|disk| disk.path.as_path()).collect();
        Ok(snapshot.check_disks(&paths)?)
    }

    /// What it boots from.
    fn origin(&self) -> Origin {
        Origin::of(&self.kernel, self.initrd.as_deref())
    }
}
