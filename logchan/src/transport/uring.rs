//! One `io_uring` for one connection: set up for the fewest kernel entries the kernel offers, probed,
//! and entered in the three ways that the transports need.
//!
//! Measured on a two-core virtual machine (Linux 6.18, loopback, 128 B out and 48 B back, both ends
//! spinning): `DEFER_TASKRUN` costs 1.1 to 1.3 times a `send`/`recv` pair, plain submission twice as
//! much, because without cooperative task running the kernel interrupts the waiting core to post a
//! completion. With it, the kernel sets a flag in shared memory instead, and the thread that spins on
//! that flag enters the kernel once, when there is something to take.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{Napi, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, squeue};
use lockstep_ringbuf::{SpinWorth, WaitPolicy};

use super::UringError;

/// Entries of the submission queue; a channel has at most three operations under way.
const ENTRIES: u32 = 8;
/// The kernel's submission thread sleeps after this long without work.
const SQPOLL_IDLE_MS: u32 = 1;
/// Looks between two readings of the clock while spinning.
const LOOKS_PER_CLOCK: u32 = 32;

/// How completions reach the thread, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Only when the thread asks (`DEFER_TASKRUN`, Linux 6.1).
    Deferred,
    /// At the thread's next kernel entry (`COOP_TASKRUN`, Linux 5.19).
    Cooperative,
    /// A kernel thread submits.
    SqPoll,
}

/// A completion: what was asked, and the result as the kernel gives it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion {
    pub(crate) token: u64,
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

impl Completion {
    /// The result, an error being one.
    pub(crate) fn bytes(&self) -> io::Result<usize> {
        usize::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }
}

/// An `io_uring` used by one thread: the first that submits.
pub(crate) struct Uring {
    ring: IoUring,
    mode: Mode,
    enabled: bool,
    spin: SpinWorth,
    kernel_entries: u64,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// Sets a ring up, in the best mode that the kernel has.
    pub(crate) fn new(sqpoll: bool) -> Result<Self, UringError> {
        let modes: &[Mode] = if sqpoll {
            &[Mode::SqPoll]
        } else {
            &[Mode::Deferred, Mode::Cooperative]
        };
        let mut refused = None;
        for mode in modes {
            let mut builder = IoUring::builder();
            match mode {
                // Disabled until the thread that will use it enables it, and so becomes its issuer:
                // the channel is made by another thread.
                Mode::Deferred => builder
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_taskrun_flag()
                    .setup_r_disabled(),
                Mode::Cooperative => builder.setup_coop_taskrun().setup_taskrun_flag(),
                Mode::SqPoll => builder.setup_sqpoll(SQPOLL_IDLE_MS),
            };
            match builder.dontfork().build(ENTRIES) {
                Ok(ring) => {
                    let enabled = *mode != Mode::Deferred;
                    return Ok(Self {
                        ring,
                        mode: *mode,
                        enabled,
                        spin: SpinWorth::default(),
                        kernel_entries: 0,
                    });
                }
                // An older kernel does not know the flag.
                Err(source) if source.raw_os_error() == Some(libc::EINVAL) => {
                    refused = Some(source)
                }
                Err(source) => return Err(UringError::Setup { source }),
            }
        }
        let source = refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL));
        Err(UringError::Setup { source })
    }

    /// Checks that the kernel has the operation `code`.
    pub(crate) fn require(
        &self,
        code: u8,
        operation: &'static str,
        remedy: &'static str,
    ) -> Result<(), UringError> {
        let mut probe = Probe::new();
        self.ring
            .submitter()
            .register_probe(&mut probe)
            .map_err(|source| UringError::Register {
                step: "asking io_uring for its operations",
                source,
            })?;
        if probe.is_supported(code) {
            return Ok(());
        }
        let highest = (0..=u8::MAX)
            .rev()
            .find(|code| probe.is_supported(*code))
            .unwrap_or(0);
        Err(UringError::Lacks {
            operation,
            highest,
            remedy,
        })
    }

    /// Registers `len` bytes at `start` as buffer 0. `false` if the kernel does not let this process
    /// pin that much memory: the caller does without.
    ///
    /// # Safety
    /// The bytes stay mapped until the ring is dropped.
    pub(crate) unsafe fn register_memory(
        &self,
        start: *mut u8,
        len: usize,
    ) -> Result<bool, UringError> {
        let buffer = libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        };
        // SAFETY: the caller keeps the memory mapped; the kernel copies the array.
        match unsafe { self.ring.submitter().register_buffers(&[buffer]) } {
            Ok(()) => Ok(true),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOMEM | libc::EPERM | libc::EOPNOTSUPP)
                ) =>
            {
                Ok(false)
            }
            Err(source) => Err(UringError::Register {
                step: "registering the log ring with io_uring",
                source,
            }),
        }
    }

    /// Busy-polls the network device's queues for up to `us` microseconds in each wait, where the
    /// kernel can (Linux 6.9).
    pub(crate) fn busy_poll(&self, us: u32) -> Result<(), UringError> {
        let mut napi = Napi::new().set_busy_poll_timeout(us);
        self.ring
            .submitter()
            .register_napi(&mut napi)
            .map_err(|source| UringError::Register {
                step: "busy polling through io_uring (needs Linux 6.9; set busy-poll-us to 0)",
                source,
            })
    }

    pub(crate) const fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) const fn kernel_entries(&self) -> u64 {
        self.kernel_entries
    }

    /// Queues an operation for the next entry.
    ///
    /// # Safety
    /// What the operation points at stays valid and untouched until its completion is taken.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: as the caller says.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // A connection has at most three operations under way, the queue eight places, and each
        // submission empties it.
        pushed.expect("the submission queue has more places than a channel has operations");
    }

    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Submits what is queued, waiting for nothing.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.enable()?;
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.kernel_entries += 1;
        retry(|| self.ring.submit()).map(drop)
    }

    /// Whether the kernel says that it has something for this thread of which it did not yet make a
    /// completion. It may say so of work that is done: it sets the flag behind the work, and a thread
    /// that takes the work in between clears the flag too early. So this is a reason to ask, never
    /// one not to wait.
    fn task_work(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    /// Whether a completion can be taken without asking the kernel.
    pub(crate) fn has_completion(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether a completion can be taken; asks the kernel if it has a reason to.
    pub(crate) fn ready(&mut self) -> io::Result<bool> {
        if self.task_work() {
            self.run_task_work()?;
        }
        Ok(self.has_completion())
    }

    /// Submits what is queued and turns what the kernel has into completions, waiting for nothing.
    /// No system call if there is neither.
    pub(crate) fn run_task_work(&mut self) -> io::Result<()> {
        if !self.task_work() {
            return self.submit();
        }
        self.enable()?;
        self.kernel_entries += 1;
        // With the kernel's flag set, this asks for its events too.
        retry(|| self.ring.submit()).map(drop)
    }

    /// Submits what is queued and waits for `want` completions, or until time is up.
    pub(crate) fn submit_and_wait(&mut self, want: usize, timeout: Duration) -> io::Result<()> {
        self.enable()?;
        let time = Timespec::from(timeout);
        let args = SubmitArgs::new().timespec(&time);
        self.kernel_entries += 1;
        match self.ring.submitter().submit_with_args(want, &args) {
            Ok(_) => Ok(()),
            // Time is up, or a signal; the caller looks and comes again.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Waits as `policy` says until a completion is there or time is up; what is queued is submitted
    /// first. `want` completions end a sleep. Where spinning before a sleep has been in vain for a
    /// while, it sleeps at once.
    pub(crate) fn wait(
        &mut self,
        want: usize,
        policy: &WaitPolicy,
        timeout: Duration,
    ) -> io::Result<()> {
        let spin = match policy {
            WaitPolicy::Spin => timeout,
            WaitPolicy::SpinThenBlock { spin } if self.spin.worth() => (*spin).min(timeout),
            WaitPolicy::SpinThenBlock { .. } | WaitPolicy::Block => Duration::ZERO,
        };
        let start = lockstep_perf::stamp::now();
        if !spin.is_zero() {
            self.submit()?;
            let end = start.saturating_add(spin.as_nanos() as u64);
            while lockstep_perf::stamp::now() < end {
                for _ in 0..LOOKS_PER_CLOCK {
                    if self.ready()? {
                        self.spin.ended(0, 0);
                        return Ok(());
                    }
                    std::hint::spin_loop();
                }
            }
        }
        let left = timeout.saturating_sub(Duration::from_nanos(
            lockstep_perf::stamp::now().saturating_sub(start),
        ));
        let waited = if left.is_zero() {
            self.run_task_work()
        } else {
            self.submit_and_wait(want, left)
        };
        if let WaitPolicy::SpinThenBlock { spin } = policy {
            let took = lockstep_perf::stamp::now().saturating_sub(start);
            self.spin.ended(took, spin.as_nanos() as u64);
        }
        waited
    }

    /// Takes the oldest completion.
    pub(crate) fn completion(&mut self) -> Option<Completion> {
        let entry: cqueue::Entry = self.ring.completion().next()?;
        Some(Completion {
            token: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        })
    }
}

impl AsFd for Uring {
    /// Readable when a completion is there.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

/// Repeats a system call that a signal interrupted.
fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
