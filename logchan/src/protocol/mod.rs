//! The channel's protocol: what is said, when, and what to make of what was heard.
//!
//! Nothing in here does I/O or reads a clock. `now` is nanoseconds on whatever monotonic clock the
//! driver holds; the transports drive these types over real sockets, the simulator over a link that
//! drops, duplicates and reorders.
//!
//! One connection, seen from both ends:
//!
//! 1. the backup connects and sends its [`hello`]; the primary compares it with its own and answers
//!    with its own, or with a refusal that names the field;
//! 2. the backup sends an [`ack`] of nothing, which grants the first credit;
//! 3. the primary sends entries as far as its credit reaches ([`sender`]); the backup checks them
//!    and acknowledges, cumulatively ([`receiver`]);
//! 4. beside it, both sides send [`heartbeat`] datagrams.

pub mod ack;
pub mod heartbeat;
pub mod hello;
pub mod receiver;
pub mod sender;

use std::fmt;

/// Which end of the channel somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Executes and sends the log.
    Primary,
    /// Receives the log and replays it.
    Backup,
}

impl Role {
    /// The other end.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::Primary => Self::Backup,
            Self::Backup => Self::Primary,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

/// Identity of a VM where there is room for 16 bytes only: the XXH3 digest of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmId(pub [u8; 16]);

impl VmId {
    /// Identity of the VM called `name`.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(name.as_bytes()).to_be_bytes())
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
