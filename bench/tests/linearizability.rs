//! The checker of histories: what it must find, what it must not, and that it agrees with one that is too
//! simple to be wrong.

use lockstep_bench::redis::history::{Answer, KeyHistory, Record};
use lockstep_bench::redis::linearizability::{Outcome, check};
use lockstep_bench::redis::model::{Operation, Response, State, Value};
use proptest::prelude::*;
use std::sync::Arc;

const STEPS: u64 = 10_000_000;

fn value(text: &str) -> Value {
    Arc::from(text.as_bytes())
}

fn found(text: &str) -> Response {
    Response::Found(Some(value(text)))
}

fn set(text: &str) -> Operation {
    Operation::Set(value(text))
}

/// A history from (invoked, answered, operation, response).
fn history(initial: &str, operations: Vec<(u64, u64, Operation, Response)>) -> KeyHistory {
    let mut history = KeyHistory::new("k".to_owned(), Some(value(initial)));
    for (connection, (invoked_ns, answered_ns, operation, response)) in
        operations.into_iter().enumerate()
    {
        history.records.push(Record {
            connection: connection as u32,
            operation,
            invoked_ns,
            answer: Some(Answer {
                answered_ns,
                response,
            }),
        });
    }
    history
}

fn is_linearizable(history: &KeyHistory) -> bool {
    match check(history, STEPS) {
        Outcome::Linearizable => true,
        Outcome::NotLinearizable(_) => false,
        Outcome::OutOfSteps { .. } => panic!("undecided"),
    }
}

use Operation::{Get, Increment};
use Response::{Done, Number, Swapped};

#[test]
fn overlapping_operations_may_take_effect_in_either_order() {
    let both = |first, second| {
        history(
            "0",
            vec![
                (0, 100, set("a"), Done),
                (10, 90, set("b"), Done),
                (20, 30, Get, found(first)),
                (110, 120, Get, found(second)),
            ],
        )
    };
    for (first, second) in [
        ("0", "a"),
        ("0", "b"),
        ("a", "b"),
        ("b", "a"),
        ("a", "a"),
        ("b", "b"),
    ] {
        assert!(is_linearizable(&both(first, second)), "{first} {second}");
    }
    assert!(!is_linearizable(&both("a", "0")));
}

#[test]
fn a_stale_read_is_found() {
    let stale = history(
        "old",
        vec![
            (0, 10, set("new"), Done),
            (20, 30, Get, found("new")),
            (40, 50, Get, found("old")),
        ],
    );
    let Outcome::NotLinearizable(violation) = check(&stale, STEPS) else {
        panic!("a stale read passed");
    };
    assert_eq!((violation.stuck_at, violation.longest), (2, 2));
    assert_eq!(violation.state, Some(value("new")));
    assert_eq!(violation.candidates, [2]);
}

#[test]
fn a_lost_update_is_found() {
    let lost = history(
        "0",
        vec![
            (0, 10, Increment, Number(1)),
            (5, 15, Increment, Number(2)),
            (20, 30, Get, found("1")),
        ],
    );
    assert!(!is_linearizable(&lost));
    let append = history(
        "",
        vec![
            (0, 10, Operation::Append(value("ab")), Number(2)),
            (20, 30, Operation::Append(value("c")), Number(1)),
        ],
    );
    assert!(!is_linearizable(&append));
}

#[test]
fn a_duplicated_increment_is_found() {
    let doubled = history(
        "0",
        vec![
            (0, 10, Increment, Number(1)),
            (20, 30, Increment, Number(3)),
        ],
    );
    assert!(!is_linearizable(&doubled));
    let same_twice = history(
        "0",
        vec![(0, 10, Increment, Number(1)), (5, 15, Increment, Number(1))],
    );
    assert!(!is_linearizable(&same_twice));
}

#[test]
fn a_value_from_nowhere_is_found() {
    let nowhere = history("a", vec![(0, 10, set("b"), Done), (5, 15, Get, found("c"))]);
    assert!(!is_linearizable(&nowhere));
}

#[test]
fn two_winners_of_one_compare_and_set_are_found() {
    let cas = |new| Operation::CompareAndSet {
        expected: value("a"),
        new: value(new),
    };
    let winners = |second| {
        history(
            "a",
            vec![
                (0, 10, cas("b"), Swapped(true)),
                (1, 11, cas("c"), Swapped(second)),
            ],
        )
    };
    assert!(is_linearizable(&winners(false)));
    assert!(!is_linearizable(&winners(true)));
}

#[test]
fn operations_of_one_connection_take_effect_in_their_order_though_they_are_pipelined() {
    let pipelined = |connection| {
        let mut history = history("a", vec![(0, 10, set("b"), Done), (1, 11, Get, found("a"))]);
        history.records[1].connection = connection;
        is_linearizable(&history)
    };
    assert!(pipelined(1));
    assert!(!pipelined(0));
}

#[test]
fn an_operation_without_an_answer_may_have_happened_at_any_time_or_never() {
    let with_pending = |shown: &[&str]| {
        let reads = shown.iter().enumerate().map(|(n, text)| {
            let at = 100 * (n as u64 + 1);
            (at, at + 10, Get, found(text))
        });
        let mut history = history("a", reads.collect());
        history.records.push(Record {
            connection: 9,
            operation: set("b"),
            invoked_ns: 150,
            answer: None,
        });
        is_linearizable(&history)
    };
    assert!(with_pending(&["a", "a", "a"]));
    assert!(with_pending(&["a", "a", "b"]));
    assert!(with_pending(&["a", "b", "b"]));
    assert!(!with_pending(&["b", "b", "b"]), "before it was asked");
    assert!(!with_pending(&["a", "b", "a"]), "and back");
}

#[test]
fn a_long_history_with_much_overlap_is_decided_quickly() {
    let mut simulated = simulate(7, 16, 40_000, false);
    assert!(simulated.records.len() > 30_000);
    assert!(is_linearizable(&simulated));
    // The same with one read at three quarters that shows an earlier value.
    let at = simulated.records.len() * 3 / 4;
    let (before, after) = simulated.records.split_at_mut(at);
    let old = before
        .iter()
        .find_map(
            |record| match record.answer.as_ref().map(|answer| &answer.response) {
                Some(Response::Found(Some(text))) => Some(Arc::clone(text)),
                _ => None,
            },
        )
        .expect("a read");
    let read = after
        .iter_mut()
        .find(|record| record.operation == Get && record.answer.is_some())
        .expect("another read");
    if let Some(answer) = &mut read.answer {
        answer.response = Response::Found(Some(old));
    }
    assert!(!is_linearizable(&simulated));
}

#[test]
fn a_burst_that_a_stall_piled_up_is_decided_quickly() {
    // In the order of execution, as a server answers; and in groups whose order nobody knows.
    for (connections, each, quantum) in [(12, 10, 1), (8, 3, 4), (8, 3, 24)] {
        let burst = burst(connections, each, quantum);
        assert!(is_linearizable(&burst), "{connections}, {each}, {quantum}");
    }
}

/// `connections` with `each` so many requests, all asked before the first answer, twenty times over.
/// Answers arrive in groups of `quantum`.
fn burst(connections: u64, each: usize, quantum: u64) -> KeyHistory {
    let all = connections * each as u64;
    let mut history = KeyHistory::new("k".to_owned(), Some(value("0")));
    let mut state = history.initial.clone();
    let mut random = 1_u64;
    let mut next = move |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for burst in 0..20_u64 {
        let start = burst * 10_000;
        let first = history.records.len();
        for n in 0..all {
            let unique = format!("{burst}-{n}.");
            history.records.push(Record {
                connection: (n % connections) as u32,
                operation: match next(4) {
                    0 => Get,
                    1 => Operation::Append(value(&unique)),
                    2 => Operation::CompareAndSet {
                        expected: state.clone().expect("a value"),
                        new: value(&unique),
                    },
                    _ => set(&unique),
                },
                invoked_ns: start + n,
                answer: None,
            });
        }
        // The server takes what each connection holds in its order, connections in any.
        let mut taken = vec![0_usize; connections as usize];
        for done in 0..all {
            let connection = loop {
                let connection = next(connections) as usize;
                if taken[connection] < each {
                    break connection;
                }
            };
            let record =
                &mut history.records[first + taken[connection] * connections as usize + connection];
            taken[connection] += 1;
            let (after, response) = record.operation.execute(&state);
            state = after;
            // Answers that arrive together say nothing of their order.
            let answered_ns = start + 1_000 + done / quantum;
            record.answer = Some(Answer {
                answered_ns,
                response,
            });
        }
    }
    history
}

/// A server that does one thing at a time, and `clients` that ask it: a history that is linearizable
/// because it was made in an order. With `lossy`, some never hear an answer.
fn simulate(seed: u64, clients: usize, operations: usize, lossy: bool) -> KeyHistory {
    let mut random = seed;
    let mut next = move |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut history = KeyHistory::new("k".to_owned(), Some(value("0")));
    let mut state: State = history.initial.clone();
    // For each client: its record, and the response once the operation has taken effect.
    let mut open: Vec<Option<(usize, Option<Response>)>> = vec![None; clients];
    let mut known = value("0");
    for now in 0..(operations as u64 * 3) {
        let client = next(clients as u64) as usize;
        match open[client].take() {
            None => {
                let unique = format!("{now:x}.");
                let operation = match next(6) {
                    0 | 1 => Get,
                    2 => set(&unique),
                    3 if state.as_ref().is_some_and(|state| state.len() < 60) => {
                        Operation::Append(value(&unique))
                    }
                    4 => Operation::CompareAndSet {
                        expected: Arc::clone(&known),
                        new: value(&unique),
                    },
                    _ => Increment,
                };
                open[client] = Some((history.records.len(), None));
                history.records.push(Record {
                    connection: client as u32,
                    operation,
                    invoked_ns: now,
                    answer: None,
                });
            }
            Some((record, None)) => {
                let (after, response) = history.records[record].operation.execute(&state);
                state = after;
                open[client] = Some((record, Some(response)));
            }
            Some((_, Some(_))) if lossy && next(20) == 0 => {}
            Some((record, Some(response))) => {
                if let Response::Found(Some(text)) = &response {
                    known = Arc::clone(text);
                }
                history.records[record].answer = Some(Answer {
                    answered_ns: now,
                    response,
                });
            }
        }
    }
    history
}

/// All orders, one by one.
fn brute_force(history: &KeyHistory) -> bool {
    fn search(history: &KeyHistory, placed: &mut Vec<bool>, state: &State) -> bool {
        let records = &history.records;
        let done = (0..records.len()).all(|n| placed[n] || records[n].answer.is_none());
        if done {
            return true;
        }
        (0..records.len()).any(|n| {
            // Nothing without a place was answered before this one was asked.
            let too_early = (0..records.len()).any(|other| {
                !placed[other]
                    && records[other].answer.as_ref().is_some_and(|answer| {
                        answer.answered_ns < records[n].invoked_ns
                            || (other < n && records[other].connection == records[n].connection)
                    })
            });
            if placed[n] || too_early {
                return false;
            }
            let response = records[n].answer.as_ref().map(|answer| &answer.response);
            let Some(next) = records[n].operation.apply(state, response) else {
                return false;
            };
            placed[n] = true;
            let found = search(history, placed, &next);
            placed[n] = false;
            found
        })
    }
    search(
        history,
        &mut vec![false; history.records.len()],
        &history.initial,
    )
}

fn operations() -> impl Strategy<Value = (Operation, Response)> {
    let text = || prop_oneof![Just("0"), Just("1"), Just("2"), Just("a"), Just("1a")];
    prop_oneof![
        text().prop_map(|text| (Get, found(text))),
        text().prop_map(|text| (set(text), Done)),
        (0_i64..4).prop_map(|number| (Increment, Number(number))),
        Just((Increment, Response::Refused)),
        (1_i64..4).prop_map(|length| (Operation::Append(value("a")), Number(length))),
        (text(), text(), any::<bool>()).prop_map(|(expected, new, swapped)| {
            let operation = Operation::CompareAndSet {
                expected: value(expected),
                new: value(new),
            };
            (operation, Swapped(swapped))
        }),
    ]
}

fn small_histories() -> impl Strategy<Value = KeyHistory> {
    let record = (
        operations(),
        0_u64..30,
        0_u64..16,
        proptest::bool::weighted(0.85),
        0_u32..4,
    );
    proptest::collection::vec(record, 0..7).prop_map(|mut list| {
        list.sort_by_key(|(_, invoked, ..)| *invoked);
        let mut history = KeyHistory::new("k".to_owned(), Some(value("0")));
        for ((operation, response), invoked_ns, length, answered, connection) in list {
            history.records.push(Record {
                connection,
                operation,
                invoked_ns,
                answer: answered.then_some(Answer {
                    answered_ns: invoked_ns + length,
                    response,
                }),
            });
        }
        history
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_checker_agrees_with_trying_all_orders(history in small_histories()) {
        prop_assert_eq!(is_linearizable(&history), brute_force(&history));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_a_server_did_in_some_order_is_linearizable(seed in any::<u64>(), clients in 1_usize..9) {
        prop_assert!(is_linearizable(&simulate(seed, clients, 200, false)));
        // Answers that were lost on the way change nothing: the operation happened, or could have.
        prop_assert!(is_linearizable(&simulate(seed, clients, 60, true)));
    }

    #[test]
    fn one_changed_response_is_judged_as_trying_all_orders_judges_it(
        seed in any::<u64>(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut history = simulate(seed, 3, 3, false);
        prop_assume!(!history.records.is_empty());
        let index = at.index(history.records.len());
        if let Some(answer) = &mut history.records[index].answer {
            answer.response = match &answer.response {
                Response::Number(number) => Response::Number(number + 1),
                Response::Swapped(swapped) => Response::Swapped(!swapped),
                Response::Refused => Response::Number(1),
                _ => Response::Found(Some(value("nobody wrote this"))),
            };
        }
        prop_assert_eq!(is_linearizable(&history), brute_force(&history));
    }
}
