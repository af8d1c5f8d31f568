//! The program `lockstep`: arguments, configuration file, demo.

pub mod config;
pub mod progress;
pub mod scenario;
pub mod signals;
