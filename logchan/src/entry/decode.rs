//! From bytes of unknown origin to an [`Entry`], or to the field that is wrong.

use zerocopy::FromBytes;

use super::{Flags, HEADER_BYTES, Header, MAX_ENTRY_BYTES, Sequence, crc_of, padded};

/// A complete entry in the log's own memory.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// All of it, padding included.
    bytes: &'a [u8],
    header: &'a Header,
    payload: &'a [u8],
}

/// Why bytes are not an entry.
///
/// A log with one such entry is unusable from there on: a backup refuses to go on, a primary drops
/// the channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The bytes changed on their way.
    #[error(
        "entry field `crc`: found {found:#010x}, expected {expected:#010x} for its {length} bytes: \
         damaged in memory or on the way; pair the backup anew"
    )]
    Crc {
        /// In the header.
        found: u32,
        /// Computed over the bytes.
        expected: u32,
        /// What the header says of the entry's length, in bytes.
        length: u32,
    },
    /// An entry that ends within its own header.
    #[error("entry field `length`: found {found}, expected at least the header's {header}", header = HEADER_BYTES)]
    LengthBelowHeader {
        /// In the header.
        found: u32,
    },
    /// An entry longer than any writer makes.
    #[error("entry field `length`: found {found}, expected at most {maximum}")]
    LengthAboveMaximum {
        /// In the header.
        found: u32,
        /// [`MAX_ENTRY_BYTES`].
        maximum: u32,
    },
    /// An entry that can never be complete in this ring.
    #[error(
        "entry field `length`: found {found}, expected at most the ring's {ring} bytes: give both \
         sides a larger ring"
    )]
    LengthAboveRing {
        /// In the header.
        found: u32,
        /// Capacity of the ring, bytes.
        ring: u64,
    },
    /// A flag that this version does not know.
    #[error(
        "entry field `flags`: found {found:#06x}, expected only bits of {known:#06x}: the peer is of another version"
    )]
    Flags {
        /// In the header.
        found: u16,
        /// [`Flags::KNOWN`].
        known: u16,
    },
    /// Bytes that are to be zero.
    #[error(
        "entry field `reserved`: found {found:#010x}, expected 0: the peer is of another version"
    )]
    Reserved {
        /// In the header.
        found: u32,
    },
    /// Bytes behind the payload that are to be zero.
    #[error("entry padding: found {found:#04x} at byte {offset}, expected 0")]
    Padding {
        /// Where, from the entry's start.
        offset: u32,
        /// The byte.
        found: u8,
    },
    /// The log ends within an entry.
    #[error("an entry is cut off: the log ends after {found} bytes of it")]
    Truncated {
        /// Bytes of the entry that are there.
        found: u64,
    },
    /// The peer left the shared ring corrupt.
    #[error(transparent)]
    Ring(#[from] lockstep_ringbuf::CursorFault),
    /// An entry is missing, or came twice.
    #[error(
        "entry field `sequence`: found {found}, expected {expected}: entries were lost or repeated on the way"
    )]
    Sequence {
        /// In the header.
        found: Sequence,
        /// Behind the last entry.
        expected: Sequence,
    },
}

/// What bounds an entry's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    ring: u64,
}

impl Limits {
    /// For entries that have to fit a ring of `capacity` bytes.
    #[must_use]
    pub const fn of_ring(capacity: u64) -> Self {
        Self { ring: capacity }
    }

    /// Checks a header's `length`; returns it with the padding.
    fn check(self, length: u32) -> Result<usize, EntryError> {
        const MAXIMUM: u32 = MAX_ENTRY_BYTES as u32;
        if (length as usize) < HEADER_BYTES {
            return Err(EntryError::LengthBelowHeader { found: length });
        }
        if length > MAXIMUM {
            return Err(EntryError::LengthAboveMaximum {
                found: length,
                maximum: MAXIMUM,
            });
        }
        let padded = padded(length as usize);
        if padded as u64 > self.ring {
            return Err(EntryError::LengthAboveRing {
                found: length,
                ring: self.ring,
            });
        }
        Ok(padded)
    }
}

impl Default for Limits {
    /// Bounded by [`MAX_ENTRY_BYTES`] alone.
    fn default() -> Self {
        Self::of_ring(u64::MAX)
    }
}

/// Which of an entry's bytes somebody has already verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Everything: the bytes come from outside.
    All,
    /// Only what memory safety and order need; the receiver has compared the CRC.
    Frame,
}

/// Splits the entry at the start of `bytes` off and checks everything but its place in the
/// sequence. `None` if it is not complete yet.
///
/// A wrong `length` is reported as soon as that field is there, so nobody waits for the rest of an
/// entry that cannot be.
///
/// # Errors
/// The first field that is wrong. The CRC is compared before the fields that it covers.
pub fn decode(bytes: &[u8], limits: Limits) -> Result<Option<Entry<'_>>, EntryError> {
    split(bytes, limits, Verify::All)
}

pub(crate) fn split(
    bytes: &[u8],
    limits: Limits,
    verify: Verify,
) -> Result<Option<Entry<'_>>, EntryError> {
    let Some(length) = peek_length(bytes) else {
        return Ok(None);
    };
    let padded = limits.check(length)?;
    let Some(bytes) = bytes.get(..padded) else {
        return Ok(None);
    };
    let length_bytes = length as usize;
    let Ok((header, rest)) = Header::ref_from_prefix(bytes) else {
        return Ok(None);
    };
    if verify == Verify::All {
        let (found, expected) = (header.crc.get(), crc_of(bytes));
        if found != expected {
            return Err(EntryError::Crc {
                found,
                expected,
                length,
            });
        }
        if header.reserved.get() != 0 {
            return Err(EntryError::Reserved {
                found: header.reserved.get(),
            });
        }
        if Flags::from_bits(header.flags.get()).is_none() {
            let known = Flags::KNOWN.bits();
            return Err(EntryError::Flags {
                found: header.flags.get(),
                known,
            });
        }
        if let Some(at) = bytes[length_bytes..].iter().position(|byte| *byte != 0) {
            let offset = length_bytes + at;
            return Err(EntryError::Padding {
                offset: offset as u32,
                found: bytes[offset],
            });
        }
    }
    let payload = &rest[..length_bytes - HEADER_BYTES];
    Ok(Some(Entry {
        bytes,
        header,
        payload,
    }))
}

/// The `length` of the entry at the start of `bytes`, unchecked, if that field is there.
fn peek_length(bytes: &[u8]) -> Option<u32> {
    let field = bytes.get(4..8)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

/// Length of the longest run of whole entries at the start of `bytes` that is at most `maximum`
/// bytes long: what a packet-oriented link may send without cutting an entry. Lengths are believed,
/// so this is for bytes that this process wrote.
#[must_use]
pub fn whole_entries(bytes: &[u8], maximum: usize) -> usize {
    let mut end = 0;
    while let Some(length) = peek_length(&bytes[end..]) {
        let next = end + padded((length as usize).max(HEADER_BYTES));
        if next > bytes.len() || next > maximum {
            break;
        }
        end = next;
    }
    end
}

impl<'a> Entry<'a> {
    /// The header, in wire form.
    #[must_use]
    pub const fn header(&self) -> &'a Header {
        self.header
    }

    /// The entry's number.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.header.sequence()
    }

    /// Where in the instruction stream it belongs.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.header.position.get()
    }

    /// Virtual time to which the machine is moved before the entry is applied, nanoseconds.
    #[must_use]
    pub fn clock(&self) -> u64 {
        self.header.clock.get()
    }

    /// What the payload is.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.header.kind.get()
    }

    /// What it asks of the channel. Bits without a meaning do not get past [`decode`].
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags::from_bits(self.header.flags.get() & Flags::KNOWN.bits()).unwrap_or_default()
    }

    /// The payload, without padding.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The whole entry as it lies in the log, padding included.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes that the entry occupies in the log, padding included.
    #[must_use]
    pub const fn bytes_in_log(&self) -> usize {
        self.bytes.len()
    }
}
