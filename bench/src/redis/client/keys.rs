//! Before the runs and behind them: keys are set, and read back.

use super::super::RedisError;
use super::super::connection::Lost;
use super::super::history::Record;
use super::super::ledger::Ledger;
use super::super::model::Operation;
use super::super::resp::Reply;
use super::super::verdict::{RedisVerdict, check_all};
use super::{Pending, Purpose, Redis, describe};
use lockstep_perf::stamp::monotonic;

/// Requests in flight at once while keys are prepared or read back.
const WINDOW: usize = 32;

impl Redis {
    /// Sets the shared keys to what their histories begin with, and removes ledger keys of an earlier
    /// client's. Call it once, before the first run.
    ///
    /// # Errors
    /// The server refuses, or is lost.
    pub fn prepare(&mut self) -> Result<(), RedisError> {
        let mut commands: Vec<Vec<Vec<u8>>> = (0..self.workload.keys())
            .map(|key| {
                let value = self.workload.initial(key).to_vec();
                vec![b"SET".to_vec(), self.workload.name(key).into_bytes(), value]
            })
            .collect();
        for slots in (0..self.config.ledger_keys).collect::<Vec<_>>().chunks(256) {
            let names = slots.iter().map(|slot| Ledger::name(*slot).into_bytes());
            commands.push([b"DEL".to_vec()].into_iter().chain(names).collect());
        }
        let mut failures = Vec::new();
        let mut commands = commands.into_iter();
        self.ask_all(
            |_, _, _| Some((commands.next()?, Purpose::Prepare)),
            |_, _, reply| {
                if !matches!(reply, Some(Reply::Simple(b"OK") | Reply::Integer(_))) {
                    failures.push(describe(reply));
                }
            },
        )?;
        failures.first().map_or(Ok(()), |what| {
            Err(RedisError::Prepare {
                target: self.config.target,
                what: what.clone(),
            })
        })
    }

    /// Reads everything back, and checks every history. On connections that live, or on a new one.
    ///
    /// # Errors
    /// Only what the host refuses: keys that cannot be read are in the verdict.
    pub fn verify(&mut self) -> Result<RedisVerdict, RedisError> {
        if self.connections.iter().all(Option::is_none) {
            // If there is nobody, that will be said of every key.
            let _ = self.open();
        }
        let mut key = 0;
        self.ask_all(
            |client, index, now| {
                let history = client.histories.get_mut(key)?;
                let words = vec![b"GET".to_vec(), history.key.clone().into_bytes()];
                let record = history.records.len();
                history.records.push(Record {
                    connection: index as u32,
                    operation: Operation::Get,
                    invoked_ns: now,
                    answer: None,
                });
                let purpose = Purpose::Shared { key, record };
                key += 1;
                Some((words, purpose))
            },
            |client, purpose, reply| {
                if let Some(reply) = reply {
                    client.judge(purpose, reply, monotonic());
                }
            },
        )?;
        let mut verdict = self.ledger.verdict();
        let mut slots = self.ledger.written().into_iter();
        self.ask_all(
            |_, _, _| {
                let slot = slots.next()?;
                let words = vec![b"GET".to_vec(), Ledger::name(slot).into_bytes()];
                Some((words, Purpose::ReadBack { slot }))
            },
            |client, purpose, reply| {
                let Purpose::ReadBack { slot } = *purpose else {
                    return;
                };
                match reply {
                    Some(Reply::Bulk(value)) => {
                        client.ledger.verify(&mut verdict, slot, Some(value))
                    }
                    Some(Reply::Null) => client.ledger.verify(&mut verdict, slot, None),
                    other => Ledger::verify_unread(&mut verdict, slot, &describe(other)),
                }
            },
        )?;
        Ok(RedisVerdict {
            keys: check_all(&self.histories, self.config.steps_most),
            ledger: verdict,
        })
    }

    /// Asks what `next` gives for a connection and a time, a window of it at once, and hands every
    /// request to `ended` with its reply, or with `None` if there is none.
    fn ask_all(
        &mut self,
        mut next: impl FnMut(&mut Self, usize, u64) -> Option<(Vec<Vec<u8>>, Purpose)>,
        mut ended: impl FnMut(&mut Self, &Purpose, Option<Reply<'_>>),
    ) -> Result<(), RedisError> {
        let patience = u64::try_from(self.config.patience.as_nanos()).unwrap_or(u64::MAX);
        let mut heard = monotonic();
        let mut more = true;
        loop {
            while more && self.outstanding() < WINDOW {
                let Some(index) = self.connection_with_room() else {
                    break;
                };
                let now = monotonic();
                let Some((words, purpose)) = next(self, index, now) else {
                    more = false;
                    break;
                };
                let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
                if let Some(connection) = &mut self.connections[index] {
                    let pending = Pending {
                        purpose,
                        due_ns: now,
                        sent_ns: now,
                    };
                    connection.ask(&words, pending);
                }
            }
            self.flush_all();
            for pending in std::mem::take(&mut self.abandoned) {
                ended(self, &pending.purpose, None);
            }
            if self.outstanding() == 0 && (!more || self.reason_to_end().is_some()) {
                break;
            }
            if monotonic().saturating_sub(heard) > patience {
                for index in 0..self.connections.len() {
                    self.lose(index, &Lost::Silent(self.config.patience));
                }
                continue;
            }
            self.wait(u64::MAX, |client, pending, reply| {
                heard = monotonic();
                ended(client, &pending.purpose, Some(reply));
            })?;
        }
        // Nobody is left to be asked.
        while more && let Some((_, purpose)) = next(self, 0, monotonic()) {
            ended(self, &purpose, None);
        }
        Ok(())
    }
}
