//! SIGINT and SIGTERM as calls of a function, in a thread that waits for them.

use std::io;
use std::mem::MaybeUninit;

/// A signal set of SIGINT and SIGTERM.
fn asked_to_end() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the whole set that the pointer names; sigaddset then changes
    // an initialized set; both fail only for signal numbers that do not exist.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        set.assume_init()
    }
}

/// Calls `end` each time this process is asked to end, from a thread of its own. Call it before other
/// threads exist: those that exist already would still die of the signals.
///
/// Children are not affected: `std::process` clears the mask before exec.
///
/// # Errors
/// The thread could not be started.
pub fn on_end(mut end: impl FnMut() + Send + 'static) -> io::Result<()> {
    let set = asked_to_end();
    // SAFETY: the set is initialized and alive during the call; no old mask is asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            loop {
                let mut signal = 0;
                // SAFETY: both pointers are to live, initialized values of this frame.
                if unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
                    end();
                }
            }
        })
        .map(drop)
}
