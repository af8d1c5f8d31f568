//! What a search for an order can know ahead: which values are still to be seen, and who can still bring
//! them about.

use super::history::Record;
use super::model::{Operation, Response, State, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// An operation that may store more of the values than this is not counted for any: increments without an
/// answer, while a counter goes on.
const PRODUCES_MOST: usize = 1000;

/// Of each value that some operation must find: how many operations without a place must find it, and
/// how many can store it.
#[derive(Debug)]
pub(super) struct Foresight {
    values: HashMap<Value, usize>,
    observers: Vec<u32>,
    producers: Vec<u32>,
    /// Which value an operation must find.
    observes: Vec<Option<usize>>,
    /// Which of the values an operation may store.
    produces: Vec<Vec<usize>>,
    /// Operations that may store more values than are worth counting.
    wild: Vec<bool>,
    wild_left: u32,
    /// Values that must yet be found, and that nobody can store any more.
    starved: u32,
}

impl Foresight {
    pub(super) fn new(records: &[Record]) -> Self {
        let mut values: HashMap<Value, usize> = HashMap::new();
        // When each value was found last: who was asked later did not store it for that.
        let mut found_ns: Vec<u64> = Vec::new();
        let mut observes = Vec::with_capacity(records.len());
        for record in records {
            observes.push(must_find(record).map(|(value, at_ns)| {
                let id = *values.entry(Arc::clone(value)).or_insert(found_ns.len());
                match found_ns.get_mut(id) {
                    Some(last) => *last = at_ns.max(*last),
                    None => found_ns.push(at_ns),
                }
                id
            }));
        }
        let mut by_length: HashMap<usize, Vec<(&Value, usize)>> = HashMap::new();
        for (value, id) in &values {
            by_length.entry(value.len()).or_default().push((value, *id));
        }
        let mut wild = Vec::with_capacity(records.len());
        let mut produces = Vec::with_capacity(records.len());
        for record in records {
            let response = record.answer.as_ref().map(|answer| &answer.response);
            let known = |value: &[u8]| values.get(value).copied().into_iter().collect();
            let found_later = |fits: &dyn Fn(&Value) -> bool| -> Vec<usize> {
                values
                    .iter()
                    .filter(|(value, id)| found_ns[**id] >= record.invoked_ns && fits(value))
                    .map(|(_, id)| *id)
                    .collect()
            };
            let may_store: Vec<usize> = match (&record.operation, response) {
                (Operation::Get, _) | (_, Some(Response::Swapped(false) | Response::Refused)) => {
                    Vec::new()
                }
                (Operation::Set(value) | Operation::CompareAndSet { new: value, .. }, _) => {
                    known(value)
                }
                (Operation::Increment, Some(Response::Number(number))) => {
                    known(number.to_string().as_bytes())
                }
                (Operation::Append(tail), Some(Response::Number(length))) => {
                    let whole = usize::try_from(*length)
                        .ok()
                        .and_then(|length| by_length.get(&length));
                    let ends = whole
                        .into_iter()
                        .flatten()
                        .filter(|(value, _)| value.ends_with(tail));
                    ends.map(|(_, id)| *id).collect()
                }
                (Operation::Append(tail), _) => found_later(&|value| value.ends_with(tail)),
                (Operation::Increment, _) => {
                    found_later(&|value| value.last().is_some_and(u8::is_ascii_digit))
                }
            };
            wild.push(may_store.len() > PRODUCES_MOST);
            produces.push(if may_store.len() > PRODUCES_MOST {
                Vec::new()
            } else {
                may_store
            });
        }
        let mut foresight = Self {
            observers: vec![0; values.len()],
            producers: vec![0; values.len()],
            wild_left: 0,
            starved: 0,
            values,
            observes,
            produces,
            wild,
        };
        for operation in 0..records.len() {
            foresight.taken_back(operation);
        }
        foresight
    }

    /// Whether `operation`, which leads to `next`, cannot come next: some value that others must find would
    /// then be neither there nor to be had.
    pub(super) fn forbids(&mut self, operation: usize, next: &State) -> bool {
        self.placed(operation);
        let here = next.as_ref().and_then(|value| self.values.get(value));
        let starved_here = here.is_some_and(|id| self.is_starved(*id));
        let lost = self.starved - u32::from(starved_here);
        let forbidden = lost > 0 && self.wild_left == 0;
        self.taken_back(operation);
        forbidden
    }

    pub(super) fn placed(&mut self, operation: usize) {
        self.count(operation, u32::wrapping_sub);
    }

    pub(super) fn taken_back(&mut self, operation: usize) {
        self.count(operation, u32::wrapping_add);
    }

    /// Adds or subtracts an operation. Nothing is subtracted that was not added.
    fn count(&mut self, operation: usize, add: fn(u32, u32) -> u32) {
        if let Some(id) = self.observes[operation] {
            self.change(id, |foresight| {
                foresight.observers[id] = add(foresight.observers[id], 1);
            });
        }
        for index in 0..self.produces[operation].len() {
            let id = self.produces[operation][index];
            self.change(id, |foresight| {
                foresight.producers[id] = add(foresight.producers[id], 1);
            });
        }
        self.wild_left = add(self.wild_left, u32::from(self.wild[operation]));
    }

    fn change(&mut self, id: usize, change: impl FnOnce(&mut Self)) {
        let before = self.is_starved(id);
        change(self);
        let after = self.is_starved(id);
        self.starved = self.starved + u32::from(after) - u32::from(before);
    }

    fn is_starved(&self, id: usize) -> bool {
        self.observers[id] > 0 && self.producers[id] == 0
    }
}

/// The value without which the operation could not have been answered as it was, and when it was.
fn must_find(record: &Record) -> Option<(&Value, u64)> {
    let answer = record.answer.as_ref()?;
    let value = match (&record.operation, &answer.response) {
        (Operation::Get, Response::Found(value)) => value.as_ref(),
        (Operation::CompareAndSet { expected, .. }, Response::Swapped(true)) => Some(expected),
        _ => None,
    };
    // As in the search: no operation ends before it began.
    Some((value?, answer.answered_ns.max(record.invoked_ns)))
}
