//! Decoded blocks, found by where their bytes lie in physical memory.
//!
//! A block never leaves its page, except that an instruction which crosses a page end is a block by
//! itself and names its second page. Links go only between blocks of one page, so a page's blocks
//! can be dropped together without anything pointing at them from outside but the jump cache, whose
//! entries carry the generation of the translation caches.
//!
//! A page that holds decoded code is marked, in units of 64 bytes; writes to marked pages take the
//! slow path, and those to marked units drop the page's blocks.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use crate::op::Op;

/// Most ops of a block, the ending one included.
pub(crate) const MAX_OPS: usize = 48;
const BUCKETS: usize = 1 << 16;
const JUMPS: usize = 1 << 12;
/// Blocks kept; one more and the cache starts anew (a bound for hostile guests).
const MAX_BLOCKS: usize = 1 << 18;

/// A run of decoded instructions with one entry.
pub(crate) struct Block {
    pub ops: Vec<Op>,
    /// Instructions (at least one).
    pub count: u64,
    pub key: u64,
    pub physical: u64,
    /// Bytes of the instructions.
    pub length: u32,
    /// The second page, of an instruction that crosses into it.
    pub second: Option<u64>,
    /// Successors in the same page: behind, and the branch target.
    pub links: [Option<NonNull<Block>>; 2],
    next_in_bucket: Option<NonNull<Block>>,
    next_in_page: Option<NonNull<Block>>,
}

impl Block {
    pub(crate) fn new(key: u64, physical: u64) -> Block {
        Block {
            ops: Vec::with_capacity(8),
            count: 0,
            key,
            physical,
            length: 0,
            second: None,
            links: [None; 2],
            next_in_bucket: None,
            next_in_page: None,
        }
    }
}

#[derive(Clone, Copy)]
struct Jump {
    linear: u64,
    context: u64,
    block: Option<NonNull<Block>>,
}

/// All decoded blocks of a CPU.
pub(crate) struct BlockCache {
    buckets: Vec<Option<NonNull<Block>>>,
    jumps: Vec<Jump>,
    /// By page frame: which 64-byte units hold decoded code.
    marks: Vec<u64>,
    pages: BTreeMap<u64, NonNull<Block>>,
    /// By page: the pages in which instructions start that cross into it.
    crossing: BTreeMap<u64, Vec<u64>>,
    /// Dropped, but perhaps still running.
    buried: Vec<NonNull<Block>>,
    count: usize,
}

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
        BlockCache {
            buckets: vec![None; BUCKETS],
            jumps: vec![
                Jump {
                    linear: 0,
                    context: u64::MAX,
                    block: None
                };
                JUMPS
            ],
            marks: vec![0; (memory_end >> 12) as usize + 1],
            pages: BTreeMap::new(),
            crossing: BTreeMap::new(),
            buried: Vec::new(),
            count: 0,
        }
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

    /// The block that a jump to `linear` in `context` reached before.
    #[inline(always)]
    pub(crate) fn jump(&self, linear: u64, context: u64) -> Option<NonNull<Block>> {
        let jump = &self.jumps[(linear ^ (linear >> 12)) as usize % JUMPS];
        if jump.linear == linear && jump.context == context {
            jump.block
        } else {
            None
        }
    }

    pub(crate) fn remember_jump(&mut self, linear: u64, context: u64, block: NonNull<Block>) {
        self.jumps[(linear ^ (linear >> 12)) as usize % JUMPS] = Jump {
            linear,
            context,
            block: Some(block),
        };
    }

    pub(crate) fn find(&self, key: u64) -> Option<NonNull<Block>> {
        let mut next = self.buckets[bucket(key)];
        while let Some(block) = next {
            // SAFETY: buckets hold only live blocks: `unlink` takes out what is buried.
            let b = unsafe { block.as_ref() };
            if b.key == key {
                return Some(block);
            }
            next = b.next_in_bucket;
        }
        None
    }

    /// Takes a block in; its page becomes a code page, which the caller must make known to the write
    /// cache. Returns whether any page is newly one.
    pub(crate) fn insert(&mut self, block: Block) -> (NonNull<Block>, bool) {
        if self.count >= MAX_BLOCKS {
            self.clear();
        }
        let mut block = Box::new(block);
        let slot = &mut self.buckets[bucket(block.key)];
        block.next_in_bucket = *slot;
        let page = block.physical >> 12;
        block.next_in_page = self.pages.get(&page).copied();
        let mut fresh = false;
        let first = (block.length as usize).min(0x1000 - (block.physical & 0xfff) as usize);
        let mut mark = |physical: u64, length: usize| {
            let mark = &mut self.marks[(physical >> 12) as usize];
            fresh |= *mark == 0;
            *mark |= units(physical, length);
        };
        mark(block.physical, first);
        if let Some(second) = block.second {
            mark(second, block.length as usize - first);
            self.crossing.entry(second >> 12).or_default().push(page);
        }
        let pointer = NonNull::from(Box::leak(block));
        *slot = Some(pointer);
        self.pages.insert(page, pointer);
        self.count += 1;
        (pointer, fresh)
    }

    /// Drops the blocks of a page, and those that cross into it. The caller moves the generation on.
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
        let mut next = self.pages.remove(&page);
        while let Some(block) = next {
            self.unlink(block);
            // SAFETY: taken out of its lists, not yet freed.
            next = unsafe { block.as_ref() }.next_in_page;
            self.buried.push(block);
            self.count -= 1;
        }
    }

    fn unlink(&mut self, block: NonNull<Block>) {
        // SAFETY: still in its bucket, so alive.
        let (key, after) = unsafe { (block.as_ref().key, block.as_ref().next_in_bucket) };
        let mut slot = &mut self.buckets[bucket(key)];
        while let Some(mut other) = *slot {
            if other == block {
                *slot = after;
                return;
            }
            // SAFETY: in a bucket, so alive; no handler runs on a block while lists are changed
            // through this pointer (handlers read ops, not list fields).
            slot = unsafe { &mut other.as_mut().next_in_bucket };
        }
    }

    /// Drops everything. The caller moves the generation on.
    pub(crate) fn clear(&mut self) {
        let pages: Vec<u64> = self.pages.keys().copied().collect();
        for page in pages {
            self.drop_list(page);
        }
        self.crossing.clear();
        self.jumps.fill(Jump {
            linear: 0,
            context: u64::MAX,
            block: None,
        });
        self.marks.fill(0);
    }

    /// Frees what was dropped. Only while no block runs.
    #[inline]
    pub(crate) fn reap(&mut self) {
        if !self.buried.is_empty() {
            self.free_buried();
        }
    }

    #[cold]
    fn free_buried(&mut self) {
        for block in self.buried.drain(..) {
            // SAFETY: came from `Box::leak` in `insert`, is in no list and no valid link any more
            // (see the module's page), and is buried once.
            drop(unsafe { Box::from_raw(block.as_ptr()) });
        }
    }
}

impl Drop for BlockCache {
    fn drop(&mut self) {
        self.clear();
        self.free_buried();
    }
}
