//! What is asked next, from a seed: the same seed and the same replies ask the same.

use super::RedisConfig;
use super::ledger::Ledger;
use super::model::{Operation, Response, Value};
use crate::load::schedule::SplitMix;
use std::sync::Arc;

/// A value that has grown longer is set anew instead of appended to, bytes: the guest's memory and the
/// checker's are bounded.
const GROWN: usize = 256;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Of a shared key: goes into the history.
    Shared {
        /// Number of the key.
        key: usize,
        /// What.
        operation: Operation,
    },
    /// A write to a ledger key of its own.
    Ledger {
        /// Which key.
        slot: u32,
        /// Which write to it.
        write: u64,
    },
}

/// What the client knows of a shared key, to ask something sensible.
#[derive(Debug, Clone)]
struct Seen {
    value: Option<Value>,
    length: usize,
}

/// Chooses.
#[derive(Debug)]
pub(super) struct Workload {
    random: SplitMix,
    registers: usize,
    counters: usize,
    weights: [u32; 6],
    total: u64,
    /// Makes values unique.
    unique: u64,
    seen: Vec<Seen>,
}

impl Workload {
    pub(super) fn new(config: &RedisConfig) -> Self {
        let mix = config.mix;
        let weights = [mix.get, mix.set, mix.append, mix.cas, mix.incr, mix.ledger];
        Self {
            random: SplitMix(config.seed),
            registers: config.registers as usize,
            counters: config.counters as usize,
            weights,
            total: weights.iter().map(|weight| u64::from(*weight)).sum(),
            unique: 0,
            seen: vec![
                Seen {
                    value: None,
                    length: 0
                };
                (config.registers + config.counters) as usize
            ],
        }
    }

    /// Shared keys: registers, then counters.
    pub(super) fn name(&self, key: usize) -> String {
        if key < self.registers {
            format!("r:{key}")
        } else {
            format!("n:{}", key - self.registers)
        }
    }

    pub(super) fn keys(&self) -> usize {
        self.registers + self.counters
    }

    /// What a key holds before the first request.
    pub(super) fn initial(&self, key: usize) -> Value {
        let text = if key < self.registers { "initial" } else { "0" };
        Arc::from(text.as_bytes())
    }

    pub(super) fn next(&mut self, ledger: &mut Ledger) -> Request {
        let mut pick = self.random.next() % self.total.max(1);
        let mut kind = 0;
        for weight in self.weights {
            if pick < u64::from(weight) {
                break;
            }
            pick -= u64::from(weight);
            kind += 1;
        }
        let register = self.random.next() as usize % self.registers;
        let counter = self.registers + self.random.next() as usize % self.counters;
        match kind {
            0 => Request::Shared {
                key: self.random.next() as usize % self.keys(),
                operation: Operation::Get,
            },
            2 if self.seen[register].length < GROWN => Request::Shared {
                key: register,
                operation: Operation::Append(self.value("+")),
            },
            3 => self.compare_and_set(register),
            4 => Request::Shared {
                key: counter,
                operation: Operation::Increment,
            },
            5 => match ledger.begin() {
                Some((slot, write)) => Request::Ledger { slot, write },
                // All are in flight: then something else is written.
                None => self.set(register),
            },
            _ => self.set(register),
        }
    }

    /// Remembers what a reply told.
    pub(super) fn learn(&mut self, key: usize, operation: &Operation, response: &Response) {
        let seen = &mut self.seen[key];
        match (operation, response) {
            (_, Response::Found(value)) => {
                seen.length = value.as_ref().map_or(0, |value| value.len());
                seen.value = value.clone();
            }
            (Operation::Set(value), Response::Done)
            | (Operation::CompareAndSet { new: value, .. }, Response::Swapped(true)) => {
                seen.length = value.len();
                seen.value = Some(Arc::clone(value));
            }
            (Operation::Append(_), Response::Number(length)) => {
                seen.length = usize::try_from(*length).unwrap_or(0);
            }
            _ => {}
        }
    }

    fn set(&mut self, key: usize) -> Request {
        Request::Shared {
            key,
            operation: Operation::Set(self.value("")),
        }
    }

    fn compare_and_set(&mut self, key: usize) -> Request {
        let Some(expected) = self.seen[key].value.clone() else {
            return Request::Shared {
                key,
                operation: Operation::Get,
            };
        };
        Request::Shared {
            key,
            operation: Operation::CompareAndSet {
                expected,
                new: self.value("="),
            },
        }
    }

    /// A value that no other request of this client has.
    fn value(&mut self, prefix: &str) -> Value {
        self.unique += 1;
        Arc::from(format!("{prefix}{:x}.", self.unique).into_bytes())
    }
}
