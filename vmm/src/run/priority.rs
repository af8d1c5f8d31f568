//! Going before all ordinary threads of the host.

use std::io;

use crate::settings::{CpuSettings, Wait};

/// Whether the receiver is to go first. An acknowledgement that waits for its turn holds the primary's
/// outputs; but a receiver that goes first takes its time from the replaying thread, unless that has a
/// core of its own, and a failover waits for what is not replayed. One that never sleeps would leave no
/// time at all, and is not put first.
pub(super) fn of_receiver(cpu: &CpuSettings) -> bool {
    cpu.receiver_real_time && cpu.receive_wait != Wait::Spin
}

/// Puts the calling thread before all ordinary ones, where the host lets it.
pub(super) fn go_first(whose: &str) {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread; the kernel reads the structure and keeps nothing.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    if result != 0 {
        let why = io::Error::last_os_error();
        tracing::debug!(%why, whose, "no priority over other threads (needs CAP_SYS_NICE)");
    }
}
