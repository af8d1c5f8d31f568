//! Measuring, without disturbing what is measured.
//!
//! Lockstep publishes what the output rule costs as histograms, so the instruments come first:
//!
//! - [`not_run`] says aloud which test could not run on this host, and why;
//! - [`pin`] puts a thread on a core, and says when it could not;
//! - [`stamp`] is the clock of the hot path, nanoseconds that compare across processes;
//! - [`histogram`] keeps latencies whole, [`hgrm`] and [`interval`] write the files that HdrHistogram
//!   tools read;
//! - [`stages`] follows an output through the output rule;
//! - [`counters`] are what `status` shows.
//!
//! The crate knows nothing of virtual machines.

pub mod counters;
pub mod disk_stages;
pub mod hgrm;
pub mod histogram;
pub mod interval;
pub mod not_run;
pub mod pin;
pub mod stages;
pub mod stamp;
