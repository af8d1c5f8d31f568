//! How log bytes travel: shared memory ([`shm`]) or TCP ([`tcp`]), behind one pair of traits.
//!
//! The primary's side never blocks on its own account, so that the vCPU's own thread can drive it
//! between two runs of the guest (inline flush); [`on_core`] gives it a thread and a core of its own
//! instead. The backup's side belongs to a receiving thread; the replaying thread reads the ring
//! through an [`EntryReader`](crate::reader::EntryReader) and says how far it came through a
//! [`ReplayReport`].

pub mod connect;
mod error;
pub mod heartbeat;
pub mod on_core;
mod report;
pub mod shm;
pub mod tcp;
mod uring;

use std::os::fd::BorrowedFd;
use std::time::Duration;

pub use error::{ChannelError, UringError};
pub use report::ReplayReport;

use crate::entry::Sequence;
pub use crate::protocol::sender::{Acked, Stall};
pub use crate::received::ReceivedCursor;
use crate::writer::EntryWriter;

/// The primary's end of the channel.
///
/// Ordering contract: `log` is in every call the writer of the ring that the channel was made for.
/// After committing entries, call [`flush`](Self::flush), then [`poll`](Self::poll) until what is
/// held may be released, and [`wake_backup`](Self::wake_backup) once nothing is more urgent. After
/// the first error every call returns an error; drop the channel.
pub trait PrimaryChannel: Send {
    /// Hands what is committed to the transport. Never blocks; what is committed while a send is
    /// under way goes with the next one.
    ///
    /// # Errors
    /// The channel is unusable.
    fn flush(&mut self, log: &EntryWriter, now: u64) -> Result<(), ChannelError>;

    /// Takes what the backup said and gives acknowledged bytes of the ring back to the writer. Never
    /// blocks; sends what could not be sent before.
    ///
    /// # Errors
    /// The channel is unusable: [`ChannelError::Closed`] (the peer died or left),
    /// [`ChannelError::Sealed`] (it is going live), or it breaks the protocol.
    fn poll(&mut self, log: &EntryWriter, now: u64) -> Result<Acked, ChannelError>;

    /// Wakes the backup's threads if they sleep and nothing else will.
    fn wake_backup(&mut self, log: &EntryWriter);

    /// Waits, as the channel's policy says, until `poll` may have something new, the log has room
    /// for `room` bytes (0: not waited for), or time is up. May return early for no reason.
    ///
    /// # Errors
    /// As for [`poll`](Self::poll).
    fn wait(
        &mut self,
        log: &EntryWriter,
        room: usize,
        timeout: Duration,
    ) -> Result<(), ChannelError>;

    /// A descriptor that is readable when `poll` has something new, for a thread that waits for
    /// other things too. Call this, then `poll` once more, then sleep. Bound the sleep: what a slow
    /// receiver leaves unsent goes on at the next `poll` only.
    fn wait_fd(&mut self) -> BorrowedFd<'_>;

    /// Entries sent and not acknowledged for too long, if so.
    fn stalled(&self, now: u64) -> Option<Stall>;

    /// What the channel has done so far.
    fn counters(&self) -> ChannelCounters;
}

/// The backup's end of the channel, driven by its receiving thread.
pub trait BackupChannel: Send {
    /// Receives, checks, makes entries visible to the replaying thread and acknowledges, for about
    /// `time`; returns how far the log is received. After the first error drop the channel; what was
    /// received before it stays readable.
    ///
    /// # Errors
    /// [`ChannelError::Closed`], after everything that had arrived was made visible;
    /// [`ChannelError::Entry`] for input that is no log.
    fn receive(&mut self, time: Duration) -> Result<Received, ChannelError>;

    /// Wakes the replaying thread if it sleeps at its reader, for another reason than an entry.
    fn wake_reader(&self);

    /// Where the replaying thread reports its progress.
    fn report(&self) -> ReplayReport;

    /// What the channel has done so far.
    fn counters(&self) -> ChannelCounters;
}

/// How far the backup has the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Last entry received and checked; `None` where the reader checks
    /// ([`shm::ShmAck::Committed`]).
    pub last: Option<Sequence>,
    /// Whether anything arrived during the call.
    pub progress: bool,
}

/// What a channel has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChannelCounters {
    /// Log bytes sent or received.
    pub log_bytes: u64,
    /// Sends of log bytes (primary) or receptions (backup); bytes per send is the batching.
    pub transfers: u64,
    /// Acknowledgements received (primary) or sent (backup).
    pub acks: u64,
    /// Times that the channel entered the kernel for I/O.
    pub kernel_entries: u64,
    /// Whether the ring's memory is registered with the kernel.
    pub registered_memory: bool,
}
