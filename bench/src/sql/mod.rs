//! A client that is not fooled, for databases: transactions over connections that stay open, each one
//! remembered, all of them looked for at the end.
//!
//! A transaction moves an amount from one account to another and enters itself, under a number that nobody
//! else has, in a table: three rows of two tables and their indexes, all of them or none. What was
//! acknowledged must be there once; what was asked and never answered, once or not at all; what was
//! refused, not at all; and every balance must be what the transactions that are there make of it. Besides,
//! reads while the load runs ask for transactions acknowledged before, and for the sum of all balances,
//! which is zero whenever one looks. Then the database is asked what its own checks find.
//!
//! What differs between databases is a [`Session`]: [`crate::postgresql`], [`crate::sqlite`].
//!
//! A connection that is lost stays lost, and is counted: that connections live through a failover is part
//! of what is claimed.
//!
//! One thread, non-blocking sockets, in the network namespace of the thread that calls
//! [`SqlClient::connect`]. A server that hangs ends a run: whatever is awaited is awaited for
//! [`SqlConfig::patience`].

mod client;
mod ledger;
mod session;
mod verdict;

pub use client::SqlClient;
pub use ledger::{Row, Transfer};
pub use session::{Contents, Failure, Session};
pub use verdict::SqlVerdict;

use crate::load::{Arrivals, Pace};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// What the load does.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SqlConfig {
    /// The server.
    pub target: SocketAddr,
    /// Connections, each with one transaction at a time; 1 to 64.
    pub connections: u32,
    /// When they ask.
    pub pace: Pace,
    /// Accounts; 2 to 100,000. Few of them make transactions wait for one another.
    pub accounts: u32,
    /// One of so many requests is a read; 0: none is.
    pub read_one_of: u32,
    /// How often one connection has the database write its memory out (`CHECKPOINT`): it would not come to
    /// that by itself in a short run. At least 10 ms.
    pub checkpoint_every: Option<Duration>,
    /// Fixes what is asked.
    pub seed: u64,
    /// How long one answer is waited for; 1 ms to 10 min.
    pub patience: Duration,
}

impl SqlConfig {
    /// 8 connections to `target` at 100 transactions a second, a quarter of them reads, a checkpoint every
    /// half second.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            connections: 8,
            pace: Pace::Open {
                rate: 100.0,
                arrivals: Arrivals::Uniform,
            },
            accounts: 64,
            read_one_of: 4,
            checkpoint_every: Some(Duration::from_millis(500)),
            seed: 1,
            patience: Duration::from_secs(30),
        }
    }

    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), SqlError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let checkpoint = self.checkpoint_every.map_or(10, millis);
        for (field, found, least, most) in [
            ("connections", self.connections.into(), 1, 64),
            ("accounts", self.accounts.into(), 2, 100_000),
            ("checkpoint every (ms)", checkpoint, 10, u64::MAX),
            ("patience (ms)", millis(self.patience), 1, 600_000),
        ] {
            if !(least..=most).contains(&found) {
                return Err(SqlError::Config {
                    field,
                    found: found.to_string(),
                    expected: format!("{least} to {most}"),
                });
            }
        }
        if let Pace::Open { rate, .. } = self.pace
            && !(rate > 0.0 && rate <= 1e5)
        {
            return Err(SqlError::Config {
                field: "rate",
                found: rate.to_string(),
                expected: "more than 0 and at most 100000 a second".to_owned(),
            });
        }
        Ok(())
    }
}

/// The client could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// A setting is out of range.
    #[error("database load: {field} is {found}; use {expected}")]
    Config {
        /// Which.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// There is nobody, or not a database of this kind.
    #[error("connecting to {target}: {source}; is the database listening there?")]
    Connect {
        /// The server.
        target: SocketAddr,
        /// What happened.
        source: Failure,
    },
    /// The tables could not be made.
    #[error("{target} cannot be prepared: {source}")]
    Prepare {
        /// The server.
        target: SocketAddr,
        /// What happened.
        source: Failure,
    },
    /// The host refused what waiting for sockets needs.
    #[error("making what waits for sockets: {0}")]
    Wait(io::Error),
}
