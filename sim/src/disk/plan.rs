//! What a seed stands for.

use crate::rng::Rng;

/// What happens to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    None,
    /// The primary's process is killed.
    KillPrimary,
    /// The primary is stopped, the backup goes live, and after so many steps the primary is resumed.
    StopPrimary {
        resumed_after: u64,
    },
    /// The primary is stopped for a moment, which its backup does not notice.
    PausePrimary {
        resumed_after: u64,
    },
    /// The backup suspects a primary that is well.
    SuspectPrimary,
    /// The backup's process is killed.
    KillBackup,
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct DiskPlan {
    pub fault: DiskFault,
    /// Step at which it happens.
    pub at: u64,
    /// Steps after the backup went live at which it is killed too.
    pub survivor_killed_after: Option<u64>,
    /// The backup reads the disk itself.
    pub backup_reads: bool,
    /// Each side has a disk of its own.
    pub own: bool,
    /// Requests in a thousand that fail.
    pub failing: u32,
    /// Requests that the guest makes in all.
    pub requests: u64,
    /// At a time.
    pub outstanding: usize,
    /// Pages for bounce buffers.
    pub bounce_pages: u64,
    /// The guest's program.
    pub program: u64,
    /// How likely a step is one of the primary, the log, the acknowledgements, the backup, the disk.
    pub weights: [u64; 5],
}

impl DiskPlan {
    pub fn draw(rng: &mut Rng) -> Self {
        let fault = match rng.below(20) {
            0 => DiskFault::None,
            1..=6 => DiskFault::KillPrimary,
            7..=11 => DiskFault::StopPrimary {
                resumed_after: rng.between(1, 300),
            },
            12 => DiskFault::PausePrimary {
                resumed_after: rng.between(1, 40),
            },
            13..=17 => DiskFault::SuspectPrimary,
            _ => DiskFault::KillBackup,
        };
        Self {
            fault,
            at: rng.between(5, 250),
            survivor_killed_after: rng.chance(150).then(|| rng.between(1, 150)),
            backup_reads: rng.chance(400),
            own: rng.chance(400),
            failing: rng.pick(&[0, 0, 60]),
            requests: rng.between(6, 40),
            outstanding: rng.between(2, 8) as usize,
            bounce_pages: rng.between(2, 9),
            program: rng.draw(),
            weights: std::array::from_fn(|_| rng.between(1, 8)),
        }
    }
}
