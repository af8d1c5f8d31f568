//! Lockstep's guest.
