//! What is compared, and by what it is judged.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::stages::StageHistograms;

use crate::load::{Load, LoadConfig};
use crate::pingpong::{self, Waiting};

/// Whatever went wrong in an arm; the suite adds which arm it was.
pub type ArmError = Box<dyn Error + Send + Sync>;

/// A way to run the guest.
pub trait Arm {
    /// Its name in files and plots: `unprotected`, `shm`, `tcp`.
    fn name(&self) -> &str;

    /// Whether the output rule holds in it. Exactly one arm of a run is unprotected.
    fn protected(&self) -> bool;

    /// What is promised of this arm's addition.
    fn promise(&self) -> Option<AddedPromise> {
        None
    }

    /// Starts the guest anew. Returns when its service can be asked. Outputs of the guest's first
    /// `warm_up` are to be left out of its stage histograms; the suite's client measures nothing until
    /// `warm_up` after this returned.
    ///
    /// # Errors
    /// It could not be started.
    fn start(&mut self, warm_up: Duration) -> Result<Box<dyn Running + '_>, ArmError>;
}

/// A started arm. Dropping one stops it, too.
pub trait Running {
    /// Connects a client as `load` says, but to this arm's service, from where its clients are.
    ///
    /// # Errors
    /// There is no way to it.
    fn client(&self, load: &LoadConfig) -> Result<Load, ArmError>;

    /// Ends the guest, and hands over what was stamped since the warm-up.
    ///
    /// # Errors
    /// It ended in another way, or its histograms are not to be had.
    fn stop(self: Box<Self>) -> Result<StageHistograms, ArmError>;
}

/// A limit of what the output rule may add at the median.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AddedPromise {
    /// At most so many microseconds.
    Microseconds(f64),
    /// At most so many times the median of the first yardstick.
    RoundTrips(f64),
}

/// Something measured beside the arms.
pub struct Yardstick<'a> {
    name: String,
    measure: Box<dyn FnMut() -> Result<LatencyHistogram, ArmError> + 'a>,
}

impl<'a> Yardstick<'a> {
    /// `measure` is called once a round.
    pub fn new(
        name: impl Into<String>,
        measure: impl FnMut() -> Result<LatencyHistogram, ArmError> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            measure: Box::new(measure),
        }
    }

    /// Its name in files and plots.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn measure(&mut self) -> Result<LatencyHistogram, ArmError> {
        (self.measure)()
    }

    /// The bare TCP ping-pong over loopback, `length` a round.
    #[must_use]
    pub fn loopback(waiting: Waiting, length: Duration) -> Self {
        Self::new(format!("ping-pong-{}", waiting.name()), move || {
            Ok(pingpong::loopback(waiting, length)?)
        })
    }
}

impl fmt::Debug for Yardstick<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Yardstick").field(&self.name).finish()
    }
}
