use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::ft::disk::DiskOp;

const SECTOR: u64 = 512;
const SECTORS: usize = 12;
const ALL: ReleaseLimit = ReleaseLimit::Everything;
const NONE: Sequence = Sequence::NONE;

fn request(id: RequestId, op: DiskOp, sector: u64, sectors: u64) -> DiskRequest {
    let flush = op == DiskOp::Flush;
    DiskRequest {
        id,
        disk: 0,
        op,
        offset: if flush { 0 } else { sector * SECTOR },
        length: if flush { 0 } else { sectors * SECTOR },
        bounce: 0,
        digest: 0,
    }
}

const WRITE: DiskOp = DiskOp::Write { durable: false };

/// What the backup's own disk holds when the primary's read ends is what the primary read.
#[test]
fn a_request_that_is_done_elsewhere_keeps_its_place_and_is_never_started() {
    let mut schedule = Schedule::new();
    let start = |schedule: &mut Schedule| schedule.next(ALL, NONE, 0).map(|request| request.id);
    schedule.add(request(1, WRITE, 0, 1), None, 0);
    schedule.add_elsewhere(request(2, DiskOp::Read, 0, 2));
    schedule.add(request(3, WRITE, 1, 1), None, 0);
    schedule.add(request(4, WRITE, 2, 1), None, 0);
    assert_eq!(start(&mut schedule), Some(1), "what came before it goes");
    assert_eq!(start(&mut schedule), Some(4));
    assert_eq!(start(&mut schedule), None);
    assert!(schedule.done(1).is_some());
    assert_eq!(start(&mut schedule), None, "the read holds request 3 back");
    assert_eq!(schedule.done(2), None);
    assert_eq!(start(&mut schedule), Some(3));
    assert_eq!((schedule.waiting(), schedule.running()), (0, 2));
}

#[test]
fn nothing_is_quarantined_on_a_disk_that_the_old_primary_does_not_reach() {
    let mut schedule = Schedule::new();
    let own = DiskSet::NONE.with(0);
    schedule.reissue([request(4, WRITE, 0, 2)], &own, 1_000, 500);
    assert_eq!(schedule.next(ALL, NONE, 1_000).map(|r| r.id), Some(4));
    schedule.done(4);
    schedule.add(request(5, WRITE, 1, 1), None, 1_001);
    assert_eq!(schedule.next(ALL, NONE, 1_001).map(|r| r.id), Some(5));
}

#[test]
fn a_write_waits_for_its_acknowledgement_and_a_read_does_not() {
    let mut schedule = Schedule::new();
    schedule.add(request(1, WRITE, 0, 1), Some(Sequence(7)), 10);
    schedule.add(request(2, DiskOp::Read, 4, 1), None, 11);
    schedule.add(request(3, DiskOp::Flush, 0, 0), Some(Sequence(8)), 12);
    let acked = |entry| ReleaseLimit::UpTo(Sequence(entry));
    assert_eq!(schedule.next(acked(6), NONE, 20).unwrap().id, 2);
    assert_eq!(schedule.next(acked(6), NONE, 20), None);
    assert_eq!(schedule.next(ReleaseLimit::Nothing, NONE, 21), None);
    assert_eq!(schedule.next(acked(7), NONE, 30).unwrap().id, 1);
    assert_eq!(schedule.next(acked(7), NONE, 31), None);
    assert_eq!(schedule.next(acked(8), NONE, 40).unwrap().id, 3);
    let finished = schedule.done(1).unwrap();
    assert_eq!(
        (finished.kicked, finished.allowed, finished.started),
        (10, 30, 30)
    );
    assert_eq!(schedule.done(2).unwrap().allowed, 11);
    assert_eq!(schedule.done(1), None, "only once");
}

#[test]
fn what_has_been_started_counts_as_released_by_its_entry_and_nothing_else_does() {
    let mut schedule = Schedule::new();
    schedule.add(request(1, WRITE, 0, 1), Some(Sequence(3)), 0);
    schedule.add(request(2, WRITE, 0, 1), Some(Sequence(4)), 0);
    schedule.add(request(3, DiskOp::Read, 4, 1), None, 0);
    schedule.add(request(4, WRITE, 6, 1), Some(Sequence(5)), 0);
    schedule.add(request(5, WRITE, 7, 1), Some(Sequence(6)), 0);
    let limit = ReleaseLimit::UpTo(Sequence(5));
    let mut started = Vec::new();
    while let Some(request) = schedule.next(limit, NONE, 1) {
        started.push((request.id, schedule.released().0));
    }
    assert_eq!(started, [(1, 3), (3, 3), (4, 5)]);
    schedule.done(1);
    assert_eq!(schedule.next(limit, NONE, 2).unwrap().id, 2);
    assert_eq!(schedule.released(), Sequence(5), "never goes back");
}

#[test]
fn what_was_allowed_and_had_to_wait_is_held_again_when_the_limit_falls() {
    let mut schedule = Schedule::new();
    let acked = ReleaseLimit::UpTo(Sequence(9));
    schedule.add(request(1, WRITE, 0, 1), Some(Sequence(1)), 1);
    schedule.add(request(2, WRITE, 0, 1), Some(Sequence(2)), 1);
    assert_eq!(schedule.next(acked, NONE, 2).unwrap().id, 1);
    assert_eq!(schedule.next(acked, NONE, 2), None);
    schedule.done(1);
    assert_eq!(schedule.next(ReleaseLimit::Nothing, NONE, 3), None);
    assert_eq!(schedule.next(acked, NONE, 4).unwrap().id, 2);
    assert_eq!(schedule.done(2).unwrap().allowed, 2);
}

#[test]
fn a_write_to_blocks_that_the_backup_still_reads_waits_until_it_has() {
    let mut schedule = Schedule::new();
    schedule.reading(request(1, DiskOp::Read, 0, 4), Sequence(5));
    schedule.add(request(2, WRITE, 3, 2), Some(Sequence(6)), 0);
    schedule.add(request(3, DiskOp::Read, 0, 1), None, 0);
    let limit = ReleaseLimit::UpTo(Sequence(9));
    assert_eq!(schedule.next(limit, Sequence(4), 1).unwrap().id, 3);
    assert_eq!(schedule.next(limit, Sequence(4), 1), None);
    assert_eq!(schedule.next(limit, Sequence(5), 1).unwrap().id, 2);
}

#[test]
fn a_new_write_waits_until_late_ones_of_the_old_primary_have_settled() {
    let mut schedule = Schedule::new();
    schedule.reissue([request(4, WRITE, 0, 2)], &DiskSet::NONE, 1_000, 500);
    assert_eq!(schedule.next(ALL, NONE, 1_000).unwrap().id, 4);
    schedule.done(4);
    schedule.add(request(5, WRITE, 1, 2), None, 1_010);
    schedule.add(request(6, WRITE, 2, 1), None, 1_010);
    schedule.add(request(7, WRITE, 5, 1), None, 1_010);
    schedule.add(request(8, DiskOp::Read, 0, 1), None, 1_010);
    assert_eq!(schedule.next(ALL, NONE, 1_020).unwrap().id, 7);
    assert_eq!(schedule.next(ALL, NONE, 1_020).unwrap().id, 8);
    assert_eq!(schedule.next(ALL, NONE, 1_499), None, "6 is behind 5");
    assert_eq!(schedule.wake_at(), Some(1_500));
    assert_eq!(schedule.next(ALL, NONE, 1_500).unwrap().id, 5);
    assert_eq!(schedule.next(ALL, NONE, 1_500), None);
    schedule.done(5);
    assert_eq!(schedule.next(ALL, NONE, 1_500).unwrap().id, 6);
}

#[test]
fn of_two_writes_issued_again_to_the_same_blocks_the_later_waits_as_new_ones_do() {
    let mut schedule = Schedule::new();
    // The old primary may be at 4 still; 5 it cannot have started then, and would be undone by it.
    schedule.reissue(
        [request(4, WRITE, 0, 2), request(5, WRITE, 1, 1)],
        &DiskSet::NONE,
        0,
        500,
    );
    assert_eq!(schedule.next(ALL, NONE, 1).unwrap().id, 4);
    schedule.done(4);
    assert_eq!(schedule.next(ALL, NONE, 499), None);
    assert_eq!(schedule.next(ALL, NONE, 500).unwrap().id, 5);
}

#[derive(Debug, Clone)]
enum Step {
    Kick(DiskOp, u64, u64),
    Acknowledge(u64),
    Start,
    /// One sector of a running request is transferred.
    Transfer(Index, Index),
    Finish(Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let op = prop_oneof![
        3 => Just(DiskOp::Read),
        4 => Just(WRITE),
        1 => Just(DiskOp::Flush),
        1 => Just(DiskOp::WriteZeroes { unmap: false }),
    ];
    let step = prop_oneof![
        4 => (op, 0..SECTORS as u64, 1u64..5).prop_map(|(op, at, length)| Step::Kick(op, at, length)),
        3 => (1u64..4).prop_map(Step::Acknowledge),
        4 => Just(Step::Start),
        6 => (any::<Index>(), any::<Index>()).prop_map(|(which, at)| Step::Transfer(which, at)),
        4 => any::<Index>().prop_map(Step::Finish),
    ];
    proptest::collection::vec(step, 0..150)
}

/// A request under way: which of its sectors have been transferred, and what a read has got.
struct InFlight {
    request: DiskRequest,
    done: Vec<bool>,
    got: Vec<u64>,
}

struct Model {
    schedule: Schedule,
    /// What a sector holds: the number of the request that wrote it, 0 for zeroes.
    disk: Vec<u64>,
    flying: Vec<InFlight>,
    /// What a disk that does one request after the other would hold.
    orderly: Vec<u64>,
    /// What each read would get from it.
    expected: Vec<(RequestId, Vec<u64>)>,
    kicked: u64,
    acknowledged: u64,
}

fn sectors(request: &DiskRequest) -> std::ops::Range<usize> {
    let first = (request.offset / SECTOR) as usize;
    first..first + (request.length / SECTOR) as usize
}

impl Model {
    fn new() -> Self {
        Self {
            schedule: Schedule::new(),
            disk: vec![0; SECTORS],
            flying: Vec::new(),
            orderly: vec![0; SECTORS],
            expected: Vec::new(),
            kicked: 0,
            acknowledged: 0,
        }
    }

    fn kick(&mut self, op: DiskOp, at: u64, length: u64) {
        self.kicked += 1;
        let id = self.kicked;
        let request = request(id, op, at, length.min(SECTORS as u64 - at));
        match op {
            DiskOp::Read => {
                let data = self.orderly[sectors(&request)].to_vec();
                self.expected.push((id, data));
            }
            DiskOp::Write { .. } => self.orderly[sectors(&request)].fill(id),
            DiskOp::WriteZeroes { .. } => self.orderly[sectors(&request)].fill(0),
            DiskOp::Flush | DiskOp::Discard => {}
        }
        // Entry numbers are those of the requests.
        let held_by = op.is_held().then_some(Sequence(id));
        self.schedule.add(request, held_by, id);
    }

    fn start(&mut self) -> bool {
        let limit = ReleaseLimit::UpTo(Sequence(self.acknowledged));
        let Some(request) = self.schedule.next(limit, NONE, 1) else {
            return false;
        };
        assert!(
            !request.op.is_held() || request.id <= self.acknowledged,
            "{request:?} started before its acknowledgement"
        );
        let count = sectors(&request).len();
        self.flying.push(InFlight {
            request,
            done: vec![false; count],
            got: vec![0; count],
        });
        true
    }

    fn transfer(&mut self, flying: usize, sector: usize) {
        let flight = &mut self.flying[flying];
        let at = sectors(&flight.request).start + sector;
        match flight.request.op {
            DiskOp::Read => flight.got[sector] = self.disk[at],
            DiskOp::Write { .. } => self.disk[at] = flight.request.id,
            DiskOp::WriteZeroes { .. } => self.disk[at] = 0,
            DiskOp::Flush | DiskOp::Discard => {}
        }
        flight.done[sector] = true;
    }

    fn finish(&mut self, flying: usize) {
        for sector in 0..self.flying[flying].done.len() {
            if !self.flying[flying].done[sector] {
                self.transfer(flying, sector);
            }
        }
        let flight = self.flying.swap_remove(flying);
        let id = flight.request.id;
        assert_eq!(self.schedule.done(id).map(|done| done.request.id), Some(id));
        if let Some((_, expected)) = self.expected.iter().find(|(read, _)| *read == id) {
            assert_eq!(flight.got, *expected, "read {id}");
        }
    }
}

proptest! {
    /// Against a disk that does one request after the other, in the order of the kicks: every read
    /// gets the same, and in the end the same is on it, whatever order sectors are transferred in.
    /// Once all are acknowledged, whatever conflicts with nothing is under way.
    #[test]
    fn the_disk_is_as_if_requests_were_done_one_after_the_other(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Kick(op, at, length) => model.kick(op, at, length),
                Step::Acknowledge(more) => {
                    model.acknowledged = (model.acknowledged + more).min(model.kicked);
                }
                Step::Start => { model.start(); }
                Step::Transfer(which, at) if !model.flying.is_empty() => {
                    let flying = which.index(model.flying.len());
                    let count = model.flying[flying].done.len();
                    if count > 0 {
                        model.transfer(flying, at.index(count));
                    }
                }
                Step::Finish(which) if !model.flying.is_empty() => {
                    model.finish(which.index(model.flying.len()));
                }
                Step::Transfer(..) | Step::Finish(_) => {}
            }
        }
        model.acknowledged = model.kicked;
        while model.schedule.waiting() > 0 || !model.flying.is_empty() {
            while model.start() {}
            prop_assert!(!model.flying.is_empty(), "nothing runs and something waits");
            for waiting in &model.schedule.waiting {
                let earlier = model.schedule.waiting.iter().map(|other| other.request);
                let running = model.flying.iter().map(|flight| flight.request);
                prop_assert!(
                    earlier.chain(running).any(|other| {
                        other.id < waiting.request.id && other.conflicts(&waiting.request)
                    }),
                    "{:?} waits for nothing", waiting
                );
            }
            model.finish(0);
        }
        prop_assert_eq!(&model.disk, &model.orderly);
        prop_assert_eq!(model.schedule.running(), 0);
    }
}
