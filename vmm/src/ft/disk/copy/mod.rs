//! What a side knows of its own copy of a disk (paper 4.1, "non-shared disks"), and what is to be compared when
//! the two sides of a pair come together again.
//!
//! At the end of each resync ([`super::resync`]) both copies are equal, and both sides write that down, durably,
//! under a number drawn for it: the *pairing*. From then on each side sets a bit for every chunk of the disk
//! **before** its first write to it ([`ChunkMap`]). Whatever becomes of either side, what may differ afterwards is
//! in the union of both bitmaps. How a side stood since the pairing ([`Standing`]) says whose copy is the later
//! one ([`decide`]).
//!
//! # The record
//!
//! Pages of 4,096 bytes. The first is the header, little-endian, its CRC32C over the whole page:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `LSTPCOPY` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | CRC32C of the page, this field zero |
//! | 16 | 8 | bytes of the disk |
//! | 24 | 8 | bytes of a chunk |
//! | 32 | 16 | pairing |
//! | 48 | 1 | standing |
//! | 49 | 4047 | zero |
//!
//! It changes within its first sector of 512 bytes, which a disk writes whole or not at all; a header whose CRC is
//! wrong is an error. The bitmap follows, 32,704 bits to a page, then the page's number and a CRC32C. A torn page of it,
//! which a loss of power may leave, counts as all set: a bit too many costs a comparison, one too few the data.

mod decide;
mod map;
mod record;

pub use decide::{CopyRefusal, CopyState, Plan, Scope, decide};
pub use map::{ChunkMap, MAP_BYTES_MOST, PAGE_BYTES};
pub use record::{PairingId, Record, RecordError, Standing};
