//! Lockstep's tuning.
