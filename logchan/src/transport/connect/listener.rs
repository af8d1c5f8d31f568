//! The primary's door.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::greeting::{Inbox, refuse, say};
use super::{Address, ConnectError, Connection};
use crate::protocol::hello::{Agreed, Hello, HelloError, Message, Refusal};

/// Connections that have not said who they are and are listened to at a time.
const MAX_PENDING: usize = 16;

/// How long an answer may take; it fits the socket's buffer, so this is for the odd case.
const ANSWER_LIMIT: Duration = Duration::from_millis(200);

/// What a connection is offered.
#[derive(Debug, Clone, Copy)]
pub enum Offer<'a> {
    /// To be the backup, if its hello agrees with this one.
    Pair(&'a Hello),
    /// Nothing, for there is a backup; to that one, a lifeline, if there is none yet.
    Paired {
        /// Name of the VM.
        vm: &'a str,
        /// Generation of the existing pairing.
        generation: u64,
        /// Whether there is no lifeline yet.
        lifeline: bool,
    },
    /// Nothing but to the backup that is there, whose disks are to be made equal.
    Resync {
        /// Name of the VM.
        vm: &'a str,
        /// Generation of the pairing.
        generation: u64,
    },
}

/// What came to the door.
#[derive(Debug)]
pub enum Incoming {
    /// The backup.
    Paired(Connection),
    /// The second connection of the backup that is there, which was told that it is held. To be kept
    /// for as long as the process is one half of the pair.
    Lifeline(OwnedFd),
    /// The connection for the backup's disks, which was told that we are ready.
    Resync(OwnedFd),
    /// Somebody else, dropped.
    Refused {
        /// Its address, as far as it has one.
        peer: String,
        /// What was wrong with it.
        error: ConnectError,
    },
}

/// Listens for the backup. Listens to several connections at a time, so that a silent stranger does
/// not keep the backup out.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    pending: VecDeque<Pending>,
    hello_limit: Duration,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

#[derive(Debug)]
struct Pending {
    stream: OwnedFd,
    peer: String,
    inbox: Inbox,
    deadline: Instant,
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> ConnectError {
    move |source| ConnectError::Io { step, source }
}

impl Listener {
    /// Listens at `address`. A connection has `hello_limit` to say who it is.
    ///
    /// A Unix socket left behind by a process that died is replaced; one at which somebody listens,
    /// and any other kind of file, is not.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub fn bind(address: &Address, hello_limit: Duration) -> Result<Self, ConnectError> {
        let socket = match address {
            Address::Tcp(address) => {
                let listener =
                    TcpListener::bind(address).map_err(failed("listening for the backup"))?;
                listener
                    .set_nonblocking(true)
                    .map_err(failed("listening for the backup"))?;
                Socket::Tcp(listener)
            }
            Address::Unix(path) => {
                let listener = bind_unix(path).map_err(failed("listening for the backup"))?;
                listener
                    .set_nonblocking(true)
                    .map_err(failed("listening for the backup"))?;
                Socket::Unix(listener, path.clone())
            }
        };
        Ok(Self {
            socket,
            pending: VecDeque::new(),
            hello_limit,
        })
    }

    /// Where it listens; names the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn address(&self) -> Result<Address, ConnectError> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let address = listener
                    .local_addr()
                    .map_err(failed("asking for the listening address"))?;
                Ok(Address::Tcp(address))
            }
            Socket::Unix(_, path) => Ok(Address::Unix(path.clone())),
        }
    }

    /// Waits up to `timeout` for something to come of the connections at the door.
    ///
    /// # Errors
    /// The listening socket failed. What is wrong with a connection is [`Incoming::Refused`].
    pub fn poll(
        &mut self,
        offer: Offer<'_>,
        timeout: Duration,
    ) -> Result<Option<Incoming>, ConnectError> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(refused) = self.accept()? {
                return Ok(Some(refused));
            }
            for at in 0..self.pending.len() {
                let Some(outcome) = self.pending[at].advance(self.hello_limit) else {
                    continue;
                };
                let Some(pending) = self.pending.remove(at) else {
                    continue;
                };
                return Ok(Some(pending.conclude(outcome, offer)));
            }
            let now = Instant::now();
            if now >= end {
                return Ok(None);
            }
            let next = self.pending.iter().map(|pending| pending.deadline).min();
            let until = next.map_or(end, |deadline| deadline.min(end));
            self.sleep(until.saturating_duration_since(now))?;
        }
    }

    fn accept(&mut self) -> Result<Option<Incoming>, ConnectError> {
        let accepted = match &self.socket {
            Socket::Tcp(listener) => listener
                .accept()
                .map(|(stream, peer)| (OwnedFd::from(stream), peer.to_string())),
            Socket::Unix(listener, _) => listener
                .accept()
                .map(|(stream, _)| (OwnedFd::from(stream), "a local process".to_owned())),
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // None is there, or it left before we came.
            Err(error) if is_one_of(&error, &NOBODY) => return Ok(None),
            Err(error) if is_one_of(&error, &EXHAUSTED) => {
                std::thread::sleep(EXHAUSTED_PAUSE);
                return Ok(None);
            }
            Err(error) => return Err(failed("accepting a connection")(error)),
        };
        let deadline = Instant::now() + self.hello_limit;
        self.pending.push_back(Pending {
            stream,
            peer,
            inbox: Inbox::default(),
            deadline,
        });
        if self.pending.len() <= MAX_PENDING {
            return Ok(None);
        }
        let oldest = self.pending.pop_front();
        Ok(oldest.map(|oldest| Incoming::Refused {
            peer: oldest.peer,
            error: ConnectError::Crowded { limit: MAX_PENDING },
        }))
    }

    fn sleep(&self, time: Duration) -> Result<(), ConnectError> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)];
        fds.extend(
            self.pending
                .iter()
                .map(|pending| PollFd::new(&pending.stream, PollFlags::IN)),
        );
        let timeout = rustix::time::Timespec::try_from(time).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(failed("waiting for the backup")(errno.into())),
        }
    }
}

impl AsFd for Listener {
    /// Readable when somebody is at the door.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Pending {
    /// The first message, or why there will be none; nothing yet otherwise.
    fn advance(&mut self, limit: Duration) -> Option<Result<Message, ConnectError>> {
        match self.inbox.advance(self.stream.as_fd()) {
            Ok(Some(Message::Refusal(refusal))) => Some(Err(HelloError::Refused(refusal).into())),
            Ok(Some(message)) => Some(Ok(message)),
            Ok(None) if Instant::now() >= self.deadline => {
                let received = self.inbox.received();
                Some(Err(ConnectError::TimedOut { received, limit }))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Answers, and says what came of it.
    fn conclude(self, heard: Result<Message, ConnectError>, offer: Offer<'_>) -> Incoming {
        let Self { stream, peer, .. } = self;
        let answered = heard.and_then(|message| answer(stream.as_fd(), message, offer));
        match answered {
            Ok(Answered::Paired(agreed, theirs)) => Incoming::Paired(Connection {
                stream,
                peer,
                agreed,
                theirs: *theirs,
            }),
            Ok(Answered::Held) => Incoming::Lifeline(stream),
            Ok(Answered::Resync) => Incoming::Resync(stream),
            Err(error) => {
                if let ConnectError::Hello(hello) = &error
                    && let Some(refusal) = hello.refusal()
                {
                    refuse(&stream, refusal, ANSWER_LIMIT);
                }
                Incoming::Refused { peer, error }
            }
        }
    }
}

/// What a connection has become.
enum Answered {
    Paired(Agreed, Box<Hello>),
    Held,
    Resync,
}

/// Answers `message` as `offer` says, if it is one that can be accepted.
fn answer(
    stream: BorrowedFd<'_>,
    message: Message,
    offer: Offer<'_>,
) -> Result<Answered, ConnectError> {
    match (offer, message) {
        (Offer::Pair(ours), Message::Hello(theirs)) => {
            let agreed = ours.compare(&theirs)?;
            say(stream, &Message::Hello(ours.clone()), ANSWER_LIMIT)?;
            Ok(Answered::Paired(agreed, Box::new(theirs)))
        }
        (Offer::Pair(_), other) => Err(HelloError::OutOfPlace {
            found: other.name(),
            expected: "hello",
        }
        .into()),
        (
            Offer::Paired {
                vm,
                generation,
                lifeline: true,
            },
            Message::Lifeline(theirs),
        ) if theirs.vm == vm && theirs.generation == generation => {
            say(stream, &Message::Lifeline(theirs), ANSWER_LIMIT)?;
            Ok(Answered::Held)
        }
        (Offer::Resync { vm, generation }, Message::Resync(theirs))
            if theirs.vm == vm && theirs.generation == generation =>
        {
            say(stream, &Message::Resync(theirs), ANSWER_LIMIT)?;
            Ok(Answered::Resync)
        }
        (Offer::Paired { generation, .. } | Offer::Resync { generation, .. }, _) => {
            Err(HelloError::Unwanted(Refusal::Busy { generation }).into())
        }
    }
}

/// Answers of `accept` when there is no connection to take.
const NOBODY: [i32; 4] = [libc::EAGAIN, libc::EINTR, libc::ECONNABORTED, libc::EPROTO];

/// Answers of `accept` when the process or the host is short of something just now: the listening
/// socket is as good as before.
const EXHAUSTED: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];

/// How long to leave a host alone that is short of something.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(10);

fn is_one_of(error: &io::Error, codes: &[i32]) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            let dead = UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if !(is_socket && dead) {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            // Gone already, or in a directory that is: nothing is left behind either way.
            let _removed = std::fs::remove_file(path);
        }
    }
}
