//! A learning Ethernet switch in user space, for machines without a tap and for tests: no privilege,
//! no interface, only a Unix socket. Each connection to its path is a port; a message (the socket
//! keeps their bounds, `SOCK_SEQPACKET`) is a frame.
//!
//! Members are not trusted. Their number, their learned addresses and what waits for them are
//! bounded; a member that does not read loses its own frames; one that speaks nonsense is counted.

mod member;
mod table;

pub use member::SwitchPort;

use super::port::{MAX_FRAME, MIN_FRAME};
use rustix::event::{EventfdFlags, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use table::{Forward, Mac, Table};

/// Ports that a switch has.
pub const MAX_MEMBERS: usize = 64;

/// Frames taken from one port before the others get their turn.
const TURN: usize = 64;

/// Names of the two descriptors that are no member; members count from [`FIRST_MEMBER`].
const LISTENER: u64 = 0;
const STOP: u64 = 1;
const FIRST_MEMBER: u64 = 2;

/// Why a switch could not be set up or reached.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// Unix socket paths are short.
    #[error(
        "{} has {} bytes, and a socket's path has 107 at most: use a shorter one, below /tmp for \
         example",
        path.display(),
        path.as_os_str().len()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The switch could not listen at its path.
    #[error("the switch cannot listen at {}: {source}", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No switch listens at the path.
    #[error(
        "no switch answers at {} ({source}): start one with `lockstep switch {}`",
        path.display(),
        path.display()
    )]
    Connect {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What the switch has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct SwitchCounters {
    /// Copies of frames delivered.
    pub delivered: u64,
    /// Copies dropped because their receiver does not keep up.
    pub dropped: u64,
    /// Messages that were no frames.
    pub malformed: u64,
    /// Connections refused because all ports were taken.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Counters {
    delivered: AtomicU64,
    dropped: AtomicU64,
    malformed: AtomicU64,
    refused: AtomicU64,
}

/// A running switch; it ends, and its path is removed, when this is dropped.
#[derive(Debug)]
pub struct Switch {
    path: PathBuf,
    stop: Arc<OwnedFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Starts a switch that listens at `path`, in a thread of its own.
    ///
    /// # Errors
    /// The path exists, is too long, or its directory refuses.
    pub fn bind(path: &Path) -> Result<Self, SwitchError> {
        let failed = |errno: Errno| SwitchError::Listen {
            path: path.to_owned(),
            source: errno.into(),
        };
        let address = address_of(path)?;
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(failed)?;
        rustix::net::bind(&listener, &address).map_err(failed)?;
        let switch = || {
            rustix::net::listen(&listener, 16)?;
            let stop = Arc::new(rustix::event::eventfd(
                0,
                EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
            )?);
            let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let readable = epoll::EventFlags::IN;
            epoll::add(
                &poll,
                &listener,
                epoll::EventData::new_u64(LISTENER),
                readable,
            )?;
            epoll::add(&poll, &*stop, epoll::EventData::new_u64(STOP), readable)?;
            Ok((stop, poll))
        };
        let (stop, poll) = match switch() {
            Ok(parts) => parts,
            Err(errno) => {
                drop(std::fs::remove_file(path));
                return Err(failed(errno));
            }
        };
        let counters = Arc::new(Counters::default());
        let fabric = Fabric {
            poll,
            listener,
            members: BTreeMap::new(),
            next_member: FIRST_MEMBER,
            table: Table::default(),
            counters: Arc::clone(&counters),
        };
        let thread = std::thread::Builder::new()
            .name("switch".to_owned())
            .spawn(move || fabric.serve())
            .map_err(|source| {
                drop(std::fs::remove_file(path));
                SwitchError::Listen {
                    path: path.to_owned(),
                    source,
                }
            })?;
        Ok(Self {
            path: path.to_owned(),
            stop,
            counters,
            thread: Some(thread),
        })
    }

    /// What the switch has done so far.
    #[must_use]
    pub fn counters(&self) -> SwitchCounters {
        // Independent statistics: no ordering between them is promised.
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SwitchCounters {
            delivered: read(&self.counters.delivered),
            dropped: read(&self.counters.dropped),
            malformed: read(&self.counters.malformed),
            refused: read(&self.counters.refused),
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // An eventfd takes the first write of a 1 always.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        drop(std::fs::remove_file(&self.path));
    }
}

/// The switch's thread: its sockets and its table.
struct Fabric {
    poll: OwnedFd,
    listener: OwnedFd,
    members: BTreeMap<u64, OwnedFd>,
    next_member: u64,
    table: Table,
    counters: Arc<Counters>,
}

impl Fabric {
    fn serve(mut self) {
        let mut buf = [0u8; MAX_FRAME];
        let mut events: Vec<epoll::Event> = Vec::with_capacity(MAX_MEMBERS + 2);
        loop {
            events.clear();
            match epoll::wait(
                &self.poll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "the switch stops: epoll_wait failed");
                    return;
                }
            }
            for event in &events {
                match event.data.u64() {
                    STOP => return,
                    LISTENER => self.accept(),
                    member => self.turn(member, &mut buf),
                }
            }
        }
    }

    /// Takes in those who knock; beyond [`MAX_MEMBERS`] they are turned away.
    fn accept(&mut self) {
        while let Ok(socket) =
            rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            let member = self.next_member;
            let added = self.members.len() < MAX_MEMBERS
                && epoll::add(
                    &self.poll,
                    &socket,
                    epoll::EventData::new_u64(member),
                    epoll::EventFlags::IN,
                )
                .is_ok();
            if added {
                self.next_member += 1;
                self.members.insert(member, socket);
            } else {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Forwards what one member has to say, up to [`TURN`] frames.
    fn turn(&mut self, member: u64, buf: &mut [u8; MAX_FRAME]) {
        for _ in 0..TURN {
            // A member dropped earlier in this round has no more turn.
            let Some(socket) = self.members.get(&member) else {
                return;
            };
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            let length = match rustix::net::recv(socket, &mut buf[..], flags) {
                Ok((_, 0)) => return self.drop_member(member),
                Ok((_, length)) => length,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(_) => return self.drop_member(member),
            };
            if (MIN_FRAME..=MAX_FRAME).contains(&length) {
                self.forward(member, &buf[..length]);
            } else {
                self.counters.malformed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn forward(&mut self, from: u64, frame: &[u8]) {
        let mac = |at: usize| -> Mac {
            let mut mac = Mac::default();
            mac.copy_from_slice(&frame[at..at + 6]);
            mac
        };
        match self.table.forward(from, mac(0), mac(6)) {
            Forward::Nowhere => {}
            Forward::To(to) => {
                if let Some(socket) = self.members.get(&to) {
                    deliver(&self.counters, socket, frame);
                }
            }
            Forward::Flood => {
                for (_, socket) in self.members.iter().filter(|(name, _)| **name != from) {
                    deliver(&self.counters, socket, frame);
                }
            }
        }
    }

    fn drop_member(&mut self, member: u64) {
        // Closing the socket takes it out of the epoll set: nobody else has its descriptor.
        self.members.remove(&member);
        self.table.forget(member);
    }
}

/// Hands a frame over, or drops it. A member that has gone is noticed when its own turn comes.
fn deliver(counters: &Counters, socket: &OwnedFd, frame: &[u8]) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let counter = match rustix::net::send(socket, frame, flags) {
        Ok(_) => &counters.delivered,
        Err(_) => &counters.dropped,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A path as a socket address.
fn address_of(path: &Path) -> Result<SocketAddrUnix, SwitchError> {
    SocketAddrUnix::new(path).map_err(|_| SwitchError::PathTooLong {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests;
