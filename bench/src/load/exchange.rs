//! Requests and replies over sockets: at most one request in flight for each key, retransmitted until
//! it is answered or given up. Knows nothing of schedules and of what a reply means.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::Duration;

use lockstep_perf::stamp;
use rustix::event::{Timespec, epoll};

use super::protocol::{self, Command, Key, Reply};

/// A retransmission waits twice as long as the one before, but no longer than this many times the
/// first.
const BACKOFF_MAX: u64 = 16;
/// Datagrams read from one socket before the schedule is looked at again.
const READS_MAX: usize = 32;

/// How a request that is not answered is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Retransmission {
    /// Repeat after this long without a reply; then after twice as long, and so on up to sixteen
    /// times as long.
    pub timeout: Duration,
    /// Give up when this many datagrams have been sent and the last one timed out as well.
    pub attempts: u32,
}

/// A request in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub key: Key,
    pub command: Command,
    /// When it should have been sent.
    pub intended_ns: u64,
    /// When it was first sent.
    pub sent_ns: u64,
    /// Datagrams sent.
    pub datagrams: u32,
    id: u16,
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome<'a> {
    Answered(Reply<'a>),
    GaveUp,
}

/// Numbers about the traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Datagrams sent again.
    pub retransmissions: u64,
    /// Replies to nothing that was in flight: late, or doubled.
    pub stray_replies: u64,
    /// Sends and receives that the network refused (nobody listens, no route).
    pub refusals: u64,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    request: Option<Request>,
    /// Counts the key's requests: tells a reply to this one from a late reply to an earlier one, and
    /// a timer of this one from those of earlier ones.
    generation: u32,
}

pub(super) struct Exchange {
    sockets: Vec<UdpSocket>,
    epoll: OwnedFd,
    retransmission: Retransmission,
    slots: Vec<Slot>,
    /// Low bits of a request id that number the key within its socket.
    key_bits: u32,
    outstanding: usize,
    /// The same, of each socket.
    outstanding_of: Vec<u32>,
    /// (deadline, key, generation); those of requests that have ended are dropped when they come up.
    timers: BinaryHeap<Reverse<(u64, Key, u32)>>,
    datagram: Vec<u8>,
    received: Vec<u8>,
    pub traffic: Traffic,
}

impl Exchange {
    /// Opens `connections` sockets to `target` in the network namespace of the calling thread, for
    /// `keys` keys, of which each socket gets its share.
    pub fn open(
        target: SocketAddr,
        connections: usize,
        keys: u32,
        retransmission: Retransmission,
    ) -> io::Result<Self> {
        let any: SocketAddr = if target.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut sockets = Vec::with_capacity(connections);
        for index in 0..connections {
            let socket = UdpSocket::bind(any)?;
            socket.connect(target)?;
            socket.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, &socket, data, epoll::EventFlags::IN)?;
            sockets.push(socket);
        }
        let keys_a_socket = u64::from(keys).div_ceil(connections as u64).max(1);
        Ok(Self {
            sockets,
            epoll,
            retransmission,
            slots: vec![Slot::default(); keys as usize],
            key_bits: keys_a_socket.next_power_of_two().trailing_zeros(),
            outstanding: 0,
            outstanding_of: vec![0; connections],
            timers: BinaryHeap::with_capacity(4 * keys as usize),
            datagram: Vec::with_capacity(protocol::DATAGRAM_MAX),
            received: vec![0; 2048],
            traffic: Traffic::default(),
        })
    }

    /// Requests in flight.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Sends a request that was due at `intended_ns`, on a key that has none in flight.
    pub fn send(&mut self, key: Key, command: Command, intended_ns: u64) {
        let generation = self.slots[key as usize].generation.wrapping_add(1);
        let within = key / self.sockets.len() as u32;
        let id = within | generation << self.key_bits;
        let request = Request {
            key,
            command,
            intended_ns,
            sent_ns: stamp::now(),
            datagrams: 1,
            id: id as u16,
        };
        self.slots[key as usize] = Slot {
            request: Some(request),
            generation,
        };
        self.outstanding += 1;
        self.outstanding_of[key as usize % self.sockets.len()] += 1;
        self.transmit(&request);
        let deadline = request.sent_ns + self.timeout_ns(1);
        self.timers.push(Reverse((deadline, key, generation)));
    }

    fn transmit(&mut self, request: &Request) {
        let &Request {
            key, command, id, ..
        } = request;
        protocol::encode(&mut self.datagram, id, key, command);
        let socket = &self.sockets[key as usize % self.sockets.len()];
        // A datagram that could not be sent is a datagram lost: it is repeated. It counts as sent all
        // the same; an error may be that of an earlier datagram, which the network returned.
        if socket.send(&self.datagram).is_err() {
            self.traffic.refusals += 1;
        }
    }

    fn timeout_ns(&self, datagrams: u32) -> u64 {
        let first = u64::try_from(self.retransmission.timeout.as_nanos()).unwrap_or(u64::MAX);
        let backoff = 1_u64 << (datagrams - 1).min(BACKOFF_MAX.trailing_zeros());
        first.saturating_mul(backoff)
    }

    /// Waits for replies until `until_ns` at the latest, and hands each request that ended, with the
    /// time at which it did, to `ended`. Returns early after the first ones. `until_ns` in the past:
    /// takes what is there.
    pub fn exchange(
        &mut self,
        until_ns: u64,
        mut ended: impl FnMut(&Request, Outcome<'_>, u64),
    ) -> io::Result<()> {
        let before = self.outstanding;
        let now = self.expire(&mut ended);
        if self.outstanding < before {
            return Ok(());
        }
        let first_timer = self.timers.peek().map_or(u64::MAX, |timer| timer.0.0);
        let wait = until_ns.min(first_timer).saturating_sub(now);
        let wait = Timespec {
            tv_sec: i64::try_from(wait / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (wait % 1_000_000_000) as _,
        };
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 16];
        let ready = match epoll::wait(&self.epoll, &mut events, Some(&wait)) {
            Ok((ready, _)) => ready,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in ready {
            self.receive(event.data.u64() as usize, &mut ended);
        }
        Ok(())
    }

    fn receive(&mut self, socket: usize, ended: &mut impl FnMut(&Request, Outcome<'_>, u64)) {
        for _ in 0..READS_MAX {
            let length = match self.sockets[socket].recv(&mut self.received) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.traffic.refusals += 1;
                    return;
                }
            };
            let now = stamp::now();
            let Some((id, reply)) = protocol::decode(&self.received[..length]) else {
                self.traffic.stray_replies += 1;
                continue;
            };
            let within = u32::from(id) & ((1 << self.key_bits) - 1);
            let key = within as usize * self.sockets.len() + socket;
            let request = self
                .slots
                .get_mut(key)
                .and_then(|slot| slot.request.take_if(|r| r.id == id));
            match request {
                Some(request) => {
                    self.outstanding -= 1;
                    self.outstanding_of[socket] -= 1;
                    ended(&request, Outcome::Answered(reply), now);
                }
                None => self.traffic.stray_replies += 1,
            }
            // Nothing more is to come: spares the read that would say so.
            if self.outstanding_of[socket] == 0 {
                return;
            }
        }
    }

    /// Repeats or gives up what has waited too long; returns the time.
    fn expire(&mut self, ended: &mut impl FnMut(&Request, Outcome<'_>, u64)) -> u64 {
        let now = stamp::now();
        while let Some(&Reverse((deadline, key, generation))) = self.timers.peek() {
            let slot = &mut self.slots[key as usize];
            let current = slot.generation == generation && slot.request.is_some();
            if current && deadline > now {
                break;
            }
            self.timers.pop();
            if !current {
                continue;
            }
            let Some(request) = &mut slot.request else {
                continue;
            };
            if request.datagrams < self.retransmission.attempts {
                request.datagrams += 1;
                let request = *request;
                self.transmit(&request);
                self.traffic.retransmissions += 1;
                let deadline = now + self.timeout_ns(request.datagrams);
                self.timers.push(Reverse((deadline, key, generation)));
            } else {
                let request = *request;
                slot.request = None;
                self.outstanding -= 1;
                self.outstanding_of[key as usize % self.sockets.len()] -= 1;
                ended(&request, Outcome::GaveUp, now);
            }
        }
        now
    }
}

/// Has the calling thread's timers fire when they are due, and not up to 50 µs later. Best effort: a
/// kernel that refuses leaves the pacing coarser, which the histogram of the client's own delay shows.
pub(super) fn precise_timers() {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}
