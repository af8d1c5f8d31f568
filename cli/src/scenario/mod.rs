//! Scenarios: processes of the shipping program, in namespaces that stand for hosts, under load and
//! under faults.

mod process;

pub use process::{Process, ProcessError};
