//! The VM configuration file: which machine, on which network, paired with whom.
//!
//! ```toml
//! [vm]
//! name = "web"                    # names the VM at the arbiter
//! memory-mib = 64
//! engine = "auto"                 # auto, soft or kvm
//! kernel = "bare-tenant"          # or a path, relative to this file
//! command-line = ""
//! mac = "02:4c:53:00:00:02"
//! ip = "10.77.0.2"                # announced at go-live; optional
//! wall-clock-start = 1763700000   # what the guest's clock shows at its start; optional
//!
//! [network]
//! tap = "tap0"                    # or: switch = "/run/lockstep/switch"
//!
//! [channel]
//! address = "10.78.0.1:7070"      # where the primary listens; "unix:/run/lockstep/web" for shm
//! heartbeat-listen = "10.78.0.1:7071"
//! heartbeat-peer = "10.78.0.2:7071"
//!
//! [arbiter]
//! directory = "/shared/lockstep"  # on storage that both hosts have mounted
//!
//! [[disk]]                        # the first --disk FILE as the guest sees it; [[disk]] again for the next
//! serial = "web-data"             # default: lockstep-0
//! queues = 2                      # 1 to 4, default 1
//! read-only = false
//! write-cache = true              # false: each write is complete only when it would survive a loss of power
//!
//! [settings.failure]              # the knobs, as `lockstep tune knobs` lists them
//! heartbeat-timeout-ms = 100
//! ```
//!
//! A key that does not exist is an error that names the nearest one that does.

mod mac;
mod nearest;

pub use mac::MacAddress;

use lockstep_tuning::knobs::{self, KnobError};
use lockstep_vmm::machine::DiskSpec;
use lockstep_vmm::machine::engine::EngineChoice;
use lockstep_vmm::settings::Settings;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Largest configuration file that is read, bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// The name by which the built-in kernel is asked for.
pub const BARE_TENANT: &str = "bare-tenant";

/// A whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmFile {
    /// The machine.
    pub vm: VmSection,
    /// Where its frames go. Without it the machine has no network.
    #[serde(default)]
    pub network: Option<NetworkSection>,
    /// Where the two sides meet. Not needed by an unprotected run.
    #[serde(default)]
    pub channel: ChannelSection,
    /// Who decides. Not needed by an unprotected run.
    #[serde(default)]
    pub arbiter: Option<ArbiterSection>,
    /// The disks as the guest sees them, in the order of `--disk`. What is left out has its defaults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<DiskSection>,
    /// The knobs.
    #[serde(default)]
    pub settings: Settings,
}

/// `[vm]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmSection {
    /// Names the VM at the arbiter and in the channel's greeting.
    pub name: String,
    /// RAM, MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: u64,
    /// What executes it.
    #[serde(default)]
    pub engine: EngineChoice,
    /// [`BARE_TENANT`], or the path of a kernel image.
    #[serde(default = "default_kernel")]
    pub kernel: String,
    /// The path of an initial RAM disk, for a Linux kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub command_line: String,
    /// The network interface's address, the same on both sides.
    #[serde(default = "default_mac")]
    pub mac: MacAddress,
    /// What the guest's real-time clock shows at its start: seconds since 1970-01-01 UTC. The same on
    /// both sides, which is why it is not simply the time.
    #[serde(default)]
    pub wall_clock_start: u64,
    /// The guest's address, if it is known: announced by ARP at go-live, so that neighbours notice
    /// at once. Without it the announcement reaches the switches only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
}

/// `[network]`: one of its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkSection {
    /// A tap interface, there already or to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The path of a user-space switch (`lockstep switch PATH`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<PathBuf>,
}

/// `[channel]`: where the two sides meet. All keys are needed by both.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ChannelSection {
    /// Where the primary listens, and its backup comes: `HOST:PORT`, or with transport `shm`
    /// `unix:PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// This side's UDP address for heartbeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_listen: Option<SocketAddr>,
    /// The other side's UDP address for heartbeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_peer: Option<SocketAddr>,
}

/// `[arbiter]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ArbiterSection {
    /// A directory on storage that both hosts have mounted.
    pub directory: PathBuf,
}

/// `[[disk]]`: what the guest sees. Which file or device it is, and how large, differs between hosts, so
/// that is `--disk`'s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskSection {
    /// By which the guest knows it again (`/dev/disk/by-id/virtio-SERIAL`), up to 20 printable ASCII
    /// characters. `lockstep-N` if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Request queues, 1 to 4.
    pub queues: u8,
    /// The guest can only read it.
    pub read_only: bool,
    /// Whether the write cache is on until the guest says otherwise.
    pub write_cache: bool,
}

impl Default for DiskSection {
    fn default() -> Self {
        let DiskSpec {
            queues,
            read_only,
            write_cache,
            ..
        } = DiskSpec::default();
        Self {
            serial: None,
            queues,
            read_only,
            write_cache,
        }
    }
}

fn default_memory() -> u64 {
    64
}

fn default_kernel() -> String {
    BARE_TENANT.to_owned()
}

fn default_mac() -> MacAddress {
    MacAddress([0x02, 0x4c, 0x53, 0, 0, 1])
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not a configuration file by any measure.
    #[error("{}: {found} bytes, and a configuration has {LARGEST_FILE} at most", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
    },
    /// Not TOML, an unknown key, or a value that a key cannot have.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The place, what is wrong, and what was probably meant.
        message: String,
    },
    /// A knob out of its range, or that does not go with another.
    #[error("{}: [settings]: {source}", path.display())]
    Knob {
        /// The file.
        path: PathBuf,
        /// Which, and what would do.
        source: KnobError,
    },
    /// A key that this command needs.
    #[error("`{section}.{key}` is missing: {needed_for}")]
    Missing {
        /// Its table.
        section: &'static str,
        /// The key.
        key: &'static str,
        /// What for, with an example.
        needed_for: &'static str,
    },
    /// Two keys of which only one can be.
    #[error("`network.tap` and `network.switch` are both given: a machine has one interface")]
    TwoNetworks,
}

impl VmFile {
    /// Reads a file. Relative paths in it are made relative to its directory.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let found = std::fs::metadata(path).map_err(read)?.len();
        if found > LARGEST_FILE {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
                found,
            });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let mut file = Self::parse(&text).map_err(|message| ConfigError::Parse {
            path: path.to_owned(),
            message,
        })?;
        file.resolve(path.parent().unwrap_or(Path::new("")));
        file.check()?;
        knobs::check(&file.settings).map_err(|source| ConfigError::Knob {
            path: path.to_owned(),
            source,
        })?;
        Ok(file)
    }

    /// Parses the text of a file; the error is for people.
    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| nearest::explain(&error))
    }

    /// Makes relative paths relative to `base`.
    fn resolve(&mut self, base: &Path) {
        if self.vm.kernel != BARE_TENANT {
            let kernel = base.join(&self.vm.kernel);
            self.vm.kernel = kernel.to_string_lossy().into_owned();
        }
        let paths = [
            self.network
                .as_mut()
                .and_then(|network| network.switch.as_mut()),
            self.arbiter.as_mut().map(|arbiter| &mut arbiter.directory),
            self.vm.initrd.as_mut(),
        ];
        for path in paths.into_iter().flatten() {
            *path = base.join(&*path);
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        match &self.network {
            Some(NetworkSection {
                tap: Some(_),
                switch: Some(_),
            }) => Err(ConfigError::TwoNetworks),
            Some(NetworkSection {
                tap: None,
                switch: None,
            }) => Err(ConfigError::Missing {
                section: "network",
                key: "tap",
                needed_for: "the name of a tap interface; or give `network.switch`, the path of a \
                             switch; or leave out [network] for a machine without one",
            }),
            _ => Ok(()),
        }
    }
}

/// `value`, or an error that says which key is missing and what for.
///
/// # Errors
/// [`ConfigError::Missing`].
pub fn needed<T: Clone>(
    value: Option<&T>,
    section: &'static str,
    key: &'static str,
    needed_for: &'static str,
) -> Result<T, ConfigError> {
    value.cloned().ok_or(ConfigError::Missing {
        section,
        key,
        needed_for,
    })
}

#[cfg(test)]
mod tests;
