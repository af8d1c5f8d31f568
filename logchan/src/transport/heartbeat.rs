//! The heartbeat socket: UDP, both ways, beside the log.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use crate::protocol::heartbeat::{HEARTBEAT_BYTES, Heartbeat};

/// Sends and receives heartbeats without ever blocking. Whether a datagram counts is for
/// [`HeartbeatMonitor`](crate::protocol::heartbeat::HeartbeatMonitor) to say.
#[derive(Debug)]
pub struct HeartbeatSocket {
    socket: UdpSocket,
    peer: SocketAddr,
}

impl HeartbeatSocket {
    /// Sends from `local` to `peer` and hears `peer` alone.
    ///
    /// # Errors
    /// The address is taken, or the peer has no route.
    pub fn bind(local: SocketAddr, peer: SocketAddr) -> io::Result<Self> {
        let mut socket = Self::unpaired(local)?;
        socket.pair(peer)?;
        Ok(socket)
    }

    /// Binds `local`; the peer's address comes later, by [`HeartbeatSocket::pair`].
    ///
    /// # Errors
    /// The address is taken.
    pub fn unpaired(local: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(local)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            peer: local,
        })
    }

    /// Hears `peer` alone from now on, and sends to it.
    ///
    /// # Errors
    /// The peer has no route.
    pub fn pair(&mut self, peer: SocketAddr) -> io::Result<()> {
        self.socket.connect(peer)?;
        self.peer = peer;
        Ok(())
    }

    /// Where this side listens.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends one heartbeat. One that the network does not take is lost, like any that it loses: the
    /// next one follows. Returns whether it was taken.
    pub fn send(&self, heartbeat: &Heartbeat) -> bool {
        // The error of an earlier datagram (a port at which nobody listens) is reported in place of
        // sending; once more, then.
        (0..2).any(|_| self.socket.send(&heartbeat.encode()).is_ok())
    }

    /// Takes the next datagram into `buffer`, if there is one. One byte longer than a heartbeat, so
    /// that a longer datagram is seen to be one.
    pub fn receive<'b>(&self, buffer: &'b mut [u8; HEARTBEAT_BYTES + 1]) -> Option<&'b [u8]> {
        // An error is no datagram: nothing was there, or nobody listens at the peer's port yet. The
        // second look is for the datagram behind such an error.
        let received = (0..2).find_map(|_| self.socket.recv(buffer).ok())?;
        Some(&buffer[..received])
    }
}

impl AsFd for HeartbeatSocket {
    /// Readable when a datagram is there.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
