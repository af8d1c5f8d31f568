//! The device's configuration (virtio 1.2, 5.2.4).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

use super::{SECTOR_BYTES, SEGMENT_BYTES, SEGMENTS};
use crate::machine::config::DiskSpec;

/// Largest range of one discard or write-zeroes request, in sectors: 1 GiB.
pub(super) const RANGE_SECTORS: u32 = 1 << 21;
/// Where `writeback` is.
pub(super) const WRITEBACK_OFFSET: u64 = 32;
/// Physical blocks are of 2^3 sectors.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// `struct virtio_blk_config`, as far as features offered have fields.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Config {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

const CONFIG_BYTES: usize = size_of::<Config>();
const _: () = assert!(CONFIG_BYTES == 60);
const _: () = assert!(std::mem::offset_of!(Config, writeback) as u64 == WRITEBACK_OFFSET);

/// What the driver reads.
pub(super) fn config_space(spec: &DiskSpec, writeback: bool) -> [u8; CONFIG_BYTES] {
    let blocks = 1 << PHYSICAL_BLOCK_EXPONENT;
    let config = Config {
        capacity: U64::new(spec.bytes / SECTOR_BYTES),
        size_max: U32::new(SEGMENT_BYTES),
        seg_max: U32::new(SEGMENTS),
        geometry: [0; 4],
        blk_size: U32::new(SECTOR_BYTES as u32),
        physical_block_exp: PHYSICAL_BLOCK_EXPONENT,
        alignment_offset: 0,
        min_io_size: U16::new(blocks),
        opt_io_size: U32::ZERO,
        writeback: writeback.into(),
        unused0: 0,
        num_queues: U16::new(spec.queues.into()),
        max_discard_sectors: U32::new(RANGE_SECTORS),
        max_discard_seg: U32::new(1),
        discard_sector_alignment: U32::new(blocks.into()),
        max_write_zeroes_sectors: U32::new(RANGE_SECTORS),
        max_write_zeroes_seg: U32::new(1),
        write_zeroes_may_unmap: 1,
        unused1: [0; 3],
    };
    zerocopy::transmute!(config)
}
