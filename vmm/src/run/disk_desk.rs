//! The disks of a live machine: what the guest has asked for, when it may start, and what came of it.
//!
//! Nothing starts but by [`DiskDesk::start`], which the driver calls in the very turn in which it has
//! looked at its role: see "Fencing" in the architecture document.

use std::path::PathBuf;
use std::time::Duration;

use lockstep_perf::disk_stages::{DiskHistograms, DiskStamps};
use lockstep_perf::stamp;

use super::RunError;
use crate::ft::disk::copy::Standing;
use crate::ft::disk::{
    DiskOp, DiskRequest, DiskSet, DiskStatus, RequestId, RequestWireError, Schedule,
};
use crate::ft::gate::{OutputGate, OutputSink, ReleaseLimit};
use crate::ft::log::Sequence;
use crate::ft::replayer::OwnDisk;
use crate::ft::vm::{Output, OutputKind};
use crate::host::disk::{CopyFile, DiskError, DiskFile, DiskOptions, Disks, Sharing, check_shared};
use crate::machine::MachineConfig;
use crate::machine::bounce::BounceRegion;
use crate::settings::DiskSettings;

/// What backs a disk of the machine on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskBacking {
    /// A regular file or a block device, as large as the machine's disk.
    pub path: PathBuf,
    /// Whose it is.
    pub sharing: Sharing,
    /// Where the copy record of an own disk is; beside the disk if not named.
    pub records: Option<PathBuf>,
}

/// What the machine is to its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// A primary that will make its backup's copies equal to its own.
    Primary,
    /// A backup whose copies will be made equal.
    Backup,
    /// It runs without another side.
    Alone,
}

/// A machine's disks and what is to back them do not go together.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// Too many, or too few.
    #[error("the machine has {disks} disks, and {files} files are to back them; name one for each")]
    Count {
        /// Of the machine.
        disks: usize,
        /// As named.
        files: usize,
    },
    /// A disk that is never written has no copies that could differ.
    #[error("disk {}: own, and read-only: what is never written can be shared", path.display())]
    ReadOnlyOwn {
        /// The file.
        path: PathBuf,
    },
}

/// A request whose I/O has ended, and which the guest does not know of yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub request: DiskRequest,
    pub status: DiskStatus,
    pub at: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct DiskDesk {
    disks: Disks,
    schedule: Schedule,
    /// Those that the other side has a copy of, instead of reaching them.
    own: DiskSet,
    /// Of the own ones, in their order.
    copies: Vec<CopyFile>,
    /// By a disk's number, its place in `copies`.
    places: Vec<Option<usize>>,
    /// The side has no other any more, and has not yet changed its disks since.
    newly_alone: bool,
    /// Read data is not put in the log: the backup reads the disk itself.
    backup_reads: bool,
    /// Own ones that a change failed on: what it left there, the other side's need not hold.
    unlike: DiskSet,
    settle_ns: u64,
    retry_ns: u64,
    ended: Option<Ended>,
    stages: DiskHistograms,
    /// What was kicked earlier is left out of the stages.
    from: u64,
    damaged: Option<RequestWireError>,
}

impl DiskDesk {
    /// Opens what backs the disks of `machine`; nothing for a machine without. `region` is the
    /// machine's bounce memory.
    pub fn open(
        machine: &MachineConfig,
        files: &[DiskBacking],
        region: Option<&BounceRegion>,
        settings: &DiskSettings,
        part: Part,
        from: u64,
    ) -> Result<Option<Self>, RunError> {
        let (disks, found) = (machine.disks.len(), files.len());
        if disks != found {
            let count = BackingError::Count {
                disks,
                files: found,
            };
            return Err(count.into());
        }
        let Some(region) = region else {
            return Ok(None);
        };
        let (mut own, mut copies, mut places) = (DiskSet::NONE, Vec::new(), Vec::new());
        for (number, (spec, backing)) in (0..).zip(machine.disks.iter().zip(files)) {
            let records = backing.records.as_deref();
            if backing.sharing == Sharing::Shared {
                if !spec.read_only {
                    check_shared(&backing.path, records)?;
                }
                places.push(None);
                continue;
            }
            if spec.read_only {
                return Err(BackingError::ReadOnlyOwn {
                    path: backing.path.clone(),
                }
                .into());
            }
            let copy = CopyFile::open(&backing.path, spec.bytes, records)?;
            if part != Part::Backup {
                copy.check_whole()?;
            }
            own = own.with(number);
            places.push(Some(copies.len()));
            copies.push(copy);
        }
        let files: Vec<DiskFile> = machine
            .disks
            .iter()
            .zip(files)
            .map(|(spec, backing)| DiskFile {
                path: backing.path.clone(),
                bytes: spec.bytes,
                read_only: spec.read_only,
                sharing: backing.sharing,
            })
            .collect();
        let options = DiskOptions::from(settings);
        Ok(Some(Self {
            disks: Disks::open(&files, region.clone(), &options)?,
            schedule: Schedule::new(),
            own,
            copies,
            places,
            newly_alone: part == Part::Alone,
            backup_reads: settings.backup_reads,
            unlike: DiskSet::NONE,
            settle_ns: u64::from(settings.settle_ms) * 1_000_000,
            retry_ns: u64::try_from(options.read_retry.as_nanos()).unwrap_or(u64::MAX),
            ended: None,
            stages: DiskHistograms::new(),
            from,
            damaged: None,
        }))
    }

    /// Those that are this side's own.
    pub const fn own(&self) -> DiskSet {
        self.own
    }

    /// The own ones' copies, in their order, to be made equal.
    pub fn copies(&mut self) -> &mut [CopyFile] {
        &mut self.copies
    }

    /// The side goes on without the other. That is written down before it first changes a disk of its own.
    pub const fn goes_alone(&mut self) {
        self.newly_alone = true;
    }

    /// Writes down what `request`, which has not started yet, will change. What the caller starts in one go needs
    /// one [`DiskDesk::commit`], which is to come before anything starts, if this says so.
    fn mark(&mut self, request: &DiskRequest) -> Result<bool, RunError> {
        if !request.op.changes() {
            return Ok(false);
        }
        let place = self.places.get(usize::from(request.disk));
        let Some(place) = place.copied().flatten() else {
            return Ok(false);
        };
        if std::mem::take(&mut self.newly_alone) {
            for copy in &mut self.copies {
                copy.stand(Standing::Alone)?;
            }
        }
        Ok(self.copies[place].mark(request.offset, request.length))
    }

    fn commit(&mut self) -> Result<(), RunError> {
        for copy in &mut self.copies {
            copy.commit()?;
        }
        Ok(())
    }

    fn add(&mut self, output: &Output, held_by: Option<Sequence>, now: u64) {
        match DiskRequest::read_from(&output.bytes) {
            // The world does not see what is done to this side's own disk, and the other side has its own.
            Ok(request) => {
                let held_by = held_by.filter(|_| !self.own.contains(request.disk));
                self.schedule.add(request, held_by, now);
            }
            Err(error) => self.damaged = Some(error),
        }
    }

    /// Whether the output rule holds the disk request that `output` is.
    fn holds(&self, output: &Output) -> bool {
        DiskRequest::read_from(&output.bytes).is_ok_and(|request| !self.own.contains(request.disk))
    }

    /// This machine has gone live: what it has asked for and has no end of is issued again. What it did to
    /// its own disks as a backup has ended.
    pub fn reissue(&mut self, requests: Vec<DiskRequest>, now: u64) {
        self.schedule = Schedule::new();
        self.schedule
            .reissue(requests, &self.own, now, self.settle_ns);
    }

    /// A backup does to its own disk what the primary does to its.
    pub fn follow(&mut self, step: OwnDisk) {
        match step {
            OwnDisk::Start(request) => self.schedule.add(request, None, stamp::now()),
            OwnDisk::Reads(request) => self.schedule.add_elsewhere(request),
            OwnDisk::HasRead(id) => drop(self.schedule.done(id)),
        }
    }

    /// The next request of [`DiskDesk::follow`] that has ended, and how.
    pub fn followed(&mut self) -> Option<(RequestId, DiskStatus)> {
        let ended = self.ended()?;
        self.ended = None;
        self.schedule.done(ended.request.id);
        Some((ended.request.id, ended.status))
    }

    /// Starts what may start. `until` is the time until which the caller's right to write holds: a
    /// thread that stood still since it looked starts nothing. Nor does one that may release nothing:
    /// what was allowed before and still waits for a place in the queue is not allowed any more.
    pub fn start(
        &mut self,
        limit: ReleaseLimit,
        replayed: Sequence,
        until: u64,
    ) -> Result<bool, RunError> {
        if let Some(error) = self.damaged.take() {
            return Err(RunError::Record(error.to_string()));
        }
        let now = stamp::now();
        let (mut any, mut newly_marked) = (false, false);
        while let Some(request) = self.schedule.next(limit, replayed, now) {
            newly_marked |= self.mark(&request)?;
            self.disks.submit(&request);
            any = true;
        }
        if newly_marked {
            // Nothing of it has started: that is `flush`.
            self.commit()?;
        }
        if self.disks.waiting() > 0 && limit != ReleaseLimit::Nothing {
            self.disks.flush(until)?;
        }
        self.disks.watch(now);
        Ok(any)
    }

    /// Goes on with what has been started, and starts nothing.
    pub fn go_on(&mut self) -> Result<(), RunError> {
        if self.disks.waiting() > 0 {
            self.disks.flush(u64::MAX)?;
        }
        self.disks.watch(stamp::now());
        Ok(())
    }

    /// The next request whose I/O has ended; the same one until [`DiskDesk::told`].
    pub fn ended(&mut self) -> Option<Ended> {
        if self.ended.is_none() {
            let (id, status) = self.disks.completed()?;
            let request = self.schedule.request(id)?;
            self.ended = Some(Ended {
                request,
                status,
                at: stamp::now(),
            });
        }
        self.ended
    }

    /// Whether the backup does this read again, instead of getting its data in the log.
    pub fn read_by_backup(&self, request: &DiskRequest) -> bool {
        request.op == DiskOp::Read && self.backup_reads && !self.unlike.contains(request.disk)
    }

    /// The guest knows of the end that [`DiskDesk::ended`] showed, by this entry; `followed` says that a
    /// backup will replay it. Only from here on may what conflicts start: a backup that reads for itself
    /// has these blocks to itself first.
    pub fn told(&mut self, entry: Sequence, followed: bool) {
        let Some(ended) = self.ended.take() else {
            return;
        };
        if let Some(finished) = self.schedule.done(ended.request.id)
            && finished.kicked >= self.from
        {
            let stamps = DiskStamps {
                kick: finished.kicked,
                allowed: finished.allowed,
                started: finished.started,
                ended: ended.at,
            };
            self.stages.record(&stamps, ended.request.op.is_held());
        }
        let (request, done) = (ended.request, ended.status == DiskStatus::Done);
        if done && followed && self.read_by_backup(&request) {
            self.schedule.reading(request, entry);
        }
        if !done && request.op.changes() && self.own.contains(request.disk) {
            self.unlike = self.unlike.with(request.disk);
        }
    }

    /// A backup reads what the primary read before, into the request's bounce buffer, until `sound` says
    /// that it is that, or patience ends.
    pub fn read_again(
        &self,
        request: &DiskRequest,
        mut sound: impl FnMut() -> bool,
    ) -> Result<(), DiskError> {
        const PAUSE: Duration = Duration::from_millis(5);
        let give_up = stamp::now() + self.retry_ns;
        loop {
            self.disks.read_now(request)?;
            if sound() || stamp::now() >= give_up {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Sleeps until a request has made progress, or time is up.
    pub fn await_progress(&mut self, patience: Duration) -> Result<(), RunError> {
        Ok(self.disks.wait(patience)?)
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.schedule.waiting() == 0 && self.schedule.running() == 0
    }

    /// See [`Schedule::released`].
    pub const fn released(&self) -> Sequence {
        self.schedule.released()
    }

    /// How many wait to be started, for an acknowledgement or for each other.
    pub fn waiting(&self) -> usize {
        self.schedule.waiting()
    }

    /// How many have been started and not ended.
    pub fn running(&self) -> usize {
        self.schedule.running()
    }

    /// When something may start by the mere passing of time.
    pub fn wake_at(&self) -> Option<u64> {
        self.schedule.wake_at()
    }

    /// The host's side: what a sleeping thread polls.
    pub const fn host(&self) -> &Disks {
        &self.disks
    }

    pub fn into_stages(self) -> DiskHistograms {
        self.stages
    }
}

/// Where a live machine's outputs go: to the gate, or to its disks.
pub(super) struct Outlets<'a> {
    pub gate: &'a mut OutputGate,
    pub disks: Option<&'a mut DiskDesk>,
    /// Buffers that have served.
    pub spent: &'a mut Vec<Output>,
    pub now: u64,
}

impl Outlets<'_> {
    fn give_to_disk(&mut self, output: Output, held_by: Option<Sequence>) {
        if let Some(disks) = &mut self.disks {
            disks.add(&output, held_by, self.now);
        }
        self.spent.push(output);
    }
}

impl OutputSink for Outlets<'_> {
    fn has_room(&self, bytes: usize) -> bool {
        // Disk requests are bounded by the machine.
        self.gate.has_room(bytes)
    }

    fn hold(&mut self, sequence: Sequence, output: Output) {
        match output.kind {
            OutputKind::Disk => self.give_to_disk(output, Some(sequence)),
            _ => self.gate.hold(sequence, output),
        }
    }

    fn awaits(&self, output: &Output) -> bool {
        let disks = self.disks.as_ref();
        output.kind != OutputKind::Disk || disks.is_some_and(|disks| disks.holds(output))
    }

    fn pass(&mut self, output: Output) {
        self.give_to_disk(output, None);
    }

    fn released(&self) -> Sequence {
        let started = self.disks.as_ref().map(|disks| disks.released());
        self.gate.released_with(started.unwrap_or(Sequence::NONE))
    }
}

#[cfg(test)]
mod tests;
