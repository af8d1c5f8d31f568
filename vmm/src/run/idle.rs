//! How a thread with nothing to do waits: it looks without sleeping for as long as its policy says,
//! then sleeps in `ppoll` on everything that could end the wait.

use lockstep_perf::stamp;
use lockstep_ringbuf::SpinWorth;
use rustix::event::{PollFd, Timespec, poll};

use crate::settings::Wait;

/// A waiting policy.
#[derive(Debug, Clone, Copy)]
pub struct Idle {
    wait: Wait,
    spin_ns: u64,
    spin: SpinWorth,
}

impl Idle {
    /// `spin_us` counts only for [`Wait::SpinThenBlock`].
    #[must_use]
    pub const fn new(wait: Wait, spin_us: u32) -> Self {
        Self {
            wait,
            spin_ns: spin_us as u64 * 1000,
            spin: SpinWorth::new(),
        }
    }

    /// Until when a wait that starts at `now` looks without sleeping; both on [`stamp::now`]'s clock.
    #[must_use]
    pub const fn spin_until(&self, now: u64) -> u64 {
        match self.wait {
            Wait::Spin => u64::MAX,
            Wait::SpinThenBlock if self.spin.worth() => now.saturating_add(self.spin_ns),
            Wait::SpinThenBlock | Wait::Block => now,
        }
    }

    /// A wait that began at `since` has ended at `now`. Where spinning was in vain for a while,
    /// [`Idle::spin_until`] leaves it out.
    pub const fn ended(&mut self, since: u64, now: u64) {
        self.spin.ended(now.saturating_sub(since), self.spin_ns);
    }
}

/// Sleeps until one of `sources` is ready or `until` (on [`stamp::now`]'s clock) has come. Returns
/// early on a signal: the caller looks at everything again in any case.
pub fn sleep(sources: &mut [PollFd<'_>], until: u64) {
    let Some(left) = until.checked_sub(stamp::now()) else {
        return;
    };
    let timeout = Timespec {
        tv_sec: i64::try_from(left / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(left % 1_000_000_000).unwrap_or(0),
    };
    // EINTR is a reason to look again; no other error can come of descriptors that are borrowed.
    let _ = poll(sources, Some(&timeout));
}
