//! The subcommands.

pub mod machine;
pub mod report;
pub mod roles;
pub mod status;
pub mod switch;

/// Exit code of a side that must not go on: the other one lives, or this one cannot.
pub const HALTED_EXIT_CODE: u8 = 3;
