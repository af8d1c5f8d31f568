//! The primary's half: what of the log may be sent now, and what an acknowledgement settles.
//!
//! Positions in the log's byte stream ("cursors") count from the ring's start and are the ring's own.

use super::ack::{Ack, AckError};
use crate::entry::{Limits, Sequence, Verify, split};

/// Sends a log within its credit, and watches the acknowledgements come.
#[derive(Debug, Clone)]
pub struct Sender {
    peer_ring: u64,
    stall_timeout_ns: u64,
    /// End of the acknowledged bytes.
    acked_cursor: u64,
    acked: Sequence,
    /// End of the bytes sent, since the last rewind and ever.
    sent_cursor: u64,
    highest_sent: u64,
    /// Last byte that the backup has room for.
    credit_cursor: u64,
    replayed: Sequence,
    replayed_position: u64,
    /// Since when bytes have been under way without an acknowledgement that settles some.
    waiting_since: Option<u64>,
}

/// Bytes under way, and no progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// Last entry acknowledged.
    pub acked: Sequence,
    /// Bytes sent and not acknowledged.
    pub unacked_bytes: u64,
    /// For how long nothing was acknowledged, nanoseconds.
    pub for_ns: u64,
}

/// What is known of the backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Acked {
    /// Every entry up to this one is acknowledged.
    pub acked: Sequence,
    /// Every entry up to this one was replayed, as last reported.
    pub replayed: Sequence,
    /// Position of the backup's machine, as last reported.
    pub replayed_position: u64,
    /// Bytes that may still be sent before the backup's ring is full.
    pub credit: u64,
}

impl Sender {
    /// Begins at entry `last + 1`, found at `cursor`, toward a backup with a ring of `peer_ring`
    /// bytes. Has no credit before the first acknowledgement.
    #[must_use]
    pub const fn new(last: Sequence, cursor: u64, peer_ring: u64, stall_timeout_ns: u64) -> Self {
        Self {
            peer_ring,
            stall_timeout_ns,
            acked_cursor: cursor,
            acked: last,
            sent_cursor: cursor,
            highest_sent: cursor,
            credit_cursor: cursor,
            replayed: Sequence::NONE,
            replayed_position: 0,
            waiting_since: None,
        }
    }

    /// Where the next byte to send stands in the log.
    #[must_use]
    pub const fn sent_cursor(&self) -> u64 {
        self.sent_cursor
    }

    /// Everything before it is acknowledged and may be released.
    #[must_use]
    pub const fn acked_cursor(&self) -> u64 {
        self.acked_cursor
    }

    /// How many bytes from [`Sender::sent_cursor`] may be sent, when the log is committed up to
    /// `committed`.
    #[must_use]
    pub fn sendable(&self, committed: u64) -> u64 {
        committed
            .min(self.credit_cursor)
            .saturating_sub(self.sent_cursor)
    }

    /// `bytes` more were handed to the link.
    pub fn sent(&mut self, bytes: u64, now: u64) {
        self.sent_cursor += bytes;
        self.highest_sent = self.highest_sent.max(self.sent_cursor);
        if bytes > 0 && self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
    }

    /// Takes an acknowledgement. `unacked` are the log's bytes from [`Sender::acked_cursor`] on.
    /// Returns whether it settled anything; an old one, from a link that reorders, changes nothing.
    ///
    /// # Errors
    /// The acknowledgement cannot be true. The channel is then unusable; this state is unchanged.
    pub fn acknowledge(&mut self, ack: &Ack, unacked: &[u8], now: u64) -> Result<bool, AckError> {
        if ack.free > self.peer_ring {
            return Err(AckError::CreditBeyondRing {
                found: ack.free,
                ring: self.peer_ring,
            });
        }
        if ack.replayed > ack.acked {
            return Err(AckError::ReplayedBeyondAcked {
                found: ack.replayed,
                acked: ack.acked,
            });
        }
        if ack.acked < self.acked {
            return Ok(false);
        }
        let settled = self.bytes_up_to(ack.acked, unacked)?;
        let progress = settled > 0;
        self.acked = ack.acked;
        self.acked_cursor += settled;
        // After a rewind, entries may be acknowledged that were not sent a second time.
        self.sent_cursor = self.sent_cursor.max(self.acked_cursor);
        // The sum is what the backup released plus the size of its ring, so it never shrinks.
        self.credit_cursor = self
            .credit_cursor
            .max(self.acked_cursor.saturating_add(ack.free));
        if ack.replayed >= self.replayed {
            self.replayed = ack.replayed;
            self.replayed_position = ack.replayed_position;
        }
        if self.acked_cursor == self.highest_sent {
            self.waiting_since = None;
        } else if progress {
            self.waiting_since = Some(now);
        }
        Ok(progress)
    }

    /// Bytes of the entries behind `self.acked` up to and including `upto`.
    fn bytes_up_to(&self, upto: Sequence, unacked: &[u8]) -> Result<u64, AckError> {
        let sent = usize::try_from(self.highest_sent - self.acked_cursor).unwrap_or(usize::MAX);
        let unacked = &unacked[..sent.min(unacked.len())];
        let mut last = self.acked;
        let mut end = 0;
        while last < upto {
            match split(&unacked[end..], Limits::default(), Verify::Frame) {
                Ok(Some(entry)) if entry.sequence() == last.next() => {
                    end += entry.bytes_in_log();
                    last = entry.sequence();
                }
                _ => {
                    return Err(AckError::BeyondSent {
                        found: upto,
                        sent: last,
                    });
                }
            }
        }
        Ok(end as u64)
    }

    /// What is known of the backup.
    #[must_use]
    pub const fn acked(&self) -> Acked {
        Acked {
            acked: self.acked,
            replayed: self.replayed,
            replayed_position: self.replayed_position,
            credit: self.credit_cursor.saturating_sub(self.sent_cursor),
        }
    }

    /// Whether everything that was sent is acknowledged.
    #[must_use]
    pub const fn idle(&self) -> bool {
        self.acked_cursor == self.highest_sent
    }

    /// Since when the channel has stalled: bytes are under way and for the time limit nothing was
    /// acknowledged.
    #[must_use]
    pub fn stalled(&self, now: u64) -> Option<Stall> {
        let for_ns = now.saturating_sub(self.waiting_since?);
        (for_ns >= self.stall_timeout_ns).then_some(Stall {
            acked: self.acked,
            unacked_bytes: self.highest_sent - self.acked_cursor,
            for_ns,
        })
    }

    /// Goes back to the first entry not acknowledged, to send it again: for a link that loses. The
    /// stall clock starts anew.
    pub const fn rewind(&mut self, now: u64) {
        self.sent_cursor = self.acked_cursor;
        if self.waiting_since.is_some() {
            self.waiting_since = Some(now);
        }
    }
}
