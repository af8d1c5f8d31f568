//! Why a channel cannot go on.

use std::io;

use lockstep_ringbuf::{CursorFault, RingError};

use crate::entry::EntryError;
use crate::protocol::ack::AckError;

/// A channel cannot be made, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer closed the connection, or died.
    #[error("the peer closed the channel ({how})")]
    Closed {
        /// What the kernel said.
        how: &'static str,
    },
    /// The backup sealed the shared ring: it takes this primary for dead and goes live. Ask the
    /// arbiter.
    #[error("the backup sealed the log and is going live; the arbiter decides who goes on")]
    Sealed,
    /// The backup acknowledges what cannot be.
    #[error("the backup broke the channel's protocol: {0}")]
    Ack(#[from] AckError),
    /// The primary sends what is no log.
    #[error("the primary broke the channel's protocol: {0}")]
    Entry(#[from] EntryError),
    /// The peer corrupted the shared ring.
    #[error(transparent)]
    Corrupt(#[from] CursorFault),
    /// The ring's ends are taken, or it could not be attached.
    #[error("the log ring: {0}")]
    Ring(#[from] RingError),
    /// `io_uring` cannot be used as asked.
    #[error(transparent)]
    Uring(#[from] UringError),
    /// A system call failed.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// `io_uring` cannot be used as asked.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// No ring at all.
    #[error(
        "setting up io_uring: {source}; the tcp transport needs Linux 5.19 or later with \
         kernel.io_uring_disabled = 0 and a seccomp profile that lets io_uring through"
    )]
    Setup {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel lacks an operation.
    #[error("this kernel's io_uring lacks {operation}, found opcodes up to {highest}: {remedy}")]
    Lacks {
        /// Its name.
        operation: &'static str,
        /// The highest operation that the kernel has.
        highest: u8,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The kernel refused a step of set-up.
    #[error("{step}: {source}")]
    Register {
        /// Which.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl ChannelError {
    /// Wraps what the kernel said of a connection: the ends of connections are one thing, failures
    /// another.
    pub(crate) fn of_connection(step: &'static str, source: io::Error) -> Self {
        use io::ErrorKind as K;
        match source.kind() {
            K::ConnectionReset => Self::Closed {
                how: "connection reset",
            },
            K::BrokenPipe => Self::Closed { how: "broken pipe" },
            K::ConnectionAborted => Self::Closed {
                how: "connection aborted",
            },
            K::TimedOut => Self::Closed {
                how: "retransmissions timed out",
            },
            K::HostUnreachable | K::NetworkUnreachable => Self::Closed {
                how: "host out of reach",
            },
            _ => Self::Io { step, source },
        }
    }
}
