//! `lockstep guest`: guests from Debian's packages.

use crate::progress::Progress;
use clap::{Args, Subcommand};
use lockstep_guest::debian::{
    Builder, Freshness, Guest, GuestBuildError, GuestSpec, KERNEL_PACKAGE, Recipe, Step,
    recipe_names,
};
use std::path::PathBuf;
use std::time::Duration;

/// Environment variable that names the cache directory.
const CACHE: &str = "LOCKSTEP_GUEST_CACHE";

/// Arguments of `lockstep guest`.
#[derive(Debug, Args)]
pub struct GuestArguments {
    /// What to do
    #[command(subcommand)]
    action: Action,
}

/// What there is to do.
#[derive(Debug, Subcommand)]
enum Action {
    /// Build a guest from Debian's packages: kernel, initramfs and manifest.json
    ///
    /// Uses this host's apt-get with a state of its own: needs no root, and installs nothing.
    Build(BuildArguments),
    /// The recipes that are ready
    Recipes,
}

/// Arguments of `lockstep guest build`.
#[derive(Debug, Args)]
struct BuildArguments {
    /// What the guest serves: redis, nginx, sqlite, postgresql, or the path of a recipe
    #[arg(long, value_name = "RECIPE")]
    recipe: Option<String>,
    /// More packages
    #[arg(value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Copy the guest to this directory, which is made [default: leave it in the cache]
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// The package that brings the kernel
    #[arg(long, value_name = "PACKAGE", default_value = KERNEL_PACKAGE)]
    kernel: String,
    /// Another kernel module to load; may be repeated
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Ask the archive for newer versions if the last answer is older
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    max_age: u64,
    /// Ask nothing: take the versions of an earlier build
    #[arg(long, conflicts_with = "max_age")]
    offline: bool,
    /// Where package files and guests are kept [env: LOCKSTEP_GUEST_CACHE]
    /// [default: lockstep/guests in XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "DIRECTORY")]
    cache: Option<PathBuf>,
    /// Configuration for apt, read after this host's: other sources, a proxy
    #[arg(long, value_name = "FILE")]
    apt_config: Option<PathBuf>,
    /// Print manifest.json instead of a summary
    #[arg(long)]
    json: bool,
}

/// Does what was asked for.
///
/// # Errors
/// The guest could not be built, and what to do about it.
pub fn guest(arguments: &GuestArguments) -> Result<(), GuestBuildError> {
    match &arguments.action {
        Action::Build(arguments) => build(arguments),
        Action::Recipes => {
            for name in recipe_names() {
                let recipe = Recipe::load(name)?;
                println!("{name:<12} {}", recipe.summary);
            }
            Ok(())
        }
    }
}

/// The cache directory that was asked for, by argument or environment, or this user's.
#[must_use]
pub fn cache_directory(asked_for: Option<PathBuf>) -> PathBuf {
    asked_for
        .or_else(|| std::env::var_os(CACHE).map(PathBuf::from))
        .unwrap_or_else(Builder::default_cache)
}

/// Shows what a build is doing.
pub fn show(progress: &Progress, step: Step) {
    match step {
        Step::Waiting => progress.step("waiting for another build to end"),
        Step::Updating => {
            progress.step("asking the archive which versions there are (apt-get update)")
        }
        Step::Resolving => progress.step("resolving dependencies (apt-get)"),
        Step::Warning(what) => progress.note(&what),
        Step::Fetching { begun: 0, .. } => progress.step("fetching packages"),
        Step::Fetching { begun, missing } => {
            progress.live(&format!("fetching package {begun} of {missing}"));
        }
        Step::Unpacking { done: 0, .. } => progress.step("unpacking packages"),
        Step::Unpacking { package, done, all } => {
            progress.live(&format!("unpacking {package} ({} of {all})", done + 1));
        }
        Step::Writing => progress.step("writing kernel and initramfs"),
    }
}

fn build(arguments: &BuildArguments) -> Result<(), GuestBuildError> {
    let spec = GuestSpec {
        packages: arguments.packages.clone(),
        kernel_package: arguments.kernel.clone(),
        modules: arguments.modules.clone(),
        ..GuestSpec::new(arguments.recipe.as_deref().map(Recipe::load).transpose()?)
    };
    let mut builder = Builder::new(&cache_directory(arguments.cache.clone()));
    builder.freshness = if arguments.offline {
        Freshness::Offline
    } else {
        Freshness::Within(Duration::from_secs(arguments.max_age.saturating_mul(3600)))
    };
    builder.apt_configuration = arguments.apt_config.clone();
    let progress = Progress::new();
    let mut guest = builder.build(&spec, &mut |step| show(&progress, step))?;
    if let Some(out) = &arguments.out {
        progress.step(&format!("copying to {}", out.display()));
        guest = guest.copy_to(out)?;
    }
    drop(progress);
    if arguments.json {
        println!("{}", serde_json::json!(guest.manifest));
    } else {
        print!("{}", summary(&guest));
    }
    Ok(())
}

fn summary(guest: &Guest) -> String {
    let manifest = &guest.manifest;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let serves = manifest.recipe.as_ref().map_or_else(
        || "nothing: a shell on the console".to_owned(),
        |recipe| recipe.summary.clone(),
    );
    let disk = manifest.disk_mib.map_or_else(String::new, |mib| {
        format!(", and a disk of {mib} MiB for its data")
    });
    let cached = if guest.cached { " (was there)" } else { "" };
    format!(
        "  serves        {serves}\n  \
           kernel        {} ({}, {:.1} MiB)\n  \
           initramfs     {} ({:.1} MiB)\n  \
           packages      {}, see {}\n  \
           command line  {} lockstep.ip=ADDRESS/PREFIX\n  \
           memory        {} MiB{disk}\n  \
           guest         {}{cached}\n",
        guest.kernel().display(),
        manifest.kernel_release,
        mib(manifest.kernel.bytes),
        guest.initramfs().display(),
        mib(manifest.initramfs.bytes),
        manifest.packages.len(),
        guest.directory.join("manifest.json").display(),
        manifest.command_line,
        manifest.memory_mib,
        manifest.guest,
    )
}
