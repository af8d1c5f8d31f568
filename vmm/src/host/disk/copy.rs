//! A disk of the side's own, as a copy of the other side's: its file, held by this process alone, and the record of
//! what may differ ([`crate::ft::disk::copy`]), beside it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags, FlockOperation, SeekFrom, fadvise, fallocate, flock};
use rustix::io::Errno;

use crate::ft::disk::copy::{CopyState, PAGE_BYTES, Record, RecordError, Standing};
use crate::ft::disk::resync::BLOCK_BYTES;

/// What the record of a disk's copy is called: the disk's name, and this.
const SUFFIX: &str = "copy";

/// A copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The disk's file.
    #[error("disk {}: {step}: {source}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "disk {} is an own disk of a machine that runs on this host already: end that one first, or name another file",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A block device has nowhere to put its record.
    #[error(
        "disk {} is a block device, and what lies beside it in /dev does not last: name a directory for its copy \
         record by --copy-records",
        path.display()
    )]
    NowhereForRecord {
        /// The device.
        path: PathBuf,
    },
    /// The record cannot be read or written.
    #[error("the copy record {}: {step}: {source}", path.display())]
    Io {
        /// The record.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// What is there is no record of this disk.
    #[error(
        "the copy record {}: {source}. If the disk is what you want, delete the record: both copies are then compared \
         in full when they next meet",
        path.display()
    )]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The copy is incomplete.
    #[error(
        "disk {} was being made equal to its primary's when that ended, so it is no whole disk: start it as the backup, \
         and the other host as the primary",
        path.display()
    )]
    Incomplete {
        /// The disk.
        path: PathBuf,
    },
    /// A copy is to be used as if it were none.
    #[error(
        "disk {} is one side's own copy, for there is {}: name it own:FILE, or delete that file if its other copy \
         is not wanted any more",
        path.display(),
        record.display()
    )]
    NotShared {
        /// The disk.
        path: PathBuf,
        /// Its record.
        record: PathBuf,
    },
}

/// A copy, open.
#[derive(Debug)]
pub struct CopyFile {
    path: PathBuf,
    bytes: u64,
    /// Locked. Through the page cache: the kernel keeps that and direct I/O of one host together.
    disk: File,
    record_path: PathBuf,
    record: Option<(File, Record)>,
    /// Where data begins, or is known to: what lies before it, from where the last look was, is a hole.
    hole: std::ops::Range<u64>,
}

/// Where the record of the disk at `path` is: in `directory`, or beside it.
///
/// # Errors
/// It is a block device, and there is no `directory`.
fn record_path(path: &Path, directory: Option<&Path>) -> Result<PathBuf, CopyError> {
    // One file may have several names; it has one record.
    let real = path
        .canonicalize()
        .map_err(disk_error(path, "finding it"))?;
    let mut name = real.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(SUFFIX);
    match directory {
        Some(directory) => Ok(directory.join(name)),
        None => {
            let kind = real.metadata().map_err(disk_error(path, "looking at it"))?;
            if kind.file_type().is_block_device() {
                let path = path.to_owned();
                return Err(CopyError::NowhereForRecord { path });
            }
            Ok(real.with_file_name(name))
        }
    }
}

fn disk_error(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> CopyError {
    move |source| CopyError::Disk {
        path: path.to_owned(),
        step,
        source,
    }
}

fn record_error(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> CopyError {
    move |source| CopyError::Io {
        path: path.to_owned(),
        step,
        source,
    }
}

/// That a disk that both hosts are to reach is not one side's own copy, with a record in `directory` or beside it:
/// what is written to it without its record would be missing there.
///
/// # Errors
/// It is one.
pub fn check_shared(path: &Path, directory: Option<&Path>) -> Result<(), CopyError> {
    let Ok(record) = record_path(path, directory) else {
        // What is wrong with the file itself is said by whoever opens it.
        return Ok(());
    };
    match record.exists() {
        true => Err(CopyError::NotShared {
            path: path.to_owned(),
            record,
        }),
        false => Ok(()),
    }
}

impl CopyFile {
    /// Opens the disk at `path`, of `bytes` bytes, for this process alone, and its record if there is one: in
    /// `directory`, or beside it.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub fn open(path: &Path, bytes: u64, directory: Option<&Path>) -> Result<Self, CopyError> {
        let record_path = record_path(path, directory)?;
        let disk = OpenOptions::new().read(true).write(true).open(path);
        let disk = disk.map_err(disk_error(path, "opening it"))?;
        match flock(&disk, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let path = path.to_owned();
                return Err(CopyError::InUse { path });
            }
            Err(error) => return Err(disk_error(path, "locking it")(error.into())),
        }
        let mut copy = Self {
            path: path.to_owned(),
            bytes,
            disk,
            record_path,
            record: None,
            hole: 0..0,
        };
        copy.load()?;
        Ok(copy)
    }

    fn load(&mut self) -> Result<(), CopyError> {
        let path = &self.record_path;
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(record_error(path, "opening it")(error)),
        };
        let mut bytes = Vec::new();
        // One more than there may be, so that a longer one is noticed.
        let most = Record::length(self.bytes) + 1;
        let read = (&file).take(most).read_to_end(&mut bytes);
        read.map_err(record_error(path, "reading it"))?;
        let wrong = |source| CopyError::Record {
            path: path.clone(),
            source,
        };
        let (record, damaged) = Record::from_bytes(&bytes, self.bytes).map_err(wrong)?;
        if damaged > 0 {
            tracing::warn!(
                record = %path.display(),
                damaged,
                "pages of the copy record are damaged: all that they stand for will be compared"
            );
        }
        self.record = Some((file, record));
        Ok(())
    }

    /// The disk's path, as it was named.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the disk.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is known of it.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref().map(|(_, record)| record)
    }

    /// That it is a whole disk, for a machine that is to run on it.
    ///
    /// # Errors
    /// It is not.
    pub fn check_whole(&self) -> Result<(), CopyError> {
        let standing = self.record().map(|record| record.standing);
        match standing {
            Some(Standing::Filling) => Err(CopyError::Incomplete {
                path: self.path.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// What the other side is told of it. Without a record the disk is read until something is found on it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn state(&mut self) -> Result<CopyState, CopyError> {
        if let Some(record) = self.record() {
            return Ok(CopyState::Known {
                pairing: record.pairing,
                standing: record.standing,
                clean: record.map.count() == 0,
            });
        }
        let mut buffer = vec![0; BLOCK_BYTES];
        for block in 0..crate::ft::disk::resync::blocks_of(self.bytes) {
            if self.read_block(block, &mut buffer)?.iter().any(|b| *b != 0) {
                return Ok(CopyState::Unknown);
            }
        }
        Ok(CopyState::Blank)
    }

    /// A request that has not started yet will change these bytes. Whether that is to be made durable first, by
    /// [`CopyFile::commit`]. A copy without a record has nothing to be kept.
    pub fn mark(&mut self, offset: u64, length: u64) -> bool {
        let record = self.record.as_mut();
        record.is_some_and(|(_, record)| record.map.mark(offset, length))
    }

    /// Makes what was marked durable.
    ///
    /// # Errors
    /// The record cannot be written: nothing that was marked may start.
    pub fn commit(&mut self) -> Result<(), CopyError> {
        let Some((file, record)) = &mut self.record else {
            return Ok(());
        };
        let changed = record.map.take_changed();
        let write = || -> io::Result<()> {
            for page in &changed {
                let at = (1 + u64::from(*page)) * PAGE_BYTES as u64;
                file.write_all_at(&record.map.page(*page), at)?;
            }
            if changed.is_empty() {
                return Ok(());
            }
            file.sync_data()
        };
        write().map_err(record_error(&self.record_path, "noting a first write"))
    }

    /// From here on the side stands so, durably. Without a record, nothing.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn stand(&mut self, standing: Standing) -> Result<(), CopyError> {
        let Some((file, record)) = &mut self.record else {
            return Ok(());
        };
        if record.standing == standing {
            return Ok(());
        }
        record.standing = standing;
        let header = record.header();
        let written = file
            .write_all_at(&header, 0)
            .and_then(|()| file.sync_data());
        written.map_err(record_error(
            &self.record_path,
            "noting how this side stands",
        ))
    }

    /// Puts `record` in the place of what is there, whole or not at all, durably.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn replace(&mut self, record: Record) -> Result<(), CopyError> {
        let mut new = self.record_path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        let write = || -> io::Result<File> {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&new)?;
            file.write_all(&record.to_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &self.record_path)?;
            let directory = self
                .record_path
                .parent()
                .filter(|p| !p.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(file)
        };
        let file = write().map_err(record_error(&self.record_path, "writing it"))?;
        self.record = Some((file, record));
        Ok(())
    }

    /// Reads a block into the front of `buffer`, and returns it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_block<'a>(
        &mut self,
        block: u64,
        buffer: &'a mut [u8],
    ) -> Result<&'a [u8], CopyError> {
        let (start, length) = self.extent(block);
        let bytes = &mut buffer[..length];
        if self.is_hole(start, length as u64) {
            bytes.fill(0);
            return Ok(bytes);
        }
        let read = self.disk.read_exact_at(bytes, start);
        read.map_err(disk_error(&self.path, "reading it"))?;
        Ok(bytes)
    }

    /// Whether a block begins and ends in a hole that is known, or can be found.
    fn is_hole(&mut self, start: u64, length: u64) -> bool {
        let end = start + length;
        if self.hole.start <= start && end <= self.hole.end {
            return true;
        }
        // What begins in data is not worth a second look: the next block's will find its end.
        let data = match rustix::fs::seek(&self.disk, SeekFrom::Data(start)) {
            Ok(data) => data,
            Err(Errno::NXIO) => self.bytes,
            // A device, or a file system without holes.
            Err(_) => start,
        };
        self.hole = start..data;
        end <= data
    }

    /// Writes a block.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_block(&mut self, block: u64, bytes: &[u8]) -> Result<(), CopyError> {
        let (start, length) = self.extent(block);
        self.hole = 0..0;
        let written = self
            .disk
            .write_all_at(&bytes[..length.min(bytes.len())], start);
        written.map_err(disk_error(&self.path, "writing it"))
    }

    /// Makes a block zero: a hole, where the file can have one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn zero_block(&mut self, block: u64) -> Result<(), CopyError> {
        let (start, length) = self.extent(block);
        self.hole = 0..0;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.disk, hole, start, length as u64).is_ok() {
            return Ok(());
        }
        let written = self.disk.write_all_at(&vec![0; length], start);
        written.map_err(disk_error(&self.path, "writing zeros to it"))
    }

    /// Makes the disk durable.
    ///
    /// # Errors
    /// It cannot be.
    pub fn sync(&self) -> Result<(), CopyError> {
        self.disk
            .sync_data()
            .map_err(disk_error(&self.path, "making it durable"))
    }

    /// Gives the memory back in which the kernel keeps what was read and written here: the machine goes past it.
    pub fn forget_cache(&self) {
        // Advice.
        let _given = fadvise(&self.disk, 0, None, Advice::DontNeed);
    }

    /// Where a block begins, and its length.
    fn extent(&self, block: u64) -> (u64, usize) {
        let start = block.saturating_mul(BLOCK_BYTES as u64);
        let length = self.bytes.saturating_sub(start).min(BLOCK_BYTES as u64);
        (start, length as usize)
    }
}

#[cfg(test)]
mod tests;
