//! The backup's half of replay: entries become the same execution, and every step of it is checked.
//!
//! Three rules:
//! - The machine never runs past the position of the last complete entry: beyond it lies what the
//!   primary may still decide otherwise.
//! - What the machine says is compared with the primary's mark of it, in order: position, kind,
//!   length, digest. A difference is a [`Divergence`], after which this machine never goes live.
//! - What it said is kept until the primary is known to have released it, so that going live sends
//!   again what may never have left. Disk requests are not kept: what the machine has asked for and
//!   not been answered it knows itself ([`Vm::disk_requests`]), and all of that is issued again.

mod divergence;
mod own;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use divergence::{Divergence, OutputField, ReplayError};
pub use own::OwnDisk;

use xxhash_rust::xxh3::xxh3_64;

use super::disk::{DiskDone, DiskOp, DiskRequest, DiskSet, DiskStatus, RequestId};
use super::gate::MAX_HELD_OUTPUTS;
use super::log::{
    Body, DigestMark, DiskReadMark, EndReason, Entry, EntryError, LogRead, Mark, OutputMark,
    Sequence, decode,
};
use super::shadow::ShadowRing;
use super::vm::{Event, Output, OutputKind, Position, Stop, Vm};
use own::OwnDisks;

/// What a [`Replayer::step`] achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No complete entry is there; the machine stands where the last one left it. Wait for the log.
    Idle,
    /// The machine is on its way to the next entry's position. Call again.
    Running,
    /// This entry has been replayed and released.
    Replayed(Sequence),
    /// The machine stands where a read from the shared disk ends, and the log has not its data: read
    /// it into the request's bounce buffer, call [`Replayer::disk_read`], step on. What does not have
    /// this XXH3-64 is to be read again, for as long as patience lasts.
    ReadDisk {
        /// The machine's request.
        request: DiskRequest,
        /// Of what the primary read.
        digest: u64,
    },
    /// The machine stands where a request to a disk of the side's own ended for the primary, and it has
    /// not ended here: step on when [`Replayer::own_disk_ended`] was told so.
    AwaitDisk {
        /// The request's number.
        id: RequestId,
    },
    /// The log ended in order. There is nothing more to do.
    Ended(EndReason),
}

/// An output of the backup's machine that no mark has confirmed yet.
#[derive(Debug)]
struct Said {
    position: Position,
    output: Output,
}

/// Replays one machine.
#[derive(Debug)]
pub struct Replayer {
    /// Said, and not yet confirmed by a mark. All at the machine's present position. Reads from disks have no
    /// mark; behind others they wait here for their turn, so none is ever in front.
    said: VecDeque<Said>,
    /// Confirmed by the mark in this entry, and not known to have been released.
    kept: VecDeque<(Sequence, Output)>,
    /// Frames that came by and are in no entry replayed so far.
    shadow: ShadowRing,
    /// Number of the last output confirmed.
    confirmed: u64,
    /// Entry of the last output that the primary is known to have released.
    released: Sequence,
    replayed: Sequence,
    /// Of which request [`Replayer::fetched`] is what the shared disk holds.
    fetched_for: Option<RequestId>,
    fetched: Vec<u8>,
    own: OwnDisks,
    ended: Option<EndReason>,
    failed: bool,
    drained: bool,
}

/// What a backup takes into its life as the only one.
#[derive(Debug)]
pub struct GoLive {
    /// What the primary may not have released, oldest first: to be sent before anything else.
    pub resend: Vec<Output>,
    /// Frames that the network brought and no entry has, oldest first: to be received before others.
    pub unlogged: VecDeque<Vec<u8>>,
    /// How many outputs the machine has said, those included.
    pub said: u64,
    /// The last entry replayed.
    pub replayed: Sequence,
}

/// Why a backup cannot go live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Replay failed; the state is not the primary's.
    #[error("replay failed earlier; this machine is not the primary's equal: clone it again")]
    Failed,
    /// The log ended in order.
    #[error("the log ended in order ({0:?}); there is nothing to go on with")]
    Ended(EndReason),
    /// The log has entries that were not replayed.
    #[error("the log has not been drained; step until it is idle")]
    NotDrained,
    /// The world has seen what this machine has not said.
    #[error(
        "the primary released the output of entry {released}, and the log received ends with entry \
         {replayed}: acknowledged entries were lost"
    )]
    Behind {
        /// Entry of the last output that the primary released, by its own word.
        released: Sequence,
        /// The log's last entry.
        replayed: Sequence,
    },
}

impl Replayer {
    /// Replays a log whose first entry follows `last`, onto a machine that has said `said` outputs
    /// before it, all of them released ([`Sequence::NONE`] and 0 for a new one).
    #[must_use]
    pub fn new(last: Sequence, said: u64) -> Self {
        Self {
            said: VecDeque::with_capacity(16),
            kept: VecDeque::with_capacity(MAX_HELD_OUTPUTS),
            shadow: ShadowRing::new([0; 6], 0, 0),
            confirmed: said,
            released: last,
            replayed: last,
            fetched_for: None,
            fetched: Vec::new(),
            own: OwnDisks::default(),
            ended: None,
            failed: false,
            drained: false,
        }
    }

    /// Watches the network by `shadow`.
    #[must_use]
    pub fn shadowed_by(mut self, shadow: ShadowRing) -> Self {
        self.shadow = shadow;
        self
    }

    /// Has disks of its own beside the primary's: after each step, [`Replayer::own_disk`] says what is to
    /// be done to them.
    #[must_use]
    pub fn with_own_disks(mut self, disks: DiskSet) -> Self {
        self.own = OwnDisks::new(disks);
        self
    }

    /// What is to be done next to this side's own disks. To be asked until there is nothing, after each
    /// step.
    pub fn own_disk(&mut self) -> Option<OwnDisk> {
        self.own.next_step()
    }

    /// A request that [`OwnDisk::Start`] asked for has ended here.
    pub fn own_disk_ended(&mut self, id: RequestId, status: DiskStatus) {
        self.own.ended(id, status);
    }

    /// Where the frames go that come by, and the time.
    pub const fn shadow(&mut self) -> &mut ShadowRing {
        &mut self.shadow
    }

    /// Goes on by one entry, or by `budget` positions towards the next one.
    ///
    /// # Errors
    /// The machine is no longer known to be the primary's equal. It must not go live; every further
    /// call fails too.
    pub fn step<V: Vm, L: LogRead>(
        &mut self,
        vm: &mut V,
        log: &mut L,
        budget: u64,
    ) -> Result<Progress, ReplayError<V::Error>> {
        if self.failed {
            return Err(ReplayError::FailedBefore);
        }
        let result = self.try_step(vm, log, budget);
        self.failed = result.is_err();
        self.drained = matches!(result, Ok(Progress::Idle));
        result
    }

    fn try_step<V: Vm, L: LogRead>(
        &mut self,
        vm: &mut V,
        log: &mut L,
        budget: u64,
    ) -> Result<Progress, ReplayError<V::Error>> {
        if let Some(reason) = self.ended {
            return Ok(Progress::Ended(reason));
        }
        let Some(entry) = log.peek().map_err(ReplayError::Log)? else {
            return Ok(Progress::Idle);
        };
        if !self.reach(vm, &entry, budget)? {
            return Ok(Progress::Running);
        }
        let sequence = entry.sequence();
        match decode(entry.kind(), entry.payload()).map_err(ReplayError::Payload)? {
            Body::Event(event) => {
                let clock = entry.clock();
                if clock < vm.clock() {
                    return Err(Divergence::clock(&entry, vm.clock()).into());
                }
                if let Event::Disk(done) = event {
                    if self.own.awaits(done.id) {
                        return Ok(Progress::AwaitDisk { id: done.id });
                    }
                    self.compare_own_end(&done)?;
                }
                vm.apply(clock, event).map_err(ReplayError::Vm)?;
                match event {
                    Event::Frame(frame) => self.shadow.log_has(frame),
                    Event::Disk(done) => self.own.told(done.id),
                    _ => {}
                }
                self.listen(vm)?;
            }
            Body::DiskRead(mark) => {
                if entry.clock() < vm.clock() {
                    return Err(Divergence::clock(&entry, vm.clock()).into());
                }
                let request = outstanding_read(vm, &entry, mark)?;
                if self.fetched_for.take() != Some(mark.id) {
                    let digest = mark.digest;
                    return Ok(Progress::ReadDisk { request, digest });
                }
                let backup = xxh3_64(&self.fetched);
                if backup != mark.digest {
                    return Err(Divergence::DiskRead {
                        position: entry.position(),
                        id: mark.id,
                        primary: mark.digest,
                        backup,
                    }
                    .into());
                }
                let done = DiskDone {
                    id: mark.id,
                    status: DiskStatus::Done,
                    data: &self.fetched,
                };
                vm.apply(entry.clock(), Event::Disk(done))
                    .map_err(ReplayError::Vm)?;
                self.own.told(mark.id);
                self.listen(vm)?;
            }
            Body::Mark(mark) => {
                if entry.clock() != vm.clock() {
                    return Err(Divergence::clock(&entry, vm.clock()).into());
                }
                match mark {
                    Mark::Output(mark) => self.confirm(vm, &entry, &mark)?,
                    Mark::Digest(mark) => compare_digest(vm, &entry, &mark)?,
                    Mark::End(reason) => self.ended = Some(reason),
                }
            }
        }
        self.replayed = sequence;
        log.release();
        Ok(self
            .ended
            .map_or(Progress::Replayed(sequence), Progress::Ended))
    }

    /// Runs towards the entry's position; whether the machine stands there now.
    fn reach<V: Vm>(
        &mut self,
        vm: &mut V,
        entry: &Entry<'_>,
        budget: u64,
    ) -> Result<bool, ReplayError<V::Error>> {
        let target = entry.position();
        let pause = vm.position().saturating_add(budget.max(1)).min(target);
        self.listen(vm)?;
        loop {
            let here = vm.position();
            if here > target || (here == target && !vm.at_position()) {
                return Err(Divergence::Passed {
                    entry: target,
                    machine: here,
                }
                .into());
            }
            if here == target {
                return Ok(true);
            }
            if let Some(said) = self.said.front() {
                // The primary would have written its mark before it ran on.
                return Err(Divergence::Unlogged {
                    position: said.position,
                    found: said.output.kind,
                    next: target,
                }
                .into());
            }
            if here == pause {
                return Ok(false);
            }
            let stop = vm.run(pause).map_err(ReplayError::Vm)?;
            self.listen(vm)?;
            let position = vm.position();
            if stop == Stop::Halted && position < target {
                return Err(Divergence::Halted {
                    position,
                    entry: target,
                }
                .into());
            }
            // Interrupted, or without progress: the thread gets a chance to look around.
            if stop == Stop::Kicked || (position == here && self.said.is_empty()) {
                return Ok(false);
            }
        }
    }

    /// Takes what the machine has said at this position.
    fn listen<V: Vm>(&mut self, vm: &mut V) -> Result<(), ReplayError<V::Error>> {
        if vm.at_position() {
            while let Some(output) = vm.next_output() {
                self.said.push_back(Said {
                    position: vm.position(),
                    output,
                });
            }
        }
        self.pass_reads(vm)
    }

    /// Takes the reads from disks that are in front of everything that waits for its mark: no entry has
    /// them, and the machine remembers.
    fn pass_reads<V: Vm>(&mut self, vm: &mut V) -> Result<(), ReplayError<V::Error>> {
        while let Some(said) = self
            .said
            .pop_front_if(|said| said.output.kind == OutputKind::DiskRead)
        {
            self.own.confirmed(request_in(&said.output)?);
            vm.recycle(said.output);
        }
        Ok(())
    }

    /// Whether this side's own disk did what the primary's did. Where only the primary's failed, either
    /// content is what a disk may hold.
    fn compare_own_end<E>(&self, done: &DiskDone<'_>) -> Result<(), ReplayError<E>> {
        match self.own.status(done.id) {
            Some(backup) if backup != done.status && done.status == DiskStatus::Done => {
                Err(ReplayError::OwnDisk {
                    id: done.id,
                    primary: done.status,
                    backup,
                })
            }
            _ => Ok(()),
        }
    }

    /// Compares the oldest output with the primary's mark, and keeps it.
    fn confirm<V: Vm>(
        &mut self,
        vm: &mut V,
        entry: &Entry<'_>,
        mark: &OutputMark,
    ) -> Result<(), ReplayError<V::Error>> {
        let (position, number) = (entry.position(), mark.number);
        let expected = self.confirmed + 1;
        if number != expected {
            return Err(Divergence::Number {
                position,
                found: number,
                expected,
            }
            .into());
        }
        let Some(said) = self.said.pop_front() else {
            return Err(Divergence::Missing {
                position,
                number,
                expected: mark.kind,
            }
            .into());
        };
        let own = OutputMark::of(&said.output, number, mark.released);
        let fields = [
            (OutputField::Position, position, said.position),
            (OutputField::Kind, mark.kind as u64, own.kind as u64),
            (
                OutputField::Length,
                u64::from(mark.length),
                u64::from(own.length),
            ),
            (OutputField::Digest, mark.digest, own.digest),
        ];
        for (field, primary, backup) in fields {
            if primary != backup {
                return Err(Divergence::Output {
                    position,
                    number,
                    field,
                    primary,
                    backup,
                }
                .into());
            }
        }
        if mark.kind == OutputKind::Disk {
            self.own.confirmed(request_in(&said.output)?);
            vm.recycle(said.output);
        } else {
            self.kept.push_back((entry.sequence(), said.output));
        }
        self.pass_reads(vm)?;
        self.confirmed = number;
        if mark.released >= entry.sequence() {
            let (found, entry) = (mark.released, entry.sequence());
            return Err(Divergence::Released {
                position,
                found,
                entry,
            }
            .into());
        }
        self.primary_released(vm, mark.released);
        if self.kept.len() > MAX_HELD_OUTPUTS {
            let found = self.kept.len();
            return Err(Divergence::Kept {
                position,
                found,
                expected: MAX_HELD_OUTPUTS,
            }
            .into());
        }
        Ok(())
    }

    /// The primary has released the outputs up to that of entry `released` (said by a heartbeat;
    /// marks are looked at here). They need not be sent again.
    pub fn primary_released<V: Vm>(&mut self, vm: &mut V, released: Sequence) {
        self.released = self.released.max(released);
        while let Some((entry, _)) = self.kept.front()
            && *entry <= self.released
        {
            if let Some((_, output)) = self.kept.pop_front() {
                vm.recycle(output);
            }
        }
    }

    /// Whether a step found the log empty, and nothing was replayed since.
    #[must_use]
    pub const fn drained(&self) -> bool {
        self.drained
    }

    /// The last entry replayed.
    #[must_use]
    pub const fn replayed(&self) -> Sequence {
        self.replayed
    }

    /// How many outputs would be sent again if this machine went live now.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// The shared disk's bytes for `request`, as [`Progress::ReadDisk`] asked for them, are in its bounce
    /// buffer. The next step compares them with what the primary read; so that the caller can read once
    /// more instead, their XXH3-64 is returned.
    pub fn disk_read<V: Vm>(&mut self, vm: &V, request: &DiskRequest) -> u64 {
        self.fetched.clear();
        if let Some(region) = vm.bounce() {
            let length = request.length.min(region.bytes());
            self.fetched.resize(usize::try_from(length).unwrap_or(0), 0);
            region.read(request.bounce, &mut self.fetched);
        }
        self.fetched_for = Some(request.id);
        xxh3_64(&self.fetched)
    }

    /// The machine becomes the only one. To be called once the log is drained and the arbiter has
    /// decided; the caller sends [`GoLive::resend`], issues [`Vm::disk_requests`] and runs on through a
    /// [`crate::ft::recorder::Recorder`].
    ///
    /// # Errors
    /// It is not the primary's equal, or not yet, or there is nothing to go on with.
    pub fn go_live(&mut self) -> Result<GoLive, NotReady> {
        if self.failed {
            return Err(NotReady::Failed);
        }
        if let Some(reason) = self.ended {
            return Err(NotReady::Ended(reason));
        }
        if !self.drained {
            return Err(NotReady::NotDrained);
        }
        if self.released > self.replayed {
            let (released, replayed) = (self.released, self.replayed);
            return Err(NotReady::Behind { released, replayed });
        }
        // What was said at the last position without a mark never left the primary either.
        let unmarked = self.said.drain(..).map(|said| said.output);
        let numbered: Vec<Output> = unmarked
            .filter(|output| output.kind != OutputKind::DiskRead)
            .collect();
        let said = self.confirmed + numbered.len() as u64;
        // The machine remembers its disk requests itself.
        let unmarked = numbered
            .into_iter()
            .filter(|output| output.kind != OutputKind::Disk);
        let kept = self.kept.drain(..).map(|(_, output)| output);
        let resend = kept.chain(unmarked).collect();
        Ok(GoLive {
            resend,
            unlogged: self.shadow.go_live(),
            said,
            replayed: self.replayed,
        })
    }
}

/// The request that the machine said as `output`.
fn request_in<E>(output: &Output) -> Result<DiskRequest, ReplayError<E>> {
    DiskRequest::read_from(&output.bytes).map_err(ReplayError::Request)
}

/// The read that `mark` says has ended.
fn outstanding_read<V: Vm>(
    vm: &V,
    entry: &Entry<'_>,
    mark: DiskReadMark,
) -> Result<DiskRequest, Divergence> {
    let mut requests = vm.disk_requests().into_iter();
    let request = requests.find(|request| request.id == mark.id && request.op == DiskOp::Read);
    request.ok_or(Divergence::NoSuchRead {
        position: entry.position(),
        id: mark.id,
    })
}

fn compare_digest<V: Vm>(
    vm: &mut V,
    entry: &Entry<'_>,
    mark: &DigestMark,
) -> Result<(), ReplayError<V::Error>> {
    let backup = vm.digest(mark.scope).map_err(ReplayError::Vm)?;
    if backup != mark.digest {
        let (position, primary) = (entry.position(), mark.digest);
        return Err(Divergence::State {
            position,
            primary,
            backup,
        }
        .into());
    }
    Ok(())
}
