//! The client: a schedule, an exchange, and a ledger, put together.

use std::collections::VecDeque;
use std::io;
use std::iter::Peekable;
use std::sync::Arc;
use std::time::Duration;

use lockstep_perf::stamp;

use super::exchange::{Exchange, Outcome, Request, precise_timers};
use super::ledger::Ledger;
use super::protocol::{self, Command, Key, Reply};
use super::schedule::{Kind, Schedule};
use super::tally::Tally;
use super::{LoadConfig, LoadError, LoadReport, Progress, Verification};

/// Requests in flight at once while keys are prepared and verified.
const WINDOW: usize = 32;
/// Requests sent before replies are looked at again, when the client is behind its schedule.
const BURST: usize = 32;
/// The first request is due this long after the start, nanoseconds: nothing is late already.
const LEAD_NS: u64 = 100_000;

/// A client of a memcached over UDP. See the [module](super).
pub struct Load {
    config: LoadConfig,
    exchange: Exchange,
    ledger: Ledger,
    /// Keys without a request in flight, longest unused first.
    free: FreeKeys,
    progress: Arc<Progress>,
    prepared: bool,
    /// Runs so far: each has requests of its own from the one seed.
    runs: u64,
}

struct FreeKeys {
    data: VecDeque<Key>,
    counters: VecDeque<Key>,
}

impl FreeKeys {
    fn of(&mut self, counter: bool) -> &mut VecDeque<Key> {
        if counter {
            &mut self.counters
        } else {
            &mut self.data
        }
    }
}

impl Load {
    /// Opens the sockets, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// A setting is out of range, or there are no sockets to be had.
    pub fn connect(config: LoadConfig) -> Result<Self, LoadError> {
        config.validate()?;
        let keys = config.data_keys + config.counter_keys;
        let exchange = Exchange::open(
            config.target,
            config.connections as usize,
            keys,
            config.retransmission,
        )
        .map_err(|source| LoadError::Io {
            target: config.target,
            source,
        })?;
        Ok(Self {
            exchange,
            ledger: Ledger::new(config.data_keys, config.counter_keys),
            free: FreeKeys {
                data: (0..config.data_keys).collect(),
                counters: (config.data_keys..keys).collect(),
            },
            progress: Arc::default(),
            prepared: false,
            runs: 0,
            config,
        })
    }

    /// For whoever watches from another thread.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Gives every key its first value, so that a key that is missing later is a key lost. Does
    /// nothing once it has succeeded.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub fn prepare(&mut self) -> Result<(), LoadError> {
        if self.prepared {
            return Ok(());
        }
        let mut failed = 0;
        let mut example = String::new();
        let bytes = self.config.value_bytes;
        self.for_each_key(
            0,
            |ledger, key| {
                if ledger.is_counter(key) {
                    Command::SetZero
                } else {
                    let write = ledger.begin_set(key);
                    Command::Set { write, bytes }
                }
            },
            |ledger, request, outcome| match (outcome, request.command) {
                (Outcome::Answered(Reply::Stored), Command::Set { write, .. }) => {
                    ledger.set_acknowledged(request.key, write);
                }
                (Outcome::Answered(Reply::Stored), _) => {}
                (outcome, _) => {
                    failed += 1;
                    example = describe(outcome);
                }
            },
        )?;
        if failed > 0 {
            return Err(LoadError::Prepare {
                target: self.config.target,
                keys: self.config.data_keys + self.config.counter_keys,
                failed,
                example,
            });
        }
        self.prepared = true;
        Ok(())
    }

    /// Sends the requests of one run of `length`, waits for the last replies, and reports.
    /// Prepares the keys if nobody has. A warm-up is a run whose report is dropped.
    ///
    /// # Errors
    /// The keys cannot be prepared, or the sockets cannot be waited for. What the server does or does not answer is no error: it is in
    /// the report.
    pub fn run(&mut self, length: Duration) -> Result<LoadReport, LoadError> {
        self.prepare()?;
        precise_timers();
        let target = self.config.target;
        self.runs += 1;
        self.run_scheduled(length)
            .map_err(|source| LoadError::Io { target, source })
    }

    fn run_scheduled(&mut self, length: Duration) -> io::Result<LoadReport> {
        let config = &self.config;
        let length_ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let seed = config
            .seed
            .wrapping_mul(0x9E37_79B9)
            .wrapping_add(self.runs);
        let mut schedule =
            Schedule::new(config.arrivals, config.rate, length_ns, config.mix, seed).peekable();
        let expected = (config.rate * length.as_secs_f64()) as usize;
        self.ledger.reserve(expected + expected / 8 + 1024);
        let spin_ns = config.spin.as_nanos() as u64;

        let mut run = Run::new(length + config.retransmission.timeout);
        let start = stamp::now() + LEAD_NS;
        run.tally.latency.begin(start);
        let traffic = self.exchange.traffic;
        loop {
            let stopped = self.progress.stopped();
            let due_next =
                |schedule: &mut Peekable<Schedule>| schedule.peek().copied().filter(|_| !stopped);
            let mut until_ns = u64::MAX;
            for _ in 0..BURST {
                let Some((offset, kind)) = due_next(&mut schedule) else {
                    break;
                };
                let due = start + offset;
                if due > stamp::now() {
                    until_ns = due;
                    break;
                }
                let Some(key) = self.free.of(kind == Kind::Increment).pop_front() else {
                    // Every key waits for its reply: the request stays due, and its latency grows.
                    break;
                };
                schedule.next();
                self.send(kind, key, due, &mut run);
                until_ns = 0;
            }
            if self.exchange.outstanding() == 0 && due_next(&mut schedule).is_none() {
                break;
            }
            let until_ns = match until_ns.checked_sub(spin_ns) {
                // Close to the next one, look for replies without sleeping.
                Some(early) if early > stamp::now() => early,
                _ => 0,
            };
            self.receive(until_ns, &mut run)?;
        }
        let end = stamp::now();
        let now = self.exchange.traffic;
        Ok(LoadReport {
            latency: run.tally.latency.finish(end),
            service: run.tally.service,
            own_delay: run.tally.own_delay,
            requests: run.tally.requests,
            answered: run.tally.answered,
            acknowledged_writes: run.tally.acknowledged_writes,
            retransmissions: now.retransmissions - traffic.retransmissions,
            gave_up: run.gave_up,
            stray_replies: now.stray_replies - traffic.stray_replies,
            refusals: now.refusals - traffic.refusals,
            errors: run.tally.errors,
            stale_reads: run.stale_reads,
            worst_gap: run.tally.gap.finish(end),
            length: Duration::from_nanos(end - start),
        })
    }

    fn send(&mut self, kind: Kind, key: Key, due: u64, run: &mut Run) {
        let command = match kind {
            Kind::Set => Command::Set {
                write: self.ledger.begin_set(key),
                bytes: self.config.value_bytes,
            },
            Kind::Get => Command::Get,
            Kind::Increment => Command::Increment,
        };
        let now = stamp::now();
        run.tally.sent(now, due);
        self.exchange.send(key, command, due);
        self.progress.sent.increment();
        self.progress
            .outstanding
            .set(self.exchange.outstanding() as u64);
    }

    fn receive(&mut self, until_ns: u64, run: &mut Run) -> io::Result<()> {
        let Self {
            exchange,
            ledger,
            free,
            progress,
            ..
        } = self;
        let mut outstanding = exchange.outstanding();
        exchange.exchange(until_ns, |request, outcome, now| {
            outstanding -= 1;
            free.of(ledger.is_counter(request.key))
                .push_back(request.key);
            let due = request.intended_ns;
            match outcome {
                Outcome::Answered(reply) => {
                    run.tally.replied(now, due, request.sent_ns, outstanding);
                    progress.answered.increment();
                    run.judge(ledger, request, reply);
                }
                Outcome::GaveUp => {
                    run.tally.latency.record(now, now.saturating_sub(due));
                    run.gave_up += 1;
                    progress.gave_up.increment();
                    if request.command == Command::Increment {
                        ledger.increment_unanswered(request.key, request.datagrams);
                    }
                }
            }
            progress.outstanding.set(outstanding as u64);
        })
    }

    /// Reads every key again, and counts the acknowledged writes that are gone. Asks no faster than
    /// the load does: a server that is being measured sees nothing unusual.
    ///
    /// # Errors
    /// The sockets cannot be waited for. Keys that the server does not answer for are in the verdict.
    pub fn verify(&mut self) -> Result<Verification, LoadError> {
        let mut verdict = self.ledger.verification();
        let mut scratch = Vec::with_capacity(protocol::DATAGRAM_MAX);
        let gap_ns = (1e9 / self.config.rate) as u64;
        self.for_each_key(
            gap_ns,
            |_, _| Command::Get,
            |ledger, request, outcome| {
                let key = request.key;
                let verdict = &mut verdict;
                let data = match outcome {
                    Outcome::Answered(Reply::Missing) => None,
                    Outcome::Answered(Reply::Value { key: name, data })
                        if protocol::is_name(key, name) =>
                    {
                        Some(data)
                    }
                    Outcome::GaveUp => return ledger.verify_unread(verdict, key),
                    Outcome::Answered(Reply::Unexpected(text)) => {
                        return ledger.verify_corrupt(verdict, key, text);
                    }
                    Outcome::Answered(_) => {
                        return ledger.verify_corrupt(verdict, key, b"no value");
                    }
                };
                if ledger.is_counter(key) {
                    let value = data.map(protocol::decimal);
                    match value {
                        Some(None) => ledger.verify_corrupt(verdict, key, data.unwrap_or_default()),
                        value => ledger.verify_counter(verdict, key, value.flatten()),
                    }
                } else {
                    let write = data.map(|data| protocol::write_of(&mut scratch, key, data));
                    match write {
                        Some(None) => ledger.verify_corrupt(verdict, key, data.unwrap_or_default()),
                        write => ledger.verify_data(verdict, key, write.flatten()),
                    }
                }
            },
        )?;
        Ok(verdict)
    }

    /// Sends one request for each key, a window of them at a time and one every `gap_ns` at most.
    fn for_each_key(
        &mut self,
        gap_ns: u64,
        mut command: impl FnMut(&mut Ledger, Key) -> Command,
        mut ended: impl FnMut(&mut Ledger, &Request, Outcome<'_>),
    ) -> Result<(), LoadError> {
        let keys = self.config.data_keys + self.config.counter_keys;
        let start = stamp::now();
        let mut next = 0;
        while next < keys || self.exchange.outstanding() > 0 {
            let mut until_ns = u64::MAX;
            while next < keys && self.exchange.outstanding() < WINDOW {
                let due = start + u64::from(next) * gap_ns;
                if due > stamp::now() {
                    until_ns = due;
                    break;
                }
                let command = command(&mut self.ledger, next);
                self.exchange.send(next, command, due);
                next += 1;
            }
            let ledger = &mut self.ledger;
            self.exchange
                .exchange(until_ns, |request, outcome, _| {
                    ended(ledger, request, outcome);
                })
                .map_err(|source| LoadError::Io {
                    target: self.config.target,
                    source,
                })?;
        }
        Ok(())
    }
}

/// What a run records.
struct Run {
    tally: Tally,
    gave_up: u64,
    stale_reads: u64,
    scratch: Vec<u8>,
}

impl Run {
    fn new(length: Duration) -> Self {
        Self {
            tally: Tally::new(length),
            gave_up: 0,
            stale_reads: 0,
            scratch: Vec::with_capacity(protocol::DATAGRAM_MAX),
        }
    }

    /// Notes what the reply acknowledges, or that it cannot be right.
    fn judge(&mut self, ledger: &mut Ledger, request: &Request, reply: Reply<'_>) {
        let key = request.key;
        let right = match (request.command, reply) {
            (Command::Set { write, .. }, Reply::Stored) => {
                ledger.set_acknowledged(key, write);
                self.tally.acknowledged_writes += 1;
                Ok(())
            }
            (Command::Increment, Reply::Number(value)) => {
                self.tally.acknowledged_writes += 1;
                ledger.increment_acknowledged(key, request.datagrams, value)
            }
            (Command::Get, Reply::Value { key: name, data }) if protocol::is_name(key, name) => {
                ledger.read(key, protocol::write_of(&mut self.scratch, key, data))
            }
            (Command::Get, Reply::Missing) => ledger.read(key, None),
            (command, _) => {
                self.tally.errors += 1;
                if command == Command::Increment {
                    ledger.increment_unanswered(key, request.datagrams);
                }
                Ok(())
            }
        };
        self.stale_reads += u64::from(right.is_err());
    }
}

fn describe(outcome: Outcome<'_>) -> String {
    match outcome {
        Outcome::GaveUp => "no answer".to_owned(),
        Outcome::Answered(Reply::Unexpected(text)) => {
            format!("answered {}", text[..text.len().min(60)].escape_ascii())
        }
        Outcome::Answered(reply) => format!("answered {reply:?}"),
    }
}
