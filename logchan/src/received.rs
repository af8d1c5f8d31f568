//! How far a receiving thread has come in a ring that another process writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_ringbuf::WaitPolicy;

use crate::bell::Bell;

/// The receiving thread has checked everything before this byte of the log (counted from the ring's
/// start); the replaying thread of the same process reads no further.
#[derive(Debug, Clone)]
pub struct ReceivedCursor(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cursor: AtomicU64,
    bell: Bell,
}

impl ReceivedCursor {
    /// A receiver that stands at byte `cursor`.
    #[must_use]
    pub fn at(cursor: u64) -> Self {
        Self(Arc::new(Shared {
            cursor: AtomicU64::new(cursor),
            bell: Bell::default(),
        }))
    }

    /// Where the receiver stands.
    #[must_use]
    pub fn get(&self) -> u64 {
        // Acquire: pairs with the Release in `advance`; the check of the bytes before it is done.
        self.0.cursor.load(Ordering::Acquire)
    }

    /// The receiver has checked everything before `cursor`. Wakes nobody.
    pub fn advance(&self, cursor: u64) {
        // Release: pairs with the Acquire in `get`.
        self.0.cursor.store(cursor, Ordering::Release);
    }

    /// Wakes the reader, if it sleeps.
    pub(crate) fn wake_reader(&self) {
        self.0.bell.ring();
    }

    /// Waits until the receiver stands beyond `cursor`, or `enough` is true; returns whether it stands
    /// there.
    pub(crate) fn wait_beyond(
        &self,
        cursor: u64,
        policy: &WaitPolicy,
        timeout: Duration,
        enough: impl Fn() -> bool,
    ) -> bool {
        let look = || self.get() > cursor || enough();
        self.0.bell.wait(policy, timeout, look) && self.get() > cursor
    }
}
