//! Lockstep's virtual machine monitor.
pub mod ft;
pub mod host;
pub mod machine;
pub mod run;
pub mod settings;
