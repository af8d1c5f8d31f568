//! Debian guests: a stock kernel, stock programs, and an init of our own.
//!
//! Packages come through the host's package client ([`Builder::build`] says what that needs), their
//! contents go straight into an archive that the kernel unpacks. No maintainer script runs; what
//! little they would do is in a [`Recipe`].
//!
//! The result is a directory: `kernel` (bzImage), `initramfs` (uncompressed cpio), `manifest.json`. The
//! same packages, recipe and builder give the same bytes, and lie in the cache under the digest of the
//! three.
//!
//! # Why the initramfs is not compressed
//! Decompression is the guest's work. Counted by QEMU (`-icount`, one instruction a nanosecond), Redis' guest
//! answers after 0.65 s with its 24 MiB as they are, and after 1.08 s with the 10 MiB that gzip makes of
//! them (1.02 s with zstd's 7.3 MiB): some 400 million instructions, two seconds of a CPU that emulates 200
//! million a second. The host reads the file in milliseconds whatever its size.
//!
//! # What it asks of the machine
//! The x86 boot protocol for a bzImage; virtio-mmio devices that ACPI names (`LNRO0005`), network and
//! entropy; `ttyS0` (a 16550 at 0x3f8).
//!
//! # Cache
//! | path | what |
//! |---|---|
//! | `apt/` | the package client's own state |
//! | `pool/` | package files |
//! | `resolved/` | which versions a set of packages came to, and when |
//! | `guests/DIGEST/` | finished guests, each put there whole by one rename |
//! | `lock` | one build at a time |

mod apt;
pub mod cpio;
mod digest;
mod error;
mod manifest;
mod modules;
mod package;
mod recipe;
mod root;
pub mod tree;

pub use error::GuestBuildError;
pub use manifest::{FORMAT, FileRecord, Manifest, RecipeRecord};
pub use package::Package;
pub use recipe::{DirectorySpec, FileSpec, Recipe, Service, User, names as recipe_names};

use apt::Apt;
use error::Doing;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tree::Tree;

/// The package that depends on Debian's kernel for virtual machines.
pub const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Begins the console's line that says that the service answers; its name and the uptime in seconds follow.
pub const READY_MARKER: &str = "LOCKSTEP READY";

/// The kernel's arguments that go with these guests.
///
/// - `console=ttyS0`: what is said there is seen, and awaited ([`READY_MARKER`]).
/// - `panic=-1`: a kernel that panics restarts at once, instead of standing still.
/// - `nokaslr`: two boots of one guest put the kernel at the same place, so profiles can be compared.
/// - `mitigations=off`: the guest has its machine for itself, and the CPU speculates nothing.
/// - `cryptomgr.notests`: no self-tests at boot, a tenth of a second.
/// - `ipv6.disable=1`: an idle guest that asks no router and joins no group stays idle.
/// - `8250.nr_uarts=1`: no search for serial ports that are not there.
pub const COMMAND_LINE: &str = "console=ttyS0 panic=-1 nokaslr mitigations=off cryptomgr.notests \
                                ipv6.disable=1 8250.nr_uarts=1";

/// A word of the kernel's command line that opens a port (TCP 9) at which a test can have the service stopped
/// and its data checked: `guest/init/control.sh`.
pub const CONTROL: &str = "lockstep.control";

/// Names of the files of a guest.
const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";
const MANIFEST: &str = "manifest.json";

/// A guest without a recipe gets this much, MiB.
const MEMORY_MIB: u32 = 192;

/// What a guest shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    /// What it serves; without one it only has its packages, and a shell on its console.
    pub recipe: Option<Recipe>,
    /// More packages, by name.
    pub packages: Vec<String>,
    /// The package that brings the kernel, or depends on the one that does.
    pub kernel_package: String,
    /// Kernel modules besides those that the machine needs, such as `virtio_pci`.
    pub modules: Vec<String>,
}

impl GuestSpec {
    /// A guest of that recipe, with Debian's kernel for virtual machines.
    #[must_use]
    pub fn new(recipe: Option<Recipe>) -> Self {
        Self {
            recipe,
            packages: Vec::new(),
            kernel_package: KERNEL_PACKAGE.to_owned(),
            modules: Vec::new(),
        }
    }

    /// All packages that are asked for, in order, each once.
    fn requested(&self) -> Vec<String> {
        let mut requested: Vec<String> = self
            .recipe
            .iter()
            .flat_map(|recipe| &recipe.packages)
            .chain(&self.packages)
            .cloned()
            .chain(["busybox-static".to_owned(), self.kernel_package.clone()])
            .collect();
        requested.sort();
        requested.dedup();
        requested
    }

    fn stand_ins(&self, requested: &[String]) -> Vec<String> {
        let mut stand_ins: Vec<String> = apt::STAND_INS
            .iter()
            .map(|name| (*name).to_owned())
            .chain(
                self.recipe
                    .iter()
                    .flat_map(|recipe| recipe.stand_ins.clone()),
            )
            .filter(|name| !requested.contains(name))
            .collect();
        stand_ins.sort();
        stand_ins.dedup();
        stand_ins
    }

    fn modules(&self) -> Vec<String> {
        let needed = modules::NEEDED.iter().map(|name| (*name).to_owned());
        needed.chain(self.modules.iter().cloned()).collect()
    }
}

/// How old may be what is known of the archive's versions?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Not older than this; zero asks anew.
    Within(Duration),
    /// Whatever is at hand: the network is not used for it.
    Offline,
}

/// What a build is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Another build holds the cache.
    Waiting,
    /// The package client fetches lists.
    Updating,
    /// The package client works out versions and dependencies.
    Resolving,
    /// Something is wrong that need not matter.
    Warning(String),
    /// Package files come in.
    Fetching {
        /// How many were begun.
        begun: usize,
        /// How many are missing.
        missing: usize,
    },
    /// Package files are unpacked.
    Unpacking {
        /// The one that is.
        package: String,
        /// How many are done.
        done: usize,
        /// How many there are.
        all: usize,
    },
    /// The guest's files are written.
    Writing,
}

/// A finished guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Where its files are.
    pub directory: PathBuf,
    /// What it is made of.
    pub manifest: Manifest,
    /// Whether it was there already.
    pub cached: bool,
}

impl Guest {
    /// A guest that was built before.
    ///
    /// # Errors
    /// The directory has no manifest of this format, or files that are not as long as it says. Their
    /// digests are not computed: [`Guest::verify`] does.
    pub fn open(directory: &Path) -> Result<Self, GuestBuildError> {
        let no_guest = |what: String| GuestBuildError::NoGuest {
            path: directory.to_owned(),
            what,
        };
        let path = directory.join(MANIFEST);
        let text = fs::read(&path).map_err(|error| no_guest(format!("{MANIFEST}: {error}")))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| no_guest(format!("{MANIFEST}: {error}")))?;
        if manifest.format != FORMAT {
            return Err(no_guest(format!(
                "its format is {}; expected {FORMAT}",
                manifest.format
            )));
        }
        for (record, name) in [(&manifest.kernel, KERNEL), (&manifest.initramfs, INITRAMFS)] {
            if record.file != name {
                return Err(no_guest(format!(
                    "it names a file {:?}; expected {name:?}",
                    record.file
                )));
            }
            let bytes = fs::metadata(directory.join(name))
                .map_err(|error| no_guest(format!("{name}: {error}")))?
                .len();
            if bytes != record.bytes {
                return Err(no_guest(format!(
                    "{name} has {bytes} bytes; expected {}",
                    record.bytes
                )));
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            manifest,
            cached: true,
        })
    }

    /// Compares the files with the digests in the manifest.
    ///
    /// # Errors
    /// A file that cannot be read, or is another.
    pub fn verify(&self) -> Result<(), GuestBuildError> {
        for record in [&self.manifest.kernel, &self.manifest.initramfs] {
            let path = self.directory.join(&record.file);
            let found = digest::of_file(&path).doing("reading", &path)?;
            if found != record.sha256 {
                return Err(GuestBuildError::NoGuest {
                    path: self.directory.clone(),
                    what: format!(
                        "the SHA-256 of {} is {found}; expected {}",
                        record.file, record.sha256
                    ),
                });
            }
        }
        Ok(())
    }

    /// The kernel: a bzImage.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.directory.join(KERNEL)
    }

    /// The root file system.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join(INITRAMFS)
    }

    /// The kernel's arguments, for a guest at `address` (`10.77.0.2/24`). [`CONTROL`] may follow.
    #[must_use]
    pub fn command_line(&self, address: &str) -> String {
        format!("{} lockstep.ip={address}", self.manifest.command_line)
    }

    /// Copies the guest's files to `directory`, which appears whole. A guest that is there is replaced.
    ///
    /// # Errors
    /// Something else is there, or cannot be written.
    pub fn copy_to(&self, directory: &Path) -> Result<Self, GuestBuildError> {
        if directory.symlink_metadata().is_ok() && Self::open(directory).is_err() {
            return Err(GuestBuildError::Occupied {
                path: directory.to_owned(),
            });
        }
        let parent = match directory.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).doing("making", parent)?;
        let copy = temporary(parent)?;
        for name in [KERNEL, INITRAMFS, MANIFEST] {
            let path = copy.path().join(name);
            fs::copy(self.directory.join(name), &path).doing("writing", &path)?;
        }
        publish(copy, directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            ..self.clone()
        })
    }
}

/// What the package client came to, kept for the next build.
#[derive(Debug, Serialize, Deserialize)]
struct Resolution {
    packages: Vec<Package>,
    stand_ins: Vec<String>,
}

/// Builds guests in a cache directory.
#[derive(Debug, Clone)]
pub struct Builder {
    cache: PathBuf,
    /// How old may be what is known of the archive's versions. A day.
    pub freshness: Freshness,
    /// A file in the format of apt.conf(5), read after the host's configuration: other sources
    /// (`Dir::Etc::sourcelist`), a proxy. It has a cache of its own.
    pub apt_configuration: Option<PathBuf>,
}

impl Builder {
    /// A builder with that cache directory, which is made when it is needed.
    #[must_use]
    pub fn new(cache: &Path) -> Self {
        Self {
            cache: cache.to_owned(),
            freshness: Freshness::Within(Duration::from_secs(24 * 60 * 60)),
            apt_configuration: None,
        }
    }

    /// Where guests are cached for this user: `lockstep/guests` in `XDG_CACHE_HOME` or `~/.cache`, or in
    /// the system's temporary directory for who has no home.
    #[must_use]
    pub fn default_cache() -> PathBuf {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))
            .unwrap_or_else(std::env::temp_dir)
            .join("lockstep/guests")
    }

    /// The guest that `spec` describes: from the cache, or built. Needs apt-get and dpkg-deb, sources of
    /// amd64 packages in the host's apt configuration, the network for what is not at hand, and no root.
    ///
    /// # Errors
    /// What is missing or wrong, and what to do about it.
    pub fn build(
        &self,
        spec: &GuestSpec,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Guest, GuestBuildError> {
        let requested = spec.requested();
        for name in requested.iter().chain(&spec.stand_ins(&requested)) {
            package::check_name(name)?;
        }
        fs::create_dir_all(&self.cache).doing("making", &self.cache)?;
        // apt-get changes its directory, and relative paths of ours with it.
        let mut cache = fs::canonicalize(&self.cache).doing("finding", &self.cache)?;
        let configuration = self
            .apt_configuration
            .as_deref()
            .map(|path| fs::canonicalize(path).doing("finding", path))
            .transpose()?;
        if let Some(path) = &configuration {
            // Other sources, other versions.
            let name = digest::of_file(path).doing("reading", path)?;
            cache = cache.join(format!("apt-{}", &name[..16]));
            fs::create_dir_all(&cache).doing("making", &cache)?;
        }
        let configuration = configuration.as_deref();
        let _lock = lock(&cache, progress)?;
        let resolution = self.resolve(&cache, configuration, spec, &requested, progress)?;
        let name = guest_digest(spec, &requested, &resolution);
        let directory = cache.join("guests").join(&name);
        if let Ok(guest) = Guest::open(&directory) {
            return Ok(guest);
        }
        let pool = cache.join("pool");
        progress(Step::Fetching {
            begun: 0,
            missing: resolution.packages.len(),
        });
        Apt::open(&cache.join("apt"), configuration)?.fetch(
            &resolution.packages,
            &pool,
            &mut |begun, missing| {
                progress(Step::Fetching { begun, missing });
            },
        )?;
        let (mut tree, release, kernel) =
            assemble(spec.recipe.as_ref(), &resolution.packages, &pool, progress)?;
        let modules = root::keep_modules(&mut tree, &release, &spec.modules())?;
        root::furnish(&mut tree, spec.recipe.as_ref())?;
        progress(Step::Writing);
        let guests = cache.join("guests");
        fs::create_dir_all(&guests).doing("making", &guests)?;
        let new = temporary(&guests)?;
        let manifest = Manifest {
            format: FORMAT,
            guest: name,
            builder: builder(),
            recipe: spec.recipe.as_ref().map(|recipe| RecipeRecord {
                name: recipe.name.clone(),
                summary: recipe.summary.clone(),
                sha256: recipe_digest(recipe),
            }),
            requested,
            stand_ins: resolution.stand_ins,
            packages: resolution.packages,
            kernel_release: release,
            modules,
            kernel: write(new.path(), KERNEL, |to| to.write_all(&kernel))?,
            initramfs: write(new.path(), INITRAMFS, |to| cpio::write(&tree, to))?,
            command_line: COMMAND_LINE.to_owned(),
            memory_mib: spec
                .recipe
                .as_ref()
                .map_or(MEMORY_MIB, |recipe| recipe.memory_mib),
            disk_mib: spec.recipe.as_ref().and_then(|recipe| recipe.disk_mib),
            ports: spec
                .recipe
                .as_ref()
                .map_or_else(Vec::new, |recipe| recipe.ports.clone()),
            ready_marker: READY_MARKER.to_owned(),
        };
        write(new.path(), MANIFEST, |to| {
            serde_json::to_writer_pretty(&mut *to, &manifest)?;
            to.write_all(b"\n")
        })?;
        publish(new, &directory)?;
        Ok(Guest {
            directory,
            manifest,
            cached: false,
        })
    }

    fn resolve(
        &self,
        cache: &Path,
        configuration: Option<&Path>,
        spec: &GuestSpec,
        requested: &[String],
        progress: &mut dyn FnMut(Step),
    ) -> Result<Resolution, GuestBuildError> {
        let stand_ins = spec.stand_ins(requested);
        let resolved = cache.join("resolved");
        fs::create_dir_all(&resolved).doing("making", &resolved)?;
        let question = digest::of(format!("{requested:?} {stand_ins:?}").as_bytes());
        let path = resolved.join(format!("{question}.json"));
        if let Some(known) = self.known(&path) {
            return Ok(known);
        }
        let Freshness::Within(age) = self.freshness else {
            return Err(GuestBuildError::NeverResolved);
        };
        let apt = Apt::open(&cache.join("apt"), configuration)?;
        progress(Step::Updating);
        let complaint = apt.update(age)?;
        progress(Step::Resolving);
        let resolution = match apt.resolve(requested, &stand_ins) {
            Ok(packages) => Resolution {
                packages,
                stand_ins,
            },
            // Some package wants one of the stand-ins in exactly its own version: then nothing stands in.
            Err(error) => match apt.resolve(requested, &[]) {
                Ok(packages) => {
                    progress(Step::Warning(
                        "all dependencies are in the guest: the packages cannot do without some that \
                         are otherwise left out"
                            .to_owned(),
                    ));
                    Resolution {
                        packages,
                        stand_ins: Vec::new(),
                    }
                }
                Err(_) => {
                    if let Some(complaint) = complaint {
                        progress(Step::Warning(format!("apt-get update: {complaint}")));
                    }
                    return Err(error);
                }
            },
        };
        // A half file is no answer, and is never read as one: it is put in place whole.
        let mut file = tempfile::NamedTempFile::new_in(&resolved).doing("writing", &resolved)?;
        serde_json::to_writer(&mut file, &resolution)
            .map_err(std::io::Error::from)
            .doing("writing", &path)?;
        file.persist(&path)
            .map_err(|error| error.error)
            .doing("writing", &path)?;
        Ok(resolution)
    }

    /// What these packages came to before, if that is fresh enough.
    fn known(&self, path: &Path) -> Option<Resolution> {
        let modified = fs::metadata(path).ok()?.modified().ok()?;
        let old = SystemTime::now().duration_since(modified).ok()?;
        if matches!(self.freshness, Freshness::Within(most) if old >= most) {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// Everything of the packages in one tree, and the kernel, which is none of it.
fn assemble(
    recipe: Option<&Recipe>,
    packages: &[Package],
    pool: &Path,
    progress: &mut dyn FnMut(Step),
) -> Result<(Tree, String, Vec<u8>), GuestBuildError> {
    let mut tree = root::empty().map_err(|error| GuestBuildError::PackageContents {
        package: "none".to_owned(),
        what: error.to_string(),
    })?;
    let wanted = root::wanted(recipe);
    for (done, package) in packages.iter().enumerate() {
        progress(Step::Unpacking {
            package: package.name.clone(),
            done,
            all: packages.len(),
        });
        let file = pool.join(package.file_name());
        if package.name.starts_with("linux-image-") {
            package::unpack(package, &file, &root::wanted_of_kernel, &mut tree)?;
        } else {
            package::unpack(package, &file, &wanted, &mut tree)?;
        }
    }
    let (release, kernel) = root::take_kernel(&mut tree)?;
    Ok((tree, release, kernel))
}

/// Waits until no other build uses the cache; it is ours until the file is closed.
fn lock(cache: &Path, progress: &mut dyn FnMut(Step)) -> Result<fs::File, GuestBuildError> {
    let path = cache.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .doing("opening", &path)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        progress(Step::Waiting);
        flock(&file, FlockOperation::LockExclusive)
            .map_err(std::io::Error::from)
            .doing("locking", &path)?;
    }
    Ok(file)
}

/// Version of this program, and a digest of what it adds to packages.
fn builder() -> String {
    let added = format!("{}\0{COMMAND_LINE}\0{READY_MARKER}", root::ingredients());
    format!(
        "{} {}",
        env!("CARGO_PKG_VERSION"),
        &digest::of(added.as_bytes())[..16]
    )
}

/// Of what a recipe says, not of how its file is laid out.
fn recipe_digest(recipe: &Recipe) -> String {
    digest::of(format!("{recipe:?}").as_bytes())
}

/// All that a guest is made from.
fn guest_digest(spec: &GuestSpec, requested: &[String], resolution: &Resolution) -> String {
    let packages: Vec<(&str, &str)> = resolution
        .packages
        .iter()
        .map(|package| (package.name.as_str(), package.sha256.as_str()))
        .collect();
    digest::of(
        format!(
            "{FORMAT} {} {:?} {requested:?} {:?} {:?} {packages:?}",
            builder(),
            spec.recipe,
            spec.modules(),
            resolution.stand_ins
        )
        .as_bytes(),
    )
}

fn write(
    directory: &Path,
    name: &str,
    contents: impl FnOnce(&mut BufWriter<fs::File>) -> std::io::Result<()>,
) -> Result<FileRecord, GuestBuildError> {
    let path = directory.join(name);
    let written = || -> std::io::Result<FileRecord> {
        let mut file = BufWriter::new(fs::File::create(&path)?);
        contents(&mut file)?;
        file.into_inner()?.sync_all()?;
        Ok(FileRecord {
            file: name.to_owned(),
            bytes: fs::metadata(&path)?.len(),
            sha256: digest::of_file(&path)?,
        })
    };
    written().doing("writing", &path)
}

/// A directory that goes away again if nobody publishes it.
fn temporary(parent: &Path) -> Result<tempfile::TempDir, GuestBuildError> {
    tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(parent)
        .doing("making a directory in", parent)
}

/// Puts a finished directory in its place, whole, instead of what was there.
fn publish(new: tempfile::TempDir, place: &Path) -> Result<(), GuestBuildError> {
    use std::os::unix::fs::PermissionsExt;
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(new.path(), open).doing("writing", new.path())?;
    if place.exists() {
        fs::remove_dir_all(place).doing("replacing", place)?;
    }
    fs::rename(new.path(), place).doing("writing", place)?;
    // It is no longer where it would be cleaned up.
    let _ = new.keep();
    Ok(())
}
