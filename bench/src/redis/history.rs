//! What was asked, when, and what came back when.

use super::model::{Operation, Response, State};
use serde::Serialize;
use std::io::{self, Write};

/// Times of one operation: it took effect at one moment between the two, if at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Which connection.
    pub connection: u32,
    /// What was asked.
    pub operation: Operation,
    /// Before the first byte was sent, nanoseconds of `CLOCK_MONOTONIC`.
    pub invoked_ns: u64,
    /// After the last byte was received, and what it said. `None`: no answer came, so it may have taken
    /// effect at any time since, or never.
    #[serde(flatten)]
    pub answer: Option<Answer>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub answered_ns: u64,
    /// What.
    pub response: Response,
}

/// All that was asked of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyHistory {
    /// The key.
    pub key: String,
    /// What was there before the first operation.
    #[serde(skip)]
    pub initial: State,
    /// The operations, in the order in which they were invoked.
    pub records: Vec<Record>,
}

impl KeyHistory {
    /// Nothing yet.
    #[must_use]
    pub fn new(key: String, initial: State) -> Self {
        Self {
            key,
            initial,
            records: Vec::new(),
        }
    }

    /// One JSON object a line, in the order of invocation. Times count from the first one.
    ///
    /// # Errors
    /// `to` fails.
    pub fn write_json(&self, to: &mut impl Write) -> io::Result<()> {
        let start = self.records.first().map_or(0, |record| record.invoked_ns);
        for (number, record) in self.records.iter().enumerate() {
            let mut line = serde_json::json!({
                "key": self.key,
                "number": number,
                "connection": record.connection,
                "operation": record.operation,
                "invoked-us": (record.invoked_ns - start) as f64 / 1e3,
            });
            if let Some(answer) = &record.answer {
                line["answered-us"] =
                    (answer.answered_ns.saturating_sub(start) as f64 / 1e3).into();
                line["response"] = serde_json::to_value(&answer.response)?;
            }
            serde_json::to_writer(&mut *to, &line)?;
            to.write_all(b"\n")?;
        }
        Ok(())
    }
}
