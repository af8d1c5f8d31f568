//! What a chain asks of the disk (virtio 1.2, 5.2.6). The driver may cut it into buffers as it likes
//! (2.7.4): a header of 16 bytes and data to be written, then room for data and one byte of status.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestMemoryMmap;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::config::RANGE_SECTORS;
use super::{REQUEST_BYTES, SECTOR_BYTES, SERIAL_BYTES};
use crate::ft::disk::{DiskOp, DiskStatus};
use crate::machine::config::DiskSpec;
use crate::machine::devices::chain::{DriverFault, Segment, first, gather};

/// `struct virtio_blk_req`, as far as the device reads it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Range {
    sector: U64,
    sectors: U32,
    flags: U32,
}

const HEADER_BYTES: usize = size_of::<Header>();

/// What the device answers by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The serial number, and that it is well.
    Serial([u8; SERIAL_BYTES]),
    Status(DiskStatus),
}

/// What becomes of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Answer(Answer),
    /// The world is asked. The data of a write is in the scratch buffer.
    Request {
        op: DiskOp,
        offset: u64,
        length: u64,
    },
}

const FAILED: Ask = Ask::Answer(Answer::Status(DiskStatus::Failed));
const UNSUPPORTED: Ask = Ask::Answer(Answer::Status(DiskStatus::Unsupported));

/// A chain, its parts told apart.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    readable: &'a [Segment],
    /// Bytes of data to be written.
    out: u64,
    /// Bytes of room for data.
    room: u64,
    /// Guest-physical address of the status byte.
    pub status: u64,
}

impl<'a> Chain<'a> {
    /// Cuts the status byte off `writable`. `lengths` are those of both parts, in bytes.
    pub fn of(
        readable: &'a [Segment],
        writable: &mut Vec<Segment>,
        lengths: (u64, u64),
    ) -> Result<Self, DriverFault> {
        let out = lengths.0.checked_sub(HEADER_BYTES as u64);
        let (Some(out), Some(last)) = (out, writable.last_mut()) else {
            return Err(DriverFault);
        };
        // No buffer is empty.
        last.length -= 1;
        let status = last.address.checked_add(u64::from(last.length));
        let status = status.ok_or(DriverFault)?;
        if last.length == 0 {
            writable.pop();
        }
        Ok(Self {
            readable,
            out,
            room: lengths.1 - 1,
            status,
        })
    }

    /// Reads the header, and the data of a write to `scratch`.
    pub fn ask(
        &self,
        spec: &DiskSpec,
        durable: bool,
        memory: &GuestMemoryMmap,
        scratch: &mut Vec<u8>,
    ) -> Result<Ask, DriverFault> {
        // Too much for any request: not even copied.
        if self.out > REQUEST_BYTES || self.room > REQUEST_BYTES {
            return Ok(FAILED);
        }
        let mut header = Header::new_zeroed();
        first(memory, self.readable, header.as_mut_bytes())?;
        scratch.clear();
        gather(memory, self.readable, HEADER_BYTES, scratch)?;
        let offset = header.sector.get().checked_mul(SECTOR_BYTES);
        let ask = match header.kind.get() {
            VIRTIO_BLK_T_IN => transfer(spec, DiskOp::Read, offset, self.room),
            VIRTIO_BLK_T_OUT => transfer(spec, DiskOp::Write { durable }, offset, self.out),
            VIRTIO_BLK_T_FLUSH => Ask::Request {
                op: DiskOp::Flush,
                offset: 0,
                length: 0,
            },
            VIRTIO_BLK_T_GET_ID if self.room >= SERIAL_BYTES as u64 => {
                let mut serial = [0; SERIAL_BYTES];
                for (byte, value) in serial.iter_mut().zip(spec.serial.bytes()) {
                    *byte = value;
                }
                Ask::Answer(Answer::Serial(serial))
            }
            VIRTIO_BLK_T_GET_ID => FAILED,
            kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => range(spec, kind, scratch),
            _ => UNSUPPORTED,
        };
        Ok(ask)
    }
}

/// Data, of a length that a disk has, from and to where the disk is.
fn transfer(spec: &DiskSpec, op: DiskOp, offset: Option<u64>, length: u64) -> Ask {
    match offset {
        Some(offset) if length.is_multiple_of(SECTOR_BYTES) => on_disk(spec, op, offset, length),
        _ => FAILED,
    }
}

fn range(spec: &DiskSpec, kind: u32, data: &[u8]) -> Ask {
    // One range a request is what the driver is told.
    let Ok(range) = Range::ref_from_bytes(data) else {
        return FAILED;
    };
    let op = match (kind, range.flags.get()) {
        (VIRTIO_BLK_T_DISCARD, 0) => DiskOp::Discard,
        (VIRTIO_BLK_T_WRITE_ZEROES, 0) => DiskOp::WriteZeroes { unmap: false },
        (VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) => {
            DiskOp::WriteZeroes { unmap: true }
        }
        // Flags that are not known (5.2.6.2).
        _ => return UNSUPPORTED,
    };
    let length = u64::from(range.sectors.get()) * SECTOR_BYTES;
    match range.sector.get().checked_mul(SECTOR_BYTES) {
        Some(offset) if range.sectors.get() <= RANGE_SECTORS => on_disk(spec, op, offset, length),
        _ => FAILED,
    }
}

fn on_disk(spec: &DiskSpec, op: DiskOp, offset: u64, length: u64) -> Ask {
    let end = offset.checked_add(length);
    let inside = length > 0 && end.is_some_and(|end| end <= spec.bytes);
    if !inside || (spec.read_only && op.changes()) {
        return FAILED;
    }
    Ask::Request { op, offset, length }
}
