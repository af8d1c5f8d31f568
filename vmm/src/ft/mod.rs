//! Fault tolerance without I/O: recorder, replayer, output gate, failure detector, arbitration, roles.
pub mod vm;
