//! How far the replay has come, from the replaying thread to whoever acknowledges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::shm::ControlPage;
use crate::entry::Sequence;
use crate::protocol::receiver::Replayed;

/// [`Replayed`] as two words that one thread writes and others glance at. All zero is "nothing
/// replayed".
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct ReportCells {
    sequence: AtomicU64,
    position: AtomicU64,
}

/// Where the replaying thread says how far it has come. The two values are a glance: a reader may
/// see a position that is newer than the sequence beside it.
#[derive(Debug, Clone)]
pub struct ReplayReport(Cells);

#[derive(Debug, Clone)]
enum Cells {
    Local(Arc<ReportCells>),
    /// Straight into the memory in which the primary looks.
    Shared(Arc<ControlPage>),
}

impl ReplayReport {
    pub(crate) fn local() -> Self {
        Self(Cells::Local(Arc::default()))
    }

    pub(crate) const fn shared(page: Arc<ControlPage>) -> Self {
        Self(Cells::Shared(page))
    }

    fn cells(&self) -> &ReportCells {
        match &self.0 {
            Cells::Local(cells) => cells,
            Cells::Shared(page) => page.report(),
        }
    }

    /// Everything up to `replayed.sequence` was replayed. A few plain stores.
    pub fn replayed(&self, replayed: Replayed) {
        self.cells().store(replayed);
    }

    /// What was last reported.
    #[must_use]
    pub fn get(&self) -> Replayed {
        self.cells().load()
    }
}

impl ReportCells {
    fn store(&self, replayed: Replayed) {
        self.position.store(replayed.position, Ordering::Relaxed);
        // Release: pairs with the Acquire in `load`, so that the position is never older than the
        // sequence.
        self.sequence.store(replayed.sequence.0, Ordering::Release);
    }

    pub(crate) fn load(&self) -> Replayed {
        // Acquire: pairs with the Release in `store`.
        let sequence = Sequence(self.sequence.load(Ordering::Acquire));
        let position = self.position.load(Ordering::Relaxed);
        Replayed { sequence, position }
    }
}
