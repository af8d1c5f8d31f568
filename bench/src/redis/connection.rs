//! One TCP connection to the server, non-blocking: what is to be sent, and what is still awaited.

use super::resp::{self, Reply, RespError};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes that are received at once.
const RECEIVE: usize = 64 << 10;

/// Why a connection is no more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The server closed it.
    #[error("the server closed the connection")]
    Closed,
    /// The network.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It does not speak the protocol.
    #[error("what the server sent is no RESP2: {0}")]
    Protocol(#[from] RespError),
    /// It says nothing.
    #[error("no reply for {0:?}")]
    Silent(Duration),
    /// A reply to nothing.
    #[error("the server sent a reply to nothing that was asked")]
    Stray,
}

/// A connection. `P` is what is remembered of a request until its reply comes.
#[derive(Debug)]
pub(super) struct Connection<P> {
    stream: TcpStream,
    to_send: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    pending: VecDeque<P>,
}

impl<P> Connection<P> {
    pub(super) fn open(target: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, CONNECT)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            to_send: Vec::with_capacity(RECEIVE),
            sent: 0,
            received: Vec::with_capacity(RECEIVE),
            pending: VecDeque::with_capacity(128),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Requests without a reply.
    pub(super) fn outstanding(&self) -> usize {
        self.pending.len()
    }

    /// Whether bytes wait for room in the socket.
    pub(super) fn blocked(&self) -> bool {
        self.sent < self.to_send.len()
    }

    /// Queues a request; [`Connection::flush`] sends it.
    pub(super) fn ask(&mut self, words: &[&[u8]], pending: P) {
        resp::command(&mut self.to_send, words);
        self.pending.push_back(pending);
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self) -> Result<(), Lost> {
        while self.sent < self.to_send.len() {
            match self.stream.write(&self.to_send[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.to_send.clear();
        self.sent = 0;
        Ok(())
    }

    /// What will get no reply any more.
    pub(super) fn into_pending(self) -> impl Iterator<Item = P> {
        self.pending.into_iter()
    }

    /// Receives what is there, and hands each reply with its request to `answered`.
    pub(super) fn receive(&mut self, mut answered: impl FnMut(P, Reply<'_>)) -> Result<(), Lost> {
        loop {
            let filled = self.received.len();
            self.received.resize(filled + RECEIVE, 0);
            let got = self.stream.read(&mut self.received[filled..]);
            self.received.truncate(filled + *got.as_ref().unwrap_or(&0));
            match got {
                Ok(0) => return Err(Lost::Closed),
                Ok(got) => {
                    self.hand_out(&mut answered)?;
                    if got < RECEIVE {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn hand_out(&mut self, answered: &mut impl FnMut(P, Reply<'_>)) -> Result<(), Lost> {
        let mut used = 0;
        while let Some((reply, length)) = resp::parse(&self.received[used..])? {
            used += length;
            let pending = self.pending.pop_front().ok_or(Lost::Stray)?;
            answered(pending, reply);
        }
        self.received.drain(..used);
        Ok(())
    }
}
