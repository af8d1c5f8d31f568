//! A disk's file: opened, checked, and its way past the page cache probed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, SeekFrom, StatxFlags, fadvise, fstatfs, seek, statx};
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use super::error::{DiskError, opening_remedy};
use crate::ft::disk::DiskRequest;
use crate::machine::bounce::{BOUNCE_ALIGN, BounceRegion};

/// Whose a disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// Both sides reach the same disk, and only the live one touches it. What the guest saw completed
    /// must be there for the other side, so no write is left in this host's memory.
    #[default]
    Shared,
    /// Each side has its own. This host's memory may hold what the guest has not asked to be durable.
    Own,
}

/// What backs a disk on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Its size in bytes, as the guest sees it: a multiple of 512, and equal to the file's.
    pub bytes: u64,
    /// Never written.
    pub read_only: bool,
    /// Whose it is.
    pub sharing: Sharing,
}

/// Magic numbers of statfs(2) of file systems that live in memory: they accept `O_DIRECT` and then
/// do not go past anything.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The same of file systems that only one host mounts: tmpfs, ramfs, ext4, XFS, btrfs, f2fs, ZFS,
/// overlay. Sides that share a file there run on one host and see each other's metadata.
const OF_ONE_HOST: [u64; 8] = [
    0x0102_1994,
    0x8584_58f6,
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x2fc1_2fc1,
    0x794c_7630,
];

/// An open disk.
#[derive(Debug)]
pub(super) struct OpenDisk {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) read_only: bool,
    file: File,
    /// Past the page cache.
    direct: bool,
    /// What transfers must be multiples of, bytes; 512 through the page cache.
    alignment: u32,
    /// Each write is made durable before it completes, whatever the guest asked for.
    pub(super) durable_writes: bool,
    /// The same for zeroes that are not written but declared.
    pub(super) settles: bool,
}

impl OpenDisk {
    pub(super) fn open(file: &DiskFile) -> Result<Self, DiskError> {
        let path = &file.path;
        let refused = |source: io::Error| DiskError::Open {
            path: path.clone(),
            remedy: opening_remedy(&source, file.bytes),
            source,
        };
        // Looked at before it is opened: opening a FIFO waits for its other end.
        check_kind(path, std::fs::metadata(path).map_err(refused)?.file_type())?;
        let plain = OpenOptions::new()
            .read(true)
            .write(!file.read_only)
            .open(path)
            .map_err(refused)?;
        let kind = plain.metadata().map_err(refused)?.file_type();
        check_kind(path, kind)?;
        let found = seek(&plain, SeekFrom::End(0)).map_err(|error| refused(error.into()))?;
        if found != file.bytes {
            return Err(DiskError::WrongSize {
                path: path.clone(),
                found,
                expected: file.bytes,
            });
        }
        if let Some(limit) = getrlimit(Resource::Fsize).current
            && kind.is_file()
            && !file.read_only
            && limit < file.bytes
        {
            return Err(DiskError::FileSizeLimit {
                path: path.clone(),
                found: limit,
                expected: file.bytes,
            });
        }
        let system = fstatfs(&plain).map_err(|error| refused(error.into()))?;
        // Of a device this is where its node lies (devtmpfs), which says nothing.
        let system = kind.is_file().then_some(system.f_type as u64);
        let in_memory = system.is_some_and(|system| IN_MEMORY.contains(&system));
        let direct = (!in_memory)
            .then(|| direct(&plain, file.read_only))
            .flatten()
            // The last block is to be a whole one: widening a request to blocks must not enlarge it.
            .filter(|(_, alignment)| file.bytes.is_multiple_of(u64::from(*alignment)));
        let shared = file.sharing == Sharing::Shared;
        if direct.is_none() {
            tracing::warn!(
                disk = %path.display(),
                "O_DIRECT is refused here: I/O goes through this host's page cache{}. Use a file \
                 system or device with direct I/O, and a size that is a multiple of its block",
                if shared { ", and every write waits until it is durable" } else { "" }
            );
        }
        // A first write to a block of a file changes metadata, which a host may hold in its memory.
        let sparse =
            kind.is_file() && seek(&plain, SeekFrom::Hole(0)).is_ok_and(|hole| hole < file.bytes);
        let metadata_stays_here =
            shared && sparse && system.is_some_and(|system| !OF_ONE_HOST.contains(&system));
        if metadata_stays_here && !file.read_only {
            tracing::warn!(
                disk = %path.display(),
                "the shared file has holes, so every write waits until it is durable. Write it once in \
                 full (dd if=/dev/zero conv=notrunc) before the VM starts"
            );
        }
        if shared && direct.is_none() {
            // What this host remembers of the disk may be older than what the other side wrote.
            let forgotten = rustix::fs::fdatasync(&plain)
                .and_then(|()| fadvise(&plain, 0, None, Advice::DontNeed));
            if let Err(error) = forgotten {
                tracing::warn!(disk = %path.display(), %error, "the page cache is not dropped");
            }
        }
        let durable_writes = shared && (direct.is_none() || metadata_stays_here);
        let is_direct = direct.is_some();
        let (open, alignment) = direct.unwrap_or((plain, 512));
        Ok(Self {
            path: path.clone(),
            bytes: file.bytes,
            read_only: file.read_only,
            durable_writes,
            settles: shared && kind.is_file(),
            file: open,
            direct: is_direct,
            alignment,
        })
    }

    /// Whether transfers go past the page cache.
    pub(super) const fn is_direct(&self) -> bool {
        self.direct
    }

    /// What transfers must be multiples of, bytes.
    pub(super) const fn alignment(&self) -> u32 {
        self.alignment
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The whole blocks that `request` lies in: where they begin, and how many bytes they have.
    pub(super) fn blocks(&self, request: &DiskRequest) -> (u64, u64) {
        let alignment = u64::from(self.alignment);
        let start = request.offset - request.offset % alignment;
        // In range: the disk is made of whole blocks, and the request lies on it.
        let end = (request.offset + request.length).next_multiple_of(alignment);
        (start, end - start)
    }

    /// Whether `request` is not made of whole blocks: sectors of 512 bytes on a disk that transfers
    /// 4,096 at a time.
    pub(super) fn is_misaligned(&self, request: &DiskRequest) -> bool {
        self.blocks(request) != (request.offset, request.length)
    }

    /// Reads what `request` asks for into its bounce buffer, and waits for it.
    pub(super) fn read(&self, request: &DiskRequest, region: &BounceRegion) -> io::Result<()> {
        if !self.is_misaligned(request) {
            return self.read_blocks(request.offset, region, request.bounce, request.length);
        }
        let (start, length) = self.blocks(request);
        let whole = BounceRegion::new(length)?;
        self.read_blocks(start, &whole, 0, length)?;
        whole.copy_to(
            request.offset - start,
            region,
            request.bounce,
            request.length,
        );
        Ok(())
    }

    fn read_blocks(
        &self,
        from: u64,
        region: &BounceRegion,
        to: u64,
        length: u64,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let left = length - done;
            let buffer = region.address(to + done, left);
            // SAFETY: `address` has checked that the buffer is `left` bytes of the region, which lives
            // as long as the borrow; it is this read's alone. The descriptor is of a file of ours.
            let read = unsafe {
                libc::pread(
                    self.descriptor(),
                    buffer.cast(),
                    left as usize,
                    (from + done) as i64,
                )
            };
            match u64::try_from(read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

fn check_kind(path: &Path, kind: std::fs::FileType) -> Result<(), DiskError> {
    let found = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "directory"
    } else if kind.is_char_device() {
        "character device"
    } else if kind.is_fifo() {
        "FIFO"
    } else {
        "socket"
    };
    Err(DiskError::NotADisk {
        path: path.to_owned(),
        found,
    })
}

/// Opens the same file for direct I/O, and asks what it wants to be aligned to.
fn direct(plain: &File, read_only: bool) -> Option<(File, u32)> {
    // By the descriptor, not by the path, which may name another file by now.
    let same = format!("/proc/self/fd/{}", plain.as_raw_fd());
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_DIRECT)
        .open(same)
        .ok()?;
    let alignment = alignment(&file)?;
    Some((file, alignment))
}

/// What direct transfers of `file` are aligned to; `None` if there are none, or none with buffers
/// that are aligned to [`BOUNCE_ALIGN`] and blocks no larger than that.
fn alignment(file: &File) -> Option<u32> {
    if let Ok(found) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        let [memory, offset] = [found.stx_dio_mem_align, found.stx_dio_offset_align];
        let fits = |n: u32| n != 0 && u64::from(n) <= BOUNCE_ALIGN;
        return (fits(memory) && fits(offset)).then_some(offset.max(512));
    }
    // A kernel before 6.1, or a file system that does not tell: try.
    let buffer = BounceRegion::new(BOUNCE_ALIGN).ok()?;
    [512, BOUNCE_ALIGN as u32].into_iter().find(|length| {
        let address = buffer.address(0, u64::from(*length));
        // SAFETY: the buffer has that many bytes, and nobody else knows of it.
        let read = unsafe { libc::pread(file.as_raw_fd(), address.cast(), *length as usize, 0) };
        read >= 0
    })
}
