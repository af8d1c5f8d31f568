//! The memory of all bounce buffers of a VM.

use std::io;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

/// Buffers begin at multiples of this, bytes: what direct I/O asks for on any disk.
pub const BOUNCE_ALIGN: u64 = 4096;

/// The memory of a VM's bounce buffers: one mapping of fixed size, zero at first, in huge pages where
/// the host has some to spare. Clones share it; it is unmapped with the last.
///
/// It hands out no references: the kernel may be writing to any part of it. [`BounceRegion::read`] and
/// [`BounceRegion::write`] copy; a transfer in flight is given [`BounceRegion::address`].
#[derive(Debug, Clone)]
pub struct BounceRegion {
    memory: Arc<MmapRaw>,
}

impl BounceRegion {
    /// A region of `bytes` bytes, rounded up to [`BOUNCE_ALIGN`]; at least one page.
    ///
    /// # Errors
    /// The host lacks memory.
    pub fn new(bytes: u64) -> io::Result<Self> {
        const HUGE_PAGE: u64 = 2 << 20;
        let bytes = bytes.max(1).next_multiple_of(BOUNCE_ALIGN);
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut options = MmapOptions::new();
        options.len(length);
        let memory = match options.clone().huge(Some(21)).map_anon() {
            Ok(memory) if bytes.is_multiple_of(HUGE_PAGE) => memory,
            _ => options.map_anon()?,
        };
        Ok(Self {
            memory: Arc::new(MmapRaw::from(memory)),
        })
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.memory.len() as u64
    }

    /// Where the `length` bytes from `offset` are, for a transfer.
    ///
    /// # Panics
    /// They are not all inside the region: a defect of the caller, for the machine gives out offsets.
    #[must_use]
    pub fn address(&self, offset: u64, length: u64) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.bytes()),
            "bounce buffer {offset:#x}+{length:#x} is not inside the region of {:#x} bytes",
            self.bytes()
        );
        // The offset is inside the mapping, so it fits a usize and the address is of this mapping.
        self.memory.as_mut_ptr().wrapping_add(offset as usize)
    }

    /// Copies the bytes from `offset` to `data`. Not to be called while a transfer writes there: what
    /// it would return is some mixture.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let source = self.address(offset, data.len() as u64);
        // SAFETY: `address` has checked that the source lies in the mapping, which lives as long as
        // `self`; `data` is memory of its own, since no reference into the mapping is ever made.
        unsafe { std::ptr::copy_nonoverlapping(source, data.as_mut_ptr(), data.len()) }
    }

    /// Copies `length` bytes from `offset` to those from `at` of `target`, which is another region. As
    /// for [`BounceRegion::read`], no transfer writes to the one or uses the other meanwhile.
    ///
    /// # Panics
    /// They are not inside the regions, or the two are one.
    pub fn copy_to(&self, offset: u64, target: &Self, at: u64, length: u64) {
        assert!(
            !Arc::ptr_eq(&self.memory, &target.memory),
            "a bounce region is copied into itself"
        );
        let source = self.address(offset, length);
        let destination = target.address(at, length);
        // SAFETY: `address` has checked that both lie in their mappings, which live as long as the
        // borrows; the mappings are two, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(source, destination, length as usize) }
    }

    /// Copies `data` to the bytes from `offset`. Not to be called while a transfer reads there.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let target = self.address(offset, data.len() as u64);
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_by_every_clone() {
        let region = BounceRegion::new(3 * BOUNCE_ALIGN - 1).unwrap();
        assert_eq!(region.bytes(), 3 * BOUNCE_ALIGN);
        let clone = region.clone();
        region.write(BOUNCE_ALIGN, b"block");
        drop(region);
        let mut data = [0; 5];
        clone.read(BOUNCE_ALIGN, &mut data);
        assert_eq!(&data, b"block");
    }

    #[test]
    #[should_panic(expected = "not inside the region")]
    fn a_buffer_outside_the_region_is_refused() {
        let _ = BounceRegion::new(4096).unwrap().address(4095, 2);
    }
}
