//! What a key of Redis does: the sequential specification that histories are checked against.

use serde::Serialize;
use std::sync::Arc;

/// A value, shared by all who mention it.
pub type Value = Arc<[u8]>;

/// What is stored under a key; `None`: nothing.
pub type State = Option<Value>;

/// What was asked of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// `GET`
    Get,
    /// `SET`
    Set(Value),
    /// `INCR`
    Increment,
    /// `APPEND`
    Append(Value),
    /// A script that stores `new` if it finds `expected`.
    CompareAndSet {
        /// What must be there.
        expected: Value,
        /// What then will be.
        new: Value,
    },
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// `GET`: what was found.
    Found(State),
    /// `SET`: it is done.
    Done,
    /// `INCR`: the new number. `APPEND`: the new length.
    Number(i64),
    /// `CompareAndSet`: whether it stored.
    Swapped(bool),
    /// An error: nothing was done.
    Refused,
}

impl Operation {
    /// Whether it can change anything.
    #[must_use]
    pub fn writes(&self) -> bool {
        *self != Self::Get
    }

    /// The state after it, if in `state` it can have been answered by `response`; `None` for a response
    /// that nobody has seen fits always.
    #[must_use]
    pub fn apply(&self, state: &State, response: Option<&Response>) -> Option<State> {
        let (next, answer) = self.execute(state);
        match response {
            Some(response) if *response != answer => None,
            _ => Some(next),
        }
    }

    /// What Redis does.
    #[must_use]
    pub fn execute(&self, state: &State) -> (State, Response) {
        match self {
            Self::Get => (state.clone(), Response::Found(state.clone())),
            Self::Set(value) => (Some(Arc::clone(value)), Response::Done),
            Self::Increment => match number(state).and_then(|number| number.checked_add(1)) {
                Some(number) => {
                    let next = number.to_string().into_bytes();
                    (Some(next.into()), Response::Number(number))
                }
                None => (state.clone(), Response::Refused),
            },
            Self::Append(value) => {
                let next = [state.as_deref().unwrap_or_default(), value].concat();
                let length = next.len() as i64;
                (Some(next.into()), Response::Number(length))
            }
            Self::CompareAndSet { expected, new } => {
                if state.as_ref() == Some(expected) {
                    (Some(Arc::clone(new)), Response::Swapped(true))
                } else {
                    (state.clone(), Response::Swapped(false))
                }
            }
        }
    }
}

/// The number that `INCR` sees: decimal in its shortest form (`string2ll` in Redis), 0 for nothing.
fn number(state: &State) -> Option<i64> {
    let Some(value) = state else { return Some(0) };
    let text = std::str::from_utf8(value).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// Bytes for people: printable as they are, others escaped, and the middle of a long value left out.
pub(super) fn readable(value: &[u8]) -> String {
    const EDGE: usize = 24;
    if value.len() <= 3 * EDGE {
        return value.escape_ascii().to_string();
    }
    let (start, end) = (&value[..EDGE], &value[value.len() - EDGE..]);
    format!(
        "{}[{} bytes]{}",
        start.escape_ascii(),
        value.len() - 2 * EDGE,
        end.escape_ascii()
    )
}

/// In words.
impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Get => f.write_str("get"),
            Self::Set(value) => write!(f, "set {}", readable(value)),
            Self::Increment => f.write_str("incr"),
            Self::Append(value) => write!(f, "append {}", readable(value)),
            Self::CompareAndSet { expected, new } => {
                write!(f, "cas {} -> {}", readable(expected), readable(new))
            }
        }
    }
}

/// In words.
impl std::fmt::Display for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Found(None) => f.write_str("nothing"),
            Self::Found(Some(value)) => f.write_str(&readable(value)),
            Self::Done => f.write_str("OK"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Swapped(swapped) => f.write_str(if *swapped { "swapped" } else { "not swapped" }),
            Self::Refused => f.write_str("refused"),
        }
    }
}

impl Serialize for Operation {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Response {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        Arc::from(text.as_bytes())
    }

    #[test]
    fn a_key_does_what_redis_documents() {
        let mut state = None;
        let mut says = |operation: Operation, expected: Response| {
            let (next, response) = operation.execute(&state);
            assert_eq!(response, expected, "{operation} in {state:?}");
            assert_eq!(operation.apply(&state, Some(&expected)), Some(next.clone()));
            assert_eq!(operation.apply(&state, None), Some(next.clone()));
            state = next;
        };
        let cas = |expected, new| Operation::CompareAndSet {
            expected: value(expected),
            new: value(new),
        };
        says(Operation::Get, Response::Found(None));
        says(cas("", "x"), Response::Swapped(false));
        says(Operation::Increment, Response::Number(1));
        says(Operation::Increment, Response::Number(2));
        says(Operation::Append(value("7")), Response::Number(2));
        says(Operation::Increment, Response::Number(28));
        says(cas("28", "028"), Response::Swapped(true));
        says(Operation::Increment, Response::Refused);
        says(Operation::Set(value("9223372036854775807")), Response::Done);
        says(Operation::Increment, Response::Refused);
        says(
            Operation::Get,
            Response::Found(Some(value("9223372036854775807"))),
        );
        assert_eq!(
            Operation::Get.apply(&None, Some(&Response::Found(Some(value("x"))))),
            None
        );
    }
}
