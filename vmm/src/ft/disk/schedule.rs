//! When a request may start (paper 2.2 and 3.4): the output rule, and the guest's order where it matters.

use std::collections::VecDeque;

use super::{DiskRequest, DiskSet, RequestId};
use crate::ft::gate::ReleaseLimit;
use crate::ft::log::Sequence;

/// A request that has ended, with its moments in nanoseconds on the driver's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Which.
    pub request: DiskRequest,
    /// The guest's kick.
    pub kicked: u64,
    /// When the output rule let it go; for what is not held, the kick.
    pub allowed: u64,
    /// When it was started.
    pub started: u64,
}

#[derive(Debug)]
struct Waiting {
    request: DiskRequest,
    /// Held until this entry is acknowledged.
    held_by: Option<Sequence>,
    kicked: u64,
    /// When the output rule first let it go, for the report; 0: not yet.
    allowed: u64,
    /// The other side does it: it only keeps its place.
    elsewhere: bool,
}

/// Blocks that the backup still has to read for itself.
#[derive(Debug)]
struct Reading {
    request: DiskRequest,
    /// It has read them once this entry is replayed.
    until: Sequence,
}

/// What the last look found, and would find again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fruitless {
    limit: ReleaseLimit,
    replayed: Sequence,
    /// Until this time; `u64::MAX` if time changes nothing.
    until: u64,
}

/// The requests of a live machine that have not ended, in the order of the guest's kicks.
///
/// A request starts once
/// - the output rule lets it: reads at once, everything else when its entry is acknowledged;
/// - no earlier request that has not ended conflicts with it, so that the disk holds what an orderly
///   one would hold; what does not conflict runs in parallel;
/// - if it changes blocks, the backup has read from them what it reads itself;
/// - if it changes blocks that an earlier request of the dead primary may still be writing, that has had
///   time to end ([`Schedule::reissue`]).
///
/// It does no I/O and has no clock. Its size is bounded by the machine
/// ([`MAX_OUTSTANDING`](crate::machine::devices::virtio_blk::MAX_OUTSTANDING)).
#[derive(Debug, Default)]
pub struct Schedule {
    waiting: VecDeque<Waiting>,
    running: Vec<Finished>,
    reading: VecDeque<Reading>,
    /// Issued again at go-live: the old primary's I/O to the same blocks may still be under way.
    quarantine: Vec<DiskRequest>,
    /// When that is over.
    settled_at: u64,
    fruitless: Option<Fruitless>,
    released: Sequence,
}

impl Schedule {
    /// Nothing to be done.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The guest has made `request`, which is held until `held_by` is acknowledged. To be called in the
    /// order of the kicks.
    pub fn add(&mut self, request: DiskRequest, held_by: Option<Sequence>, now: u64) {
        self.put(request, held_by, false, now);
    }

    /// As [`Schedule::add`], for a request that is not done here: what conflicts with it waits behind it
    /// until [`Schedule::done`].
    pub fn add_elsewhere(&mut self, request: DiskRequest) {
        self.put(request, None, true, 0);
    }

    fn put(&mut self, request: DiskRequest, held_by: Option<Sequence>, elsewhere: bool, now: u64) {
        debug_assert!(
            self.waiting
                .back()
                .is_none_or(|last| last.request.id < request.id),
            "request {} came after a later one",
            request.id
        );
        self.waiting.push_back(Waiting {
            request,
            held_by,
            kicked: now,
            allowed: if held_by.is_none() { now } else { 0 },
            elsewhere,
        });
        self.fruitless = None;
    }

    /// This machine has gone live at `now`, and issues `requests` again: all that it made and has no end
    /// of, in their order. The primary may have started any of them before it died, and what it
    /// started may reach the disk late. That is the same data, so the request itself may go at once; but
    /// what later ones change there, these or the guest's next, would be undone by it, and waits for
    /// `settle` nanoseconds. Not so on the disks of `own`, which the old primary does not reach.
    pub fn reissue(
        &mut self,
        requests: impl IntoIterator<Item = DiskRequest>,
        own: &DiskSet,
        now: u64,
        settle: u64,
    ) {
        for request in requests {
            if request.op.changes() && !own.contains(request.disk) {
                self.quarantine.push(request);
            }
            self.add(request, None, now);
        }
        self.settled_at = now.saturating_add(settle);
    }

    /// The backup reads the blocks of `request` itself, until it has replayed `entry`.
    pub fn reading(&mut self, request: DiskRequest, entry: Sequence) {
        self.reading.push_back(Reading {
            request,
            until: entry,
        });
    }

    /// The oldest request that may start now, which it does. `replayed` is the last entry known to be
    /// replayed by the backup.
    pub fn next(
        &mut self,
        limit: ReleaseLimit,
        replayed: Sequence,
        now: u64,
    ) -> Option<DiskRequest> {
        if self.waiting.is_empty() {
            return None;
        }
        if let Some(last) = self.fruitless
            && (last.limit, last.replayed) == (limit, replayed)
            && now < last.until
        {
            return None;
        }
        while let Some(first) = self.reading.front()
            && (first.until <= replayed || limit == ReleaseLimit::Everything)
        {
            self.reading.pop_front();
        }
        if now >= self.settled_at {
            self.quarantine.clear();
        }
        let mut until = u64::MAX;
        for index in 0..self.waiting.len() {
            let waiting = &mut self.waiting[index];
            if waiting.elsewhere {
                continue;
            }
            // Asked again each time: a primary that was stopped may do less than before.
            if waiting.held_by.is_some_and(|entry| !limit.allows(entry)) {
                continue;
            }
            if waiting.allowed == 0 {
                waiting.allowed = now.max(1);
            }
            let request = waiting.request;
            if self.is_blocked(index, &request) {
                continue;
            }
            if self.is_quarantined(&request) {
                until = self.settled_at;
                continue;
            }
            let waiting = self.waiting.remove(index)?;
            if let Some(entry) = waiting.held_by {
                self.released = self.released.max(entry);
            }
            self.running.push(Finished {
                request,
                kicked: waiting.kicked,
                allowed: waiting.allowed,
                started: now,
            });
            return Some(request);
        }
        self.fruitless = Some(Fruitless {
            limit,
            replayed,
            until,
        });
        None
    }

    fn is_blocked(&self, index: usize, request: &DiskRequest) -> bool {
        let earlier = self.waiting.iter().take(index);
        let mut running = self.running.iter();
        earlier
            .into_iter()
            .any(|other| other.request.conflicts(request))
            || running.any(|other| other.request.conflicts(request))
            || (request.op.changes()
                && self
                    .reading
                    .iter()
                    .any(|other| other.request.conflicts(request)))
    }

    /// Whether it would change what a late one of an earlier request may still change afterwards. (A
    /// late one of itself changes nothing; one of a later request was started only if this one had
    /// ended, and is done again after it.)
    fn is_quarantined(&self, request: &DiskRequest) -> bool {
        let mut earlier = self.quarantine.iter().filter(|old| old.id < request.id);
        request.op.changes() && earlier.any(|old| old.conflicts(request))
    }

    /// A request has ended that was started here. Nothing if none of this number was running; one that
    /// was done elsewhere gives up its place.
    pub fn done(&mut self, id: RequestId) -> Option<Finished> {
        let mut running = self.running.iter();
        if let Some(index) = running.position(|running| running.request.id == id) {
            self.fruitless = None;
            return Some(self.running.swap_remove(index));
        }
        let is_it = |waiting: &Waiting| waiting.elsewhere && waiting.request.id == id;
        if let Some(index) = self.waiting.iter().position(is_it) {
            self.fruitless = None;
            self.waiting.remove(index);
        }
        None
    }

    /// The request of this number that has been started and not ended.
    #[must_use]
    pub fn request(&self, id: RequestId) -> Option<DiskRequest> {
        let mut running = self.running.iter();
        running
            .find(|running| running.request.id == id)
            .map(|running| running.request)
    }

    /// The last of the entries for which requests waited that have been started since; earlier ones may
    /// still wait, for each other.
    #[must_use]
    pub const fn released(&self) -> Sequence {
        self.released
    }

    /// How many have not been started.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many have been started and not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// When [`Schedule::next`] may have something by the mere passing of time.
    #[must_use]
    pub fn wake_at(&self) -> Option<u64> {
        let until = self.fruitless?.until;
        (!self.waiting.is_empty() && until != u64::MAX).then_some(until)
    }
}

#[cfg(test)]
mod tests;
