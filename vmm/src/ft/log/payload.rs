//! Payload layouts: little-endian, packed, reserved bytes zero.

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Body, Sequence, kind};
use crate::ft::disk::{DiskDone, DiskStatus, RequestId};
use crate::ft::vm::{DigestScope, ENTROPY_LIMIT, Event, Output, OutputKind, StateDigest};

/// Longest payload of a mark, in bytes.
pub const MARK_BYTES_MAX: usize = 32;

/// A payload that its entry's kind does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The kind is not one of this format version.
    #[error(
        "entry kind {found:#06x} is not known to this version; run the same build on both hosts"
    )]
    UnknownKind {
        /// As read.
        found: u16,
    },
    /// The payload has another size than its kind's.
    #[error("payload of entry kind {kind:#06x} has {found} bytes, expected {expected}")]
    Size {
        /// The entry's kind.
        kind: u16,
        /// As read.
        found: usize,
        /// What the kind has.
        expected: usize,
    },
    /// A field holds a value outside its range.
    #[error("field `{field}` of entry kind {kind:#06x} holds {found:#x}, expected {expected}")]
    Field {
        /// The entry's kind.
        kind: u16,
        /// Name of the field.
        field: &'static str,
        /// As read.
        found: u64,
        /// Values it may hold.
        expected: &'static str,
    },
}

/// What the machine said, in an entry. The bytes themselves are not sent: the backup says them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputMark {
    /// Running number of the output, from 1 since the VM's start.
    pub number: u64,
    /// Any but a read from a disk, which is not held.
    pub kind: OutputKind,
    /// Length in bytes.
    pub length: u32,
    /// XXH3-64 of the bytes.
    pub digest: u64,
    /// Entry of the last output that the primary had released when it wrote this.
    pub released: Sequence,
}

impl OutputMark {
    /// The mark of `output`, the `number`th, while those up to the entry `released` are out.
    #[must_use]
    pub fn of(output: &Output, number: u64, released: Sequence) -> Self {
        Self {
            number,
            kind: output.kind,
            // A frame or console chunk of 4 GiB cannot be; saturating keeps this total.
            length: u32::try_from(output.bytes.len()).unwrap_or(u32::MAX),
            digest: xxh3_64(&output.bytes),
            released,
        }
    }
}

/// A digest of the primary's state at the entry's position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestMark {
    /// What it covers.
    pub scope: DigestScope,
    /// The primary's value.
    pub digest: StateDigest,
}

/// A read from a shared disk that has ended well, and whose data the backup reads itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskReadMark {
    /// The request's number.
    pub id: RequestId,
    /// XXH3-64 of what the primary read.
    pub digest: u64,
}

/// Why a log ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum EndReason {
    /// The guest powered itself off.
    PoweredOff = 1,
    /// The operator stopped the VM.
    Stopped = 2,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OutputPayload {
    number: U64,
    digest: U64,
    released: U64,
    length: U32,
    kind: u8,
    reserved: [u8; 3],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DigestPayload {
    /// Running number of a stripe; 0 for all of memory.
    index: U64,
    state: U64,
    memory: U64,
    /// Bytes of the stripe; 0: all of memory.
    stripe: U32,
    reserved: U32,
}

/// Of a disk request's end; data, or its digest, follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskHeader {
    id: U64,
    status: u8,
    flags: u8,
    reserved: [u8; 6],
}

/// Bytes before the data of a disk request's end.
pub const DISK_HEADER_BYTES: usize = size_of::<DiskHeader>();

/// [`DiskHeader::flags`]: instead of the data, its digest follows.
const READ_BY_BACKUP: u8 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EndPayload {
    reason: U32,
    reserved: U32,
}

const _: () = {
    assert!(size_of::<OutputPayload>() == 32);
    assert!(size_of::<DigestPayload>() == 32);
    assert!(size_of::<EndPayload>() == 8);
    assert!(DISK_HEADER_BYTES == 16);
    assert!(size_of::<OutputPayload>() <= MARK_BYTES_MAX);
    assert!(size_of::<DigestPayload>() <= MARK_BYTES_MAX);
};

pub(super) fn empty(kind: u16, payload: &[u8]) -> Result<(), PayloadError> {
    match payload.len() {
        0 => Ok(()),
        found => Err(PayloadError::Size {
            kind,
            found,
            expected: 0,
        }),
    }
}

/// Random bytes: more than a device asks for at a time come of no recorder.
pub(super) fn entropy(payload: &[u8]) -> Result<&[u8], PayloadError> {
    if payload.len() <= ENTROPY_LIMIT {
        Ok(payload)
    } else {
        Err(PayloadError::Size {
            kind: kind::ENTROPY,
            found: payload.len(),
            expected: ENTROPY_LIMIT,
        })
    }
}

pub(super) fn disk(payload: &[u8]) -> Result<Body<'_>, PayloadError> {
    let size = |expected| PayloadError::Size {
        kind: kind::DISK,
        found: payload.len(),
        expected,
    };
    let Ok((raw, data)) = DiskHeader::ref_from_prefix(payload) else {
        return Err(size(DISK_HEADER_BYTES));
    };
    let id = raw.id.get();
    if id == 0 {
        return Err(field(kind::DISK, "id", id, "1 or more"));
    }
    let status = match raw.status {
        0 => DiskStatus::Done,
        1 => DiskStatus::Failed,
        2 => DiskStatus::Unsupported,
        found => return Err(field(kind::DISK, "status", found.into(), "0, 1 or 2")),
    };
    let [a, b, c, d, e, f] = raw.reserved;
    let found = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    if found != 0 {
        return Err(field(kind::DISK, "reserved", found, "0"));
    }
    match (raw.flags, status) {
        (0, DiskStatus::Done) => {}
        (0, _) if data.is_empty() => {}
        (0, _) => return Err(size(DISK_HEADER_BYTES)),
        (READ_BY_BACKUP, DiskStatus::Done) => {
            let digest = data.try_into().map(u64::from_le_bytes);
            let digest = digest.map_err(|_| size(DISK_HEADER_BYTES + size_of::<u64>()))?;
            return Ok(Body::DiskRead(DiskReadMark { id, digest }));
        }
        (found, DiskStatus::Done) => {
            return Err(field(kind::DISK, "flags", found.into(), "0 or 1"));
        }
        (found, _) => return Err(field(kind::DISK, "flags", found.into(), "0")),
    }
    Ok(Body::Event(Event::Disk(DiskDone { id, status, data })))
}

/// Writes the header of a disk request's end whose data, if there is any, follows.
pub(crate) fn disk_shipped(id: RequestId, status: DiskStatus, header: &mut [u8]) {
    put_disk_header(id, status, 0, header);
}

/// Writes the payload of a read whose data the backup reads itself; returns its length.
pub(crate) fn disk_read_by_backup(mark: DiskReadMark, payload: &mut [u8]) -> usize {
    put_disk_header(mark.id, DiskStatus::Done, READ_BY_BACKUP, payload);
    put(
        &mark.digest.to_le_bytes(),
        &mut payload[DISK_HEADER_BYTES..],
    ) + DISK_HEADER_BYTES
}

fn put_disk_header(id: RequestId, status: DiskStatus, flags: u8, payload: &mut [u8]) {
    let raw = DiskHeader {
        id: U64::new(id),
        status: status as u8,
        flags,
        reserved: [0; 6],
    };
    put(raw.as_bytes(), payload);
}

pub(super) fn output(payload: &[u8]) -> Result<OutputMark, PayloadError> {
    let raw: &OutputPayload = layout(kind::OUTPUT, payload)?;
    let kind = match raw.kind {
        1 => OutputKind::Frame,
        2 => OutputKind::Console,
        3 => OutputKind::PowerOff,
        5 => OutputKind::Disk,
        found => {
            return Err(field(
                kind::OUTPUT,
                "kind",
                u64::from(found),
                "1, 2, 3 or 5",
            ));
        }
    };
    let [low, middle, high] = raw.reserved;
    reserved(kind::OUTPUT, u32::from_le_bytes([low, middle, high, 0]))?;
    let (number, released) = (raw.number.get(), Sequence(raw.released.get()));
    if number == 0 {
        return Err(field(kind::OUTPUT, "number", number, "1 or more"));
    }
    Ok(OutputMark {
        number,
        kind,
        length: raw.length.get(),
        digest: raw.digest.get(),
        released,
    })
}

pub(super) fn digest(payload: &[u8]) -> Result<DigestMark, PayloadError> {
    let raw: &DigestPayload = layout(kind::DIGEST, payload)?;
    reserved(kind::DIGEST, raw.reserved.get())?;
    let scope = match (raw.stripe.get(), raw.index.get()) {
        (0, 0) => DigestScope::Full,
        (0, found) => return Err(field(kind::DIGEST, "index", found, "0 without a stripe")),
        (bytes, index) => DigestScope::Stripe { index, bytes },
    };
    let digest = StateDigest {
        state: raw.state.get(),
        memory: raw.memory.get(),
    };
    Ok(DigestMark { scope, digest })
}

pub(super) fn end(payload: &[u8]) -> Result<EndReason, PayloadError> {
    let raw: &EndPayload = layout(kind::END, payload)?;
    reserved(kind::END, raw.reserved.get())?;
    match raw.reason.get() {
        1 => Ok(EndReason::PoweredOff),
        2 => Ok(EndReason::Stopped),
        found => Err(field(kind::END, "reason", u64::from(found), "1 or 2")),
    }
}

pub(super) fn write_output(mark: &OutputMark, payload: &mut [u8]) -> usize {
    let raw = OutputPayload {
        number: U64::new(mark.number),
        digest: U64::new(mark.digest),
        released: U64::new(mark.released.0),
        length: U32::new(mark.length),
        kind: mark.kind as u8,
        reserved: [0; 3],
    };
    put(raw.as_bytes(), payload)
}

pub(super) fn write_digest(mark: &DigestMark, payload: &mut [u8]) -> usize {
    let (index, stripe) = match mark.scope {
        DigestScope::Full => (0, 0),
        DigestScope::Stripe { index, bytes } => (index, bytes),
    };
    let raw = DigestPayload {
        index: U64::new(index),
        state: U64::new(mark.digest.state),
        memory: U64::new(mark.digest.memory),
        stripe: U32::new(stripe),
        reserved: U32::ZERO,
    };
    put(raw.as_bytes(), payload)
}

pub(super) fn write_end(reason: EndReason, payload: &mut [u8]) -> usize {
    let raw = EndPayload {
        reason: U32::new(reason as u32),
        reserved: U32::ZERO,
    };
    put(raw.as_bytes(), payload)
}

fn put(raw: &[u8], payload: &mut [u8]) -> usize {
    payload[..raw.len()].copy_from_slice(raw);
    raw.len()
}

fn layout<T>(kind: u16, payload: &[u8]) -> Result<&T, PayloadError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let error = PayloadError::Size {
        kind,
        found: payload.len(),
        expected: size_of::<T>(),
    };
    T::ref_from_bytes(payload).map_err(|_| error)
}

fn reserved(kind: u16, found: u32) -> Result<(), PayloadError> {
    match found {
        0 => Ok(()),
        found => Err(field(kind, "reserved", u64::from(found), "0")),
    }
}

const fn field(kind: u16, field: &'static str, found: u64, expected: &'static str) -> PayloadError {
    PayloadError::Field {
        kind,
        field,
        found,
        expected,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Body, Mark, decode, encode_mark, event_layout, write_event};
    use super::*;

    fn marks() -> impl Strategy<Value = Mark> {
        let kind = prop_oneof![
            Just(OutputKind::Frame),
            Just(OutputKind::Console),
            Just(OutputKind::PowerOff),
            Just(OutputKind::Disk)
        ];
        let output = (
            1u64..,
            kind,
            any::<u32>(),
            any::<u64>(),
            any::<u64>().prop_map(Sequence),
        )
            .prop_map(|(number, kind, length, digest, released)| {
                Mark::Output(OutputMark {
                    number,
                    kind,
                    length,
                    digest,
                    released,
                })
            });
        let digest = (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>()).prop_map(
            |(index, bytes, state, memory)| {
                let scope = match bytes {
                    0 => DigestScope::Full,
                    bytes => DigestScope::Stripe { index, bytes },
                };
                Mark::Digest(DigestMark {
                    scope,
                    digest: StateDigest { state, memory },
                })
            },
        );
        let end = prop_oneof![Just(EndReason::PoweredOff), Just(EndReason::Stopped)];
        prop_oneof![output, digest, end.prop_map(Mark::End)]
    }

    proptest! {
        #[test]
        fn a_mark_survives_its_wire_form(mark in marks()) {
            let mut payload = [0xa5; MARK_BYTES_MAX];
            let (kind, length) = encode_mark(&mark, &mut payload);
            prop_assert_eq!(decode(kind, &payload[..length]), Ok(Body::Mark(mark)));
        }

        /// Decoding is total, and what it accepts is exactly what encoding produces: no two
        /// payloads mean the same mark.
        #[test]
        fn a_payload_is_refused_or_canonical(
            kind in prop_oneof![0u16..8, 0xfe_u16..0x106, any::<u16>()],
            payload in proptest::collection::vec(prop_oneof![3 => 0u8..4, 1 => any::<u8>()], 0..40),
        ) {
            let mut again = [0; 64];
            match decode(kind, &payload) {
                Ok(Body::Mark(mark)) => {
                    let (found, length) = encode_mark(&mark, &mut again);
                    prop_assert_eq!((found, &again[..length]), (kind, &payload[..]));
                }
                Ok(Body::DiskRead(mark)) => {
                    let length = disk_read_by_backup(mark, &mut again);
                    prop_assert_eq!(&again[..length], &payload[..]);
                }
                Ok(Body::Event(event)) => {
                    let (found, length) = event_layout(&event);
                    write_event(&event, &mut again);
                    prop_assert_eq!((found, &again[..length]), (kind, &payload[..]));
                }
                Err(_) => {}
            }
        }
    }

    proptest! {
        /// The end of a disk request: as above, where chance would seldom find one.
        #[test]
        fn a_disk_payload_is_refused_or_canonical(
            id in 0u64..3, status in 0u8..4, flags in 0u8..3, reserved in 0u8..2,
            data in proptest::collection::vec(any::<u8>(), 0..12),
        ) {
            let mut payload = [&id.to_le_bytes()[..], &[status, flags, 0, 0, 0, 0, 0, reserved]].concat();
            payload.extend(&data);
            let mut again = [0; 64];
            let sound = id > 0 && status < 3 && reserved == 0;
            match decode(kind::DISK, &payload) {
                Ok(Body::Event(event @ Event::Disk(done))) => {
                    prop_assert!(sound && flags == 0);
                    prop_assert!(status == 0 || done.data.is_empty());
                    write_event(&event, &mut again);
                    prop_assert_eq!(&again[..event_layout(&event).1], &payload[..]);
                }
                Ok(Body::DiskRead(mark)) => {
                    prop_assert!(sound && flags == 1 && status == 0);
                    let length = disk_read_by_backup(mark, &mut again);
                    prop_assert_eq!(&again[..length], &payload[..]);
                }
                Ok(other) => prop_assert!(false, "{:?}", other),
                Err(_) => prop_assert!(
                    !sound || flags == 2 || (flags == 1 && (status != 0 || data.len() != 8))
                        || (status != 0 && !data.is_empty())
                ),
            }
        }
    }

    #[test]
    fn errors_name_the_field_and_both_values() {
        let mut payload = [0; 32];
        payload[0] = 1;
        payload[28] = 9;
        let error = decode(kind::OUTPUT, &payload).unwrap_err().to_string();
        assert_eq!(
            error,
            "field `kind` of entry kind 0x0100 holds 0x9, expected 1, 2, 3 or 5"
        );
        let error = decode(kind::CLOCK, &[0]).unwrap_err().to_string();
        assert_eq!(
            error,
            "payload of entry kind 0x0001 has 1 bytes, expected 0"
        );
        let error = decode(kind::ENTROPY, &[0; ENTROPY_LIMIT + 1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "payload of entry kind 0x0005 has 257 bytes, expected 256"
        );
        assert_eq!(
            decode(0xbad, &[]),
            Err(PayloadError::UnknownKind { found: 0xbad })
        );
    }
}
