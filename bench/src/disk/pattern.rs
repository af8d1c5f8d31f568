//! What is asked of the disk.

use std::fmt;
use std::str::FromStr;

/// In which order, and which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// 4 KiB anywhere, read.
    RandomRead,
    /// 4 KiB anywhere, written.
    RandomWrite,
    /// 1 MiB after 1 MiB, read.
    SequentialRead,
    /// 1 MiB after 1 MiB, written.
    SequentialWrite,
}

/// A pattern, with so many requests under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// What is asked.
    pub pattern: Pattern,
    /// Requests under way.
    pub depth: u32,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::RandomRead,
        Self::RandomWrite,
        Self::SequentialRead,
        Self::SequentialWrite,
    ];

    /// For file names and the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RandomRead => "random-read",
            Self::RandomWrite => "random-write",
            Self::SequentialRead => "sequential-read",
            Self::SequentialWrite => "sequential-write",
        }
    }

    /// Bytes of a request.
    #[must_use]
    pub const fn block_bytes(self) -> u64 {
        if self.is_random() { 4 << 10 } else { 1 << 20 }
    }

    /// Anywhere, or one behind the other.
    #[must_use]
    pub const fn is_random(self) -> bool {
        matches!(self, Self::RandomRead | Self::RandomWrite)
    }

    /// Whether it writes.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::RandomWrite | Self::SequentialWrite)
    }
}

/// Not the name of a pattern.
#[derive(Debug, thiserror::Error)]
#[error(
    "{found}: no pattern; expected random-read, random-write, sequential-read or sequential-write"
)]
pub struct UnknownPattern {
    found: String,
}

impl FromStr for Pattern {
    type Err = UnknownPattern;

    /// By [`Pattern::name`].
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|pattern| pattern.name() == name);
        named.ok_or_else(|| UnknownPattern {
            found: name.to_owned(),
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = if self.is_random() { "4 KiB" } else { "1 MiB" };
        let order = if self.is_random() {
            "random"
        } else {
            "sequential"
        };
        let way = if self.writes() { "write" } else { "read" };
        write!(f, "{size} {order} {way}")
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, depth {}", self.pattern, self.depth)
    }
}

/// The places of requests, one after the other.
pub(super) struct Places {
    pattern: Pattern,
    blocks: u64,
    state: u64,
}

impl Places {
    /// On a disk of `bytes` bytes; random ones by `seed`.
    pub(super) fn new(pattern: Pattern, bytes: u64, seed: u64) -> Self {
        let state = if pattern.is_random() {
            // No seed of zeroes: the generator would stay there.
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
        } else {
            0
        };
        Self {
            pattern,
            blocks: (bytes / pattern.block_bytes()).max(1),
            state,
        }
    }

    /// Where the next is, bytes.
    pub(super) fn next(&mut self) -> u64 {
        let block = if self.pattern.is_random() {
            // Marsaglia's xorshift64: good enough to miss every cache, and nearly free.
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.state % self.blocks
        } else {
            let block = self.state;
            self.state = (block + 1) % self.blocks;
            block
        };
        block * self.pattern.block_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_by_its_name_and_another_name_is_said() {
        for pattern in Pattern::ALL {
            assert_eq!(pattern.name().parse::<Pattern>().ok(), Some(pattern));
        }
        let said = "random".parse::<Pattern>().expect_err("no pattern");
        let said = said.to_string();
        assert!(said.starts_with("random: "), "{said}");
        assert!(
            Pattern::ALL
                .iter()
                .all(|pattern| said.contains(pattern.name())),
            "{said}"
        );
    }

    #[test]
    fn every_place_is_a_whole_block_of_the_disk() {
        for pattern in Pattern::ALL {
            let mut places = Places::new(pattern, 4 << 20, 3);
            let seen: Vec<u64> = (0..2000).map(|_| places.next()).collect();
            for place in &seen {
                assert!(place.is_multiple_of(pattern.block_bytes()));
                assert!(place + pattern.block_bytes() <= 4 << 20);
            }
            if pattern.is_random() {
                let mut distinct = seen.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert!(distinct.len() > 800, "{} of 1024", distinct.len());
            } else {
                assert_eq!(seen[..5], [0, 1 << 20, 2 << 20, 3 << 20, 0]);
            }
        }
    }
}
