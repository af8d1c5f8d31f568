//! Where a virtual machine's Ethernet frames come from and go to.

use std::io;
use std::os::fd::BorrowedFd;

/// Largest Ethernet frame that a port carries: 1500 bytes of payload, the 14-byte header and an
/// 802.1Q tag; the frame check sequence is not part of it.
pub const MAX_FRAME: usize = 1518;

/// Smallest thing that is a frame at all: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// What a port has carried since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct PortCounters {
    /// Frames handed to the virtual machine.
    pub received: u64,
    /// Frames from the world that did not fit the caller's buffer, dropped.
    pub receive_oversize: u64,
    /// Frames given to the world.
    pub sent: u64,
    /// Frames dropped because the world's queue was full or its link down.
    pub send_dropped: u64,
    /// Frames that are no frames (shorter than [`MIN_FRAME`], longer than [`MAX_FRAME`]), dropped.
    pub send_malformed: u64,
}

/// A network interface's outside: a tap or a port of the virtual switch.
///
/// Nothing here waits and nothing allocates. A network may drop frames, so a full queue is a count
/// in [`NetworkPort::counters`] and not an error; an error means that the port itself is gone.
pub trait NetworkPort: Send {
    /// Moves the oldest waiting frame into the start of `buf` and returns its length, at least
    /// [`MIN_FRAME`]; `None` when no frame waits. A frame longer than `buf` is dropped and counted
    /// and the next one is tried; a buffer of [`MAX_FRAME`] bytes loses none of the legal ones.
    ///
    /// # Errors
    /// The interface or the switch is gone.
    fn receive_into(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>>;

    /// Gives one frame to the world, best effort.
    ///
    /// # Errors
    /// The interface or the switch is gone.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// A descriptor that polls readable while frames wait.
    fn fd(&self) -> BorrowedFd<'_>;

    /// What the port has carried so far.
    fn counters(&self) -> PortCounters;
}
