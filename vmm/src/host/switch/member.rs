//! A port of the switch, seen from the member's side.

use super::{SwitchError, address_of};
use crate::host::port::{MAX_FRAME, MIN_FRAME, NetworkPort, PortCounters};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A connection to a [`super::Switch`], of this process or another.
#[derive(Debug)]
pub struct SwitchPort {
    socket: OwnedFd,
    path: PathBuf,
    counters: PortCounters,
}

impl SwitchPort {
    /// Plugs into the switch that listens at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or the path is too long for a socket.
    pub fn connect(path: &Path) -> Result<Self, SwitchError> {
        let failed = |errno: Errno| SwitchError::Connect {
            path: path.to_owned(),
            source: errno.into(),
        };
        let address = address_of(path)?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed)?;
        rustix::net::connect(&socket, &address).map_err(failed)?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(failed)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            counters: PortCounters::default(),
        })
    }

    fn gone(&self, why: &str) -> io::Error {
        io::Error::new(
            io::ErrorKind::ConnectionAborted,
            format!("the switch at {} is gone: {why}", self.path.display()),
        )
    }
}

impl NetworkPort for SwitchPort {
    fn receive_into(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            // With TRUNC the kernel reports a frame's own length, not what fitted.
            let length = match rustix::net::recv(
                &self.socket,
                &mut *buf,
                RecvFlags::DONTWAIT | RecvFlags::TRUNC,
            ) {
                Ok((_, length)) => length,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(self.gone(&errno.to_string())),
            };
            match length {
                0 => return Err(self.gone("it closed the connection")),
                length if length > buf.len() => self.counters.receive_oversize += 1,
                length => {
                    self.counters.received += 1;
                    return Ok(Some(length));
                }
            }
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            self.counters.send_malformed += 1;
            return Ok(());
        }
        loop {
            match rustix::net::send(
                &self.socket,
                frame,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(_) => {
                    self.counters.sent += 1;
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {
                    self.counters.send_dropped += 1;
                    return Ok(());
                }
                Err(errno) => return Err(self.gone(&errno.to_string())),
            }
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }
}
