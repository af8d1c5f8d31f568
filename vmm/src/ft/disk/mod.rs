//! Disks under fault tolerance (paper 3.4): what a guest asks of a disk, and what comes of it.
//!
//! A request is taken at the guest's kick, at a position, and gets the VM's next number. The data of a
//! write is copied to a bounce buffer there; a read's lands in one, and reaches the guest by an event
//! ([`crate::ft::vm::Event::Disk`]). Host I/O never points at guest memory, so both replicas see the
//! same bytes at the same instruction.
//!
//! Only the live side touches a shared disk. What a machine has asked for and not been answered is a
//! function of its state, so the side that goes live knows exactly what to issue again.
//!
//! A disk may also be each side's own (paper 4.1): the primary's writes are then not held, and the backup
//! makes the same ones to its own ([`crate::ft::replayer::OwnDisk`]).

pub mod copy;
mod request;
pub mod resync;
mod schedule;
mod set;
mod wire;

pub use request::{DiskDone, DiskOp, DiskRequest, DiskStatus, RequestId};
pub use schedule::{Finished, Schedule};
pub use set::DiskSet;
pub use wire::{REQUEST_WIRE_BYTES, RequestWireError};
