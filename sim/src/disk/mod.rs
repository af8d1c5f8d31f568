//! Disks under failover, without a guest operating system: from a seed, a machine that makes random
//! requests, a disk whose transfers are torn at sectors and may be late, and one fault.
//!
//! Driven is what ships: recorder, replayer, roles, output gate, the order of disk requests, entries
//! and log ring. Simulated are the machine ([`guest`]), the disk ([`storage`]), and the drivers.
//!
//! # The fault model
//!
//! One replica is lost: killed, stopped (and perhaps resumed much later), or suspected although it is
//! well. What the dead primary had given to its kernel is written, in whole or in part, sector by
//! sector, up to [`SETTLE`] after the backup went live; a primary that runs on without having
//! noticed may start what had been acknowledged for half of that time. At the end of a run the storage loses
//! power, and whatever was not flushed is lost in part.
//!
//! In some runs each side has a disk of its own: the primary's requests are not held, the backup does the same to
//! its disk, and what counts in the end is the disk of the side that was the last to be live. A backup whose disk
//! fails where the primary's did not is the replica that is lost.
//!
//! # What is checked
//!
//! 1. Nothing that the world was told to be durable is lost.
//! 2. In the end the disk holds what it would hold if the requests of the machine that survives had been
//!    done one after the other; each read got what such a disk would have given.
//! 3. No request to a shared disk that the output rule holds starts before the backup has its entry, so nothing is on the
//!    disk that the new primary has not asked for.
//! 4. At go-live exactly the requests without a logged end are issued again.
//! 5. The old primary starts nothing on a shared disk once its backup has been live for [`SETTLE`].
//! 6. A bounce buffer holds its request's data until that ends.
//! 7. Both machines are equal, by the digests in the log; a backup that reads the disk itself finds what
//!    the primary found.
//! 8. If a replica lives, every request ends.

mod guest;
mod live;
mod own;
mod plan;
mod sabotage;
mod storage;
mod world;

pub use sabotage::DiskSabotage;
pub use world::{DiskOutcome, SETTLE};

/// A rule was broken.
#[derive(Debug, thiserror::Error)]
#[error(
    "seed {seed}, step {step}: {rule}: {detail}\n  replay: lockstep-sim --disk --seed {seed} --trace"
)]
pub struct DiskViolation {
    /// The run.
    pub seed: u64,
    /// When.
    pub step: u64,
    /// What is broken.
    pub rule: DiskRule,
    /// How.
    pub detail: String,
}

/// What must hold; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskRule {
    /// 1.
    #[error("an acknowledged write is lost")]
    Durable,
    /// 2.
    #[error("the disk is not what an orderly one would be")]
    Orderly,
    /// 3.
    #[error("a request went before its acknowledgement")]
    OutputRule,
    /// 4.
    #[error("not the right requests were issued again")]
    Reissue,
    /// 5.
    #[error("a side that is no longer live used the disk")]
    Fence,
    /// 6.
    #[error("a bounce buffer was reused too early")]
    Bounce,
    /// 7.
    #[error("the replicas differ")]
    Equal,
    /// 8.
    #[error("a request never ended")]
    Served,
}

/// Runs `seed`.
///
/// # Errors
/// A rule was broken: the message says which, and how to replay the run.
///
/// # Panics
/// The host has no memory for a ring or a bounce buffer.
pub fn run(seed: u64, sabotage: DiskSabotage, trace: bool) -> Result<DiskOutcome, DiskViolation> {
    let mut world = world::World::new(seed, sabotage, trace);
    world.run().map_err(|(rule, detail)| DiskViolation {
        seed,
        step: world.step(),
        rule,
        detail,
    })
}

/// What is broken, and how.
type Broken = (DiskRule, String);
