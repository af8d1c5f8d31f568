//! A client that is not fooled: memcached over UDP, open loop, every acknowledged write remembered.
//!
//! [`Load`] is an ordinary client on ordinary sockets, in the network namespace of the thread that
//! makes it. What it asks, and when, is fixed in advance; a server that stalls meets the requests that
//! were due meanwhile, and their latency counts from when they were due (no coordinated omission). A
//! request without a reply is repeated, as any UDP client does; nothing is repeated for ever.
//!
//! One thread, non-blocking sockets, no allocation while it runs: it shares the host with what it
//! measures. [`LoadReport::own_delay`] tells how late the client itself was, so that its part is not
//! taken for the server's.
//!
//! ```no_run
//! # use lockstep_bench::load::{Load, LoadConfig};
//! # use std::time::Duration;
//! # fn main() -> Result<(), lockstep_bench::load::LoadError> {
//! let mut load = Load::connect(LoadConfig::new("10.0.0.2:11211".parse().unwrap()))?;
//! load.prepare()?;
//! load.run(Duration::from_secs(1))?; // warm-up
//! let report = load.run(Duration::from_secs(10))?;
//! let verdict = load.verify()?;
//! assert!(verdict.passed(), "{:?}", verdict.examples);
//! # Ok(())
//! # }
//! ```

mod client;
pub mod echo;
mod exchange;
pub(crate) mod gap;
mod ledger;
mod protocol;
pub(crate) mod schedule;
pub(crate) mod tally;
mod verification;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_perf::counters::{Counter, Gauge};
use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::interval::Series;

pub use client::Load;
pub use exchange::Retransmission;
pub use gap::Gap;
pub use schedule::{Arrivals, Pace};
pub use tally::ConnectionReport;
pub use verification::Verification;

/// How many requests of each kind, in proportion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mix {
    /// Sets.
    pub set: u32,
    /// Gets.
    pub get: u32,
    /// Increments.
    pub incr: u32,
}

/// What the load does.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoadConfig {
    /// The server.
    pub target: SocketAddr,
    /// Requests a second; 0 < rate <= 1,000,000.
    pub rate: f64,
    /// Spread over time.
    pub arrivals: Arrivals,
    /// Sockets, each a flow of its own; 1 to 64.
    pub connections: u32,
    /// Keys that are set and read; at least 1. With the counters at most 4,096 a connection, and more
    /// than the requests that are in flight at once: each key has at most one.
    pub data_keys: u32,
    /// Keys that are incremented; at least 1.
    pub counter_keys: u32,
    /// Length of a value, bytes; 32 to 1,200.
    pub value_bytes: u16,
    /// What is asked.
    pub mix: Mix,
    /// When to ask again.
    pub retransmission: Retransmission,
    /// The last stretch before a request is due is spent spinning instead of sleeping, this long. Zero
    /// leaves the core to others; a core of its own allows some tens of microseconds.
    pub spin: Duration,
    /// Fixes which requests come in which order.
    pub seed: u64,
}

impl LoadConfig {
    /// 10,000 requests a second over 4 connections to `target`, half gets, values of 64 bytes.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            rate: 10_000.0,
            arrivals: Arrivals::Uniform,
            connections: 4,
            data_keys: 1024,
            counter_keys: 256,
            value_bytes: 64,
            mix: Mix {
                set: 3,
                get: 5,
                incr: 2,
            },
            retransmission: Retransmission {
                timeout: Duration::from_millis(50),
                attempts: 10,
            },
            spin: Duration::ZERO,
            seed: 1,
        }
    }

    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), LoadError> {
        let keys = u64::from(self.data_keys) + u64::from(self.counter_keys);
        let keys_max = 4096 * u64::from(self.connections);
        let weights = [self.mix.set, self.mix.get, self.mix.incr];
        let checks = [
            (
                "rate",
                self.rate > 0.0 && self.rate <= 1e6,
                self.rate.to_string(),
                "more than 0 and at most 1000000 a second".to_owned(),
            ),
            (
                "connections",
                (1..=64).contains(&self.connections),
                self.connections.to_string(),
                "1 to 64".to_owned(),
            ),
            (
                "data keys and counter keys",
                self.data_keys > 0 && self.counter_keys > 0 && keys <= keys_max,
                format!("{} and {}", self.data_keys, self.counter_keys),
                format!("at least 1 of each, and with this many connections {keys_max} together"),
            ),
            (
                "value bytes",
                (protocol::VALUE_MIN..=protocol::VALUE_MAX).contains(&self.value_bytes.into()),
                self.value_bytes.to_string(),
                format!("{} to {}", protocol::VALUE_MIN, protocol::VALUE_MAX),
            ),
            (
                "mix",
                weights.iter().any(|weight| *weight > 0),
                format!("{weights:?}"),
                "at least one weight above 0".to_owned(),
            ),
            (
                "retransmission attempts",
                (1..=100).contains(&self.retransmission.attempts),
                self.retransmission.attempts.to_string(),
                "1 to 100".to_owned(),
            ),
            (
                "retransmission timeout",
                self.retransmission.timeout >= Duration::from_millis(1)
                    && self.retransmission.timeout <= Duration::from_secs(60),
                format!("{:?}", self.retransmission.timeout),
                "1 ms to 60 s".to_owned(),
            ),
        ];
        for (field, right, found, expected) in checks {
            if !right {
                return Err(LoadError::Config {
                    field,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }
}

/// The load could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A setting is out of range.
    #[error("load: {field} is {found}; use {expected}")]
    Config {
        /// Which.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A socket could not be made or waited for.
    #[error("load to {target}: {source}")]
    Io {
        /// The server.
        target: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The server does not answer, or not as a key-value store.
    #[error(
        "load: {failed} of {keys} keys could not be prepared at {target} ({example}); is a memcached \
         listening there on UDP?"
    )]
    Prepare {
        /// The server.
        target: SocketAddr,
        /// Keys asked for.
        keys: u32,
        /// Keys that failed.
        failed: u32,
        /// What one of them met.
        example: String,
    },
}

/// Numbers of a running load for whoever watches it, and the switch that ends it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests sent, retransmissions not counted.
    pub sent: Counter,
    /// Requests answered.
    pub answered: Counter,
    /// Requests given up.
    pub gave_up: Counter,
    /// Requests in flight.
    pub outstanding: Gauge,
    stop: AtomicBool,
}

impl Progress {
    /// Ends this run and those after it: nothing more is sent, what is in flight is waited for.
    pub fn stop(&self) {
        // Relaxed: pairs with the load in `stopped`; the flag carries nothing but itself.
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn stopped(&self) -> bool {
        // Relaxed: pairs with the store in `stop`.
        self.stop.load(Ordering::Relaxed)
    }
}

/// What one run saw.
#[derive(Debug, Clone)]
pub struct LoadReport {
    /// Latency from the time at which a request was due until its reply, one interval a second. A
    /// request given up counts with the time until then.
    pub latency: Series,
    /// Latency from the first datagram of a request until its reply: without the client's own delay,
    /// and without what waited for a key to become free.
    pub service: LatencyHistogram,
    /// From when a request was due until its first datagram left.
    pub own_delay: LatencyHistogram,
    /// Requests sent.
    pub requests: u64,
    /// Requests answered.
    pub answered: u64,
    /// Writes acknowledged: sets and increments.
    pub acknowledged_writes: u64,
    /// Datagrams sent again.
    pub retransmissions: u64,
    /// Requests given up.
    pub gave_up: u64,
    /// Replies to nothing that was in flight: late, or doubled.
    pub stray_replies: u64,
    /// Sends and receives that the network refused.
    pub refusals: u64,
    /// Replies that are none (`SERVER_ERROR` and such).
    pub errors: u64,
    /// Reads and counters that showed less than had been acknowledged, or what nobody wrote.
    pub stale_reads: u64,
    /// The longest time in which requests were in flight and no reply came.
    pub worst_gap: Gap,
    /// How long the run took, the wait for the last replies included.
    pub length: Duration,
}

impl LoadReport {
    /// Requests answered a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.length.as_secs_f64().max(1e-9)
    }
}
