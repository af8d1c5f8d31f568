//! Keys that nobody else writes, each with at most one write in flight: what the server acknowledged
//! must be found there again.
//!
//! A key may show its last acknowledged write, or a later one that was tried and never answered. A key
//! whose write was not answered is not written again.

use crate::load::Verification;
use crate::load::schedule::SplitMix;
use std::collections::VecDeque;

/// Writes to one key, by their number, which counts from 1; 0 is none.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    tried: u64,
    acknowledged: u64,
}

/// All keys.
#[derive(Debug)]
pub(super) struct Ledger {
    slots: Vec<Slot>,
    /// Slots without a write in flight, the one that rested longest first.
    free: VecDeque<u32>,
    value_bytes: usize,
}

impl Ledger {
    pub(super) fn new(keys: u32, value_bytes: u16) -> Self {
        Self {
            slots: vec![Slot::default(); keys as usize],
            free: (0..keys).collect(),
            value_bytes: value_bytes.into(),
        }
    }

    pub(super) fn name(slot: u32) -> String {
        format!("l:{slot}")
    }

    /// A key to write, and the number of the write.
    pub(super) fn begin(&mut self) -> Option<(u32, u64)> {
        let slot = self.free.pop_front()?;
        let state = &mut self.slots[slot as usize];
        state.tried += 1;
        Some((slot, state.tried))
    }

    pub(super) fn acknowledged(&mut self, slot: u32, write: u64) {
        self.slots[slot as usize].acknowledged = write;
        self.free.push_back(slot);
    }

    /// Keys that were ever written.
    pub(super) fn written(&self) -> Vec<u32> {
        (0..self.slots.len() as u32)
            .filter(|slot| self.slots[*slot as usize].tried > 0)
            .collect()
    }

    /// The value of a write: its number, then letters that follow from key and number.
    pub(super) fn value(&self, slot: u32, write: u64, to: &mut Vec<u8>) {
        to.clear();
        to.extend_from_slice(format!("{write}:").as_bytes());
        let mut random = SplitMix((u64::from(slot) << 40) ^ write);
        while to.len() < self.value_bytes {
            let letters = random.next().to_le_bytes().map(|byte| b'a' + byte % 26);
            let room = (self.value_bytes - to.len()).min(letters.len());
            to.extend_from_slice(&letters[..room]);
        }
    }

    pub(super) fn verdict(&self) -> Verification {
        Verification {
            acknowledged_writes: self.slots.iter().map(|slot| slot.acknowledged).sum(),
            ..Verification::default()
        }
    }

    /// The key shows `value`.
    pub(super) fn verify(&self, verdict: &mut Verification, slot: u32, value: Option<&[u8]>) {
        verdict.keys += 1;
        let Slot {
            tried,
            acknowledged,
        } = self.slots[slot as usize];
        let Some(shown) = value.map_or(Some(0), |value| self.write_of(slot, value)) else {
            verdict.corrupt_keys += 1;
            let value = super::model::readable(value.unwrap_or_default());
            return verdict
                .example(|| format!("key {} holds {value}, which nobody wrote", Self::name(slot)));
        };
        if shown > tried {
            verdict.corrupt_keys += 1;
            verdict.example(|| format!("key {} holds write {shown} of {tried}", Self::name(slot)));
        } else if shown < acknowledged {
            verdict.lost_writes += acknowledged - shown;
            verdict.example(|| {
                format!(
                    "key {} holds write {shown}, and write {acknowledged} was acknowledged",
                    Self::name(slot)
                )
            });
        }
    }

    pub(super) fn verify_unread(verdict: &mut Verification, slot: u32, why: &str) {
        verdict.keys += 1;
        verdict.unread_keys += 1;
        verdict.example(|| format!("key {} could not be read: {why}", Self::name(slot)));
    }

    /// Which write has this value.
    fn write_of(&self, slot: u32, value: &[u8]) -> Option<u64> {
        let end = value.iter().position(|byte| *byte == b':')?;
        let write = std::str::from_utf8(&value[..end]).ok()?.parse().ok()?;
        let mut expected = Vec::with_capacity(self.value_bytes);
        self.value(slot, write, &mut expected);
        (write > 0 && expected == value).then_some(write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict_of(ledger: &Ledger, slot: u32, value: Option<&[u8]>) -> Verification {
        let mut verdict = Verification::default();
        ledger.verify(&mut verdict, slot, value);
        verdict
    }

    #[test]
    fn a_key_shows_its_last_acknowledged_write_or_a_later_one_that_was_tried() {
        let mut ledger = Ledger::new(1, 24);
        let value = |ledger: &Ledger, write| {
            let mut value = Vec::new();
            ledger.value(0, write, &mut value);
            assert_eq!(value.len(), 24);
            value
        };
        assert!(verdict_of(&ledger, 0, None).passed());
        for write in 1..=3 {
            assert_eq!(ledger.begin(), Some((0, write)));
            assert_eq!(ledger.begin(), None, "one write in flight");
            ledger.acknowledged(0, write);
        }
        ledger.begin();
        assert_eq!(ledger.verdict().acknowledged_writes, 3);
        assert!(verdict_of(&ledger, 0, Some(&value(&ledger, 3))).passed());
        assert!(verdict_of(&ledger, 0, Some(&value(&ledger, 4))).passed());
        assert_eq!(
            verdict_of(&ledger, 0, Some(&value(&ledger, 1))).lost_writes,
            2
        );
        assert_eq!(verdict_of(&ledger, 0, None).lost_writes, 3);
        assert_eq!(
            verdict_of(&ledger, 0, Some(&value(&ledger, 5))).corrupt_keys,
            1
        );
        let mut torn = value(&ledger, 3);
        torn[20] ^= 1;
        assert_eq!(verdict_of(&ledger, 0, Some(&torn)).corrupt_keys, 1);
        assert_eq!(verdict_of(&ledger, 0, Some(b"0:")).corrupt_keys, 1);
    }
}
