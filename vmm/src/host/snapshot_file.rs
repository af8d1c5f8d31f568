//! A machine saved in a file, from which both sides of a pair start.
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | magic, [`MAGIC`] |
//! | 8 | 4 | version of this format, [`VERSION`] |
//! | 12 | 4 | zero |
//! | 16 | 8 | bytes of the description |
//! | 24 | 8 | number of extents |
//! | 32 | 8 | where memory begins in the file, a multiple of 4096 |
//! | 40 | 8 | bytes of memory |
//! | 48 | 16 | XXH3-128 of memory |
//! | 64 | 16 | XXH3-128 of everything before memory but this field: the snapshot's digest |
//! | 80 | | description, JSON: what the machine was made from, its CPU and its devices |
//! | behind it | 16 each | extents: guest-physical address and length in bytes, ascending |
//! | | | contents of the extents, one behind the other |
//!
//! Numbers are little-endian. Pages of zeros are in no extent, so a file is as large as what the guest
//! has touched. The digest names the snapshot: two sides that start from files of one digest start
//! alike. A file is written beside its place and moved there when it is whole.
//!
//! What a guest sees when it goes on: no time has passed. Its clocks continue from the moment of the
//! snapshot, also the real-time clock, and nobody tells it otherwise; a guest that cares asks a time
//! server.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use lockstep_cpu::CpuModel;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};
use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::disk_template;
use crate::machine::engine::EngineKind;
use crate::machine::memory::{GuestRam, MemoryError, PAGE_BYTES};
use crate::machine::{Machine, MachineConfig, MachineError, MachineState};

/// How every snapshot begins.
pub const MAGIC: [u8; 8] = *b"LSTEPVMS";
/// Version of the format.
pub const VERSION: u32 = 2;
/// Bytes copied and digested at a time.
const CHUNK: usize = 256 << 10;
/// What the snapshot's digest covers of the header.
const DIGESTED: usize = std::mem::offset_of!(Header, digest);

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    description_bytes: U64,
    extents: U64,
    memory_start: U64,
    memory_bytes: U64,
    memory_digest: U128,
    digest: U128,
}

const _: () = assert!(size_of::<Header>() == 80 && DIGESTED == 64);

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct Extent {
    address: U64,
    bytes: U64,
}

/// What a machine was booted from: a snapshot is of use for nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Origin {
    /// The CPU that the guest saw.
    pub cpu_model: String,
    /// XXH3-128 of the kernel image, in hexadecimal digits.
    pub kernel_xxh3: String,
    /// XXH3-128 of the initial RAM disk, which holds the guest's packages.
    pub initrd_xxh3: Option<String>,
}

impl Origin {
    /// A machine booted from these images, by this program.
    #[must_use]
    pub fn of(kernel: &[u8], initrd: Option<&[u8]>) -> Self {
        let digest = |image: &[u8]| format!("{:032x}", xxh3_128(image));
        Self {
            cpu_model: CpuModel::x86_64_v1().name().to_owned(),
            kernel_xxh3: digest(kernel),
            initrd_xxh3: initrd.map(digest),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    origin: Origin,
    state: MachineState,
    /// What its disks held, by [`disk_template::digest`] in hexadecimal digits.
    #[serde(default)]
    disks: Vec<String>,
}

/// A snapshot cannot be written, read, or used here.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system refused.
    #[error("{step} {}: {source}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// No snapshot.
    #[error(
        "snapshot field `magic`: found {found:02x?}, expected {MAGIC:02x?}: this is no snapshot that Lockstep saved"
    )]
    Magic {
        /// What the file begins with, at most 8 bytes.
        found: Vec<u8>,
    },
    /// Another version's.
    #[error("snapshot field `version`: found {found}, expected {VERSION}: save it again")]
    Version {
        /// In the file.
        found: u32,
    },
    /// A number in it that does not fit the rest.
    #[error(
        "snapshot field `{field}`: found {found:#x}, expected {expected}: the file is damaged or cut off; save it again"
    )]
    Field {
        /// Which.
        field: &'static str,
        /// In the file.
        found: u64,
        /// What it should be.
        expected: String,
    },
    /// Its contents changed since it was saved.
    #[error(
        "the snapshot's {part} has digest {found:032x}, expected {expected:032x}: the file is damaged; save it again"
    )]
    Digest {
        /// Which part of it.
        part: &'static str,
        /// Computed.
        found: u128,
        /// In the file.
        expected: u128,
    },
    /// The description is not one that this version wrote.
    #[error("the snapshot's description: {0}; save it again")]
    Description(#[from] serde_json::Error),
    /// It is of another machine, or of one booted from other images.
    #[error(
        "the snapshot does not fit: its {what} is {found}, expected {expected}; save a new one of this machine"
    )]
    Mismatch {
        /// In what they differ.
        what: &'static str,
        /// In the snapshot.
        found: String,
        /// Of the machine that is to be started.
        expected: String,
    },
    /// A disk is not as it was.
    #[error(
        "the snapshot does not fit: disk {number} holds what has digest {found}, expected {expected}: \
         start from a copy of the disk that was saved with it"
    )]
    Disk {
        /// Which; counts from 0.
        number: usize,
        /// Of what it holds; `none` if it is not there.
        found: String,
        /// Of what it held when the machine was saved.
        expected: String,
    },
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// A snapshot, open. Its description has been checked; its memory is when it is used.
#[derive(Debug)]
pub struct SnapshotFile {
    map: Mmap,
    header: Header,
    description: Description,
}

impl SnapshotFile {
    /// Saves `machine`, which was booted from `origin`, whose outputs were all taken, and whose disks are
    /// the files or devices `disks`, in their order: what they hold now goes with it. Returns the
    /// snapshot's digest.
    ///
    /// # Errors
    /// The machine is not at a position or outputs wait, or the file system refused.
    pub fn write(
        path: &Path,
        machine: &mut Machine,
        origin: &Origin,
        disks: &[&Path],
    ) -> Result<u128, SnapshotError> {
        let description = serde_json::to_vec(&Description {
            origin: origin.clone(),
            state: machine.save()?,
            disks: disks
                .iter()
                .map(|disk| contents(disk))
                .collect::<Result<_, _>>()?,
        })?;
        let extents = extents(machine.ram());
        let table = extents.as_bytes();
        let before_memory = size_of::<Header>() + description.len() + table.len();
        let memory_start = (before_memory as u64).next_multiple_of(PAGE_BYTES);

        let partial = path.with_extension("partial");
        let failed = |step, path: &Path| {
            let path = path.to_owned();
            move |source| SnapshotError::Io { step, path, source }
        };
        let file = File::create(&partial).map_err(failed("creating", &partial))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        // The header comes last, over this: it holds the digests of what follows it.
        let space = vec![0; size_of::<Header>()];
        let gap = vec![0; (memory_start - before_memory as u64) as usize];
        let mut memory = Xxh3::new();
        let written = [&space[..], &description, table, &gap]
            .into_iter()
            .try_for_each(|part| file.write_all(part))
            .and_then(|()| copy_out(machine.ram(), &extents, &mut file, &mut memory));
        written.map_err(failed("writing", &partial))?;
        let mut header = Header {
            magic: MAGIC,
            version: U32::new(VERSION),
            reserved: U32::ZERO,
            description_bytes: U64::new(description.len() as u64),
            extents: U64::new(extents.len() as u64),
            memory_start: U64::new(memory_start),
            memory_bytes: U64::new(extents.iter().map(|extent| extent.bytes.get()).sum()),
            memory_digest: U128::new(memory.digest128()),
            digest: U128::ZERO,
        };
        let digest = digest_of(&header, &description, table);
        header.digest = U128::new(digest);
        let finished = file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| {
                std::os::unix::fs::FileExt::write_all_at(&file, header.as_bytes(), 0)?;
                file.sync_all()
            });
        finished.map_err(failed("writing", &partial))?;
        std::fs::rename(&partial, path).map_err(failed("moving into place", path))?;
        Ok(digest)
    }

    /// Opens a snapshot and checks all of it but the memory.
    ///
    /// # Errors
    /// It is no snapshot of this version, or damaged.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Io {
            step: "opening",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the mapping is only read. A file that another process changes or truncates
        // meanwhile would change these bytes, or end this process by SIGBUS; snapshots are moved
        // into place whole and never written again, and every byte is digested before it is
        // believed.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Self::of(map)
    }

    fn of(map: Mmap) -> Result<Self, SnapshotError> {
        let magic = &map[..map.len().min(MAGIC.len())];
        if magic != MAGIC {
            let found = magic.to_vec();
            return Err(SnapshotError::Magic { found });
        }
        let Ok((header, _)) = Header::read_from_prefix(&map) else {
            return Err(field("length", map.len() as u64, "at least 80"));
        };
        let found = header.version.get();
        if found != VERSION {
            return Err(SnapshotError::Version { found });
        }
        let parts = Parts::of(&header, map.len())?;
        let (description, table) = (&map[parts.description], &map[parts.table]);
        let found = digest_of(&header, description, table);
        let expected = header.digest.get();
        if found != expected {
            let part = "description";
            return Err(SnapshotError::Digest {
                part,
                found,
                expected,
            });
        }
        let description: Description = serde_json::from_slice(description)?;
        Ok(Self {
            description,
            header,
            map,
        })
    }

    /// The digest that names this snapshot.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.header.digest.get()
    }

    /// Bytes of guest memory in it.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.header.memory_bytes.get()
    }

    /// Checks that this is a snapshot of the machine `config`, booted from `origin`. Another engine
    /// may run it than the one that did.
    ///
    /// # Errors
    /// [`SnapshotError::Mismatch`]: the first difference, with both values.
    pub fn check(&self, config: &MachineConfig, origin: &Origin) -> Result<(), SnapshotError> {
        let ours = MachineConfig {
            engine: self.description.state.config.engine,
            ..config.clone()
        };
        let pairs = [
            (
                "machine",
                json(&self.description.state.config)?,
                json(&ours)?,
            ),
            ("origin", json(&self.description.origin)?, json(origin)?),
        ];
        for (part, found, expected) in pairs {
            let (Some(found), Some(expected)) = (found.as_object(), expected.as_object()) else {
                continue;
            };
            for (key, expected) in expected {
                let found = found.get(key).unwrap_or(&serde_json::Value::Null);
                if found != expected {
                    return Err(SnapshotError::Mismatch {
                        what: MISMATCHES
                            .iter()
                            .find(|what| *what == key)
                            .copied()
                            .unwrap_or(part),
                        found: found.to_string(),
                        expected: expected.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Checks that the files or devices `disks` hold what the machine's disks, in their order, held when
    /// it was saved: the guest goes on where it was, and would write what it remembers of one disk to
    /// another. A disk that two sides share is checked by who starts first; from then on it changes.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`], with both values.
    pub fn check_disks(&self, disks: &[&Path]) -> Result<(), SnapshotError> {
        let saved = &self.description.disks;
        let mut given = disks.iter();
        for number in 0..saved.len().max(disks.len()) {
            let none = || "none".to_owned();
            let expected = saved.get(number).cloned().unwrap_or_else(none);
            let found = given
                .next()
                .map_or_else(|| Ok(none()), |disk| contents(disk))?;
            if found != expected {
                return Err(SnapshotError::Disk {
                    number,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// A machine in the saved state, run by `engine`.
    ///
    /// # Errors
    /// Memory is damaged, or the host lacks something.
    pub fn restore(&self, engine: EngineKind) -> Result<Machine, SnapshotError> {
        let parts = Parts::of(&self.header, self.map.len())?;
        let table = <[Extent]>::ref_from_bytes(&self.map[parts.table])
            .map_err(|_| field("extents", self.header.extents.get(), "a whole table"))?;
        let memory = &self.map[parts.memory];
        let mut digest = Xxh3::new();
        let machine = Machine::restore(&self.description.state, engine, |ram| {
            copy_in(ram, table, memory, &mut digest)
        })?;
        let (found, expected) = (digest.digest128(), self.header.memory_digest.get());
        if found != expected {
            let part = "memory";
            return Err(SnapshotError::Digest {
                part,
                found,
                expected,
            });
        }
        Ok(machine)
    }
}

/// Keys by which a difference is named.
const MISMATCHES: [&str; 9] = [
    "memory-bytes",
    "command-line",
    "nic",
    "mac",
    "wall-clock-start",
    "cpu-model",
    "kernel-xxh3",
    "initrd-xxh3",
    "engine",
];

/// Names what a disk holds.
fn contents(disk: &Path) -> Result<String, SnapshotError> {
    let digest = disk_template::digest(disk).map_err(|source| SnapshotError::Io {
        step: "reading the disk",
        path: disk.to_owned(),
        source,
    })?;
    Ok(format!("{digest:032x}"))
}

fn json(value: &impl Serialize) -> Result<serde_json::Value, SnapshotError> {
    Ok(serde_json::to_value(value)?)
}

fn field(field: &'static str, found: u64, expected: &str) -> SnapshotError {
    SnapshotError::Field {
        field,
        found,
        expected: expected.to_owned(),
    }
}

fn digest_of(header: &Header, description: &[u8], table: &[u8]) -> u128 {
    let mut digest = Xxh3::new();
    digest.update(&header.as_bytes()[..DIGESTED]);
    digest.update(description);
    digest.update(table);
    digest.digest128()
}

/// Where the parts of a file lie.
struct Parts {
    description: std::ops::Range<usize>,
    table: std::ops::Range<usize>,
    memory: std::ops::Range<usize>,
}

impl Parts {
    /// From a header that nobody has checked.
    fn of(header: &Header, file_bytes: usize) -> Result<Self, SnapshotError> {
        let range = |name, start: usize, bytes: u64| {
            usize::try_from(bytes)
                .ok()
                .and_then(|bytes| start.checked_add(bytes))
                .filter(|end| *end <= file_bytes)
                .map(|end| start..end)
                .ok_or_else(|| {
                    let expected = format!("at most {:#x}", file_bytes.saturating_sub(start));
                    SnapshotError::Field {
                        field: name,
                        found: bytes,
                        expected,
                    }
                })
        };
        let bytes = header.description_bytes.get();
        let description = range("description length", size_of::<Header>(), bytes)?;
        let bytes = header
            .extents
            .get()
            .saturating_mul(size_of::<Extent>() as u64);
        let table = range("extents", description.end, bytes)?;
        let start = header.memory_start.get();
        if start < table.end as u64 || start > file_bytes as u64 {
            let expected = format!("{:#x} to {file_bytes:#x}", table.end);
            return Err(field("memory start", start, &expected));
        }
        let memory = range("memory length", start as usize, header.memory_bytes.get())?;
        Ok(Self {
            description,
            table,
            memory,
        })
    }
}

/// The pages that hold anything but zeros, joined.
fn extents(ram: &GuestRam) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut page = [0; PAGE_BYTES as usize];
    for (start, bytes) in ram.ranges() {
        for address in (start..start + bytes).step_by(PAGE_BYTES as usize) {
            ram.read(address, &mut page)
                .expect("RAM is whole pages, and this is one of them");
            if page.iter().all(|byte| *byte == 0) {
                continue;
            }
            match extents.last_mut() {
                Some(last) if last.address.get() + last.bytes.get() == address => {
                    last.bytes += PAGE_BYTES;
                }
                _ => extents.push(Extent {
                    address: U64::new(address),
                    bytes: U64::new(PAGE_BYTES),
                }),
            }
        }
    }
    extents
}

fn copy_out(
    ram: &GuestRam,
    extents: &[Extent],
    file: &mut impl Write,
    digest: &mut Xxh3,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    for extent in extents {
        let (mut address, end) = (
            extent.address.get(),
            extent.address.get() + extent.bytes.get(),
        );
        while address < end {
            let part = &mut chunk[..(end - address).min(CHUNK as u64) as usize];
            ram.read(address, part).map_err(io::Error::other)?;
            digest.update(part);
            file.write_all(part)?;
            address += part.len() as u64;
        }
    }
    Ok(())
}

/// Copies the extents into RAM that is zero. Their addresses are checked by the RAM, and their
/// lengths end with `memory`.
fn copy_in(
    ram: &GuestRam,
    extents: &[Extent],
    mut memory: &[u8],
    digest: &mut Xxh3,
) -> Result<(), MemoryError> {
    for extent in extents {
        let length = usize::try_from(extent.bytes.get()).unwrap_or(usize::MAX);
        let (mut contents, rest) = memory.split_at(length.min(memory.len()));
        memory = rest;
        let mut address = extent.address.get();
        while !contents.is_empty() {
            let (part, rest) = contents.split_at(contents.len().min(CHUNK));
            digest.update(part);
            ram.write(address, part)?;
            address = address.saturating_add(part.len() as u64);
            contents = rest;
        }
    }
    // What no extent claims was not saved by `write`: the digest says so.
    digest.update(memory);
    Ok(())
}

#[cfg(test)]
mod tests;
