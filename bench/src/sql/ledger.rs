//! What was asked, what was acknowledged, and what must therefore be there.

use super::session::Contents;
use crate::load::Verification;
use crate::load::schedule::SplitMix;

/// Most that is moved at once.
const AMOUNT_MOST: u64 = 1000;

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Its number; counts from 1.
    pub id: i64,
    /// Where the amount comes from: an account's number, from 0.
    pub source: i64,
    /// Where it goes: another one's.
    pub target: i64,
    /// How much; at least 1.
    pub amount: i64,
    /// Letters and digits that follow from the rest and the seed: what is torn shows.
    pub note: String,
}

/// A transfer as a table shows it.
pub type Row = Transfer;

/// What is known of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Asked and not answered: it may be there.
    Unknown,
    /// It must be there.
    Acknowledged,
    /// It must not be there: the server refused it, or was never told to commit.
    Undone,
}

/// All transactions of one client.
#[derive(Debug)]
pub(super) struct Ledger {
    seed: u64,
    accounts: u32,
    fates: Vec<Fate>,
    acknowledged: Vec<i64>,
}

impl Ledger {
    pub(super) fn new(seed: u64, accounts: u32) -> Self {
        Self {
            seed,
            accounts,
            fates: Vec::new(),
            acknowledged: Vec::new(),
        }
    }

    /// The next transaction.
    pub(super) fn begin(&mut self) -> Transfer {
        self.fates.push(Fate::Unknown);
        self.transfer(self.fates.len() as i64)
    }

    pub(super) fn acknowledged(&mut self, id: i64) {
        self.fates[id as usize - 1] = Fate::Acknowledged;
        self.acknowledged.push(id);
    }

    pub(super) fn undone(&mut self, id: i64) {
        self.fates[id as usize - 1] = Fate::Undone;
    }

    /// One of the transactions that were acknowledged, by a number that may be any.
    pub(super) fn any_acknowledged(&self, number: u64) -> Option<i64> {
        let count = self.acknowledged.len() as u64;
        (count > 0).then(|| self.acknowledged[(number % count) as usize])
    }

    /// What a transaction says, which follows from its number.
    fn transfer(&self, id: i64) -> Transfer {
        let mut random = SplitMix(self.seed ^ (id as u64).rotate_left(32));
        let accounts = u64::from(self.accounts);
        let source = random.next() % accounts;
        // Any but the source.
        let target = (source + 1 + random.next() % (accounts - 1)) % accounts;
        let amount = 1 + random.next() % AMOUNT_MOST;
        let note = (0..4).map(|_| format!("{:016x}", random.next())).collect();
        Transfer {
            id,
            source: source as i64,
            target: target as i64,
            amount: amount as i64,
            note,
        }
    }

    /// Compares with what is there.
    pub(super) fn verify(&self, contents: &Contents) -> Verification {
        let mut verdict = Verification {
            keys: self.fates.len() as u64,
            acknowledged_writes: self.acknowledged.len() as u64,
            ..Verification::default()
        };
        let corrupt = |verdict: &mut Verification, what: String| {
            verdict.corrupt_keys += 1;
            verdict.example(|| what);
        };
        let mut seen = vec![0_u32; self.fates.len()];
        let mut balances = vec![0_i64; self.accounts as usize];
        for row in &contents.transfers {
            let known = usize::try_from(row.id)
                .ok()
                .and_then(|id| id.checked_sub(1))
                .filter(|index| *index < self.fates.len());
            let Some(index) = known else {
                corrupt(
                    &mut verdict,
                    format!("transfer {} is there, and nobody asked for it", row.id),
                );
                continue;
            };
            seen[index] += 1;
            let asked = self.transfer(row.id);
            if *row != asked {
                corrupt(
                    &mut verdict,
                    format!("a transfer is there as {row:?}, and was asked for as {asked:?}"),
                );
            }
            if seen[index] == 1 {
                balances[asked.source as usize] -= asked.amount;
                balances[asked.target as usize] += asked.amount;
            }
        }
        for (index, (fate, seen)) in self.fates.iter().zip(&seen).enumerate() {
            let id = index + 1;
            match (fate, seen) {
                (Fate::Acknowledged, 0) => {
                    verdict.lost_writes += 1;
                    verdict.example(|| format!("transfer {id} was acknowledged and is gone"));
                }
                (Fate::Undone, 1..) => corrupt(
                    &mut verdict,
                    format!("transfer {id} is there, and was never committed"),
                ),
                (_, 2..) => corrupt(&mut verdict, format!("transfer {id} is there {seen} times")),
                _ => {}
            }
        }
        if contents.balances.len() != balances.len() {
            corrupt(
                &mut verdict,
                format!(
                    "there are {} accounts; expected {}",
                    contents.balances.len(),
                    balances.len()
                ),
            );
        }
        for (account, (found, expected)) in contents.balances.iter().zip(&balances).enumerate() {
            if found != expected {
                corrupt(
                    &mut verdict,
                    format!(
                        "account {account} holds {found}, and the transfers that are there make it \
                         {expected}"
                    ),
                );
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four transactions: acknowledged, acknowledged, unanswered, refused.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(7, 5);
        for id in 1..=4 {
            assert_eq!(ledger.begin().id, id);
        }
        ledger.acknowledged(1);
        ledger.acknowledged(2);
        ledger.undone(4);
        ledger
    }

    /// What a database holds in which these took effect.
    fn holding(ledger: &Ledger, ids: &[i64]) -> Contents {
        let transfers: Vec<Row> = ids.iter().map(|id| ledger.transfer(*id)).collect();
        let mut balances = vec![0; 5];
        for row in &transfers {
            balances[row.source as usize] -= row.amount;
            balances[row.target as usize] += row.amount;
        }
        Contents {
            transfers,
            balances,
        }
    }

    #[test]
    fn what_was_acknowledged_is_there_and_what_was_not_answered_may_be() {
        let ledger = ledger();
        for ids in [&[1, 2][..], &[3, 2, 1]] {
            let verdict = ledger.verify(&holding(&ledger, ids));
            assert!(verdict.passed(), "{ids:?}: {verdict:?}");
            assert_eq!(verdict.acknowledged_writes, 2);
        }
    }

    #[test]
    fn a_missing_transaction_is_lost_and_one_too_many_is_corrupt() {
        let ledger = ledger();
        for (ids, lost, corrupt) in [
            (&[1][..], 1, 0),
            (&[3], 2, 0),
            (&[1, 2, 4], 0, 1),
            // Its effect on two balances shows as well.
            (&[1, 2, 2], 0, 3),
        ] {
            let verdict = ledger.verify(&holding(&ledger, ids));
            assert_eq!(
                (verdict.lost_writes, verdict.corrupt_keys),
                (lost, corrupt),
                "{ids:?}: {verdict:?}"
            );
            assert!(!verdict.passed());
        }
        let mut contents = holding(&ledger, &[1, 2]);
        contents.transfers.push(Row {
            id: 99,
            ..ledger.transfer(1)
        });
        assert_eq!(ledger.verify(&contents).corrupt_keys, 1);
    }

    #[test]
    fn half_a_transaction_is_seen_in_the_balances_and_a_torn_row_in_its_note() {
        let ledger = ledger();
        let mut contents = holding(&ledger, &[1, 2, 3]);
        contents.transfers.pop();
        let verdict = ledger.verify(&contents);
        assert_eq!(
            (verdict.lost_writes, verdict.corrupt_keys),
            (0, 2),
            "{verdict:?}"
        );
        let mut contents = holding(&ledger, &[1, 2]);
        contents.transfers[0].note.replace_range(5..6, "z");
        assert_eq!(ledger.verify(&contents).corrupt_keys, 1);
        let mut contents = holding(&ledger, &[1, 2]);
        contents.balances.pop();
        assert!(!ledger.verify(&contents).passed());
    }

    #[test]
    fn equal_seeds_ask_for_equal_transfers_between_two_accounts() {
        let (mut one, mut other) = (Ledger::new(3, 2), Ledger::new(3, 2));
        for _ in 0..100 {
            let transfer = one.begin();
            assert_eq!(transfer, other.begin());
            assert_ne!(transfer.source, transfer.target);
            assert!((0..2).contains(&transfer.source) && (0..2).contains(&transfer.target));
            assert_eq!(transfer.note.len(), 64);
        }
    }
}
