//! Waiting: spinning, announcing that one sleeps, and waking.
//!
//! Each side has a *sleep word*. The sleeper and the waker play Dekker's game on it:
//!
//! ```text
//! sleeper                              waker
//!   word := ASLEEP                       cursor := ...      (release)
//!   full fence                    ↔      full fence
//!   look at the cursor; not there?       word = ASLEEP? then word := AWAKE, wake
//!   futex_wait(word = ASLEEP)
//! ```
//!
//! The two fences are sequentially consistent, so either the sleeper sees the cursor or the waker
//! sees the word. If the waker sees it before the sleeper is in the kernel, the futex finds another
//! value and does not sleep.
//!
//! A full fence at each commit would cost the producer the emptying of its store buffer each time,
//! for a peer that perhaps only ever spins. So the word begins as `NEVER`, and the waker that reads
//! that does nothing. The first time that a side is about to sleep it moves its word to `AWAKE` and
//! makes a heavy fence (`membarrier(2)`, once in its life): whoever read `NEVER` did so before, and
//! what it published before is seen by the look that follows.

use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::{Duration, Instant};

use crate::atomics::{Atom, Atomics};

/// States of a sleep word.
pub(crate) mod sleep {
    /// This side never slept: publishing needs no fence.
    pub(crate) const NEVER: u32 = 0;
    /// This side sleeps at times, but not now.
    pub(crate) const AWAKE: u32 = 1;
    /// This side sleeps or is about to.
    pub(crate) const ASLEEP: u32 = 2;
}

/// How a side waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Never sleeps: lowest latency, one core gone, and on that core nobody else's work gets done.
    Spin,
    /// Spins for a while, then sleeps. A wait that ends while spinning costs neither side a system
    /// call.
    SpinThenBlock {
        /// How long to spin first.
        spin: Duration,
    },
    /// Sleeps at once; the peer pays a system call to wake it.
    Block,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Waited {
    /// What was waited for is there.
    Ready,
    /// Time is up and it is not there.
    TimedOut,
    /// The ring is sealed, and what was waited for can no longer come.
    Sealed,
    /// The peer corrupted its cursor, as `fault` of the waiting side says; nothing can come.
    Corrupt,
}

/// Looks between two readings of the clock; a reading costs about as much as this many looks.
const LOOKS_PER_CLOCK: u32 = 64;

/// Waits, as `policy` says, until `look` returns something. `word` is the waiting side's own.
pub(crate) fn wait<A: Atomics>(
    word: &A::U32,
    policy: &WaitPolicy,
    timeout: Option<Duration>,
    mut look: impl FnMut() -> Option<Waited>,
) -> Waited {
    if let Some(waited) = look() {
        return waited;
    }
    if *policy != WaitPolicy::Block {
        // Most waits for a busy peer end here, without a look at the clock. The pause comes first: it
        // lets the peer get ahead, where looking at once would take its cache line from it each time.
        for _ in 0..LOOKS_PER_CLOCK {
            std::hint::spin_loop();
            if let Some(waited) = look() {
                return waited;
            }
        }
    }
    let start = Instant::now();
    // A time beyond the clock's range is no limit.
    let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
    let spin_until = match policy {
        WaitPolicy::Spin => None,
        WaitPolicy::SpinThenBlock { spin } => start.checked_add(*spin),
        WaitPolicy::Block => Some(start),
    };
    loop {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return look().unwrap_or(Waited::TimedOut);
        }
        if spin_until.is_none_or(|end| now < end) {
            for _ in 0..LOOKS_PER_CLOCK {
                if let Some(waited) = look() {
                    return waited;
                }
                std::hint::spin_loop();
            }
        } else {
            let left = deadline.map(|deadline| deadline - now);
            if let Some(waited) = sleep_unless::<A>(word, left, &mut look) {
                return waited;
            }
        }
    }
}

/// Sleeps until woken, unless `look` returns something after the sleep was announced. May return
/// `None` for no reason.
pub(crate) fn sleep_unless<A: Atomics>(
    word: &A::U32,
    timeout: Option<Duration>,
    mut look: impl FnMut() -> Option<Waited>,
) -> Option<Waited> {
    if word.load(Relaxed) == sleep::NEVER {
        word.store(sleep::AWAKE, Relaxed);
        // Pairs with the light fence in `wake`: see the module's page.
        A::heavy_fence();
    }
    word.store(sleep::ASLEEP, Relaxed);
    // Pairs with the full fence in `wake`.
    A::full_fence();
    let seen = look();
    if seen.is_none() {
        A::futex_wait(word, sleep::ASLEEP, timeout);
    }
    // Relaxed: a waker that still reads ASLEEP makes one wake-up too many, and that is all.
    word.store(sleep::AWAKE, Relaxed);
    seen
}

/// Wakes the side whose word this is, if it sleeps. To be called after what it may be waiting for
/// was published.
#[inline]
pub(crate) fn wake<A: Atomics>(word: &A::U32) {
    // Pairs with the heavy fence in `sleep_unless`: if NEVER is read here, the peer's look comes
    // after everything we published.
    A::light_fence();
    if word.load(Relaxed) != sleep::NEVER {
        // Pairs with the full fence in `sleep_unless`.
        A::full_fence();
        // The swap takes the announcement away, so that one sleep costs one system call. AcqRel is
        // more than it needs: it hands over no data, the futex and the cursor do.
        if word.load(Relaxed) == sleep::ASLEEP && word.swap(sleep::AWAKE, AcqRel) == sleep::ASLEEP {
            A::futex_wake(word);
        }
    }
}
