//! What a seed stands for: a pair, its network, its storage, and what will go wrong when.

use crate::guest::GuestSpec;
use crate::rng::Rng;

/// Nanoseconds in a microsecond.
pub const US: u64 = 1_000;
/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;

/// One of the two replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the machine runs at first.
    Primary,
    /// Where it is replayed.
    Backup,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Primary => Self::Backup,
            Self::Backup => Self::Primary,
        }
    }

    /// 0 or 1.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// How the log travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Two rings and a link between two hosts.
    Link,
    /// One ring that two processes of one host share; a commit is the acknowledgement.
    Committed,
    /// The same ring; what the backup has read and checked is acknowledged.
    Received,
}

/// What a network does to messages.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    /// Shortest delay, nanoseconds.
    pub fastest: u64,
    /// Longest ordinary delay; each message draws its own, so they overtake each other.
    pub slowest: u64,
    /// Messages lost, per thousand.
    pub drop: u32,
    /// Messages delivered twice, per thousand.
    pub duplicate: u32,
    /// Messages with a bit flipped, per thousand.
    pub damage: u32,
    /// Messages delayed by up to 5 ms, per thousand.
    pub straggle: u32,
}

impl Quality {
    /// A network on which nothing is lost: what everything ends with.
    pub const CALM: Self = Self {
        fastest: 20 * US,
        slowest: 60 * US,
        drop: 0,
        duplicate: 0,
        damage: 0,
        straggle: 0,
    };

    fn draw(rng: &mut Rng) -> Self {
        let fastest = rng.between(5, 100) * US;
        Self {
            fastest,
            slowest: fastest + rng.pick(&[1, 20, 100, 500]) * US,
            drop: rng.pick(&[0, 0, 5, 30, 150]),
            duplicate: rng.pick(&[0, 0, 20, 200]),
            damage: rng.pick(&[0, 0, 0, 10]),
            straggle: rng.pick(&[0, 0, 10, 50]),
        }
    }
}

/// What the storage does to the arbiter's requests.
#[derive(Debug, Clone, Copy)]
pub struct StorageQuality {
    /// Longest time that a request, and its answer, takes, nanoseconds.
    pub slowest: u64,
    /// Requests that fail before they do anything, per thousand.
    pub lose_request: u32,
    /// Requests that are carried out and then reported as failed, per thousand.
    pub lose_answer: u32,
    /// Requests that are never answered, whether carried out or not, per thousand.
    pub hang: u32,
}

impl StorageQuality {
    /// Storage that works.
    pub const CALM: Self = Self {
        slowest: 200 * US,
        lose_request: 0,
        lose_answer: 0,
        hang: 0,
    };

    fn draw(rng: &mut Rng) -> Self {
        Self {
            slowest: rng.pick(&[50, 200, 1_000, 10_000]) * US,
            lose_request: rng.pick(&[0, 0, 200, 600]),
            lose_answer: rng.pick(&[0, 0, 200, 600]),
            hang: rng.pick(&[0, 0, 0, 200]),
        }
    }
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed; its kernel closes its connections.
    Kill(Side),
    /// The host loses power: nobody says good-bye.
    PowerLoss(Side),
    /// The process is stopped, and goes on later as if nothing had been.
    Stop(Side),
    /// The process goes on.
    Continue(Side),
    /// Nothing gets to this side any more.
    CutTo(Side),
    /// It does again.
    HealTo(Side),
    /// The storage cannot be reached from this side.
    StorageGone(Side),
    /// It can again.
    StorageBack(Side),
    /// Whatever was wrong with networks and storage is over.
    Calm,
}

/// Everything that a seed decides beforehand.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How the log travels.
    pub transport: Transport,
    /// Capacity of the primary's ring (or the only one), bytes.
    pub primary_ring: usize,
    /// Capacity of the backup's ring, bytes.
    pub backup_ring: usize,
    /// The machine.
    pub guest: GuestSpec,
    /// Between the replicas.
    pub link: Quality,
    /// Between machine and clients.
    pub network: Quality,
    /// The arbiter's.
    pub storage: StorageQuality,
    /// What happens when, in order; the last one is [`Fault::Calm`].
    pub faults: Vec<(u64, Fault)>,
    /// Requests that each client makes.
    pub requests: u32,
    /// Nanoseconds between two frames that are none of the guest's business; 0 for none.
    pub noise: u64,
    /// When the operator presses the power button, if ever.
    pub power_button: Option<u64>,
    /// Each replica's clock, ahead of the simulated time by so much.
    pub clocks: [u64; 2],
    /// Nanoseconds of a vCPU's time for one position.
    pub pace: [u64; 2],
    /// Acknowledge after so many entries that do not ask for it.
    pub ack_entries: u32,
    /// Time between two digests, nanoseconds.
    pub digest_interval: u64,
}

/// Faults begin before this time.
const TROUBLE: u64 = 20 * MS;

impl Plan {
    /// The plan that `rng` draws.
    pub fn draw(rng: &mut Rng) -> Self {
        let transport = rng.pick(&[
            Transport::Link,
            Transport::Link,
            Transport::Link,
            Transport::Committed,
            Transport::Committed,
            Transport::Received,
        ]);
        let rate = rng.pick(&[0, 100, 1_000]);
        let guest = GuestSpec {
            rate,
            work: rng.pick(&[1, 10, 60]),
            tick: rng.pick(&[300, 1_000, 4_000]) * US,
            seed: rng.draw(),
        };
        let pace = rng.pick(&[200, 1_000, 3_000]);
        let mut plan = Self {
            transport,
            primary_ring: rng.pick(&[4096, 4096, 16384]),
            backup_ring: rng.pick(&[4096, 16384]),
            guest,
            link: Quality::draw(rng),
            network: Quality::draw(rng),
            storage: StorageQuality::draw(rng),
            faults: Vec::new(),
            requests: rng.between(4, 30) as u32,
            noise: rng.pick(&[0, 0, 0, 40, 150]) * US,
            power_button: rng.chance(80).then(|| rng.below(TROUBLE)),
            clocks: [rng.below(1 << 50), rng.below(1 << 50)],
            // Backups are now and then slower than their primaries.
            pace: [pace, pace * rng.pick(&[50, 100, 100, 150]) / 100],
            ack_entries: rng.pick(&[1, 4, 64]),
            digest_interval: rng.pick(&[500, 2_000, 100_000]) * US,
        };
        plan.draw_faults(rng);
        plan
    }

    fn draw_faults(&mut self, rng: &mut Rng) {
        let count = rng.pick(&[0, 1, 1, 1, 1, 2, 3]);
        for _ in 0..count {
            self.draw_fault(rng);
        }
        if rng.chance(300) {
            let side = rng.pick(&[Side::Primary, Side::Backup]);
            self.interval(rng, Fault::StorageGone(side), Fault::StorageBack(side));
        }
        let end = self.faults.iter().map(|(at, _)| *at).max().unwrap_or(0);
        self.faults
            .push((end.max(rng.below(TROUBLE)) + 1, Fault::Calm));
        self.faults.sort_by_key(|(at, _)| *at);
    }

    fn draw_fault(&mut self, rng: &mut Rng) {
        use Side::{Backup, Primary};
        let at = rng.below(TROUBLE);
        // What happens to one process of a host, and to its half of the shared memory, can happen on
        // one host; the rest needs two.
        let kinds = if self.transport == Transport::Link {
            8
        } else {
            5
        };
        match rng.below(kinds) {
            0 | 1 => self.faults.push((at, Fault::Kill(Primary))),
            2 => self.faults.push((at, Fault::Kill(Backup))),
            3 => self.interval(rng, Fault::Stop(Primary), Fault::Continue(Primary)),
            4 => self.interval(rng, Fault::Stop(Backup), Fault::Continue(Backup)),
            5 => self
                .faults
                .push((at, Fault::PowerLoss(rng.pick(&[Primary, Primary, Backup])))),
            6 => {
                let side = rng.pick(&[Primary, Backup]);
                self.interval(rng, Fault::CutTo(side), Fault::HealTo(side));
            }
            _ => {
                let (at, end) = moment(rng);
                for side in [Primary, Backup] {
                    self.faults.push((at, Fault::CutTo(side)));
                    self.faults.push((end, Fault::HealTo(side)));
                }
            }
        }
    }

    fn interval(&mut self, rng: &mut Rng, begin: Fault, end: Fault) {
        let (from, to) = moment(rng);
        self.faults.push((from, begin));
        self.faults.push((to, end));
    }
}

/// From when to when something lasts: shorter and longer than the failure detector's patience.
fn moment(rng: &mut Rng) -> (u64, u64) {
    let from = rng.below(TROUBLE);
    (
        from,
        from + rng.pick(&[500 * US, 3 * MS, 8 * MS, 15 * MS]) + rng.below(2 * MS),
    )
}
