//! How a run is carried out. None of it changes what a seed stands for.

use crate::sabotage::Sabotage;
use crate::violation::Rule;

/// Choices for a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// A mistake to make.
    pub sabotage: Sabotage,
    /// Print everything that happens.
    pub trace: bool,
    /// Look at this rule only, to see that it notices a mistake by itself.
    pub only: Option<Rule>,
}

impl Options {
    /// Whether a broken `rule` counts.
    #[must_use]
    pub fn checks(&self, rule: Rule) -> bool {
        self.only.is_none_or(|only| only == rule)
    }
}

impl From<Sabotage> for Options {
    fn from(sabotage: Sabotage) -> Self {
        Self {
            sabotage,
            ..Self::default()
        }
    }
}
