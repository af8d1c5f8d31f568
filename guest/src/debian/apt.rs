//! The package client, with a state of its own: nothing of the host's is changed, nothing needs root.
//!
//! apt-get reads the host's configuration (sources, keys, proxies) and then ours, which points its
//! lists, caches and dpkg's status file into the cache directory. That status file says which packages
//! are *installed* and so which dependencies are already met: only the stand-ins. Everything else is
//! resolved from scratch, by apt-get, as on an empty machine.

use super::digest;
use super::error::{Doing, GuestBuildError};
use super::package::Package;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// Debian's name of the architecture that the machine has.
pub(super) const ARCHITECTURE: &str = "amd64";

/// Packages that a guest does without although others depend on them: they are there for maintainer
/// scripts, which are not run, for making an initramfs, which is made here, or to start services, which
/// our init does. `usrmerge` is how the tree begins.
pub(super) const STAND_INS: [&str; 20] = [
    "adduser",
    "debconf",
    "dpkg",
    "init-system-helpers",
    "initramfs-tools",
    "kmod",
    "libpam-modules",
    "libpam-runtime",
    "linux-base",
    "linux-initramfs-tool",
    "lsb-base",
    "passwd",
    "perl-base",
    "sensible-utils",
    "systemd",
    "sysvinit-utils",
    "tar",
    "ucf",
    "udev",
    "usrmerge",
];

/// How much of what a failing program said is passed on, bytes.
const SAID_MOST: usize = 4000;

/// apt-get with its own state.
#[derive(Debug)]
pub(super) struct Apt {
    home: PathBuf,
    /// Read after the host's configuration and before ours.
    further: Option<PathBuf>,
}

impl Apt {
    /// Makes the state in `home`, which stays there for the next time.
    pub(super) fn open(home: &Path, further: Option<&Path>) -> Result<Self, GuestBuildError> {
        for (program, package) in [("apt-get", "apt"), ("dpkg-deb", "dpkg")] {
            let there = Command::new(program)
                .arg("--version")
                .stdin(Stdio::null())
                .output();
            if let Err(source) = there {
                return Err(GuestBuildError::ProgramMissing {
                    program,
                    package,
                    source,
                });
            }
        }
        let apt = Self {
            home: home.to_owned(),
            further: further.map(Path::to_owned),
        };
        for directory in ["lists/partial", "cache/archives/partial", "log"] {
            let path = home.join(directory);
            fs::create_dir_all(&path).doing("making", &path)?;
        }
        let path = apt.configuration();
        fs::write(&path, configuration(home)).doing("writing", &path)?;
        Ok(apt)
    }

    /// Fetches the package lists, if those at hand are older than `age`. A source of the host's that
    /// fails need not matter: if it does, the packages will not be found. Returns what was said then.
    pub(super) fn update(&self, age: Duration) -> Result<Option<String>, GuestBuildError> {
        let stamp = self.home.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|stamp| stamp.modified())
            .ok()
            .and_then(|then| SystemTime::now().duration_since(then).ok())
            .is_some_and(|old| old < age);
        if fresh {
            return Ok(None);
        }
        self.write_status(&[])?;
        let mut command = self.apt_get();
        command.args(["-q", "update"]);
        match run(command) {
            Ok(_) => {
                fs::write(&stamp, "").doing("writing", &stamp)?;
                Ok(None)
            }
            Err(GuestBuildError::ProgramFailed { said, .. }) => Ok(Some(said)),
            Err(error) => Err(error),
        }
    }

    /// `packages` and all that they need and `stand_ins` are not, in exact versions.
    pub(super) fn resolve(
        &self,
        packages: &[String],
        stand_ins: &[String],
    ) -> Result<Vec<Package>, GuestBuildError> {
        self.write_status(stand_ins)?;
        let mut command = self.apt_get();
        command.args([
            "-qq",
            "--yes",
            "--print-uris",
            "--no-install-recommends",
            "install",
        ]);
        command.args(packages);
        let output = run(command).map_err(|error| match error {
            GuestBuildError::ProgramFailed { said, .. } => GuestBuildError::Unresolvable {
                packages: packages.to_vec(),
                said,
            },
            other => other,
        })?;
        let mut resolved = output
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(parse_uri)
            .collect::<Result<Vec<_>, _>>()?;
        resolved.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(resolved)
    }

    /// Has the files of `packages` in `pool`, checked against their digests.
    pub(super) fn fetch(
        &self,
        packages: &[Package],
        pool: &Path,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), GuestBuildError> {
        fs::create_dir_all(pool).doing("making", pool)?;
        let missing: Vec<&Package> = packages
            .iter()
            .filter(|package| {
                let path = pool.join(package.file_name());
                !digest::of_file(&path).is_ok_and(|digest| digest == package.sha256)
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        // apt-get writes a file under its own name while it comes in: what is in the pool is checked
        // each time, so a half one is only fetched again.
        let mut command = self.apt_get();
        command.current_dir(pool).args(["-q", "download"]);
        for package in &missing {
            command.arg(format!("{}={}", package.name, package.version));
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| GuestBuildError::ProgramMissing {
                program: "apt-get",
                package: "apt",
                source,
            })?;
        // Standard error has a pipe's room for warnings, and is read after standard output has ended.
        if let Some(lines) = child.stdout.take().map(BufReader::new) {
            let mut begun = 0;
            for line in lines.lines().map_while(Result::ok) {
                if line.starts_with("Get:") {
                    begun += 1;
                    progress(begun, missing.len());
                }
            }
        }
        let output = child
            .wait_with_output()
            .doing("fetching packages to", pool)?;
        if !output.status.success() {
            return Err(failed("apt-get download", &output));
        }
        for package in missing {
            let path = pool.join(package.file_name());
            let found = digest::of_file(&path).doing("reading", &path)?;
            if found != package.sha256 {
                return Err(GuestBuildError::PackageDigest {
                    path,
                    found,
                    expected: package.sha256.clone(),
                });
            }
        }
        Ok(())
    }

    fn configuration(&self) -> PathBuf {
        self.home.join("apt.conf")
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        if let Some(further) = &self.further {
            command.arg("-c").arg(further);
        }
        // Read last, so that it wins over the host's configuration.
        command.arg("-c").arg(self.configuration());
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn write_status(&self, stand_ins: &[String]) -> Result<(), GuestBuildError> {
        let path = self.home.join("status");
        let text: String = stand_ins.iter().map(|name| stand_in(name)).collect();
        fs::write(&path, text).doing("writing", &path)
    }
}

/// Our part of apt's configuration (apt.conf(5)).
fn configuration(home: &Path) -> String {
    let home = home.display();
    format!(
        "// Written anew by each build.\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear APT::Architectures;\n\
         APT::Architecture \"{ARCHITECTURE}\";\n\
         APT::Architectures {{ \"{ARCHITECTURE}\"; }};\n\
         APT::Install-Recommends \"false\";\n\
         APT::Install-Suggests \"false\";\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::ForceHash \"sha256\";\n\
         Acquire::Retries \"3\";\n\
         Dir::State \"{home}\";\n\
         Dir::State::lists \"{home}/lists\";\n\
         Dir::State::status \"{home}/status\";\n\
         Dir::State::extended_states \"{home}/extended_states\";\n\
         Dir::Cache \"{home}/cache\";\n\
         Dir::Cache::archives \"{home}/cache/archives\";\n\
         Dir::Cache::pkgcache \"pkgcache.bin\";\n\
         Dir::Cache::srcpkgcache \"srcpkgcache.bin\";\n\
         Dir::Log \"{home}/log\";\n"
    )
}

/// A package that is taken for installed, in a version that meets every relation.
fn stand_in(name: &str) -> String {
    format!(
        "Package: {name}\nStatus: install ok installed\nPriority: optional\nSection: misc\n\
         Maintainer: Lockstep\nArchitecture: all\nMulti-Arch: foreign\nVersion: 9999:0\n\
         Description: what the guest does without\n\n"
    )
}

/// A line of `--print-uris`: `'URI' FILE BYTES SHA256:DIGEST`.
fn parse_uri(line: &str) -> Result<Package, GuestBuildError> {
    let wrong = || GuestBuildError::AptOutput {
        found: line.to_owned(),
        expected: "'URI' NAME_VERSION_ARCHITECTURE.deb BYTES SHA256:DIGEST",
    };
    let mut words = line.split_whitespace().skip(1);
    let file = words.next().ok_or_else(wrong)?;
    let bytes = words
        .next()
        .ok_or_else(wrong)?
        .parse()
        .map_err(|_| wrong())?;
    let sha256 = words
        .next()
        .and_then(|hash| hash.strip_prefix("SHA256:"))
        .filter(|hash| hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit()))
        .ok_or_else(wrong)?;
    let mut parts = file.strip_suffix(".deb").ok_or_else(wrong)?.split('_');
    let (Some(name), Some(version), Some(architecture), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong());
    };
    super::package::check_name(name)?;
    let package = Package {
        name: name.to_owned(),
        version: version.replace("%3a", ":"),
        architecture: architecture.to_owned(),
        bytes,
        sha256: sha256.to_ascii_lowercase(),
    };
    // The name becomes a path, and leads back to this file.
    if package.file_name() != file || file.contains('/') {
        return Err(wrong());
    }
    Ok(package)
}

fn run(mut command: Command) -> Result<String, GuestBuildError> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| {
        GuestBuildError::ProgramMissing {
            program: "apt-get",
            package: "apt",
            source,
        }
    })?;
    if !output.status.success() {
        return Err(failed(&format!("{command:?}"), &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn failed(command: &str, output: &std::process::Output) -> GuestBuildError {
    let mut said = Vec::new();
    // Both: apt-get explains unmet dependencies on standard output.
    for stream in [&output.stdout, &output.stderr] {
        let end = &stream[stream.len().saturating_sub(SAID_MOST)..];
        let _ = (&mut &*end).read_to_end(&mut said);
    }
    GuestBuildError::ProgramFailed {
        command: command.to_owned(),
        status: output.status.to_string(),
        said: String::from_utf8_lossy(&said).trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apt_becomes_a_package_or_an_error() {
        let digest = "ba4f88f73dbc3ae9055f3c20f4523bfdbaf1ad13ff95e258924f77d20b4fbedf";
        let line = format!(
            "'http://archive.example/pool/l/libcap2_2.66-4%2bb1_amd64.deb' libcap2_1%3a2.66-4+b1_amd64.deb 27708 SHA256:{digest}"
        );
        let package = parse_uri(&line).expect("a package");
        assert_eq!(package.version, "1:2.66-4+b1");
        assert_eq!(package.sha256, digest);
        assert_eq!(package.file_name(), "libcap2_1%3a2.66-4+b1_amd64.deb");
        for (from, to) in [
            ("SHA256:", "MD5Sum:"),
            ("27708", "many"),
            (".deb 2", ".rpm 2"),
            (" libcap2_", " ../libcap2_"),
            ("_amd64.deb 2", "_amd64_x.deb 2"),
            (digest, "ba4f"),
        ] {
            let line = line.replace(from, to);
            parse_uri(&line).expect_err(&line);
        }
    }
}
