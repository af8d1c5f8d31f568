//! The yardstick: a TCP ping-pong by `send` and `recv`, with the bytes of an entry and of its
//! acknowledgement, and the waiting of the channel.

use std::io;
use std::net::TcpStream;

use lockstep_logchan::transport::tcp::CONGESTION_CONTROL;
use rustix::net::sockopt::set_tcp_congestion;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::Waiting;

/// One end of the ping-pong.
pub(super) struct End {
    stream: TcpStream,
    waiting: Waiting,
    buffer: Vec<u8>,
}

impl End {
    pub(super) fn new(stream: TcpStream, waiting: Waiting, largest: usize) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        set_tcp_congestion(&stream, CONGESTION_CONTROL)?;
        Ok(Self {
            stream,
            waiting,
            buffer: vec![0; largest],
        })
    }

    pub(super) fn send(&mut self, bytes: usize) -> io::Result<()> {
        let sent = send(&self.stream, &self.buffer[..bytes], SendFlags::NOSIGNAL)?;
        if sent == bytes {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Receives exactly `bytes`; `false` at the end of the stream.
    pub(super) fn receive(&mut self, bytes: usize) -> io::Result<bool> {
        let spin_until = match self.waiting.policy() {
            lockstep_ringbuf::WaitPolicy::Spin => u64::MAX,
            lockstep_ringbuf::WaitPolicy::SpinThenBlock { spin } => {
                lockstep_perf::stamp::now() + spin.as_nanos() as u64
            }
            lockstep_ringbuf::WaitPolicy::Block => 0,
        };
        let mut received = 0;
        while received < bytes {
            let spins = spin_until == u64::MAX
                || (spin_until > 0 && lockstep_perf::stamp::now() < spin_until);
            let flags = if spins {
                RecvFlags::DONTWAIT
            } else {
                RecvFlags::empty()
            };
            match recv(&self.stream, &mut self.buffer[received..bytes], flags) {
                Ok((_, 0)) => return Ok(false),
                Ok((_, more)) => received += more,
                Err(rustix::io::Errno::AGAIN) => std::hint::spin_loop(),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }
}
