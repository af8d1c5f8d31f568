//! A request as `io_uring` takes it.

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};

use super::file::OpenDisk;
use super::in_flight::{InFlight, Stage};
use crate::ft::disk::DiskOp;
use crate::machine::bounce::BounceRegion;

/// Where transfers' buffers are.
pub(super) struct Buffers<'a> {
    /// The VM's bounce buffers.
    pub(super) region: &'a BounceRegion,
    /// They are registered as buffer 0.
    pub(super) fixed: bool,
    /// Whole blocks around a request that is not made of such.
    pub(super) blocks: &'a BounceRegion,
}

/// The next operation of `token`.
pub(super) fn entry(token: &InFlight, disk: &OpenDisk, buffers: &Buffers<'_>) -> squeue::Entry {
    let request = &token.request;
    let file = Fixed(u32::from(request.disk));
    let done = match token.stage {
        Stage::Request { done } => done,
        Stage::Settling => {
            return opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build();
        }
        Stage::Gather { done } | Stage::Scatter { done } => {
            let (start, length) = disk.blocks(request);
            let buffer = buffers.blocks.address(done, length - done);
            let (offset, left) = (start + done, (length - done) as u32);
            return if matches!(token.stage, Stage::Gather { .. }) {
                opcode::Read::new(file, buffer, left).offset(offset).build()
            } else {
                opcode::Write::new(file, buffer, left)
                    .offset(offset)
                    .rw_flags(write_flags(token, disk))
                    .build()
            };
        }
    };
    let offset = request.offset + done;
    let left = request.length - done;
    match request.op {
        DiskOp::Read => {
            let buffer = buffers.region.address(request.bounce + done, left);
            if buffers.fixed {
                opcode::ReadFixed::new(file, buffer, left as u32, 0)
                    .offset(offset)
                    .build()
            } else {
                opcode::Read::new(file, buffer, left as u32)
                    .offset(offset)
                    .build()
            }
        }
        DiskOp::Write { .. } => {
            let buffer = buffers.region.address(request.bounce + done, left);
            if buffers.fixed {
                opcode::WriteFixed::new(file, buffer, left as u32, 0)
                    .offset(offset)
                    .rw_flags(write_flags(token, disk))
                    .build()
            } else {
                opcode::Write::new(file, buffer, left as u32)
                    .offset(offset)
                    .rw_flags(write_flags(token, disk))
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

fn write_flags(token: &InFlight, disk: &OpenDisk) -> i32 {
    let asked = token.request.op == (DiskOp::Write { durable: true });
    if asked || disk.durable_writes {
        libc::RWF_DSYNC
    } else {
        0
    }
}
