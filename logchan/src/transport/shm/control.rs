//! The page beside the ring: what the backup tells the primary, and the bells.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::bell::Bell;
use crate::entry::Sequence;
use crate::transport::ChannelError;
use crate::transport::report::ReportCells;

/// `LSCONTRL`, as it lies in memory.
const MAGIC: u64 = u64::from_le_bytes(*b"LSCONTRL");
/// Version of the layout.
const VERSION: u64 = 2;
/// Size of the memory file.
const BYTES: usize = 4096;
/// Its size must not change under us: touching what is gone raises SIGBUS.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Two cache lines, as the prefetcher moves them in pairs.
#[derive(Debug, Default)]
#[repr(C, align(128))]
struct Line<T>(T);

/// The page's layout. All zero is its initial state, but for the identity. The peer may write
/// anything at any time: every word is atomic, and each value is checked where it is used.
#[derive(Debug)]
#[repr(C)]
struct Layout {
    identity: Line<[AtomicU64; 2]>,
    /// Byte of the log up to which the primary handed it over; written by the primary.
    flushed: Line<AtomicU64>,
    /// Last entry received and checked; written by the backup.
    acked: Line<AtomicU64>,
    /// Written by the backup's replaying thread.
    report: Line<ReportCells>,
    /// Where the backup's receiving thread sleeps.
    receiver: Line<Bell>,
    /// Where the primary sleeps.
    primary: Line<Bell>,
    /// 1: the primary sleeps at the socket and wants a byte.
    byte_wanted: Line<AtomicU32>,
}

const _: () = {
    assert!(size_of::<Layout>() <= BYTES);
    assert!(offset_of!(Layout, flushed) == 128);
    assert!(offset_of!(Layout, acked) == 256);
    assert!(offset_of!(Layout, report) == 384);
    assert!(offset_of!(Layout, receiver) == 512);
    assert!(offset_of!(Layout, primary) == 640);
    assert!(offset_of!(Layout, byte_wanted) == 768);
};

/// A mapping of the page.
#[derive(Debug)]
pub(crate) struct ControlPage {
    memory: MmapRaw,
    fd: OwnedFd,
}

impl ControlPage {
    /// A new page, to be passed to the backup.
    pub(crate) fn create() -> Result<Self, ChannelError> {
        let failed = |step| {
            move |errno: rustix::io::Errno| ChannelError::Io {
                step,
                source: errno.into(),
            }
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("lockstep-control", flags)
            .map_err(failed("creating the channel's control page"))?;
        rustix::fs::ftruncate(&fd, BYTES as u64)
            .map_err(failed("sizing the channel's control page"))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS | SealFlags::SEAL)
            .map_err(failed("sealing the channel's control page"))?;
        let page = Self::map(fd)?;
        let [magic, version] = &page.layout().identity.0;
        // Relaxed: the page travels to the peer by a socket, which orders more than any fence.
        version.store(VERSION, Ordering::Relaxed);
        magic.store(MAGIC, Ordering::Relaxed);
        Ok(page)
    }

    /// Attaches the page that a primary passed.
    pub(crate) fn attach(fd: OwnedFd) -> Result<Self, ChannelError> {
        let refused = |what: String| ChannelError::Io {
            step: "attaching the channel's control page",
            source: io::Error::new(io::ErrorKind::InvalidData, what),
        };
        let seals = rustix::fs::fcntl_get_seals(&fd)
            .map_err(|errno| refused(format!("it is no memory file: {errno}")))?;
        if !seals.contains(SEALS) {
            return Err(refused(format!(
                "found seals {:#x}, expected {:#x}",
                seals.bits(),
                SEALS.bits()
            )));
        }
        let stat = rustix::fs::fstat(&fd).map_err(|errno| refused(errno.to_string()))?;
        if stat.st_size != BYTES as i64 {
            return Err(refused(format!(
                "found {} bytes, expected {BYTES}",
                stat.st_size
            )));
        }
        let page = Self::map(fd)?;
        let [magic, version] = &page.layout().identity.0;
        let (magic, version) = (
            magic.load(Ordering::Relaxed),
            version.load(Ordering::Relaxed),
        );
        if (magic, version) != (MAGIC, VERSION) {
            return Err(refused(format!(
                "found magic {magic:#018x} version {version}, expected {MAGIC:#018x} version {VERSION}"
            )));
        }
        Ok(page)
    }

    fn map(fd: OwnedFd) -> Result<Self, ChannelError> {
        let memory = MmapOptions::new()
            .len(BYTES)
            .map_raw(&fd)
            .map_err(|source| ChannelError::Io {
                step: "mapping the channel's control page",
                source,
            })?;
        Ok(Self { memory, fd })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is BYTES long, which `Layout` fits, page-aligned, and lives as long as
        // `self`; the file's size is sealed, so all of it stays backed. `Layout` consists of atomics
        // only, for which every bit pattern is a value and which others may change at any time.
        unsafe { &*self.memory.as_ptr().cast::<Layout>() }
    }

    /// The primary hands the log over up to byte `committed`.
    pub(crate) fn flush(&self, committed: u64) {
        // Release: pairs with the Acquire in `flushed`; the bytes are there.
        self.layout().flushed.0.store(committed, Ordering::Release);
    }

    /// Up to which byte the primary handed the log over. Not to be trusted.
    pub(crate) fn flushed(&self) -> u64 {
        // Acquire: pairs with the Release in `flush`.
        self.layout().flushed.0.load(Ordering::Acquire)
    }

    /// The backup has every entry up to `sequence`.
    pub(crate) fn acknowledge(&self, sequence: Sequence) {
        // Release: pairs with the Acquire in `acked`; our reads of the entries are done.
        self.layout().acked.0.store(sequence.0, Ordering::Release);
    }

    /// The last acknowledged entry. Not to be trusted.
    pub(crate) fn acked(&self) -> Sequence {
        // Acquire: pairs with the Release in `acknowledge`.
        Sequence(self.layout().acked.0.load(Ordering::Acquire))
    }

    pub(crate) fn report(&self) -> &ReportCells {
        &self.layout().report.0
    }

    /// Where the backup's receiving thread sleeps.
    pub(crate) fn receiver_bell(&self) -> &Bell {
        &self.layout().receiver.0
    }

    /// Where the primary sleeps.
    pub(crate) fn primary_bell(&self) -> &Bell {
        &self.layout().primary.0
    }

    /// The primary is about to sleep at the socket; it looks once more afterwards.
    pub(crate) fn want_byte(&self) {
        // SeqCst, with the fence in `take_byte_wish` and the one here: either the backup sees the
        // wish, or the primary's next look sees the acknowledgement.
        self.layout().byte_wanted.0.store(1, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Whether the primary is to be sent a byte; asked after an acknowledgement was stored.
    pub(crate) fn take_byte_wish(&self) -> bool {
        std::sync::atomic::fence(Ordering::SeqCst);
        let wish = &self.layout().byte_wanted.0;
        // Relaxed: ordered by the fence above, which pairs with `want_byte`.
        wish.load(Ordering::Relaxed) == 1 && wish.swap(0, Ordering::Relaxed) == 1
    }
}
