//! Is there an order? The checker of Wing and Gong (*Testing and verifying concurrent objects*, 1993) with
//! Lowe's memory of what was tried (*Testing for linearizability*, 2017), one key at a time: a history is
//! linearizable if each object's is (Herlihy and Wing, 1990, theorem 1).
//!
//! A history is linearizable if its operations can be put into an order that respects real time (an
//! operation that was answered before another was invoked comes first) in which each response is the one
//! that [`Operation::execute`](super::model::Operation::execute) gives. Operations without an answer may
//! stand anywhere after their invocation, or nowhere. Beyond that, answered operations of one
//! connection must take effect in the order in which they were sent, though they overlap when they are
//! pipelined: Redis executes a connection's commands one after another.
//!
//! The search is exact. It goes wrong only where operations overlap, so its cost is the history's
//! length times what the overlaps allow; a limit on steps ends the hopeless. What fits next and changes
//! nothing wherever it fits (a read) is put there at once, and nothing else is tried: an order in which
//! it comes later stays one when it is moved here. And no order is followed in which a value that
//! somebody has yet to see is neither there nor to be had any more: where values are unique, this is
//! what keeps the search short.

use super::foresight::Foresight;
use super::history::{KeyHistory, Record};
use super::model::{Operation, Response, State};
use std::collections::{HashMap, HashSet};

/// What was found out about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is an order.
    Linearizable,
    /// There is none.
    NotLinearizable(Violation),
    /// Undecided: the search took more steps than it was given.
    OutOfSteps {
        /// How many that were.
        steps: u64,
    },
}

/// Where every order ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// How many operations the longest order has that respects all responses in it.
    pub longest: usize,
    /// What is stored after it.
    pub state: State,
    /// Number of the operation, in the history, that had to come next or earlier and cannot.
    pub stuck_at: usize,
    /// Numbers of the operations that could have come next, the one above among them.
    pub candidates: Vec<usize>,
}

/// No entry of the list.
const NONE: usize = usize::MAX;

/// Searches for an order of all of `history`, in at most `steps_most` steps.
#[must_use]
pub fn check(history: &KeyHistory, steps_most: u64) -> Outcome {
    let outcome = Search::new(history, true).run(steps_most);
    // Where an order without foresight ends is where people see the contradiction.
    if let Outcome::NotLinearizable(_) = outcome
        && let told @ Outcome::NotLinearizable(_) =
            Search::new(history, false).run(steps_most.min(STEPS_TO_TELL))
    {
        return told;
    }
    outcome
}

/// Steps that are spent on telling a violation well.
const STEPS_TO_TELL: u64 = 1_000_000;

/// An operation that may come next, and the state after it.
type Alternative = (usize, State);

/// Invocations and answers in the order of time, as a list from which operations are lifted once they
/// have their place in the order.
struct Search<'a> {
    records: &'a [Record],
    /// Operation of each entry.
    operation: Vec<usize>,
    /// Whether an entry is an invocation.
    invocation: Vec<bool>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Entries of each operation: its invocation, and its answer or [`NONE`].
    entries: Vec<(usize, usize)>,
    /// Rank of each operation by invocation.
    rank: Vec<u32>,
    /// The answered operation before each, on the same connection, or [`NONE`].
    before: Vec<usize>,
    has_place: Vec<bool>,
    foresight: Option<Foresight>,
    /// The list's first entry is this one's next.
    head: usize,
    /// Answered operations without a place.
    left: usize,
    state: State,
    placed: Placed,
    /// What was placed, and the state before it.
    order: Vec<(usize, State)>,
}

impl<'a> Search<'a> {
    fn new(history: &'a KeyHistory, foresight: bool) -> Self {
        let records = history.records.as_slice();
        // At one and the same time, invocations come first: such operations overlap.
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * records.len());
        for (index, record) in records.iter().enumerate() {
            events.push((record.invoked_ns, false, index));
            if let Some(answer) = &record.answer {
                // A clock that went backwards would make an operation end before it began.
                events.push((answer.answered_ns.max(record.invoked_ns), true, index));
            }
        }
        events.sort_unstable();
        let count = events.len();
        let mut entries = vec![(NONE, NONE); records.len()];
        let mut rank = vec![0; records.len()];
        let mut ranks = 0;
        for (entry, (_, answer, index)) in events.iter().enumerate() {
            if *answer {
                entries[*index].1 = entry;
            } else {
                entries[*index].0 = entry;
                rank[*index] = ranks;
                ranks += 1;
            }
        }
        // The head is one more entry, behind all others.
        let mut next: Vec<usize> = (1..=count).chain([0]).collect();
        next[count.checked_sub(1).unwrap_or(count)] = NONE;
        let mut previous: Vec<usize> = (0..count).map(|entry| entry.wrapping_sub(1)).collect();
        if let Some(first) = previous.first_mut() {
            *first = count;
        }
        previous.push(NONE);
        Self {
            records,
            operation: events.iter().map(|(_, _, index)| *index).collect(),
            invocation: events.iter().map(|(_, answer, _)| !answer).collect(),
            next,
            previous,
            entries,
            rank,
            before: order_of_connections(records),
            has_place: vec![false; records.len()],
            foresight: foresight.then(|| Foresight::new(records)),
            head: count,
            left: records
                .iter()
                .filter(|record| record.answer.is_some())
                .count(),
            state: history.initial.clone(),
            placed: Placed::default(),
            order: Vec::new(),
        }
    }

    fn run(&mut self, steps_most: u64) -> Outcome {
        let mut tried: HashSet<(Placed, State)> = HashSet::new();
        let mut violation: Option<Violation> = None;
        // What is still to be tried at each place of the order, the best last.
        let mut open: Vec<Vec<Alternative>> = Vec::new();
        let mut steps = 0;
        while self.left > 0 {
            let alternatives = self.alternatives();
            let longest = violation.as_ref().map(|violation| violation.longest);
            if alternatives.is_empty() && longest.is_none_or(|longest| longest < self.order.len()) {
                violation = Some(self.violation());
            }
            open.push(alternatives);
            loop {
                steps += 1;
                if steps > steps_most {
                    return Outcome::OutOfSteps { steps: steps_most };
                }
                let alternative = open.last_mut().and_then(Vec::pop);
                if let Some((operation, state)) = alternative {
                    let mut placed = self.placed.clone();
                    placed.add(self.rank[operation]);
                    if tried.insert((placed.clone(), state.clone())) {
                        self.place(operation, placed, state);
                        break;
                    }
                    continue;
                }
                open.pop();
                let Some((last, state)) = self.order.pop() else {
                    // The first dead end had nothing to try, and was noted.
                    let violation = violation.unwrap_or_else(|| self.violation());
                    return Outcome::NotLinearizable(violation);
                };
                self.take_back(last, state);
            }
        }
        Outcome::Linearizable
    }

    /// What may come next, the best last.
    fn alternatives(&mut self) -> Vec<Alternative> {
        let mut alternatives: Vec<Alternative> = Vec::new();
        let mut entry = self.next[self.head];
        // Behind the first answer, everything was asked later.
        while entry != NONE && self.invocation[entry] {
            let operation = self.operation[entry];
            entry = self.next[entry];
            let before = self.before[operation];
            if before != NONE && !self.has_place[before] {
                continue;
            }
            let record = &self.records[operation];
            let response = record.answer.as_ref().map(|answer| &answer.response);
            let Some(state) = record.operation.apply(&self.state, response) else {
                continue;
            };
            if changes_nothing(record) {
                return vec![(operation, state)];
            }
            let foresight = self.foresight.as_mut();
            if foresight.is_some_and(|foresight| foresight.forbids(operation, &state)) {
                continue;
            }
            alternatives.push((operation, state));
        }
        // A server mostly answers in the order in which it executes. At one and the same time, first what
        // fits few states; at the end, what need not be at all.
        alternatives.sort_by_key(|(operation, _)| {
            let record = &self.records[*operation];
            let answered = record.answer.as_ref().map(|answer| answer.answered_ns);
            let fits_all = matches!(record.operation, Operation::Set(_));
            std::cmp::Reverse((answered.unwrap_or(u64::MAX), fits_all))
        });
        alternatives
    }

    fn place(&mut self, operation: usize, placed: Placed, state: State) {
        let before = std::mem::replace(&mut self.state, state);
        self.order.push((operation, before));
        self.placed = placed;
        self.has_place[operation] = true;
        if let Some(foresight) = &mut self.foresight {
            foresight.placed(operation);
        }
        let (invocation, answer) = self.entries[operation];
        self.lift(invocation);
        if answer != NONE {
            self.lift(answer);
            self.left -= 1;
        }
    }

    /// Undoes the last placement.
    fn take_back(&mut self, operation: usize, state: State) {
        self.state = state;
        self.has_place[operation] = false;
        if let Some(foresight) = &mut self.foresight {
            foresight.taken_back(operation);
        }
        self.placed.remove(self.rank[operation]);
        let (invocation, answer) = self.entries[operation];
        if answer != NONE {
            self.unlift(answer);
            self.left += 1;
        }
        self.unlift(invocation);
    }

    fn lift(&mut self, entry: usize) {
        let (previous, next) = (self.previous[entry], self.next[entry]);
        self.next[previous] = next;
        if next != NONE {
            self.previous[next] = previous;
        }
    }

    /// The entry still knows its neighbours: they are those it had when it was lifted, if entries come
    /// back in the opposite order.
    fn unlift(&mut self, entry: usize) {
        let (previous, next) = (self.previous[entry], self.next[entry]);
        self.next[previous] = entry;
        if next != NONE {
            self.previous[next] = entry;
        }
    }

    /// Where this order ends.
    fn violation(&self) -> Violation {
        let mut candidates = Vec::new();
        let mut entry = self.next[self.head];
        while entry != NONE && self.invocation[entry] {
            candidates.push(self.operation[entry]);
            entry = self.next[entry];
        }
        Violation {
            longest: self.order.len(),
            state: self.state.clone(),
            // An operation without a place has its answer in the list.
            stuck_at: self.operation.get(entry).copied().unwrap_or_default(),
            candidates,
        }
    }
}

/// Whether an operation, answered as it was, leaves every state as it is in which it fits. (A `SET` of what
/// is there already does not: elsewhere in the order it changes something.)
fn changes_nothing(record: &Record) -> bool {
    let Some(answer) = &record.answer else {
        return false;
    };
    matches!(
        (&record.operation, &answer.response),
        (Operation::Get, _)
            | (_, Response::Refused)
            | (Operation::CompareAndSet { .. }, Response::Swapped(false))
    )
}

/// For each operation the answered one before it on its connection.
fn order_of_connections(records: &[Record]) -> Vec<usize> {
    let mut last: HashMap<u32, usize> = HashMap::new();
    records
        .iter()
        .enumerate()
        .map(|(index, record)| {
            let before = last.get(&record.connection).copied().unwrap_or(NONE);
            if record.answer.is_some() {
                last.insert(record.connection, index);
            }
            before
        })
        .collect()
}

/// Which operations have a place, by rank: all below `end` but for `holes`. Few are holes, whatever the
/// length of the history: those that overlap, and those that were never answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Placed {
    end: u32,
    /// Ascending, all below `end - 1`.
    holes: Vec<u32>,
}

impl Placed {
    fn add(&mut self, rank: u32) {
        if rank >= self.end {
            self.holes.extend(self.end..rank);
            self.end = rank + 1;
        } else if let Ok(at) = self.holes.binary_search(&rank) {
            self.holes.remove(at);
        }
    }

    fn remove(&mut self, rank: u32) {
        if rank + 1 == self.end {
            self.end = rank;
            // Below an end there is no hole: the same operations are always the same value.
            while self.end > 0 && self.holes.last() == Some(&(self.end - 1)) {
                self.holes.pop();
                self.end -= 1;
            }
        } else if let Err(at) = self.holes.binary_search(&rank) {
            self.holes.insert(at, rank);
        }
    }
}
