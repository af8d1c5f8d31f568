//! Wakes a thread that waits in [`super::idle`], from another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that several threads may ring and one waits on. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Doorbell(Arc<OwnedFd>);

impl Doorbell {
    /// A doorbell nobody has rung.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Rings: whoever waits comes back, or will at once when it next waits.
    pub fn ring(&self) {
        // The write can only fail with EAGAIN, when the counter is at its maximum: then it is
        // readable already, which is all that a ring asks for.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Silences it, before looking at what it was rung for.
    pub fn clear(&self) {
        // EAGAIN: nobody rang.
        let _ = rustix::io::read(&*self.0, &mut [0u8; 8]);
    }

    /// Readable while rung.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
