//! Both processes on one host share the ring.
//!
//! The primary creates the ring and a [`ControlPage`], and passes both over a Unix stream socket
//! after the same hello as on TCP. That socket carries nothing afterwards but wake-ups: its end is
//! the peer's death. What an acknowledgement means is a knob, [`ShmAck`].
//!
//! Nothing enters the kernel while neither side sleeps, but for a look at the socket every
//! millisecond.

mod backup;
mod control;
mod pass;
mod primary;

use std::time::Duration;

pub use backup::ShmBackup;
pub(crate) use control::ControlPage;
pub use pass::{ShmParts, receive_parts, send_parts};
pub use primary::ShmPrimary;

use lockstep_ringbuf::WaitPolicy;

/// What an acknowledgement means on shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShmAck {
    /// The entry is committed to the ring that both processes map: it outlives the primary. Once the
    /// backup has sealed the ring, nothing is acknowledged any more.
    Committed,
    /// The backup's receiving thread has read and checked the entry.
    Received,
}

/// Knobs of the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShmOptions {
    /// What an acknowledgement means; both sides alike.
    pub ack: ShmAck,
    /// How the side waits that this is given to.
    pub wait: WaitPolicy,
    /// Acknowledgements without progress for this long are a stall.
    pub stall_timeout: Duration,
}

/// How often the socket is looked at while nobody sleeps at it.
const LOOK_NS: u64 = 1_000_000;

/// Longest sleep at a futex, which no death of the peer ends.
const NAP: Duration = Duration::from_millis(2);
