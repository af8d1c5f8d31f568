//! A primary and its backup.

use super::process::Process;
use lockstep_vmm::host::namespaces::CLIENT_PORTS;
use std::path::PathBuf;

/// One of the two machines that a virtual machine can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// `host-a`
    A,
    /// `host-b`
    B,
}

impl Host {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The port of the clients' bridge at which this host is heard.
    #[must_use]
    pub fn client_port(self) -> &'static str {
        match self {
            Self::A => CLIENT_PORTS[0],
            Self::B => CLIENT_PORTS[1],
        }
    }
}

/// A protected machine: two processes on two hosts.
#[derive(Debug)]
pub struct Pair {
    /// The one that executes.
    pub primary: Process,
    /// The one that follows.
    pub backup: Process,
    /// Where the primary is.
    pub primary_on: Host,
    /// The log that the backup saves, if it does.
    pub saved_log: Option<PathBuf>,
    /// Where the two decide who lives.
    pub(super) arbiter: PathBuf,
}
