//! Network namespaces, made and wired without the `ip` program, without names under `/run`, and
//! without root where unprivileged user namespaces are allowed. What is made here belongs to the
//! descriptors that hold it: it is gone when the last process and descriptor in it is.

mod netlink;
mod privilege;
mod topology;
pub mod trial;

pub use netlink::{Mac, Netlink, NetlinkError, VethEnd};
pub use privilege::{NoPrivilege, Privilege, gain, in_user_namespace, probe as probe_privilege};
pub use topology::{
    CLIENT_ADDRESS, CLIENT_PORTS, GUEST_ADDRESS, GUEST_MAC, LOG_ADDRESS_A, LOG_ADDRESS_B,
    NETWORK_PREFIX, TAP_NAME, Topology,
};

use super::tap::{Tap, TapError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// A network namespace could not be made, entered or furnished.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The process may not make network namespaces.
    #[error(transparent)]
    NoPrivilege(#[from] NoPrivilege),
    /// The process could make them after entering a user namespace, and has not.
    #[error(
        "this process must enter a user namespace first (`gain`, before it has threads), or be run \
         as root"
    )]
    NotYetPrivileged,
    /// The user namespace of its own that it needs for that.
    #[error(
        "entering a user namespace: {step}: {source} (EINVAL: the process has threads already)"
    )]
    UserNamespace {
        /// The step that failed.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The namespace itself.
    #[error("network namespace `{label}`: {step}: {source}")]
    Namespace {
        /// What it is called in messages.
        label: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its interfaces and addresses.
    #[error("network namespace `{label}`: {source}")]
    Network {
        /// What the namespace is called in messages.
        label: String,
        /// What failed.
        source: NetlinkError,
    },
    /// Its tap.
    #[error("network namespace `{label}`: {source}")]
    Tap {
        /// What the namespace is called in messages.
        label: String,
        /// What failed.
        source: TapError,
    },
}

/// Whether the network of [`Topology::build`] can be had on this host, by making a small one of
/// each part (namespaces, bridge, veth pair, tap) and letting it go. [`Privilege::UserNamespace`]
/// means that the parts could not be tried from here: ask again inside.
///
/// # Errors
/// Something is missing; the error says exactly what, and what to do about it.
pub fn probe() -> Result<Privilege, NamespaceError> {
    let privilege = probe_privilege()?;
    if privilege == Privilege::Held {
        Topology::build()?;
    }
    Ok(privilege)
}

/// A network namespace that lives as long as this object and the processes inside.
#[derive(Debug)]
pub struct Namespace {
    label: String,
    namespace: OwnedFd,
    netlink: Mutex<Netlink>,
}

impl Namespace {
    /// Makes an empty namespace, its loopback interface up. `label` is for messages only.
    ///
    /// # Errors
    /// The process may not ([`probe_privilege`] knows why), or the kernel has no namespaces.
    pub fn create(label: &str) -> Result<Self, NamespaceError> {
        // In a thread that ends at once, so that no other code ever runs in the wrong namespace.
        let made = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    privilege::unshare_network().map_err(|error| ("unshare", error))?;
                    let namespace = std::fs::File::open("/proc/thread-self/ns/net")
                        .map_err(|error| ("opening /proc/thread-self/ns/net", error))?;
                    let netlink = Netlink::open().map_err(|error| ("netlink socket", error))?;
                    Ok((OwnedFd::from(namespace), netlink))
                })
                .join()
                .unwrap_or_else(|_| Err(("thread", io::Error::other("it died"))))
        });
        let (namespace, netlink) = made.map_err(|(step, source)| match source.raw_os_error() {
            Some(libc::EPERM) => match probe_privilege() {
                Err(missing) => NamespaceError::NoPrivilege(missing),
                Ok(_) => NamespaceError::NotYetPrivileged,
            },
            _ => NamespaceError::Namespace {
                label: label.to_owned(),
                step,
                source,
            },
        })?;
        let made = Self {
            label: label.to_owned(),
            namespace,
            netlink: Mutex::new(netlink),
        };
        made.configure(|netlink| netlink.set_up("lo"))?;
        Ok(made)
    }

    /// What the namespace is called in messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Changes the namespace's links and addresses.
    ///
    /// # Errors
    /// What `change` returns.
    pub fn configure<T>(
        &self,
        change: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError>,
    ) -> Result<T, NamespaceError> {
        // A panic in another closure leaves at worst an unread answer, which is skipped by its
        // sequence number.
        let mut netlink = self.netlink.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut netlink).map_err(|source| NamespaceError::Network {
            label: self.label.clone(),
            source,
        })
    }

    /// Runs `work` in a thread inside the namespace and returns what it returns. Sockets and taps
    /// that it opens stay in the namespace wherever they are used.
    ///
    /// # Errors
    /// The thread could not be started or could not enter.
    ///
    /// # Panics
    /// `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let failed = |step, source| NamespaceError::Namespace {
            label: self.label.clone(),
            step,
            source,
        };
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new()
                .name(self.label.chars().take(15).collect())
                .spawn_scoped(scope, || {
                    enter(self.namespace.as_fd())?;
                    Ok(work())
                })
                .map_err(|source| failed("starting a thread", source))?;
            match inside.join() {
                Ok(result) => result.map_err(|source| failed("setns", source)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Makes `command` start its process inside the namespace.
    ///
    /// # Errors
    /// No descriptor was to be had for it.
    pub fn place(&self, command: &mut Command) -> Result<(), NamespaceError> {
        let namespace = self
            .namespace
            .try_clone()
            .map_err(|source| NamespaceError::Namespace {
                label: self.label.clone(),
                step: "duplicating its descriptor",
                source,
            })?;
        // SAFETY: the closure runs in the child between fork and exec and makes one system call,
        // setns, which is async-signal-safe and allocates nothing. Its descriptor is a duplicate
        // that the closure owns, so it is open and the right one however long `command` is kept;
        // exec closes it in the child.
        unsafe {
            command.pre_exec(move || enter(namespace.as_fd()));
        }
        Ok(())
    }

    /// Frames that have arrived at the interface `name` since it was made.
    ///
    /// # Errors
    /// There is no such interface, or the namespace cannot be entered.
    pub fn frames_received(&self, name: &str) -> Result<u64, NamespaceError> {
        let counted = self.run(|| {
            let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
            // "name: bytes packets ..." (proc(5)).
            table
                .lines()
                .filter_map(|line| line.trim_start().split_once(':'))
                .find(|(link, _)| *link == name)
                .and_then(|(_, numbers)| numbers.split_whitespace().nth(1)?.parse().ok())
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no `{name}`")))
        })?;
        counted.map_err(|source| NamespaceError::Namespace {
            label: self.label.clone(),
            step: "counting frames",
            source,
        })
    }

    /// Makes a tap that stays in the namespace, for a process to attach to by [`Tap::open`].
    ///
    /// # Errors
    /// No tap on this host, or the name is taken.
    pub fn add_tap(&self, name: &str) -> Result<(), NamespaceError> {
        self.run(|| Tap::open(name).and_then(|tap| tap.persist()))?
            .map_err(|source| NamespaceError::Tap {
                label: self.label.clone(),
                source,
            })?;
        self.configure(|netlink| netlink.silence_ipv6(name))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// Moves the calling thread into a network namespace. Async-signal-safe.
fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; CLONE_NEWNET makes the kernel refuse any that is
    // no network namespace, and changes only the calling thread.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
