//! The devices of the machine. Each is a small state and what accesses do to it; none knows a
//! clock, a file or a thread: the time of an access is an argument.

mod chain;
pub mod interrupts;
pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod pm1;
pub mod pm_timer;
pub mod power;
pub mod rtc;
pub mod uart;
pub mod virtio_blk;
pub mod virtio_mmio;
pub mod virtio_net;
pub mod virtio_rng;

/// A saved state that its device cannot be in, or that does not fit this machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the saved machine state is damaged or of another machine ({0}); take a new one")]
pub struct DamagedState(
    /// Which device, and what of it.
    pub &'static str,
);
