//! The memory file, and its data area mapped twice in a row.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{self, FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::atomics::{Atom, Native};
use crate::control::{Control, layout};
use crate::error::RingError;

/// Largest capacity, 512 MiB: both mappings together are then the largest buffer that `io_uring`
/// registers, 1 GiB.
const MOST: usize = 512 << 20;
/// The huge pages asked for. 2 MiB is the size that every x86-64 has.
const HUGE_PAGE: usize = 2 << 20;
/// The size cannot change, and nobody can add a seal that would stop a peer from attaching.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);
/// What an attaching side insists on: without these a peer could truncate the file under us.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Creates the sealed memory file of a new ring and maps it. All bytes are zero but the identity.
pub(crate) fn create(capacity: usize, huge_pages: bool) -> Result<Mapping, RingError> {
    let page = if huge_pages {
        HUGE_PAGE
    } else {
        rustix::param::page_size()
    };
    if !capacity.is_power_of_two() || capacity < page || capacity > MOST {
        return Err(RingError::Capacity {
            found: capacity,
            least: page,
            most: MOST,
        });
    }
    let fd = memory_file(huge_pages).map_err(|source| RingError::Create { source })?;
    let bytes = (page + capacity) as u64;
    let no_memory = |source| RingError::Allocate { bytes, source };
    fs::ftruncate(&fd, bytes).map_err(no_memory)?;
    // Now or never: a page that cannot be had at the first touch is a SIGBUS or an OOM kill.
    fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes).map_err(no_memory)?;
    fs::fcntl_add_seals(&fd, SEALS).map_err(|source| RingError::Seal { source })?;

    let mapping = Mapping::new(fd, page, capacity, page)?;
    let identity = &mapping.control().identity.0;
    // Relaxed: whoever attaches got the descriptor from us after this, by a system call.
    let order = std::sync::atomic::Ordering::Relaxed;
    Atom::store(&identity.capacity, capacity as u64, order);
    Atom::store(&identity.control_bytes, page as u64, order);
    Atom::store(&identity.version, layout::VERSION, order);
    Atom::store(&identity.magic, layout::MAGIC, order);
    Ok(mapping)
}

fn memory_file(huge_pages: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if huge_pages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let name = c"lockstep-ring";
    match fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 does not know the flag.
        Err(Errno::INVAL) => fs::memfd_create(name, flags),
        made => made,
    }
}

/// Checks that `fd` is a ring that cannot hurt us, and maps it.
pub(crate) fn attach(fd: OwnedFd) -> Result<Mapping, RingError> {
    let no_memfd = |what| move |source| RingError::NoMemfd { what, source };
    let seals = fs::fcntl_get_seals(&fd).map_err(no_memfd("seals"))?;
    if !seals.contains(SIZE_SEALS) {
        return Err(RingError::NotSealed {
            found: seals.bits(),
            expected: SIZE_SEALS.bits(),
        });
    }
    // The size is final from here on.
    let stat = fs::fstat(&fd).map_err(no_memfd("size"))?;
    let file = u64::try_from(stat.st_size).unwrap_or(0);
    let page = u64::try_from(stat.st_blksize).unwrap_or(0).max(4096);
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    if allocated < file {
        return Err(RingError::Sparse {
            found: allocated,
            expected: file,
        });
    }

    let (control, capacity) = {
        let header = Header::map(&fd, file, page)?;
        let identity = &header.control().identity.0;
        // Relaxed, each value read once: a peer that changes them now changes nothing for us.
        let order = std::sync::atomic::Ordering::Relaxed;
        let magic = Atom::load(&identity.magic, order);
        if magic != layout::MAGIC {
            return Err(RingError::Magic {
                found: magic,
                expected: layout::MAGIC,
            });
        }
        let version = Atom::load(&identity.version, order);
        if version != layout::VERSION {
            return Err(RingError::Version {
                found: version,
                expected: layout::VERSION,
            });
        }
        (
            Atom::load(&identity.control_bytes, order),
            Atom::load(&identity.capacity, order),
        )
    };
    let whole = capacity.is_power_of_two()
        && capacity <= MOST as u64
        && capacity.is_multiple_of(page)
        && control == page
        && control + capacity == file;
    if !whole {
        return Err(RingError::Size {
            control,
            capacity,
            file,
            page,
        });
    }
    Mapping::new(fd, control as usize, capacity as usize, page as usize)
}

/// Address space that is given back when dropped, with whatever was mapped into it.
struct Reservation {
    base: NonNull<u8>,
    len: usize,
}

impl Reservation {
    fn new(len: usize) -> Result<Self, RingError> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else is touched.
        let base = unsafe {
            mm::mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|source| RingError::Map { bytes: len, source })?;
        let base = NonNull::new(base.cast()).ok_or(RingError::Map {
            bytes: len,
            source: Errno::FAULT,
        })?;
        Ok(Self { base, len })
    }

    /// Offset of the first address that is a multiple of `page`: a huge page can be mapped nowhere
    /// else.
    fn aligned(&self, page: usize) -> usize {
        let base = self.base.addr().get();
        base.next_multiple_of(page) - base
    }

    /// Maps `len` bytes of `fd` at `file_at` over the reservation, at `at`.
    fn place(
        &self,
        at: usize,
        len: usize,
        fd: BorrowedFd<'_>,
        file_at: usize,
    ) -> Result<NonNull<u8>, RingError> {
        assert!(at + len <= self.len);
        // SAFETY: `at` lies within the reservation.
        let address = unsafe { self.base.add(at) };
        // SAFETY: MAP_FIXED replaces exactly `at..at + len` of the reservation, by the assertion
        // above, which is ours alone and to which no reference exists yet.
        unsafe {
            mm::mmap(
                address.as_ptr().cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                fd,
                file_at as u64,
            )
        }
        .map_err(|source| RingError::Map { bytes: len, source })?;
        Ok(address)
    }

    /// Makes the page tables now instead of at the first touch of each page.
    fn populate(&self, at: usize, len: usize) {
        assert!(at + len <= self.len);
        // SAFETY: the range lies within the reservation. The advice changes no content.
        let populated = unsafe {
            mm::madvise(
                self.base.add(at).as_ptr().cast(),
                len,
                Advice::LinuxPopulateWrite,
            )
        };
        // Linux before 5.14 does not know the advice; then each page costs a minor fault once.
        let _advised = populated;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: base and length are those of our own mmap, and whoever holds pointers into it
        // (`Mapping`) owns this value.
        let unmapped = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
        // It can fail only for a bad range.
        debug_assert!(unmapped.is_ok());
    }
}

/// The first page alone, to read the identity before anything is believed.
struct Header {
    control: NonNull<Control<Native>>,
    _space: Reservation,
}

impl Header {
    fn map(fd: &OwnedFd, file: u64, page: u64) -> Result<Self, RingError> {
        if file < page {
            return Err(RingError::Size {
                control: page,
                capacity: 0,
                file,
                page,
            });
        }
        let page = page as usize;
        let space = Reservation::new(2 * page)?;
        let control = space.place(space.aligned(page), page, fd.as_fd(), 0)?;
        Ok(Self {
            control: control.cast(),
            _space: space,
        })
    }

    fn control(&self) -> &Control<Native> {
        // SAFETY: at least a page is mapped, readable and writable, page-aligned, larger than
        // `Control` (768 bytes), for as long as `self`; `Control` consists of atomics, for which
        // every bit pattern is valid and which the peer may change at any time.
        unsafe { self.control.as_ref() }
    }
}

/// A ring's memory in this process.
pub(crate) struct Mapping {
    control: NonNull<Control<Native>>,
    data: NonNull<u8>,
    capacity: usize,
    fd: OwnedFd,
    _space: Reservation,
}

// SAFETY: the pointers are to memory that `_space` owns, which is bound to no thread. Shared access
// goes through `control()` (atomics) and `data` (a raw pointer, whose users argue for themselves).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: OwnedFd, control: usize, capacity: usize, page: usize) -> Result<Self, RingError> {
        let len = control + 2 * capacity;
        let space = Reservation::new(len + page)?;
        let start = space.aligned(page);
        let control_at = space.place(start, control, fd.as_fd(), 0)?;
        let data = space.place(start + control, capacity, fd.as_fd(), control)?;
        space.place(start + control + capacity, capacity, fd.as_fd(), control)?;
        space.populate(start, len);
        Ok(Self {
            control: control_at.cast(),
            data,
            capacity,
            fd,
            _space: space,
        })
    }

    #[inline]
    pub(crate) fn control(&self) -> &Control<Native> {
        // SAFETY: mapped for as long as `self`, page-aligned, at least a page, which is more than
        // `Control` needs; `Control` consists of atomics, for which every bit pattern is valid and
        // which the peer may change at any time.
        unsafe { self.control.as_ref() }
    }

    /// The address of the byte with this number. That byte and the `capacity - 1` after it are
    /// mapped, readable and writable, for as long as `self`.
    #[inline]
    pub(crate) fn at(&self, cursor: u64) -> NonNull<u8> {
        let offset = (cursor & (self.capacity as u64 - 1)) as usize;
        // SAFETY: `offset < capacity`, and twice the capacity is mapped from `data` on.
        unsafe { self.data.add(offset) }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}
