//! What a running machine says about itself to whoever asks (`lockstep status`).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use lockstep_perf::counters::{Counters, Snapshot};
use serde::Serialize;

use super::backup::Failover;
use super::resync::ResyncProgress;
use crate::machine::engine::EngineKind;
use crate::settings::TransportKind;

/// Where a machine stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Standing {
    /// Waiting for a peer.
    Waiting = 0,
    /// Runs without fault tolerance.
    Unprotected = 1,
    /// A primary with a backup.
    Primary = 2,
    /// Follows a primary.
    Backup = 3,
    /// Lost its peer; the arbiter has not answered yet.
    Arbitrating = 4,
    /// Goes on without a backup, after having had one.
    Alone = 5,
    /// Must not go on.
    Halted = 6,
    /// Over.
    Ended = 7,
    /// The copies of the disks are being made equal; the machine starts then.
    Resyncing = 8,
}

impl Standing {
    const ALL: [Self; 9] = [
        Self::Waiting,
        Self::Unprotected,
        Self::Primary,
        Self::Backup,
        Self::Arbitrating,
        Self::Alone,
        Self::Halted,
        Self::Ended,
        Self::Resyncing,
    ];
}

/// Shared between the machine's threads and whoever reports.
#[derive(Debug, Default)]
pub struct Status {
    standing: AtomicU8,
    generation: AtomicU64,
    engine: Mutex<Option<EngineKind>>,
    transport: Mutex<Option<TransportKind>>,
    failover: Mutex<Option<Failover>>,
    resync: Mutex<Option<ResyncProgress>>,
    /// The machine's counters.
    pub counters: Arc<Counters>,
}

/// An answer to `lockstep status`.
#[derive(Debug, Clone, Serialize)]
pub struct StatusReport {
    /// What this process is at the moment.
    pub role: Standing,
    /// Generation of the pairing; 0 before there is one.
    pub generation: u64,
    /// What executes the guest.
    pub engine: Option<EngineKind>,
    /// What carries the log.
    pub transport: Option<TransportKind>,
    /// How the last failover went, if there was one.
    pub failover: Option<Failover>,
    /// How far the copies of the disks are equal, or what it took, if each side has its own.
    pub resync: Option<ResyncProgress>,
    /// Everything that is counted.
    pub counters: Snapshot,
}

impl Status {
    /// Says where the machine stands now.
    pub fn stand(&self, standing: Standing) {
        // Relaxed: a word to be shown, pairs with nothing.
        self.standing.store(standing as u8, Ordering::Relaxed);
    }

    pub(super) fn pair(&self, generation: u64, transport: TransportKind) {
        // Relaxed: a number to be shown, pairs with nothing.
        self.generation.store(generation, Ordering::Relaxed);
        *lock(&self.transport) = Some(transport);
    }

    pub(super) fn engine(&self, engine: EngineKind) {
        *lock(&self.engine) = Some(engine);
    }

    pub(super) fn resync(&self, progress: ResyncProgress) {
        *lock(&self.resync) = Some(progress);
    }

    pub(super) fn failover(&self, failover: Failover) {
        *lock(&self.failover) = Some(failover);
    }

    /// The state of affairs.
    #[must_use]
    pub fn report(&self) -> StatusReport {
        // Relaxed, both: numbers to be shown, they pair with nothing.
        let standing = usize::from(self.standing.load(Ordering::Relaxed));
        StatusReport {
            role: Standing::ALL
                .get(standing)
                .copied()
                .unwrap_or(Standing::Waiting),
            generation: self.generation.load(Ordering::Relaxed),
            engine: *lock(&self.engine),
            transport: *lock(&self.transport),
            failover: lock(&self.failover).clone(),
            resync: *lock(&self.resync),
            counters: self.counters.snapshot(),
        }
    }
}

/// Nothing is left half-written by a panic under these locks: each guards one plain value.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
