//! Lockstep's sim.
