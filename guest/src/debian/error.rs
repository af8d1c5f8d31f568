//! Why a guest could not be built.

use std::io;
use std::path::PathBuf;

/// A guest could not be built, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum GuestBuildError {
    /// A program of the package client is not there.
    #[error(
        "a Debian guest is made by Debian's own package client, and `{program}` cannot be started \
         ({source}): on Debian or Ubuntu install {package}; elsewhere build the guest in a Debian \
         container or on a Debian host (`lockstep guest build --out DIRECTORY`) and copy the directory"
    )]
    ProgramMissing {
        /// Which.
        program: &'static str,
        /// The package that brings it.
        package: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A program of the package client failed.
    #[error("`{command}` failed ({status}):\n{said}")]
    ProgramFailed {
        /// What was run.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// The package client finds no way to install what was asked for.
    #[error(
        "the package client cannot resolve {}: check the names, and that the host's apt sources (for \
         amd64) have them; `--kernel` names another kernel package\n{said}",
        packages.join(" ")
    )]
    Unresolvable {
        /// What was asked for.
        packages: Vec<String>,
        /// Its answer.
        said: String,
    },
    /// A package name that is none.
    #[error(
        "{found:?} is no package name: expected lower-case letters, digits and `+-.`, at least two \
         characters, the first a letter or digit, the last no `-`"
    )]
    PackageName {
        /// What was given.
        found: String,
    },
    /// The package client printed what this program does not understand.
    #[error("apt-get printed {found:?} where {expected} was expected")]
    AptOutput {
        /// The line.
        found: String,
        /// What should have been there.
        expected: &'static str,
    },
    /// A package file is not the one that the package client named.
    #[error(
        "{}: its SHA-256 is {found}, and the package client expects {expected}: remove the file and \
         build again",
        path.display()
    )]
    PackageDigest {
        /// The file.
        path: PathBuf,
        /// Its digest.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A package's contents cannot be used.
    #[error("package {package}: {what}")]
    PackageContents {
        /// Which.
        package: String,
        /// What is wrong with it.
        what: String,
    },
    /// The kernel package has no kernel, or not one.
    #[error(
        "the packages contain {found} kernels (/boot/vmlinuz-*), expected exactly 1: choose another \
         kernel package with `--kernel`"
    )]
    Kernel {
        /// How many.
        found: usize,
    },
    /// A kernel module that is needed is not in the kernel package.
    #[error("kernel {release} has no module {module}, neither loadable nor built in")]
    ModuleMissing {
        /// The kernel.
        release: String,
        /// The module.
        module: String,
    },
    /// A kernel module cannot be read.
    #[error("kernel module {module}: {what}")]
    ModuleUnreadable {
        /// Which.
        module: String,
        /// Why.
        what: String,
    },
    /// A recipe cannot be used.
    #[error("recipe {name}: {what}")]
    Recipe {
        /// Which.
        name: String,
        /// What is wrong, with the value found and the one expected.
        what: String,
    },
    /// Nothing was ever resolved, and the network is not to be used.
    #[error(
        "these packages were never resolved on this host, and `--offline` forbids to ask now: build \
         once without it"
    )]
    NeverResolved,
    /// Where the result should go is in use.
    #[error(
        "{} exists and is no guest built by this program: name a directory that does not exist yet",
        path.display()
    )]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// A directory is no guest.
    #[error("{}: no guest: {what}", path.display())]
    NoGuest {
        /// The directory.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// A file of the build.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Names what was being done when a system call failed.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str, path: &std::path::Path) -> Result<T, GuestBuildError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: &std::path::Path) -> Result<T, GuestBuildError> {
        self.map_err(|source| GuestBuildError::Io {
            doing,
            path: path.to_owned(),
            source,
        })
    }
}
