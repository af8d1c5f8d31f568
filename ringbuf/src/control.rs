//! The control page: what the two sides tell each other.

use crate::atomics::{Atomics, Native};

/// Offsets in the control page, for whoever looks at a ring from outside (a debugger, a test that
/// plays a hostile peer). All values are little-endian.
///
/// | offset | size | field | written by |
/// |---|---|---|---|
/// | 0 | 8 | magic | creator |
/// | 8 | 4 | layout version | creator |
/// | 12 | 4 | zero | creator |
/// | 16 | 8 | control bytes: where the data area begins | creator |
/// | 24 | 8 | capacity, bytes | creator |
/// | 128 | 8 | committed: bytes ever published | producer |
/// | 256 | 8 | released: bytes ever given back | consumer |
/// | 384 | 4 | sealed: 0 or 1 | consumer |
/// | 512 | 4 | sleep word of the producer | both |
/// | 640 | 4 | sleep word of the consumer | both |
///
/// Each word that changes has 128 bytes to itself: the processor's prefetcher moves cache lines in
/// pairs, so 64 would have neighbours fight.
pub mod layout {
    /// First eight bytes of a ring, `LOCKSTEP` as they lie in memory.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"LOCKSTEP");
    /// Version of this layout and of the protocol on it. In 1 a producer made a full fence before it
    /// asked whether the ring is sealed, and so the sealer made no heavy one.
    pub const VERSION: u32 = 2;
    /// Offset of the magic.
    pub const MAGIC_AT: usize = 0;
    /// Offset of the layout version.
    pub const VERSION_AT: usize = 8;
    /// Offset of the number of control bytes.
    pub const CONTROL_BYTES_AT: usize = 16;
    /// Offset of the capacity.
    pub const CAPACITY_AT: usize = 24;
    /// Offset of the committed cursor.
    pub const COMMITTED_AT: usize = 128;
    /// Offset of the released cursor.
    pub const RELEASED_AT: usize = 256;
    /// Offset of the seal.
    pub const SEALED_AT: usize = 384;
    /// Offset of the producer's sleep word.
    pub const PRODUCER_SLEEP_AT: usize = 512;
    /// Offset of the consumer's sleep word.
    pub const CONSUMER_SLEEP_AT: usize = 640;
    /// Bytes of the control page that are used.
    pub const USED: usize = 768;
}

/// A pair of cache lines of its own.
#[derive(Default)]
#[repr(C, align(128))]
pub(crate) struct Line<T>(pub(crate) T);

/// What the creator says of the ring. Atomics, because a hostile peer may write them while they are
/// read; each is read once.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Identity<A: Atomics> {
    pub(crate) magic: A::U64,
    pub(crate) version: A::U32,
    reserved: A::U32,
    pub(crate) control_bytes: A::U64,
    pub(crate) capacity: A::U64,
}

/// The control page. All zero is a new, empty, unsealed ring in which nobody ever slept.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Control<A: Atomics> {
    pub(crate) identity: Line<Identity<A>>,
    /// Written by the producer alone.
    pub(crate) committed: Line<A::U64>,
    /// Written by the consumer alone.
    pub(crate) released: Line<A::U64>,
    /// 0, or 1 once the consumer sealed the ring.
    pub(crate) sealed: Line<A::U32>,
    /// One of [`crate::wait::sleep`]'s states.
    pub(crate) producer_sleep: Line<A::U32>,
    /// One of [`crate::wait::sleep`]'s states.
    pub(crate) consumer_sleep: Line<A::U32>,
}

const _: () = {
    use std::mem::offset_of;
    type C = Control<Native>;
    type I = Identity<Native>;
    assert!(cfg!(target_endian = "little"));
    assert!(offset_of!(C, identity) + offset_of!(I, magic) == layout::MAGIC_AT);
    assert!(offset_of!(C, identity) + offset_of!(I, version) == layout::VERSION_AT);
    assert!(offset_of!(C, identity) + offset_of!(I, control_bytes) == layout::CONTROL_BYTES_AT);
    assert!(offset_of!(C, identity) + offset_of!(I, capacity) == layout::CAPACITY_AT);
    assert!(offset_of!(C, committed) == layout::COMMITTED_AT);
    assert!(offset_of!(C, released) == layout::RELEASED_AT);
    assert!(offset_of!(C, sealed) == layout::SEALED_AT);
    assert!(offset_of!(C, producer_sleep) == layout::PRODUCER_SLEEP_AT);
    assert!(offset_of!(C, consumer_sleep) == layout::CONSUMER_SLEEP_AT);
    assert!(size_of::<C>() == layout::USED);
    assert!(align_of::<C>() == 128);
};
