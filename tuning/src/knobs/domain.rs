//! The values that a knob can have.

use super::{Knob, KnobError, Unit};
use serde_json::Value;
use std::fmt;

/// The values that a knob can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// The whole numbers from `least` to `most`.
    Integer {
        /// Smallest.
        least: i64,
        /// Largest.
        most: i64,
    },
    /// The powers of two from `least` to `most`.
    PowerOfTwo {
        /// Smallest; a power of two.
        least: i64,
        /// Largest; a power of two.
        most: i64,
    },
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// `true` or `false`.
    Switch,
}

impl Domain {
    /// Whether `value` is one of them.
    #[must_use]
    pub fn contains(&self, value: &Value) -> bool {
        match self {
            Self::Integer { least, most } => value
                .as_i64()
                .is_some_and(|number| (*least..=*most).contains(&number)),
            Self::PowerOfTwo { least, most } => value.as_i64().is_some_and(|number| {
                (*least..=*most).contains(&number) && number.unsigned_abs().is_power_of_two()
            }),
            Self::OneOf(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Self::Switch => value.is_boolean(),
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer { least, most } => write!(formatter, "{least} to {most}"),
            Self::PowerOfTwo { least, most } => {
                write!(formatter, "a power of two from {least} to {most}")
            }
            Self::OneOf(words) => formatter.write_str(&words.join(", ")),
            Self::Switch => formatter.write_str("true, false"),
        }
    }
}

impl Knob {
    /// `value`, if the knob can have it.
    ///
    /// # Errors
    /// [`KnobError::Value`].
    pub fn admit(&self, value: Value) -> Result<Value, KnobError> {
        if self.domain.contains(&value) {
            return Ok(value);
        }
        Err(KnobError::value(self, plain(&value)))
    }

    /// Reads a value from the text of a command line.
    ///
    /// # Errors
    /// [`KnobError::Value`]: it does not read as one, or the knob cannot have it.
    pub fn parse(&self, text: &str) -> Result<Value, KnobError> {
        let value = match self.domain {
            Domain::Integer { .. } | Domain::PowerOfTwo { .. } => integer(text, self.unit),
            Domain::OneOf(_) => Some(Value::from(text)),
            Domain::Switch => text.parse::<bool>().ok().map(Value::from),
        };
        value
            .filter(|value| self.domain.contains(value))
            .ok_or_else(|| KnobError::value(self, format!("`{text}`")))
    }
}

/// A whole number; of bytes also with a binary unit behind it.
fn integer(text: &str, unit: Unit) -> Option<Value> {
    const SUFFIXES: [(&str, i64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let suffix = SUFFIXES
        .iter()
        .filter(|_| unit == Unit::Bytes)
        .find_map(|(suffix, bytes)| Some((text.strip_suffix(suffix)?.trim_end(), *bytes)));
    let (digits, factor) = suffix.unwrap_or((text, 1));
    let number = digits.parse::<i64>().ok()?.checked_mul(factor)?;
    Some(Value::from(number))
}

/// A value as people write it: words without quotes.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(word) => word.clone(),
        other => other.to_string(),
    }
}
