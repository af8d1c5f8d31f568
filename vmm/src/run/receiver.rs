//! The backup's receiving thread: takes the log off the channel and acknowledges it, whatever the
//! replaying thread is doing.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::transport::{BackupChannel, ChannelError, ReplayReport};
use lockstep_perf::counters::Counters;
use lockstep_perf::{pin, stamp};

use super::priority;

/// How long the thread stays in the channel before it looks whether it should stop.
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    heard_at: AtomicU64,
    received: AtomicU64,
    /// `lost` holds, or held, something.
    ended: AtomicBool,
    lost: Mutex<Option<ChannelError>>,
}

/// The receiving thread, seen from the replaying one.
#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    report: ReplayReport,
}

impl Receiver {
    /// Starts to receive, on `core` unless that is negative; `real_time` asks for priority.
    pub fn start(
        channel: Box<dyn BackupChannel>,
        core: i32,
        real_time: bool,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.heard_at.store(stamp::now(), Ordering::Relaxed);
        let report = channel.report();
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("receiver".into())
            .spawn(move || {
                if let pin::Placement::Refused { why, .. } = pin::place(core) {
                    tracing::warn!(%why, "the receiver is not pinned");
                }
                if real_time {
                    priority::go_first("acknowledgements");
                }
                receive(channel, &theirs, &counters);
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            report,
        })
    }

    /// Where the replaying thread says how far it came.
    pub const fn report(&self) -> &ReplayReport {
        &self.report
    }

    /// When log bytes last arrived.
    pub fn heard_at(&self) -> u64 {
        // Relaxed: a time by itself, pairs with nothing.
        self.shared.heard_at.load(Ordering::Relaxed)
    }

    /// The last entry received.
    pub fn received(&self) -> Sequence {
        // Acquire: pairs with the Release in `receive`.
        Sequence(self.shared.received.load(Ordering::Acquire))
    }

    /// Whether the channel has ended.
    pub fn has_ended(&self) -> bool {
        // Acquire: pairs with the Release in `receive`; `lost` says why.
        self.shared.ended.load(Ordering::Acquire)
    }

    /// Why the channel ended, once it has.
    pub fn lost(&self) -> Option<ChannelError> {
        self.shared
            .lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Stops receiving, and so acknowledging, and closes the channel. Returns the last entry that
    /// may have been acknowledged.
    pub fn stop(&mut self) -> Sequence {
        // Relaxed: the join orders everything.
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.received()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop();
    }
}

fn receive(mut channel: Box<dyn BackupChannel>, shared: &Shared, counters: &Counters) {
    // Relaxed: the thread that sets it joins this one.
    while !shared.stop.load(Ordering::Relaxed) {
        match channel.receive(LOOK_EVERY) {
            Ok(received) => {
                if !received.progress {
                    continue;
                }
                // Relaxed: a time by itself, pairs with nothing.
                shared.heard_at.store(stamp::now(), Ordering::Relaxed);
                if let Some(last) = received.last {
                    // Release: pairs with the Acquire in `received`.
                    shared.received.store(last.0, Ordering::Release);
                    counters.channel.acked_sequence.set(last.0);
                }
            }
            Err(error) => {
                *shared.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                // Release: pairs with the Acquire in `has_ended`.
                shared.ended.store(true, Ordering::Release);
                // A failover must not wait until the replaying thread next looks around.
                channel.wake_reader();
                return;
            }
        }
    }
}
