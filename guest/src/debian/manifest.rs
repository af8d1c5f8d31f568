//! What a guest is made of, for people, for programs, and for the next build.

use super::package::Package;
use serde::{Deserialize, Serialize};

/// `manifest.json`, beside the kernel and the initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format; [`FORMAT`].
    pub format: u32,
    /// Digest of all that the guest is made from, and so its name in the cache.
    pub guest: String,
    /// What built it: the version of this program, and a digest of what it adds to packages.
    pub builder: String,
    /// The recipe, if one was used.
    pub recipe: Option<RecipeRecord>,
    /// Packages that were asked for.
    pub requested: Vec<String>,
    /// Packages that were taken for installed and are not in the guest.
    pub stand_ins: Vec<String>,
    /// Packages that were unpacked, kernel included.
    pub packages: Vec<Package>,
    /// The kernel's release, as `uname -r` in the guest prints it.
    pub kernel_release: String,
    /// Kernel modules, in the order in which they are loaded.
    pub modules: Vec<String>,
    /// The kernel: a bzImage.
    pub kernel: FileRecord,
    /// The root file system: an uncompressed cpio archive.
    pub initramfs: FileRecord,
    /// The kernel's arguments that this guest is known to start with. The address comes behind them:
    /// `lockstep.ip=10.77.0.2/24`.
    pub command_line: String,
    /// Memory that the machine should have, MiB.
    pub memory_mib: u32,
    /// Size of the disk that the machine should have for the service's data, MiB. Without a disk they are
    /// in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
    /// Where the service listens.
    pub ports: Vec<String>,
    /// A line of the console begins like this once the service answers.
    pub ready_marker: String,
}

/// Version of the manifest's format.
pub const FORMAT: u32 = 1;

/// A recipe, by what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeRecord {
    /// Its name.
    pub name: String,
    /// What it is, in a line.
    pub summary: String,
    /// SHA-256 of its meaning.
    pub sha256: String,
}

/// A file of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name, in the guest's directory.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}
