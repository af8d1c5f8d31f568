//! Lockstep's bench.
