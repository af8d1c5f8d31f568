//! Which chunks of a disk may have been written since the pairing.

/// Bytes of a page of the record.
pub const PAGE_BYTES: usize = 4096;

/// Most bytes that the bits of a disk take.
pub const MAP_BYTES_MOST: usize = 1 << 20;

/// Smallest chunk, bytes. Each first write to a chunk costs a durable write of its bit, so it is not small; what is
/// compared and sent when the sides meet again is counted in smaller blocks.
const CHUNK_LEAST: u64 = 1 << 20;

/// Words of bits in a page; its number and its CRC follow.
const PAGE_WORDS: usize = (PAGE_BYTES - 8) / 8;

/// A bit for each chunk of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkMap {
    disk_bytes: u64,
    chunk_bytes: u64,
    words: Vec<u64>,
    /// Pages that have changed since [`ChunkMap::take_changed`], each once.
    changed: Vec<u32>,
}

impl ChunkMap {
    /// For a disk of `disk_bytes` bytes, nothing set. A chunk is 1 MiB, or as much more as it takes for the bits to be
    /// at most [`MAP_BYTES_MOST`].
    #[must_use]
    pub fn new(disk_bytes: u64) -> Self {
        let chunk_bytes = Self::chunk_of(disk_bytes);
        let chunks = disk_bytes.div_ceil(chunk_bytes);
        Self {
            disk_bytes,
            chunk_bytes,
            // At most `MAP_BYTES_MOST` bytes, by the choice of the chunk.
            words: vec![0; chunks.div_ceil(64) as usize],
            changed: Vec::new(),
        }
    }

    /// Bytes of a chunk of a disk of `disk_bytes` bytes.
    #[must_use]
    pub const fn chunk_of(disk_bytes: u64) -> u64 {
        let mut chunk = CHUNK_LEAST;
        while disk_bytes.div_ceil(chunk) > MAP_BYTES_MOST as u64 * 8 {
            chunk *= 2;
        }
        chunk
    }

    /// Bytes of the disk.
    #[must_use]
    pub const fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Bytes of a chunk.
    #[must_use]
    pub const fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// How many chunks the disk has; the last may be shorter.
    #[must_use]
    pub const fn chunks(&self) -> u64 {
        self.disk_bytes.div_ceil(self.chunk_bytes)
    }

    /// Whether the chunk of this number may have been written.
    #[must_use]
    pub fn contains(&self, chunk: u64) -> bool {
        let word = usize::try_from(chunk / 64).ok();
        let word = word.and_then(|word| self.words.get(word));
        word.is_some_and(|word| word >> (chunk % 64) & 1 == 1)
    }

    /// How many are set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Sets the bits of the chunks in which `length` bytes from `offset` lie, as far as they are on the disk. Whether
    /// one was not set before: it must be durable before the write.
    pub fn mark(&mut self, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length).min(self.disk_bytes);
        if offset >= end {
            return false;
        }
        let mut new = false;
        for chunk in offset / self.chunk_bytes..=(end - 1) / self.chunk_bytes {
            new |= self.set(chunk);
        }
        new
    }

    fn set(&mut self, chunk: u64) -> bool {
        // On the disk, and so in the vector.
        let index = (chunk / 64) as usize;
        let bit = 1 << (chunk % 64);
        if self.words[index] & bit != 0 {
            return false;
        }
        self.words[index] |= bit;
        let page = (index / PAGE_WORDS) as u32;
        if !self.changed.contains(&page) {
            self.changed.push(page);
        }
        true
    }

    /// Sets what is set in `other`, a map of the same disk. Without effect on what [`ChunkMap::take_changed`] gives.
    ///
    /// # Panics
    /// It is of another disk.
    pub fn unite(&mut self, other: &Self) {
        assert_eq!(
            (self.disk_bytes, self.chunk_bytes),
            (other.disk_bytes, other.chunk_bytes)
        );
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// Pages of the record that the bits take.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.words.len().div_ceil(PAGE_WORDS)
    }

    /// Pages that bits were set in since this was last asked.
    pub fn take_changed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.changed)
    }

    /// The page of this number, as it is in the record.
    #[must_use]
    pub fn page(&self, number: u32) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        let words = self.words.chunks(PAGE_WORDS).nth(number as usize);
        for (bytes, word) in page.chunks_exact_mut(8).zip(words.unwrap_or_default()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        page[PAGE_BYTES - 8..PAGE_BYTES - 4].copy_from_slice(&number.to_le_bytes());
        let crc = crc32c::crc32c(&page[..PAGE_BYTES - 4]);
        page[PAGE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Takes in the page of this number as it is in a record. Whether it was whole; all its bits are set if not.
    pub fn load(&mut self, number: u32, page: &[u8; PAGE_BYTES]) -> bool {
        let crc = crc32c::crc32c(&page[..PAGE_BYTES - 4]).to_le_bytes();
        let whole = page[PAGE_BYTES - 4..] == crc
            && page[PAGE_BYTES - 8..PAGE_BYTES - 4] == number.to_le_bytes();
        let chunks = self.chunks();
        let first = number as usize * PAGE_WORDS;
        let words = self.words.iter_mut().enumerate().skip(first);
        for ((index, word), bytes) in words.take(PAGE_WORDS).zip(page.chunks_exact(8)) {
            let found = bytes.try_into().map_or(u64::MAX, u64::from_le_bytes);
            *word = in_range(if whole { found } else { u64::MAX }, index, chunks);
        }
        whole
    }

    /// The bits as they travel.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    /// A map of a disk of `disk_bytes` bytes from what [`ChunkMap::to_bytes`] of the other side gave; `None`: it is
    /// not as long.
    #[must_use]
    pub fn from_bytes(disk_bytes: u64, bytes: &[u8]) -> Option<Self> {
        let mut map = Self::new(disk_bytes);
        if bytes.len() != map.words.len() * 8 {
            return None;
        }
        let chunks = map.chunks();
        for ((index, word), bytes) in map.words.iter_mut().enumerate().zip(bytes.chunks_exact(8)) {
            let found = u64::from_le_bytes(bytes.try_into().ok()?);
            *word = in_range(found, index, chunks);
        }
        Some(map)
    }
}

/// The bits of `word`, the `index`th, that stand for one of `chunks` chunks.
const fn in_range(word: u64, index: usize, chunks: u64) -> u64 {
    let left = chunks.saturating_sub(index as u64 * 64);
    if left >= 64 {
        word
    } else {
        word & ((1 << left) - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_chunk_is_a_mebibyte_until_the_bits_would_take_more_than_one() {
        assert_eq!(ChunkMap::chunk_of(512), MIB);
        assert_eq!(ChunkMap::chunk_of(8 * MIB * MIB), MIB);
        assert_eq!(ChunkMap::chunk_of(8 * MIB * MIB + 512), 2 * MIB);
        let largest = ChunkMap::new(1 << 62);
        assert!(largest.words.len() * 8 <= MAP_BYTES_MOST);
        assert_eq!(largest.chunks() * largest.chunk_bytes(), 1 << 62);
    }

    #[test]
    fn a_damaged_page_counts_as_all_set_and_only_as_far_as_the_disk_goes() {
        let mut map = ChunkMap::new(70 * MIB);
        map.mark(3 * MIB, 1);
        let mut page = map.page(0);
        for byte in [0, 100, PAGE_BYTES - 8, PAGE_BYTES - 1] {
            page[byte] ^= 1;
            let mut loaded = ChunkMap::new(70 * MIB);
            assert!(!loaded.load(0, &page));
            assert_eq!(loaded.count(), 70);
            page[byte] ^= 1;
        }
        let mut elsewhere = ChunkMap::new(40_000 * MIB);
        assert!(!elsewhere.load(1, &page), "another page's");
    }

    proptest! {
        /// What is marked is what is touched, once, and survives its way to the record and to the other side.
        #[test]
        fn every_chunk_that_is_touched_is_set_and_no_other(
            chunks in 1u64..70_000,
            tail in 0u64..MIB / 512,
            writes in proptest::collection::vec((any::<u64>(), 1u64..3 * MIB), 0..20),
        ) {
            let bytes = (chunks - 1) * MIB + (tail + 1) * 512;
            let mut map = ChunkMap::new(bytes);
            let mut model = std::collections::BTreeSet::new();
            for (offset, length) in writes {
                let offset = offset % bytes;
                let length = length.min(bytes - offset);
                let touched = offset / MIB..=(offset + length - 1) / MIB;
                let new = touched.clone().any(|chunk| !model.contains(&chunk));
                model.extend(touched);
                prop_assert_eq!(map.mark(offset, length), new);
                prop_assert!(!map.mark(offset, length), "set already");
            }
            prop_assert_eq!(map.count(), model.len() as u64);
            for chunk in model {
                prop_assert!(map.contains(chunk));
            }
            let mut loaded = ChunkMap::new(bytes);
            for page in 0..map.pages() as u32 {
                prop_assert!(loaded.load(page, &map.page(page)));
            }
            map.take_changed();
            prop_assert_eq!(&loaded, &map);
            prop_assert_eq!(ChunkMap::from_bytes(bytes, &map.to_bytes()), Some(loaded));
            prop_assert_eq!(ChunkMap::from_bytes(bytes + 64 * MIB, &map.to_bytes()), None);
        }
    }
}
