//! What the server acknowledged, and whether it still knows.
//!
//! Each key has at most one request in flight, and each key's datagrams take one path in order, so
//! its writes take effect in the order in which they were made; a retransmitted write takes effect
//! again only before a later one of the same key. From that follows what a read may show:
//!
//! - a data key: the last acknowledged write, or a later one that was tried and never answered. Once
//!   a read has shown such a one, nothing older either.
//! - a counter: at least what was acknowledged or seen, at most every datagram sent that asked for an
//!   increment (a retransmitted increment may count twice).

use super::protocol::Key;
use super::verification::Verification;

/// One key's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Record {
    Data {
        /// Number of the last write tried.
        tried: u32,
        /// The server has, or showed, at least this write.
        floor: u32,
    },
    Counter {
        /// Increments sent, retransmissions included.
        sent: u64,
        /// Increments acknowledged.
        acknowledged: u64,
        /// The highest value that a reply showed.
        seen: u64,
    },
}

/// A read that broke the rule above, found while the load runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StaleRead;

/// All keys' histories.
pub(super) struct Ledger {
    records: Vec<Record>,
    /// Acknowledged sets: key and number of the write. Grows by one element a set.
    sets: Vec<(Key, u32)>,
}

impl Ledger {
    /// Keys below `data` hold data, those from there up to `data + counters` are counters.
    pub(super) fn new(data: u32, counters: u32) -> Self {
        let data = (0..data).map(|_| Record::Data { tried: 0, floor: 0 });
        let counters = (0..counters).map(|_| Record::Counter {
            sent: 0,
            acknowledged: 0,
            seen: 0,
        });
        Self {
            records: data.chain(counters).collect(),
            sets: Vec::new(),
        }
    }

    /// Makes room for `writes` more acknowledged sets, so that recording them allocates nothing.
    pub(super) fn reserve(&mut self, writes: usize) {
        self.sets.reserve(writes);
    }

    pub(super) fn is_counter(&self, key: Key) -> bool {
        matches!(self.records[key as usize], Record::Counter { .. })
    }

    /// Begins a write to a data key; returns its number.
    pub(super) fn begin_set(&mut self, key: Key) -> u32 {
        match &mut self.records[key as usize] {
            Record::Data { tried, .. } => {
                *tried += 1;
                *tried
            }
            Record::Counter { .. } => unreachable!("data keys are written, counters incremented"),
        }
    }

    pub(super) fn set_acknowledged(&mut self, key: Key, write: u32) {
        if let Record::Data { floor, .. } = &mut self.records[key as usize] {
            *floor = (*floor).max(write);
            self.sets.push((key, write));
        }
    }

    /// `datagrams` asked for one increment, and none of them was answered.
    pub(super) fn increment_unanswered(&mut self, key: Key, datagrams: u32) {
        if let Record::Counter { sent, .. } = &mut self.records[key as usize] {
            *sent += u64::from(datagrams);
        }
    }

    /// `datagrams` asked for one increment, and the answer was `value`.
    pub(super) fn increment_acknowledged(
        &mut self,
        key: Key,
        datagrams: u32,
        value: u64,
    ) -> Result<(), StaleRead> {
        self.increment_unanswered(key, datagrams);
        let Record::Counter {
            sent,
            acknowledged,
            seen,
        } = &mut self.records[key as usize]
        else {
            unreachable!("data keys are written, counters incremented")
        };
        *acknowledged += 1;
        let right = *seen < value && *acknowledged <= value && value <= *sent;
        *seen = (*seen).max(value.min(*sent));
        if right { Ok(()) } else { Err(StaleRead) }
    }

    /// A get showed write `write` of a data key (`None`: nothing, or what nobody wrote).
    pub(super) fn read(&mut self, key: Key, write: Option<u32>) -> Result<(), StaleRead> {
        let Record::Data { tried, floor } = &mut self.records[key as usize] else {
            unreachable!("counters are not read while the load runs")
        };
        match write {
            Some(write) if (*floor..=*tried).contains(&write) => {
                *floor = write;
                Ok(())
            }
            _ => Err(StaleRead),
        }
    }

    /// Begins the verdict, with every key still unread.
    pub(super) fn verification(&self) -> Verification {
        let increments: u64 = self
            .records
            .iter()
            .map(|record| match record {
                Record::Counter { acknowledged, .. } => *acknowledged,
                Record::Data { .. } => 0,
            })
            .sum();
        Verification {
            acknowledged_writes: self.sets.len() as u64 + increments,
            ..Verification::default()
        }
    }

    /// The server shows write `write` of a data key; `None`: the key is gone. A value that is no write
    /// of this key is [`Ledger::verify_corrupt`].
    pub(super) fn verify_data(&self, verdict: &mut Verification, key: Key, write: Option<u32>) {
        let Record::Data { tried, floor } = self.records[key as usize] else {
            unreachable!("a counter is verified as one")
        };
        verdict.keys += 1;
        let found = write.unwrap_or(0);
        if found > tried {
            verdict.corrupt_keys += 1;
            verdict.example(|| format!("key {key}: write {found}, but only {tried} were tried"));
        } else if found < floor {
            let lost = self.sets_after(key, found);
            // A read showed a later write that was never acknowledged: that is one lost, too.
            verdict.lost_writes += lost.max(1);
            verdict.example(|| format!("key {key}: write {found}, acknowledged or seen {floor}"));
        }
    }

    /// The server shows a counter at `value`; `None`: it is gone.
    pub(super) fn verify_counter(&self, verdict: &mut Verification, key: Key, value: Option<u64>) {
        let Record::Counter {
            sent,
            acknowledged,
            seen,
        } = self.records[key as usize]
        else {
            unreachable!("a data key is verified as one")
        };
        verdict.keys += 1;
        let found = value.unwrap_or(0);
        let floor = acknowledged.max(seen);
        if found > sent {
            verdict.corrupt_keys += 1;
            verdict.example(|| format!("counter {key}: {found}, but only {sent} were asked for"));
        } else if found < floor || value.is_none() {
            verdict.lost_writes += acknowledged.saturating_sub(found).max(1);
            verdict.example(|| format!("counter {key}: {found}, acknowledged or seen {floor}"));
        }
    }

    /// The server shows what nobody wrote.
    pub(super) fn verify_corrupt(&self, verdict: &mut Verification, key: Key, what: &[u8]) {
        verdict.keys += 1;
        verdict.corrupt_keys += 1;
        let what = what[..what.len().min(60)].escape_ascii();
        verdict.example(|| format!("key {key}: {what}"));
    }

    /// The server could not be asked.
    pub(super) fn verify_unread(&self, verdict: &mut Verification, key: Key) {
        verdict.unread_keys += 1;
        verdict.example(|| format!("key {key}: no answer"));
    }

    fn sets_after(&self, key: Key, write: u32) -> u64 {
        let later = |set: &&(Key, u32)| set.0 == key && set.1 > write;
        self.sets.iter().filter(later).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(ledger: &Ledger, check: impl FnOnce(&mut Verification)) -> (u64, u64) {
        let mut verdict = ledger.verification();
        check(&mut verdict);
        assert_eq!(verdict.passed(), verdict.examples.is_empty(), "{verdict:?}");
        (verdict.lost_writes, verdict.corrupt_keys)
    }

    /// Writes 1 to 4 of key 0: 1, 2 and 3 acknowledged, 4 never answered.
    fn one_unanswered() -> Ledger {
        let mut ledger = Ledger::new(1, 1);
        for write in 1..=3 {
            assert_eq!(ledger.begin_set(0), write);
            ledger.set_acknowledged(0, write);
        }
        ledger.begin_set(0);
        ledger
    }

    #[test]
    fn the_last_acknowledged_write_or_a_later_unanswered_one_is_right() {
        let ledger = one_unanswered();
        for right in [3, 4] {
            assert_eq!(
                verdict(&ledger, |v| ledger.verify_data(v, 0, Some(right))),
                (0, 0)
            );
        }
        assert_eq!(ledger.verification().acknowledged_writes, 3);
    }

    #[test]
    fn every_acknowledged_write_after_the_one_shown_is_lost() {
        let ledger = one_unanswered();
        assert_eq!(
            verdict(&ledger, |v| ledger.verify_data(v, 0, Some(2))),
            (1, 0)
        );
        assert_eq!(
            verdict(&ledger, |v| ledger.verify_data(v, 0, Some(1))),
            (2, 0)
        );
        assert_eq!(verdict(&ledger, |v| ledger.verify_data(v, 0, None)), (3, 0));
    }

    #[test]
    fn a_write_that_was_never_tried_is_corrupt() {
        let ledger = one_unanswered();
        assert_eq!(
            verdict(&ledger, |v| ledger.verify_data(v, 0, Some(5))),
            (0, 1)
        );
        assert_eq!(
            verdict(&ledger, |v| ledger.verify_corrupt(v, 0, b"\xff")),
            (0, 1)
        );
    }

    #[test]
    fn what_a_read_has_shown_may_not_be_unwritten() {
        let mut ledger = one_unanswered();
        assert_eq!(ledger.read(0, Some(3)), Ok(()));
        assert_eq!(ledger.read(0, Some(4)), Ok(()));
        for wrong in [Some(3), Some(5), None] {
            assert_eq!(ledger.read(0, wrong), Err(StaleRead));
        }
        assert_eq!(
            verdict(&ledger, |v| ledger.verify_data(v, 0, Some(3))),
            (1, 0)
        );
    }

    #[test]
    fn a_counter_lies_between_what_was_acknowledged_and_what_was_sent() {
        let mut ledger = Ledger::new(0, 1);
        assert_eq!(ledger.increment_acknowledged(0, 1, 1), Ok(()));
        // Sent three times, took effect twice.
        assert_eq!(ledger.increment_acknowledged(0, 3, 3), Ok(()));
        ledger.increment_unanswered(0, 2);
        // Six datagrams, two acknowledged, three seen.
        for right in 3..=6 {
            assert_eq!(
                verdict(&ledger, |v| ledger.verify_counter(v, 0, Some(right))),
                (0, 0)
            );
        }
        assert_eq!(
            verdict(&ledger, |v| ledger.verify_counter(v, 0, Some(2))),
            (1, 0)
        );
        assert_eq!(
            verdict(&ledger, |v| ledger.verify_counter(v, 0, Some(0))),
            (2, 0)
        );
        assert_eq!(
            verdict(&ledger, |v| ledger.verify_counter(v, 0, None)),
            (2, 0)
        );
        assert_eq!(
            verdict(&ledger, |v| ledger.verify_counter(v, 0, Some(7))),
            (0, 1)
        );
        assert_eq!(ledger.verification().acknowledged_writes, 2);
    }

    #[test]
    fn a_counter_that_went_back_is_noticed_at_once() {
        let mut ledger = Ledger::new(0, 1);
        for value in 1..=5 {
            assert_eq!(ledger.increment_acknowledged(0, 1, value), Ok(()));
        }
        assert_eq!(ledger.increment_acknowledged(0, 1, 5), Err(StaleRead));
        assert_eq!(ledger.increment_acknowledged(0, 1, 70), Err(StaleRead));
    }

    #[test]
    fn a_key_that_cannot_be_read_does_not_pass() {
        let ledger = Ledger::new(1, 0);
        let mut verdict = ledger.verification();
        ledger.verify_unread(&mut verdict, 0);
        assert!(!verdict.passed());
    }
}
