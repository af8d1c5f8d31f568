//! A TCP channel with a thread of its own, on a core of its own where there is one (`flush = core`).
//!
//! The vCPU's thread commits entries and goes on; the channel's thread sends them, takes the
//! acknowledgements, gives the ring's bytes back and publishes how far the log is acknowledged.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_perf::pin::{Placement, place};
use lockstep_perf::stamp;
use lockstep_ringbuf::{WaitPolicy, Waited};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::tcp::TcpPrimary;
use super::{Acked, ChannelCounters, ChannelError, PrimaryChannel, Stall};
use crate::bell::Bell;
use crate::entry::Sequence;
use crate::writer::EntryWriter;

/// Longest sleep of the channel's thread, and of the vCPU's at the bell.
const NAP: Duration = Duration::from_millis(5);

/// What the two threads share. The channel's thread writes the figures; the vCPU's thread glances at
/// them.
#[derive(Debug)]
struct Shared {
    acked: AtomicU64,
    replayed: AtomicU64,
    replayed_position: AtomicU64,
    credit: AtomicU64,
    /// Rung when any of them changed, or the channel failed.
    news: Bell,
    /// The vCPU's thread sleeps at `news_fd`.
    fd_wanted: AtomicBool,
    news_fd: OwnedFd,
    /// The channel's thread sleeps at `work_fd`.
    asleep: AtomicBool,
    work_fd: OwnedFd,
    stop: AtomicBool,
    failed: AtomicBool,
    report: Mutex<Report>,
}

/// What is looked at rarely.
#[derive(Debug, Default)]
struct Report {
    error: Option<ChannelError>,
    stall: Option<Stall>,
    counters: ChannelCounters,
    placement: Option<Placement>,
}

/// The vCPU's handle of a channel that another thread drives.
#[derive(Debug)]
pub struct OnCore {
    shared: Arc<Shared>,
    wait: WaitPolicy,
    /// Sequence last seen acknowledged: what is new is newer.
    seen: Sequence,
    thread: Option<JoinHandle<()>>,
}

impl OnCore {
    /// Starts a thread that drives `channel`, on `core` if that is not negative. `idle` is how that
    /// thread waits for work, `wait` how the vCPU's thread waits for acknowledgements.
    ///
    /// # Errors
    /// The thread, or what wakes it, could not be made.
    pub fn start(
        channel: TcpPrimary,
        core: i32,
        idle: WaitPolicy,
        wait: WaitPolicy,
    ) -> Result<Self, ChannelError> {
        let fd = || {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| {
                ChannelError::Io {
                    step: "making an eventfd",
                    source: errno.into(),
                }
            })
        };
        let seen = channel.acked().acked;
        let shared = Arc::new(Shared {
            acked: AtomicU64::new(seen.0),
            replayed: AtomicU64::new(0),
            replayed_position: AtomicU64::new(0),
            credit: AtomicU64::new(0),
            news: Bell::default(),
            fd_wanted: AtomicBool::new(false),
            news_fd: fd()?,
            asleep: AtomicBool::new(false),
            work_fd: fd()?,
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            report: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("log-channel".into())
            .spawn(move || drive(channel, &theirs, core, idle))
            .map_err(|source| ChannelError::Io {
                step: "starting the channel's thread",
                source,
            })?;
        Ok(Self {
            shared,
            wait,
            seen,
            thread: Some(thread),
        })
    }

    /// Where the channel's thread runs; `None` until it has started.
    #[must_use]
    pub fn placement(&self) -> Option<Placement> {
        self.shared.report().placement.clone()
    }

    fn check(&self) -> Result<(), ChannelError> {
        // Acquire: pairs with the Release in `Shared::fail`.
        if !self.shared.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = self.shared.report().error.take();
        Err(error.unwrap_or(ChannelError::Closed {
            how: "the channel failed before",
        }))
    }
}

impl Shared {
    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        // Every state of a report is a good one.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, acked: &Acked) {
        self.replayed.store(acked.replayed.0, Ordering::Relaxed);
        self.replayed_position
            .store(acked.replayed_position, Ordering::Relaxed);
        self.credit.store(acked.credit, Ordering::Relaxed);
        // Release: pairs with the Acquire in `glance`.
        self.acked.store(acked.acked.0, Ordering::Release);
        self.tell();
    }

    /// Wakes the vCPU's thread, wherever it sleeps.
    fn tell(&self) {
        self.news.ring();
        // Pairs with the fence in `wait_fd`: either this load sees the wish, or that thread's next
        // poll sees the news.
        fence(Ordering::SeqCst);
        if self.fd_wanted.load(Ordering::Relaxed) && self.fd_wanted.swap(false, Ordering::Relaxed) {
            signal(&self.news_fd);
        }
    }

    fn glance(&self) -> Acked {
        // Acquire: pairs with the Release in `publish`; what lies beside is no older.
        let acked = Sequence(self.acked.load(Ordering::Acquire));
        Acked {
            acked,
            replayed: Sequence(self.replayed.load(Ordering::Relaxed)).min(acked),
            replayed_position: self.replayed_position.load(Ordering::Relaxed),
            credit: self.credit.load(Ordering::Relaxed),
        }
    }

    fn fail(&self, error: ChannelError) {
        self.report().error = Some(error);
        // Release: pairs with the Acquire in `check`.
        self.failed.store(true, Ordering::Release);
        self.tell();
    }

    /// Wakes the channel's thread if it sleeps.
    fn wake(&self) {
        // Pairs with the fence in `sleep`: either this load sees that it sleeps, or its look sees what
        // was committed.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            signal(&self.work_fd);
        }
    }
}

/// Adds one to an eventfd's counter. Fails only when that is nearly 2^64, and then it is readable.
fn signal(fd: &OwnedFd) {
    let _written = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

fn drain(fd: &OwnedFd) {
    let mut count = [0; 8];
    // Fails only when there is nothing to drain.
    let _read = rustix::io::read(fd, &mut count);
}

/// The channel's thread.
fn drive(mut channel: TcpPrimary, shared: &Shared, core: i32, idle: WaitPolicy) {
    shared.report().placement = Some(place(core));
    if let Err(error) = drive_until_stopped(&mut channel, shared, &idle) {
        shared.fail(error);
    }
}

fn drive_until_stopped(
    channel: &mut TcpPrimary,
    shared: &Shared,
    idle: &WaitPolicy,
) -> Result<(), ChannelError> {
    let mut published = channel.acked();
    let mut busy_at = stamp::now();
    let mut report_at = 0;
    // Relaxed: nothing else is ordered by it.
    while !shared.stop.load(Ordering::Relaxed) {
        let now = stamp::now();
        channel.flush_ring(now)?;
        let acked = channel.poll_ring(now)?;
        if acked != published {
            shared.publish(&acked);
            published = acked;
            busy_at = now;
        }
        if now >= report_at {
            let mut report = shared.report();
            report.stall = channel.stalled(now);
            report.counters = channel.counters();
            report_at = now + NAP.as_nanos() as u64;
        }
        let spin = match idle {
            WaitPolicy::Spin => continue,
            WaitPolicy::SpinThenBlock { spin } => *spin,
            WaitPolicy::Block => Duration::ZERO,
        };
        if u128::from(now.saturating_sub(busy_at)) >= spin.as_nanos() {
            sleep(channel, shared)?;
            busy_at = stamp::now();
        } else {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// Sleeps until there is something to send or to take.
fn sleep(channel: &mut TcpPrimary, shared: &Shared) -> Result<(), ChannelError> {
    shared.asleep.store(true, Ordering::Relaxed);
    // Pairs with the fence in `wake`.
    fence(Ordering::SeqCst);
    if !channel.sendable() && !channel.ready()? {
        let mut fds = [
            PollFd::new(&shared.work_fd, PollFlags::IN),
            PollFd::from_borrowed_fd(channel.readable_fd(), PollFlags::IN),
        ];
        let timeout = rustix::time::Timespec::try_from(NAP).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                let source = io::Error::from(errno);
                return Err(ChannelError::Io {
                    step: "waiting for the channel's work",
                    source,
                });
            }
        }
    }
    shared.asleep.store(false, Ordering::Relaxed);
    drain(&shared.work_fd);
    Ok(())
}

impl PrimaryChannel for OnCore {
    fn flush(&mut self, _log: &EntryWriter, _now: u64) -> Result<(), ChannelError> {
        self.shared.wake();
        Ok(())
    }

    fn poll(&mut self, _log: &EntryWriter, _now: u64) -> Result<Acked, ChannelError> {
        self.check()?;
        let acked = self.shared.glance();
        self.seen = acked.acked;
        Ok(acked)
    }

    fn wake_backup(&mut self, _log: &EntryWriter) {}

    fn wait(
        &mut self,
        log: &EntryWriter,
        room: usize,
        timeout: Duration,
    ) -> Result<(), ChannelError> {
        self.check()?;
        let timeout = timeout.min(NAP);
        if room > log.producer().free() {
            // The channel's thread releases what is acknowledged, and that wakes.
            let waited = log.producer().wait_free(room, &self.wait, Some(timeout));
            debug_assert!(
                waited != Waited::Sealed,
                "nobody seals a ring of one process's own"
            );
        } else {
            let (shared, seen) = (&self.shared, self.seen);
            shared.news.wait(&self.wait, timeout, || {
                shared.glance().acked != seen || shared.failed.load(Ordering::Relaxed)
            });
        }
        Ok(())
    }

    fn wait_fd(&mut self) -> BorrowedFd<'_> {
        drain(&self.shared.news_fd);
        self.shared.fd_wanted.store(true, Ordering::Relaxed);
        // Pairs with the fence in `tell`.
        fence(Ordering::SeqCst);
        self.shared.news_fd.as_fd()
    }

    fn stalled(&self, _now: u64) -> Option<Stall> {
        self.shared.report().stall
    }

    fn counters(&self) -> ChannelCounters {
        self.shared.report().counters
    }
}

impl Drop for OnCore {
    fn drop(&mut self) {
        // Relaxed: nothing else is ordered by it.
        self.shared.stop.store(true, Ordering::Relaxed);
        signal(&self.shared.work_fd);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ended = thread.join();
        }
    }
}
