//! Socket options, and giving a socket up while the kernel may still use our memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::SockRef;

use super::{DROP_PATIENCE, TcpOptions};
use crate::transport::uring::Uring;
use crate::transport::{ChannelError, UringError};

/// Sets `stream` up for entries that do not wait for each other.
pub(super) fn prepare(
    stream: BorrowedFd<'_>,
    uring: &Uring,
    options: &TcpOptions,
) -> Result<(), ChannelError> {
    let socket = SockRef::from(&stream);
    let io = |step| move |source| ChannelError::Io { step, source };
    // io_uring answers EAGAIN on a non-blocking socket where it would otherwise wait for it.
    socket
        .set_nonblocking(false)
        .map_err(io("making the channel's socket blocking"))?;
    let address = socket
        .local_addr()
        .map_err(io("asking for the channel's address"))?;
    if address.is_unix() {
        return Ok(());
    }
    socket
        .set_tcp_nodelay(true)
        .map_err(io("setting TCP_NODELAY"))?;
    if let Some(name) = options.congestion_control {
        rustix::net::sockopt::set_tcp_congestion(stream, name).map_err(|errno| {
            io("setting TCP_CONGESTION (modprobe it, or set congestion-control to host)")(
                errno.into(),
            )
        })?;
    }
    let busy_poll_us = options.busy_poll_us;
    if busy_poll_us > 0 {
        set_busy_poll(stream, busy_poll_us)?;
        match uring.busy_poll(busy_poll_us) {
            // Before Linux 6.9 the socket option is all there is.
            Err(UringError::Register { source, .. })
                if source.raw_os_error() == Some(libc::EINVAL) => {}
            other => other?,
        }
    }
    Ok(())
}

fn set_busy_poll(stream: BorrowedFd<'_>, us: u32) -> Result<(), ChannelError> {
    let us = libc::c_int::try_from(us).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option's value is the `int` at the address passed, with its size; the kernel reads
    // it and keeps nothing. The descriptor is open while borrowed.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BUSY_POLL,
            (&raw const us).cast(),
            size_of_val(&us) as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(ChannelError::Io {
        step: "setting SO_BUSY_POLL (needs CAP_NET_ADMIN; set busy-poll-us to 0)",
        source: std::io::Error::last_os_error(),
    })
}

/// Ends the connection and waits until none of the `under_way` operations is. Returns whether the
/// kernel has given all memory back; if not, the caller must not unmap it.
pub(super) fn give_up(stream: BorrowedFd<'_>, uring: &mut Uring, mut under_way: usize) -> bool {
    // Ends a receive at once and a send soon. Fails where the connection is gone already.
    let _gone = rustix::net::shutdown(stream.as_fd(), rustix::net::Shutdown::Both);
    let end = lockstep_perf::stamp::now() + DROP_PATIENCE.as_nanos() as u64;
    while under_way > 0 {
        let left = end.saturating_sub(lockstep_perf::stamp::now());
        // Only the thread that drove the ring may enter it; for any other this fails.
        if left == 0
            || uring
                .submit_and_wait(1, Duration::from_nanos(left))
                .is_err()
        {
            return false;
        }
        while let Some(completion) = uring.completion() {
            if !io_uring::cqueue::more(completion.flags) {
                under_way = under_way.saturating_sub(1);
            }
        }
    }
    true
}
