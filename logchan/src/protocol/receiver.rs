//! The backup's half: which bytes are the next entry, and when to acknowledge.

use super::ack::Ack;
use crate::entry::{Entry, EntryError, Limits, Sequence, decode};

/// When to acknowledge entries that do not ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckPolicy {
    /// After this many entries; at least 1.
    pub entries: u32,
    /// After this long, nanoseconds.
    pub delay_ns: u64,
}

/// Progress of the replay alone is told after this many times [`AckPolicy::delay_ns`].
const REPORT_DELAYS: u64 = 10;

/// What the bytes at the front are.
#[derive(Debug, Clone, Copy)]
pub enum Verdict<'a> {
    /// The next entry. It counts as received.
    Next(Entry<'a>),
    /// Not a whole entry yet.
    Incomplete,
    /// An entry received before. An error on a link that keeps order; otherwise skip it.
    Duplicate(Entry<'a>),
    /// Entries are missing before this one. An error on a link that loses nothing; otherwise drop
    /// it and let the sender rewind.
    Gap {
        /// The number that should have come.
        expected: Sequence,
        /// The number that came.
        found: Sequence,
    },
}

/// How far the replay has come, as the replaying thread reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Last entry replayed.
    pub sequence: Sequence,
    /// Position of the machine.
    pub position: u64,
}

/// Checks a log as it arrives and decides when to acknowledge.
#[derive(Debug, Clone)]
pub struct Receiver {
    limits: Limits,
    capacity: u64,
    policy: AckPolicy,
    last: Sequence,
    unacked: u32,
    unacked_since: u64,
    at_once: bool,
    /// Bytes of entries received.
    bytes: u64,
    /// Up to which byte the last acknowledgement granted credit; none was sent before the first.
    granted: Option<u64>,
    /// When the last acknowledgement was made, and what it said of the replay.
    acked_at: u64,
    told_replayed: Sequence,
}

impl Receiver {
    /// Expects entry `last + 1` next, for a ring of `capacity` bytes.
    #[must_use]
    pub const fn new(last: Sequence, capacity: u64, policy: AckPolicy) -> Self {
        Self {
            limits: Limits::of_ring(capacity),
            capacity,
            policy,
            last,
            unacked: 0,
            unacked_since: 0,
            at_once: false,
            bytes: 0,
            granted: None,
            acked_at: 0,
            told_replayed: Sequence::NONE,
        }
    }

    /// Looks at the entry at the start of `bytes`.
    ///
    /// # Errors
    /// The bytes are no valid entry.
    pub fn accept<'b>(&mut self, bytes: &'b [u8], now: u64) -> Result<Verdict<'b>, EntryError> {
        let Some(entry) = decode(bytes, self.limits)? else {
            return Ok(Verdict::Incomplete);
        };
        let (expected, found) = (self.last.next(), entry.sequence());
        if found < expected {
            // Its acknowledgement may be what was lost: say it again.
            self.at_once = true;
            return Ok(Verdict::Duplicate(entry));
        }
        if found > expected {
            self.at_once = true;
            return Ok(Verdict::Gap { expected, found });
        }
        self.last = found;
        self.bytes += entry.bytes_in_log() as u64;
        if self.unacked == 0 {
            self.unacked_since = now;
        }
        self.unacked += 1;
        self.at_once |= entry.flags().ack_at_once();
        Ok(Verdict::Next(entry))
    }

    /// Last entry received.
    #[must_use]
    pub const fn last_sequence(&self) -> Sequence {
        self.last
    }

    /// Whether an acknowledgement is due, when the replay has come to `replayed` and the ring has
    /// `free` bytes behind the last entry received.
    #[must_use]
    pub fn ack_due(&self, now: u64, replayed: Replayed, free: u64) -> bool {
        let Some(granted) = self.granted else {
            return true;
        };
        // The sender may be waiting for room. A quarter of the ring at a time is seldom enough to
        // cost nothing, and always reached: a ring is at least two of the longest entries, so a
        // sender without credit leaves at most half of it in an entry that is not complete.
        let opened = (self.bytes + free).saturating_sub(granted) >= self.capacity / 4;
        let counted = self.unacked >= self.policy.entries.max(1);
        let timed = self.ack_at(replayed).is_some_and(|at| now >= at);
        self.at_once || opened || counted || timed
    }

    /// Whether the sender may soon be out of credit, so that room has to be told to it.
    #[must_use]
    pub fn sender_starved(&self) -> bool {
        self.granted
            .is_some_and(|granted| granted.saturating_sub(self.bytes) < self.capacity / 2)
    }

    /// When an acknowledgement falls due without further entries: for entries that nobody asked to
    /// have acknowledged, or to tell that the replay has come further.
    #[must_use]
    pub fn ack_at(&self, replayed: Replayed) -> Option<u64> {
        if self.unacked > 0 {
            return Some(self.unacked_since.saturating_add(self.policy.delay_ns));
        }
        let news = replayed.sequence.min(self.last) > self.told_replayed;
        let wait = self.policy.delay_ns.saturating_mul(REPORT_DELAYS);
        news.then(|| self.acked_at.saturating_add(wait))
    }

    /// The acknowledgement of everything received; none is due afterwards. `free` as in
    /// [`Receiver::ack_due`].
    pub fn ack(&mut self, now: u64, replayed: Replayed, free: u64) -> Ack {
        self.unacked = 0;
        self.at_once = false;
        self.granted = Some(self.bytes + free);
        self.acked_at = now;
        self.told_replayed = replayed.sequence.min(self.last);
        Ack {
            acked: self.last,
            replayed: replayed.sequence.min(self.last),
            replayed_position: replayed.position,
            free,
        }
    }
}
