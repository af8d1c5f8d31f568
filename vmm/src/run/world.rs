//! The machine's door to the world: its network port and its console.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use crate::ft::vm::{Output, OutputKind};
use crate::host::entropy;
use crate::host::port::NetworkPort;

/// Where a live machine's frames come from and its outputs go.
pub struct World {
    port: Option<Box<dyn NetworkPort>>,
    console: Box<dyn Write + Send>,
    failed: Option<io::Error>,
    /// Frames that came earlier, to be received first.
    waiting: VecDeque<Vec<u8>>,
}

impl World {
    /// A machine without a network has no port.
    #[must_use]
    pub fn new(port: Option<Box<dyn NetworkPort>>, console: Box<dyn Write + Send>) -> Self {
        Self {
            port,
            console,
            failed: None,
            waiting: VecDeque::new(),
        }
    }

    /// `frames` came before anything that the port still has.
    pub(super) fn came_before(&mut self, frames: VecDeque<Vec<u8>>) {
        self.waiting = frames;
    }

    /// Puts something between the machine and its console.
    pub(super) fn map_console(
        &mut self,
        map: impl FnOnce(Box<dyn Write + Send>) -> Box<dyn Write + Send>,
    ) {
        let console = std::mem::replace(&mut self.console, Box::new(io::sink()));
        self.console = map(console);
    }

    /// Reads one frame into `buffer`; never waits. A port that fails is remembered and said by
    /// [`World::check`]: the guest's network is then down, its execution is not.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if let Some(frame) = self.waiting.pop_front() {
            buffer[..frame.len()].copy_from_slice(&frame);
            return Some(frame.len());
        }
        match self.port.as_mut()?.receive_into(buffer) {
            Ok(length) => length,
            Err(error) => {
                self.failed = Some(error);
                self.port = None;
                None
            }
        }
    }

    /// Fills `bytes` with random ones, for the guest's entropy source; never waits. Nothing while the
    /// host's own source is not ready yet: the guest waits, and is asked for again.
    pub(super) fn entropy<'a>(&self, bytes: &'a mut [u8]) -> Option<&'a [u8]> {
        entropy::fill(bytes)
    }

    /// Says one output. A network drops what it cannot take, as networks do.
    pub(super) fn say(&mut self, output: &Output) {
        match output.kind {
            OutputKind::Frame => {
                if let Some(port) = self.port.as_mut()
                    && let Err(error) = port.send(&output.bytes)
                {
                    self.failed = Some(error);
                }
            }
            // A console nobody reads any more must not end the machine.
            OutputKind::Console => {
                let _ = self
                    .console
                    .write_all(&output.bytes)
                    .and_then(|()| self.console.flush());
            }
            // Disk requests go another way: [`super::live`].
            OutputKind::PowerOff | OutputKind::DiskRead | OutputKind::Disk => {}
        }
    }

    /// Sends a frame that is not the guest's: the announcement of its address at go-live.
    pub(super) fn announce(&mut self, frame: &[u8]) {
        if let Some(port) = self.port.as_mut()
            && let Err(error) = port.send(frame)
        {
            self.failed = Some(error);
        }
    }

    /// Readable when a frame waits.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.as_ref().map(|port| port.fd())
    }

    /// The failure since the last call, to be logged.
    pub(super) fn take_failure(&mut self) -> Option<io::Error> {
        self.failed.take()
    }
}
