//! The fixed form in which a request leaves the machine, and which both replicas compare.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{DiskOp, DiskRequest};

/// Bytes of a request's wire form.
pub const REQUEST_WIRE_BYTES: usize = size_of::<RequestWire>();

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestWire {
    id: U64,
    offset: U64,
    length: U64,
    bounce: U64,
    digest: U64,
    disk: u8,
    op: u8,
    /// 1: durable (of a write), may unmap (of zeroes).
    modifier: u8,
    reserved: [u8; 5],
}

/// Bytes that are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestWireError {
    /// Another length.
    #[error("a disk request has {found} bytes, expected {REQUEST_WIRE_BYTES}")]
    Size {
        /// As found.
        found: usize,
    },
    /// An operation that is none.
    #[error("a disk request asks for operation {op} with modifier {modifier}, which is none")]
    Operation {
        /// As found.
        op: u8,
        /// As found.
        modifier: u8,
    },
    /// Bytes that must be zero.
    #[error("reserved bytes of a disk request hold {found:?}, expected zeros")]
    Reserved {
        /// As found.
        found: [u8; 5],
    },
}

impl DiskOp {
    const fn to_wire(self) -> (u8, u8) {
        match self {
            Self::Read => (0, 0),
            Self::Write { durable } => (1, durable as u8),
            Self::Flush => (2, 0),
            Self::Discard => (3, 0),
            Self::WriteZeroes { unmap } => (4, unmap as u8),
        }
    }

    const fn from_wire(op: u8, modifier: u8) -> Result<Self, RequestWireError> {
        Ok(match (op, modifier) {
            (0, 0) => Self::Read,
            (1, 0 | 1) => Self::Write {
                durable: modifier == 1,
            },
            (2, 0) => Self::Flush,
            (3, 0) => Self::Discard,
            (4, 0 | 1) => Self::WriteZeroes {
                unmap: modifier == 1,
            },
            _ => return Err(RequestWireError::Operation { op, modifier }),
        })
    }
}

impl DiskRequest {
    /// Appends the wire form to `bytes`.
    pub fn write_to(&self, bytes: &mut Vec<u8>) {
        let (op, modifier) = self.op.to_wire();
        let wire = RequestWire {
            id: U64::new(self.id),
            offset: U64::new(self.offset),
            length: U64::new(self.length),
            bounce: U64::new(self.bounce),
            digest: U64::new(self.digest),
            disk: self.disk,
            op,
            modifier,
            reserved: [0; 5],
        };
        bytes.extend_from_slice(wire.as_bytes());
    }

    /// Reads the wire form: an output of kind
    /// [`DiskRead`](crate::ft::vm::OutputKind::DiskRead) or [`Disk`](crate::ft::vm::OutputKind::Disk).
    ///
    /// # Errors
    /// The bytes are none.
    pub fn read_from(bytes: &[u8]) -> Result<Self, RequestWireError> {
        let found = bytes.len();
        let wire =
            RequestWire::ref_from_bytes(bytes).map_err(|_| RequestWireError::Size { found })?;
        if wire.reserved != [0; 5] {
            let found = wire.reserved;
            return Err(RequestWireError::Reserved { found });
        }
        Ok(Self {
            id: wire.id.get(),
            disk: wire.disk,
            op: DiskOp::from_wire(wire.op, wire.modifier)?,
            offset: wire.offset.get(),
            length: wire.length.get(),
            bounce: wire.bounce.get(),
            digest: wire.digest.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is read is written as it was: no two forms mean the same request.
        #[test]
        fn a_request_is_refused_or_canonical(
            head in proptest::collection::vec(any::<u8>(), 41),
            tail in proptest::collection::vec(prop_oneof![4 => 0u8..3, 1 => any::<u8>()], 6..8),
        ) {
            let bytes = [&head[..], &tail[..]].concat();
            let mut op = bytes.clone();
            for code in 0..6 {
                op[41 - usize::from(bytes.len() < 48)] = code;
                if let Ok(request) = DiskRequest::read_from(&op) {
                    let mut again = Vec::new();
                    request.write_to(&mut again);
                    prop_assert_eq!(&again, &op);
                    prop_assert_eq!(DiskRequest::read_from(&again), Ok(request));
                }
            }
        }
    }

    #[test]
    fn what_is_no_request_is_named() {
        let mut bytes = vec![0; REQUEST_WIRE_BYTES];
        assert!(DiskRequest::read_from(&bytes).is_ok());
        bytes[41] = 9;
        assert_eq!(
            DiskRequest::read_from(&bytes),
            Err(RequestWireError::Operation { op: 9, modifier: 0 })
        );
        bytes[41] = 1;
        bytes[47] = 1;
        assert!(matches!(
            DiskRequest::read_from(&bytes),
            Err(RequestWireError::Reserved { .. })
        ));
        assert_eq!(
            DiskRequest::read_from(&bytes[1..]),
            Err(RequestWireError::Size { found: 47 })
        );
    }
}
