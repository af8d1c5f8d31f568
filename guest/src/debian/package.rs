//! Debian packages by name, and what is in their archives.

use super::error::{Doing, GuestBuildError};
use super::tree::{Entry, Node, Tree};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Files of a package that are larger are refused: no program is, and a guest is memory.
const FILE_BYTES_MOST: u64 = 1 << 30;

/// A package in exactly one version.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version, epoch included.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Bytes of its file.
    pub bytes: u64,
    /// SHA-256 of its file, hexadecimal, as the signed package index has it.
    pub sha256: String,
}

impl Package {
    /// Name of its file, as the package client names it.
    #[must_use]
    pub fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }
}

/// # Errors
/// `name` is none by Debian Policy 5.6.1, or one that apt-get would take for an instruction.
pub(super) fn check_name(name: &str) -> Result<(), GuestBuildError> {
    let right =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '-' | '.');
    let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    // "name-" asks apt-get to remove it.
    if name.len() < 2 || !name.starts_with(first) || !name.chars().all(right) || name.ends_with('-')
    {
        return Err(GuestBuildError::PackageName {
            found: name.to_owned(),
        });
    }
    Ok(())
}

/// Adds what is in the package file to `tree`, but for what `wanted` does not want.
pub(super) fn unpack(
    package: &Package,
    file: &Path,
    wanted: &dyn Fn(&str) -> bool,
    tree: &mut Tree,
) -> Result<(), GuestBuildError> {
    let mut command = Command::new("dpkg-deb");
    command.arg("--fsys-tarfile").arg(file);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| GuestBuildError::ProgramMissing {
            program: "dpkg-deb",
            package: "dpkg",
            source,
        })?;
    let read = child
        .stdout
        .take()
        .map_or(Ok(()), |archive| add(package, archive, wanted, tree));
    let output = child.wait_with_output().doing("unpacking", file)?;
    // An archive that could not be read is the cause; what dpkg-deb says of its closed pipe is not.
    read?;
    if !output.status.success() {
        return Err(GuestBuildError::ProgramFailed {
            command: format!("dpkg-deb --fsys-tarfile {}", file.display()),
            status: output.status.to_string(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(())
}

fn add(
    package: &Package,
    archive: impl Read,
    wanted: &dyn Fn(&str) -> bool,
    tree: &mut Tree,
) -> Result<(), GuestBuildError> {
    let wrong = |what: String| GuestBuildError::PackageContents {
        package: package.name.clone(),
        what,
    };
    let unreadable = |error: std::io::Error| wrong(format!("its archive cannot be read: {error}"));
    let text = |bytes: &[u8], what: &str| {
        String::from_utf8(bytes.to_vec()).map_err(|_| {
            wrong(format!(
                "{what} {:?} is not UTF-8",
                bytes.escape_ascii().to_string()
            ))
        })
    };
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let path = text(&entry.path_bytes(), "path")?;
        let path = path.trim_start_matches("./").trim_matches('/').to_owned();
        if path.is_empty() || !wanted(&path) {
            continue;
        }
        let link = match entry.link_name_bytes() {
            Some(link) => text(&link, "link")?,
            None => String::new(),
        };
        let header = entry.header();
        let number = |number: std::io::Result<u64>, what: &str| {
            number
                .ok()
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| wrong(format!("{path} has no usable {what}")))
        };
        let mode = header.mode().map_err(unreadable)? & 0o7777;
        let uid = number(header.uid(), "owner")?;
        let gid = number(header.gid(), "group")?;
        let node = match header.entry_type() {
            tar::EntryType::Directory => Node::Directory,
            tar::EntryType::Symlink => Node::Symlink(link),
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let bytes = entry.size();
                if bytes > FILE_BYTES_MOST {
                    return Err(wrong(format!(
                        "{path} has {bytes} bytes; expected at most {FILE_BYTES_MOST}"
                    )));
                }
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents).map_err(unreadable)?;
                Node::File(contents.into())
            }
            tar::EntryType::Link => Node::File(linked(tree, &link).ok_or_else(|| {
                wrong(format!(
                    "{path} is a link to {link}, which is no file before it"
                ))
            })?),
            other => {
                return Err(wrong(format!(
                    "{path} is of type {other:?}, which no guest has"
                )));
            }
        };
        let entry = Entry {
            mode,
            uid,
            gid,
            node,
        };
        tree.insert(&path, entry)
            .map_err(|error| wrong(error.to_string()))?;
    }
    Ok(())
}

fn linked(tree: &Tree, path: &str) -> Option<Arc<[u8]>> {
    match &tree.get(path.trim_start_matches("./"))?.node {
        Node::File(contents) => Some(Arc::clone(contents)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_apt_would_obey_is_none() {
        for name in ["redis-server", "libstdc++6", "g++", "0ad", "python3.11"] {
            check_name(name).expect(name);
        }
        for name in [
            "",
            "a",
            "-y",
            "--help",
            "redis-",
            "Redis",
            "a b",
            "a;b",
            "redis/stable",
            "a=1",
            "./x.deb",
        ] {
            check_name(name).expect_err(name);
        }
    }

    #[test]
    fn a_file_name_gives_the_epoch_its_escape() {
        let package = Package {
            name: "redis-server".to_owned(),
            version: "5:7.0.15-1~deb12u10".to_owned(),
            architecture: "amd64".to_owned(),
            bytes: 0,
            sha256: String::new(),
        };
        assert_eq!(
            package.file_name(),
            "redis-server_5%3a7.0.15-1~deb12u10_amd64.deb"
        );
    }
}
