//! Connection set-up: the primary listens, the backup connects, both say hello.
//!
//! A stranger, a backup of another version or of another VM, and a second backup are each dropped
//! with a typed error. They cost a bounded number of bytes and a bounded time, and the primary
//! nothing else.

mod address;
mod greeting;
mod listener;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

pub use address::Address;
pub use greeting::{greet, refuse};
pub use listener::{Incoming, Listener, Offer};

use crate::protocol::hello::{Agreed, Hello, HelloError, Lifeline, Message, Resync};

/// A connection on which the hellos were exchanged, ready for a channel.
#[derive(Debug)]
pub struct Connection {
    /// The stream, of TCP or Unix sockets.
    pub stream: OwnedFd,
    /// The peer's address, for display.
    pub peer: String,
    /// What both sides agreed on.
    pub agreed: Agreed,
    /// What the peer said of itself.
    pub theirs: Hello,
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer is not the one we need.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The peer left in the middle.
    #[error("the peer closed the connection after {received} bytes of its hello")]
    Closed {
        /// Bytes of the hello that had arrived.
        received: usize,
    },
    /// The peer did not say who it is.
    #[error("no whole hello within {limit:?}, only {received} bytes of it")]
    TimedOut {
        /// Bytes of the hello that had arrived.
        received: usize,
        /// The time limit.
        limit: Duration,
    },
    /// Too many unfinished connections; the oldest gave way.
    #[error("dropped unheard: more than {limit} connections that have not said who they are")]
    Crowded {
        /// How many are listened to at a time.
        limit: usize,
    },
    /// An address that is none.
    #[error("address `{found}`: {why}; expected HOST:PORT or unix:PATH")]
    Address {
        /// As given.
        found: String,
        /// What is wrong.
        why: String,
    },
    /// Nobody listens there.
    #[error(
        "connecting to {address}: {source}; tried for {tried:?}. Is the primary running, and listening there?"
    )]
    NobodyThere {
        /// Where.
        address: Address,
        /// How long it was tried.
        tried: Duration,
        /// The last answer.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// For how long and how often a backup tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// In all.
    pub connect: Duration,
    /// Between two attempts.
    pub retry: Duration,
    /// For the primary's hello.
    pub hello: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            retry: Duration::from_millis(20),
            hello: Duration::from_secs(2),
        }
    }
}

/// Connects to the primary at `address` and says hello: the backup's half. Tries again while nobody
/// listens there, or the connection breaks before the primary has spoken.
///
/// # Errors
/// Nobody came to the door in time, or the primary is not ours, or it refused.
pub fn connect(
    address: &Address,
    ours: &Hello,
    patience: &Patience,
) -> Result<Connection, ConnectError> {
    let start = Instant::now();
    loop {
        let source = match address.connect(patience.retry.max(Duration::from_millis(100))) {
            Ok(stream) => match greet(&stream, ours, patience.hello) {
                Ok((agreed, theirs)) => {
                    return Ok(Connection {
                        stream,
                        peer: address.to_string(),
                        agreed,
                        theirs,
                    });
                }
                // A primary that is just starting, or just ending.
                Err(ConnectError::Closed { received: 0 }) => {
                    io::Error::new(io::ErrorKind::ConnectionReset, "closed before a hello")
                }
                Err(error) => return Err(error),
            },
            Err(source) => source,
        };
        let tried = start.elapsed();
        if tried + patience.retry > patience.connect {
            return Err(ConnectError::NobodyThere {
                address: address.clone(),
                tried,
                source,
            });
        }
        std::thread::sleep(patience.retry);
    }
}

/// Opens the paired backup's second connection to the primary at `address`, which ends when the
/// primary's process does, see [`Lifeline`]. Each step may take `limit`.
///
/// # Errors
/// The primary does not hold it; the pair works without, and notices its end later.
pub fn lifeline(
    address: &Address,
    ours: &Lifeline,
    limit: Duration,
) -> Result<OwnedFd, ConnectError> {
    let ours = Message::Lifeline(ours.clone());
    second(address, &ours, "lifeline of this pair", limit)
}

/// Opens the connection for the disks of the paired backup to the primary at `address`, see [`Resync`]. Each step may
/// take `limit`.
///
/// # Errors
/// The primary is not ready for it.
pub fn resync(address: &Address, ours: &Resync, limit: Duration) -> Result<OwnedFd, ConnectError> {
    let ours = Message::Resync(ours.clone());
    second(address, &ours, "resync of this pair", limit)
}

/// A connection on which the primary repeats what we say.
fn second(
    address: &Address,
    ours: &Message,
    expected: &'static str,
    limit: Duration,
) -> Result<OwnedFd, ConnectError> {
    let stream = address
        .connect(limit)
        .map_err(|source| ConnectError::NobodyThere {
            address: address.clone(),
            tried: limit,
            source,
        })?;
    greeting::say(stream.as_fd(), ours, limit)?;
    let theirs = greeting::hear(stream.as_fd(), limit)?;
    match theirs == *ours {
        true => Ok(stream),
        false => Err(HelloError::OutOfPlace {
            found: theirs.name(),
            expected,
        }
        .into()),
    }
}
