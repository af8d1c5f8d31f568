//! Guest memory.
//!
//! It is never borrowed as a Rust reference: the guest may change any byte at any time, so it is
//! copied in and out through `vm-memory`'s volatile accessors.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Guest-physical end of the RAM below 4 GiB at most; device registers lie above.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// Guest-physical start of the RAM that does not fit below [`LOW_MEMORY_END`].
pub const HIGH_MEMORY_START: u64 = 1 << 32;
/// Granularity of RAM.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes copied at a time by [`GuestRam::for_each_chunk`].
const CHUNK_BYTES: usize = 64 << 10;

/// The machine's RAM: `[0, low)` and, if larger than 3 GiB, the rest from 4 GiB up.
#[derive(Debug, Clone)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    bytes: u64,
}

/// Guest memory could not be made or touched.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error(
        "the host cannot map {bytes} bytes of guest memory: {reason}; give the VM less memory or the host more"
    )]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// The host's words.
        reason: String,
    },
    /// Not RAM.
    #[error(
        "guest-physical range {address:#x}, {length:#x} bytes, is not RAM; RAM ends at {end:#x}"
    )]
    OutOfRange {
        /// First guest-physical address.
        address: u64,
        /// Length in bytes.
        length: u64,
        /// End of RAM.
        end: u64,
    },
}

impl GuestRam {
    /// Maps `bytes` of zeroed RAM, a multiple of [`PAGE_BYTES`]. Pages cost memory once touched.
    ///
    /// # Errors
    /// [`MemoryError::Map`]: the host refused.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        let refused = |reason: &dyn std::fmt::Display| MemoryError::Map {
            bytes,
            reason: reason.to_string(),
        };
        let low = bytes.min(LOW_MEMORY_END);
        let mut ranges = vec![(GuestAddress(0), low as usize)];
        if bytes > low {
            ranges.push((GuestAddress(HIGH_MEMORY_START), (bytes - low) as usize));
        }
        let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(|error| refused(&error))?;
        Ok(Self { memory, bytes })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// End of the RAM below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.bytes.min(LOW_MEMORY_END)
    }

    /// Guest-physical ranges of RAM: start and length in bytes.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.memory
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
    }

    /// The accessor type that engines and virtio queues take. Clones share the memory.
    pub fn accessor(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn out_of_range(&self, address: u64, length: usize) -> MemoryError {
        MemoryError::OutOfRange {
            address,
            length: length as u64,
            end: self.memory.last_addr().0 + 1,
        }
    }

    /// Copies guest memory at `address` into `bytes`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; what was copied by then is unspecified.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.memory
            .read_slice(bytes, GuestAddress(address))
            .map_err(|_| self.out_of_range(address, bytes.len()))
    }

    /// Copies `bytes` into guest memory at `address`. Not known to an engine that caches decoded
    /// instructions: only for set-up, before the guest runs.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; what was copied by then is unspecified.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|_| self.out_of_range(address, bytes.len()))
    }

    /// Copies RAM piece by piece, in address order, and hands each piece to `visit`. `offset` and
    /// `length` count bytes of RAM, without the gap below 4 GiB; what lies past the end is left out.
    pub fn for_each_chunk(&self, offset: u64, length: u64, mut visit: impl FnMut(&[u8])) {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut offset = offset.min(self.bytes);
        let end = offset.saturating_add(length).min(self.bytes);
        while offset < end {
            let (address, until) = if offset < self.low_end() {
                (offset, self.low_end().min(end))
            } else {
                (offset - LOW_MEMORY_END + HIGH_MEMORY_START, end)
            };
            let piece = &mut chunk[..(until - offset).min(CHUNK_BYTES as u64) as usize];
            self.read(address, piece)
                .expect("offsets below the size of RAM are RAM");
            visit(piece);
            offset += piece.len() as u64;
        }
    }
}

/// Ranges of RAM that a device wrote, for engines that cache decoded instructions. Bounded: when
/// there are more than [`WrittenRanges::LIMIT`], they are taken for one range that spans all.
#[derive(Debug, Default)]
pub struct WrittenRanges {
    ranges: Vec<(u64, u64)>,
}

impl WrittenRanges {
    /// Ranges kept apart.
    const LIMIT: usize = 256;

    /// Notes that `length` bytes at `address` were written.
    pub fn add(&mut self, address: u64, length: u64) {
        let end = address.saturating_add(length);
        if let Some(last) = self.ranges.last_mut()
            && address <= last.1
            && end >= last.0
        {
            *last = (last.0.min(address), last.1.max(end));
            return;
        }
        if self.ranges.len() == Self::LIMIT {
            let span = self.ranges.iter().fold((address, end), |span, range| {
                (span.0.min(range.0), span.1.max(range.1))
            });
            self.ranges.clear();
            self.ranges.push(span);
            return;
        }
        self.ranges.push((address, end));
    }

    /// Whether anything was written since the last [`WrittenRanges::drain`].
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Takes the ranges: start and end.
    pub fn drain(&mut self) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        self.ranges.drain(..).map(|(start, end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_outside_ram_are_refused() {
        let ram = GuestRam::new(1 << 20).unwrap();
        assert!(ram.write((1 << 20) - 1, &[1]).is_ok());
        for address in [1 << 20, u64::MAX, LOW_MEMORY_END] {
            assert!(ram.read(address, &mut [0; 2]).is_err());
        }
        let error = ram.write((1 << 20) - 1, &[1, 2]).unwrap_err();
        assert!(
            error.to_string().contains("RAM ends at 0x100000"),
            "{error}"
        );
    }

    #[test]
    fn ram_beyond_3_gib_goes_on_at_4_gib() {
        let ram = GuestRam::new(LOW_MEMORY_END + PAGE_BYTES).unwrap();
        ram.write(HIGH_MEMORY_START, &[7]).unwrap();
        let mut seen = Vec::new();
        ram.for_each_chunk(LOW_MEMORY_END - 1, 2, |bytes| seen.extend_from_slice(bytes));
        assert_eq!(seen, [0, 7]);
        assert!(ram.read(LOW_MEMORY_END, &mut [0]).is_err());
    }

    #[test]
    fn written_ranges_stay_bounded_and_lose_nothing() {
        let mut written = WrittenRanges::default();
        for index in 0..10 * WrittenRanges::LIMIT as u64 {
            written.add(index * 100, 10);
        }
        let ranges: Vec<_> = written.drain().collect();
        assert!(ranges.len() <= WrittenRanges::LIMIT);
        for index in 0..10 * WrittenRanges::LIMIT as u64 {
            assert!(
                ranges
                    .iter()
                    .any(|range| range.contains(&(index * 100))
                        && range.contains(&(index * 100 + 9)))
            );
        }
    }
}
