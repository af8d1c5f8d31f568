//! Lockstep's perf.
