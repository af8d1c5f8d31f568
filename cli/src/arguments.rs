//! The command line.

use crate::commands::machine::{MachineArguments, PairArguments};
use crate::commands::status::StatusArguments;
use crate::commands::switch::SwitchArguments;
use crate::demo::DemoArguments;
use clap::{Parser, Subcommand};

/// Keeps a virtual machine running through the loss of its host
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, max_term_width = 100)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Protect a guest on this machine alone, kill its primary under load, and count what was lost
    Demo(DemoArguments),
    /// Run a machine as the primary: wait for its backup, then execute under its protection
    Primary {
        /// The machine
        #[command(flatten)]
        machine: MachineArguments,
        /// The pair
        #[command(flatten)]
        pair: PairArguments,
    },
    /// Follow a primary, and take its place when it is gone
    Backup {
        /// The machine
        #[command(flatten)]
        machine: MachineArguments,
        /// The pair
        #[command(flatten)]
        pair: PairArguments,
    },
    /// Run a machine without fault tolerance
    Run {
        /// The machine
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Ask a running process how it is
    Status(StatusArguments),
    /// Be a network for machines on a host without a tap
    Switch(SwitchArguments),
}
