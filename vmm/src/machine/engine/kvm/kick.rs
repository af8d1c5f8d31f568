//! Ending a KVM_RUN from another thread, without a race.
//!
//! The kick signal is blocked in the vCPU's thread except while the kernel executes the guest
//! (KVM_SET_SIGNAL_MASK). So a signal that comes just before KVM_RUN is not lost: it stays pending
//! and ends that KVM_RUN at once. The vCPU's thread takes it back with `sigtimedwait`; no handler
//! runs.

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use kvm_ioctls::VcpuFd;

use super::ioctl;

/// No thread runs the vCPU.
const NOBODY: i32 = 0;

thread_local! {
    static THREAD_ID: i32 = rustix::thread::gettid().as_raw_nonzero().get();
}

#[derive(Debug, Default)]
struct Shared {
    /// A kick that has not been answered.
    requested: AtomicBool,
    /// Kernel id of the thread inside `run`, or [`NOBODY`].
    thread: AtomicI32,
}

/// Ends the engine's `run` early, or its next one if it is not running. Usable from any thread.
#[derive(Debug, Clone)]
pub struct Kicker {
    shared: Arc<Shared>,
}

impl Kicker {
    /// Has `run` return [`super::super::Stop::Kicked`] soon. Several kicks before it does count as one.
    pub fn kick(&self) {
        // Pairs with `KickTarget::enter`: it stores `thread` and then looks at `requested`. All four
        // are SeqCst, so either it sees this request or the load below sees its thread.
        self.shared.requested.store(true, Ordering::SeqCst);
        let thread = self.shared.thread.load(Ordering::SeqCst);
        if thread != NOBODY {
            // SAFETY: no memory is involved. If that thread has left `run` or ended by now, the
            // signal stays pending in it, or is refused, or reaches a newer thread of this process,
            // where it meets the empty handler.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal());
            }
        }
    }
}

/// The vCPU's side.
#[derive(Debug)]
pub struct KickTarget {
    shared: Arc<Shared>,
    /// The thread whose signal mask is prepared, and KVM's with it.
    prepared: i32,
}

impl KickTarget {
    /// A target that nobody has kicked, and the handle to do so.
    pub fn new() -> (Self, Kicker) {
        let shared = Arc::new(Shared::default());
        let kicker = Kicker {
            shared: Arc::clone(&shared),
        };
        let target = Self {
            shared,
            prepared: NOBODY,
        };
        (target, kicker)
    }

    /// Another handle.
    pub fn kicker(&self) -> Kicker {
        Kicker {
            shared: Arc::clone(&self.shared),
        }
    }

    /// This thread is about to run the vCPU; kicks find it from here on.
    ///
    /// # Errors
    /// The host refused to set a signal mask.
    pub fn enter(&mut self, vcpu: &VcpuFd) -> io::Result<()> {
        let thread = THREAD_ID.with(|id| *id);
        if self.prepared != thread {
            ioctl::set_signal_mask(vcpu, block_kick_signal()?)?;
            self.prepared = thread;
        }
        // Pairs with `Kicker::kick`, see there; `is_requested` does the load.
        self.shared.thread.store(thread, Ordering::SeqCst);
        Ok(())
    }

    /// This thread no longer runs the vCPU.
    pub fn leave(&self) {
        self.shared.thread.store(NOBODY, Ordering::SeqCst);
    }

    /// Takes the request, if there is one.
    pub fn take_request(&self) -> bool {
        // The load first keeps the cache line shared in the usual case. Pairs with `Kicker::kick`.
        self.shared.requested.load(Ordering::SeqCst)
            && self.shared.requested.swap(false, Ordering::SeqCst)
    }

    /// Takes kick signals that are pending in this thread, so that the next KVM_RUN is not ended by
    /// one that has been answered.
    pub fn drain_signals(&self) {
        let set = signal_set(kick_signal());
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the set and the time are initialized and outlive each call; the null pointer says
        // that the signal's details are not wanted.
        while unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) }
            > 0
        {}
    }
}

/// The signal: a real-time one, away from those that C libraries and runtimes take for themselves.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

fn signal_set(signal: libc::c_int) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set that it is given; sigaddset changes an initialized one.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        set.assume_init()
    }
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// Blocks the kick signal in this thread and returns the mask for the time in KVM_RUN: the thread's
/// own, with the kick signal let through. Bit n-1 is signal n.
fn block_kick_signal() -> io::Result<u64> {
    static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
    let signal = kick_signal();
    let installed = HANDLER.get_or_init(|| {
        // The handler never runs while the signal is blocked. It is there for the thread that gets
        // a kick late and has not blocked it: the default action would end the process.
        // SAFETY: an all-zero sigaction is a valid one; it and the handler, which touches nothing,
        // live through the call and for ever, respectively.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EINVAL))
        }
    });
    installed.map_err(io::Error::from_raw_os_error)?;
    let set = signal_set(signal);
    let mut before = MaybeUninit::uninit();
    // SAFETY: `set` is initialized; `before` is written by the call if it succeeds.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: pthread_sigmask returned 0, so it has written the old mask.
    let before = unsafe { before.assume_init() };
    // SAFETY: `before` is an initialized set, and the numbers asked for are valid signals.
    let blocked =
        |number: libc::c_int| unsafe { libc::sigismember(&raw const before, number) == 1 };
    Ok((1..=64)
        .filter(|number| *number != signal && blocked(*number))
        .fold(0, |mask, number| mask | 1 << (number - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_of_an_idle_vcpu_is_kept_and_taken_once() {
        let (target, kicker) = KickTarget::new();
        assert!(!target.take_request());
        kicker.kick();
        kicker.kick();
        assert!(target.take_request());
        assert!(!target.take_request());
    }

    #[test]
    fn the_kick_signal_stays_pending_until_it_is_drained() {
        std::thread::spawn(|| {
            let (target, kicker) = KickTarget::new();
            let mask = block_kick_signal().unwrap();
            assert_eq!(mask >> (kick_signal() - 1) & 1, 0);
            target
                .shared
                .thread
                .store(THREAD_ID.with(|id| *id), Ordering::SeqCst);
            kicker.kick();
            let pending = || {
                let mut set = MaybeUninit::uninit();
                // SAFETY: sigpending initializes the set, which is then looked at.
                unsafe {
                    libc::sigpending(set.as_mut_ptr());
                    libc::sigismember(set.as_ptr(), kick_signal()) == 1
                }
            };
            assert!(pending());
            target.drain_signals();
            assert!(!pending());
        })
        .join()
        .unwrap();
    }
}
