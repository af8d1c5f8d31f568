//! The reading end.

use std::ptr::NonNull;
use std::time::Duration;

use crate::atomics::Native;
use crate::cursor::ConsumerCursor;
use crate::error::CursorFault;
use crate::pace::Pace;
use crate::ring::Claim;
use crate::wait::{self, WaitPolicy, Waited};

/// Reads in place, releases. Dropping it releases nothing: the next consumer begins where this one
/// left off.
pub struct Consumer {
    cursor: ConsumerCursor,
    pace: Pace,
    claim: Claim,
}

impl Consumer {
    pub(crate) fn new(claim: Claim, cursor: ConsumerCursor) -> Self {
        Self {
            cursor,
            pace: Pace::new(claim.mapping().capacity() as u64),
            claim,
        }
    }

    /// Bytes that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.claim.mapping().capacity()
    }

    /// What is committed and not released as far as is known without looking at the producer's cursor,
    /// contiguous. A look takes the cursor's cache line from the producer, so who reads entry by entry
    /// looks (by [`Consumer::readable`] or a wait) only when this is empty.
    #[inline]
    #[must_use]
    pub fn known(&self) -> &[u8] {
        self.between(self.cursor.released(), self.cursor.known())
    }

    /// Everything committed and not released, contiguous.
    ///
    /// If the producer corrupted its cursor, this stays what it was before, and [`Consumer::fault`]
    /// says why.
    #[inline]
    #[must_use]
    pub fn readable(&self) -> &[u8] {
        self.readable_from(self.cursor.released())
    }

    /// What is committed from byte number `cursor` on, contiguous: for a reader that holds on to
    /// earlier bytes until later (until a send is acknowledged, say).
    ///
    /// # Panics
    /// If `cursor` is released already or beyond what is committed.
    #[inline]
    #[must_use]
    pub fn readable_from(&self, cursor: u64) -> &[u8] {
        self.between(cursor, self.cursor.look(self.claim.mapping().control()))
    }

    /// The bytes from number `cursor` to `committed`, which came from `self.cursor`.
    #[inline]
    fn between(&self, cursor: u64, committed: u64) -> &[u8] {
        let held = committed.wrapping_sub(self.cursor.released());
        let len = committed.wrapping_sub(cursor);
        assert!(
            len <= held,
            "read from byte {cursor}; from {} to {committed} are readable",
            self.cursor.released()
        );
        let start = self.claim.mapping().at(cursor);
        // SAFETY: `len <= held <= capacity` (`look` adopts nothing else), so the bytes from here are
        // mapped while `self.claim` lives, and initialised: the Acquire in `look`, which found
        // `committed`, has made the producer's writes to them visible. A producer writes them again
        // only after `release`, which needs `&mut self` and so ends this borrow. A peer outside the
        // protocol may write them at any time, as the crate's page says; it is another process, whose
        // stores are plain memory changing.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len as usize) }
    }

    /// Bytes ever committed, as far as this end has looked: everything below it is readable.
    #[inline]
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.cursor.look(self.claim.mapping().control())
    }

    /// Bytes ever released: the number of the first readable byte.
    #[inline]
    #[must_use]
    pub fn released(&self) -> u64 {
        self.cursor.released()
    }

    /// The same as [`Consumer::released`]: where reading begins.
    #[inline]
    #[must_use]
    pub fn cursor(&self) -> u64 {
        self.cursor.released()
    }

    /// Gives the first `len` readable bytes back to the producer, and wakes it if it sleeps.
    ///
    /// # Panics
    /// If fewer were read.
    #[inline]
    pub fn release(&mut self, len: usize) {
        self.cursor
            .release(self.claim.mapping().control(), len as u64);
    }

    /// Seals the ring for good, and returns the committed cursor at which the log ends: what is
    /// below is readable, nothing beyond will ever be, and a producer that commits anything beyond
    /// finds [`Producer::sealed`](crate::Producer::sealed) true right after. Sealing again returns the
    /// same.
    pub fn seal(&mut self) -> u64 {
        self.cursor.seal(self.claim.mapping().control())
    }

    /// Waits until more than `beyond` bytes were ever committed. [`Waited::Sealed`] if the ring was
    /// sealed before they were. Pass `released() + readable().len()` to wait for the next commit.
    ///
    /// A reader that spins and keeps up with a stream of commits is made to look at most every two
    /// microseconds, so that it does not take the cache lines from under the producer's hands: that
    /// costs more than it brings forward.
    pub fn wait_committed(
        &self,
        beyond: u64,
        policy: &WaitPolicy,
        timeout: Option<Duration>,
    ) -> Waited {
        self.wait_committed_unless(beyond, policy, timeout, || false)
    }

    /// As [`Consumer::wait_committed`]; ends, as if time were up, when `enough` is true. Whoever makes
    /// it true then calls [`Ring::wake_consumer`](crate::Ring::wake_consumer).
    pub fn wait_committed_unless(
        &self,
        beyond: u64,
        policy: &WaitPolicy,
        timeout: Option<Duration>,
        enough: impl Fn() -> bool,
    ) -> Waited {
        let mapping = self.claim.mapping();
        let control = mapping.control();
        if *policy != WaitPolicy::Block && timeout.is_none_or(|timeout| timeout > Pace::MOST) {
            self.pace.keep();
            let found = self.cursor.look(control).wrapping_sub(beyond);
            // Beyond what `beyond` may be ahead: nothing.
            let found = (found as i64).max(0) as u64;
            self.pace.found(found);
        }
        let awaited = mapping.at(beyond);
        wait::wait::<Native>(&control.consumer_sleep.0, policy, timeout, || {
            fetch(awaited);
            let seen = self.cursor.look_beyond(control, beyond);
            seen.or_else(|| enough().then_some(Waited::TimedOut))
        })
    }

    /// What the producer did to its cursor, once it was found out. The ring is then to be given up.
    #[must_use]
    pub fn fault(&self) -> Option<CursorFault> {
        self.cursor.fault()
    }
}

/// Asks for the cache line where the awaited bytes begin. Once the producer has written it, this fetches
/// it while the look behind it still fetches the cursor: the two come over together, where reading on
/// the strength of the cursor would fetch one after the other.
#[inline]
fn fetch(awaited: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it reads nothing as far as the program can tell, faults nowhere
        // and changes nothing but caches. The address is mapped besides.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(awaited.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = awaited;
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("released", &self.released())
            .field("committed", &self.committed())
            .finish_non_exhaustive()
    }
}
