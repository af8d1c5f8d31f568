//! A machine that executes: the primary's, and the backup's once it is live.

use std::collections::{BTreeMap, VecDeque};

use lockstep_logchan::entry::Sequence;
use lockstep_vmm::ft::disk::{DiskOp, DiskRequest, DiskStatus, RequestId, Schedule};
use lockstep_vmm::ft::gate::{OutputGate, OutputSink, ReleaseLimit};
use lockstep_vmm::ft::log::LogWrite;
use lockstep_vmm::ft::recorder::{RecordError, Recorder};
use lockstep_vmm::ft::vm::{Event, Output, OutputKind, Vm};

use super::guest::DiskGuest;

/// See the module.
pub struct LiveMachine {
    pub vm: DiskGuest,
    pub recorder: Recorder,
    pub gate: OutputGate,
    pub schedule: Schedule,
    /// Entries of the requests that are held.
    pub entries: BTreeMap<RequestId, Sequence>,
    /// Requests that ended, in the order of their entries.
    pub told: Vec<(Sequence, RequestId)>,
    /// All requests that change the disk.
    pub changed: BTreeMap<RequestId, DiskRequest>,
    /// What the disk has done, and the guest does not know of yet.
    pub ended: VecDeque<(DiskRequest, DiskStatus)>,
    /// Read data does not go to the log.
    pub backup_reads: bool,
    /// The disk is the side's own: the output rule does not hold it.
    pub own: bool,
    /// [`super::DiskSabotage::NoOrder`]: requests in a plain list instead.
    pub unordered: Option<Vec<(DiskRequest, Option<Sequence>)>>,
    /// [`super::DiskSabotage::NotReading`].
    pub not_reading: bool,
}

/// Where a machine's outputs go.
struct Outlets<'a> {
    gate: &'a mut OutputGate,
    schedule: &'a mut Schedule,
    entries: &'a mut BTreeMap<RequestId, Sequence>,
    changed: &'a mut BTreeMap<RequestId, DiskRequest>,
    unordered: &'a mut Option<Vec<(DiskRequest, Option<Sequence>)>>,
    own: bool,
    now: u64,
}

impl Outlets<'_> {
    fn add(&mut self, output: &Output, held_by: Option<Sequence>) {
        let request = DiskRequest::read_from(&output.bytes).expect("the machine's own request");
        if let Some(entry) = held_by {
            self.entries.insert(request.id, entry);
        }
        if request.op.changes() {
            self.changed.insert(request.id, request);
        }
        let held_by = held_by.filter(|_| !self.own);
        match self.unordered {
            Some(list) => list.push((request, held_by)),
            None => self.schedule.add(request, held_by, self.now),
        }
    }
}

impl OutputSink for Outlets<'_> {
    fn has_room(&self, bytes: usize) -> bool {
        self.gate.has_room(bytes)
    }

    fn hold(&mut self, sequence: Sequence, output: Output) {
        match output.kind {
            OutputKind::Disk => self.add(&output, Some(sequence)),
            _ => self.gate.hold(sequence, output),
        }
    }

    fn awaits(&self, output: &Output) -> bool {
        output.kind != OutputKind::Disk || !self.own
    }

    fn pass(&mut self, output: Output) {
        self.add(&output, None);
    }

    fn released(&self) -> Sequence {
        self.gate.released_with(self.schedule.released())
    }
}

impl LiveMachine {
    pub fn new(vm: DiskGuest, recorder: Recorder, backup_reads: bool, own: bool) -> Self {
        Self {
            vm,
            recorder,
            gate: OutputGate::new(),
            schedule: Schedule::new(),
            entries: BTreeMap::new(),
            told: Vec::new(),
            changed: BTreeMap::new(),
            ended: VecDeque::new(),
            backup_reads,
            own,
            unordered: None,
            not_reading: false,
        }
    }

    /// Tells the guest of what has ended, and lets it execute `positions`.
    pub fn turn<L: LogWrite>(&mut self, log: &mut L, positions: u64, now: u64) {
        while let Some((request, status)) = self.ended.front().copied() {
            let entry = self.recorder.disk_done(
                &mut self.vm,
                log,
                &request,
                status,
                self.backup_reads,
                now,
            );
            let entry = match entry {
                Ok(entry) => entry,
                Err(RecordError::LogFull { .. }) => break,
                Err(error) => panic!("{error}"),
            };
            self.ended.pop_front();
            self.schedule.done(request.id);
            self.told.push((entry, request.id));
            let read = request.op == DiskOp::Read && status == DiskStatus::Done;
            if read && self.backup_reads && L::KEPT && !self.not_reading {
                self.schedule.reading(request, entry);
            }
        }
        let mut outlets = Outlets {
            gate: &mut self.gate,
            schedule: &mut self.schedule,
            entries: &mut self.entries,
            changed: &mut self.changed,
            unordered: &mut self.unordered,
            own: self.own,
            now,
        };
        let until = self.vm.position() + positions;
        let mut run = || -> Result<(), RecordError<_>> {
            while self.vm.position() < until {
                let before = self.vm.position();
                self.recorder.run(&mut self.vm, log, &mut outlets, until)?;
                if self.vm.position() == before {
                    break;
                }
            }
            self.recorder.tick(&mut self.vm, log, now, true)?;
            Ok(())
        };
        match run() {
            Ok(()) | Err(RecordError::LogFull { .. } | RecordError::GateFull) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Writes an entry that says nothing but the time.
    pub fn mark_time<L: LogWrite>(&mut self, log: &mut L, now: u64) -> Option<Sequence> {
        self.recorder
            .event(&mut self.vm, log, Event::Clock, now)
            .ok()
    }

    /// The request `id`, if it was one that changes the disk and has ended: to be issued once more by
    /// mistake.
    pub fn ended_request(&self, id: RequestId, outstanding: &[DiskRequest]) -> Option<DiskRequest> {
        let ended = self.told.iter().any(|(_, told)| *told == id)
            && outstanding.iter().all(|request| request.id != id);
        let request = self.changed.get(&id)?;
        ended.then_some(*request)
    }

    /// The next request that may start.
    pub fn next(
        &mut self,
        limit: ReleaseLimit,
        replayed: Sequence,
        now: u64,
    ) -> Option<DiskRequest> {
        let Some(list) = &mut self.unordered else {
            return self.schedule.next(limit, replayed, now);
        };
        let index = list
            .iter()
            .position(|(_, held_by)| held_by.is_none_or(|entry| limit.allows(entry)))?;
        Some(list.remove(index).0)
    }
}
