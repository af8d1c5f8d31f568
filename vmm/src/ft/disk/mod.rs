//! Disks under fault tolerance (paper 3.4): what a guest asks of a disk, and what comes of it.
//!
//! A request is taken at the guest's kick, at a position, and gets the VM's next number. The data of a
//! write is copied to a bounce buffer there; a read's lands in one, and reaches the guest by an event
//! ([`crate::ft::vm::Event::Disk`]). Host I/O never points at guest memory, so both replicas see the
//! same bytes at the same instruction.
//!
//! Only the live side touches the disk. What a machine has asked for and not been answered is a
//! function of its state, so the side that goes live knows exactly what to issue again.

mod request;
mod schedule;
mod wire;

pub use request::{DiskDone, DiskOp, DiskRequest, DiskStatus, RequestId};
pub use schedule::{Finished, Schedule};
pub use wire::{REQUEST_WIRE_BYTES, RequestWireError};
