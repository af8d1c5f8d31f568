//! What can be wrong with a disk, and what to do about it.

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::in_flight::{InFlight, Stage};
use crate::ft::disk::{DiskOp, DiskStatus};

/// A VM's disks could not be opened, or the kernel's queue for them failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened.
    #[error("disk {}: {source}: {remedy}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
        /// What to do.
        remedy: String,
    },
    /// Neither a file nor a block device.
    #[error("disk {} is a {found}, wanted a regular file or a block device", path.display())]
    NotADisk {
        /// What was named.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The guest would see a disk of another size than the configuration names.
    #[error(
        "disk {} has {found} bytes, the configuration says {expected}: make both the same \
         (truncate -s {expected} FILE enlarges or cuts a file)",
        path.display()
    )]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The configuration's.
        expected: u64,
    },
    /// A write at the disk's end would end the process (`SIGXFSZ`).
    #[error(
        "disk {} has {expected} bytes, but this process may write files of {found} bytes at most: \
         raise RLIMIT_FSIZE (ulimit -f unlimited)",
        path.display()
    )]
    FileSizeLimit {
        /// The file.
        path: PathBuf,
        /// The limit.
        found: u64,
        /// The disk's size.
        expected: u64,
    },
    /// The queue depth is out of range.
    #[error("queue depth is {found}, wanted {} to {}", range.start(), range.end())]
    QueueDepth {
        /// What was asked for.
        found: u32,
        /// What is possible.
        range: RangeInclusive<u32>,
    },
    /// The host lacks memory.
    #[error("memory for disk transfers: {source}: free some")]
    Memory {
        /// The system's answer.
        source: io::Error,
    },
    /// `io_uring` refused.
    #[error(
        "{step}: {source}: disks need io_uring (Linux 5.11, and neither sysctl \
         kernel.io_uring_disabled nor a seccomp filter that forbids it)"
    )]
    Ring {
        /// What was being done.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A read that the backup does itself did not succeed.
    #[error(
        "disk {}: reading {length} bytes at {offset}: {source}: make the disk readable from this \
         host, or have the primary ship what it reads (without backup-reads)",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Where, bytes.
        offset: u64,
        /// How much, bytes.
        length: u64,
        /// The last answer.
        source: io::Error,
    },
}

/// What to do about an error of opening a disk of `bytes` bytes.
pub(super) fn opening_remedy(source: &io::Error, bytes: u64) -> String {
    match source.kind() {
        io::ErrorKind::NotFound => {
            format!("name an existing file or device, or create one (truncate -s {bytes} FILE)")
        }
        io::ErrorKind::PermissionDenied => {
            "let this user read and write it (a block device: the group disk)".to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount the file system writable, or say that the disk is read-only".to_owned()
        }
        _ => "name a file or block device that this host can reach".to_owned(),
    }
}

/// What was asked of the kernel, as far as errors differ by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write,
    Flush,
    Deallocate,
    Zero,
}

impl Action {
    pub(super) const fn of(token: &InFlight) -> Self {
        match (token.stage, token.request.op) {
            (Stage::Settling, _) | (_, DiskOp::Flush) => Self::Flush,
            (_, DiskOp::Read) => Self::Read,
            (_, DiskOp::Write { .. }) => Self::Write,
            (_, DiskOp::Discard) => Self::Deallocate,
            (_, DiskOp::WriteZeroes { .. }) => Self::Zero,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Deallocate => "discard",
            Self::Zero => "write of zeroes",
        }
    }

    /// How the guest is told of `errno`.
    pub(super) const fn status(self, errno: i32) -> DiskStatus {
        match (self, errno) {
            // EINVAL: a block device wants its own block's alignment, and a file system may not know
            // the mode. The guest's driver goes on without, or writes zeroes itself.
            (
                Self::Deallocate | Self::Zero,
                libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::ENODEV | libc::ENOTTY,
            ) => DiskStatus::Unsupported,
            _ => DiskStatus::Failed,
        }
    }
}

/// What the operator can do about an `errno` of a request.
pub(super) const fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::ENOSPC | libc::EDQUOT => {
            "free space where the file lies, and allocate the disk in full (fallocate -l BYTES FILE)"
        }
        libc::EIO => "the medium or the way to it failed: look at the kernel's log (dmesg)",
        libc::ENODEV | libc::ENXIO | libc::ESTALE | libc::ENOTCONN => {
            "the disk is gone: bring it back and start this side again"
        }
        libc::EROFS | libc::EPERM | libc::EACCES | libc::EBADF => {
            "the disk has become read-only: look at the kernel's log (dmesg) and the mount's options"
        }
        libc::EOPNOTSUPP | libc::EINVAL => {
            "this file system or device cannot do that; the guest is told so"
        }
        libc::EFBIG => "raise RLIMIT_FSIZE (ulimit -f unlimited)",
        _ => "look at the kernel's log (dmesg)",
    }
}
