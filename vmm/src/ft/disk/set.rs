//! Some of a machine's disks.

/// A set of disks, by their numbers ([`DiskRequest::disk`](super::DiskRequest::disk)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskSet([u64; 4]);

impl DiskSet {
    /// No disk.
    pub const NONE: Self = Self([0; 4]);

    /// With `disk`.
    #[must_use]
    pub const fn with(mut self, disk: u8) -> Self {
        self.0[(disk >> 6) as usize] |= 1 << (disk & 63);
        self
    }

    /// Whether `disk` is one of them.
    #[must_use]
    pub const fn contains(&self, disk: u8) -> bool {
        self.0[(disk >> 6) as usize] >> (disk & 63) & 1 == 1
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }
}

impl FromIterator<u8> for DiskSet {
    fn from_iter<I: IntoIterator<Item = u8>>(disks: I) -> Self {
        disks.into_iter().fold(Self::NONE, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_contains_what_was_put_into_it_and_nothing_else() {
        for one in 0..=u8::MAX {
            let set = DiskSet::from_iter([one, one / 2]);
            for disk in 0..=u8::MAX {
                assert_eq!(set.contains(disk), disk == one || disk == one / 2);
            }
            assert!(!set.is_empty());
        }
        assert!(DiskSet::NONE.is_empty());
    }
}
