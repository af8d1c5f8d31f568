//! The entry that every contender carries: written in full, read in full.

use std::mem::MaybeUninit;

/// An entry as a value, on cache lines of its own, for contenders that carry values.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Entry<const N: usize>([u8; N]);

/// A place for an entry.
pub(super) type Place<const N: usize> = MaybeUninit<Entry<N>>;

impl<const N: usize> Entry<N> {
    /// Entry `number`.
    #[inline]
    pub(super) fn new(number: u64) -> Self {
        let mut place = Place::<N>::uninit();
        Self::write(&mut place, number);
        // SAFETY: `write` initialised all of it.
        unsafe { place.assume_init() }
    }

    /// Writes entry `number` where it is to be.
    #[inline]
    pub(super) fn write(place: &mut Place<N>, number: u64) {
        // SAFETY: a place is `N` bytes, and `fill` only writes. No padding: `N` is a multiple of 64.
        fill(
            unsafe { &mut *place.as_mut_ptr().cast::<[MaybeUninit<u8>; N]>() },
            number,
        );
    }

    /// The sum of its words.
    #[inline]
    pub(super) fn sum(&self) -> u64 {
        sum(&self.0)
    }
}

/// Writes entry `number`: word `i` is `number + i`.
#[inline]
pub(super) fn fill<const N: usize>(bytes: &mut [MaybeUninit<u8>; N], number: u64) {
    const { assert!(N.is_multiple_of(64)) }
    let (words, _) = bytes.as_chunks_mut::<8>();
    for (i, word) in words.iter_mut().enumerate() {
        *word = number
            .wrapping_add(i as u64)
            .to_le_bytes()
            .map(MaybeUninit::new);
    }
}

/// The sum of an entry's words, modulo 2^64.
#[inline]
pub(super) fn sum<const N: usize>(bytes: &[u8; N]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words
        .iter()
        .fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

/// What [`sum`] says of entry `number`.
pub(super) fn expected_sum<const N: usize>(number: u64) -> u64 {
    let words = (N / 8) as u64;
    number
        .wrapping_mul(words)
        .wrapping_add(words * (words - 1) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_sum_is_the_sum() {
        for number in [0, 1, 77, u64::MAX - 3] {
            assert_eq!(Entry::<64>::new(number).sum(), expected_sum::<64>(number));
            assert_eq!(
                Entry::<2048>::new(number).sum(),
                expected_sum::<2048>(number)
            );
        }
    }
}
