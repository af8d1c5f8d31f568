//! Heartbeats both ways, sent and heard by a thread of its own so that neither a busy guest nor a
//! full log silences this side. Whether the peer is dead is not judged here: the role's detector
//! does that, from what it reads off [`Pulse`].

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::protocol::heartbeat::{HEARTBEAT_BYTES, HeartbeatMonitor, HeartbeatSchedule};
use lockstep_logchan::protocol::{Role, VmId};
use lockstep_perf::counters::Counters;
use lockstep_perf::stamp;

use super::priority;

/// Datagrams heard between two heartbeats of one's own: whoever floods the port keeps this thread, which
/// goes before all others, neither from beating nor from sleeping.
const HEARD_PER_BEAT: u32 = 32;

/// How long the peer's first heartbeat may take, nanoseconds.
const FIRST_HEARTBEAT_NS: u64 = 2_000_000_000;

/// Identity of one pairing, as heartbeats carry it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pairing {
    pub vm: VmId,
    pub generation: u64,
    pub role: Role,
}

/// What the heartbeat thread and the machine's thread tell each other.
#[derive(Debug, Default)]
struct Shared {
    heard_at: AtomicU64,
    peer_sequence: AtomicU64,
    own_sequence: AtomicU64,
    stop: AtomicBool,
}

/// The heartbeat thread. Stops when dropped.
#[derive(Debug)]
pub(super) struct Pulse {
    shared: Arc<Shared>,
    started: u64,
}

impl Pulse {
    /// Starts to beat to `socket`'s peer, to which it must be connected.
    pub fn start(
        socket: UdpSocket,
        pairing: Pairing,
        interval: Duration,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let started = stamp::now();
        // Relaxed: the spawn orders it.
        shared.heard_at.store(started, Ordering::Relaxed);
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || beat(&socket, pairing, interval, &theirs, &counters))?;
        Ok(Self { shared, started })
    }

    /// The peer's first heartbeat is not there yet, and need not be: the two sides of a pair do not
    /// get ready at the same moment, and the slower one is not dead.
    pub fn awaits_first(&self, now: u64) -> bool {
        let heard = self.heard_at() != self.started;
        !heard && now.saturating_sub(self.started) < FIRST_HEARTBEAT_NS
    }

    /// When the peer was last heard, on [`stamp::now`]'s clock.
    pub fn heard_at(&self) -> u64 {
        // Relaxed: a time by itself, pairs with nothing.
        self.shared.heard_at.load(Ordering::Relaxed)
    }

    /// The sequence number in the last heartbeat heard.
    pub fn peer_sequence(&self) -> Sequence {
        // Relaxed: a hint, pairs with nothing.
        Sequence(self.shared.peer_sequence.load(Ordering::Relaxed))
    }

    /// The sequence number that the next heartbeat carries.
    pub fn tell(&self, sequence: Sequence) {
        // Relaxed: a hint, pairs with nothing.
        self.shared
            .own_sequence
            .store(sequence.0, Ordering::Relaxed);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        // Relaxed: pairs with nothing. Not joined: the thread sleeps for up to an interval before it
        // sees this, a failover must not wait for that, and it sends nothing after it has woken.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn beat(
    socket: &UdpSocket,
    pairing: Pairing,
    interval: Duration,
    shared: &Shared,
    counters: &Counters,
) {
    let Pairing {
        vm,
        generation,
        role,
    } = pairing;
    let interval_ns = u64::try_from(interval.as_nanos())
        .unwrap_or(u64::MAX)
        .max(1_000_000);
    // A heartbeat that waits for its turn on a busy core is a peer that is taken for dead.
    priority::go_first("heartbeats");
    let mut schedule = HeartbeatSchedule::new(vm, generation, role, interval_ns, stamp::now());
    let mut monitor = HeartbeatMonitor::new(vm, generation, role.peer(), 0, stamp::now());
    // One byte more than a heartbeat has, so that a longer datagram is seen as such.
    let mut datagram = [0; HEARTBEAT_BYTES + 1];
    // Relaxed: pairs with nothing.
    while !shared.stop.load(Ordering::Relaxed) {
        let now = stamp::now();
        let sequence = Sequence(shared.own_sequence.load(Ordering::Relaxed));
        if let Some(heartbeat) = schedule.due(now, sequence) {
            // A peer that is not there (ECONNREFUSED) or a link that is down is the detector's
            // business: it hears nothing.
            if socket.send(&heartbeat.encode()).is_ok() {
                counters.channel.heartbeats_sent.increment();
            }
        }
        // By its own schedule alone: to be woken by each of the peer's as well would double what an idle
        // pair costs, for a sign of life that is noticed half an interval earlier.
        super::idle::sleep(&mut [], schedule.next_at());
        for _ in 0..HEARD_PER_BEAT {
            let Ok(length) = socket.recv(&mut datagram) else {
                break;
            };
            let Ok(heartbeat) = monitor.hear(&datagram[..length], stamp::now()) else {
                continue;
            };
            counters.channel.heartbeats_received.increment();
            // Relaxed, both: read as hints by `heard_at` and `peer_sequence`.
            shared.heard_at.store(stamp::now(), Ordering::Relaxed);
            shared
                .peer_sequence
                .store(heartbeat.sequence.0, Ordering::Relaxed);
        }
    }
}
