//! Passing the shared memory from the primary to the backup.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use lockstep_ringbuf::Ring;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::control::ControlPage;
use crate::transport::ChannelError;

/// What travels with the descriptors: a message has to have a byte.
const TOKEN: u8 = b'R';

/// What both processes map.
#[derive(Debug, Clone)]
pub struct ShmParts {
    pub(super) ring: Ring,
    pub(super) page: Arc<ControlPage>,
}

impl ShmParts {
    /// A control page for `ring`, which the primary created.
    ///
    /// # Errors
    /// The page could not be made.
    pub fn create(ring: &Ring) -> Result<Self, ChannelError> {
        Ok(Self {
            ring: ring.clone(),
            page: Arc::new(ControlPage::create()?),
        })
    }

    /// The shared ring.
    #[must_use]
    pub const fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The control page's memory file.
    #[must_use]
    pub fn control_fd(&self) -> BorrowedFd<'_> {
        self.page.fd()
    }
}

fn failed(step: &'static str) -> impl Fn(rustix::io::Errno) -> ChannelError {
    move |errno| ChannelError::of_connection(step, errno.into())
}

/// Passes `parts` over `stream`, after the hellos. The primary's half.
///
/// # Errors
/// The peer is gone, or the kernel refused.
pub fn send_parts(stream: BorrowedFd<'_>, parts: &ShmParts) -> Result<(), ChannelError> {
    let fds = [parts.ring.fd(), parts.page.fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    debug_assert!(fits, "the space was made for these two descriptors");
    sendmsg(
        stream,
        &[IoSlice::new(&[TOKEN])],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map_err(failed("passing the log ring to the backup"))?;
    Ok(())
}

/// Takes what [`send_parts`] passed; blocks as long as the socket does. The backup's half.
///
/// # Errors
/// The peer is gone, passed something else, or what it passed is no ring.
pub fn receive_parts(stream: BorrowedFd<'_>) -> Result<ShmParts, ChannelError> {
    const STEP: &str = "receiving the log ring from the primary";
    let mut token = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut token)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(failed(STEP))?;
    if message.bytes == 0 {
        return Err(ChannelError::Closed {
            how: "end of stream before the log ring was passed",
        });
    }
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let found = fds.len();
    let Ok([ring, page]) = <[OwnedFd; 2]>::try_from(fds) else {
        let what = format!("found {found} descriptors, expected 2: the ring and its control page");
        return Err(ChannelError::Io {
            step: STEP,
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, what),
        });
    };
    let ring = Ring::attach(ring)?;
    Ok(ShmParts {
        ring,
        page: Arc::new(ControlPage::attach(page)?),
    })
}
