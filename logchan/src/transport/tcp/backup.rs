//! The backup's end: receives into the ring, checks, commits, acknowledges.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{opcode, types};
use lockstep_ringbuf::{Producer, Ring, WaitPolicy};

use super::{TcpOptions, socket, token};
use crate::entry::{EntryError, Sequence};
use crate::protocol::ack::ACK_BYTES;
use crate::protocol::receiver::{Receiver, Verdict};
use crate::reader::{Checked, EntryReader};
use crate::transport::uring::Uring;
use crate::transport::{BackupChannel, ChannelCounters, ChannelError, Received, ReplayReport};

/// Longest single reception.
const MAX_RECEIVE: usize = 1 << 20;

/// Longest sleep while the ring is full, or the sender may be out of credit: nothing wakes this
/// thread when the replay makes room.
const NAP: Duration = Duration::from_millis(1);

/// The backup's end of a TCP connection.
///
/// Belongs to the thread that first receives with it, and should be dropped there: dropped elsewhere
/// it leaks its ring's mapping rather than let the kernel write to memory that is gone.
#[derive(Debug)]
pub struct TcpBackup {
    // Declared first, so dropped first: the kernel's side of the memory goes before ours.
    uring: Uring,
    stream: OwnedFd,
    ring: Ring,
    log: Producer,
    receiver: Receiver,
    report: ReplayReport,
    wait: WaitPolicy,
    /// Bytes received behind the committed ones: the start of an entry.
    arrived: usize,
    receiving: bool,
    ack: Box<[u8; ACK_BYTES]>,
    /// Bytes of `ack` that are sent; `ACK_BYTES` if none is under way.
    ack_sent: usize,
    acking: bool,
    /// The second connection, see [`crate::protocol::hello::Lifeline`].
    lifeline: Option<OwnedFd>,
    /// The kernel watches it.
    watching: bool,
    /// It has ended: what is in the stream is all that there will ever be.
    ending: bool,
    counters: ChannelCounters,
}

impl TcpBackup {
    /// Receives the log behind entry `last` into `ring`, over `stream`, on which the hellos were
    /// exchanged. The reader is for the replaying thread.
    ///
    /// # Errors
    /// An end of the ring is taken, or the kernel lacks what the knobs ask for.
    pub fn new(
        stream: OwnedFd,
        ring: &Ring,
        last: Sequence,
        options: &TcpOptions,
    ) -> Result<(Self, EntryReader), ChannelError> {
        let log = ring.producer()?;
        let reader = EntryReader::new(ring.consumer()?, last, Checked::ByReceiver);
        let uring = Uring::new(options.sqpoll)?;
        socket::prepare(stream.as_fd(), &uring, options)?;
        let receiver = Receiver::new(last, ring.capacity() as u64, options.ack);
        let channel = Self {
            uring,
            stream,
            ring: ring.clone(),
            log,
            receiver,
            report: ReplayReport::local(),
            wait: options.wait,
            arrived: 0,
            receiving: false,
            ack: Box::new([0; ACK_BYTES]),
            ack_sent: ACK_BYTES,
            acking: false,
            lifeline: None,
            watching: false,
            ending: false,
            counters: ChannelCounters::default(),
        };
        Ok((channel, reader))
    }

    /// Takes the end of `lifeline` for the primary's.
    #[must_use]
    pub fn watching(mut self, lifeline: Option<OwnedFd>) -> Self {
        self.lifeline = lifeline;
        self
    }

    /// Queues a watch of the lifeline, once.
    fn queue_watch(&mut self) {
        let Some(lifeline) = self.lifeline.as_ref().filter(|_| !self.watching) else {
            return;
        };
        // Nothing is ever sent on it, so whatever happens there is its end.
        let entry = opcode::PollAdd::new(types::Fd(lifeline.as_raw_fd()), libc::POLLIN as u32)
            .build()
            .user_data(token::LIFELINE);
        // SAFETY: it points at no memory; the descriptor is open while `self.lifeline` lives.
        unsafe { self.uring.push(&entry) };
        self.watching = true;
    }

    /// Queues a reception into the ring's free part, if there is one and none is under way.
    fn queue_receive(&mut self) -> bool {
        if self.receiving {
            return true;
        }
        let room = self
            .log
            .free()
            .saturating_sub(self.arrived)
            .min(MAX_RECEIVE);
        if room == 0 {
            return false;
        }
        let to = self
            .ring
            .ptr_at(self.log.committed().wrapping_add(self.arrived as u64));
        let entry = opcode::Recv::new(types::Fd(self.stream.as_raw_fd()), to, room as u32)
            .build()
            .user_data(token::RECEIVE);
        // SAFETY: these bytes are free and behind the `arrived` ones. This producer, the only one,
        // touches nothing behind those while `receiving`; the consumer sees nothing behind the
        // committed ones. They stay mapped while `self.ring` lives, which `drop` sees to.
        unsafe { self.uring.push(&entry) };
        self.receiving = true;
        true
    }

    /// Queues an acknowledgement if one is due and none is under way.
    fn queue_ack(&mut self, now: u64) -> bool {
        if self.acking {
            return false;
        }
        if self.ack_sent == ACK_BYTES {
            let (replayed, free) = (self.report.get(), self.log.free() as u64);
            if !self.receiver.ack_due(now, replayed, free) {
                return false;
            }
            *self.ack = self.receiver.ack(now, replayed, free).encode();
            self.ack_sent = 0;
            self.counters.acks += 1;
        }
        let rest = &self.ack[self.ack_sent..];
        let entry = opcode::Send::new(
            types::Fd(self.stream.as_raw_fd()),
            rest.as_ptr(),
            rest.len() as u32,
        )
        .flags(libc::MSG_NOSIGNAL)
        .build()
        .user_data(token::SEND);
        // SAFETY: the buffer is on the heap, is not touched while `acking`, and `drop` keeps it until
        // the operation is over.
        unsafe { self.uring.push(&entry) };
        self.acking = true;
        true
    }

    /// Takes completions; returns whether log bytes arrived.
    fn take_completions(&mut self) -> Result<bool, ChannelError> {
        let mut arrived = false;
        while let Some(completion) = self.uring.completion() {
            if completion.token == token::SEND {
                self.acking = false;
                match completion.bytes() {
                    Ok(bytes) => self.ack_sent = (self.ack_sent + bytes).min(ACK_BYTES),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        return Err(ChannelError::of_connection(
                            "sending an acknowledgement",
                            error,
                        ));
                    }
                }
                continue;
            }
            if completion.token == token::LIFELINE {
                self.watching = false;
                self.lifeline = None;
                self.ending = true;
                continue;
            }
            self.receiving = false;
            match completion.bytes() {
                // Half an entry, if there is one, was never acknowledged; nobody will miss it.
                Ok(0) => {
                    return Err(ChannelError::Closed {
                        how: "end of stream",
                    });
                }
                Ok(bytes) => {
                    self.arrived += bytes;
                    self.counters.log_bytes += bytes as u64;
                    self.counters.transfers += 1;
                    arrived = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ChannelError::of_connection("receiving the log", error)),
            }
        }
        Ok(arrived)
    }

    /// Checks the bytes that arrived and makes whole entries visible, without waking their reader.
    fn accept(&mut self, now: u64) -> Result<(), ChannelError> {
        let bytes = self.log.reserve(self.arrived);
        let bytes: &[u8] = match bytes {
            Ok(bytes) => bytes,
            // They were free when they were received into, and only this end makes fewer.
            Err(_) => match self.log.fault() {
                Some(fault) => return Err(ChannelError::Corrupt(fault)),
                None => unreachable!("{} received bytes are no longer free", self.arrived),
            },
        };
        let mut whole = 0;
        let mut failure = None;
        while failure.is_none() {
            match self.receiver.accept(&bytes[whole..], now) {
                Ok(Verdict::Next(entry)) => whole += entry.bytes_in_log(),
                Ok(Verdict::Incomplete) => break,
                // TCP neither loses nor repeats: the peer is broken.
                Ok(Verdict::Duplicate(entry)) => {
                    failure = Some(EntryError::Sequence {
                        found: entry.sequence(),
                        expected: self.receiver.last_sequence().next(),
                    });
                }
                Ok(Verdict::Gap { expected, found }) => {
                    failure = Some(EntryError::Sequence { found, expected });
                }
                Err(error) => failure = Some(error),
            }
        }
        self.log.publish(whole);
        self.arrived -= whole;
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Behind the lifeline's end: whether the stream has nothing more to take now, so that nothing more
    /// will come. What is still on its way between two hosts then was never acknowledged.
    fn arrived_all(&mut self) -> Result<bool, ChannelError> {
        if !self.queue_receive() {
            return Ok(false);
        }
        self.uring
            .submit()
            .and_then(|()| self.uring.ready())
            .map(|more| !more)
            .map_err(|error| ChannelError::of_connection("submitting to io_uring", error))
    }

    /// One round: take what arrived, acknowledge, wake the reader.
    fn round(&mut self) -> Result<bool, ChannelError> {
        let io = |error| ChannelError::of_connection("submitting to io_uring", error);
        self.uring.run_task_work().map_err(io)?;
        let taken = self.take_completions();
        let mut accepted = Ok(());
        let arrived = self.arrived;
        if arrived > 0 {
            accepted = self.accept(lockstep_perf::stamp::now());
        }
        if accepted.is_ok() && taken.is_ok() && self.queue_ack(lockstep_perf::stamp::now()) {
            // The primary's outputs wait for this one; the replay can wait for what follows.
            self.uring.submit().map_err(io)?;
        }
        let progress = self.arrived < arrived;
        if progress {
            self.log.wake_consumer();
        }
        accepted?;
        taken?;
        Ok(progress)
    }

    /// Waits for bytes, for room, or until an acknowledgement falls due.
    fn wait(&mut self, now: u64, end: u64) -> Result<(), ChannelError> {
        let io = |error| ChannelError::of_connection("waiting with io_uring", error);
        let until = self
            .receiver
            .ack_at(self.report.get())
            .map_or(end, |at| at.min(end));
        let mut time = Duration::from_nanos(until.saturating_sub(now));
        self.queue_watch();
        if !self.queue_receive() {
            let room = self.arrived + 1;
            let _room = self.log.wait_free(room, &self.wait, Some(time.min(NAP)));
            return self
                .log
                .fault()
                .map_or(Ok(()), |fault| Err(ChannelError::Corrupt(fault)));
        }
        if self.receiver.sender_starved() {
            time = time.min(NAP);
        }
        self.uring.wait(1, &self.wait, time).map_err(io)
    }
}

impl BackupChannel for TcpBackup {
    fn receive(&mut self, time: Duration) -> Result<Received, ChannelError> {
        let end = lockstep_perf::stamp::now().saturating_add(time.as_nanos() as u64);
        let mut progress = false;
        loop {
            progress |= self.round()?;
            let now = lockstep_perf::stamp::now();
            if self.ending && self.arrived_all()? {
                return Err(ChannelError::Closed {
                    how: "the primary's process ended",
                });
            }
            if now >= end {
                return Ok(Received {
                    last: Some(self.receiver.last_sequence()),
                    progress,
                });
            }
            // The acknowledgement just sent has completed by now, as a rule.
            if !self.uring.has_completion() {
                self.wait(now, end)?;
            }
        }
    }

    fn wake_reader(&self) {
        self.log.wake_consumer();
    }

    fn report(&self) -> ReplayReport {
        self.report.clone()
    }

    fn counters(&self) -> ChannelCounters {
        ChannelCounters {
            kernel_entries: self.uring.kernel_entries(),
            ..self.counters
        }
    }
}

impl Drop for TcpBackup {
    fn drop(&mut self) {
        if let Some(lifeline) = &self.lifeline {
            // Ends the watch. Fails where the connection is gone already.
            let _gone = rustix::net::shutdown(lifeline, rustix::net::Shutdown::Both);
        }
        let under_way =
            usize::from(self.receiving) + usize::from(self.acking) + usize::from(self.watching);
        if !socket::give_up(self.stream.as_fd(), &mut self.uring, under_way) {
            // The kernel may still write to the ring and read the acknowledgement.
            std::mem::forget(self.ring.clone());
            std::mem::forget(std::mem::replace(&mut self.ack, Box::new([0; ACK_BYTES])));
        }
    }
}
