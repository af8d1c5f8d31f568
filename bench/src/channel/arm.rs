//! What is measured: a transport, its knobs, and how both ends wait.

use std::fmt;
use std::time::Duration;

use lockstep_logchan::transport::shm::ShmAck;
use lockstep_ringbuf::WaitPolicy;

/// How both ends wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Both spin.
    Spin,
    /// Both spin for a while and then sleep.
    SpinThenBlock,
    /// Both sleep.
    Block,
}

/// Who flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// The committing thread.
    Inline,
    /// A thread of its own, wherever the scheduler puts it.
    Core,
}

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The yardstick: `send` and `recv` of the same number of bytes, and nothing else.
    Bare,
    /// Shared memory.
    Shm(ShmAck),
    /// TCP through `io_uring`.
    Tcp {
        /// Who flushes.
        flush: Flush,
        /// A kernel thread submits.
        sqpoll: bool,
        /// Zero-copy sends.
        send_zc: bool,
        /// `SO_BUSY_POLL`, microseconds.
        busy_poll_us: u32,
    },
}

impl Transport {
    /// TCP with every knob at its default.
    #[must_use]
    pub const fn plain_tcp() -> Self {
        Self::Tcp {
            flush: Flush::Inline,
            sqpoll: false,
            send_zc: false,
            busy_poll_us: 0,
        }
    }
}

/// One thing measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arm {
    /// How the bytes travel.
    pub transport: Transport,
    /// How both ends wait.
    pub waiting: Waiting,
}

/// How long `SpinThenBlock` spins.
const SPIN: Duration = Duration::from_micros(20);

impl Waiting {
    /// As the channel has it.
    #[must_use]
    pub const fn policy(self) -> WaitPolicy {
        match self {
            Self::Spin => WaitPolicy::Spin,
            Self::SpinThenBlock => WaitPolicy::SpinThenBlock { spin: SPIN },
            Self::Block => WaitPolicy::Block,
        }
    }
}

impl Arm {
    /// The yardsticks, the transports under each way of waiting, and each knob by itself.
    #[must_use]
    pub fn all() -> Vec<Self> {
        use Waiting::{Block, Spin, SpinThenBlock};
        let tcp = |flush, sqpoll, send_zc, busy_poll_us| Transport::Tcp {
            flush,
            sqpoll,
            send_zc,
            busy_poll_us,
        };
        let shm = Transport::Shm;
        [
            (Transport::Bare, Spin),
            (Transport::Bare, SpinThenBlock),
            (Transport::Bare, Block),
            (Transport::plain_tcp(), Spin),
            (Transport::plain_tcp(), SpinThenBlock),
            (Transport::plain_tcp(), Block),
            (tcp(Flush::Core, false, false, 0), SpinThenBlock),
            (tcp(Flush::Inline, true, false, 0), SpinThenBlock),
            (tcp(Flush::Inline, false, true, 0), SpinThenBlock),
            (tcp(Flush::Inline, false, false, 50), SpinThenBlock),
            (shm(ShmAck::Committed), SpinThenBlock),
            (shm(ShmAck::Received), Spin),
            (shm(ShmAck::Received), SpinThenBlock),
            (shm(ShmAck::Received), Block),
        ]
        .map(|(transport, waiting)| Self { transport, waiting })
        .into()
    }

    /// A name for reports: transport, knobs, waiting.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}", self.transport, self.waiting)
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spin => "spin",
            Self::SpinThenBlock => "spin-then-block",
            Self::Block => "block",
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare => f.write_str("bare-tcp"),
            Self::Shm(ShmAck::Committed) => f.write_str("shm-committed"),
            Self::Shm(ShmAck::Received) => f.write_str("shm-received"),
            Self::Tcp {
                flush,
                sqpoll,
                send_zc,
                busy_poll_us,
            } => {
                f.write_str("tcp")?;
                if *flush == Flush::Core {
                    f.write_str("-core")?;
                }
                if *sqpoll {
                    f.write_str("-sqpoll")?;
                }
                if *send_zc {
                    f.write_str("-send-zc")?;
                }
                if *busy_poll_us > 0 {
                    write!(f, "-busy-poll-{busy_poll_us}us")?;
                }
                Ok(())
            }
        }
    }
}
