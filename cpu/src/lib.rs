//! A software x86-64 CPU that counts every instruction it retires.
pub mod bus;
pub mod state;
pub use bus::{Bus, MsrFault};
pub use state::{CpuState, DescriptorTable, Segment};
