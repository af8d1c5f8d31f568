//! Everything around the replicas: simulated time, the networks, the storage, and who watches.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Write;

use lockstep_logchan::protocol::ack::ACK_BYTES;
use lockstep_logchan::protocol::heartbeat::HEARTBEAT_BYTES;
use lockstep_vmm::ft::arbiter::{Answer, Claim, OutOfReach, Party};
use lockstep_vmm::ft::detector::Suspicion;

use crate::options::Options;
use crate::oracle::{Broken, Oracle};
use crate::plan::{MS, Plan, Quality, Side, StorageQuality, US};
use crate::rng::Rng;
use crate::violation::Rule;
use crate::wire::{Request, Response};

/// What a replica finds in its sockets.
#[derive(Debug, Clone)]
pub enum Message {
    /// A packet of log entries.
    Log(Vec<u8>),
    /// An acknowledgement.
    Ack([u8; ACK_BYTES]),
    /// A heartbeat datagram.
    Heartbeat([u8; HEARTBEAT_BYTES]),
    /// The connection was closed by the other end, or by its kernel.
    Closed,
    /// A frame for the guest.
    Frame(Vec<u8>),
    /// The operator presses the button.
    PowerButton,
    /// The storage answered.
    Arbiter(Answer),
}

/// Something that happens at a later time.
#[derive(Debug)]
pub enum Happening {
    /// A message reaches a replica's kernel.
    Delivery(Side, Message),
    /// A frame from a client reaches the switch.
    FromClient(Request),
    /// A frame from a machine reaches the switch, on its way to a client.
    FromMachine(Side, [u8; 13]),
    /// A side's announcement reaches the switch.
    Announcement(Side),
    /// A claim reaches the storage.
    AtStorage(Side, Claim),
    /// A frame for nobody in particular reaches the switch.
    Noise,
    /// The network between the replicas delivers a close, which is not lost, only held up by a cut.
    Close(Side),
}

struct Scheduled {
    at: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// How often things happened that a run is there to provoke.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The primary's vCPU waited for room in the log.
    pub log_full: u64,
    /// The log was sent again from the last acknowledged entry.
    pub rewinds: u64,
    /// Packets of log that were dropped: damaged, or behind a gap.
    pub refused_packets: u64,
    /// Outputs that were sent again by a backup that went live.
    pub resent: u64,
    /// Outputs that both sides sent.
    pub sent_twice: u64,
    /// A side was suspected that was well.
    pub wrong_suspicions: u64,
    /// A run was interrupted between two positions.
    pub kicks: u64,
    /// Answers of the arbiter that were lost after the flag was set.
    pub answers_lost: u64,
    /// Commits that were found to be behind a seal.
    pub found_sealed: u64,
    /// Outputs that waited in the gate when its primary died.
    pub died_holding: u64,
}

impl Counts {
    /// Adds what another run provoked.
    pub const fn add(&mut self, other: &Self) {
        self.log_full += other.log_full;
        self.rewinds += other.rewinds;
        self.refused_packets += other.refused_packets;
        self.resent += other.resent;
        self.sent_twice += other.sent_twice;
        self.wrong_suspicions += other.wrong_suspicions;
        self.kicks += other.kicks;
        self.answers_lost += other.answers_lost;
        self.found_sealed += other.found_sealed;
        self.died_holding += other.died_holding;
    }
}

/// The world between the replicas.
pub struct Env {
    /// Simulated time, nanoseconds.
    pub now: u64,
    /// Chance.
    pub rng: Rng,
    /// The watcher.
    pub oracle: Oracle,
    /// The first rule that was broken.
    pub broken: Option<Broken>,
    /// What was provoked.
    pub counts: Counts,
    /// The process of this side was killed.
    pub dead: [bool; 2],
    /// Nothing gets to this side.
    pub cut_to: [bool; 2],
    /// The storage cannot be reached from this side.
    pub storage_gone: [bool; 2],
    link: Quality,
    network: Quality,
    storage: StorageQuality,
    flag: Option<Party>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    options: Options,
}

impl Env {
    /// A world as planned.
    #[must_use]
    pub fn new(plan: &Plan, rng: Rng, options: Options) -> Self {
        Self {
            now: 0,
            rng,
            oracle: Oracle::default(),
            broken: None,
            counts: Counts::default(),
            dead: [false; 2],
            cut_to: [false; 2],
            storage_gone: [false; 2],
            link: plan.link,
            network: plan.network,
            storage: plan.storage,
            flag: None,
            queue: BinaryHeap::new(),
            scheduled: 0,
            options,
        }
    }

    /// Prints a line if somebody wants to follow.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.options.trace {
            let now = self.now as f64 / 1e3;
            // A reader that has seen enough is no reason to fail.
            let _ignored = writeln!(std::io::stdout(), "{now:>9.1} us  {}", line());
        }
    }

    /// Notes that a rule was broken. The first time counts.
    pub fn check(&mut self, result: Result<(), Broken>) {
        if let Err(broken) = result {
            self.trace(|| format!("BROKEN {:?}: {}", broken.0, broken.1));
            if self.options.checks(broken.0) {
                self.broken.get_or_insert(broken);
            }
        }
    }

    /// Something failed that must not fail.
    pub fn unexpected(&mut self, what: String) {
        self.check(Err((Rule::Unexpected, what)));
    }

    /// `side` takes the other one for dead.
    pub fn suspects(&mut self, side: Side, suspicion: Suspicion) {
        let judged = matches!(
            suspicion,
            Suspicion::Silent { .. } | Suspicion::Stalled { .. }
        );
        if judged && !self.dead[side.other().index()] {
            self.counts.wrong_suspicions += 1;
        }
    }

    /// Networks and storage behave from here on.
    pub fn calm(&mut self) {
        self.link = Quality::CALM;
        self.network = Quality::CALM;
        self.storage = StorageQuality::CALM;
        self.cut_to = [false; 2];
        self.storage_gone = [false; 2];
    }

    fn schedule(&mut self, at: u64, what: Happening) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled {
            at,
            order: self.scheduled,
            what,
        }));
    }

    /// When the next thing happens.
    #[must_use]
    pub fn next_at(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse(scheduled)| scheduled.at)
    }

    /// What happens now, if anything.
    pub fn happening(&mut self) -> Option<Happening> {
        if self.next_at()? > self.now {
            return None;
        }
        self.queue.pop().map(|Reverse(scheduled)| scheduled.what)
    }

    /// Delays under which copies of a message arrive; none if it is lost.
    fn fate(&mut self, quality: Quality) -> [Option<u64>; 2] {
        let mut copies = [None; 2];
        if self.rng.chance(quality.drop) {
            return copies;
        }
        let twice = usize::from(self.rng.chance(quality.duplicate));
        for copy in &mut copies[..=twice] {
            let late = self.rng.chance(quality.straggle);
            let straggle = if late { self.rng.below(5 * MS) } else { 0 };
            *copy = Some(self.rng.between(quality.fastest, quality.slowest) + straggle);
        }
        copies
    }

    /// A replica sends to the other one.
    pub fn send(&mut self, from: Side, message: Message) {
        let to = from.other();
        if let Message::Closed = message {
            let delay = self.rng.between(self.link.fastest, self.link.slowest);
            self.schedule(self.now + delay, Happening::Close(to));
            return;
        }
        for delay in self.fate(self.link).into_iter().flatten() {
            let mut copy = message.clone();
            if self.rng.chance(self.link.damage) {
                let bit = self.rng.draw();
                let bytes: &mut [u8] = match &mut copy {
                    Message::Log(bytes) => bytes,
                    Message::Ack(bytes) => bytes,
                    Message::Heartbeat(bytes) => bytes,
                    _ => &mut [],
                };
                if !bytes.is_empty() {
                    bytes[(bit >> 3) as usize % bytes.len()] ^= 1 << (bit & 7);
                }
            }
            self.schedule(self.now + delay, Happening::Delivery(to, copy));
        }
    }

    /// A close cannot get through yet.
    pub fn close_later(&mut self, to: Side) {
        self.schedule(self.now + 500 * US, Happening::Close(to));
    }

    /// A machine sends a frame to the clients' network.
    pub fn to_clients(&mut self, from: Side, frame: &[u8]) {
        let Ok(frame) = <[u8; 13]>::try_from(frame) else {
            return;
        };
        for delay in self.fate(self.network).into_iter().flatten() {
            self.schedule(self.now + delay, Happening::FromMachine(from, frame));
        }
    }

    /// A client sends a request.
    pub fn to_machine(&mut self, request: Request) {
        for delay in self.fate(self.network).into_iter().flatten() {
            self.schedule(self.now + delay, Happening::FromClient(request));
        }
    }

    /// The next frame of noise, after `delay`.
    pub fn noise_after(&mut self, delay: u64) {
        self.schedule(self.now + delay, Happening::Noise);
    }

    /// A side says, again and again for a while, that the machine's address lives with it: what it
    /// says may be lost, and a frame of the other side may reach the switch after it.
    pub fn announce(&mut self, side: Side) {
        for after in [0, 3, 10, 30, 60, 150] {
            for delay in self.fate(self.network).into_iter().flatten() {
                let at = self.now + after * MS + delay;
                self.schedule(at, Happening::Announcement(side));
            }
        }
    }

    /// A side puts its claim to the storage.
    pub fn ask_storage(&mut self, side: Side, claim: Claim) {
        let delay = self.rng.below(self.storage.slowest);
        self.schedule(self.now + delay, Happening::AtStorage(side, claim));
    }

    /// The claim has reached the storage: what the real one does with link(2).
    pub fn at_storage(&mut self, side: Side, claim: Claim) {
        let quality = self.storage;
        let lost = self.storage_gone[side.index()] || self.rng.chance(quality.lose_request);
        let holder = (!lost).then(|| self.flag.get_or_insert_with(|| claim.party.clone()).clone());
        self.trace(|| format!("{side:?}'s claim at the storage: {holder:?}"));
        if self.rng.chance(quality.hang) {
            return;
        }
        let out_of_reach = || {
            Err(OutOfReach {
                reason: "simulated".into(),
            })
        };
        let answer = match holder {
            Some(_) if self.rng.chance(quality.lose_answer) => {
                self.counts.answers_lost += 1;
                out_of_reach()
            }
            Some(holder) => Ok(holder),
            None => out_of_reach(),
        };
        let delay = self.rng.below(quality.slowest);
        let answer = Happening::Delivery(side, Message::Arbiter(answer));
        self.schedule(self.now + delay, answer);
    }

    /// Whose the flag is.
    #[must_use]
    pub const fn flag(&self) -> Option<&Party> {
        self.flag.as_ref()
    }

    /// A response as a client understands it.
    #[must_use]
    pub fn response(frame: &[u8; 13]) -> Option<Response> {
        Response::decode(frame)
    }
}
