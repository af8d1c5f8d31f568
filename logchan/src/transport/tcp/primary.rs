//! The primary's end: sends from the ring, takes acknowledgements.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use io_uring::{cqueue, opcode, types};
use lockstep_ringbuf::{Consumer, Ring};

use super::{TcpOptions, socket, token};
use crate::entry::Sequence;
use crate::protocol::ack::{ACK_BYTES, Ack};
use crate::protocol::hello::Agreed;
use crate::protocol::sender::Sender;
use crate::transport::uring::{Completion, Mode, Uring};
use crate::transport::{Acked, ChannelCounters, ChannelError, PrimaryChannel, Stall};
use crate::writer::EntryWriter;

/// Room for the acknowledgements that may have queued.
const ACK_ROOM: usize = 64 * ACK_BYTES;

/// Longest single send: bounds the time that one kernel entry takes on the vCPU's thread.
const MAX_SEND: u64 = 256 << 10;

/// Zero-copy sends whose memory the kernel may still read.
const MAX_PINNED: usize = 16;

/// Kernel entries of one poll.
const POLL_ROUNDS: u32 = 4;

/// `IORING_RECVSEND_POLL_FIRST`: wait for the socket before trying it.
const POLL_FIRST: u16 = 1;

/// How log bytes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendKind {
    /// From registered memory, copied into socket buffers.
    Registered,
    /// Copied into socket buffers, the memory not being registered.
    Plain,
    /// Not copied. Whether the memory is registered.
    ZeroCopy { registered: bool },
}

/// The primary's end of a TCP connection.
///
/// Belongs to the thread that first flushes or polls it, and should be dropped there: dropped
/// elsewhere it leaks its ring's mapping rather than let the kernel write to memory that is gone.
#[derive(Debug)]
pub struct TcpPrimary {
    // Declared first, so dropped first: the kernel's side of the memory goes before ours.
    uring: Uring,
    stream: OwnedFd,
    ring: Ring,
    log: Consumer,
    sender: Sender,
    /// What was committed at the last flush: nothing behind it is sent.
    flushed: u64,
    wait: lockstep_ringbuf::WaitPolicy,
    kind: SendKind,
    sending: bool,
    /// Where zero-copy sends begin that the kernel has not let go of, by token.
    pinned: [Option<u64>; MAX_PINNED],
    receiving: bool,
    acks: Box<[u8; ACK_ROOM]>,
    acks_len: usize,
    failed: bool,
    counters: ChannelCounters,
}

impl TcpPrimary {
    /// Sends what is written to `ring` behind entry `last` over `stream`, on which the hellos were
    /// exchanged.
    ///
    /// # Errors
    /// The ring's consumer is taken, or the kernel lacks what the knobs ask for.
    pub fn new(
        stream: OwnedFd,
        ring: &Ring,
        last: Sequence,
        agreed: &Agreed,
        options: &TcpOptions,
    ) -> Result<Self, ChannelError> {
        let log = ring.consumer()?;
        let uring = Uring::new(options.sqpoll)?;
        if options.send_zc {
            uring.require(
                opcode::SendZc::CODE,
                "SEND_ZC",
                "set send-zc to false, or use Linux 6.0",
            )?;
        }
        socket::prepare(stream.as_fd(), &uring, options)?;
        // SAFETY: `ring` below keeps the memory mapped, and is dropped after `uring`.
        let registered = unsafe { uring.register_memory(ring.data_ptr(), ring.mapped_len())? };
        let kind = match (options.send_zc, registered) {
            (true, registered) => SendKind::ZeroCopy { registered },
            (false, true) => SendKind::Registered,
            (false, false) => SendKind::Plain,
        };
        let stall_ns = u64::try_from(options.stall_timeout.as_nanos()).unwrap_or(u64::MAX);
        let flushed = log.cursor();
        let sender = Sender::new(last, flushed, agreed.peer_ring_bytes, stall_ns);
        Ok(Self {
            uring,
            stream,
            ring: ring.clone(),
            log,
            sender,
            flushed,
            wait: options.wait,
            kind,
            sending: false,
            pinned: [None; MAX_PINNED],
            receiving: false,
            acks: Box::new([0; ACK_ROOM]),
            acks_len: 0,
            failed: false,
            counters: ChannelCounters {
                registered_memory: registered,
                ..ChannelCounters::default()
            },
        })
    }

    /// Queues a send of what may be sent, if none is under way.
    fn queue_send(&mut self) -> bool {
        let bytes = self.sender.sendable(self.flushed).min(MAX_SEND);
        if self.sending || bytes == 0 {
            return false;
        }
        let start = self.sender.sent_cursor();
        let from = self.ring.ptr_at(start).cast_const();
        let fd = types::Fd(self.stream.as_raw_fd());
        let bytes = bytes as u32;
        let entry = match self.kind {
            SendKind::Registered => opcode::WriteFixed::new(fd, from, bytes, 0)
                .build()
                .user_data(token::SEND),
            SendKind::Plain => opcode::Send::new(fd, from, bytes)
                .flags(libc::MSG_NOSIGNAL)
                .build()
                .user_data(token::SEND),
            SendKind::ZeroCopy { registered } => {
                let Some(slot) = self.pinned.iter().position(Option::is_none) else {
                    return false;
                };
                self.pinned[slot] = Some(start);
                opcode::SendZc::new(fd, from, bytes)
                    .flags(libc::MSG_NOSIGNAL)
                    .buf_index(registered.then_some(0))
                    .build()
                    .user_data(token::SEND + slot as u64)
            }
        };
        // SAFETY: the bytes are committed and not released: the writer leaves them alone until
        // `release`, which goes no further than what is acknowledged (so sent) and not pinned. They
        // stay mapped while `self.ring` lives, which `drop` sees to.
        unsafe { self.uring.push(&entry) };
        self.sending = true;
        self.counters.transfers += 1;
        true
    }

    /// Queues the reception of acknowledgements, if none is under way.
    fn queue_receive(&mut self, flags: u16) -> bool {
        if self.receiving {
            return false;
        }
        let to = self.acks[self.acks_len..].as_mut_ptr();
        let room = (ACK_ROOM - self.acks_len) as u32;
        let entry = opcode::Recv::new(types::Fd(self.stream.as_raw_fd()), to, room)
            .ioprio(flags)
            .build()
            .user_data(token::RECEIVE);
        // SAFETY: the buffer is on the heap, is not touched while `receiving`, and `drop` keeps it
        // until the operation is over.
        unsafe { self.uring.push(&entry) };
        self.receiving = true;
        true
    }

    /// Takes completions; returns whether an acknowledgement settled anything.
    fn take_completions(&mut self, now: u64) -> Result<bool, ChannelError> {
        let mut progress = false;
        while let Some(completion) = self.uring.completion() {
            if completion.token == token::RECEIVE {
                self.receiving = false;
                progress |= self.received(completion, now)?;
            } else {
                progress |= self.sent(completion, now)?;
            }
        }
        if progress {
            self.release();
        }
        Ok(progress)
    }

    fn sent(&mut self, completion: Completion, now: u64) -> Result<bool, ChannelError> {
        let slot = (completion.token - token::SEND) as usize;
        if cqueue::notif(completion.flags) {
            self.pinned[slot] = None;
            return Ok(true);
        }
        self.sending = false;
        if !cqueue::more(completion.flags) {
            self.pinned[slot] = None;
        }
        match completion.bytes() {
            Ok(bytes) => {
                self.counters.log_bytes += bytes as u64;
                self.sender.sent(bytes as u64, now);
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(ChannelError::of_connection("sending the log", error)),
        }
    }

    fn received(&mut self, completion: Completion, now: u64) -> Result<bool, ChannelError> {
        let bytes = match completion.bytes() {
            Ok(0) => {
                return Err(ChannelError::Closed {
                    how: "end of stream",
                });
            }
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => {
                return Err(ChannelError::of_connection(
                    "receiving acknowledgements",
                    error,
                ));
            }
        };
        self.acks_len += bytes;
        let mut progress = false;
        let (whole, rest) = self.acks[..self.acks_len].as_chunks::<ACK_BYTES>();
        let rest = rest.len();
        for bytes in whole {
            let ack = Ack::decode(bytes)?;
            let unacked = self.log.readable_from(self.sender.acked_cursor());
            progress |= self.sender.acknowledge(&ack, unacked, now)?;
            self.counters.acks += 1;
        }
        self.acks
            .copy_within(self.acks_len - rest..self.acks_len, 0);
        self.acks_len = rest;
        Ok(progress)
    }

    /// Gives acknowledged bytes that the kernel no longer reads back to the writer.
    fn release(&mut self) {
        let pinned = self
            .pinned
            .iter()
            .flatten()
            .min()
            .copied()
            .unwrap_or(u64::MAX);
        let end = self.sender.acked_cursor().min(pinned);
        let bytes = end.saturating_sub(self.log.released());
        if bytes > 0 {
            self.log.release(bytes as usize);
        }
    }

    fn try_flush(&mut self, now: u64) -> Result<(), ChannelError> {
        self.flushed = self.log.committed();
        let io = |error| ChannelError::of_connection("submitting to io_uring", error);
        if !self.queue_send() {
            return Ok(());
        }
        // In the same kernel entry; the acknowledgement cannot be there yet.
        self.queue_receive(POLL_FIRST);
        self.uring.submit().map_err(io)?;
        self.take_completions(now)?;
        Ok(())
    }

    fn try_poll(&mut self, now: u64) -> Result<Acked, ChannelError> {
        let io = |error| ChannelError::of_connection("submitting to io_uring", error);
        self.uring.run_task_work().map_err(io)?;
        let progress = self.take_completions(now)?;
        let more = !self.sending && self.sender.sendable(self.flushed) > 0;
        if progress && !more && self.uring.mode() == Mode::Deferred {
            // What waits for this is more urgent than the next reception, and the socket stays
            // readable without one.
            return Ok(self.sender.acked());
        }
        // Without a reception under way nobody would notice the peer's end. It tries the socket
        // first, so what is there is taken at once, and may be the credit to send more. Bounded, for
        // a peer that floods.
        for _ in 0..POLL_ROUNDS {
            if !(self.queue_receive(0) | self.queue_send()) {
                break;
            }
            self.uring.submit().map_err(io)?;
            self.uring.run_task_work().map_err(io)?;
            self.take_completions(now)?;
        }
        Ok(self.sender.acked())
    }

    fn try_wait(&mut self, timeout: Duration) -> Result<(), ChannelError> {
        let io = |error| ChannelError::of_connection("waiting with io_uring", error);
        self.queue_receive(0);
        self.uring.wait(1, &self.wait, timeout).map_err(io)
    }

    fn guard<T>(
        &mut self,
        call: impl FnOnce(&mut Self) -> Result<T, ChannelError>,
    ) -> Result<T, ChannelError> {
        if self.failed {
            return Err(ChannelError::Closed {
                how: "the channel failed before",
            });
        }
        let result = call(self);
        self.failed = result.is_err();
        result
    }

    /// As [`PrimaryChannel::flush`], for a thread that does not have the writer.
    ///
    /// # Errors
    /// The channel is unusable.
    pub fn flush_ring(&mut self, now: u64) -> Result<(), ChannelError> {
        self.guard(|channel| channel.try_flush(now))
    }

    /// As [`PrimaryChannel::poll`], for a thread that does not have the writer.
    ///
    /// # Errors
    /// The channel is unusable.
    pub fn poll_ring(&mut self, now: u64) -> Result<Acked, ChannelError> {
        self.guard(|channel| channel.try_poll(now))
    }

    /// What is known of the backup.
    #[must_use]
    pub const fn acked(&self) -> Acked {
        self.sender.acked()
    }

    /// Whether a flush would send something.
    pub(crate) fn sendable(&self) -> bool {
        !self.sending && self.sender.sendable(self.log.committed()) > 0
    }

    /// Whether a poll would take something.
    pub(crate) fn ready(&mut self) -> Result<bool, ChannelError> {
        let io = |error| ChannelError::of_connection("asking io_uring", error);
        self.uring.ready().map_err(io)
    }

    /// As [`PrimaryChannel::wait_fd`].
    pub(crate) fn readable_fd(&self) -> BorrowedFd<'_> {
        match self.uring.mode() {
            // The kernel takes nothing from the socket before this thread asks.
            Mode::Deferred => self.stream.as_fd(),
            // It may take what arrives at any time: the completion is what is left to see.
            Mode::Cooperative | Mode::SqPoll => self.uring.as_fd(),
        }
    }
}

impl PrimaryChannel for TcpPrimary {
    fn flush(&mut self, _log: &EntryWriter, now: u64) -> Result<(), ChannelError> {
        self.flush_ring(now)
    }

    fn poll(&mut self, _log: &EntryWriter, now: u64) -> Result<Acked, ChannelError> {
        self.poll_ring(now)
    }

    fn wake_backup(&mut self, _log: &EntryWriter) {}

    fn wait(
        &mut self,
        log: &EntryWriter,
        room: usize,
        timeout: Duration,
    ) -> Result<(), ChannelError> {
        if room > 0 && log.producer().free() >= room {
            return Ok(());
        }
        self.guard(|channel| channel.try_wait(timeout))
    }

    fn wait_fd(&mut self) -> BorrowedFd<'_> {
        self.readable_fd()
    }

    fn stalled(&self, now: u64) -> Option<Stall> {
        self.sender.stalled(now)
    }

    fn counters(&self) -> ChannelCounters {
        ChannelCounters {
            kernel_entries: self.uring.kernel_entries(),
            ..self.counters
        }
    }
}

impl Drop for TcpPrimary {
    fn drop(&mut self) {
        let pinned = self.pinned.iter().flatten().count();
        let under_way = usize::from(self.receiving)
            + usize::from(self.sending && !matches!(self.kind, SendKind::ZeroCopy { .. }))
            + pinned;
        if !socket::give_up(self.stream.as_fd(), &mut self.uring, under_way) {
            // The kernel may still read the ring and write the acknowledgements.
            std::mem::forget(self.ring.clone());
            std::mem::forget(std::mem::replace(&mut self.acks, Box::new([0; ACK_ROOM])));
        }
    }
}
