//! Requests that the kernel has: tokens that cannot be dropped unfinished.

use super::file::OpenDisk;
use super::sqe::Buffers;
use crate::ft::disk::{DiskOp, DiskRequest, DiskStatus, RequestId};

/// What is asked of the kernel for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The request itself; so many bytes of it are done.
    Request {
        /// Bytes.
        done: u64,
    },
    /// It changed the disk in this host's memory; now it is made to stay.
    Settling,
    /// It is not made of whole blocks: those around it are read.
    Gather {
        /// Bytes.
        done: u64,
    },
    /// Its data is among the blocks around it, which are written.
    Scatter {
        /// Bytes.
        done: u64,
    },
}

/// A request that the kernel may have: while it lives, its bounce buffer is the kernel's.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) request: DiskRequest,
    pub(super) stage: Stage,
    /// When it was first handed over, nanoseconds of [`lockstep_perf::stamp::now`].
    pub(super) since: u64,
}

/// What follows on the end of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another operation of the same request.
    Again,
    /// The request is done.
    Done,
    /// The request has failed, with this `errno`.
    Failed(i32),
}

impl InFlight {
    /// Takes note of an operation's result, as the kernel gives it.
    pub(super) fn proceed(&mut self, result: i32, disk: &OpenDisk, buffers: &Buffers<'_>) -> Next {
        let moved = match u64::try_from(result) {
            Ok(moved) => moved,
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => return Next::Again,
            Err(_) => return self.without(-result),
        };
        let request = self.request;
        let whole = disk.blocks(&request);
        let among = request.offset - whole.0;
        match (self.stage, request.op) {
            (Stage::Request { done }, DiskOp::Read | DiskOp::Write { .. }) => {
                let reached = reached(done, moved, request.length, disk);
                self.transferred(reached, |done| Stage::Request { done })
            }
            (Stage::Request { .. }, DiskOp::WriteZeroes { .. }) if disk.settles => {
                self.stage = Stage::Settling;
                Next::Again
            }
            (Stage::Gather { done }, op) => {
                let reached = reached(done, moved, whole.1, disk);
                let next = self.transferred(reached, |done| Stage::Gather { done });
                if next != Next::Done {
                    return next;
                }
                let (blocks, region) = (buffers.blocks, buffers.region);
                if op == DiskOp::Read {
                    blocks.copy_to(among, region, request.bounce, request.length);
                    return Next::Done;
                }
                region.copy_to(request.bounce, blocks, among, request.length);
                self.stage = Stage::Scatter { done: 0 };
                Next::Again
            }
            (Stage::Scatter { done }, _) => {
                let reached = reached(done, moved, whole.1, disk);
                self.transferred(reached, |done| Stage::Scatter { done })
            }
            _ => Next::Done,
        }
    }

    fn transferred(&mut self, reached: Reached, stage: impl FnOnce(u64) -> Stage) -> Next {
        match reached {
            Reached::End => Next::Done,
            // The file has been cut, say: the rest is not there.
            Reached::Nothing => Next::Failed(libc::EIO),
            Reached::Part(done) => {
                self.stage = stage(done);
                Next::Again
            }
        }
    }

    /// Whether there is another way than that which ended in `errno`.
    fn without(&mut self, errno: i32) -> Next {
        if self.request.op == (DiskOp::WriteZeroes { unmap: true })
            && self.stage != Stage::Settling
            && matches!(errno, libc::EOPNOTSUPP | libc::EINVAL)
        {
            // The guest allows that the space is given back; it does not ask for it.
            self.request.op = DiskOp::WriteZeroes { unmap: false };
            return Next::Again;
        }
        Next::Failed(errno)
    }
}

/// How far a transfer has come.
enum Reached {
    End,
    Part(u64),
    Nothing,
}

/// A transfer of `length` bytes that was at `done` has moved `moved` more.
fn reached(done: u64, moved: u64, length: u64, disk: &OpenDisk) -> Reached {
    let reached = done + moved;
    if reached >= length {
        return Reached::End;
    }
    // Direct I/O goes on at a block's start; what is done twice is done alike.
    let reached = reached - reached % u64::from(disk.alignment());
    if reached > done {
        Reached::Part(reached)
    } else {
        Reached::Nothing
    }
}

/// The tokens of all requests in flight: as many places as the queue is deep. A token leaves by
/// [`Tokens::finish`] alone.
#[derive(Debug)]
pub(super) struct Tokens {
    places: Vec<Option<InFlight>>,
    free: Vec<u32>,
}

impl Tokens {
    pub(super) fn new(depth: u32) -> Self {
        Self {
            places: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes a request in, if there is room: its place.
    pub(super) fn begin(&mut self, token: InFlight) -> Option<u32> {
        let place = self.free.pop()?;
        self.places[place as usize] = Some(token);
        Some(place)
    }

    /// The token at `place`. `None`: nothing of ours.
    pub(super) fn get(&mut self, place: u32) -> Option<&mut InFlight> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    /// Ends the request at `place`.
    pub(super) fn finish(
        &mut self,
        place: u32,
        status: DiskStatus,
    ) -> Option<(RequestId, DiskStatus)> {
        let token = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        Some((token.request.id, status))
    }

    /// Gives up what the kernel never got.
    pub(super) fn forget(&mut self) {
        for place in 0..self.places.len() as u32 {
            self.finish(place, DiskStatus::Failed);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &InFlight> {
        self.places.iter().flatten()
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        // The owner waits for all of them first.
        debug_assert!(
            self.count() == 0 || std::thread::panicking(),
            "{} disk requests are dropped unfinished",
            self.count()
        );
    }
}
