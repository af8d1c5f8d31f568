//! Any bytes, to everything in the channel that decodes what comes from outside.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockstep_logchan::fuzz::any_bytes(bytes));
