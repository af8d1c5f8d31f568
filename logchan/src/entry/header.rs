//! The header's layout.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{HEADER_BYTES, Sequence};

/// What stands before an entry's payload, in its wire form.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// CRC32C of every byte behind this field, padding included.
    pub crc: U32,
    /// Bytes of header and payload, without padding.
    pub length: U32,
    /// The entry's [`Sequence`].
    pub sequence: U64,
    /// Where in the instruction stream the entry belongs.
    pub position: U64,
    /// Virtual time to which the machine is moved before the entry is applied, nanoseconds.
    pub clock: U64,
    /// What the payload is.
    pub kind: U16,
    /// [`Flags`].
    pub flags: U16,
    /// Zero.
    pub reserved: U32,
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_BYTES);
    assert!(align_of::<Header>() == 1);
    assert!(offset_of!(Header, crc) == 0);
    assert!(offset_of!(Header, length) == 4);
    assert!(offset_of!(Header, sequence) == 8);
    assert!(offset_of!(Header, position) == 16);
    assert!(offset_of!(Header, clock) == 24);
    assert!(offset_of!(Header, kind) == 32);
    assert!(offset_of!(Header, flags) == 34);
    assert!(offset_of!(Header, reserved) == 36);
    assert!(HEADER_BYTES.is_multiple_of(super::ALIGN));
    assert!(super::MAX_ENTRY_BYTES.is_multiple_of(super::ALIGN));
    assert!(super::MAX_PAYLOAD_BYTES > 64 << 10);
};

/// Bytes of the header that its `crc` does not cover.
const CRC_BYTES: usize = size_of::<U32>();

/// CRC32C that belongs into the `crc` of the padded entry `bytes`.
pub(crate) fn crc_of(bytes: &[u8]) -> u32 {
    crc32c::crc32c(&bytes[CRC_BYTES..])
}

impl Header {
    /// The entry's sequence number.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence(self.sequence.get())
    }
}

/// What an entry asks of the channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Acknowledge at once: an output waits for it.
    pub const ACK_AT_ONCE: Self = Self(1);
    /// Every bit that has a meaning.
    pub const KNOWN: Self = Self(1);

    /// The flags in `bits`, if each has a meaning.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Option<Self> {
        if bits & !Self::KNOWN.0 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// As they stand in the header.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether the backup is to acknowledge at once.
    #[must_use]
    pub const fn ack_at_once(self) -> bool {
        self.0 & Self::ACK_AT_ONCE.0 != 0
    }
}
