//! The right to make network namespaces: held already, or got from a user namespace of our own, in
//! which an unprivileged process has all capabilities (user_namespaces(7)).

use super::NamespaceError;
use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// How this process can make network namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// It may as it is.
    Held,
    /// After [`gain`], or in a child prepared by [`in_user_namespace`].
    UserNamespace,
}

/// Neither way is open on this host; what was tried, and what to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "no right to make network namespaces: as this user {direct}; in a user namespace {step} failed: \
     {source}. Run as root, or allow unprivileged user namespaces: {}",
    settings()
)]
pub struct NoPrivilege {
    /// What `unshare(CLONE_NEWNET)` said.
    pub direct: io::Error,
    /// The step that failed on the way through a user namespace.
    pub step: &'static str,
    /// What the kernel said to it.
    pub source: io::Error,
}

/// The settings that forbid user namespaces, with the values found.
fn settings() -> String {
    [
        ("user.max_user_namespaces", "> 0"),
        ("user.max_net_namespaces", "> 0"),
        ("kernel.unprivileged_userns_clone", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "0"),
    ]
    .iter()
    .filter_map(|(name, wanted)| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let found = std::fs::read_to_string(path).ok()?;
        Some(format!("{name} is {}, needs {wanted}", found.trim()))
    })
    .chain(["a container's seccomp filter may forbid `unshare` too".to_owned()])
    .collect::<Vec<_>>()
    .join("; ")
}

/// Finds out which way is open, by trying in a thread and in a short-lived child.
///
/// # Errors
/// None is; the error says what is missing.
pub fn probe() -> Result<Privilege, NoPrivilege> {
    let direct = match std::thread::spawn(unshare_network).join() {
        Ok(Ok(())) => return Ok(Privilege::Held),
        Ok(Err(error)) => error,
        Err(_) => io::Error::other("the probing thread died"),
    };
    match try_in_child() {
        Ok(()) => Ok(Privilege::UserNamespace),
        Err((step, source)) => Err(NoPrivilege {
            direct,
            step,
            source,
        }),
    }
}

/// Sees to it that this process may make network namespaces: it may already, or it moves into a user
/// namespace of its own, in which it is root over nothing but what it makes. Files that it writes
/// still belong to the user who started it.
///
/// Call it first thing in `main`: the kernel refuses a process that has threads.
///
/// # Errors
/// Neither way is open, or the process has threads.
pub fn gain() -> Result<(), NamespaceError> {
    match probe()? {
        Privilege::Held => Ok(()),
        Privilege::UserNamespace => enter_user_namespace(),
    }
}

/// The second half of [`gain`].
fn enter_user_namespace() -> Result<(), NamespaceError> {
    let maps = IdentityMaps::of_this_process();
    // A thread that was joined (the one that probed) is part of the process for a moment more.
    let deadline = Instant::now() + Duration::from_millis(200);
    loop {
        let Err((step, source)) = maps.enter() else {
            return Ok(());
        };
        let has_threads = source.raw_os_error() == Some(libc::EINVAL);
        if !has_threads || Instant::now() >= deadline {
            let step = STEPS[step];
            return Err(NamespaceError::UserNamespace { step, source });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets `command` start in a user namespace of its own, as by [`gain`].
pub fn in_user_namespace(command: &mut Command) {
    let maps = IdentityMaps::of_this_process();
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe
    // operations are allowed: `enter` makes system calls (unshare, open, write, close) on memory
    // that was allocated before the fork, and allocates nothing; nor does making an `io::Error`
    // from an errno.
    unsafe {
        command.pre_exec(move || maps.enter().map_err(|(_, source)| source));
    }
}

/// Moves the calling thread into a network namespace of its own.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET only replaces the calling thread's network namespace; it does not touch
    // descriptors or memory shared with other threads.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The steps into a user namespace, as an index that crosses a process boundary in an exit status.
const STEPS: [&str; 5] = [
    "unshare(CLONE_NEWUSER)",
    "writing /proc/self/setgroups",
    "writing /proc/self/uid_map",
    "writing /proc/self/gid_map",
    "unshare(CLONE_NEWNET)",
];

/// The lines that make the caller's user and group root inside. Written out before a fork.
struct IdentityMaps {
    uid: String,
    gid: String,
}

impl IdentityMaps {
    fn of_this_process() -> Self {
        Self {
            uid: format!("0 {} 1", rustix::process::geteuid().as_raw()),
            gid: format!("0 {} 1", rustix::process::getegid().as_raw()),
        }
    }

    /// Async-signal-safe. On failure the index into [`STEPS`] and the error.
    fn enter(&self) -> Result<(), (usize, io::Error)> {
        // SAFETY: CLONE_NEWUSER replaces the credentials of the calling process, which the kernel
        // allows only when it has one thread; no memory or descriptor is affected.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER) } < 0 {
            return Err((0, io::Error::last_os_error()));
        }
        write_proc(c"/proc/self/setgroups", b"deny").map_err(|error| (1, error))?;
        write_proc(c"/proc/self/uid_map", self.uid.as_bytes()).map_err(|error| (2, error))?;
        write_proc(c"/proc/self/gid_map", self.gid.as_bytes()).map_err(|error| (3, error))
    }
}

/// One `write` to a file of /proc. Async-signal-safe.
fn write_proc(path: &CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: `path` is a C string, and open(2) keeps no reference to it.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the pointer and length are those of `text`, which outlives the call.
    let written = unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
    let result = if written < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    };
    // SAFETY: `fd` was opened above and is used nowhere else.
    unsafe { libc::close(fd) };
    result
}

/// Goes the whole way through a user namespace in a child, and reports the step that failed.
pub(super) fn try_in_child() -> Result<(), (&'static str, io::Error)> {
    let maps = IdentityMaps::of_this_process();
    let (answer, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| ("pipe", e.into()))?;
    // SAFETY: this process may have threads, so the child does async-signal-safe work only: system
    // calls on memory allocated before, and `_exit`.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(("fork", io::Error::last_os_error()));
    }
    if child == 0 {
        let result = maps
            .enter()
            .and_then(|()| unshare_network().map_err(|error| (4, error)));
        if let Err((step, error)) = result {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let mut message = [0u8; 5];
            message[0] = step as u8;
            message[1..].copy_from_slice(&errno.to_ne_bytes());
            let _ = rustix::io::write(&tell, &message);
        }
        // SAFETY: ends the child without running anything of this program.
        unsafe { libc::_exit(0) };
    }
    drop(tell);
    let mut message = [0u8; 5];
    let told = rustix::io::read(&answer, &mut message);
    let mut status = 0;
    // SAFETY: `child` is ours and not yet waited for; `status` is a valid place for the result.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    match told {
        Ok(5) => {
            let errno = i32::from_ne_bytes([message[1], message[2], message[3], message[4]]);
            let step = STEPS.get(usize::from(message[0])).copied();
            Err((
                step.unwrap_or("an unknown step"),
                io::Error::from_raw_os_error(errno),
            ))
        }
        // Silence and a clean exit: it worked. Anything else must not be taken for that.
        Ok(0) if waited == child && status == 0 => Ok(()),
        _ => Err(("the probing child", io::Error::other("it died"))),
    }
}
