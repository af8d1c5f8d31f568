//! A client of what the tenant serves, whichever that is: asks, remembers what was acknowledged, and
//! looks for it again.

use super::{Scenario, ScenarioError};
use lockstep_bench::load::{ConnectionReport, Gap, Load, LoadConfig, Progress};
use lockstep_bench::postgresql::Postgresql;
use lockstep_bench::redis::{Redis, RedisConfig, RedisVerdict};
use lockstep_bench::sql::{Session, SqlClient, SqlConfig, SqlVerdict};
use lockstep_bench::sqlite::Sqlite;
use lockstep_perf::interval::Series;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What is asked of the tenant.
#[derive(Debug, Clone)]
pub enum Workload {
    /// Of the bare tenant: memcached's protocol over UDP.
    Memcached(LoadConfig),
    /// Of Redis, over TCP connections that stay open.
    Redis(RedisConfig),
    /// Of PostgreSQL, the same.
    Postgresql(SqlConfig),
    /// Of SQLite, the same.
    Sqlite(SqlConfig),
}

impl Workload {
    /// The same, with other requests.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        match &mut self {
            Self::Memcached(config) => config.seed = seed,
            Self::Redis(config) => config.seed = seed,
            Self::Postgresql(config) | Self::Sqlite(config) => config.seed = seed,
        }
        self
    }
}

/// Somebody who asks.
pub enum Client {
    /// The bare tenant's.
    Memcached(Box<Load>),
    /// Redis', and its last verdict.
    Redis(Box<Redis>, Option<RedisVerdict>),
    /// PostgreSQL's.
    Postgresql(Box<SqlClient<Postgresql>>),
    /// SQLite's.
    Sqlite(Box<SqlClient<Sqlite>>),
}

/// What a client saw in one run.
#[derive(Debug, Clone)]
pub struct Seen {
    /// From when a request was due until its reply, one interval a second.
    pub latency: Series,
    /// Requests answered.
    pub answered: u64,
    /// Writes acknowledged.
    pub acknowledged_writes: u64,
    /// The longest time in which requests were in flight and no reply came.
    pub worst_gap: Gap,
    /// Requests answered a second.
    pub rate: f64,
    /// What should not have been, in words.
    pub wrong: Vec<String>,
}

/// Whether the server still knows what it acknowledged.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Writes that had been acknowledged.
    pub acknowledged_writes: u64,
    /// Of those, how many are gone.
    pub lost_writes: u64,
    /// Operations whose history was checked for linearizability; 0 where none is kept.
    pub checked_operations: usize,
    /// Indexes, tables and files that a database checked by its own means; 0 where it has none.
    pub database_checks: u64,
    /// What is wrong, in words; `None` if all is well.
    pub wrong: Option<String>,
}

impl Verdict {
    /// Whether all is well.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.wrong.is_none()
    }
}

impl Client {
    /// How far a run is, and the switch that ends it.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        match self {
            Self::Memcached(load) => load.progress(),
            Self::Redis(redis, _) => redis.progress(),
            Self::Postgresql(client) => client.progress(),
            Self::Sqlite(client) => client.progress(),
        }
    }

    /// Asks for `length`, and waits for the last replies.
    ///
    /// # Errors
    /// The host refused what the client needs. What the server does is in the report.
    pub fn run(&mut self, length: Duration) -> Result<Seen, ScenarioError> {
        Ok(match self {
            Self::Memcached(load) => {
                let report = load.run(length)?;
                let stale = report.stale_reads;
                Seen {
                    answered: report.answered,
                    acknowledged_writes: report.acknowledged_writes,
                    worst_gap: report.worst_gap,
                    rate: report.rate(),
                    wrong: (stale > 0)
                        .then(|| format!("{stale} reads showed less than was acknowledged"))
                        .into_iter()
                        .collect(),
                    latency: report.latency,
                }
            }
            Self::Redis(redis, _) => seen(redis.run(length)?),
            Self::Postgresql(client) => seen(client.run(length)?),
            Self::Sqlite(client) => seen(client.run(length)?),
        })
    }

    /// Reads everything again, and checks what was remembered.
    ///
    /// # Errors
    /// The host refused what the client needs. What is wrong is in the verdict.
    pub fn verify(&mut self) -> Result<Verdict, ScenarioError> {
        Ok(match self {
            Self::Memcached(load) => {
                let found = load.verify()?;
                Verdict {
                    acknowledged_writes: found.acknowledged_writes,
                    lost_writes: found.lost_writes,
                    checked_operations: 0,
                    database_checks: 0,
                    wrong: (!found.passed()).then(|| {
                        format!(
                            "{} acknowledged writes lost, {} keys corrupt, {} unread: {}",
                            found.lost_writes,
                            found.corrupt_keys,
                            found.unread_keys,
                            found.examples.join("; ")
                        )
                    }),
                }
            }
            Self::Redis(redis, last) => {
                let found = last.insert(redis.verify()?);
                Verdict {
                    acknowledged_writes: found.ledger.acknowledged_writes,
                    lost_writes: found.ledger.lost_writes,
                    checked_operations: found.operations(),
                    database_checks: 0,
                    wrong: (!found.passed()).then(|| found.to_string()),
                }
            }
            Self::Postgresql(client) => verdict(&client.verify()),
            Self::Sqlite(client) => verdict(&client.verify()),
        })
    }

    /// Writes the history of every key about which the last verdict found something wrong.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn keep_evidence(&self, directory: &Path) -> Result<(), ScenarioError> {
        if let Self::Redis(redis, Some(verdict)) = self {
            let kept = verdict.dump(redis.histories(), directory);
            kept.map_err(|source| ScenarioError::Files {
                what: "keeping the history of a key",
                source,
            })?;
        }
        Ok(())
    }
}

impl Scenario {
    /// A client in the clients' namespace, its keys prepared.
    ///
    /// # Errors
    /// The tenant does not answer.
    pub fn client(&self, workload: Workload) -> Result<Client, ScenarioError> {
        Ok(match workload {
            Workload::Memcached(config) => {
                let mut load = self.connect(config)?;
                load.prepare()?;
                Client::Memcached(Box::new(load))
            }
            Workload::Redis(config) => {
                let clients = &self.topology().clients;
                let mut redis = clients.run(|| Redis::connect(config))??;
                redis.prepare()?;
                Client::Redis(Box::new(redis), None)
            }
            Workload::Postgresql(config) => Client::Postgresql(Box::new(self.database(config)?)),
            Workload::Sqlite(config) => Client::Sqlite(Box::new(self.database(config)?)),
        })
    }

    fn database<S: Session + Send>(
        &self,
        config: SqlConfig,
    ) -> Result<SqlClient<S>, ScenarioError> {
        let clients = &self.topology().clients;
        let mut client = clients.run(|| SqlClient::connect(config))??;
        client.prepare()?;
        Ok(client)
    }
}

/// What a client saw that keeps connections.
fn seen(report: ConnectionReport) -> Seen {
    let mut wrong = Vec::new();
    if report.connections_lost > 0 {
        let lost = report.connections_lost;
        let why = report.losses.join("; ");
        wrong.push(format!("{lost} connections lost: {why}"));
    }
    if report.errors > 0 {
        let why = report.error_examples.join("; ");
        wrong.push(format!("{} replies are errors: {why}", report.errors));
    }
    if let Some(why) = &report.ended_early {
        wrong.push(format!("the load ended before its time: {why}"));
    }
    Seen {
        answered: report.answered,
        acknowledged_writes: report.acknowledged_writes,
        worst_gap: report.worst_gap,
        rate: report.rate(),
        wrong,
        latency: report.latency,
    }
}

fn verdict(found: &SqlVerdict) -> Verdict {
    Verdict {
        acknowledged_writes: found.ledger.acknowledged_writes,
        lost_writes: found.ledger.lost_writes,
        checked_operations: 0,
        database_checks: found.checked,
        wrong: (!found.passed()).then(|| found.to_string()),
    }
}
