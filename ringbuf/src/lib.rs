//! Lockstep's ringbuf.
