//! A request as `io_uring` takes it.

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};

use super::file::OpenDisk;
use super::in_flight::{InFlight, Stage};
use crate::ft::disk::DiskOp;
use crate::machine::bounce::BounceRegion;

/// The next operation of `token`.
pub(super) fn entry(
    token: &InFlight,
    disk: &OpenDisk,
    region: &BounceRegion,
    fixed_buffers: bool,
) -> squeue::Entry {
    let request = &token.request;
    // Two places for each disk: past the page cache, and through it.
    let file = Fixed(u32::from(request.disk) * 2 + u32::from(token.exclusive));
    let done = match token.stage {
        Stage::Request { done } => done,
        Stage::Settling => {
            return opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build();
        }
    };
    let offset = request.offset + done;
    let left = request.length - done;
    match request.op {
        DiskOp::Read => {
            let buffer = region.address(request.bounce + done, left);
            if fixed_buffers {
                opcode::ReadFixed::new(file, buffer, left as u32, 0)
                    .offset(offset)
                    .build()
            } else {
                opcode::Read::new(file, buffer, left as u32)
                    .offset(offset)
                    .build()
            }
        }
        DiskOp::Write { durable } => {
            let buffer = region.address(request.bounce + done, left);
            let durable = durable || disk.durable_writes || token.exclusive;
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            if fixed_buffers {
                opcode::WriteFixed::new(file, buffer, left as u32, 0)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            } else {
                opcode::Write::new(file, buffer, left as u32)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
        }
        DiskOp::Flush => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        // On a device as on a file: its range reads as zeroes then, which a plain discard
        // (BLKDISCARD) does not promise, and blocks until it is done.
        DiskOp::Discard | DiskOp::WriteZeroes { unmap: true } => opcode::Fallocate::new(file, left)
            .offset(offset)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
        DiskOp::WriteZeroes { unmap: false } => opcode::Fallocate::new(file, left)
            .offset(offset)
            .mode(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
    }
}
