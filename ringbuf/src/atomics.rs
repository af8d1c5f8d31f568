//! The memory operations that the cursor protocol is made of, as a trait, so that the tests run
//! exactly the shipping protocol on loom's atomics and explore every interleaving of it.

use std::sync::atomic::{self, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};
use rustix::thread::{MembarrierCommand, membarrier};

/// An atomic integer.
pub(crate) trait Atom<T> {
    fn load(&self, order: Ordering) -> T;
    fn store(&self, value: T, order: Ordering);
    fn swap(&self, value: T, order: Ordering) -> T;
}

/// Atomics, fences and futexes.
///
/// The fences come in two kinds, after P1202 (asymmetric fences). Two full fences order a store
/// before one and a load behind it against the same on the other side (Dekker). A light fence paired
/// with a heavy one does the same, and costs nothing where it stands on the hot path: the heavy side
/// pays for both. Two light fences order nothing.
pub(crate) trait Atomics {
    type U64: Atom<u64> + Default;
    type U32: Atom<u32> + Default;

    fn full_fence();
    fn light_fence();
    fn heavy_fence();

    /// Sleeps while `word` holds `expected`; may return for no reason. The comparison and the
    /// falling asleep are one step as seen by `futex_wake`.
    fn futex_wait(word: &Self::U32, expected: u32, timeout: Option<Duration>);
    /// Wakes whoever sleeps on `word`.
    fn futex_wake(word: &Self::U32);
}

/// The processor's atomics, the kernel's futexes and `membarrier(2)`.
pub(crate) struct Native;

impl Native {
    /// Makes this process one whose threads a heavy fence, from whatever process, reaches.
    pub(crate) fn register() -> rustix::io::Result<()> {
        membarrier(MembarrierCommand::RegisterGlobalExpedited)
    }
}

impl Atomics for Native {
    type U64 = AtomicU64;
    type U32 = AtomicU32;

    #[inline]
    fn full_fence() {
        atomic::fence(Ordering::SeqCst);
    }

    #[inline]
    fn light_fence() {
        atomic::compiler_fence(Ordering::SeqCst);
    }

    fn heavy_fence() {
        // Both sides registered before they got hold of a ring, and the command needs no more than
        // that the kernel knows it, and for a moment memory for a set of processors.
        loop {
            match membarrier(MembarrierCommand::GlobalExpedited) {
                Ok(()) => return,
                Err(Errno::NOMEM) => std::thread::yield_now(),
                Err(errno) => {
                    panic!("membarrier(GLOBAL_EXPEDITED) failed after its registration: {errno}")
                }
            }
        }
    }

    fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        // A time too long for the kernel (292 billion years) is no limit.
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        // Not `PRIVATE`: the two sides are two processes. Every outcome (woken, the word differs,
        // a signal, time is up) sends the caller back to look at the cursor.
        let _woken = futex::wait(word, Flags::empty(), expected, timeout.as_ref());
    }

    #[cold]
    fn futex_wake(word: &AtomicU32) {
        // Fails only for an address that is not ours; there is at most one sleeper.
        let _count = futex::wake(word, Flags::empty(), 1);
    }
}

macro_rules! native_atom {
    ($atom:ty, $value:ty) => {
        impl Atom<$value> for $atom {
            #[inline]
            fn load(&self, order: Ordering) -> $value {
                <$atom>::load(self, order)
            }
            #[inline]
            fn store(&self, value: $value, order: Ordering) {
                <$atom>::store(self, value, order);
            }
            #[inline]
            fn swap(&self, value: $value, order: Ordering) -> $value {
                <$atom>::swap(self, value, order)
            }
        }
    };
}
native_atom!(AtomicU64, u64);
native_atom!(AtomicU32, u32);
