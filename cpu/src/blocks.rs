//! Decoded blocks, found by where their bytes lie in physical memory.
//!
//! A block never leaves its page, except that an instruction which crosses a page end is a block by
//! itself and names its second page. Links go only between blocks of one page, so a page's blocks
//! can be dropped together without anything pointing at them from outside. Whatever leaves the page
//! looks its successor up by physical address, through the translation cache for fetching: so what a
//! jump finds never depends on how the run that led to it was cut. A direct branch to another page
//! remembers what it found there last, as a guess to be checked, not as a link.
//!
//! Blocks live in one arena, each in one piece: header, ops, exit. Memory of dropped blocks stays as
//! it is until the arena is full and starts anew, which happens only in a look-up, when no block runs;
//! so a block may drop itself.
//!
//! A page that holds decoded code is marked, in units of 64 bytes; writes to marked pages take the
//! slow path, and those to marked units drop the page's blocks.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;

use crate::core::{CodeSize, Core};
use crate::op::{At, Flow, Op};

/// Most ops of a block, the ending one included.
pub(crate) const MAX_OPS: usize = 48;
const BUCKETS: usize = 1 << 16;
/// Bytes of decoded code kept; beyond, the cache starts anew (a bound for hostile guests).
const ARENA: usize = 64 << 20;
/// Blocks start at cache lines: header and first op share one.
const ALIGN: usize = 64;
/// No page frame: beyond what the CPU model can address.
const NONE: u32 = u32::MAX;
/// The key of what is no block any more.
const NO_KEY: u64 = u64::MAX;

/// Where an exit leads.
pub(crate) type Link = NonNull<Block>;

/// A run of decoded instructions with one entry: this header, [`Op`]s, an [`Exit`].
#[repr(C)]
pub(crate) struct Block {
    /// Instructions (at least one).
    pub count: u16,
    ops: u16,
    /// Frame of the second page, of an instruction that crosses into it.
    second: u32,
    pub key: u64,
    next_in_bucket: Option<NonNull<Block>>,
    next_in_page: Option<NonNull<Block>>,
}

/// What stands behind a block's last op.
#[repr(C)]
pub(crate) struct Exit {
    /// Successors in the same page: behind, and the branch target. The stub where none is known.
    pub links: [Link; 2],
    /// What a direct branch out of the page led to last, if a block of that key is still there.
    guess: Link,
    /// Physical address of the block's first byte.
    physical: u64,
}

const _: () = assert!(size_of::<Block>() == 32 && size_of::<Exit>() == size_of::<Op>());

impl Block {
    /// The first op.
    #[inline(always)]
    pub(crate) fn first(block: NonNull<Block>) -> At {
        // SAFETY: `BlockCache::place` puts at least one op behind every header, in the same
        // allocation, and the arena keeps the bytes until no block runs.
        unsafe { At::first(block.add(1).cast()) }
    }

    fn exit(block: NonNull<Block>) -> NonNull<Exit> {
        // SAFETY: a pointer to a block is one into the arena, where `place` wrote the header, `ops`
        // ops behind it and the exit behind those.
        unsafe {
            block
                .add(1)
                .cast::<Op>()
                .add(block.as_ref().ops.into())
                .cast()
        }
    }

    /// The second page, of an instruction that crosses into it.
    pub(crate) fn second(block: NonNull<Block>) -> Option<u64> {
        // SAFETY: see `exit`.
        let second = unsafe { block.as_ref() }.second;
        (second != NONE).then_some(u64::from(second) << 12)
    }
}

/// A block on its way into the cache.
pub(crate) struct Draft {
    pub key: u64,
    /// The last one is never reached by [`At::next`] from behind it: `branch::fall`.
    pub ops: Vec<Op>,
    /// Instructions (at least one).
    pub count: u16,
    /// Bytes of the instructions.
    pub length: usize,
    /// The second page, of an instruction that crosses into it.
    pub second: Option<u64>,
}

impl Draft {
    fn physical(&self) -> u64 {
        self.key >> 3
    }
}

/// All decoded blocks of a CPU.
pub(crate) struct BlockCache {
    buckets: Box<[Option<NonNull<Block>>; BUCKETS]>,
    /// By page frame: which 64-byte units hold decoded code.
    marks: Vec<u64>,
    pages: BTreeMap<u64, NonNull<Block>>,
    /// By page: the pages in which instructions start that cross into it.
    crossing: BTreeMap<u64, Vec<u64>>,
    arena: NonNull<u8>,
    used: usize,
    /// What links lead to where no successor is known: a block that no budget suffices for.
    stub: NonNull<Block>,
    /// Changes when blocks are dropped.
    pub epoch: u64,
    /// For the decoder, so that it need not allocate.
    pub scratch: Vec<Op>,
}

fn layout() -> Layout {
    Layout::from_size_align(ARENA, 2 << 20).expect("a power of two, and far from the end")
}

#[inline(always)]
fn bucket(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % BUCKETS
}

fn units(physical: u64, length: usize) -> u64 {
    let first = (physical & 0xfff) / 64;
    let last = ((physical & 0xfff) + length.max(1) as u64 - 1).min(0xfff) / 64;
    (u64::MAX >> (63 - (last - first))) << first
}

impl BlockCache {
    pub(crate) fn new(memory_end: u64) -> BlockCache {
        // SAFETY: the size is not zero.
        let Some(arena) = NonNull::new(unsafe { alloc(layout()) }) else {
            handle_alloc_error(layout());
        };
        // SAFETY: the advised range is the allocation just made. Advice only: a host without huge
        // pages is slower, not wrong, so the answer does not matter.
        unsafe { libc::madvise(arena.as_ptr().cast(), ARENA, libc::MADV_HUGEPAGE) };
        let buckets: Box<[_]> = vec![None; BUCKETS].into_boxed_slice();
        let mut cache = BlockCache {
            buckets: buckets.try_into().expect("made with this length"),
            marks: vec![0; (memory_end >> 12) as usize + 1],
            pages: BTreeMap::new(),
            crossing: BTreeMap::new(),
            arena,
            used: 0,
            stub: arena.cast(),
            epoch: 0,
            scratch: Vec::with_capacity(MAX_OPS + 1),
        };
        cache.start_anew();
        cache
    }

    /// Empties the arena but for the stub, which is always at its start.
    fn start_anew(&mut self) {
        self.used = ALIGN;
        // SAFETY: the arena's start is aligned, large enough, and holds nothing but an old stub.
        unsafe {
            self.stub.write(Block {
                count: u16::MAX,
                ops: 0,
                second: NONE,
                key: NO_KEY,
                next_in_bucket: None,
                next_in_page: None,
            });
        }
    }

    /// Whether a link leads nowhere yet.
    #[inline(always)]
    pub(crate) fn is_stub(&self, link: Link) -> bool {
        link == self.stub
    }

    /// Whether decoded code lies in these bytes of one page.
    #[inline]
    pub(crate) fn holds_code(&self, physical: u64, length: usize) -> bool {
        self.marks
            .get((physical >> 12) as usize)
            .is_some_and(|&m| m & units(physical, length) != 0)
    }

    /// Whether decoded code lies anywhere in the page.
    #[inline]
    pub(crate) fn is_code_page(&self, physical: u64) -> bool {
        self.marks
            .get((physical >> 12) as usize)
            .is_some_and(|&m| m != 0)
    }

    /// The block of a key.
    #[inline(always)]
    pub(crate) fn find(&self, key: u64) -> Option<NonNull<Block>> {
        let mut next = self.buckets[bucket(key)];
        while let Some(block) = next {
            // SAFETY: buckets hold only blocks of the arena: `unlink` takes out what is dropped.
            let b = unsafe { block.as_ref() };
            if b.key == key {
                return Some(block);
            }
            next = b.next_in_bucket;
        }
        None
    }

    /// Takes a block in; its page becomes a code page, which the caller must make known to the write
    /// cache. Returns whether any page is newly one. Only while no block runs.
    pub(crate) fn insert(&mut self, draft: &Draft) -> (NonNull<Block>, bool) {
        let size = size_of::<Block>() + draft.ops.len() * size_of::<Op>() + size_of::<Exit>();
        if self.used + size > ARENA {
            self.clear();
        }
        let page = draft.physical() >> 12;
        let mut fresh = false;
        let first = draft
            .length
            .min(0x1000 - (draft.physical() & 0xfff) as usize);
        let mut mark = |physical: u64, length: usize| {
            let mark = &mut self.marks[(physical >> 12) as usize];
            fresh |= *mark == 0;
            *mark |= units(physical, length);
        };
        mark(draft.physical(), first);
        if let Some(second) = draft.second {
            mark(second, draft.length - first);
            self.crossing.entry(second >> 12).or_default().push(page);
        }
        let block = self.place(draft, size);
        self.buckets[bucket(draft.key)] = Some(block);
        self.pages.insert(page, block);
        (block, fresh)
    }

    /// Writes a block behind the others.
    fn place(&mut self, draft: &Draft, size: usize) -> NonNull<Block> {
        let header = Block {
            count: draft.count,
            ops: draft.ops.len() as u16,
            second: draft.second.map_or(NONE, |page| (page >> 12) as u32),
            key: draft.key,
            next_in_bucket: self.buckets[bucket(draft.key)],
            next_in_page: self.pages.get(&(draft.physical() >> 12)).copied(),
        };
        let exit = Exit {
            links: [self.stub; 2],
            guess: self.stub,
            physical: draft.physical(),
        };
        // SAFETY: `insert` made sure that `size` bytes from `used` on lie in the arena; `used` is a
        // multiple of ALIGN, which is one of every part's alignment, and no part's size breaks it.
        // Nothing else lives behind `used`.
        let block = unsafe {
            let block = self.arena.add(self.used).cast::<Block>();
            block.write(header);
            let ops = block.add(1).cast::<Op>();
            ops.copy_from_nonoverlapping(
                NonNull::from(draft.ops.as_slice()).cast(),
                draft.ops.len(),
            );
            ops.add(draft.ops.len()).cast::<Exit>().write(exit);
            block
        };
        self.used = (self.used + size).next_multiple_of(ALIGN);
        block
    }

    /// Drops the blocks of a page, and those that cross into it.
    pub(crate) fn drop_page(&mut self, physical: u64) {
        let mut todo = vec![physical >> 12];
        while let Some(page) = todo.pop() {
            self.drop_list(page);
            self.marks[page as usize] = 0;
            // Instructions that cross into this page from others go too, and with them those pages.
            todo.extend(self.crossing.remove(&page).unwrap_or_default());
        }
    }

    fn drop_list(&mut self, page: u64) {
        self.epoch += 1;
        let mut next = self.pages.remove(&page);
        while let Some(block) = next {
            self.unlink(block);
            // SAFETY: the arena keeps what was dropped. The block may be running: its handlers read
            // ops and links by value, and hold no reference while anything is dropped.
            unsafe {
                // It may finish, but not go on to others that are no longer what memory says.
                (*Block::exit(block).as_ptr()).links = [self.stub; 2];
                (*block.as_ptr()).key = NO_KEY;
                next = block.as_ref().next_in_page;
            }
        }
    }

    fn unlink(&mut self, block: NonNull<Block>) {
        // SAFETY: still in its bucket, so in the arena.
        let (key, after) = unsafe { (block.as_ref().key, block.as_ref().next_in_bucket) };
        let mut slot = &mut self.buckets[bucket(key)];
        while let Some(mut other) = *slot {
            if other == block {
                *slot = after;
                return;
            }
            // SAFETY: in a bucket, so in the arena; handlers hold no reference to headers while
            // lists are changed.
            slot = unsafe { &mut other.as_mut().next_in_bucket };
        }
    }

    /// Drops everything. Only while no block runs.
    pub(crate) fn clear(&mut self) {
        let pages: Vec<u64> = self.pages.keys().copied().collect();
        for page in pages {
            self.drop_list(page);
            self.marks[page as usize] = 0;
        }
        for page in std::mem::take(&mut self.crossing).into_keys() {
            self.marks[page as usize] = 0;
        }
        self.start_anew();
    }
}

impl Drop for BlockCache {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; blocks own nothing outside of it.
        unsafe { dealloc(self.arena.as_ptr(), layout()) };
    }
}

/// Which way a block is left at its end: an index into [`Exit::links`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Way {
    /// To the address behind.
    Behind = 0,
    /// To the target of the branch that ends it.
    Target = 1,
}

/// A way out of a block that had no link, or more instructions behind it than the slice has left.
#[derive(Clone, Copy)]
pub(crate) struct Departure {
    exit: NonNull<Exit>,
    way: Way,
    /// Distance of the successor from the block's start.
    by: u64,
}

impl Departure {
    /// Where the link leads.
    pub(crate) fn link(self) -> Link {
        // SAFETY: made by `leave_by` from the exit of a block that had just run; the arena starts
        // anew only in a look-up, which comes after this.
        unsafe { self.exit.as_ref() }.links[self.way as usize]
    }

    /// Links the two if both lie in one page and nothing but it; from one page to another, guesses. Only
    /// if no block was dropped since.
    pub(crate) fn connect(self, to: NonNull<Block>) {
        // SAFETY: nothing was dropped, so the arena has not started anew.
        let (exit, target) = unsafe { (&mut *self.exit.as_ptr(), to.as_ref().key >> 3) };
        if !in_page(exit.physical, self.by) {
            exit.guess = to;
        } else if Block::second(to).is_none() && (exit.physical ^ target) & !0xfff == 0 {
            exit.links[self.way as usize] = to;
        }
    }
}

/// Whether an address at a distance from a block's start lies in the block's page.
#[inline(always)]
fn in_page(physical: u64, by: u64) -> bool {
    (physical & 0xfff).wrapping_add(by) < 0x1000
}

/// Starts a block if the slice has enough instructions left, else answers `otherwise`.
#[inline(always)]
fn enter(c: &mut Core, block: NonNull<Block>, otherwise: impl FnOnce(&mut Core) -> Flow) -> Flow {
    // SAFETY: from a link or a bucket: in the arena.
    let count = u64::from(unsafe { block.as_ref() }.count);
    let remaining = c.remaining;
    if count <= remaining {
        c.remaining = remaining - count;
        let first = Block::first(block);
        return (first.handler)(c, first);
    }
    otherwise(c)
}

/// Goes from a block's end to its successor, `by` bytes from the block's start; RIP is there already.
#[inline(always)]
pub(crate) fn follow(c: &mut Core, exit: NonNull<Exit>, way: Way, by: u64) -> Flow {
    // SAFETY: the caller passes the exit of the block that runs.
    let next = unsafe { exit.as_ref() }.links[way as usize];
    enter(c, next, |c| leave_by(c, Departure { exit, way, by }))
}

#[inline(never)]
fn leave_by(c: &mut Core, departure: Departure) -> Flow {
    c.departure = Some(departure);
    // SAFETY: as in `follow`.
    let exit = unsafe { departure.exit.as_ref() };
    if !in_page(exit.physical, departure.by)
        && c.code_size == CodeSize::Bits64
        && let Some(page) = c.tlb.fetch_hit(c.rip(), c.bank)
    {
        let key = key(page | c.rip() & 0xfff, CodeSize::Bits64, false);
        // SAFETY: the arena keeps what was dropped, and starts anew with all exits in it.
        if unsafe { exit.guess.as_ref() }.key == key && Block::second(exit.guess).is_none() {
            return enter(c, exit.guess, |_| Flow::Direct);
        }
    }
    Flow::Direct
}

/// Goes to RIP, in 64-bit code and canonical, by way of the translation cache for fetching.
#[inline(always)]
pub(crate) fn jump(c: &mut Core) -> Flow {
    let rip = c.rip();
    if let Some(page) = c.tlb.fetch_hit(rip, c.bank)
        && let Some(block) = c.blocks.find(key(page | rip & 0xfff, c.code_size, false))
        && Block::second(block).is_none()
    {
        return enter(c, block, |_| Flow::Indirect);
    }
    Flow::Indirect
}

/// What tells blocks apart: where, in which mode, and whether it is a single instruction.
#[inline(always)]
pub(crate) fn key(physical: u64, size: CodeSize, alone: bool) -> u64 {
    physical << 3 | (size as u64) << 1 | u64::from(alone)
}
