//! Two hosts, TCP, `io_uring`.
//!
//! The primary sends from its ring's registered memory, at most one send at a time, so that what is
//! committed while one is under way goes with the next. The backup receives straight into the free
//! part of its own ring, checks there, commits whole entries and acknowledges.

mod backup;
mod primary;
mod socket;

use std::time::Duration;

use lockstep_ringbuf::WaitPolicy;

pub use backup::TcpBackup;
pub use primary::TcpPrimary;

use crate::protocol::receiver::AckPolicy;

/// The congestion control that does best here. BBR, which many hosts have as their default, paces:
/// it holds segments back by timers for the sake of queues that a log channel between two hosts of one
/// site does not have. Measured on loopback: 14 % off a bare round trip, 8 to 20 % more log bytes a
/// second.
pub const CONGESTION_CONTROL: &str = "cubic";

/// Knobs of both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpOptions {
    /// How the side waits that this is given to.
    pub wait: WaitPolicy,
    /// A kernel thread submits. Wins where it has a core of its own and sends are frequent.
    pub sqpoll: bool,
    /// Sends without copying into socket buffers (the primary; Linux 6.0). Wins for large batches on
    /// a real network device; on loopback the kernel copies anyway, and later.
    pub send_zc: bool,
    /// Polls the network device for this long in each wait, microseconds; 0 is off. Needs
    /// `CAP_NET_ADMIN`; does nothing on loopback.
    pub busy_poll_us: u32,
    /// `TCP_CONGESTION`, by the kernel's name; `None` leaves the host's default.
    pub congestion_control: Option<&'static str>,
    /// When entries that do not ask for it are acknowledged (the backup).
    pub ack: AckPolicy,
    /// Entries sent and nothing acknowledged for this long are a stall (the primary).
    pub stall_timeout: Duration,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            wait: WaitPolicy::SpinThenBlock {
                spin: Duration::from_micros(20),
            },
            sqpoll: false,
            send_zc: false,
            busy_poll_us: 0,
            congestion_control: Some(CONGESTION_CONTROL),
            ack: AckPolicy {
                entries: 64,
                delay_ns: 1_000_000,
            },
            stall_timeout: Duration::from_millis(100),
        }
    }
}

/// Tokens by which completions are told apart.
mod token {
    pub(super) const RECEIVE: u64 = 1;
    pub(super) const SEND: u64 = 2;
    pub(super) const LIFELINE: u64 = 0x100;
}

/// How long a dropped channel waits for the kernel to give its buffers back.
const DROP_PATIENCE: Duration = Duration::from_millis(100);
