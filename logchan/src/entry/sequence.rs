//! Sequence numbers.

use std::fmt;

/// Number of an entry within its log. Entries count from 1 without a gap; 0 stands before the first.
///
/// At a billion entries a second a log lasts 584 years, so numbers never wrap.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Stands before the first entry: nothing was written, acknowledged or replayed.
    pub const NONE: Self = Self(0);
    /// The first entry of a log.
    pub const FIRST: Self = Self(1);

    /// The number behind this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The number before this one; [`Sequence::NONE`] is its own.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How many entries lie after `other` up to and including this one; 0 when this is not later.
    #[must_use]
    pub const fn since(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}
