//! Guest-physical RAM by host pointer.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Physical address bits of the CPU model.
pub(crate) const PHYSICAL_BITS: u32 = 40;

struct Region {
    start: u64,
    length: u64,
    host: u64,
}

/// The guest's RAM.
pub(crate) struct PhysicalMemory {
    regions: Vec<Region>,
    end: u64,
    /// Keeps the mappings that `regions` point into.
    _owner: GuestMemoryMmap,
}

impl PhysicalMemory {
    pub(crate) fn new(owner: GuestMemoryMmap) -> PhysicalMemory {
        let mut regions = Vec::new();
        for region in owner.iter() {
            let start = region.start_addr().0;
            // Whole pages only: the translation caches know nothing smaller.
            let length = region.len() & !0xfff;
            let host = region
                .get_host_address(vm_memory::MemoryRegionAddress(0))
                .expect("a mapped region has an address at 0");
            if start & 0xfff == 0 && length > 0 {
                // SAFETY: the advised range is a mapping that `owner` keeps. Advice only: where the
                // host has no huge pages to give, it is slower, not wrong.
                unsafe { libc::madvise(host.cast(), length as usize, libc::MADV_HUGEPAGE) };
                regions.push(Region {
                    start,
                    length,
                    host: host.expose_provenance() as u64,
                });
            }
        }
        let end = owner.last_addr();
        let GuestAddress(last) = end;
        PhysicalMemory {
            regions,
            end: last + 1,
            _owner: owner,
        }
    }

    /// One past the highest address of RAM.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Host address of a physical address, if that is RAM. The rest of the page is RAM as well.
    #[inline]
    pub(crate) fn host(&self, physical: u64) -> Option<u64> {
        self.regions.iter().find_map(|r| {
            let offset = physical.wrapping_sub(r.start);
            (offset < r.length).then(|| r.host + offset)
        })
    }

    /// Reads an aligned quadword (a page-table entry); all ones where there is no RAM.
    pub(crate) fn read_u64(&self, physical: u64) -> u64 {
        match self.host(physical & !7) {
            // SAFETY: `host` answers with an address inside a mapping that `_owner` keeps, and eight
            // aligned bytes do not leave the page.
            Some(host) => unsafe {
                std::ptr::with_exposed_provenance::<u64>(host as usize).read_volatile()
            },
            None => u64::MAX,
        }
    }

    /// Writes an aligned quadword; nothing where there is no RAM.
    pub(crate) fn write_u64(&mut self, physical: u64, value: u64) {
        if let Some(host) = self.host(physical & !7) {
            // SAFETY: as in `read_u64`.
            unsafe {
                std::ptr::with_exposed_provenance_mut::<u64>(host as usize).write_volatile(value)
            }
        }
    }

    /// Copies out bytes of one page; all ones where there is no RAM.
    pub(crate) fn read(&self, physical: u64, data: &mut [u8]) {
        debug_assert!((physical & 0xfff) as usize + data.len() <= 0x1000);
        match self.host(physical) {
            // SAFETY: inside one page of a mapping that `_owner` keeps; `data` is not guest memory.
            Some(host) => unsafe {
                std::ptr::with_exposed_provenance::<u8>(host as usize)
                    .copy_to_nonoverlapping(data.as_mut_ptr(), data.len());
            },
            None => data.fill(0xff),
        }
    }

    /// Copies bytes into one page that is RAM.
    pub(crate) fn write(&mut self, physical: u64, data: &[u8]) {
        debug_assert!((physical & 0xfff) as usize + data.len() <= 0x1000);
        if let Some(host) = self.host(physical) {
            // SAFETY: as in `read`.
            unsafe {
                std::ptr::with_exposed_provenance_mut::<u8>(host as usize)
                    .copy_from_nonoverlapping(data.as_ptr(), data.len());
            }
        }
    }
}
