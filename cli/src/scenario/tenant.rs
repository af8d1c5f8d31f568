//! What a scenario's machine runs.

use super::process::tail;
use super::{ScenarioError, VM_NAME};
use crate::commands::guest;
use crate::config::{BARE_TENANT, MacAddress, NetworkSection, VmFile, VmSection};
use crate::progress::Progress;
use lockstep_guest::TenantArguments;
use lockstep_guest::debian::{Builder, Guest, GuestSpec, Recipe};
use lockstep_vmm::host::namespaces::{GUEST_ADDRESS, GUEST_MAC, NETWORK_PREFIX, TAP_NAME};
use lockstep_vmm::machine::engine::EngineChoice;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// RAM of the bare tenant: it needs little, and a small guest starts faster.
const BARE_MEMORY_MIB: u64 = 16;

/// What runs in the machine.
#[derive(Debug, Clone)]
pub enum Tenant {
    /// The freestanding key-value store that comes with this program.
    Bare,
    /// A Debian guest, from the moment at which its service answered.
    Debian(Box<DebianTenant>),
}

/// A Debian guest, booted once.
#[derive(Debug, Clone)]
pub struct DebianTenant {
    guest: Guest,
    snapshot: PathBuf,
}

impl Tenant {
    /// Builds the guest of `recipe` in `cache` unless it is there, and boots it unless that was done before. Only
    /// the first time takes long: packages are fetched, and the machine boots.
    ///
    /// # Errors
    /// The guest cannot be built, or does not come to serve.
    pub fn debian(
        recipe: &str,
        program: &Path,
        engine: EngineChoice,
        cache: &Path,
        progress: &Progress,
    ) -> Result<Self, ScenarioError> {
        let spec = GuestSpec::new(Some(Recipe::load(recipe)?));
        let builder = Builder::new(cache);
        let built = builder.build(&spec, &mut |step| guest::show(progress, step))?;
        let tenant = DebianTenant {
            snapshot: snapshot_path(&built, program)?,
            guest: built,
        };
        if !tenant.snapshot.exists() {
            progress.step(&format!("booting Debian with {recipe} once, to start from"));
            tenant.boot(program, engine)?;
        }
        Ok(Self::Debian(Box::new(tenant)))
    }

    /// The machine in which it runs.
    pub(super) fn machine(&self, engine: EngineChoice) -> VmSection {
        match self {
            Self::Bare => VmSection {
                name: VM_NAME.to_owned(),
                memory_mib: BARE_MEMORY_MIB,
                engine,
                kernel: BARE_TENANT.to_owned(),
                initrd: None,
                command_line: TenantArguments::new(GUEST_ADDRESS, NETWORK_PREFIX).to_string(),
                mac: MacAddress(GUEST_MAC),
                wall_clock_start: 0,
                ip: Some(GUEST_ADDRESS),
            },
            Self::Debian(tenant) => tenant.machine(engine),
        }
    }

    /// Where the machine starts, if not by booting.
    pub(super) fn snapshot(&self) -> Option<&Path> {
        match self {
            Self::Bare => None,
            Self::Debian(tenant) => Some(&tenant.snapshot),
        }
    }
}

impl DebianTenant {
    fn machine(&self, engine: EngineChoice) -> VmSection {
        VmSection {
            name: VM_NAME.to_owned(),
            memory_mib: self.guest.manifest.memory_mib.into(),
            engine,
            kernel: self.guest.kernel().display().to_string(),
            initrd: Some(self.guest.initramfs()),
            command_line: self
                .guest
                .command_line(&format!("{GUEST_ADDRESS}/{NETWORK_PREFIX}")),
            mac: MacAddress(GUEST_MAC),
            wall_clock_start: 0,
            ip: Some(GUEST_ADDRESS),
        }
    }

    /// Boots the guest by itself until its service answers, and saves it.
    fn boot(&self, program: &Path, engine: EngineChoice) -> Result<(), ScenarioError> {
        let files = |what| move |source| ScenarioError::Files { what, source };
        let file = VmFile {
            vm: self.machine(engine),
            // The machine has an interface; `snapshot` leaves it unplugged.
            network: Some(NetworkSection {
                tap: Some(TAP_NAME.to_owned()),
                switch: None,
            }),
            channel: Default::default(),
            arbiter: None,
            settings: Default::default(),
        };
        let directory = tempfile::tempdir_in(&self.guest.directory)
            .map_err(files("a directory beside the guest"))?;
        let configuration = directory.path().join("machine.toml");
        let text = toml::to_string(&file).map_err(io::Error::other);
        text.and_then(|text| std::fs::write(&configuration, text))
            .map_err(files("the configuration of a machine to be booted"))?;
        let saved = directory.path().join("snapshot");
        let output = Command::new(program)
            .arg("snapshot")
            .arg("--config")
            .arg(&configuration)
            .arg("--until")
            .arg(&self.guest.manifest.ready_marker)
            .arg("--out")
            .arg(&saved)
            .stdin(Stdio::null())
            .output()
            .map_err(files("starting `lockstep snapshot`"))?;
        if !output.status.success() {
            return Err(ScenarioError::Boot {
                guest: self.guest.directory.clone(),
                status: output.status,
                said: [tail(&output.stdout), tail(&output.stderr)].join("\n"),
            });
        }
        // Whole or not at all: another demo may be about the same.
        std::fs::rename(&saved, &self.snapshot).map_err(files("keeping the booted guest"))
    }
}

/// Where the booted guest is kept: beside its images, by the program that booted it, for another
/// program's machine may be another machine.
fn snapshot_path(guest: &Guest, program: &Path) -> Result<PathBuf, ScenarioError> {
    let program = std::fs::read(program).map_err(|source| ScenarioError::Files {
        what: "reading our own program",
        source,
    })?;
    let digest = xxhash_rust::xxh3::xxh3_64(&program);
    Ok(guest
        .directory
        .join(format!("booted-{digest:016x}.snapshot")))
}
