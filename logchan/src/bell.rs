//! A sleeper and whoever wakes it, by futex, between threads or processes.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use lockstep_ringbuf::WaitPolicy;
use rustix::thread::futex::{self, Flags, Timespec};

/// Looks between two readings of the clock while spinning.
const LOOKS_PER_CLOCK: u32 = 64;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

/// One sleeper at a time may wait at it; anybody may ring it. All zero is a bell at which nobody
/// sleeps, so it can lie in fresh shared memory; a hostile peer that writes to it causes useless
/// wake-ups and sleeps that last until their time limit, nothing else.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Bell(AtomicU32);

impl Bell {
    /// To be called after what the sleeper looks for was stored. Costs a fence while nobody sleeps.
    pub(crate) fn ring(&self) {
        // Pairs with the fence in `sleep`: either this load sees ASLEEP, or the sleeper's look sees
        // what was stored before.
        fence(Ordering::SeqCst);
        if self.0.load(Ordering::Relaxed) == ASLEEP
            // Relaxed: hands over no data; what was stored before is ordered by the fence.
            && self.0.swap(AWAKE, Ordering::Relaxed) == ASLEEP
        {
            // Fails only for an address that is not ours.
            let _woken = futex::wake(&self.0, Flags::empty(), 1);
        }
    }

    /// Waits, as `policy` says, until `look` is true; returns whether it was before time was up.
    pub(crate) fn wait(
        &self,
        policy: &WaitPolicy,
        timeout: Duration,
        mut look: impl FnMut() -> bool,
    ) -> bool {
        if look() {
            return true;
        }
        let start = Instant::now();
        let spin = match policy {
            WaitPolicy::Spin => timeout,
            WaitPolicy::SpinThenBlock { spin } => (*spin).min(timeout),
            WaitPolicy::Block => Duration::ZERO,
        };
        while start.elapsed() < spin {
            for _ in 0..LOOKS_PER_CLOCK {
                if look() {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() || self.sleep(left, &mut look) {
                return look();
            }
        }
    }

    /// Sleeps until rung, unless `look` is true once the sleep was announced; returns that.
    fn sleep(&self, timeout: Duration, look: &mut impl FnMut() -> bool) -> bool {
        self.0.store(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `ring`.
        fence(Ordering::SeqCst);
        let seen = look();
        if !seen {
            // Not private: the waker may be another process. Whatever ends it, the caller looks.
            let timeout = Timespec::try_from(timeout).ok();
            let _woken = futex::wait(&self.0, Flags::empty(), ASLEEP, timeout.as_ref());
        }
        // Relaxed: a waker that still reads ASLEEP makes one useless wake-up.
        self.0.store(AWAKE, Ordering::Relaxed);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn no_wake_up_is_lost_between_two_threads() {
        let shared = Arc::new((
            Bell::default(),
            AtomicU64::new(0),
            Bell::default(),
            AtomicU64::new(0),
        ));
        let rounds = 2000;
        let peer = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for round in 1..=rounds {
                let seen = || peer.1.load(Ordering::Acquire) >= round;
                assert!(
                    peer.0
                        .wait(&WaitPolicy::Block, Duration::from_secs(10), seen),
                    "round {round}"
                );
                peer.3.store(round, Ordering::Release);
                peer.2.ring();
            }
        });
        for round in 1..=rounds {
            shared.1.store(round, Ordering::Release);
            shared.0.ring();
            let seen = || shared.3.load(Ordering::Acquire) >= round;
            assert!(
                shared
                    .2
                    .wait(&WaitPolicy::Block, Duration::from_secs(10), seen),
                "round {round}"
            );
        }
        thread.join().unwrap();
    }

    #[test]
    fn a_wait_for_nothing_ends_in_time() {
        let start = Instant::now();
        assert!(!Bell::default().wait(&WaitPolicy::Block, Duration::from_millis(20), || false));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }
}
