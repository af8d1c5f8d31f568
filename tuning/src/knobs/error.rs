//! What is wrong with an assignment to a knob.

use super::{Knob, TABLE};

/// What is wrong with an assignment to a knob.
#[derive(Debug, thiserror::Error)]
pub enum KnobError {
    /// There is no such knob.
    #[error("there is no knob `{name}`; the nearest is `{nearest}`")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The name that comes nearest.
        nearest: &'static str,
    },
    /// The knob cannot have this value.
    #[error("knob `{knob}`: found {found}, expected {allowed}")]
    Value {
        /// The knob.
        knob: &'static str,
        /// The value.
        found: String,
        /// The unit and the values that it can have.
        allowed: String,
    },
    /// Two knobs whose values do not go together.
    #[error("knob `{knob}`: found {found}, expected at least {least}: {because}")]
    Together {
        /// The knob that is too small.
        knob: &'static str,
        /// Its value.
        found: u64,
        /// The least that goes with the other's value.
        least: u64,
        /// What the other is, and why that matters.
        because: String,
    },
    /// A group must be a table.
    #[error("`{group}` must be a table of knobs, as in `[{group}]`; found {found}")]
    Group {
        /// The name at the top of the file.
        group: String,
        /// What stands there.
        found: &'static str,
    },
    /// Not TOML.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// [`lockstep_vmm::settings::Settings`] refused what the table admits: the two have diverged.
    #[error("knob `{knob}`: the table of knobs does not agree with the settings: {source}")]
    Diverged {
        /// The knob.
        knob: &'static str,
        /// What serde said.
        source: serde_json::Error,
    },
}

impl KnobError {
    pub(super) fn value(knob: &Knob, found: String) -> Self {
        Self::Value {
            knob: knob.name,
            found,
            allowed: knob.allowed(),
        }
    }

    pub(super) fn unknown(name: &str) -> Self {
        Self::Unknown {
            name: name.to_owned(),
            nearest: nearest(name),
        }
    }
}

/// The knob whose name is most like `name`; a blank, an underscore and a hyphen are alike, and the
/// field alone is enough.
fn nearest(name: &str) -> &'static str {
    let name = name.to_ascii_lowercase().replace(['_', ' '], "-");
    let likeness = |knob: &Knob| {
        let whole = strsim::jaro_winkler(&name, knob.name);
        let field = strsim::jaro_winkler(&name, knob.path().1);
        whole.max(field)
    };
    TABLE
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .map_or("", |knob| knob.name)
}
