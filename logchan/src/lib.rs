//! Lockstep's logging channel: what a log entry is, and how the log gets from the primary to the
//! backup.
//!
//! - [`entry`]: the bytes of an entry and what makes them valid.
//! - [`writer`], [`reader`]: entries in the ring, written and read in place.
//! - [`protocol`]: hello, acknowledgement, credit, heartbeat. No I/O and no clock.
//! - [`file`]: a log saved for replay offline.
//! - [`fuzz`]: what any decoder of foreign bytes has to withstand.
//! - [`transport`]: shared memory and TCP, and the heartbeat socket.
//!
//! Nothing here knows what a VM is: positions, clocks and kinds pass through.

mod bell;
pub mod entry;
pub mod file;
pub mod fuzz;
pub mod protocol;
pub mod reader;
mod received;
pub mod transport;
pub mod writer;
