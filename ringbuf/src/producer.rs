//! The writing end.

use std::time::Duration;

use crate::atomics::Native;
use crate::cursor::ProducerCursor;
use crate::error::{CursorFault, RingFull};
use crate::ring::Claim;
use crate::wait::{self, WaitPolicy, Waited};

/// Reserves, writes in place, commits. Dropping it loses what was reserved and not committed.
pub struct Producer {
    cursor: ProducerCursor,
    claim: Claim,
}

impl Producer {
    pub(crate) fn new(claim: Claim, cursor: ProducerCursor) -> Self {
        Self { cursor, claim }
    }

    /// Bytes that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.claim.mapping().capacity()
    }

    /// Bytes ever committed.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.cursor.committed()
    }

    /// Bytes free now, which only this end makes fewer.
    #[must_use]
    pub fn free(&self) -> usize {
        self.cursor.free(self.claim.mapping().control()) as usize
    }

    /// The `len` bytes behind the committed cursor, to be written in place. They hold whatever was
    /// there before. Nobody sees them until [`Producer::commit`]; a further `reserve` takes the place
    /// of this one and begins at the same byte.
    ///
    /// # Errors
    /// [`RingFull`] if they are not free. If the consumer corrupted its cursor, it stays so, and
    /// [`Producer::fault`] says why.
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Result<&mut [u8], RingFull> {
        let mapping = self.claim.mapping();
        match self.cursor.reserve(mapping.control(), len as u64) {
            Ok(()) => {
                let start = mapping.at(self.cursor.committed());
                // SAFETY: `len <= free <= capacity` bytes from here are mapped while `self.claim`
                // lives, and initialised, being a file's. Exclusive: the consumer reads only below
                // `committed` and released what was here before (Acquire in `free`); another slice of
                // ours would borrow `self`; the second mapping of the same page is at another
                // address, and `len <= capacity` keeps this slice from meeting itself there.
                Ok(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) })
            }
            Err(free) => Err(RingFull {
                requested: len,
                free: free as usize,
                capacity: mapping.capacity(),
            }),
        }
    }

    /// Publishes the first `len` of the reserved bytes, and wakes the consumer if it sleeps. What is
    /// left of the reservation may be committed later.
    ///
    /// # Panics
    /// If fewer are reserved.
    #[inline]
    pub fn commit(&mut self, len: usize) {
        self.publish(len);
        self.wake_consumer();
    }

    /// As [`Producer::commit`], without the system call that waking may cost: for whoever has
    /// something more urgent to do first, and calls [`Producer::wake_consumer`] right after it. A
    /// consumer that sleeps goes on sleeping until then.
    ///
    /// # Panics
    /// If fewer are reserved.
    #[inline]
    pub fn publish(&mut self, len: usize) {
        self.cursor
            .publish(self.claim.mapping().control(), len as u64);
    }

    /// Wakes the consumer if it sleeps.
    #[inline]
    pub fn wake_consumer(&self) {
        self.cursor.wake_consumer(self.claim.mapping().control());
    }

    /// Whether the consumer sealed the ring. `false` after a commit means that the consumer will see
    /// that commit, seal or no seal: the entry outlives this process.
    #[inline]
    #[must_use]
    pub fn sealed(&self) -> bool {
        self.cursor.sealed(self.claim.mapping().control())
    }

    /// Waits until `len` bytes are free. [`Waited::Sealed`] if the ring is sealed and they are not.
    ///
    /// # Panics
    /// If `len` is more than the capacity: it would wait for ever.
    pub fn wait_free(&self, len: usize, policy: &WaitPolicy, timeout: Option<Duration>) -> Waited {
        assert!(
            len <= self.capacity(),
            "waiting for {len} free bytes in a ring of {}",
            self.capacity()
        );
        let control = self.claim.mapping().control();
        wait::wait::<Native>(&control.producer_sleep.0, policy, timeout, || {
            self.cursor.look_free(control, len as u64)
        })
    }

    /// What the consumer did to its cursor, once it was found out. The ring is then to be given up.
    #[must_use]
    pub fn fault(&self) -> Option<CursorFault> {
        self.cursor.fault()
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("committed", &self.committed())
            .field("free", &self.free())
            .finish_non_exhaustive()
    }
}
