//! What came of all that was asked.

use super::history::KeyHistory;
use super::linearizability::{self, Outcome, Violation};
use super::model::readable;
use crate::load::Verification;
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Operations before and after the one that has no place, in a report.
const AROUND: usize = 6;

/// Whether everything that was acknowledged is there, and whether all that was seen can be explained.
#[derive(Debug, Clone, Serialize)]
pub struct RedisVerdict {
    /// Each shared key.
    pub keys: Vec<KeyVerdict>,
    /// The ledger.
    pub ledger: Verification,
}

/// What was found out about one shared key.
#[derive(Debug, Clone, Serialize)]
pub struct KeyVerdict {
    /// The key.
    pub key: String,
    /// Operations on it.
    pub operations: usize,
    /// Of those, how many were not answered.
    pub unanswered: usize,
    /// What is wrong, in words; `None`: there is an order that explains all.
    pub wrong: Option<String>,
}

impl KeyVerdict {
    pub(super) fn new(history: &KeyHistory, outcome: Outcome) -> Self {
        Self {
            key: history.key.clone(),
            operations: history.records.len(),
            unanswered: history
                .records
                .iter()
                .filter(|record| record.answer.is_none())
                .count(),
            wrong: match outcome {
                Outcome::Linearizable => None,
                Outcome::OutOfSteps { steps } => Some(format!(
                    "undecided: no order was found in {steps} steps, and not all were tried"
                )),
                Outcome::NotLinearizable(violation) => Some(describe(history, &violation)),
            },
        }
    }
}

impl RedisVerdict {
    /// Whether every history is linearizable, every acknowledged write there, every key read back.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.ledger.passed() && self.keys.iter().all(|key| key.wrong.is_none())
    }

    /// Operations in all histories.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.keys.iter().map(|key| key.operations).sum()
    }

    /// Writes the history of every key about which something is wrong to `directory`, one JSON object a
    /// line. Returns the files.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn dump(&self, histories: &[KeyHistory], directory: &Path) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for verdict in self.keys.iter().filter(|verdict| verdict.wrong.is_some()) {
            let Some(history) = histories.iter().find(|history| history.key == verdict.key) else {
                continue;
            };
            fs::create_dir_all(directory)?;
            let path = directory.join(format!("history-{}.jsonl", verdict.key.replace(':', "-")));
            let mut file = BufWriter::new(fs::File::create(&path)?);
            history.write_json(&mut file)?;
            file.into_inner()?.sync_all()?;
            files.push(path);
        }
        Ok(files)
    }
}

impl fmt::Display for RedisVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = self.keys.iter().filter(|key| key.wrong.is_some()).count();
        writeln!(
            f,
            "{} operations on {} shared keys: {} linearizable, {wrong} not",
            self.operations(),
            self.keys.len(),
            self.keys.len() - wrong
        )?;
        let ledger = &self.ledger;
        writeln!(
            f,
            "{} acknowledged writes to {} ledger keys: {} lost, {} keys corrupt, {} unread",
            ledger.acknowledged_writes,
            ledger.keys,
            ledger.lost_writes,
            ledger.corrupt_keys,
            ledger.unread_keys
        )?;
        for text in &ledger.examples {
            writeln!(f, "  {text}")?;
        }
        for key in &self.keys {
            if let Some(wrong) = &key.wrong {
                writeln!(f, "key {}: {wrong}", key.key)?;
            }
        }
        Ok(())
    }
}

/// The place where every order ends, with what was going on around it.
fn describe(history: &KeyHistory, violation: &Violation) -> String {
    let records = &history.records;
    let start = records.first().map_or(0, |record| record.invoked_ns);
    let state = violation
        .state
        .as_ref()
        .map_or_else(|| "nothing".to_owned(), |value| readable(value));
    let mut text = format!(
        "no order explains its {} operations. The longest that fits has {}, after which the key holds \
         {state}; then operation {} fits nowhere. Around it (times in us):",
        records.len(),
        violation.longest,
        violation.stuck_at
    );
    let from = violation.stuck_at.saturating_sub(AROUND);
    for (number, record) in records.iter().enumerate().skip(from).take(2 * AROUND + 1) {
        let mark = if number == violation.stuck_at {
            '>'
        } else if violation.candidates.contains(&number) {
            '?'
        } else {
            ' '
        };
        let us = |ns: u64| ns.saturating_sub(start) as f64 / 1e3;
        let (until, response) = record.answer.as_ref().map_or_else(
            || ("never".to_owned(), "no answer".to_owned()),
            |answer| {
                (
                    format!("{:.1}", us(answer.answered_ns)),
                    answer.response.to_string(),
                )
            },
        );
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n  {mark} {number:>6}  [{:.1} .. {until}]  connection {}: {} = {response}",
            us(record.invoked_ns),
            record.connection,
            record.operation
        );
    }
    text
}

/// Checks keys on all cores: one key's history says nothing of another's.
pub(super) fn check_all(histories: &[KeyHistory], steps_most: u64) -> Vec<KeyVerdict> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let turn = AtomicUsize::new(0);
    let mut verdicts: Vec<(usize, KeyVerdict)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(histories.len()))
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    loop {
                        // Relaxed: the number alone is shared; results come back by join.
                        let index = turn.fetch_add(1, Ordering::Relaxed);
                        let Some(history) = histories.get(index) else {
                            break;
                        };
                        let outcome = linearizability::check(history, steps_most);
                        done.push((index, KeyVerdict::new(history, outcome)));
                    }
                    done
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("the checker does not panic"))
            .collect()
    });
    verdicts.sort_by_key(|(index, _)| *index);
    verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}
