//! Knobs as TOML.

use super::assign::assign;
use super::{KnobError, TABLE, check, find, get};
use lockstep_vmm::settings::Settings;
use serde_json::Value;
use std::fmt::Write as _;
use toml::Table;

/// A configuration file that says what `settings` say, each knob under its meaning, range and default.
#[must_use]
pub fn to_toml(settings: &Settings) -> String {
    let mut text = String::new();
    let mut last = "";
    for knob in TABLE {
        let (group, field) = knob.path();
        if group != last {
            let gap = if last.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}[{group}]");
            last = group;
        }
        // Writing to a string does not fail. JSON's integers, booleans and plain words are TOML's.
        let _ = writeln!(text, "# {}", knob.meaning);
        let _ = writeln!(text, "# {}; default {}", knob.allowed(), knob.default());
        let _ = writeln!(text, "{field} = {}", get(settings, knob));
    }
    text
}

/// `base`, with the knobs that `text` turns.
///
/// # Errors
/// Not TOML, an unknown knob, a value that a knob cannot have, or values that do not go together.
pub fn from_toml(text: &str, base: Settings) -> Result<Settings, KnobError> {
    from_table(&text.parse()?, base)
}

/// [`from_toml`] for a table that stands in a larger file.
///
/// # Errors
/// An unknown knob, a value that a knob cannot have, or values that do not go together.
pub fn from_table(table: &Table, base: Settings) -> Result<Settings, KnobError> {
    let mut settings = base;
    for (group, fields) in table {
        if !TABLE.iter().any(|knob| knob.path().0 == group) {
            // Its first field makes the better guess at what was meant.
            let field = fields.as_table().and_then(|fields| fields.keys().next());
            let name = field.map_or_else(|| group.clone(), |field| format!("{group}.{field}"));
            return Err(KnobError::unknown(&name));
        }
        let fields = fields.as_table().ok_or_else(|| KnobError::Group {
            group: group.clone(),
            found: fields.type_str(),
        })?;
        for (field, value) in fields {
            let knob = find(&format!("{group}.{field}"))?;
            let value = match value {
                toml::Value::Integer(number) => Value::from(*number),
                toml::Value::Boolean(switch) => Value::from(*switch),
                toml::Value::String(word) => Value::from(word.as_str()),
                other => return Err(KnobError::value(knob, other.to_string())),
            };
            assign(&mut settings, knob, value)?;
        }
    }
    check(&settings)?;
    Ok(settings)
}
