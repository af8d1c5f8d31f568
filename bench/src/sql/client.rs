//! The client: connections that take turns at what is due, and a ledger of what came of it.

use super::ledger::Ledger;
use super::session::{Failure, Session};
use super::{SqlConfig, SqlError, SqlVerdict};
use crate::load::schedule::{SplitMix, Timetable};
use crate::load::tally::{EXAMPLES, Tally};
use crate::load::{ConnectionReport, Pace, Progress, Verification};
use futures::future::{join, join_all};
use lockstep_perf::stamp::monotonic;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// A client of a database. See the [module](super).
pub struct SqlClient<S> {
    config: SqlConfig,
    runtime: Runtime,
    /// `None`: lost. The last is for checkpoints.
    sessions: Vec<Option<S>>,
    ledger: Ledger,
    progress: Arc<Progress>,
    losses: Vec<String>,
    lost: u32,
    runs: u64,
}

impl<S> std::fmt::Debug for SqlClient<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlClient")
            .field("config", &self.config)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl<S: Session> SqlClient<S> {
    /// Opens all connections: those that the settings name, and one for checkpoints.
    ///
    /// # Errors
    /// Settings out of range, or nobody there.
    pub fn connect(config: SqlConfig) -> Result<Self, SqlError> {
        config.validate()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SqlError::Wait)?;
        let mut sessions = Vec::new();
        for _ in 0..=config.connections {
            let session = runtime.block_on(S::open(config.target, config.patience));
            sessions.push(Some(session.map_err(|source| SqlError::Connect {
                target: config.target,
                source,
            })?));
        }
        Ok(Self {
            ledger: Ledger::new(config.seed, config.accounts),
            runtime,
            sessions,
            progress: Arc::default(),
            losses: Vec::new(),
            lost: 0,
            runs: 0,
            config,
        })
    }

    /// Numbers for whoever watches, and the switch that ends a run.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Makes the tables anew. Call it once, before the first run.
    ///
    /// # Errors
    /// The server refuses, or is lost.
    pub fn prepare(&mut self) -> Result<(), SqlError> {
        let (sessions, accounts) = (&mut self.sessions, self.config.accounts);
        let prepared = self.runtime.block_on(async {
            let mut sessions = sessions.iter_mut().flatten();
            if let Some(first) = sessions.next() {
                first.prepare(accounts).await?;
                first.begin().await?;
            }
            for session in sessions {
                session.begin().await?;
            }
            Ok(())
        });
        prepared.map_err(|source| SqlError::Prepare {
            target: self.config.target,
            source,
        })
    }

    /// Asks for `length`, then waits for what is in flight. May be called again: the ledger goes on.
    ///
    /// # Errors
    /// None so far: what the server does, and what it does not, is in the report.
    pub fn run(&mut self, length: Duration) -> Result<ConnectionReport, SqlError> {
        self.runs += 1;
        let length_ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX / 2);
        let seed = self.config.seed.wrapping_add(self.runs << 32);
        let start = monotonic();
        let mut tally = Tally::new(length);
        tally.latency.begin(start);
        let run = RefCell::new(Run {
            times: match self.config.pace {
                Pace::Closed => None,
                Pace::Open { rate, arrivals } => {
                    Some(Timetable::new(arrivals, rate, length_ns, seed))
                }
            },
            start,
            end: start.saturating_add(length_ns),
            random: SplitMix(!seed),
            read_one_of: self.config.read_one_of.into(),
            ledger: &mut self.ledger,
            progress: &self.progress,
            tally,
            outstanding: 0,
            losses: Vec::new(),
        });
        let (checkpoints, sessions) = match self.sessions.split_last_mut() {
            Some((last, rest)) => (last, rest),
            None => unreachable!("there is one session more than connections"),
        };
        let every = self.config.checkpoint_every;
        self.runtime.block_on(join(
            join_all(
                sessions
                    .iter_mut()
                    .enumerate()
                    .map(|(index, session)| ask(index, session, &run)),
            ),
            write_out(checkpoints, every, &run),
        ));
        let mut run = run.into_inner();
        let unsent = run.times.as_mut().map_or(0, |times| times.count() as u64);
        let losses = std::mem::take(&mut run.losses);
        let mut report = ConnectionReport::new(run.tally, start, monotonic());
        self.lost += losses.len() as u32;
        let room = EXAMPLES.saturating_sub(self.losses.len());
        self.losses.extend(losses.into_iter().take(room));
        report.unsent = unsent;
        report.connections_lost = self.lost;
        report.losses.clone_from(&self.losses);
        report.ended_early = if sessions.iter().all(Option::is_none) {
            Some("every connection is lost".to_owned())
        } else if self.progress.stopped() {
            Some("it was stopped".to_owned())
        } else {
            None
        };
        Ok(report)
    }

    /// Reads everything back on a connection that lives, compares it with what was acknowledged, and has
    /// the database check itself.
    pub fn verify(&mut self) -> SqlVerdict {
        let nobody = || Failure::Lost("every connection is lost".to_owned());
        let (sessions, ledger) = (&mut self.sessions, &self.ledger);
        let verified = self.runtime.block_on(async {
            let session = sessions.iter_mut().flatten().next().ok_or_else(nobody)?;
            let verification = ledger.verify(&session.contents().await?);
            let (checked, complaints) = session.check().await?;
            Ok::<_, Failure>(SqlVerdict {
                ledger: verification,
                checked,
                complaints,
            })
        });
        verified.unwrap_or_else(|failure| {
            let unread = ledger.verify(&Default::default());
            SqlVerdict {
                ledger: Verification {
                    keys: unread.keys,
                    acknowledged_writes: unread.acknowledged_writes,
                    unread_keys: unread.keys.max(1),
                    examples: vec![format!("the tables cannot be read: {failure}")],
                    ..Verification::default()
                },
                checked: 0,
                complaints: Vec::new(),
            }
        })
    }
}

/// What all connections share in a run.
struct Run<'a> {
    /// `None`: a closed loop.
    times: Option<Timetable>,
    start: u64,
    end: u64,
    random: SplitMix,
    read_one_of: u64,
    ledger: &'a mut Ledger,
    progress: &'a Progress,
    tally: Tally,
    outstanding: usize,
    losses: Vec<String>,
}

/// What is asked next.
enum Request {
    Transfer(super::Transfer),
    /// Of this transfer, which was acknowledged.
    Find(i64),
    Sum,
}

impl Run<'_> {
    /// When whoever is free is to ask next.
    fn next_due(&mut self) -> Option<u64> {
        if self.progress.stopped() {
            return None;
        }
        match &mut self.times {
            Some(times) => times.next().map(|due| self.start + due),
            None => Some(monotonic()).filter(|now| *now < self.end),
        }
    }

    fn next_request(&mut self) -> Request {
        let number = self.random.next();
        let reads = self.read_one_of > 0 && number.is_multiple_of(self.read_one_of);
        if !reads {
            return Request::Transfer(self.ledger.begin());
        }
        let number = self.random.next();
        match self.ledger.any_acknowledged(number >> 1) {
            Some(id) if number & 1 == 0 => Request::Find(id),
            _ => Request::Sum,
        }
    }

    fn sent(&mut self, due: u64) -> u64 {
        let now = monotonic();
        self.outstanding += 1;
        self.tally.sent(now, due);
        self.progress.sent.increment();
        self.progress.outstanding.set(self.outstanding as u64);
        now
    }

    /// Notes what an answer says, or that there is none; whether the connection is of use.
    fn ended(
        &mut self,
        request: &Request,
        due: u64,
        sent: u64,
        answer: Result<i64, Failure>,
    ) -> bool {
        self.outstanding -= 1;
        self.progress.outstanding.set(self.outstanding as u64);
        let lost = answer.as_ref().is_err_and(Failure::is_loss);
        if !lost {
            self.tally.replied(monotonic(), due, sent, self.outstanding);
            self.progress.answered.increment();
        }
        match (request, answer) {
            (Request::Transfer(transfer), Ok(_)) => {
                self.ledger.acknowledged(transfer.id);
                self.tally.acknowledged_writes += 1;
            }
            (Request::Transfer(transfer), Err(failure)) => {
                if !matches!(failure, Failure::Lost(_)) {
                    self.ledger.undone(transfer.id);
                }
                self.failed(&format!("transfer {}", transfer.id), failure);
            }
            (Request::Find(id), Ok(0)) => self.tally.error(|| {
                format!("transfer {id} was acknowledged, and a later read does not find it")
            }),
            (Request::Sum, Ok(sum)) if sum != 0 => self
                .tally
                .error(|| format!("the sum of all balances reads {sum}; it is 0 at all times")),
            (_, Ok(_)) => {}
            (_, Err(failure)) => self.failed("a read", failure),
        }
        !lost
    }

    fn failed(&mut self, what: &str, failure: Failure) {
        if failure.is_loss() {
            self.losses.push(format!("{what}: {failure}"));
        } else {
            self.tally.error(|| format!("{what}: {failure}"));
        }
    }
}

/// One connection: asks what is due, as long as something is and the connection lives.
async fn ask<S: Session>(index: usize, slot: &mut Option<S>, run: &RefCell<Run<'_>>) {
    while let Some(session) = slot.as_mut() {
        let Some(due) = run.borrow_mut().next_due() else {
            return;
        };
        sleep_until(due).await;
        let request = run.borrow_mut().next_request();
        let sent = run.borrow_mut().sent(due);
        let answer = match &request {
            Request::Transfer(transfer) => session.transfer(transfer).await.map(|()| 1),
            Request::Find(id) => session.knows(*id).await.map(i64::from),
            Request::Sum => session.sum().await,
        };
        if !run.borrow_mut().ended(&request, due, sent, answer) {
            if let Some(loss) = run.borrow_mut().losses.last_mut() {
                *loss = format!("connection {index}: {loss}");
            }
            *slot = None;
        }
    }
}

/// Has the database write its memory out, again and again until the run's end.
async fn write_out<S: Session>(
    slot: &mut Option<S>,
    every: Option<Duration>,
    run: &RefCell<Run<'_>>,
) {
    let Some(every) = every else { return };
    while let Some(session) = slot.as_mut() {
        let (end, stopped) = {
            let run = run.borrow();
            (run.end, run.progress.stopped())
        };
        let next = monotonic().saturating_add(every.as_nanos() as u64);
        if stopped || next >= end {
            return;
        }
        sleep_until(next).await;
        if let Err(failure) = session.checkpoint().await {
            let lost = failure.is_loss();
            run.borrow_mut().failed("a checkpoint", failure);
            if lost {
                *slot = None;
            }
        }
    }
}

/// To the millisecond: the runtime's timers are no finer. What is late counts as the client's own delay.
async fn sleep_until(due: u64) {
    let left = due.saturating_sub(monotonic());
    if left > 0 {
        tokio::time::sleep(Duration::from_nanos(left)).await;
    }
}
