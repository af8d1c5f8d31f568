//! A connection that carries frames, each whole or not at all, and waits for none for ever.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{ResyncError, SILENCE};
use crate::ft::disk::resync::{Frame, HEADER_BYTES};
use crate::run::control::Control;

/// How often a waiting end looks whether it was asked to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(in crate::run) struct Line {
    stream: OwnedFd,
    control: Control,
    out: Vec<u8>,
}

impl Line {
    pub fn new(stream: OwnedFd, control: Control) -> Self {
        // Answers are small, and waited for. A Unix socket has no such option, nor needs it.
        let _set = rustix::net::sockopt::set_tcp_nodelay(&stream, true);
        Self {
            stream,
            control,
            out: Vec::new(),
        }
    }

    /// Sends a frame, and waits until the kernel has all of it.
    pub fn send(&mut self, frame: &Frame) -> Result<(), ResyncError> {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        frame.write_to(&mut out);
        let sent = self.send_all(&out);
        self.out = out;
        match sent {
            Err(ResyncError::Closed) => Err(self.last_word()),
            other => other,
        }
    }

    /// Why the peer has closed the connection: it may have said so before.
    fn last_word(&mut self) -> ResyncError {
        loop {
            match self.receive() {
                Ok(_) => {}
                Err(refused @ ResyncError::Refused(_)) => return refused,
                Err(_) => return ResyncError::Closed,
            }
        }
    }

    fn send_all(&self, mut rest: &[u8]) -> Result<(), ResyncError> {
        while !rest.is_empty() {
            match send(
                &self.stream,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ResyncError::Closed),
                Err(error) => return Err(ResyncError::Io(error.into())),
            }
        }
        Ok(())
    }

    /// The next frame. A refusal is an error.
    pub fn receive(&mut self) -> Result<Frame, ResyncError> {
        let mut header = [0; HEADER_BYTES];
        self.receive_all(&mut header)?;
        let mut bytes = vec![0; Frame::length(&header)?];
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        self.receive_all(&mut bytes[HEADER_BYTES..])?;
        match Frame::read_from(&bytes)? {
            Frame::Refusal(refusal) => Err(ResyncError::Refused(refusal)),
            frame => Ok(frame),
        }
    }

    fn receive_all(&self, mut rest: &mut [u8]) -> Result<(), ResyncError> {
        while !rest.is_empty() {
            match recv(&self.stream, &mut *rest, RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => return Err(ResyncError::Closed),
                Ok((_, received)) => rest = &mut rest[received..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(error) => return Err(ResyncError::Io(error.into())),
            }
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags) -> Result<(), ResyncError> {
        let give_up = Instant::now() + SILENCE;
        while Instant::now() < give_up {
            self.check_stop()?;
            let timeout = rustix::time::Timespec::try_from(LOOK_EVERY).ok();
            let mut sources = [PollFd::from_borrowed_fd(self.stream.as_fd(), events)];
            match poll(&mut sources, timeout.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(ResyncError::Io(error.into())),
            }
        }
        Err(ResyncError::Silent)
    }

    /// # Errors
    /// The operator asked to stop.
    pub fn check_stop(&self) -> Result<(), ResyncError> {
        match self.control.stop_asked() {
            true => Err(ResyncError::Stopped),
            false => Ok(()),
        }
    }
}
