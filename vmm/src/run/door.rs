//! The door at which the backup came in stays guarded: its lifeline is taken and held, and whoever
//! else comes later is told why it is not wanted, by a thread that the machine never waits for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lockstep_logchan::transport::connect::{Incoming, Listener, Offer};
use lockstep_perf::counters::Counters;

use super::RunError;

/// How often the guard looks whether it is still needed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A guarded door. Closed when dropped.
#[derive(Debug)]
pub(super) struct Door {
    stop: Arc<AtomicBool>,
    /// Its lifeline is kept until it is joined, however early it ends.
    thread: Option<JoinHandle<Option<OwnedFd>>>,
}

impl Door {
    /// Refuses everybody at `listener` but the lifeline of the backup that is there: the VM has a pair
    /// of `generation`.
    pub fn guard(
        mut listener: Listener,
        vm: String,
        generation: u64,
        counters: Arc<Counters>,
    ) -> Result<Self, RunError> {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let guard = move || {
            // No io_uring ever sees it, so it ends with this process's files.
            let mut lifeline = None;
            // Relaxed: pairs with nothing; whoever sets it joins this thread.
            while !theirs.load(Ordering::Relaxed) {
                let offer = Offer::Paired {
                    vm: &vm,
                    generation,
                    lifeline: lifeline.is_none(),
                };
                match listener.poll(offer, LOOK_EVERY) {
                    Ok(Some(Incoming::Lifeline(stream))) => lifeline = Some(stream),
                    Ok(Some(Incoming::Refused { peer, error })) => {
                        counters.channel.strangers_refused.increment();
                        tracing::warn!(%peer, %error, "refused");
                    }
                    Ok(Some(Incoming::Paired(_) | Incoming::Resync(_)) | None) => {}
                    Err(error) => {
                        tracing::error!(%error, "nobody is let in any more");
                        break;
                    }
                }
            }
            lifeline
        };
        let thread = thread::Builder::new().name("door".into()).spawn(guard);
        let thread = thread.map_err(|source: io::Error| {
            RunError::host("starting the thread that guards the door")(source)
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Relaxed: the join orders everything.
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
