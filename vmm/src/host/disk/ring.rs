//! The `io_uring` of a VM's disks: set up without interrupts to the waiting core, files and bounce
//! memory registered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::types::Timespec;
use io_uring::{IoUring, squeue};
use lockstep_perf::stamp;

use super::error::DiskError;
use crate::machine::bounce::BounceRegion;

/// `IORING_ENTER_GETEVENTS` (io_uring_enter(2)).
const GET_EVENTS: u32 = 1;
/// `IORING_ENTER_EXT_ARG`, Linux 5.11.
const EXTENDED_ARGUMENT: u32 = 8;

/// Operations that one kernel entry hands over, at most. More than two of an entry are kept back by the
/// kernel (`blk_start_plug`) until the last of them is prepared, and the storage has nothing to do
/// meanwhile: with 4 KiB writes at depth 16 for 25% of the time, with pairs for 14%, and a fifth to a
/// third more are done a second. An entry of its own for each is no faster.
const AT_ONCE: usize = 2;

/// `struct io_uring_getevents_arg`. The library's own call with a timeout submits what is queued, too;
/// here starting and waiting must stay apart.
#[repr(C)]
#[derive(Default)]
struct WaitArgument {
    signal_mask: u64,
    signal_mask_bytes: u32,
    min_wait_us: u32,
    /// Address of a [`Timespec`].
    time: u64,
}

/// A ring for direct I/O.
///
/// With cooperative task running (Linux 5.19) the kernel does not interrupt this thread to post a
/// completion: it sets a flag in the ring's memory, and posts at the thread's next entry for whatever
/// reason. The flag is a reason to ask, never one not to wait (`logchan::transport::uring` has
/// measured why). `DEFER_TASKRUN` would tie the ring to one thread, and a VM's disks change threads; of
/// requests to a disk it makes no more a second.
pub(super) struct DiskRing {
    ring: IoUring,
    cooperative: bool,
    /// Operations that are queued and not handed over.
    queued: usize,
    kernel_entries: u64,
}

impl DiskRing {
    /// A ring that holds `depth` requests.
    pub(super) fn new(depth: u32) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Ring {
            step: "setting io_uring up",
            source,
        };
        let mut builder = IoUring::builder();
        builder.setup_coop_taskrun().setup_taskrun_flag().dontfork();
        let (ring, cooperative) = match builder.build(depth) {
            Ok(ring) => (ring, true),
            // An older kernel: it interrupts this thread to post.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let mut builder = IoUring::builder();
                (builder.dontfork().build(depth).map_err(failed)?, false)
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self {
            ring,
            cooperative,
            queued: 0,
            kernel_entries: 0,
        })
    }

    /// Registers the disks' files; -1 leaves a place free.
    pub(super) fn register_files(&self, files: &[RawFd]) -> Result<(), DiskError> {
        if files.is_empty() {
            return Ok(());
        }
        self.ring
            .submitter()
            .register_files(files)
            .map_err(|source| DiskError::Ring {
                step: "registering the disks' files with io_uring",
                source,
            })
    }

    /// Registers all of `region` as buffer 0.
    ///
    /// # Errors
    /// The kernel does not: the region is larger than one buffer may be (1 GiB), or than this process
    /// may lock.
    ///
    /// # Safety
    /// The region lives until the ring is dropped.
    pub(super) unsafe fn register_memory(&self, region: &BounceRegion) -> io::Result<()> {
        let buffer = libc::iovec {
            iov_base: region.address(0, region.bytes()).cast(),
            iov_len: region.bytes() as usize,
        };
        // SAFETY: the address and length are the region's, which the caller keeps; the kernel copies
        // the array.
        unsafe { self.ring.submitter().register_buffers(&[buffer]) }
    }

    /// Times that the kernel was entered.
    pub(super) const fn kernel_entries(&self) -> u64 {
        self.kernel_entries
    }

    /// Queues an operation for the next [`DiskRing::submit`].
    ///
    /// # Safety
    /// What the operation points at stays valid until its completion is taken, and is touched by
    /// nobody else.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: as the caller says.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // There are as many places as tokens, and a token has one operation at a time.
        pushed.expect("the submission queue has a place for each token");
        self.queued += 1;
    }

    /// Hands over what is queued, waiting for nothing: a pair with each entry, so that the storage begins
    /// with the first while the next are prepared. What the kernel has no memory for stays queued, and
    /// so does everything once it is `until`, on [`stamp::now`]'s clock: it is looked at before each
    /// entry.
    pub(super) fn submit(&mut self, until: u64) -> io::Result<()> {
        while self.queued > 0 && stamp::now() < until {
            self.kernel_entries += 1;
            let count = self.queued.min(AT_ONCE) as u32;
            let flags = if self.has_unposted() { GET_EVENTS } else { 0 };
            // SAFETY: no argument is passed, so none is read; `push`'s caller has answered for the
            // operations, and that many are in the queue.
            let entered = unsafe {
                self.ring
                    .submitter()
                    .enter::<libc::sigset_t>(count, 0, flags, None)
            };
            self.queued = self.ring.submission().len();
            match entered {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the oldest completion that is in the ring's memory, no kernel entry.
    pub(super) fn seen(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        Some((entry.user_data(), entry.result()))
    }

    /// Whether the kernel says that it has results of which it made no completions yet.
    pub(super) fn has_unposted(&mut self) -> bool {
        // Completions that found no room in the ring are posted at an entry, too.
        let queue = self.ring.submission();
        (self.cooperative && queue.taskrun()) || queue.cq_overflow()
    }

    /// Has the kernel post its results, handing nothing over.
    pub(super) fn post(&mut self) -> io::Result<()> {
        self.kernel_entries += 1;
        // SAFETY: no argument is passed, so none is read; nothing is submitted.
        let entered = unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(0, 0, GET_EVENTS, None)
        };
        ignore_transient(entered)
    }

    /// Waits for a completion, or until time is up, handing nothing over.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        if !self.ring.completion().is_empty() {
            return Ok(());
        }
        self.kernel_entries += 1;
        let time = Timespec::from(timeout);
        let argument = WaitArgument {
            time: (&raw const time).addr() as u64,
            ..WaitArgument::default()
        };
        // SAFETY: the argument is what GETEVENTS with EXT_ARG reads, its size is passed along, and it
        // and the time that it points at live until the call returns; nothing is submitted.
        let entered = unsafe {
            self.ring
                .submitter()
                .enter(0, 1, GET_EVENTS | EXTENDED_ARGUMENT, Some(&argument))
        };
        ignore_transient(entered)
    }

    /// Operations that are queued and not handed over.
    pub(super) const fn queued(&self) -> usize {
        self.queued
    }
}

impl AsFd for DiskRing {
    /// Readable when a completion is there.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

/// Time is up, a signal, or no memory at the moment: the caller looks and comes again.
fn ignore_transient(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Ok(_) => Ok(()),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}
