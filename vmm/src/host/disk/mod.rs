//! A VM's disks on this host: `io_uring` with `O_DIRECT`, registered files, and the VM's bounce
//! buffers as one registered buffer.
//!
//! [`Disks`] is driven by one thread, which never blocks in it: [`Disks::submit`] takes a request in,
//! [`Disks::flush`] hands everything taken in over to the kernel, a pair with each entry, and
//! [`Disks::completed`] takes what is done out of the ring's memory. **Only `flush` starts I/O**, and
//! only until the time that it is given: whoever may not write any more (a primary that has stood
//! still) does not call it, and nothing that waits here reaches the disk. It must therefore be called
//! again for as long as [`Disks::is_idle`] says no.
//!
//! Order is the caller's: what is given in is done in any order, so conflicting requests are not to be
//! in here together ([`DiskRequest::conflicts`]), and a flush covers what was completed before it.
//!
//! # What a completed write is
//!
//! | disk | completed means |
//! |---|---|
//! | direct | with the device (or the NFS server, which commits); durable with a flush, or if asked for |
//! | page cache, shared | durable: the other side must find it when this host dies |
//! | page cache, own | in this host's memory; durable with a flush, or if asked for |
//!
//! A request for single sectors on a disk that transfers blocks of 4,096 bytes is widened: the blocks around
//! it are read, and written back with its data among them. It has its disk to itself meanwhile, and what
//! was asked for behind it waits, so it costs the time of one request or two at depth 1. (The page cache
//! would do that too, but may remember what the other side has written over since.)
//!
//! A shared file with holes on a file system that several hosts mount is written durably, too: its
//! metadata would stay with this host.

mod copy;
mod error;
mod file;
mod health;
mod in_flight;
mod options;
mod ring;
mod sqe;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::Duration;

use lockstep_perf::stamp;

use crate::ft::disk::{DiskOp, DiskRequest, DiskStatus, RequestId};
use crate::machine::bounce::{BOUNCE_ALIGN, BounceRegion};
use error::Action;
use file::OpenDisk;
use health::Complaints;
use in_flight::{InFlight, Stage, Tokens};
use ring::DiskRing;
use sqe::Buffers;

pub use copy::{CopyError, CopyFile, check_shared};
pub use error::DiskError;
pub use file::{DiskFile, Sharing};
pub use health::DiskHealth;
pub use options::{DiskOptions, QUEUE_DEPTH_RANGE};

/// Longest transfer, bytes. A longer one is refused as failed; no device of ours makes one.
pub const MAX_TRANSFER_BYTES: u64 = 1 << 20;

/// A disk and what is under way on it.
#[derive(Debug)]
struct Disk {
    file: OpenDisk,
    in_flight: u32,
    complaints: Complaints,
    hanging: bool,
    errors: u64,
    last_error: Option<String>,
}

/// The disks of a VM, and its requests to them.
pub struct Disks {
    ring: DiskRing,
    tokens: Tokens,
    /// Taken in, not with the kernel, oldest first.
    waiting: VecDeque<DiskRequest>,
    /// Places of tokens that need another operation.
    again: Vec<u32>,
    /// Ended without the kernel.
    refused: VecDeque<(RequestId, DiskStatus)>,
    disks: Vec<Disk>,
    region: BounceRegion,
    fixed_buffers: bool,
    /// Whole blocks around the one request under way that is not made of such.
    blocks: BounceRegion,
    /// Its token's place.
    widened: Option<u32>,
    options: DiskOptions,
    /// When to look for hanging requests next.
    watch_at: u64,
    /// The ring itself failed, and it was said.
    ring_failed: bool,
}

impl std::fmt::Debug for Disks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disks")
            .field("disks", &self.disks)
            .field("in_flight", &self.in_flight())
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Disks {
    /// Opens the disks; [`DiskRequest::disk`] counts through `files`. `region` holds the bounce buffers
    /// that requests name.
    ///
    /// What this host cannot do as fast as it should be done (direct I/O, locked memory) is said by a
    /// warning, and done otherwise.
    ///
    /// # Errors
    /// A file is missing, no disk, or of another size; the kernel has no `io_uring`; the queue depth is
    /// out of range.
    pub fn open(
        files: &[DiskFile],
        region: BounceRegion,
        options: &DiskOptions,
    ) -> Result<Self, DiskError> {
        if !QUEUE_DEPTH_RANGE.contains(&options.queue_depth) {
            return Err(DiskError::QueueDepth {
                found: options.queue_depth,
                range: QUEUE_DEPTH_RANGE,
            });
        }
        let mut disks = Vec::with_capacity(files.len());
        for file in files {
            disks.push(Disk {
                file: OpenDisk::open(file)?,
                in_flight: 0,
                complaints: Complaints::default(),
                hanging: false,
                errors: 0,
                last_error: None,
            });
        }
        // Nothing of it is touched where blocks are sectors.
        let blocks = BounceRegion::new(MAX_TRANSFER_BYTES + 2 * BOUNCE_ALIGN)
            .map_err(|source| DiskError::Memory { source })?;
        let ring = DiskRing::new(options.queue_depth)?;
        let descriptors: Vec<RawFd> = disks.iter().map(|disk| disk.file.descriptor()).collect();
        ring.register_files(&descriptors)?;
        // SAFETY: `Disks` keeps a clone of the region, in a field that is dropped behind the ring.
        let registered = unsafe { ring.register_memory(&region) };
        if let Err(error) = &registered {
            tracing::warn!(
                bytes = region.bytes(),
                %error,
                "the bounce buffers are not registered with io_uring, so the kernel looks their pages up \
                 for each request: raise RLIMIT_MEMLOCK (ulimit -l unlimited, LimitMEMLOCK=infinity), or \
                 make them smaller (one registered buffer has 1 GiB at most)"
            );
        }
        Ok(Self {
            ring,
            tokens: Tokens::new(options.queue_depth),
            waiting: VecDeque::with_capacity(1024),
            again: Vec::with_capacity(options.queue_depth as usize),
            refused: VecDeque::new(),
            disks,
            region,
            fixed_buffers: registered.is_ok(),
            blocks,
            widened: None,
            options: options.clone(),
            watch_at: 0,
            ring_failed: false,
        })
    }

    /// Takes a request in; never blocks, starts nothing. From here until it is
    /// [`completed`](Self::completed) its bounce buffer is the kernel's.
    ///
    /// A request that is not on the disk, or writes to a read-only one, is completed as failed, at
    /// once, and never reaches the kernel.
    pub fn submit(&mut self, request: &DiskRequest) {
        match self.refusal(request) {
            None => self.waiting.push_back(*request),
            Some(why) => {
                tracing::error!(?request, why, "a disk request is refused as failed");
                self.refused.push_back((request.id, DiskStatus::Failed));
            }
        }
    }

    /// Hands over what was taken in, as far as the queue is deep: a kernel entry for each pair of
    /// requests, none if there is nothing. Waits for nothing. The only call that starts I/O.
    ///
    /// The caller's right to do so ends at `until` (nanoseconds of [`lockstep_perf::stamp::now`];
    /// `u64::MAX` for never): the clock is looked at right before each entry, and nothing is started
    /// from there on, however long this thread was stopped in between. What was not is still
    /// [`waiting`](Self::waiting).
    ///
    /// # Errors
    /// The kernel refuses its own ring: no request will be completed any more.
    pub fn flush(&mut self, until: u64) -> Result<(), DiskError> {
        if stamp::now() >= until {
            return Ok(());
        }
        while let Some(place) = self.again.pop() {
            self.push(place);
        }
        while self.tokens.has_room()
            && let Some(request) = self.waiting.front()
        {
            let transfers = matches!(request.op, DiskOp::Read | DiskOp::Write { .. });
            let disk = &self.disks[usize::from(request.disk)];
            // Blocks around a request are read and written back, so nothing else may touch them.
            let widen = transfers && disk.file.is_misaligned(request);
            if self.widened.is_some() || (widen && disk.in_flight > 0) {
                break;
            }
            let token = InFlight {
                request: *request,
                stage: if widen {
                    Stage::Gather { done: 0 }
                } else {
                    Stage::Request { done: 0 }
                },
                since: stamp::now(),
            };
            if let Some(place) = self.tokens.begin(token) {
                self.widened = widen.then_some(place);
                self.disks[usize::from(request.disk)].in_flight += 1;
                self.waiting.pop_front();
                self.push(place);
            }
        }
        self.ring.submit(until).map_err(|source| DiskError::Ring {
            step: "handing disk requests over",
            source,
        })
    }

    /// The next request that has ended, and how; in no order. `None`: none has ended yet.
    ///
    /// Looks into the ring's memory; enters the kernel once if a flag in there says that it has results
    /// to post (it has posted them by itself if the thread entered it for another reason).
    pub fn completed(&mut self) -> Option<(RequestId, DiskStatus)> {
        if let Some(refused) = self.refused.pop_front() {
            return Some(refused);
        }
        while let Some((place, result)) = self.next_result() {
            let ended = u32::try_from(place)
                .ok()
                .and_then(|place| self.take(place, result));
            if ended.is_some() {
                return ended;
            }
        }
        None
    }

    /// Waits until a request has made progress in the kernel, or time is up. Starts nothing.
    ///
    /// # Errors
    /// As for [`Disks::flush`].
    pub fn wait(&mut self, timeout: Duration) -> Result<(), DiskError> {
        if !self.refused.is_empty() || self.in_flight() == 0 {
            return Ok(());
        }
        self.ring.wait(timeout).map_err(|source| DiskError::Ring {
            step: "waiting for disk requests",
            source,
        })
    }

    /// Reads what `request` (a read) asks for into its bounce buffer, now, and blocks until it is there.
    /// A read that fails is repeated for [`DiskOptions::read_retry`]: the other side has had it.
    ///
    /// # Errors
    /// It did not succeed in that time, or is not on the disk.
    pub fn read_now(&self, request: &DiskRequest) -> Result<(), DiskError> {
        const PAUSE: Duration = Duration::from_millis(10);
        let failed = |disk: &Disk, source| DiskError::Read {
            path: disk.file.path.clone(),
            offset: request.offset,
            length: request.length,
            source,
        };
        let Some(disk) = self.disks.get(usize::from(request.disk)) else {
            return Err(DiskError::Ring {
                step: "reading for the backup",
                source: std::io::Error::other(format!(
                    "disk {} of {}",
                    request.disk,
                    self.disks.len()
                )),
            });
        };
        if let Some(why) = self.refusal(request) {
            return Err(failed(disk, std::io::Error::other(why)));
        }
        let give_up = stamp::now() + self.options.read_retry.as_nanos() as u64;
        let mut tries = 1_u64;
        loop {
            match disk.file.read(request, &self.region) {
                Ok(()) => return Ok(()),
                Err(source) if stamp::now() >= give_up => return Err(failed(disk, source)),
                Err(source) => {
                    if tries == 1 {
                        tracing::warn!(
                            disk = %disk.file.path.display(),
                            offset = request.offset,
                            error = %source,
                            "the backup's own read failed: repeating it"
                        );
                    }
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Looks for requests that take longer than [`DiskOptions::hang_after`], and says so once for each
    /// disk and time. To be called now and then; `now` in nanoseconds of [`lockstep_perf::stamp::now`].
    pub fn watch(&mut self, now: u64) {
        if now < self.watch_at {
            return;
        }
        let limit = self.options.hang_after.as_nanos() as u64;
        self.watch_at = now + (limit / 8).max(1);
        let mut oldest: [Option<&InFlight>; u8::MAX as usize + 1] = [None; _];
        for token in self.tokens.iter() {
            let oldest = &mut oldest[usize::from(token.request.disk)];
            if oldest.is_none_or(|oldest| token.since < oldest.since) {
                *oldest = Some(token);
            }
        }
        for (disk, oldest) in self.disks.iter_mut().zip(oldest) {
            let late = oldest.filter(|oldest| now.saturating_sub(oldest.since) >= limit);
            match (disk.hanging, late) {
                (false, Some(late)) => tracing::warn!(
                    disk = %disk.file.path.display(),
                    request = late.request.id,
                    offset = late.request.offset,
                    seconds = (now - late.since) / 1_000_000_000,
                    "the disk hangs: its guest waits. Look at the kernel's log (dmesg) and the way to \
                     the storage; the request ends when the storage answers"
                ),
                (true, None) => {
                    tracing::info!(disk = %disk.file.path.display(), "the disk answers again")
                }
                _ => {}
            }
            disk.hanging = late.is_some();
        }
    }

    /// How each disk is doing.
    #[must_use]
    pub fn health(&self) -> Vec<DiskHealth> {
        let health = |disk: &Disk| DiskHealth {
            path: disk.file.path.display().to_string(),
            direct: disk.file.is_direct(),
            alignment: disk.file.alignment(),
            durable_writes: disk.file.durable_writes,
            hanging: disk.hanging,
            errors: disk.errors,
            last_error: disk.last_error.clone(),
        };
        self.disks.iter().map(health).collect()
    }

    /// Whether the bounce buffers are registered with the kernel.
    #[must_use]
    pub const fn has_fixed_buffers(&self) -> bool {
        self.fixed_buffers
    }

    /// Requests that the kernel has.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.tokens.count()
    }

    /// Requests taken in that are still to be handed over, by [`Disks::flush`].
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.again.len() + self.ring.queued()
    }

    /// Whether everything taken in has been completed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.waiting.is_empty() && self.refused.is_empty()
    }

    /// Times that the kernel was entered for the ring.
    #[must_use]
    pub const fn kernel_entries(&self) -> u64 {
        self.ring.kernel_entries()
    }

    /// Why a request is not for the kernel.
    fn refusal(&self, request: &DiskRequest) -> Option<&'static str> {
        const SECTOR: u64 = 512;
        let Some(disk) = self.disks.get(usize::from(request.disk)) else {
            return Some("there is no such disk");
        };
        if request.op == DiskOp::Flush {
            return None;
        }
        let end = request.offset.checked_add(request.length);
        if request.length == 0 || end.is_none_or(|end| end > disk.file.bytes) {
            return Some("it is not on the disk");
        }
        if !request.offset.is_multiple_of(SECTOR) || !request.length.is_multiple_of(SECTOR) {
            return Some("it is not made of whole sectors");
        }
        if disk.file.read_only && request.op.changes() {
            return Some("the disk is read-only");
        }
        if matches!(request.op, DiskOp::Read | DiskOp::Write { .. }) {
            if request.length > MAX_TRANSFER_BYTES {
                return Some("it is longer than a transfer may be");
            }
            let end = request.bounce.checked_add(request.length);
            if !request.bounce.is_multiple_of(BOUNCE_ALIGN)
                || end.is_none_or(|end| end > self.region.bytes())
            {
                return Some("its buffer is not in the bounce memory");
            }
        }
        None
    }

    /// Queues what the token at `place` needs next.
    fn push(&mut self, place: u32) {
        let Some(token) = self.tokens.get(place) else {
            return;
        };
        let disk = &self.disks[usize::from(token.request.disk)].file;
        let buffers = Buffers {
            region: &self.region,
            fixed: self.fixed_buffers,
            blocks: &self.blocks,
        };
        let entry = sqe::entry(token, disk, &buffers).user_data(u64::from(place));
        // SAFETY: the buffer lies in `region` or `blocks`, which live until nothing is in flight
        // (`drop`). A bounce buffer belongs to its request until its completion is handed out, the
        // blocks to the one that is widened; the files stay open as long.
        unsafe { self.ring.push(&entry) };
    }

    fn next_result(&mut self) -> Option<(u64, i32)> {
        if self.tokens.count() == 0 {
            return None;
        }
        let seen = self.ring.seen();
        if seen.is_some() || !self.ring.has_unposted() {
            return seen;
        }
        if let Err(error) = self.ring.post()
            && !std::mem::replace(&mut self.ring_failed, true)
        {
            tracing::error!(%error, "io_uring does not hand out completions: the disks stand still");
        }
        self.ring.seen()
    }

    /// What an operation's result means for its request: its end, or another operation.
    fn take(&mut self, place: u32, result: i32) -> Option<(RequestId, DiskStatus)> {
        let token = self.tokens.get(place)?;
        let disk = &mut self.disks[usize::from(token.request.disk)];
        let buffers = Buffers {
            region: &self.region,
            fixed: self.fixed_buffers,
            blocks: &self.blocks,
        };
        let status = match token.proceed(result, &disk.file, &buffers) {
            in_flight::Next::Again => {
                self.again.push(place);
                return None;
            }
            in_flight::Next::Done => DiskStatus::Done,
            in_flight::Next::Failed(errno) => {
                let action = Action::of(token);
                disk.fail(action, errno, token.request.offset)
            }
        };
        disk.in_flight -= 1;
        if self.widened == Some(place) {
            self.widened = None;
        }
        self.tokens.finish(place, status)
    }
}

impl Disk {
    fn fail(&mut self, action: Action, errno: i32, offset: u64) -> DiskStatus {
        let status = action.status(errno);
        self.complaints
            .say(&self.file.path, action, errno, offset, status);
        if status == DiskStatus::Failed {
            self.errors += 1;
            let error = std::io::Error::from_raw_os_error(errno);
            self.last_error = Some(format!("{} at {offset}: {error}", action.name()));
        }
        status
    }
}

impl AsFd for Disks {
    /// Readable when a request has made progress: for a thread that sleeps in poll(2).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl Drop for Disks {
    /// Waits for what the kernel has, however long; what only waits is never started.
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_millis(100);
        loop {
            // Results of operations that would need another are the end of it, too.
            while let Some((place, _)) = self.next_result() {
                if let Ok(place) = u32::try_from(place) {
                    self.tokens.finish(place, DiskStatus::Failed);
                }
            }
            let never_started = self.ring.queued() + self.again.len();
            if self.tokens.count() <= never_started {
                break;
            }
            self.watch(stamp::now());
            if let Err(error) = self.ring.wait(PATIENCE) {
                // The kernel may go on writing there: nobody else gets that memory any more.
                tracing::error!(%error, "disk requests cannot be waited for: their memory is kept");
                std::mem::forget((self.region.clone(), self.blocks.clone()));
                break;
            }
        }
        self.tokens.forget();
    }
}
