//! Tuning: every knob, named sets of them, and what on this host costs latency.
//!
//! - [`knobs`] is the one table of everything that can be set. The command line, the configuration
//!   file and the listings are made from it;
//! - [`profiles`] are assignments to knobs that belong together, each with its reason;
//! - [`checks`] look at the host.

pub mod checks;
pub mod knobs;
pub mod profiles;
