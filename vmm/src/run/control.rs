//! What the operator asks of a running machine, from any thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::doorbell::Doorbell;

/// A handle on a running machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    asked: Arc<Asked>,
    doorbell: Doorbell,
}

#[derive(Debug, Default)]
struct Asked {
    stop: AtomicBool,
    power_button: AtomicBool,
}

impl Control {
    /// A handle that has asked for nothing yet.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            asked: Arc::default(),
            doorbell: Doorbell::new()?,
        })
    }

    /// Ends the run: the log is closed in order, so that a backup ends too instead of going live.
    pub fn stop(&self) {
        // Release: pairs with the Acquire in `stop_asked`; the doorbell wakes whoever sleeps.
        self.asked.stop.store(true, Ordering::Release);
        self.doorbell.ring();
    }

    /// Presses the guest's power button.
    pub fn press_power_button(&self) {
        // Release: pairs with the AcqRel in `take_power_button`.
        self.asked.power_button.store(true, Ordering::Release);
        self.doorbell.ring();
    }

    /// Whether [`Control::stop`] was called.
    #[must_use]
    pub fn stop_asked(&self) -> bool {
        // Acquire: pairs with the Release in `stop`.
        self.asked.stop.load(Ordering::Acquire)
    }

    pub(super) fn take_power_button(&self) -> bool {
        // A plain load first: the hot path must not write a shared line. AcqRel: pairs with the
        // Release in `press_power_button`.
        self.asked.power_button.load(Ordering::Relaxed)
            && self.asked.power_button.swap(false, Ordering::AcqRel)
    }

    /// Rung for everything that the driving thread should look at.
    #[must_use]
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }
}
