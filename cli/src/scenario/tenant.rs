//! What a scenario's machine runs.

use super::booted::Booted;
use super::process::tail;
use super::{ScenarioError, VM_NAME};
use crate::commands::guest;
use crate::config::{BARE_TENANT, MacAddress, NetworkSection, VmFile, VmSection};
use crate::progress::Progress;
use lockstep_guest::TenantArguments;
use lockstep_guest::debian::{Builder, CONTROL, Guest, GuestSpec, Recipe};
use lockstep_vmm::host::namespaces::{GUEST_ADDRESS, GUEST_MAC, NETWORK_PREFIX, TAP_NAME};
use lockstep_vmm::machine::engine::EngineChoice;
use std::fs::File;
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
    booted: Booted,
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
        let before =
            Booted::find(&built, program).map_err(files("looking for the booted guest"))?;
        let booted = match before {
            Some(booted) => booted,
            None => {
                progress.step(&format!("booting Debian with {recipe} once, to start from"));
                boot(&built, program, engine)?
            }
        };
        Ok(Self::Debian(Box::new(DebianTenant {
            guest: built,
            booted,
        })))
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
            Self::Debian(tenant) => machine(&tenant.guest, engine),
        }
    }

    /// Where the machine starts, if not by booting.
    pub(super) fn snapshot(&self) -> Option<PathBuf> {
        match self {
            Self::Bare => None,
            Self::Debian(tenant) => Some(tenant.booted.snapshot()),
        }
    }

    /// Whether it serves what the recipe of that name does.
    pub(super) fn is(&self, name: &str) -> bool {
        match self {
            Self::Bare => false,
            Self::Debian(tenant) => {
                let recipe = tenant.guest.manifest.recipe.as_ref();
                recipe.is_some_and(|recipe| recipe.name == name)
            }
        }
    }

    /// What is on the machine's disk then, if it has one: to be copied, for the machine will write.
    pub(super) fn disk(&self) -> Option<PathBuf> {
        match self {
            Self::Bare => None,
            Self::Debian(tenant) => tenant.booted.disk(),
        }
    }
}

fn files(what: &'static str) -> impl FnOnce(io::Error) -> ScenarioError {
    move |source| ScenarioError::Files { what, source }
}

fn machine(guest: &Guest, engine: EngineChoice) -> VmSection {
    let mut command_line = guest.command_line(&format!("{GUEST_ADDRESS}/{NETWORK_PREFIX}"));
    if guest.manifest.disk_mib.is_some() {
        // What is on its disk is to be checked.
        command_line = format!("{command_line} {CONTROL}");
    }
    VmSection {
        name: VM_NAME.to_owned(),
        memory_mib: guest.manifest.memory_mib.into(),
        engine,
        kernel: guest.kernel().display().to_string(),
        initrd: Some(guest.initramfs()),
        command_line,
        mac: MacAddress(GUEST_MAC),
        wall_clock_start: 0,
        ip: Some(GUEST_ADDRESS),
    }
}

/// Boots the guest by itself until its service answers, and saves it with what it has put on its disk.
fn boot(guest: &Guest, program: &Path, engine: EngineChoice) -> Result<Booted, ScenarioError> {
    let file = VmFile {
        vm: machine(guest, engine),
        // The machine has an interface; `snapshot` leaves it unplugged.
        network: Some(NetworkSection {
            tap: Some(TAP_NAME.to_owned()),
            switch: None,
        }),
        channel: Default::default(),
        arbiter: None,
        disk: Vec::new(),
        settings: Default::default(),
    };
    let new =
        tempfile::tempdir_in(&guest.directory).map_err(files("a directory beside the guest"))?;
    let configuration = new.path().join("machine.toml");
    let text = toml::to_string(&file).map_err(io::Error::other);
    text.and_then(|text| std::fs::write(&configuration, text))
        .map_err(files("the configuration of a machine to be booted"))?;
    let mut command = Command::new(program);
    command
        .arg("snapshot")
        .arg("--config")
        .arg(&configuration)
        .arg("--until")
        .arg(&guest.manifest.ready_marker)
        .arg("--out")
        .arg(new.path().join("snapshot"));
    if let Some(mib) = guest.manifest.disk_mib {
        let disk = new.path().join("disk");
        File::create(&disk)
            .and_then(|file| file.set_len(u64::from(mib) << 20))
            .map_err(files("a blank disk for a machine to be booted"))?;
        command.arg("--disk").arg(disk);
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(files("starting `lockstep snapshot`"))?;
    if !output.status.success() {
        return Err(ScenarioError::Boot {
            guest: guest.directory.clone(),
            status: output.status,
            said: [tail(&output.stdout), tail(&output.stderr)].join("\n"),
        });
    }
    Booted::keep(new, guest, program).map_err(files("keeping the booted guest"))
}
