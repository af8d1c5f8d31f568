//! The backup's end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use lockstep_ringbuf::{Cursor, CursorFault};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::control::ControlPage;
use super::{LOOK_NS, NAP, ShmAck, ShmOptions, ShmParts};
use crate::entry::{EntryError, Limits, Sequence, decode};
use crate::reader::{Checked, EntryReader};
use crate::received::ReceivedCursor;
use crate::transport::{BackupChannel, ChannelCounters, ChannelError, Received, ReplayReport};

/// The backup's end of a shared ring. Drop it before the reader seals the ring: its thread reads the
/// ring, too.
#[derive(Debug)]
pub struct ShmBackup {
    stream: OwnedFd,
    parts: ShmParts,
    options: ShmOptions,
    limits: Limits,
    /// Last entry checked, and the byte behind it ([`ShmAck::Received`]).
    last: Sequence,
    cursor: ReceivedCursor,
    next_look: u64,
    counters: ChannelCounters,
}

impl ShmBackup {
    /// Attaches `parts`, which came over `stream`, behind entry `last`. The reader is for the
    /// replaying thread.
    ///
    /// # Errors
    /// The ring's consumer is taken, or its cursors are corrupt.
    pub fn new(
        stream: OwnedFd,
        parts: ShmParts,
        last: Sequence,
        options: ShmOptions,
    ) -> Result<(Self, EntryReader), ChannelError> {
        let consumer = parts.ring.consumer()?;
        let cursor = ReceivedCursor::at(consumer.cursor());
        let checked = match options.ack {
            ShmAck::Committed => Checked::ByReader,
            ShmAck::Received => Checked::BehindReceiver(cursor.clone()),
        };
        let reader = EntryReader::new(consumer, last, checked);
        let limits = Limits::of_ring(parts.ring.capacity() as u64);
        let counters = ChannelCounters::default();
        Ok((
            Self {
                stream,
                parts,
                options,
                limits,
                last,
                cursor,
                next_look: 0,
                counters,
            },
            reader,
        ))
    }

    /// Takes wake-ups from the socket and notices its end.
    fn look(&mut self) -> Result<(), ChannelError> {
        self.next_look = lockstep_perf::stamp::now().saturating_add(LOOK_NS);
        self.counters.kernel_entries += 1;
        let mut bytes = [0_u8; 64];
        match recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(ChannelError::Closed {
                how: "end of stream",
            }),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(ChannelError::of_connection(
                "reading the channel's socket",
                errno.into(),
            )),
        }
    }

    /// Sleeps at the socket: with nothing to check, only the peer's end can come.
    fn sleep_at_socket(&mut self, time: Duration) -> Result<(), ChannelError> {
        self.counters.kernel_entries += 1;
        let timeout = rustix::time::Timespec::try_from(time).ok();
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => self.look(),
            Err(errno) => Err(ChannelError::of_connection(
                "watching the channel's socket",
                errno.into(),
            )),
        }
    }

    /// Checks what was handed over and acknowledges it; returns whether there was anything.
    fn check_entries(&mut self) -> Result<bool, ChannelError> {
        let start = self.cursor.get();
        let handed_over = self.parts.page.flushed().wrapping_sub(start);
        if handed_over == 0 {
            return Ok(false);
        }
        let capacity = self.parts.ring.capacity() as u64;
        if handed_over > capacity {
            return Err(ChannelError::Corrupt(CursorFault {
                cursor: Cursor::Committed,
                found: start.wrapping_add(handed_over),
                low: start,
                high: start.wrapping_add(capacity),
            }));
        }
        // SAFETY: `handed_over <= capacity` bytes from here are mapped while `self.parts` lives, and
        // initialised, being a file's. A primary that keeps to the protocol committed them before it
        // stored the cursor (Acquire in `flushed`) and does not write them again before they are
        // released, which the reader does only behind `self.cursor`, unless it sealed the ring, which
        // it does only after this channel was dropped. A primary that does not keep to it may change
        // the bytes at any time; it is another process, and nothing but wrong bytes can come of it.
        let mut bytes = unsafe {
            std::slice::from_raw_parts(self.parts.ring.ptr_at(start), handed_over as usize)
        };
        let mut end = start;
        let mut failure = None;
        while !bytes.is_empty() {
            match self.next_entry(bytes) {
                Ok((sequence, length)) => {
                    self.last = sequence;
                    end = end.wrapping_add(length as u64);
                    bytes = &bytes[length..];
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let checked = end.wrapping_sub(start);
        self.counters.log_bytes += checked;
        self.counters.transfers += 1;
        if checked > 0 {
            self.cursor.advance(end);
            self.acknowledge();
            self.cursor.wake_reader();
        }
        failure.map_or(Ok(true), |error| Err(error.into()))
    }

    /// The entry at the start of `bytes`, which holds whole entries only.
    fn next_entry(&self, bytes: &[u8]) -> Result<(Sequence, usize), EntryError> {
        let Some(entry) = decode(bytes, self.limits)? else {
            return Err(EntryError::Truncated {
                found: bytes.len() as u64,
            });
        };
        let (found, expected) = (entry.sequence(), self.last.next());
        if found != expected {
            return Err(EntryError::Sequence { found, expected });
        }
        Ok((found, entry.bytes_in_log()))
    }

    fn acknowledge(&mut self) {
        let page: &Arc<ControlPage> = &self.parts.page;
        page.acknowledge(self.last);
        page.primary_bell().ring();
        self.counters.acks += 1;
        if page.take_byte_wish() {
            self.counters.kernel_entries += 1;
            // A full socket holds bytes enough to wake the primary; a broken one is found at the next
            // look.
            let _sent = send(
                &self.stream,
                &[0],
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
        }
    }
}

impl BackupChannel for ShmBackup {
    fn receive(&mut self, time: Duration) -> Result<Received, ChannelError> {
        if self.options.ack == ShmAck::Committed {
            // The entries are where the replaying thread reads them; only the peer's end can come.
            self.sleep_at_socket(time)?;
            return Ok(Received {
                last: None,
                progress: false,
            });
        }
        let before = self.last;
        let end = lockstep_perf::stamp::now().saturating_add(time.as_nanos() as u64);
        loop {
            let idle = !self.check_entries()?;
            let now = lockstep_perf::stamp::now();
            if now >= self.next_look
                && let Err(gone) = self.look()
            {
                // What the peer handed over before it died counts.
                self.check_entries()?;
                return Err(gone);
            }
            if now >= end {
                return Ok(Received {
                    last: Some(self.last),
                    progress: self.last > before,
                });
            }
            if idle {
                let (page, cursor) = (&self.parts.page, self.cursor.get());
                let nap = Duration::from_nanos(end - now).min(NAP);
                page.receiver_bell()
                    .wait(&self.options.wait, nap, || page.flushed() != cursor);
            }
        }
    }

    fn wake_reader(&self) {
        match self.options.ack {
            ShmAck::Committed => self.parts.ring.wake_consumer(),
            ShmAck::Received => self.cursor.wake_reader(),
        }
    }

    fn report(&self) -> ReplayReport {
        ReplayReport::shared(Arc::clone(&self.parts.page))
    }

    fn counters(&self) -> ChannelCounters {
        self.counters
    }
}
