//! The devices of the machine. Each is a small state and what accesses do to it; none knows a
//! clock, a file or a thread: the time of an access is an argument.

pub mod pic;
pub mod pit;
pub mod pm_timer;
pub mod power;
pub mod rtc;
pub mod uart;
pub mod virtio_mmio;
pub mod virtio_net;
