//! Is there an order? The checker of Wing and Gong (*Testing and verifying concurrent objects*, 1993) with
//! Lowe's memory of what was tried (*Testing for linearizability*, 2017), one key at a time: a history is
//! linearizable if each object's is (Herlihy and Wing, 1990, theorem 1).
//!
//! A history is linearizable if its operations can be put into an order that respects real time (an
//! operation that was answered before another was invoked comes first) in which each response is the one
//! that [`Operation::execute`](super::model::Operation::execute) gives. Operations without an answer may stand anywhere after their
//! invocation, or nowhere.
//!
//! The search is exact. It goes wrong only where operations overlap, so its cost is the history's
//! length times what the overlaps allow; a limit on steps ends the hopeless.

use super::history::{KeyHistory, Record};
use super::model::State;
use std::collections::HashSet;

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
    let mut search = Search::new(history);
    search.run(steps_most)
}

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
    fn new(history: &'a KeyHistory) -> Self {
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
        let mut next: Vec<usize> = (1..=count).collect();
        next.push(0);
        if let Some(last) = count.checked_sub(1) {
            next[last] = NONE;
        } else {
            next[0] = NONE;
        }
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
        let mut steps = 0;
        let mut entry = self.next[self.head];
        while self.left > 0 {
            steps += 1;
            if steps > steps_most {
                return Outcome::OutOfSteps { steps: steps_most };
            }
            // Every answered operation has its answer in the list: the end is never reached.
            let operation = self.operation[entry];
            if self.invocation[entry] {
                let record = &self.records[operation];
                let response = record.answer.as_ref().map(|answer| &answer.response);
                if let Some(state) = record.operation.apply(&self.state, response) {
                    let mut placed = self.placed.clone();
                    placed.add(self.rank[operation]);
                    if tried.insert((placed.clone(), state.clone())) {
                        self.place(operation, placed, state);
                        entry = self.next[self.head];
                        continue;
                    }
                }
                entry = self.next[entry];
                continue;
            }
            // An answer, and its operation has no place yet: this order ends here.
            if violation
                .as_ref()
                .is_none_or(|known| known.longest < self.order.len())
            {
                violation = Some(self.violation(operation));
            }
            let Some((last, state)) = self.order.pop() else {
                // There is no other order either. The violation was just noted, if not before.
                let violation = violation.unwrap_or_else(|| self.violation(operation));
                return Outcome::NotLinearizable(violation);
            };
            entry = self.take_back(last, state);
        }
        Outcome::Linearizable
    }

    fn place(&mut self, operation: usize, placed: Placed, state: State) {
        let before = std::mem::replace(&mut self.state, state);
        self.order.push((operation, before));
        self.placed = placed;
        let (invocation, answer) = self.entries[operation];
        self.lift(invocation);
        if answer != NONE {
            self.lift(answer);
            self.left -= 1;
        }
    }

    /// Undoes the last placement; the entry behind its invocation is what to try next.
    fn take_back(&mut self, operation: usize, state: State) -> usize {
        self.state = state;
        self.placed.remove(self.rank[operation]);
        let (invocation, answer) = self.entries[operation];
        if answer != NONE {
            self.unlift(answer);
            self.left += 1;
        }
        self.unlift(invocation);
        self.next[invocation]
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

    fn violation(&self, stuck_at: usize) -> Violation {
        let mut candidates = Vec::new();
        let mut entry = self.next[self.head];
        while entry != NONE && self.invocation[entry] {
            candidates.push(self.operation[entry]);
            entry = self.next[entry];
        }
        Violation {
            longest: self.order.len(),
            state: self.state.clone(),
            stuck_at,
            candidates,
        }
    }
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
