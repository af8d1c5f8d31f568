//! Measuring, without disturbing what is measured.
//!
//! Lockstep publishes what the output rule costs as histograms, so the instruments come first:
//!
//! - [`not_run`] says aloud which test could not run on this host, and why.
//!
//! The crate knows nothing of virtual machines.

pub mod not_run;
