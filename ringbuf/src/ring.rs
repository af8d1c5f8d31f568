//! A ring, as one process holds it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::atomics::Native;
use crate::consumer::Consumer;
use crate::cursor::{ConsumerCursor, ProducerCursor, glance};
use crate::error::{RingError, Side};
use crate::mapping::{self, Mapping};
use crate::producer::Producer;
use crate::wait;

/// What can be chosen about a new ring's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingOptions {
    /// Memory in reserved huge pages of 2 MiB (`vm.nr_hugepages`; one for the control page, then
    /// the capacity, which is at least 2 MiB). Saves translation misses on large rings.
    pub huge_pages: bool,
}

/// A ring of bytes in shared memory. Cloning gives another handle to the same attachment; the memory
/// is unmapped when the last handle, the producer and the consumer are gone.
#[derive(Clone)]
pub struct Ring {
    attachment: Arc<Attachment>,
}

/// The memory, and which ends of it are handed out in this process.
pub(crate) struct Attachment {
    pub(crate) mapping: Mapping,
    producer_taken: AtomicBool,
    consumer_taken: AtomicBool,
}

impl Attachment {
    fn taken(&self, side: Side) -> &AtomicBool {
        match side {
            Side::Producer => &self.producer_taken,
            Side::Consumer => &self.consumer_taken,
        }
    }
}

/// One end, handed out; dropped, it can be handed out again.
pub(crate) struct Claim {
    attachment: Arc<Attachment>,
    side: Side,
}

impl Claim {
    fn new(attachment: &Arc<Attachment>, side: Side) -> Result<Self, RingError> {
        // Acquire pairs with the Release in `drop`: what the previous holder did to the ring is done.
        if attachment.taken(side).swap(true, Ordering::Acquire) {
            return Err(RingError::Taken { side });
        }
        Ok(Self {
            attachment: Arc::clone(attachment),
            side,
        })
    }

    #[inline]
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.attachment.mapping
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.attachment
            .taken(self.side)
            .store(false, Ordering::Release);
    }
}

impl Ring {
    /// Makes a new, empty ring of `capacity` bytes, a power of two and at least a page, all of it
    /// allocated and mapped on return.
    ///
    /// # Errors
    /// [`RingError::Capacity`], and one variant for each system call that may refuse.
    pub fn create(capacity: usize, options: RingOptions) -> Result<Self, RingError> {
        register()?;
        Ok(Self::of(mapping::create(capacity, options.huge_pages)?))
    }

    /// Attaches the ring behind `fd`, which came from [`Ring::fd`] of the process that created it.
    ///
    /// # Errors
    /// Whatever makes the file unfit: it is no memfd ([`RingError::NoMemfd`]), can change its size
    /// ([`RingError::NotSealed`]), is no ring ([`RingError::Magic`]), one of another version
    /// ([`RingError::Version`]), or contradicts itself ([`RingError::Size`], [`RingError::Sparse`]).
    pub fn attach(fd: OwnedFd) -> Result<Self, RingError> {
        register()?;
        Ok(Self::of(mapping::attach(fd)?))
    }

    fn of(mapping: Mapping) -> Self {
        Self {
            attachment: Arc::new(Attachment {
                mapping,
                producer_taken: AtomicBool::new(false),
                consumer_taken: AtomicBool::new(false),
            }),
        }
    }

    /// The memory file, to pass to the other process (inherited, or as `SCM_RIGHTS`).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.attachment.mapping.fd().as_fd()
    }

    /// Bytes that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.attachment.mapping.capacity()
    }

    /// Where the data area begins: [`Ring::mapped_len`] bytes, for registering with `io_uring`. Valid
    /// while any handle to this attachment lives. Which of the bytes may be touched, and when, is for
    /// the producer's reservation and the consumer's cursor to say.
    #[must_use]
    pub fn data_ptr(&self) -> *mut u8 {
        self.attachment.mapping.at(0).as_ptr()
    }

    /// Bytes mapped from [`Ring::data_ptr`] on: twice the capacity.
    #[must_use]
    pub fn mapped_len(&self) -> usize {
        2 * self.capacity()
    }

    /// The address of the byte with number `cursor`; that one and the `capacity - 1` behind it are
    /// contiguous. Rules as for [`Ring::data_ptr`].
    #[must_use]
    pub fn ptr_at(&self, cursor: u64) -> *mut u8 {
        self.attachment.mapping.at(cursor).as_ptr()
    }

    /// The producing end. Across processes it is for the users to see to it that there is one.
    ///
    /// # Errors
    /// [`RingError::Taken`] while this attachment's producer lives; [`RingError::Cursors`].
    pub fn producer(&self) -> Result<Producer, RingError> {
        let claim = Claim::new(&self.attachment, Side::Producer)?;
        let cursor =
            ProducerCursor::open(self.attachment.mapping.control(), self.capacity() as u64)?;
        Ok(Producer::new(claim, cursor))
    }

    /// The consuming end. Across processes it is for the users to see to it that there is one.
    ///
    /// # Errors
    /// [`RingError::Taken`] while this attachment's consumer lives; [`RingError::Cursors`].
    pub fn consumer(&self) -> Result<Consumer, RingError> {
        let claim = Claim::new(&self.attachment, Side::Consumer)?;
        let cursor =
            ConsumerCursor::open(self.attachment.mapping.control(), self.capacity() as u64)?;
        Ok(Consumer::new(claim, cursor))
    }

    /// Wakes the consumer if it sleeps, for another reason than a commit: see
    /// [`Consumer::wait_committed_unless`].
    pub fn wake_consumer(&self) {
        wait::wake::<Native>(&self.attachment.mapping.control().consumer_sleep.0);
    }

    /// Bytes committed and not yet released, for display: a glance from outside, unchecked but for
    /// being no more than the capacity.
    #[must_use]
    pub fn fill(&self) -> usize {
        let (committed, released, _) = glance::<Native>(self.attachment.mapping.control());
        (committed.wrapping_sub(released) as usize).min(self.capacity())
    }

    /// Whether the ring is sealed, for display. What a producer must ask is [`Producer::sealed`].
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        glance::<Native>(self.attachment.mapping.control()).2
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("capacity", &self.capacity())
            .field("fill", &self.fill())
            .field("sealed", &self.is_sealed())
            .finish_non_exhaustive()
    }
}

fn register() -> Result<(), RingError> {
    Native::register().map_err(|source| RingError::Membarrier { source })
}
