//! The log ring: one producer, one consumer, in memory that two processes share.
//!
//! A [`Ring`] is a memfd: a control page and a data area, a power of two of bytes, which is mapped
//! twice in a row, so that any stretch of at most [`Ring::capacity`] bytes is contiguous wherever it
//! begins. The [`Producer`] reserves such a stretch, writes in place and commits; the [`Consumer`]
//! reads in place and releases. Nothing is copied, and while neither side waits nothing enters the
//! kernel. The ring carries bytes; what an entry is, is its users' business.
//!
//! # Cursors
//!
//! Two counters that only grow say everything: `committed`, the bytes ever published, written by
//! the producer, and `released`, the bytes ever given back, written by the consumer. Always
//! `released <= committed <= released + capacity`. A byte's place is its number modulo the capacity.
//! Reserved bytes are known to the producer alone, so a producer killed between reserve and commit
//! leaves a ring in which nothing is half there.
//!
//! # Sealing
//!
//! The consumer can [seal](Consumer::seal) the ring, once and for good. After that, for every
//! commit: either the consumer saw it when it sealed, or [`Producer::sealed`], asked after the
//! commit, is true. That makes "committed is acknowledged" sound between two processes of one host.
//! The question costs a load: the fence that it needs is made by the sealer, on every core that runs a
//! process with a ring (`membarrier(2)`, Linux 4.16; making or attaching a ring registers the process).
//! A producer that got at the memory in another way deceives itself alone.
//!
//! # Trust
//!
//! The peer may write anything anywhere in the shared memory at any time. What it can cause is wrong
//! *bytes* and a wait without end; wrong cursors are found before they are used and end in a
//! [`CursorFault`], never in an access outside the data area. The file can be neither shrunk nor
//! grown (both sides check the memfd seals), so a peer cannot make an access raise SIGBUS either.
//! Bytes that are checked and then read again may have changed in between; whoever must stand a
//! hostile peer copies them out first.

mod atomics;
mod consumer;
mod control;
mod cursor;
mod error;
mod mapping;
mod pace;
mod producer;
mod ring;
mod spin;
mod wait;

#[cfg(test)]
mod loom_tests;

pub use consumer::Consumer;
pub use control::layout;
pub use error::{Cursor, CursorFault, RingError, RingFull, Side};
pub use producer::Producer;
pub use ring::{Ring, RingOptions};
pub use spin::SpinWorth;
pub use wait::{WaitPolicy, Waited};
