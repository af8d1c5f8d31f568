//! The cursor protocol of both sides: arithmetic and orderings, no memory but the control page.
//!
//! Each side owns one cursor, keeps the truth about it in its own memory and never reads it back;
//! of the other's cursor it keeps the last good value and looks again only when that does not do.

use std::cell::Cell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::atomics::{Atom, Atomics};
use crate::control::Control;
use crate::error::{Cursor, CursorFault};
use crate::wait::{self, Waited};

/// Both cursors as shared memory has them when a side is opened.
fn opening<A: Atomics>(control: &Control<A>, capacity: u64) -> Result<(u64, u64), CursorFault> {
    // `released` first: whichever of the two moves meanwhile, the producer never gets more than the
    // capacity ahead of a value of `released` that it, and so we, have seen. Acquire pairs with the
    // Release in `ConsumerCursor::release` and `ProducerCursor::publish`.
    let released = control.released.0.load(Acquire);
    let committed = control.committed.0.load(Acquire);
    if committed.wrapping_sub(released) > capacity {
        return Err(CursorFault {
            cursor: Cursor::Committed,
            found: committed,
            low: released,
            high: released.wrapping_add(capacity),
        });
    }
    Ok((committed, released))
}

/// The producer's half.
pub(crate) struct ProducerCursor {
    capacity: u64,
    committed: u64,
    /// Where what is reserved ends. A cursor and not a length, so that a commit leaves it alone: while
    /// the cache lines of its bytes are on their way, the producer's speed is that of its store buffer.
    reserved_to: u64,
    /// The last good value seen; the truth is at or beyond it.
    released: Cell<u64>,
    fault: Cell<Option<CursorFault>>,
}

impl ProducerCursor {
    pub(crate) fn open<A: Atomics>(
        control: &Control<A>,
        capacity: u64,
    ) -> Result<Self, CursorFault> {
        let (committed, released) = opening(control, capacity)?;
        Ok(Self {
            capacity,
            committed,
            reserved_to: committed,
            released: Cell::new(released),
            fault: Cell::new(None),
        })
    }

    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    pub(crate) fn fault(&self) -> Option<CursorFault> {
        self.fault.get()
    }

    /// Free bytes as far as is known without looking.
    #[inline]
    pub(crate) fn known_free(&self) -> u64 {
        self.capacity - self.committed.wrapping_sub(self.released.get())
    }

    /// Free bytes, looking at the consumer's cursor.
    pub(crate) fn free<A: Atomics>(&self, control: &Control<A>) -> u64 {
        // Acquire pairs with the Release in `ConsumerCursor::release`: what the consumer read before
        // it released is read before we write over it.
        let found = control.released.0.load(Acquire);
        let known = self.released.get();
        if self.fault.get().is_none() {
            if found.wrapping_sub(known) <= self.committed.wrapping_sub(known) {
                self.released.set(found);
            } else {
                self.fault.set(Some(CursorFault {
                    cursor: Cursor::Released,
                    found,
                    low: known,
                    high: self.committed,
                }));
            }
        }
        self.known_free()
    }

    /// Reserves `len` bytes, or says how many are free.
    #[inline]
    pub(crate) fn reserve<A: Atomics>(
        &mut self,
        control: &Control<A>,
        len: u64,
    ) -> Result<(), u64> {
        if len > self.known_free() {
            let free = self.free(control);
            if len > free {
                return Err(free);
            }
        }
        self.reserved_to = self.committed.wrapping_add(len);
        Ok(())
    }

    /// Publishes the next `len` reserved bytes; wakes nobody.
    #[inline]
    pub(crate) fn publish<A: Atomics>(&mut self, control: &Control<A>, len: u64) {
        let reserved = self.reserved_to.wrapping_sub(self.committed);
        assert!(
            len <= reserved,
            "commit of {len} bytes, {reserved} are reserved"
        );
        self.committed = self.committed.wrapping_add(len);
        // Release pairs with the Acquire in `ConsumerCursor::look`: the bytes are there before the
        // cursor says so.
        control.committed.0.store(self.committed, Release);
    }

    /// Wakes the consumer if it sleeps.
    #[inline]
    pub(crate) fn wake_consumer<A: Atomics>(&self, control: &Control<A>) {
        wait::wake::<A>(&control.consumer_sleep.0);
    }

    /// Whether the ring is sealed: exact for everything published before the call.
    #[inline]
    pub(crate) fn sealed<A: Atomics>(&self, control: &Control<A>) -> bool {
        // Pairs with the heavy fence in `ConsumerCursor::seal`. Ours stands between our store of
        // `committed` and this load of `sealed`, theirs between their store of `sealed` and their
        // load of `committed`: at least one of the two loads sees the other's store. The sealer pays
        // for both, once in the life of the ring; we ask at every output.
        A::light_fence();
        // Acquire pairs with the Release in `seal`, though nothing is read on the strength of it.
        control.sealed.0.load(Acquire) != 0
    }

    /// What a wait for `len` free bytes finds now.
    pub(crate) fn look_free<A: Atomics>(&self, control: &Control<A>, len: u64) -> Option<Waited> {
        if len <= self.free(control) {
            Some(Waited::Ready)
        } else if self.fault.get().is_some() {
            Some(Waited::Corrupt)
        } else if control.sealed.0.load(Acquire) != 0 {
            // Whoever seals goes live or halts, and will not make room.
            Some(Waited::Sealed)
        } else {
            None
        }
    }
}

/// The consumer's half.
pub(crate) struct ConsumerCursor {
    capacity: u64,
    released: u64,
    /// The last good value seen; the truth is at or beyond it.
    committed: Cell<u64>,
    /// Whether `committed` no longer follows the producer: sealed or faulty.
    frozen: Cell<bool>,
    fault: Cell<Option<CursorFault>>,
}

impl ConsumerCursor {
    pub(crate) fn open<A: Atomics>(
        control: &Control<A>,
        capacity: u64,
    ) -> Result<Self, CursorFault> {
        // Before the cursors, so that a ring sealed by an earlier consumer ends where we find it.
        // Acquire pairs with the Release in `seal`.
        let sealed = control.sealed.0.load(Acquire) != 0;
        let (committed, released) = opening(control, capacity)?;
        Ok(Self {
            capacity,
            released,
            committed: Cell::new(committed),
            frozen: Cell::new(sealed),
            fault: Cell::new(None),
        })
    }

    pub(crate) fn released(&self) -> u64 {
        self.released
    }

    pub(crate) fn fault(&self) -> Option<CursorFault> {
        self.fault.get()
    }

    /// The committed cursor as far as is known without looking.
    #[inline]
    pub(crate) fn known(&self) -> u64 {
        self.committed.get()
    }

    /// The committed cursor, looking at the producer's.
    #[inline]
    pub(crate) fn look<A: Atomics>(&self, control: &Control<A>) -> u64 {
        // Acquire pairs with the Release in `ProducerCursor::publish`: the bytes below it are there.
        let found = control.committed.0.load(Acquire);
        let known = self.committed.get();
        if found == known || self.frozen.get() {
            return known;
        }
        // Between what was seen before and a full ring.
        let most = self.capacity - known.wrapping_sub(self.released);
        if found.wrapping_sub(known) <= most {
            self.committed.set(found);
            found
        } else {
            self.frozen.set(true);
            self.fault.set(Some(CursorFault {
                cursor: Cursor::Committed,
                found,
                low: known,
                high: known.wrapping_add(most),
            }));
            known
        }
    }

    /// Gives the next `len` bytes back; wakes the producer if it sleeps.
    #[inline]
    pub(crate) fn release<A: Atomics>(&mut self, control: &Control<A>, len: u64) {
        let unreleased = self.committed.get().wrapping_sub(self.released);
        assert!(
            len <= unreleased,
            "release of {len} bytes, {unreleased} were seen committed"
        );
        self.released = self.released.wrapping_add(len);
        // Release pairs with the Acquire in `ProducerCursor::free`: our reads of these bytes are
        // done before the producer may write them again.
        control.released.0.store(self.released, Release);
        wait::wake::<A>(&control.producer_sleep.0);
    }

    /// Seals the ring and returns where the log ends: nothing beyond will be shown any more, and a
    /// producer that commits beyond it finds the ring sealed.
    pub(crate) fn seal<A: Atomics>(&mut self, control: &Control<A>) -> u64 {
        // Release pairs with the Acquire in `ProducerCursor::sealed`.
        control.sealed.0.store(1, Release);
        // Pairs with the light fence in `ProducerCursor::sealed`.
        A::heavy_fence();
        let end = self.look(control);
        self.frozen.set(true);
        // A producer that waits for room waits in vain from here on.
        wait::wake::<A>(&control.producer_sleep.0);
        end
    }

    /// What a wait for bytes beyond `beyond` finds now.
    #[inline]
    pub(crate) fn look_beyond<A: Atomics>(
        &self,
        control: &Control<A>,
        beyond: u64,
    ) -> Option<Waited> {
        let committed = self.look(control);
        // Both lie within one capacity of `released`, so their distance says which is ahead.
        if (committed.wrapping_sub(beyond) as i64) > 0 {
            Some(Waited::Ready)
        } else if self.fault.get().is_some() {
            Some(Waited::Corrupt)
        } else if self.frozen.get() {
            Some(Waited::Sealed)
        } else {
            None
        }
    }
}

/// How full a ring is and whether it is sealed, for display: the cursors as they lie there.
pub(crate) fn glance<A: Atomics>(control: &Control<A>) -> (u64, u64, bool) {
    // Relaxed: nothing is read on the strength of these.
    let released = control.released.0.load(Relaxed);
    let committed = control.committed.0.load(Relaxed);
    (committed, released, control.sealed.0.load(Relaxed) != 0)
}
