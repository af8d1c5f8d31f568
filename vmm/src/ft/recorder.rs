//! The primary's half of replay: every event becomes an entry and reaches the machine at the same
//! position, with the same clock.

use lockstep_logchan::writer::DraftError;
use xxhash_rust::xxh3::xxh3_64;

use super::disk::{DiskDone, DiskOp, DiskRequest, DiskStatus};
use super::gate::OutputSink;
use super::log::{
    DISK_HEADER_BYTES, DigestMark, DiskReadMark, EndReason, Flags, LogDraft, LogWrite,
    MARK_BYTES_MAX, Mark, OutputMark, Sequence, disk_read_by_backup, disk_shipped, encode_mark,
    event_layout, kind, write_event,
};
use super::vm::{DigestScope, Event, Output, OutputKind, Position, Stop, VirtualTime, Vm};
use crate::settings::ReplaySettings;

/// When a recorder writes entries of its own accord. Times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecorderSettings {
    /// The running guest's clock may fall behind the host's by this much before an entry moves it.
    pub clock_drift: u64,
    /// Time between two digests; 0 writes none.
    pub digest_interval: u64,
    /// Bytes of memory that one digest covers.
    pub digest_stripe: u32,
}

impl From<&ReplaySettings> for RecorderSettings {
    fn from(settings: &ReplaySettings) -> Self {
        Self {
            clock_drift: u64::from(settings.clock_drift_us) * 1_000,
            digest_interval: u64::from(settings.digest_interval_ms) * 1_000_000,
            digest_stripe: settings.digest_stripe_bytes.max(1),
        }
    }
}

/// Why nothing was recorded. For [`RecordError::LogFull`] and [`RecordError::GateFull`] the vCPU
/// waits and the caller tries again; nothing is lost.
#[derive(Debug, thiserror::Error)]
pub enum RecordError<E> {
    /// The log has no room: the backup, or the way to it, is behind.
    #[error("the log is full: {free} bytes free, {needed} needed; wait for the backup")]
    LogFull {
        /// Bytes that the entry takes.
        needed: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// As many outputs wait for acknowledgement as may.
    #[error("the output gate is full; wait for an acknowledgement")]
    GateFull,
    /// No entry is that large.
    #[error("an event of {found} bytes fits no log entry, which holds at most {maximum}")]
    TooLarge {
        /// Bytes of the event.
        found: usize,
        /// Bytes that an entry holds.
        maximum: usize,
    },
    /// The machine is between two positions; run it to the next one first.
    #[error(
        "the machine is behind position {position} and not at the next one yet; run it on first"
    )]
    NotAtPosition {
        /// The last position it passed.
        position: Position,
    },
    /// The machine failed. It must not go on.
    #[error(transparent)]
    Vm(E),
}

impl<E> RecordError<E> {
    pub(crate) fn draft(error: DraftError) -> Self {
        match error {
            DraftError::Full { needed, free } => Self::LogFull { needed, free },
            DraftError::TooLarge { found, maximum } => Self::TooLarge { found, maximum },
        }
    }
}

/// Virtual time as a function of the host's: both move at the same rate from one common moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Anchor {
    host: u64,
    guest: VirtualTime,
}

impl Anchor {
    const fn guest(self, now: u64) -> VirtualTime {
        self.guest.saturating_add(now.saturating_sub(self.host))
    }

    const fn host(self, clock: VirtualTime) -> u64 {
        self.host.saturating_add(clock.saturating_sub(self.guest))
    }
}

/// Entries written since the recorder's start, by what they say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntryCounts {
    /// The clock moved, and nothing else.
    pub clocks: u64,
    /// A frame came.
    pub frames: u64,
    /// Random bytes came.
    pub entropy: u64,
    /// A disk request ended.
    pub disk: u64,
    /// The machine said something.
    pub outputs: u64,
    /// Of these, how many wait for an acknowledgement.
    pub awaited: u64,
    /// A digest.
    pub digests: u64,
}

/// Records one machine.
///
/// Ordering: outputs get their entries at the position at which the machine said them, so
/// [`Recorder::run`] writes them before it runs on. An entry is committed after its event was
/// applied: an event that the machine refuses leaves nothing in the log.
#[derive(Debug)]
pub struct Recorder {
    settings: RecorderSettings,
    anchor: Anchor,
    /// Number of the last output taken from the machine.
    said: u64,
    /// The output of that number, while its entry is not written.
    unlogged: Option<Output>,
    next_digest: u64,
    counts: EntryCounts,
}

impl Recorder {
    /// Records a machine whose clock shows `clock` at the host's `now`, and which has said `said`
    /// outputs so far (0 for a new one; a backup that goes live knows it from its
    /// [`crate::ft::replayer::GoLive`]).
    #[must_use]
    pub const fn new(settings: RecorderSettings, now: u64, clock: VirtualTime, said: u64) -> Self {
        Self {
            settings,
            anchor: Anchor {
                host: now,
                guest: clock,
            },
            said,
            unlogged: None,
            next_digest: now.saturating_add(settings.digest_interval),
            counts: EntryCounts {
                clocks: 0,
                frames: 0,
                entropy: 0,
                disk: 0,
                outputs: 0,
                awaited: 0,
                digests: 0,
            },
        }
    }

    /// Virtual time that the guest should see at the host's `now`.
    #[must_use]
    pub const fn clock(&self, now: u64) -> VirtualTime {
        self.anchor.guest(now)
    }

    /// Number of the last output that the machine has said.
    #[must_use]
    pub const fn said(&self) -> u64 {
        self.said
    }

    /// What has been written so far.
    #[must_use]
    pub const fn counts(&self) -> EntryCounts {
        self.counts
    }

    /// Records and applies the frame that the first `length` bytes of `draft` hold. The caller has
    /// begun the draft and read the frame straight into it; nothing is copied on the way.
    ///
    /// # Errors
    /// The machine is between two positions (ask [`Vm::at_position`] before taking a frame from the
    /// tap, for the draft is dropped), or failed.
    pub fn frame<V: Vm, D: LogDraft>(
        &mut self,
        vm: &mut V,
        mut draft: D,
        length: usize,
        now: u64,
    ) -> Result<Sequence, RecordError<V::Error>> {
        let clock = self.apply_clock(vm, now)?;
        let frame = &draft.payload_mut()[..length];
        vm.apply(clock, Event::Frame(frame))
            .map_err(RecordError::Vm)?;
        self.counts.frames += 1;
        Ok(draft.commit(kind::FRAME, Flags::NONE, vm.position(), clock, length))
    }

    /// Records and applies `event`. For frames, [`Recorder::frame`] saves a copy.
    ///
    /// # Errors
    /// The log is full, the event is too large, the machine is between two positions, or it failed.
    pub fn event<V: Vm, L: LogWrite>(
        &mut self,
        vm: &mut V,
        log: &mut L,
        event: Event<'_>,
        now: u64,
    ) -> Result<Sequence, RecordError<V::Error>> {
        let clock = self.apply_clock(vm, now)?;
        let (kind, length) = event_layout(&event);
        let mut draft = log.draft(length).map_err(RecordError::draft)?;
        write_event(&event, draft.payload_mut());
        vm.apply(clock, event).map_err(RecordError::Vm)?;
        match event {
            Event::Clock => self.counts.clocks += 1,
            Event::Frame(_) => self.counts.frames += 1,
            Event::Entropy(_) => self.counts.entropy += 1,
            Event::Disk(_) => self.counts.disk += 1,
            Event::Console(_) | Event::PowerButton => {}
        }
        Ok(draft.commit(kind, Flags::NONE, vm.position(), clock, length))
    }

    /// Records and applies the end of `request`. What a read brought is taken from its bounce buffer,
    /// straight into the entry. `read_by_backup`: not the data goes to the log but its digest, and the
    /// backup reads the shared disk itself; the caller keeps later writes off these blocks until the
    /// entry is replayed ([`super::disk::Schedule::reading`]).
    ///
    /// # Errors
    /// The log is full, the machine is between two positions, or it failed.
    pub fn disk_done<V: Vm, L: LogWrite>(
        &mut self,
        vm: &mut V,
        log: &mut L,
        request: &DiskRequest,
        status: DiskStatus,
        read_by_backup: bool,
        now: u64,
    ) -> Result<Sequence, RecordError<V::Error>> {
        let clock = self.apply_clock(vm, now)?;
        let brings = request.op == DiskOp::Read && status == DiskStatus::Done;
        let length = match (brings, vm.bounce()) {
            (true, Some(region)) => request.length.min(region.bytes()),
            _ => 0,
        };
        let bytes = DISK_HEADER_BYTES + usize::try_from(length).unwrap_or(usize::MAX);
        // Room for the digest, however little was read.
        let room = bytes.max(DISK_HEADER_BYTES + size_of::<u64>());
        let mut draft = log.draft(room).map_err(RecordError::draft)?;
        let payload = draft.payload_mut();
        disk_shipped(request.id, status, payload);
        let data = &mut payload[DISK_HEADER_BYTES..bytes];
        if let Some(region) = vm.bounce() {
            region.read(request.bounce, data);
        }
        let done = DiskDone {
            id: request.id,
            status,
            data,
        };
        vm.apply(clock, Event::Disk(done))
            .map_err(RecordError::Vm)?;
        self.counts.disk += 1;
        let length = if brings && read_by_backup && L::KEPT {
            let mark = DiskReadMark {
                id: request.id,
                digest: xxh3_64(data),
            };
            disk_read_by_backup(mark, payload)
        } else {
            bytes
        };
        Ok(draft.commit(kind::DISK, Flags::NONE, vm.position(), clock, length))
    }

    /// Writes what time has made due: a clock entry when a guest timer is, or when the clock of a
    /// running guest has fallen behind too far; a digest. To be called between runs; does nothing
    /// between two positions. `halted` says that the last run ended in [`Stop::Halted`]: nobody
    /// looks at the clock then, so only a timer moves it.
    ///
    /// Returns the last entry written, if any.
    ///
    /// # Errors
    /// The log is full, or the machine failed.
    pub fn tick<V: Vm, L: LogWrite>(
        &mut self,
        vm: &mut V,
        log: &mut L,
        now: u64,
        halted: bool,
    ) -> Result<Option<Sequence>, RecordError<V::Error>> {
        if !vm.at_position() {
            return Ok(None);
        }
        let mut written = None;
        let (clock, target) = (vm.clock(), self.clock(now));
        // A timer that the clock has passed already is the machine's own business.
        let due = vm
            .next_timer()
            .is_some_and(|timer| timer > clock && timer <= target);
        let drifted = !halted && target.saturating_sub(clock) > self.settings.clock_drift;
        if due || drifted {
            written = Some(self.event(vm, log, Event::Clock, now)?);
        }
        if !L::KEPT {
            // Nobody will compare them, so nobody has to be woken for them either.
            self.settings.digest_interval = 0;
        }
        if self.settings.digest_interval != 0 && now >= self.next_digest {
            let scope = DigestScope::Stripe {
                index: self.counts.digests,
                bytes: self.settings.digest_stripe,
            };
            written = Some(self.digest(vm, log, scope)?);
            self.next_digest = now.saturating_add(self.settings.digest_interval);
        }
        Ok(written)
    }

    /// When a halted machine wants [`Recorder::tick`] next, on the host's clock; `None` if it waits
    /// for an event alone.
    #[must_use]
    pub fn wake_at<V: Vm>(&self, vm: &V) -> Option<u64> {
        let clock = vm.clock();
        let timer = vm.next_timer().filter(|timer| *timer > clock);
        let digest = (self.settings.digest_interval != 0).then_some(self.next_digest);
        let timer = timer.map(|timer| self.anchor.host(timer));
        timer.into_iter().chain(digest).min()
    }

    /// Writes a digest of `scope` here.
    ///
    /// # Errors
    /// The log is full, the machine is between two positions, or it failed.
    pub fn digest<V: Vm, L: LogWrite>(
        &mut self,
        vm: &mut V,
        log: &mut L,
        scope: DigestScope,
    ) -> Result<Sequence, RecordError<V::Error>> {
        at_position(vm)?;
        let draft = log.draft(MARK_BYTES_MAX).map_err(RecordError::draft)?;
        let digest = vm.digest(scope).map_err(RecordError::Vm)?;
        self.counts.digests += 1;
        Ok(commit_mark(
            vm,
            draft,
            &Mark::Digest(DigestMark { scope, digest }),
            Flags::NONE,
        ))
    }

    /// Runs the machine until `until` at the latest, or until it said something, and records that.
    ///
    /// # Errors
    /// The log or the gate is full, before or after running; call again once there is room. The
    /// machine failed.
    pub fn run<V: Vm, L: LogWrite, S: OutputSink>(
        &mut self,
        vm: &mut V,
        log: &mut L,
        sink: &mut S,
        until: Position,
    ) -> Result<Stop, RecordError<V::Error>> {
        self.outputs(vm, log, sink)?;
        let stop = vm.run(until).map_err(RecordError::Vm)?;
        self.outputs(vm, log, sink)?;
        Ok(stop)
    }

    /// Writes an entry for each output that the machine has said, and hands the output to `sink`. The
    /// last entry of those that wait for it asks to be acknowledged at once. Returns its number, if there was any.
    ///
    /// # Errors
    /// The log or the gate is full.
    pub fn outputs<V: Vm, L: LogWrite, S: OutputSink>(
        &mut self,
        vm: &mut V,
        log: &mut L,
        sink: &mut S,
    ) -> Result<Option<Sequence>, RecordError<V::Error>> {
        let mut written = None;
        if !vm.at_position() {
            // It goes on to the next position and stops there, for an output is waiting.
            return Ok(written);
        }
        while self.take_output(vm) {
            if let Some(output) = self.unlogged.take_if(|output| is_read(output)) {
                sink.pass(output);
                continue;
            }
            let Some(output) = &self.unlogged else { break };
            if !sink.has_room(output.bytes.len()) {
                return Err(RecordError::GateFull);
            }
            let draft = log.draft(MARK_BYTES_MAX).map_err(RecordError::draft)?;
            let Some(output) = self.unlogged.take() else {
                break;
            };
            let number = self.said;
            let awaited = sink.awaits(&output);
            // An acknowledgement is cumulative: one request serves all that were said here.
            // (A read has no entry; what is held behind it asks again.)
            let more = self.take_output(vm)
                && (self.unlogged.as_ref()).is_some_and(|next| !is_read(next) && sink.awaits(next));
            let flags = if more || !awaited {
                Flags::NONE
            } else {
                Flags::ACK_AT_ONCE
            };
            let sequence = if L::KEPT {
                let mark = OutputMark::of(&output, number, sink.released());
                commit_mark(vm, draft, &Mark::Output(mark), flags)
            } else {
                draft.commit(kind::OUTPUT, flags, vm.position(), vm.clock(), 0)
            };
            sink.hold(sequence, output);
            self.counts.outputs += 1;
            self.counts.awaited += u64::from(awaited);
            written = Some(sequence);
        }
        Ok(written)
    }

    /// Whether an output waits for its entry.
    fn take_output<V: Vm>(&mut self, vm: &mut V) -> bool {
        if self.unlogged.is_none() {
            self.unlogged = vm.next_output();
            let counts = self
                .unlogged
                .as_ref()
                .is_some_and(|output| !is_read(output));
            self.said += u64::from(counts);
        }
        self.unlogged.is_some()
    }

    /// Ends the log in order: the backup does not go live after this entry.
    ///
    /// # Errors
    /// The log is full, or the machine is between two positions.
    pub fn end<V: Vm, L: LogWrite>(
        &mut self,
        vm: &mut V,
        log: &mut L,
        reason: EndReason,
    ) -> Result<Sequence, RecordError<V::Error>> {
        at_position(vm)?;
        let draft = log.draft(MARK_BYTES_MAX).map_err(RecordError::draft)?;
        Ok(commit_mark(
            vm,
            draft,
            &Mark::End(reason),
            Flags::ACK_AT_ONCE,
        ))
    }

    /// The clock for an event that is applied now. A clock that the host's has not reached (the
    /// guest's instructions moved it there) stays.
    fn apply_clock<V: Vm>(&self, vm: &V, now: u64) -> Result<VirtualTime, RecordError<V::Error>> {
        at_position(vm)?;
        Ok(self.clock(now).max(vm.clock()))
    }
}

/// Whether `output` is a read from a disk, which has no entry and no number.
fn is_read(output: &Output) -> bool {
    output.kind == OutputKind::DiskRead
}

fn at_position<V: Vm>(vm: &V) -> Result<(), RecordError<V::Error>> {
    match vm.at_position() {
        true => Ok(()),
        false => Err(RecordError::NotAtPosition {
            position: vm.position(),
        }),
    }
}

fn commit_mark<V: Vm, D: LogDraft>(vm: &V, mut draft: D, mark: &Mark, flags: Flags) -> Sequence {
    let (kind, length) = encode_mark(mark, draft.payload_mut());
    draft.commit(kind, flags, vm.position(), vm.clock(), length)
}

#[cfg(test)]
mod tests;
