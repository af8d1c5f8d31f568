//! The exchange of hellos on a connected stream.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::ConnectError;
use crate::protocol::Role;
use crate::protocol::hello::{Agreed, Hello, HelloError, Message, Refusal, needed};

/// A hello on its way in. Holds what has arrived, at most the longest message.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    pub(super) fn received(&self) -> usize {
        self.bytes.len()
    }

    /// Reads what is there, without blocking, and never a byte beyond the message: what follows it
    /// belongs to the channel.
    pub(super) fn advance(
        &mut self,
        stream: BorrowedFd<'_>,
    ) -> Result<Option<Message>, ConnectError> {
        loop {
            if let Some(message) = Message::decode(&self.bytes)? {
                return Ok(Some(message));
            }
            let have = self.bytes.len();
            self.bytes.resize(needed(&self.bytes), 0);
            let read = recv(stream, &mut self.bytes[have..], RecvFlags::DONTWAIT);
            let bytes = read.as_ref().map_or(0, |(_, bytes)| *bytes);
            self.bytes.truncate(have + bytes);
            match read {
                Ok((_, 0)) => return Err(ConnectError::Closed { received: have }),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::CONNRESET) => {
                    return Err(ConnectError::Closed { received: have });
                }
                Err(errno) => {
                    return Err(ConnectError::Io {
                        step: "receiving the hello",
                        source: errno.into(),
                    });
                }
            }
        }
    }
}

/// Sends a message of set-up whole, within `limit`.
pub(super) fn say(
    stream: BorrowedFd<'_>,
    message: &Message,
    limit: Duration,
) -> Result<(), ConnectError> {
    let bytes = message.encode()?;
    let end = Instant::now() + limit;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match send(stream, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => rest = &rest[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                if !await_event(stream, PollFlags::OUT, end)? {
                    return Err(ConnectError::Io {
                        step: "sending the hello",
                        source: io::ErrorKind::TimedOut.into(),
                    });
                }
            }
            Err(errno) => {
                return Err(ConnectError::Io {
                    step: "sending the hello",
                    source: errno.into(),
                });
            }
        }
    }
    Ok(())
}

/// Waits for `events` until `end`; returns whether they came.
fn await_event(
    stream: BorrowedFd<'_>,
    events: PollFlags,
    end: Instant,
) -> Result<bool, ConnectError> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = rustix::time::Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&stream, events)], timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => {
                return Err(ConnectError::Io {
                    step: "waiting for the hello",
                    source: errno.into(),
                });
            }
        }
    }
}

/// The peer's message, which is no refusal.
pub(super) fn hear(stream: BorrowedFd<'_>, limit: Duration) -> Result<Message, ConnectError> {
    let end = Instant::now() + limit;
    let mut inbox = Inbox::default();
    loop {
        match inbox.advance(stream)? {
            Some(Message::Refusal(refusal)) => return Err(HelloError::Refused(refusal).into()),
            Some(message) => return Ok(message),
            None => {}
        }
        if !await_event(stream, PollFlags::IN, end)? {
            return Err(ConnectError::TimedOut {
                received: inbox.received(),
                limit,
            });
        }
    }
}

fn hear_hello(stream: BorrowedFd<'_>, limit: Duration) -> Result<Hello, ConnectError> {
    match hear(stream, limit)? {
        Message::Hello(hello) => Ok(hello),
        other => Err(HelloError::OutOfPlace {
            found: other.name(),
            expected: "hello",
        }
        .into()),
    }
}

/// Exchanges hellos on a connected stream, in `ours.role`. The backup speaks first; the primary
/// speaks only to a backup that it accepts, and tells any other why not.
///
/// # Errors
/// The peer is not the one we need, or refused, or was too slow (`limit`, for each message).
pub fn greet(
    stream: impl AsFd,
    ours: &Hello,
    limit: Duration,
) -> Result<(Agreed, Hello), ConnectError> {
    let stream = stream.as_fd();
    if ours.role == Role::Backup {
        match say(stream, &Message::Hello(ours.clone()), limit) {
            Ok(()) => {}
            // It may have said why before it closed.
            Err(ConnectError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
        let theirs = hear_hello(stream, limit)?;
        return Ok((ours.compare(&theirs)?, theirs));
    }
    let heard = hear_hello(stream, limit).and_then(|theirs| Ok((ours.compare(&theirs)?, theirs)));
    match heard {
        Ok((agreed, theirs)) => {
            say(stream, &Message::Hello(ours.clone()), limit)?;
            Ok((agreed, theirs))
        }
        Err(error) => {
            if let ConnectError::Hello(error) = &error
                && let Some(refusal) = error.refusal()
            {
                refuse(stream, refusal, limit);
            }
            Err(error)
        }
    }
}

/// Tells a peer why it is not wanted, if it listens; it is dropped either way.
pub fn refuse(stream: impl AsFd, refusal: Refusal, limit: Duration) {
    // It may be gone, or not read. That is its loss.
    let _told = say(stream.as_fd(), &Message::Refusal(refusal), limit);
}
