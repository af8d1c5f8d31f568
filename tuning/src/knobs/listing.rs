//! Knobs, shown.

use super::domain::plain;
use super::{TABLE, get};
use lockstep_vmm::settings::Settings;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;

/// A knob and its value, as `--json` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// `group.field`.
    pub name: &'static str,
    /// The argument, with its dashes.
    pub argument: String,
    /// What it is set to.
    pub value: Value,
    /// What it is without being set.
    pub default: Value,
    /// What the number counts; empty where it is not a number.
    pub unit: String,
    /// The values that it can have.
    pub allowed: String,
    /// What it does.
    pub meaning: &'static str,
}

/// Every knob with its value in `settings`.
#[must_use]
pub fn rows(settings: &Settings) -> Vec<Row> {
    TABLE
        .iter()
        .map(|knob| Row {
            name: knob.name,
            argument: format!("--{}", knob.argument),
            value: get(settings, knob),
            default: knob.default(),
            unit: knob.unit.to_string(),
            allowed: knob.domain.to_string(),
            meaning: knob.meaning,
        })
        .collect()
}

/// [`rows`] as text: a line of figures and a line of meaning for each knob; a star marks a value
/// that is not the default.
#[must_use]
pub fn table(settings: &Settings) -> String {
    let rows = rows(settings);
    let width = |of: fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let names = width(|row| row.name.len());
    let values = width(|row| plain(&row.value).len().max(plain(&row.default).len())).max(7);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "  {:names$}  {:values$}  {:values$}  {:12}  values",
        "knob", "value", "default", "unit"
    );
    for row in &rows {
        let mark = if row.value == row.default { ' ' } else { '*' };
        let _ = writeln!(
            text,
            "{mark} {:names$}  {:values$}  {:values$}  {:12}  {}",
            row.name,
            plain(&row.value),
            plain(&row.default),
            row.unit,
            row.allowed
        );
        let _ = writeln!(text, "      {}", row.meaning);
    }
    text
}
