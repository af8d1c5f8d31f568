//! Bounce buffers: where disk data is between guest memory and the disk (paper 3.4).
//!
//! The machine decides which buffer a request gets, so that both replicas decide alike; the host's
//! I/O reads and writes the memory, and never the guest's.

mod allocator;
mod region;

pub use allocator::BounceAllocator;
pub use region::{BOUNCE_ALIGN, BounceRegion};
