//! The acknowledgement: how far the backup has the log, how far it has replayed it, and how much
//! more it can take.

use std::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::entry::Sequence;

/// Size of an acknowledgement on the wire.
pub const ACK_BYTES: usize = 40;

/// First field behind the CRC; tells an acknowledgement from anything else.
pub const ACK_MAGIC: u32 = u32::from_le_bytes(*b"LSAK");

/// Cumulative acknowledgement. "Acknowledged" is: in the backup's ring, checked, will be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Ack {
    /// Every entry up to this one is acknowledged.
    pub acked: Sequence,
    /// Every entry up to this one was replayed.
    pub replayed: Sequence,
    /// Position that the backup's machine has reached.
    pub replayed_position: u64,
    /// Credit: bytes of log that fit the backup's ring behind the entry `acked`.
    pub free: u64,
}

/// [`Ack`] on the wire, little-endian.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Wire {
    /// CRC32C of the bytes behind it.
    crc: U32,
    magic: U32,
    acked: U64,
    replayed: U64,
    replayed_position: U64,
    free: U64,
}

const _: () = assert!(size_of::<Wire>() == ACK_BYTES);

/// Why bytes are not an acknowledgement, or not one of what was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// The bytes changed on their way.
    #[error("acknowledgement field `crc`: found {found:#010x}, expected {expected:#010x}")]
    Crc {
        /// In the message.
        found: u32,
        /// Computed over the bytes.
        expected: u32,
    },
    /// Something else than an acknowledgement.
    #[error("acknowledgement field `magic`: found {found:#010x}, expected {expected:#010x}")]
    Magic {
        /// In the message.
        found: u32,
        /// [`ACK_MAGIC`].
        expected: u32,
    },
    /// The backup claims to have what it was never sent.
    #[error(
        "acknowledgement field `acked`: found {found}, expected at most {sent}, the last entry sent"
    )]
    BeyondSent {
        /// In the message.
        found: Sequence,
        /// Last entry sent whole.
        sent: Sequence,
    },
    /// The backup claims to have replayed what it has not acknowledged.
    #[error(
        "acknowledgement field `replayed`: found {found}, expected at most the acknowledged {acked}"
    )]
    ReplayedBeyondAcked {
        /// In the message.
        found: Sequence,
        /// `acked` of the same message.
        acked: Sequence,
    },
    /// More credit than the ring that the backup announced has bytes.
    #[error(
        "acknowledgement field `free`: found {found}, expected at most the {ring} bytes of the backup's ring"
    )]
    CreditBeyondRing {
        /// In the message.
        found: u64,
        /// Capacity in the backup's hello.
        ring: u64,
    },
}

impl Ack {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> [u8; ACK_BYTES] {
        let mut wire = Wire {
            crc: U32::ZERO,
            magic: U32::new(ACK_MAGIC),
            acked: U64::new(self.acked.0),
            replayed: U64::new(self.replayed.0),
            replayed_position: U64::new(self.replayed_position),
            free: U64::new(self.free),
        };
        wire.crc = U32::new(crc32c::crc32c(&wire.as_bytes()[4..]));
        let mut bytes = [0; ACK_BYTES];
        bytes.copy_from_slice(wire.as_bytes());
        bytes
    }

    /// Reads one that travelled.
    ///
    /// # Errors
    /// The bytes are damaged, or no acknowledgement.
    pub fn decode(bytes: &[u8; ACK_BYTES]) -> Result<Self, AckError> {
        let wire: &Wire = zerocopy::transmute_ref!(bytes);
        if wire.magic.get() != ACK_MAGIC {
            return Err(AckError::Magic {
                found: wire.magic.get(),
                expected: ACK_MAGIC,
            });
        }
        let (found, expected) = (wire.crc.get(), crc32c::crc32c(&bytes[4..]));
        if found != expected {
            return Err(AckError::Crc { found, expected });
        }
        let ack = Self {
            acked: Sequence(wire.acked.get()),
            replayed: Sequence(wire.replayed.get()),
            replayed_position: wire.replayed_position.get(),
            free: wire.free.get(),
        };
        if ack.replayed > ack.acked {
            return Err(AckError::ReplayedBeyondAcked {
                found: ack.replayed,
                acked: ack.acked,
            });
        }
        Ok(ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ack() -> impl Strategy<Value = Ack> {
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
            |(a, b, replayed_position, free)| Ack {
                acked: Sequence(a.max(b)),
                replayed: Sequence(a.min(b)),
                replayed_position,
                free,
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(ack in ack()) {
            prop_assert_eq!(Ack::decode(&ack.encode()), Ok(ack));
        }

        #[test]
        fn one_changed_bit_is_always_noticed(ack in ack(), bit in 0..ACK_BYTES * 8) {
            let mut bytes = ack.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Ack::decode(&bytes).is_err());
        }
    }

    #[test]
    fn replayed_beyond_acknowledged_is_refused() {
        let bytes = Ack {
            acked: Sequence(3),
            replayed: Sequence(4),
            ..Ack::default()
        }
        .encode();
        let error = AckError::ReplayedBeyondAcked {
            found: Sequence(4),
            acked: Sequence(3),
        };
        assert_eq!(Ack::decode(&bytes), Err(error));
    }
}
