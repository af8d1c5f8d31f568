//! The primary's end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use lockstep_ringbuf::Waited;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, recv};

use super::{LOOK_NS, NAP, ShmAck, ShmOptions, ShmParts};
use crate::entry::Sequence;
use crate::protocol::ack::AckError;
use crate::transport::{Acked, ChannelCounters, ChannelError, PrimaryChannel, Stall};
use crate::writer::EntryWriter;

/// The primary's end of a shared ring.
#[derive(Debug)]
pub struct ShmPrimary {
    stream: OwnedFd,
    parts: ShmParts,
    options: ShmOptions,
    known: Acked,
    /// Last entry handed over.
    flushed: Sequence,
    waiting_since: Option<u64>,
    next_look: u64,
    /// The look that is due was put off at the last poll.
    put_off: bool,
    failed: bool,
    counters: ChannelCounters,
}

impl ShmPrimary {
    /// Shares `parts`, which were passed over `stream`, behind entry `last`.
    #[must_use]
    pub fn new(stream: OwnedFd, parts: ShmParts, last: Sequence, options: ShmOptions) -> Self {
        Self {
            stream,
            parts,
            options,
            known: Acked {
                acked: last,
                ..Acked::default()
            },
            flushed: last,
            waiting_since: None,
            next_look: 0,
            put_off: false,
            failed: false,
            counters: ChannelCounters::default(),
        }
    }

    /// Looks at what changes rarely: whether the peer lives, how far it has replayed, and how much
    /// room there is.
    fn look(&mut self, log: &EntryWriter, now: u64) -> Result<(), ChannelError> {
        self.next_look = now.saturating_add(LOOK_NS);
        self.counters.kernel_entries += 1;
        let mut bytes = [0_u8; 64];
        match recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                return Err(ChannelError::Closed {
                    how: "end of stream",
                });
            }
            // Wake-ups.
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(ChannelError::of_connection(
                    "reading the channel's socket",
                    errno.into(),
                ));
            }
        }
        if let Some(fault) = log.producer().fault() {
            return Err(ChannelError::Corrupt(fault));
        }
        if log.producer().sealed() {
            return Err(ChannelError::Sealed);
        }
        let replayed = self.parts.page.report().load();
        // The peer may have written anything: never more than there is.
        self.known.replayed = replayed.sequence.min(log.last_sequence());
        self.known.replayed_position = replayed.position;
        self.known.credit = log.producer().free() as u64;
        Ok(())
    }

    /// The last entry acknowledged, as the knob has it.
    fn acked(&self, log: &EntryWriter) -> Result<Sequence, ChannelError> {
        let last = log.last_sequence();
        match self.options.ack {
            // The order is the contract of `Producer::sealed`: everything up to `last` was committed
            // before the question.
            ShmAck::Committed if last > self.known.acked && log.producer().sealed() => {
                Err(ChannelError::Sealed)
            }
            ShmAck::Committed => Ok(last),
            ShmAck::Received => {
                let acked = self.parts.page.acked();
                if acked > last {
                    return Err(AckError::BeyondSent {
                        found: acked,
                        sent: last,
                    }
                    .into());
                }
                Ok(acked.max(self.known.acked))
            }
        }
    }

    /// Takes the acknowledgement that is there. Whether it is news.
    fn take_acked(&mut self, log: &EntryWriter, now: u64) -> Result<bool, ChannelError> {
        let acked = self.acked(log)?;
        let news = acked > self.known.acked;
        if news {
            self.counters.acks += 1;
            self.known.acked = acked;
            self.waiting_since = (acked < self.flushed).then_some(now);
        }
        Ok(news)
    }

    fn try_poll(&mut self, log: &EntryWriter, now: u64) -> Result<Acked, ChannelError> {
        let news = self.take_acked(log, now)?;
        if now >= self.next_look {
            // What waits for the acknowledgement goes before a system call, but not time and again.
            self.put_off = news && !self.put_off;
            if !self.put_off {
                self.look(log, now)?;
                // The look may have taken the byte of an acknowledgement that came after the first
                // question: nobody would wake a thread that went to sleep without it.
                self.take_acked(log, now)?;
            }
        }
        Ok(self.known)
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
}

impl PrimaryChannel for ShmPrimary {
    fn flush(&mut self, log: &EntryWriter, now: u64) -> Result<(), ChannelError> {
        let last = log.last_sequence();
        if self.options.ack == ShmAck::Received && last > self.flushed {
            self.parts.page.flush(log.producer().committed());
            self.parts.page.receiver_bell().ring();
            self.counters.transfers += 1;
            self.waiting_since.get_or_insert(now);
        }
        self.flushed = last;
        Ok(())
    }

    fn poll(&mut self, log: &EntryWriter, now: u64) -> Result<Acked, ChannelError> {
        self.counters.log_bytes = log.producer().committed();
        self.guard(|channel| channel.try_poll(log, now))
    }

    fn wake_backup(&mut self, log: &EntryWriter) {
        log.producer().wake_consumer();
    }

    fn wait(
        &mut self,
        log: &EntryWriter,
        room: usize,
        timeout: Duration,
    ) -> Result<(), ChannelError> {
        let wait = &self.options.wait;
        if room > log.producer().free() {
            // Sealed or corrupt: the next look says so.
            if log.producer().wait_free(room, wait, Some(timeout.min(NAP))) != Waited::Ready {
                self.next_look = 0;
            }
        } else if self.options.ack == ShmAck::Received && self.known.acked < self.flushed {
            let (page, known) = (&self.parts.page, self.known.acked);
            page.primary_bell()
                .wait(wait, timeout.min(NAP), || page.acked() != known);
        } else {
            // Nothing is outstanding: only the peer's end, or a byte, can come.
            self.counters.kernel_entries += 1;
            let timeout = rustix::time::Timespec::try_from(timeout).ok();
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            let _ready = poll(&mut fds, timeout.as_ref());
            self.next_look = 0;
        }
        Ok(())
    }

    fn wait_fd(&mut self) -> BorrowedFd<'_> {
        if self.options.ack == ShmAck::Received {
            self.parts.page.want_byte();
        }
        // What makes the descriptor readable is found by looking at it.
        self.next_look = 0;
        self.stream.as_fd()
    }

    fn stalled(&self, now: u64) -> Option<Stall> {
        let for_ns = now.saturating_sub(self.waiting_since?);
        (u128::from(for_ns) >= self.options.stall_timeout.as_nanos()).then_some(Stall {
            acked: self.known.acked,
            unacked_bytes: self.parts.ring.fill() as u64,
            for_ns,
        })
    }

    fn counters(&self) -> ChannelCounters {
        self.counters
    }
}
