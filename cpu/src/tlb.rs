//! Direct-mapped translation caches.
//!
//! One bank for the supervisor (CPL 0-2) and one for the user (CPL 3), because a page may be open to
//! one and closed to the other. A hit is a compare and an add: an entry holds the linear page and
//! what to add to a linear address to get the host's. Only RAM pages that need no further thought are
//! entered: not MMIO; for writing, not pages that hold decoded code; for either, not pages that a
//! debug register watches. So everything that needs thought misses.

/// Entries of one bank.
pub(crate) const ENTRIES: usize = 1024;
/// A tag that no page-aligned address equals.
const NO_TAG: u64 = 1;

/// See the module's page.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    pub tag: u64,
    /// Host address minus linear address (data), or physical page (fetch).
    pub addend: u64,
}

const EMPTY: Entry = Entry {
    tag: NO_TAG,
    addend: 0,
};

/// Which cache an access goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

/// The caches of one CPU.
pub(crate) struct Tlb {
    pub read: [Entry; 2 * ENTRIES],
    pub write: [Entry; 2 * ENTRIES],
    pub fetch: [Entry; 2 * ENTRIES],
    /// Whether entry `i` of read, write, fetch came from a global page.
    global: [[u64; 2 * ENTRIES / 64]; 3],
    /// Changes whenever a linear address may have come to mean something else.
    pub generation: u64,
    /// Linear pages that large pages (2M, 1G) brought in: INVLPG of one drops all entries.
    large: bool,
}

/// Where `linear` is kept.
#[inline(always)]
pub(crate) fn slot(linear: u64, bank: usize) -> usize {
    ((linear >> 12) as usize & (ENTRIES - 1)) | bank
}

impl Tlb {
    pub(crate) fn new() -> Tlb {
        Tlb {
            read: [EMPTY; 2 * ENTRIES],
            write: [EMPTY; 2 * ENTRIES],
            fetch: [EMPTY; 2 * ENTRIES],
            global: [[0; 2 * ENTRIES / 64]; 3],
            generation: 1,
            large: false,
        }
    }

    fn parts(
        &mut self,
        access: Access,
    ) -> (&mut [Entry; 2 * ENTRIES], &mut [u64; 2 * ENTRIES / 64]) {
        let [read, write, fetch] = &mut self.global;
        match access {
            Access::Read => (&mut self.read, read),
            Access::Write => (&mut self.write, write),
            Access::Fetch => (&mut self.fetch, fetch),
        }
    }

    /// Enters a translation.
    pub(crate) fn insert(
        &mut self,
        access: Access,
        bank: usize,
        linear: u64,
        addend: u64,
        global: bool,
        large: bool,
    ) {
        let i = slot(linear, bank);
        let (entries, globals) = self.parts(access);
        entries[i] = Entry {
            tag: linear & !0xfff,
            addend,
        };
        let bit = 1 << (i % 64);
        if global {
            globals[i / 64] |= bit;
        } else {
            globals[i / 64] &= !bit;
        }
        self.large |= large;
    }

    /// Forgets everything, global or not.
    pub(crate) fn flush(&mut self) {
        for access in [Access::Read, Access::Write, Access::Fetch] {
            let (entries, globals) = self.parts(access);
            entries.fill(EMPTY);
            globals.fill(0);
        }
        self.large = false;
        self.generation += 1;
    }

    /// Forgets what a load of CR3 forgets.
    pub(crate) fn flush_local(&mut self) {
        for access in [Access::Read, Access::Write, Access::Fetch] {
            let (entries, globals) = self.parts(access);
            for (chunk, &keep) in entries.chunks_exact_mut(64).zip(globals.iter()) {
                if keep == 0 {
                    chunk.fill(EMPTY);
                } else {
                    for (i, entry) in chunk.iter_mut().enumerate() {
                        if keep >> i & 1 == 0 {
                            *entry = EMPTY;
                        }
                    }
                }
            }
        }
        self.generation += 1;
    }

    /// INVLPG (SDM vol. 3A 4.10.4.1: of a large page, all of its translations).
    pub(crate) fn invalidate(&mut self, linear: u64) {
        if self.large {
            return self.flush();
        }
        for access in [Access::Read, Access::Write, Access::Fetch] {
            let (entries, _) = self.parts(access);
            for bank in [0, ENTRIES] {
                let entry = &mut entries[slot(linear, bank)];
                if entry.tag == linear & !0xfff {
                    *entry = EMPTY;
                }
            }
        }
        self.generation += 1;
    }

    /// Drops every way to write to the host page at `host` without thought.
    pub(crate) fn protect(&mut self, host: u64) {
        for entry in &mut self.write {
            if entry.tag != NO_TAG && entry.tag.wrapping_add(entry.addend) == host {
                *entry = EMPTY;
            }
        }
    }
}
