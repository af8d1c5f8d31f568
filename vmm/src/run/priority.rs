//! Going before all ordinary threads of the host.

use std::io;

use crate::settings::{CpuSettings, Wait};

/// A heartbeat that waits for its turn on a busy core is a peer that is taken for dead.
pub(super) const fn of_heartbeats(cpu: &CpuSettings) -> bool {
    cpu.real_time
}

/// An acknowledgement that waits for its turn holds the primary's outputs. A receiver that never
/// sleeps would take its core from all others, the replaying thread among them, so it gets no priority.
pub(super) fn of_receiver(cpu: &CpuSettings) -> bool {
    cpu.real_time && cpu.receive_wait != Wait::Spin
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
