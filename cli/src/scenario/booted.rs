//! Guests that were booted once, kept beside their images: `booted-PROGRAM/`, with the machine in `snapshot`
//! and, if the guest has a disk, what was on it in `disk`. PROGRAM is the digest of the program that booted it,
//! for another program's machine may be another machine.
//!
//! Such a directory appears whole, by one rename, and goes whole. Who uses it holds a shared lock on it
//! (flock(2)): what other programs left is removed only if nobody does.

use lockstep_guest::debian::Guest;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use tempfile::TempDir;

/// How their names begin.
const PREFIX: &str = "booted-";

/// Of other programs' so many are kept: who changes between two builds need not boot each time.
const KEPT: usize = 2;

/// A guest, booted, and not removed as long as this lives.
#[derive(Debug, Clone)]
pub(super) struct Booted {
    directory: PathBuf,
    _in_use: Arc<File>,
}

impl Booted {
    /// What `program` booted before, if it is there.
    pub(super) fn find(guest: &Guest, program: &Path) -> io::Result<Option<Self>> {
        Self::open(place(guest, program)?)
    }

    fn open(directory: PathBuf) -> io::Result<Option<Self>> {
        let in_use = match File::open(&directory) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        flock(&in_use, FlockOperation::LockShared)?;
        // Somebody may have removed it between the two calls above.
        if !directory.join("snapshot").exists() {
            return Ok(None);
        }
        // By which those who clean up see that it is used.
        in_use.set_modified(SystemTime::now())?;
        Ok(Some(Self {
            directory,
            _in_use: Arc::new(in_use),
        }))
    }

    /// Puts what is in `new`, which lies beside the guest's images, in its place, and removes what others left
    /// there. If somebody else was faster, what he made is used.
    pub(super) fn keep(new: TempDir, guest: &Guest, program: &Path) -> io::Result<Self> {
        let place = place(guest, program)?;
        match fs::rename(new.path(), &place) {
            // It is no longer where it would be cleaned up.
            Ok(()) => drop(new.keep()),
            Err(error) => {
                let there = [
                    io::ErrorKind::DirectoryNotEmpty,
                    io::ErrorKind::AlreadyExists,
                ];
                if !there.contains(&error.kind()) {
                    return Err(error);
                }
            }
        }
        let kept = Self::open(place)?.ok_or_else(|| {
            let why = "what was just booted has been removed by another program";
            io::Error::new(io::ErrorKind::NotFound, why)
        })?;
        remove_superseded(&guest.directory, &kept.directory)?;
        Ok(kept)
    }

    /// The machine.
    pub(super) fn snapshot(&self) -> PathBuf {
        self.directory.join("snapshot")
    }

    /// What was on its disk, if it has one. It belongs to the snapshot: machines run with a copy.
    pub(super) fn disk(&self) -> Option<PathBuf> {
        Some(self.directory.join("disk")).filter(|disk| disk.exists())
    }
}

fn place(guest: &Guest, program: &Path) -> io::Result<PathBuf> {
    let digest = xxhash_rust::xxh3::xxh3_64(&fs::read(program)?);
    Ok(guest.directory.join(format!("{PREFIX}{digest:016x}")))
}

/// Removes from `directory` what was booted by other programs than the one that made `ours`, nobody uses, and
/// is not among the last that were used.
fn remove_superseded(directory: &Path, ours: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with(PREFIX) || entry.path() == ours {
            continue;
        }
        // It may be gone meanwhile: another program cleans up, too.
        if let Ok(used) = entry.metadata().and_then(|found| found.modified()) {
            others.push((used, entry.path()));
        }
    }
    others.sort();
    others.reverse();
    for (_, path) in others.into_iter().skip(KEPT) {
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        // Earlier versions kept files.
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Something booted long ago, the longer the larger `age`.
    fn left(directory: &Path, name: &str, age: u64) -> PathBuf {
        let path = directory.join(format!("{PREFIX}{name}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("snapshot"), "").unwrap();
        let then = SystemTime::now() - Duration::from_secs(age);
        File::open(&path).unwrap().set_modified(then).unwrap();
        path
    }

    #[test]
    fn what_is_used_or_was_lately_stays_and_the_rest_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let ours = left(at, "ours", 0);
        let old = left(at, "old", 5000);
        let used = left(at, "used", 6000);
        let recent = [left(at, "recent", 10), left(at, "before", 20)];
        let image = at.join("kernel");
        fs::write(&image, "").unwrap();
        let file = at.join("booted-0123.snapshot");
        fs::write(&file, "").unwrap();
        let then = SystemTime::now() - Duration::from_secs(7000);
        let opened = File::options().write(true).open(&file).unwrap();
        opened.set_modified(then).unwrap();
        let user = Booted::open(used.clone()).unwrap().expect("it is there");
        // Its use makes it the last used: back to where it was.
        let then = SystemTime::now() - Duration::from_secs(6000);
        File::open(&used).unwrap().set_modified(then).unwrap();
        remove_superseded(at, &ours).unwrap();
        for path in recent.iter().chain([&ours, &used, &image]) {
            assert!(path.exists(), "{}", path.display());
        }
        for path in [&old, &file] {
            assert!(!path.exists(), "{}", path.display());
        }
        drop(user);
        remove_superseded(at, &ours).unwrap();
        assert!(!used.exists());
        assert!(Booted::open(used).unwrap().is_none());
    }
}
