//! The record's header.

use std::fmt;

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::map::{ChunkMap, PAGE_BYTES};

const MAGIC: [u8; 8] = *b"LSTPCOPY";

/// Of the record's form.
const VERSION: u32 = 1;

/// Number of a pairing: random bits, drawn by the primary at the end of a resync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PairingId(pub u128);

impl From<PairingId> for String {
    fn from(pairing: PairingId) -> Self {
        pairing.to_string()
    }
}

impl TryFrom<String> for PairingId {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(&text, 16).map(Self)
    }
}

impl fmt::Display for PairingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// How a side stood since its pairing; the later has the later data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Standing {
    /// It is being made equal to another copy, and no machine may run on it.
    Filling = 0,
    /// It did what its primary did.
    Followed = 1,
    /// It was the primary.
    Led = 2,
    /// It went on without the other: as a backup that went live, as a primary that lost its backup, or unprotected.
    Alone = 3,
}

impl Standing {
    const ALL: [Self; 4] = [Self::Filling, Self::Followed, Self::Led, Self::Alone];
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filling => "was being made equal",
            Self::Followed => "followed",
            Self::Led => "was the primary",
            Self::Alone => "went on alone",
        })
    }
}

/// What a side knows of its copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Both copies were equal then.
    pub pairing: PairingId,
    /// How this side stood since.
    pub standing: Standing,
    /// What this side may have written since.
    pub map: ChunkMap,
}

/// A file that is no record of this disk's copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It is too short or too long.
    #[error("it has {found} bytes, expected {expected}")]
    Length {
        /// As found.
        found: u64,
        /// By the size of the disk.
        expected: u64,
    },
    /// It is something else.
    #[error("it begins with {found:02x?}, expected {expected:02x?} (\"LSTPCOPY\")", expected = MAGIC)]
    Magic {
        /// As found.
        found: [u8; 8],
    },
    /// Another version's.
    #[error("its version is {found}, expected {expected}", expected = VERSION)]
    Version {
        /// As found.
        found: u32,
    },
    /// It is damaged.
    #[error("its header's CRC32C is {found:#010x}, expected {expected:#010x}: it is damaged")]
    Crc {
        /// As found.
        found: u32,
        /// Computed.
        expected: u32,
    },
    /// Another disk's.
    #[error("it belongs to a disk of {found} bytes, expected {expected}")]
    DiskBytes {
        /// As found.
        found: u64,
        /// The disk's.
        expected: u64,
    },
    /// A chunk that no disk of that size has.
    #[error("its chunks have {found} bytes, expected {expected}")]
    ChunkBytes {
        /// As found.
        found: u64,
        /// By the size of the disk.
        expected: u64,
    },
    /// No standing.
    #[error("its standing is {found}, expected 0 to 3")]
    Standing {
        /// As found.
        found: u8,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    disk_bytes: U64,
    chunk_bytes: U64,
    pairing: U128,
    standing: u8,
    reserved: [u8; PAGE_BYTES - 49],
}

const _: () = assert!(size_of::<Header>() == PAGE_BYTES);

impl Record {
    /// Of copies that are equal now, and were found so in `pairing`.
    #[must_use]
    pub fn new(pairing: PairingId, standing: Standing, disk_bytes: u64) -> Self {
        Self {
            pairing,
            standing,
            map: ChunkMap::new(disk_bytes),
        }
    }

    /// Bytes of the record of a disk of `disk_bytes` bytes.
    #[must_use]
    pub fn length(disk_bytes: u64) -> u64 {
        let pages = 1 + ChunkMap::new(disk_bytes).pages();
        (pages * PAGE_BYTES) as u64
    }

    /// Its first page.
    #[must_use]
    pub fn header(&self) -> [u8; PAGE_BYTES] {
        let mut header = Header {
            magic: MAGIC,
            version: U32::new(VERSION),
            crc: U32::ZERO,
            disk_bytes: U64::new(self.map.disk_bytes()),
            chunk_bytes: U64::new(self.map.chunk_bytes()),
            pairing: U128::new(self.pairing.0),
            standing: self.standing as u8,
            reserved: [0; PAGE_BYTES - 49],
        };
        header.crc = U32::new(crc32c::crc32c(header.as_bytes()));
        let mut page = [0; PAGE_BYTES];
        page.copy_from_slice(header.as_bytes());
        page
    }

    /// The whole record.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.header().to_vec();
        for page in 0..self.map.pages() as u32 {
            bytes.extend_from_slice(&self.map.page(page));
        }
        bytes
    }

    /// Reads the record of a disk of `disk_bytes` bytes. Also says how many pages of its bitmap are damaged, and
    /// taken to be all set.
    ///
    /// # Errors
    /// It is none of this disk.
    pub fn from_bytes(bytes: &[u8], disk_bytes: u64) -> Result<(Self, usize), RecordError> {
        let length = RecordError::Length {
            found: bytes.len() as u64,
            expected: Self::length(disk_bytes),
        };
        let Ok((header, rest)) = Header::ref_from_prefix(bytes) else {
            return Err(length);
        };
        if header.magic != MAGIC {
            let found = header.magic;
            return Err(RecordError::Magic { found });
        }
        if header.version.get() != VERSION {
            let found = header.version.get();
            return Err(RecordError::Version { found });
        }
        let mut page = [0; PAGE_BYTES];
        page.copy_from_slice(header.as_bytes());
        page[12..16].fill(0);
        let (found, expected) = (header.crc.get(), crc32c::crc32c(&page));
        if found != expected {
            return Err(RecordError::Crc { found, expected });
        }
        let (found, expected) = (header.disk_bytes.get(), disk_bytes);
        if found != expected {
            return Err(RecordError::DiskBytes { found, expected });
        }
        let (found, expected) = (header.chunk_bytes.get(), ChunkMap::chunk_of(disk_bytes));
        if found != expected {
            return Err(RecordError::ChunkBytes { found, expected });
        }
        let mut map = ChunkMap::new(disk_bytes);
        if rest.len() != map.pages() * PAGE_BYTES {
            return Err(length);
        }
        let found = header.standing;
        let standing = Standing::ALL.get(usize::from(found)).copied();
        let standing = standing.ok_or(RecordError::Standing { found })?;
        let mut damaged = 0;
        for (number, page) in (0..).zip(rest.as_chunks::<PAGE_BYTES>().0) {
            damaged += usize::from(!map.load(number, page));
        }
        let pairing = PairingId(header.pairing.get());
        Ok((
            Self {
                pairing,
                standing,
                map,
            },
            damaged,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 100 << 20;

    fn record() -> Record {
        let mut record = Record::new(PairingId(0xabc), Standing::Led, BYTES);
        record.map.mark(5 << 20, 3 << 20);
        record.map.take_changed();
        record
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let bytes = record().to_bytes();
        assert_eq!(bytes.len() as u64, Record::length(BYTES));
        assert_eq!(Record::from_bytes(&bytes, BYTES), Ok((record(), 0)));
    }

    #[test]
    fn every_damaged_byte_of_the_header_is_noticed() {
        let mut bytes = record().to_bytes();
        for at in 0..PAGE_BYTES {
            bytes[at] ^= 0x10;
            assert!(Record::from_bytes(&bytes, BYTES).is_err(), "byte {at}");
            bytes[at] ^= 0x10;
        }
    }

    #[test]
    fn a_torn_page_of_the_bitmap_sets_all_its_bits() {
        let mut bytes = record().to_bytes();
        bytes[PAGE_BYTES + 2048..].fill(0);
        let (read, damaged) = Record::from_bytes(&bytes, BYTES).unwrap();
        assert_eq!((damaged, read.map.count()), (1, 100));
    }

    #[test]
    fn what_is_no_record_of_this_disk_is_named() {
        let bytes = record().to_bytes();
        let read = |bytes: &[u8], disk| Record::from_bytes(bytes, disk).unwrap_err();
        assert!(matches!(
            read(&[], BYTES),
            RecordError::Length { found: 0, .. }
        ));
        assert!(matches!(
            read(&bytes[..PAGE_BYTES], BYTES),
            RecordError::Length { .. }
        ));
        assert!(matches!(
            read(&[7; 5000], BYTES),
            RecordError::Magic { found } if found == [7; 8]
        ));
        let mut other = bytes.clone();
        other[8] = 2;
        assert_eq!(read(&other, BYTES), RecordError::Version { found: 2 });
        let (found, expected) = (BYTES, BYTES + 512);
        assert_eq!(
            read(&bytes, BYTES + 512),
            RecordError::DiskBytes { found, expected }
        );
        let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            bytes[12..16].fill(0);
            let crc = crc32c::crc32c(&bytes[..PAGE_BYTES]);
            bytes[12..16].copy_from_slice(&crc.to_le_bytes());
            read(&bytes, BYTES)
        };
        assert_eq!(
            sealed(&|bytes| bytes[48] = 4),
            RecordError::Standing { found: 4 }
        );
        assert!(matches!(
            sealed(&|bytes| bytes[26] = 0x20),
            RecordError::ChunkBytes {
                found: 0x20_0000,
                ..
            }
        ));
    }
}
