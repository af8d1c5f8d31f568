//! What fault tolerance needs of a virtual machine: run to a position, apply an event there, say
//! what came out, and be comparable. [`crate::machine::Machine`] is one; the simulator has a small
//! model of its own, so that the roles in this module are driven by both.

pub use super::disk::DiskDone;
use super::disk::DiskRequest;
use crate::machine::bounce::BounceRegion;
pub use crate::machine::engine::{Position, Stop};

/// Virtual time: nanoseconds since the VM's start.
pub type VirtualTime = u64;

/// Most bytes of [`Event::Entropy`].
pub const ENTROPY_LIMIT: usize = 256;

/// Something the machine cannot compute. Exactly what is replayed, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The clock moved (the entry's header says where to), and nothing else happened.
    Clock,
    /// An Ethernet frame, without FCS, arrived at the network interface.
    Frame(&'a [u8]),
    /// Bytes typed at the console.
    Console(&'a [u8]),
    /// The operator asks the machine to power off.
    PowerButton,
    /// Random bytes for the guest's entropy source, which asked for them ([`Vm::entropy_wanted`]).
    Entropy(&'a [u8]),
    /// A disk request ended ([`Vm::disk_requests`]).
    Disk(DiskDone<'a>),
}

/// What kind of thing the machine said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum OutputKind {
    /// An Ethernet frame.
    Frame = 1,
    /// Console bytes.
    Console = 2,
    /// The machine powered itself off.
    PowerOff = 3,
    /// It reads from a disk: the bytes are a [`DiskRequest`] in its wire form. The world cannot see
    /// it, so it is never held, and gets no entry.
    DiskRead = 4,
    /// It writes to a disk, or asks that writes last: as [`OutputKind::DiskRead`], but held.
    Disk = 5,
}

/// Something the machine said to the world; held until its entry is acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// What it is.
    pub kind: OutputKind,
    /// The frame, the console bytes, the disk request, in a buffer that goes back by [`Vm::recycle`].
    pub bytes: Vec<u8>,
}

/// Digest of a part of the VM's state, compared between primary and backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StateDigest {
    /// XXH3 of registers, devices and clock.
    pub state: u64,
    /// XXH3 of the memory stripe that `scope` named.
    pub memory: u64,
}

/// How much memory a digest covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestScope {
    /// The stripe `index % stripes`, each of `bytes` bytes.
    Stripe {
        /// Running number of the digest.
        index: u64,
        /// Stripe size in bytes.
        bytes: u32,
    },
    /// All of guest memory.
    Full,
}

/// A virtual machine that can be kept in lockstep.
///
/// Determinism contract: two values made from the same initial state, given the same events at the
/// same positions with the same clocks, hold equal state and have said equal outputs at every
/// position, whatever `until` values `run` was called with.
pub trait Vm {
    /// The machine's own failure.
    type Error: std::error::Error + Send + Sync + 'static;
    /// How far it has come.
    fn position(&self) -> Position;
    /// Whether an event may be applied now.
    fn at_position(&self) -> bool;
    /// Virtual time here.
    fn clock(&self) -> VirtualTime;
    /// When the guest's next timer is due, if one is armed: a halted machine's clock should be moved
    /// there once that much time has passed. At or before [`Vm::clock`]: it has been noticed.
    fn next_timer(&self) -> Option<VirtualTime>;
    /// How many random bytes the guest waits for, at most [`ENTROPY_LIMIT`]; it gets them by
    /// [`Event::Entropy`]. A function of the state here, as all others.
    fn entropy_wanted(&self) -> usize {
        0
    }
    /// The disk requests that it has made and not been answered, in order of their numbers. A function
    /// of the state here: what a machine that goes live has to issue again.
    fn disk_requests(&self) -> Vec<DiskRequest> {
        Vec::new()
    }
    /// Where the data of disk requests lies, if the machine has disks. That of a write is there until
    /// the request's end is applied; that of a read need not be: it comes with the event.
    fn bounce(&self) -> Option<&BounceRegion> {
        None
    }
    /// Executes until `until` at the latest; returns early when an output is ready.
    ///
    /// # Errors
    /// The guest ended itself or the engine failed.
    fn run(&mut self, until: Position) -> Result<Stop, Self::Error>;
    /// Moves the clock to `clock` (never backwards), then applies `event`, at this position.
    ///
    /// # Errors
    /// Not at a position.
    fn apply(&mut self, clock: VirtualTime, event: Event<'_>) -> Result<(), Self::Error>;
    /// Takes the oldest output not yet taken. Taking it changes no state that a digest covers.
    fn next_output(&mut self) -> Option<Output>;
    /// Instructions that the engine left to another, since this process began. For status only.
    fn emulated_instructions(&self) -> u64 {
        0
    }
    /// Gives an output's buffer back, so that the hot path allocates nothing.
    fn recycle(&mut self, output: Output);
    /// Digest of the state here. Outputs that were said and not yet taken are no part of it.
    ///
    /// # Errors
    /// The engine could not export its state.
    fn digest(&mut self, scope: DigestScope) -> Result<StateDigest, Self::Error>;
}
