//! A client that is not fooled, for Redis: TCP connections that stay open, every operation remembered with
//! its times, and the whole history checked for linearizability.
//!
//! Connections share a few keys on purpose: `GET`, `SET`, `APPEND` and compare-and-set (a script) on
//! *registers*, `INCR` and `GET` on *counters*. What was asked and answered, and when, is the history of
//! each key; [`linearizability`] looks for an order that explains it. Besides, *ledger keys* are written
//! by one request at a time, and read back at the end: every acknowledged write is there or is counted
//! as lost.
//!
//! A connection that is lost stays lost, and is counted: that connections live through a failover is part
//! of what is claimed. Its operations without a reply may or may not have happened, and are checked so.
//!
//! One thread, non-blocking sockets, in the network namespace of the thread that calls.
//!
//! ```no_run
//! # use lockstep_bench::redis::{Redis, RedisConfig};
//! # use std::time::Duration;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut redis = Redis::connect(RedisConfig::new("10.77.0.2:6379".parse()?))?;
//! redis.prepare()?;
//! let report = redis.run(Duration::from_secs(10))?;
//! let verdict = redis.verify()?;
//! assert!(verdict.passed() && report.connections_lost == 0, "{verdict}");
//! # Ok(())
//! # }
//! ```

mod client;
mod connection;
mod foresight;
pub mod history;
mod ledger;
pub mod linearizability;
pub mod model;
pub mod resp;
mod verdict;
mod workload;

pub use client::Redis;
pub use connection::Lost;
pub use verdict::{KeyVerdict, RedisVerdict};

use crate::load::{Arrivals, Pace};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// How many requests of each kind, in proportion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RedisMix {
    /// `GET` of a register or a counter.
    pub get: u32,
    /// `SET` of a register.
    pub set: u32,
    /// `APPEND` to a register.
    pub append: u32,
    /// Compare-and-set of a register, by a script.
    pub cas: u32,
    /// `INCR` of a counter.
    pub incr: u32,
    /// `SET` of a ledger key.
    pub ledger: u32,
}

/// What the load does.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RedisConfig {
    /// The server.
    pub target: SocketAddr,
    /// Connections; 1 to 256.
    pub connections: u32,
    /// When it asks.
    pub pace: Pace,
    /// Requests that a connection may have in flight; 1 to 1024. Beyond one they are pipelined.
    pub depth: u32,
    /// Shared keys that hold strings; 1 to 1024.
    pub registers: u32,
    /// Shared keys that hold numbers; 1 to 1024.
    pub counters: u32,
    /// Keys of the ledger; 1 to 1,000,000. Each has at most one write in flight.
    pub ledger_keys: u32,
    /// Length of a ledger value, bytes; 32 to 65,000.
    pub value_bytes: u16,
    /// What is asked.
    pub mix: RedisMix,
    /// Fixes what is asked, given the same replies.
    pub seed: u64,
    /// A run ends when so long no reply came although some were awaited: 1 ms to 10 min.
    pub patience: Duration,
    /// Operations on shared keys that are remembered; 1 to 20,000,000. The run ends there: what is not
    /// remembered could not be checked.
    pub history_most: usize,
    /// Steps of the search for an order, a key; at least 1.
    pub steps_most: u64,
}

impl RedisConfig {
    /// 8 connections to `target` at 2,000 requests a second, a third of them ledger writes.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            connections: 8,
            pace: Pace::Open {
                rate: 2_000.0,
                arrivals: Arrivals::Uniform,
            },
            depth: 64,
            registers: 8,
            counters: 4,
            ledger_keys: 10_000,
            value_bytes: 64,
            mix: RedisMix {
                get: 6,
                set: 3,
                append: 2,
                cas: 2,
                incr: 3,
                ledger: 8,
            },
            seed: 1,
            patience: Duration::from_secs(30),
            history_most: 4_000_000,
            steps_most: 50_000_000,
        }
    }

    /// The same, each connection asking again as soon as it was answered, one request in flight.
    #[must_use]
    pub fn closed(self, connections: u32) -> Self {
        Self {
            connections,
            pace: Pace::Closed,
            depth: 1,
            ..self
        }
    }

    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), RedisError> {
        let number = |field, found: u64, least: u64, most: u64| {
            if (least..=most).contains(&found) {
                return Ok(());
            }
            Err(RedisError::Config {
                field,
                found: found.to_string(),
                expected: format!("{least} to {most}"),
            })
        };
        number("connections", self.connections.into(), 1, 256)?;
        number("depth", self.depth.into(), 1, 1024)?;
        number("registers", self.registers.into(), 1, 1024)?;
        number("counters", self.counters.into(), 1, 1024)?;
        number("ledger keys", self.ledger_keys.into(), 1, 1_000_000)?;
        number("value bytes", self.value_bytes.into(), 32, 65_000)?;
        number("history", self.history_most as u64, 1, 20_000_000)?;
        number("steps", self.steps_most, 1, u64::MAX)?;
        let patience = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
        number("patience (ms)", patience, 1, 600_000)?;
        let RedisMix {
            get,
            set,
            append,
            cas,
            incr,
            ledger,
        } = self.mix;
        let weights = [get, set, append, cas, incr, ledger];
        if weights.iter().all(|weight| *weight == 0) {
            return Err(RedisError::Config {
                field: "mix",
                found: "all weights 0".to_owned(),
                expected: "at least one above 0".to_owned(),
            });
        }
        if let Pace::Open { rate, .. } = self.pace
            && !(rate > 0.0 && rate <= 1e6)
        {
            return Err(RedisError::Config {
                field: "rate",
                found: rate.to_string(),
                expected: "more than 0 and at most 1000000 a second".to_owned(),
            });
        }
        Ok(())
    }
}

/// The client could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// A setting is out of range.
    #[error("redis load: {field} is {found}; use {expected}")]
    Config {
        /// Which.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// There is nobody.
    #[error("connecting to {target}: {source}; is a Redis listening there?")]
    Connect {
        /// The server.
        target: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The keys could not be set up.
    #[error("{target} cannot be prepared: {what}")]
    Prepare {
        /// The server.
        target: SocketAddr,
        /// What happened.
        what: String,
    },
    /// Waiting for sockets failed.
    #[error("waiting for replies: {0}")]
    Wait(io::Error),
}
