//! Direct-mapped translation caches.
//!
//! One bank for the supervisor (CPL 0-2) and one for the user (CPL 3), because a page may be open to
//! one and closed to the other. A hit is a compare and an add: an entry holds the linear page and
//! what to add to a linear address to get the host's. Only RAM pages that need no further thought are
//! entered: not MMIO, and not pages that a debug register watches. An entry for writing to a page
//! that holds decoded code stays, but is marked, so that handlers miss; the slow path finds it. So
//! everything that needs thought misses, and what decoding does changes no entry's presence.

/// Entries of one bank.
pub(crate) const ENTRIES: usize = 1024;
/// A tag that no page-aligned address equals.
const NO_TAG: u64 = 1;
/// Marks the tag of an entry that only the slow path may use.
const CODE: u64 = 2;
/// Words of a bitmap of entries.
const WORDS: usize = 2 * ENTRIES / 64;

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
    Read = 0,
    Write = 1,
    Fetch = 2,
}

/// A translation on its way in.
#[derive(Clone, Copy)]
pub(crate) struct Insertion {
    pub bank: usize,
    /// Linear page.
    pub linear: u64,
    /// See [`Entry`].
    pub addend: u64,
    /// Physical page.
    pub physical: u64,
    /// Survives a load of CR3.
    pub global: bool,
    /// Comes from a large page (2M, 1G).
    pub large: bool,
}

/// The caches of one CPU.
pub(crate) struct Tlb {
    pub read: [Entry; 2 * ENTRIES],
    pub write: [Entry; 2 * ENTRIES],
    fetch: [Entry; 2 * ENTRIES],
    /// Physical pages of the entries for reading and writing.
    physical: [[u64; 2 * ENTRIES]; 2],
    /// Which entries of read, write, fetch hold something that a load of CR3 forgets.
    local: [[u64; WORDS]; 3],
    /// Some came from large pages: INVLPG of one drops all entries.
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
            physical: [[0; 2 * ENTRIES]; 2],
            local: [[0; WORDS]; 3],
            large: false,
        }
    }

    fn entries(&mut self, access: Access) -> &mut [Entry; 2 * ENTRIES] {
        match access {
            Access::Read => &mut self.read,
            Access::Write => &mut self.write,
            Access::Fetch => &mut self.fetch,
        }
    }

    /// Physical page of a linear address, for fetching.
    #[inline(always)]
    pub(crate) fn fetch_hit(&self, linear: u64, bank: usize) -> Option<u64> {
        let entry = &self.fetch[slot(linear, bank) % (2 * ENTRIES)];
        (entry.tag == linear & !0xfff).then_some(entry.addend)
    }

    /// Physical page of a linear address, from marked entries also.
    pub(crate) fn find(&self, access: Access, bank: usize, linear: u64) -> Option<u64> {
        let i = slot(linear, bank);
        let (entry, physical) = match access {
            Access::Read => (&self.read[i], self.physical[0][i]),
            Access::Write => (&self.write[i], self.physical[1][i]),
            Access::Fetch => return self.fetch_hit(linear, bank),
        };
        (entry.tag & !CODE == linear & !0xfff).then_some(physical)
    }

    /// Enters a translation.
    pub(crate) fn insert(&mut self, access: Access, new: Insertion) {
        let i = slot(new.linear, new.bank);
        self.entries(access)[i] = Entry {
            tag: new.linear,
            addend: new.addend,
        };
        if access != Access::Fetch {
            self.physical[access as usize][i] = new.physical;
        }
        let local = &mut self.local[access as usize][i / 64];
        *local = *local & !(1 << (i % 64)) | u64::from(!new.global) << (i % 64);
        self.large |= new.large;
    }

    /// Forgets everything, global or not.
    pub(crate) fn flush(&mut self) {
        for access in [Access::Read, Access::Write, Access::Fetch] {
            self.entries(access).fill(EMPTY);
        }
        self.local = [[0; WORDS]; 3];
        self.large = false;
    }

    /// Forgets what a load of CR3 forgets, in time that goes with how much that is.
    pub(crate) fn flush_local(&mut self) {
        for access in [Access::Read, Access::Write, Access::Fetch] {
            for word in 0..WORDS {
                let mut left = std::mem::take(&mut self.local[access as usize][word]);
                while left != 0 {
                    self.entries(access)[64 * word + left.trailing_zeros() as usize] = EMPTY;
                    left &= left - 1;
                }
            }
        }
    }

    /// INVLPG (SDM vol. 3A 4.10.4.1: of a large page, all of its translations).
    pub(crate) fn invalidate(&mut self, linear: u64) {
        if self.large {
            return self.flush();
        }
        for access in [Access::Read, Access::Write, Access::Fetch] {
            for bank in [0, ENTRIES] {
                let entry = &mut self.entries(access)[slot(linear, bank)];
                if entry.tag & !CODE == linear & !0xfff {
                    *entry = EMPTY;
                }
            }
        }
    }

    /// Marks every way to write to the host page at `host`: it holds decoded code.
    pub(crate) fn protect(&mut self, host: u64) {
        for entry in &mut self.write {
            if entry.tag != NO_TAG && (entry.tag & !CODE).wrapping_add(entry.addend) == host {
                entry.tag |= CODE;
            }
        }
    }

    /// Takes the mark off: the page holds decoded code no more.
    pub(crate) fn unprotect(&mut self, bank: usize, linear: u64) {
        self.write[slot(linear, bank)].tag &= !CODE;
    }
}
