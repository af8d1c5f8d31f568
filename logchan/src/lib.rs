//! Lockstep's logchan.
