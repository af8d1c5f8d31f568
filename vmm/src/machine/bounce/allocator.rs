//! Which buffer a request gets.

use std::hash::{Hash, Hasher};

use super::BOUNCE_ALIGN;

/// Pages in one word of the bitmap.
const WORD: usize = u64::BITS as usize;

/// Gives out runs of pages of a bounce region: the lowest that is long enough. A function of what was
/// asked for and given back, so that both replicas find the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BounceAllocator {
    /// One bit a page, set while it is in use; pages behind the end are always in use.
    used: Vec<u64>,
    /// No word before this one has a free page. Saves looking; decides nothing.
    first: usize,
}

impl Hash for BounceAllocator {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.used.hash(hasher);
    }
}

impl BounceAllocator {
    /// All of a region of `bytes` bytes is free. A part of a page at its end is not given out.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let pages = usize::try_from(bytes / BOUNCE_ALIGN).unwrap_or(usize::MAX);
        let mut used = vec![0; pages.div_ceil(WORD)];
        if let (Some(last), false) = (used.last_mut(), pages.is_multiple_of(WORD)) {
            *last = u64::MAX << (pages % WORD);
        }
        Self { used, first: 0 }
    }

    /// A run of pages for `bytes` bytes (at least one page): its offset in the region. Nothing, and
    /// nothing changed, while no run is long enough.
    pub fn allocate(&mut self, bytes: u64) -> Option<u64> {
        let wanted = Self::pages(bytes)?;
        while self.used.get(self.first) == Some(&u64::MAX) {
            self.first += 1;
        }
        let end = self.used.len() * WORD;
        let (mut page, mut run) = (self.first * WORD, 0);
        while page < end {
            let word = self.used[page / WORD];
            if page.is_multiple_of(WORD) && word == u64::MAX {
                (page, run) = (page + WORD, 0);
                continue;
            }
            run = if word >> (page % WORD) & 1 == 0 {
                run + 1
            } else {
                0
            };
            page += 1;
            if run == wanted {
                let start = page - wanted;
                self.mark(start, wanted, true);
                return Some(start as u64 * BOUNCE_ALIGN);
            }
        }
        None
    }

    /// Gives back what [`BounceAllocator::allocate`] returned for `bytes`.
    pub fn free(&mut self, offset: u64, bytes: u64) {
        let start = usize::try_from(offset / BOUNCE_ALIGN).unwrap_or(usize::MAX);
        if let Some(pages) = Self::pages(bytes) {
            self.mark(start, pages, false);
            self.first = self.first.min(start / WORD);
        }
    }

    /// Whether nothing is given out.
    #[cfg(test)]
    fn is_unused(&self, bytes: u64) -> bool {
        *self.used == Self::new(bytes).used
    }

    fn pages(bytes: u64) -> Option<usize> {
        usize::try_from(bytes.max(1).div_ceil(BOUNCE_ALIGN)).ok()
    }

    fn mark(&mut self, start: usize, pages: usize, used: bool) {
        for page in start..start + pages {
            let bit = 1 << (page % WORD);
            debug_assert_ne!(self.used[page / WORD] & bit != 0, used, "page {page}");
            if used {
                self.used[page / WORD] |= bit;
            } else {
                self.used[page / WORD] &= !bit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lowest_run_that_is_long_enough_is_given() {
        let mut pages = BounceAllocator::new(8 * BOUNCE_ALIGN);
        assert_eq!(pages.allocate(1), Some(0));
        assert_eq!(pages.allocate(2 * BOUNCE_ALIGN), Some(BOUNCE_ALIGN));
        assert_eq!(pages.allocate(BOUNCE_ALIGN + 1), Some(3 * BOUNCE_ALIGN));
        pages.free(BOUNCE_ALIGN, 2 * BOUNCE_ALIGN);
        assert_eq!(pages.allocate(3 * BOUNCE_ALIGN), Some(5 * BOUNCE_ALIGN));
        assert_eq!(pages.allocate(1), Some(BOUNCE_ALIGN));
        assert_eq!(pages.allocate(2 * BOUNCE_ALIGN), None);
        assert_eq!(pages.allocate(u64::MAX), None);
    }

    proptest! {
        /// Against a list of pages: nothing is given twice, nothing lies outside, and what is refused
        /// is not there.
        #[test]
        fn runs_never_overlap_and_are_the_lowest(
            pages in 1usize..200,
            steps in proptest::collection::vec((any::<bool>(), 1u64..40, any::<prop::sample::Index>()), 0..200),
        ) {
            let bytes = pages as u64 * BOUNCE_ALIGN;
            let mut allocator = BounceAllocator::new(bytes);
            let mut taken = vec![false; pages];
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (allocate, length, which) in steps {
                if allocate || held.is_empty() {
                    let free = taken.windows(length as usize).position(|run| !run.contains(&true));
                    let found = allocator.allocate(length * BOUNCE_ALIGN - 1);
                    prop_assert_eq!(found, free.map(|page| page as u64 * BOUNCE_ALIGN));
                    if let Some(offset) = found {
                        let start = (offset / BOUNCE_ALIGN) as usize;
                        taken[start..start + length as usize].fill(true);
                        held.push((offset, length));
                    }
                } else {
                    let (offset, length) = held.swap_remove(which.index(held.len()));
                    allocator.free(offset, length * BOUNCE_ALIGN);
                    let start = (offset / BOUNCE_ALIGN) as usize;
                    taken[start..start + length as usize].fill(false);
                }
            }
            for (offset, length) in held {
                allocator.free(offset, length * BOUNCE_ALIGN);
            }
            prop_assert!(allocator.is_unused(bytes));
        }
    }
}
