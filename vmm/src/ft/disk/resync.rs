//! The resync: how the backup's copies of the disks become equal to the primary's, message by message (paper 4.1).
//!
//! | from | message | says |
//! |---|---|---|
//! | backup | [`Frame::State`], then a [`Frame::Map`] for each disk with a record | what it knows of its copies |
//! | primary | [`Frame::Plans`], or [`Frame::Refusal`] | what is compared ([`decide`](super::copy::decide)) |
//! | primary | [`Frame::Digests`] | XXH3-128 of a batch of blocks |
//! | backup | [`Frame::Differ`], one for each batch, in order | which of them it has otherwise |
//! | primary | [`Frame::Data`] or [`Frame::Zeros`] | each of these, in order |
//! | primary | [`Frame::Finish`] | the new pairing, once everything that differed was sent |
//! | backup | [`Frame::Finished`] | it is durable, and so is the backup's record of it |
//!
//! The primary sends up to [`BATCHES_AHEAD`] batches of digests ahead of the answers. A frame is 12 bytes of header,
//! little-endian, and a payload: its length (4 bytes), kind (1), disk (1), zero (2), and CRC32C (4) over these eight
//! bytes and the payload.

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::copy::{ChunkMap, CopyRefusal, CopyState, MAP_BYTES_MOST, PairingId, Plan, Scope};

/// Bytes of a block: what is compared and sent as one. The last of a disk may be shorter.
pub const BLOCK_BYTES: usize = 64 << 10;

/// Most blocks of a batch of digests.
pub const BATCH_BLOCKS: usize = 256;

/// Batches of digests on their way at a time.
pub const BATCHES_AHEAD: usize = 4;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = size_of::<Header>();

/// Most bytes of a payload in JSON.
const JSON_BYTES_MOST: usize = 64 << 10;

/// What the backup says of its copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BackupState {
    /// The operator allows what is there to be overwritten.
    pub overwrite: bool,
    /// Of each disk of the backup's own, in their order.
    pub copies: Vec<CopyState>,
}

/// The digest of a block.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct BlockDigest {
    /// The block's number on its disk, from 0.
    pub block: U64,
    /// XXH3-128 of its bytes.
    pub digest: U128,
}

/// A message. `disk` counts the disks of the side's own, from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// What the backup knows of its copies.
    State(BackupState),
    /// The bits of its record of `disk`.
    Map {
        /// Which disk.
        disk: u8,
        /// [`ChunkMap::to_bytes`].
        bits: Vec<u8>,
    },
    /// What is done with each disk.
    Plans(Vec<Plan>),
    /// The copies are not made equal.
    Refusal(CopyRefusal),
    /// What the primary has in these blocks.
    Digests {
        /// Which disk.
        disk: u8,
        /// At most [`BATCH_BLOCKS`].
        digests: Vec<BlockDigest>,
    },
    /// The blocks of the oldest unanswered batch that the backup has otherwise.
    Differ {
        /// Which disk.
        disk: u8,
        /// Numbers of blocks.
        blocks: Vec<u64>,
    },
    /// A block's bytes.
    Data {
        /// Which disk.
        disk: u8,
        /// Its number.
        block: u64,
        /// At most [`BLOCK_BYTES`].
        bytes: Vec<u8>,
    },
    /// A block that is zero.
    Zeros {
        /// Which disk.
        disk: u8,
        /// Its number.
        block: u64,
    },
    /// Everything that differed was sent.
    Finish(PairingId),
    /// Everything is durable, the backup's records too.
    Finished(PairingId),
}

/// Bytes that are no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No such kind.
    #[error("a frame of kind {found}, expected 1 to {KINDS}")]
    Kind {
        /// As found.
        found: u8,
    },
    /// A length that no frame of this kind has.
    #[error("a frame of kind {kind} with {found} bytes, expected {expected}")]
    Length {
        /// Of the frame.
        kind: u8,
        /// As found.
        found: usize,
        /// In words.
        expected: &'static str,
    },
    /// Bytes that are to be zero.
    #[error("reserved bytes of a frame's header hold {found:#06x}, expected 0")]
    Reserved {
        /// As found.
        found: u16,
    },
    /// Damaged on its way.
    #[error(
        "a frame's CRC32C is {found:#010x}, expected {expected:#010x}: the network damages data"
    )]
    Crc {
        /// As found.
        found: u32,
        /// Computed.
        expected: u32,
    },
    /// A payload that makes no sense.
    #[error("a frame's payload: {0}")]
    Json(#[source] serde_json::Error),
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    length: U32,
    kind: u8,
    disk: u8,
    reserved: [u8; 2],
    crc: U32,
}

const STATE: u8 = 1;
const MAP: u8 = 2;
const PLANS: u8 = 3;
const REFUSAL: u8 = 4;
const DIGESTS: u8 = 5;
const DIFFER: u8 = 6;
const DATA: u8 = 7;
const ZEROS: u8 = 8;
const FINISH: u8 = 9;
const FINISHED: u8 = 10;
const KINDS: u8 = FINISHED;

/// Checks a payload's length by the frame's kind.
fn check_length(kind: u8, found: usize) -> Result<(), FrameError> {
    const DIGEST: usize = size_of::<BlockDigest>();
    let (fits, expected) = match kind {
        STATE | PLANS | REFUSAL => (found <= JSON_BYTES_MOST, "at most 65536"),
        MAP => (found <= MAP_BYTES_MOST, "at most 1048576"),
        DIGESTS => (
            found.is_multiple_of(DIGEST) && found <= BATCH_BLOCKS * DIGEST,
            "24 for each block, of which there are 256 at most",
        ),
        DIFFER => (
            found.is_multiple_of(8) && found <= BATCH_BLOCKS * 8,
            "8 for each block, of which there are 256 at most",
        ),
        DATA => (
            (9..=8 + BLOCK_BYTES).contains(&found),
            "a block's number, and 65536 at most",
        ),
        ZEROS => (found == 8, "8"),
        FINISH | FINISHED => (found == 16, "16"),
        found => return Err(FrameError::Kind { found }),
    };
    match fits {
        true => Ok(()),
        false => Err(FrameError::Length {
            kind,
            found,
            expected,
        }),
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Plain structures of numbers and words: nothing in them cannot be written.
    serde_json::to_vec(value).unwrap_or_default()
}

impl Frame {
    /// Appends the frame as it travels to `bytes`.
    pub fn write_to(&self, bytes: &mut Vec<u8>) {
        let (kind, disk, payload) = match self {
            Self::State(state) => (STATE, 0, json(state)),
            Self::Map { disk, bits } => (MAP, *disk, bits.clone()),
            Self::Plans(plans) => (PLANS, 0, json(plans)),
            Self::Refusal(refusal) => (REFUSAL, 0, json(refusal)),
            Self::Digests { disk, digests } => (DIGESTS, *disk, digests.as_bytes().to_vec()),
            Self::Differ { disk, blocks } => {
                let blocks = blocks.iter().flat_map(|block| block.to_le_bytes());
                (DIFFER, *disk, blocks.collect())
            }
            Self::Data {
                disk,
                block,
                bytes: data,
            } => (DATA, *disk, [&block.to_le_bytes()[..], data].concat()),
            Self::Zeros { disk, block } => (ZEROS, *disk, block.to_le_bytes().to_vec()),
            Self::Finish(pairing) => (FINISH, 0, pairing.0.to_le_bytes().to_vec()),
            Self::Finished(pairing) => (FINISHED, 0, pairing.0.to_le_bytes().to_vec()),
        };
        let mut header = Header {
            length: U32::new(payload.len() as u32),
            kind,
            disk,
            reserved: [0; 2],
            crc: U32::ZERO,
        };
        header.crc = U32::new(crc(&header, &payload));
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&payload);
    }

    /// Bytes of the whole frame that begins with `header`.
    ///
    /// # Errors
    /// There is no such frame.
    pub fn length(header: &[u8; HEADER_BYTES]) -> Result<usize, FrameError> {
        let header: &Header = zerocopy::transmute_ref!(header);
        let length = header.length.get() as usize;
        check_length(header.kind, length)?;
        if header.reserved != [0; 2] {
            let found = u16::from_le_bytes(header.reserved);
            return Err(FrameError::Reserved { found });
        }
        Ok(HEADER_BYTES + length)
    }

    /// Reads a frame of the length that [`Frame::length`] gave.
    ///
    /// # Errors
    /// It is damaged, or makes no sense.
    pub fn read_from(bytes: &[u8]) -> Result<Self, FrameError> {
        let Ok((header, payload)) = Header::ref_from_prefix(bytes) else {
            return Err(FrameError::Length {
                kind: 0,
                found: bytes.len(),
                expected: "a header of 12",
            });
        };
        check_length(header.kind, payload.len())?;
        let (found, expected) = (header.crc.get(), crc(header, payload));
        if found != expected {
            return Err(FrameError::Crc { found, expected });
        }
        let disk = header.disk;
        let number = || payload.first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
        let pairing = || {
            let bits = payload.first_chunk().map_or(0, |n| u128::from_le_bytes(*n));
            PairingId(bits)
        };
        Ok(match header.kind {
            STATE => Self::State(serde_json::from_slice(payload).map_err(FrameError::Json)?),
            MAP => Self::Map {
                disk,
                bits: payload.to_vec(),
            },
            PLANS => Self::Plans(serde_json::from_slice(payload).map_err(FrameError::Json)?),
            REFUSAL => Self::Refusal(serde_json::from_slice(payload).map_err(FrameError::Json)?),
            DIGESTS => Self::Digests {
                disk,
                // Whole digests, as checked.
                digests: <[BlockDigest]>::ref_from_bytes(payload)
                    .map(<[BlockDigest]>::to_vec)
                    .unwrap_or_default(),
            },
            DIFFER => Self::Differ {
                disk,
                blocks: payload
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|block| u64::from_le_bytes(*block))
                    .collect(),
            },
            DATA => Self::Data {
                disk,
                block: number(),
                bytes: payload[8..].to_vec(),
            },
            ZEROS => Self::Zeros {
                disk,
                block: number(),
            },
            FINISH => Self::Finish(pairing()),
            // `check_length` knows no further kind.
            _ => Self::Finished(pairing()),
        })
    }

    /// What it is called in an error.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::State(_) => "state",
            Self::Map { .. } => "map",
            Self::Plans(_) => "plans",
            Self::Refusal(_) => "refusal",
            Self::Digests { .. } => "digests",
            Self::Differ { .. } => "differ",
            Self::Data { .. } => "data",
            Self::Zeros { .. } => "zeros",
            Self::Finish(_) => "finish",
            Self::Finished(_) => "finished",
        }
    }
}

fn crc(header: &Header, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header.as_bytes()[..8]), payload)
}

/// Blocks of a disk of `bytes` bytes.
#[must_use]
pub const fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64)
}

/// The blocks that are compared: all, or those in the chunks that one of the maps has. In order.
pub fn blocks_to_compare(
    scope: Scope,
    primary: &ChunkMap,
    backup: Option<&ChunkMap>,
) -> impl Iterator<Item = u64> {
    let mut map = primary.clone();
    if let Some(backup) = backup {
        map.unite(backup);
    }
    let blocks_of_chunk = map.chunk_bytes() / BLOCK_BYTES as u64;
    let all = scope == Scope::All;
    (0..blocks_of(map.disk_bytes()))
        .filter(move |block| all || map.contains(block / blocks_of_chunk))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ft::disk::copy::Standing;

    fn frames() -> Vec<Frame> {
        let pairing = PairingId(u128::MAX - 1);
        let digest = BlockDigest {
            block: U64::new(9),
            digest: U128::new(7),
        };
        vec![
            Frame::State(BackupState {
                overwrite: true,
                copies: vec![
                    CopyState::Blank,
                    CopyState::Unknown,
                    CopyState::Known {
                        pairing,
                        standing: Standing::Led,
                        clean: true,
                    },
                ],
            }),
            Frame::Map {
                disk: 3,
                bits: vec![5; MAP_BYTES_MOST],
            },
            Frame::Plans(vec![Plan {
                scope: Scope::Marked,
                overwrite: false,
            }]),
            Frame::Refusal(CopyRefusal::Elsewhere {
                disk: 1,
                primary: None,
                backup: pairing,
                standing: Standing::Alone,
            }),
            Frame::Digests {
                disk: 1,
                digests: vec![digest; BATCH_BLOCKS],
            },
            Frame::Differ {
                disk: 1,
                blocks: vec![1, u64::MAX],
            },
            Frame::Data {
                disk: 2,
                block: 4,
                bytes: vec![6; BLOCK_BYTES],
            },
            Frame::Zeros { disk: 2, block: 5 },
            Frame::Finish(pairing),
            Frame::Finished(pairing),
        ]
    }

    fn written(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.write_to(&mut bytes);
        bytes
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        for frame in frames() {
            let bytes = written(&frame);
            let length = Frame::length(bytes.first_chunk().unwrap()).unwrap();
            assert_eq!(length, bytes.len());
            assert_eq!(Frame::read_from(&bytes).unwrap(), frame);
        }
    }

    #[test]
    fn a_damaged_frame_is_refused() {
        for frame in frames() {
            let mut bytes = written(&frame);
            for at in (0..bytes.len()).step_by(bytes.len() / 64 + 1) {
                bytes[at] ^= 0x40;
                let length = Frame::length(bytes.first_chunk().unwrap());
                let refused = !length.is_ok_and(|length| length == bytes.len())
                    || Frame::read_from(&bytes).is_err();
                assert!(refused, "{}: byte {at}", frame.name());
                bytes[at] ^= 0x40;
            }
        }
    }

    /// All a stranger can have us allocate.
    #[test]
    fn no_header_announces_more_than_a_map() {
        for kind in 0..=u8::MAX {
            for length in [0, 8, 16, 24, 1 << 16, 1 << 20, (1 << 20) + 1, u32::MAX] {
                let mut header = [0; HEADER_BYTES];
                header[..4].copy_from_slice(&length.to_le_bytes());
                header[4] = kind;
                if let Ok(length) = Frame::length(&header) {
                    assert!(length <= HEADER_BYTES + MAP_BYTES_MOST);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_ends_in_a_frame_or_an_error(
            kind in 0u8..12,
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut header = Header {
                length: U32::new(payload.len() as u32),
                kind,
                disk: 0,
                reserved: [0; 2],
                crc: U32::ZERO,
            };
            header.crc = U32::new(crc(&header, &payload));
            let bytes = [header.as_bytes(), &payload].concat();
            if let Ok(frame) = Frame::read_from(&bytes) {
                prop_assert_eq!(Frame::read_from(&written(&frame)).unwrap(), frame);
            }
        }

        #[test]
        fn every_byte_that_may_differ_is_in_a_block_that_is_compared(
            bytes in 1u64..40 << 20,
            ours in proptest::collection::vec(any::<u64>(), 0..4),
            theirs in proptest::collection::vec(any::<u64>(), 0..4),
        ) {
            let bytes = bytes * 512 % (40 << 20) + 512;
            let (mut primary, mut backup) = (ChunkMap::new(bytes), ChunkMap::new(bytes));
            for at in &ours {
                primary.mark(at % bytes, 1);
            }
            for at in &theirs {
                backup.mark(at % bytes, 1);
            }
            let blocks: Vec<u64> = blocks_to_compare(Scope::Marked, &primary, Some(&backup)).collect();
            for at in ours.iter().chain(&theirs) {
                prop_assert!(blocks.contains(&(at % bytes / BLOCK_BYTES as u64)));
            }
            let chunks = primary.count() + backup.count();
            prop_assert!(blocks.len() as u64 <= chunks * 16);
            let all = blocks_to_compare(Scope::All, &primary, None).count() as u64;
            prop_assert_eq!(all, blocks_of(bytes));
        }
    }
}
