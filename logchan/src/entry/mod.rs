//! The log entry: its bytes, and what makes them valid.
//!
//! An entry is written once, in the primary's ring, in the form in which it travels, is received
//! and is replayed. 40 bytes of header, little-endian, then payload, then zeros up to a multiple of
//! [`ALIGN`]:
//!
//! | offset | size | field | protects against |
//! |---|---|---|---|
//! | 0 | 4 | `crc` | CRC32C of everything behind it, padding included |
//! | 4 | 4 | `length` | header and payload, without padding |
//! | 8 | 8 | `sequence` | a lost or repeated entry; counts from 1 |
//! | 16 | 8 | `position` | |
//! | 24 | 8 | `clock` | |
//! | 32 | 2 | `kind` | |
//! | 34 | 2 | `flags` | bit 0: acknowledge at once (an output waits) |
//! | 36 | 4 | `reserved` | zero |
//!
//! `position`, `clock` and `kind` mean nothing here; the machine gives them their meaning.

mod decode;
mod header;
mod sequence;

pub use decode::{Entry, EntryError, Limits, decode, whole_entries};
pub(crate) use decode::{Verify, split};
pub(crate) use header::crc_of;
pub use header::{Flags, Header};
pub use sequence::Sequence;

/// Size of [`Header`] in bytes.
pub const HEADER_BYTES: usize = 40;

/// Entries begin at multiples of this many bytes of the log.
pub const ALIGN: usize = 8;

/// Longest entry, header and payload, in bytes. A 64 KiB frame fits with room to spare, and a
/// receiver needs no larger a buffer.
pub const MAX_ENTRY_BYTES: usize = 128 << 10;

/// Longest payload in bytes.
pub const MAX_PAYLOAD_BYTES: usize = MAX_ENTRY_BYTES - HEADER_BYTES;

/// What an entry of `length` bytes (header and payload) occupies in the log.
#[must_use]
pub const fn padded(length: usize) -> usize {
    length.next_multiple_of(ALIGN)
}
