//! Brings the vCPU's thread back from a guest that neither exits nor halts.
//!
//! The `soft` engine executes in slices. KVM comes back when the guest does something that KVM
//! cannot do by itself, which may be never: acknowledgements that arrive meanwhile would release
//! nothing, and a dead peer would not be noticed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::machine::engine::Kicker;

/// The longest that a guest executes before its thread looks around, roughly.
const BEAT: Duration = Duration::from_millis(1);

/// A thread that kicks an engine out of the guest. Stops when dropped.
#[derive(Debug)]
pub(super) struct Metronome {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Metronome {
    /// Kicks until dropped. An engine without a kicker needs none.
    pub fn start(kicker: Option<Kicker>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let Some(kicker) = kicker else {
            return Ok(Self { stop, thread: None });
        };
        let theirs = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("metronome".into())
            .spawn(move || {
                // Relaxed: pairs with nothing; whoever sets it joins this thread.
                while !theirs.load(Ordering::Relaxed) {
                    thread::sleep(BEAT);
                    kicker.kick();
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        // Relaxed: the join orders everything.
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
