//! The client: one thread, and as many connections as are asked for.

mod keys;

use super::connection::{Connection, Lost};
use super::history::{Answer, KeyHistory, Record};
use super::ledger::Ledger;
use super::model::{Operation, Response};
use super::resp::Reply;
use super::workload::{Request, Workload};
use super::{RedisConfig, RedisError};
use crate::load::schedule::Timetable;
use crate::load::tally::{EXAMPLES, Tally};
use crate::load::{ConnectionReport, Pace, Progress};
use lockstep_perf::stamp::monotonic;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::io;
use std::iter::Peekable;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Compare-and-set: ARGV[2] is stored where ARGV[1] is found.
const CAS: &[u8] = b"if redis.call('GET',KEYS[1])==ARGV[1] then redis.call('SET',KEYS[1],ARGV[2]) return 1 end return 0";

/// The longest sleep, nanoseconds: so often the end of the run is looked at.
const SLEEP_MOST: u64 = 50_000_000;
/// What is remembered of a request until its reply.
#[derive(Debug)]
struct Pending {
    purpose: Purpose,
    /// When it was due.
    due_ns: u64,
    /// When it was handed to the connection.
    sent_ns: u64,
}

#[derive(Debug)]
enum Purpose {
    /// The record of the operation.
    Shared {
        key: usize,
        record: usize,
    },
    Ledger {
        slot: u32,
        write: u64,
    },
    /// Setting up a key.
    Prepare,
    /// Reading a ledger key back.
    ReadBack {
        slot: u32,
    },
}

/// The client.
pub struct Redis {
    config: RedisConfig,
    epoll: OwnedFd,
    /// `None`: lost.
    connections: Vec<Option<Connection<Pending>>>,
    /// Whether a connection is waited for until it takes bytes again.
    waits_for_room: Vec<bool>,
    /// What was in flight on connections that were lost.
    abandoned: Vec<Pending>,
    losses: Vec<String>,
    lost: u32,
    workload: Workload,
    ledger: Ledger,
    histories: Vec<KeyHistory>,
    remembered: usize,
    runs: u64,
    /// Where the last request went.
    turn: usize,
    progress: Arc<Progress>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("config", &self.config)
            .field("lost", &self.lost)
            .field("remembered", &self.remembered)
            .finish_non_exhaustive()
    }
}

impl Redis {
    /// Opens all connections.
    ///
    /// # Errors
    /// Settings out of range, or nobody there.
    pub fn connect(config: RedisConfig) -> Result<Self, RedisError> {
        config.validate()?;
        let failed = |source| RedisError::Connect {
            target: config.target,
            source,
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(failed)?;
        let workload = Workload::new(&config);
        let histories = (0..workload.keys())
            .map(|key| KeyHistory::new(workload.name(key), Some(workload.initial(key))))
            .collect();
        let mut client = Self {
            epoll,
            waits_for_room: Vec::new(),
            connections: Vec::new(),
            abandoned: Vec::new(),
            losses: Vec::new(),
            lost: 0,
            ledger: Ledger::new(config.ledger_keys, config.value_bytes),
            workload,
            histories,
            remembered: 0,
            runs: 0,
            turn: 0,
            progress: Arc::default(),
            config,
        };
        for _ in 0..client.config.connections {
            client.open().map_err(|source| RedisError::Connect {
                target: client.config.target,
                source,
            })?;
        }
        Ok(client)
    }

    /// Numbers for whoever watches, and the switch that ends a run.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Connections that were lost so far.
    #[must_use]
    pub fn connections_lost(&self) -> u32 {
        self.lost
    }

    /// Asks for `length`, then waits for what is in flight. May be called again: histories go on.
    ///
    /// # Errors
    /// Only what the host refuses: what the server does, and what it does not, is in the report.
    pub fn run(&mut self, length: Duration) -> Result<ConnectionReport, RedisError> {
        self.runs += 1;
        let length_ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX / 2);
        let seed = self.config.seed.wrapping_add(self.runs << 32);
        let mut times = match self.config.pace {
            Pace::Closed => None,
            Pace::Open { rate, arrivals } => {
                Some(Timetable::new(arrivals, rate, length_ns, seed).peekable())
            }
        };
        let mut run = Run::new(length);
        let start = monotonic();
        run.tally.latency.begin(start);
        let end = start.saturating_add(length_ns);
        let patience = u64::try_from(self.config.patience.as_nanos()).unwrap_or(u64::MAX);
        let mut heard = start;
        loop {
            let now = monotonic();
            if run.ended_early.is_none()
                && let Some(why) = self.reason_to_end()
            {
                run.ended_early = Some(why);
                run.unsent = times.take().map_or(0, |times| times.count() as u64);
            }
            let open = run.ended_early.is_none();
            let mut next_due = u64::MAX;
            match &mut times {
                Some(times) if open => {
                    if let Some(due) = self.send_due(start, now, times, &mut run) {
                        next_due = start + due;
                    }
                }
                None if open && now < end => self.send_closed(now, &mut run),
                _ => {}
            }
            self.flush_all();
            let outstanding = self.outstanding();
            self.progress.outstanding.set(outstanding as u64);
            if outstanding == 0 {
                heard = now;
                let more = open
                    && times
                        .as_mut()
                        .map_or(now < end, |times| times.peek().is_some());
                if !more {
                    break;
                }
            } else if now.saturating_sub(heard) > patience {
                run.ended_early = Some(format!("no reply for {:?}", self.config.patience));
                run.unsent += times.take().map_or(0, |times| times.count() as u64);
                break;
            }
            if self.receive(next_due, outstanding, &mut run)? {
                heard = monotonic();
            }
        }
        // What was in flight on a lost connection stays without an answer.
        self.abandoned.clear();
        Ok(run.finish(start, monotonic(), self.lost, self.losses.clone()))
    }

    /// Why no more is to be sent, whatever the time.
    fn reason_to_end(&self) -> Option<String> {
        if self.connections.iter().all(Option::is_none) {
            Some("every connection is lost".to_owned())
        } else if self.remembered >= self.config.history_most {
            Some(format!(
                "{} operations are remembered, as many as were allowed",
                self.remembered
            ))
        } else if self.progress.stopped() {
            Some("it was stopped".to_owned())
        } else {
            None
        }
    }

    /// Sends what is due; when the next one is, if it can be sent then.
    fn send_due(
        &mut self,
        start: u64,
        now: u64,
        times: &mut Peekable<Timetable>,
        run: &mut Run,
    ) -> Option<u64> {
        while let Some(due) = times.peek().copied() {
            if start + due > now {
                return Some(due);
            }
            let Some(index) = self.connection_with_room() else {
                // All are full: it stays due, and its latency grows.
                return None;
            };
            times.next();
            self.send(index, start + due, run);
        }
        None
    }

    fn send_closed(&mut self, now: u64, run: &mut Run) {
        while let Some(index) = self.connection_with_room() {
            self.send(index, now, run);
        }
    }

    /// The next connection, in turn, that may have another request in flight.
    fn connection_with_room(&mut self) -> Option<usize> {
        let count = self.connections.len();
        let depth = self.config.depth as usize;
        let found = (1..=count)
            .map(|step| (self.turn + step) % count)
            .find(|index| {
                self.connections[*index]
                    .as_ref()
                    .is_some_and(|connection| connection.outstanding() < depth)
            })?;
        self.turn = found;
        Some(found)
    }

    fn send(&mut self, index: usize, due_ns: u64, run: &mut Run) {
        let request = self.workload.next(&mut self.ledger);
        let Some(connection) = &mut self.connections[index] else {
            return;
        };
        let now = monotonic();
        run.tally.sent(now, due_ns);
        self.progress.sent.increment();
        let pending = |purpose| Pending {
            purpose,
            due_ns,
            sent_ns: now,
        };
        match request {
            Request::Shared { key, operation } => {
                let history = &mut self.histories[key];
                let record = history.records.len();
                let name = history.key.as_bytes();
                let pending = pending(Purpose::Shared { key, record });
                match &operation {
                    Operation::Get => connection.ask(&[b"GET", name], pending),
                    Operation::Set(value) => connection.ask(&[b"SET", name, value], pending),
                    Operation::Increment => connection.ask(&[b"INCR", name], pending),
                    Operation::Append(value) => connection.ask(&[b"APPEND", name, value], pending),
                    Operation::CompareAndSet { expected, new } => {
                        connection.ask(&[b"EVAL", CAS, b"1", name, expected, new], pending);
                    }
                }
                history.records.push(Record {
                    connection: index as u32,
                    operation,
                    invoked_ns: now,
                    answer: None,
                });
                self.remembered += 1;
            }
            Request::Ledger { slot, write } => {
                let mut value = Vec::new();
                self.ledger.value(slot, write, &mut value);
                let name = Ledger::name(slot);
                connection.ask(
                    &[b"SET", name.as_bytes(), &value],
                    pending(Purpose::Ledger { slot, write }),
                );
            }
        }
    }

    fn flush_all(&mut self) {
        for index in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[index] else {
                continue;
            };
            if !connection.blocked() && self.waits_for_room[index] {
                self.watch(index, false);
            } else if connection.blocked() {
                match connection.flush() {
                    Ok(()) => {
                        let blocked = connection.blocked();
                        if blocked != self.waits_for_room[index] {
                            self.watch(index, blocked);
                        }
                    }
                    Err(lost) => self.lose(index, &lost),
                }
            }
        }
    }

    /// Has epoll report, besides replies, that the socket takes bytes again.
    fn watch(&mut self, index: usize, room: bool) {
        let Some(connection) = &self.connections[index] else {
            return;
        };
        let flags = if room {
            epoll::EventFlags::IN | epoll::EventFlags::OUT
        } else {
            epoll::EventFlags::IN
        };
        let data = epoll::EventData::new_u64(index as u64);
        match epoll::modify(&self.epoll, connection.fd(), data, flags) {
            Ok(()) => self.waits_for_room[index] = room,
            Err(error) => self.lose(index, &Lost::Io(error.into())),
        }
    }

    fn lose(&mut self, index: usize, why: &Lost) {
        // Closing the socket takes it out of the epoll instance.
        if let Some(connection) = self.connections[index].take() {
            self.lost += 1;
            if self.losses.len() < EXAMPLES {
                self.losses.push(format!(
                    "connection {index}, {} requests in flight: {why}",
                    connection.outstanding()
                ));
            }
            self.abandoned.extend(connection.into_pending());
        }
    }

    fn outstanding(&self) -> usize {
        self.connections
            .iter()
            .flatten()
            .map(Connection::outstanding)
            .sum()
    }

    /// Takes the replies that come until `until_ns`, or in [`SLEEP_MOST`]. Whether any did.
    fn receive(
        &mut self,
        until_ns: u64,
        mut outstanding: usize,
        run: &mut Run,
    ) -> Result<bool, RedisError> {
        let mut any = false;
        self.wait(until_ns, |client, pending, reply| {
            let now = monotonic();
            outstanding -= 1;
            any = true;
            run.tally
                .replied(now, pending.due_ns, pending.sent_ns, outstanding);
            client.progress.answered.increment();
            client.progress.outstanding.set(outstanding as u64);
            match client.judge(&pending.purpose, reply, now) {
                Some(acknowledged) => run.tally.acknowledged_writes += u64::from(acknowledged),
                None => run
                    .tally
                    .error(|| format!("{:?}: {}", pending.purpose, describe(Some(reply)))),
            }
        })?;
        Ok(any)
    }

    /// Sleeps until there is something to receive, or until `until_ns`; hands out what there is.
    fn wait(
        &mut self,
        until_ns: u64,
        mut answered: impl FnMut(&mut Self, Pending, Reply<'_>),
    ) -> Result<(), RedisError> {
        let sleep = until_ns.saturating_sub(monotonic()).min(SLEEP_MOST);
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: sleep as i64,
        };
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
        let ready = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(RedisError::Wait(error.into())),
        };
        for event in ready {
            let index = event.data.u64() as usize;
            // Out of its place meanwhile, so that the rest is free for the closure.
            let Some(mut connection) = self.connections[index].take() else {
                continue;
            };
            let received = connection.receive(|pending, reply| answered(self, pending, reply));
            self.connections[index] = Some(connection);
            if let Err(lost) = received {
                self.lose(index, &lost);
            }
        }
        Ok(())
    }

    /// Remembers what a reply says: whether it acknowledges a write, or nothing if it is no reply to
    /// what was asked (then it is as if none had come).
    fn judge(&mut self, purpose: &Purpose, reply: Reply<'_>, now: u64) -> Option<bool> {
        match *purpose {
            Purpose::Shared { key, record } => {
                let record = &mut self.histories[key].records[record];
                let response = response(&record.operation, reply)?;
                self.workload.learn(key, &record.operation, &response);
                let wrote = record.operation.writes()
                    && !matches!(response, Response::Swapped(false) | Response::Refused);
                record.answer = Some(Answer {
                    answered_ns: now,
                    response,
                });
                Some(wrote)
            }
            Purpose::Ledger { slot, write } => {
                if reply != Reply::Simple(b"OK") {
                    return None;
                }
                self.ledger.acknowledged(slot, write);
                Some(true)
            }
            Purpose::Prepare | Purpose::ReadBack { .. } => Some(false),
        }
    }

    /// The histories of all shared keys.
    #[must_use]
    pub fn histories(&self) -> &[KeyHistory] {
        &self.histories
    }

    /// Another connection.
    fn open(&mut self) -> io::Result<()> {
        let connection = Connection::open(self.config.target)?;
        let data = epoll::EventData::new_u64(self.connections.len() as u64);
        epoll::add(&self.epoll, connection.fd(), data, epoll::EventFlags::IN)?;
        self.connections.push(Some(connection));
        self.waits_for_room.push(false);
        Ok(())
    }
}

/// What a reply means for an operation.
fn response(operation: &Operation, reply: Reply<'_>) -> Option<Response> {
    Some(match (operation, reply) {
        (Operation::Get, Reply::Bulk(value)) => Response::Found(Some(value.into())),
        (Operation::Get, Reply::Null) => Response::Found(None),
        (Operation::Set(_), Reply::Simple(b"OK")) => Response::Done,
        (Operation::Increment | Operation::Append(_), Reply::Integer(number)) => {
            Response::Number(number)
        }
        (Operation::CompareAndSet { .. }, Reply::Integer(swapped @ (0 | 1))) => {
            Response::Swapped(swapped == 1)
        }
        (Operation::Increment, Reply::Error(text))
            if text.starts_with(b"ERR value is not an integer")
                || text.starts_with(b"ERR increment or decrement would overflow") =>
        {
            Response::Refused
        }
        _ => return None,
    })
}

fn describe(reply: Option<Reply<'_>>) -> String {
    match reply {
        None => "no reply".to_owned(),
        Some(Reply::Error(text)) => format!("error {}", text.escape_ascii()),
        Some(reply) => format!("unexpected reply {reply:?}"),
    }
}

/// What a run records.
struct Run {
    tally: Tally,
    unsent: u64,
    ended_early: Option<String>,
}

impl Run {
    fn new(length: Duration) -> Self {
        Self {
            tally: Tally::new(length),
            unsent: 0,
            ended_early: None,
        }
    }

    fn finish(self, start: u64, end: u64, lost: u32, losses: Vec<String>) -> ConnectionReport {
        ConnectionReport {
            unsent: self.unsent,
            connections_lost: lost,
            losses,
            ended_early: self.ended_early,
            ..ConnectionReport::new(self.tally, start, end)
        }
    }
}
