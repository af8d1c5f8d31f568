//! Disk requests, from the primary's recorder to the backup's replayer.

use super::*;
use crate::ft::disk::{DiskOp, DiskSet, DiskStatus};
use crate::ft::log::Body;
use crate::ft::testing::Asking;

const WRITE: DiskOp = DiskOp::Write { durable: false };

/// Notes where outputs go: with an entry's number to be held, without to be done at once.
#[derive(Default)]
struct Sink {
    noted: Vec<(Option<u64>, OutputKind)>,
    /// The disk is the side's own.
    own: bool,
}

impl OutputSink for Sink {
    fn has_room(&self, _: usize) -> bool {
        true
    }
    fn hold(&mut self, sequence: Sequence, output: Output) {
        self.noted.push((Some(sequence.0), output.kind));
    }
    fn awaits(&self, output: &Output) -> bool {
        !self.own || output.kind != OutputKind::Disk
    }
    fn pass(&mut self, output: Output) {
        self.noted.push((None, output.kind));
    }
    fn released(&self) -> Sequence {
        Sequence::NONE
    }
}

struct Pair {
    primary: Asking,
    backup: Asking,
    recorder: Recorder,
    writer: EntryWriter,
    reader: EntryReader,
    replayer: Replayer,
    sink: Sink,
}

impl Pair {
    fn new() -> Self {
        let (writer, reader) = log(1 << 18);
        let settings = RecorderSettings {
            digest_interval: 0,
            ..SETTINGS
        };
        Self {
            primary: Asking::new(),
            backup: Asking::new(),
            recorder: Recorder::new(settings, 0, 0, 0),
            writer,
            reader,
            replayer: Replayer::new(Sequence::NONE, 0),
            sink: Sink::default(),
        }
    }

    /// Each side has a disk of its own.
    fn with_own_disks() -> Self {
        let pair = Self::new();
        Self {
            replayer: pair.replayer.with_own_disks(DiskSet::NONE.with(0)),
            sink: Sink {
                own: true,
                ..Sink::default()
            },
            ..pair
        }
    }

    /// What the backup is told to do to its disk.
    fn own_steps(&mut self) -> Vec<OwnDisk> {
        std::iter::from_fn(|| self.replayer.own_disk()).collect()
    }

    fn request(&self, id: u64) -> DiskRequest {
        let requests = self.backup.disk_requests();
        *requests.iter().find(|request| request.id == id).unwrap()
    }

    /// Both machines ask, as they would at the same kick.
    fn ask(&mut self, id: u64, op: DiskOp) {
        self.primary.ask(id, op);
        self.backup.ask(id, op);
    }

    fn record_outputs(&mut self) {
        self.recorder
            .outputs(&mut self.primary, &mut self.writer, &mut self.sink)
            .unwrap();
    }

    /// The primary's request has ended with `data` in its bounce buffer.
    fn end(&mut self, id: u64, status: DiskStatus, data: &[u8], backup_reads: bool) {
        let requests = self.primary.disk_requests();
        let request = requests.iter().find(|request| request.id == id).unwrap();
        self.primary.bounce().unwrap().write(request.bounce, data);
        self.recorder
            .disk_done(
                &mut self.primary,
                &mut self.writer,
                request,
                status,
                backup_reads,
                0,
            )
            .unwrap();
    }

    fn step(&mut self) -> Result<Progress, ReplayError<std::convert::Infallible>> {
        self.replayer
            .step(&mut self.backup, &mut self.reader, u64::MAX)
    }

    fn replay_all(&mut self) {
        while self.step().unwrap() != Progress::Idle {}
    }
}

#[test]
fn reads_pass_without_an_entry_in_their_place_between_what_is_held() {
    let mut pair = Pair::new();
    for (id, op) in [
        (1, DiskOp::Read),
        (2, WRITE),
        (3, DiskOp::Read),
        (4, DiskOp::Flush),
    ] {
        pair.ask(id, op);
    }
    pair.ask(5, DiskOp::Read);
    pair.primary.speak();
    pair.backup.speak();
    pair.record_outputs();
    use OutputKind::{Console, Disk, DiskRead};
    assert_eq!(
        pair.sink.noted,
        [
            (None, DiskRead),
            (Some(1), Disk),
            (None, DiskRead),
            (Some(2), Disk),
            (None, DiskRead),
            (Some(3), Console),
        ]
    );
    assert_eq!(pair.recorder.said(), 3, "reads are not counted");
    pair.replay_all();
    assert_eq!(pair.replayer.kept(), 1, "disk requests are not kept");
    let live = pair.replayer.go_live().unwrap();
    assert_eq!((live.said, live.resend.len()), (3, 1));
    let outstanding: Vec<_> = pair.backup.disk_requests().iter().map(|r| r.id).collect();
    assert_eq!(outstanding, [1, 2, 3, 4, 5]);
}

#[test]
fn whatever_is_last_an_acknowledgement_is_asked_for_what_is_held() {
    let mut pair = Pair::new();
    pair.ask(1, WRITE);
    pair.ask(2, DiskOp::Read);
    pair.record_outputs();
    let entry = pair.reader.peek().unwrap().unwrap();
    assert_eq!(entry.flags(), Flags::ACK_AT_ONCE);
}

#[test]
fn what_a_read_brought_reaches_the_backup_in_the_log() {
    let mut pair = Pair::new();
    pair.ask(1, DiskOp::Read);
    pair.ask(2, WRITE);
    pair.record_outputs();
    pair.end(1, DiskStatus::Done, &[7; 512], false);
    pair.end(2, DiskStatus::Failed, &[], false);
    pair.replay_all();
    let expected = [
        (1, DiskStatus::Done, vec![7; 512]),
        (2, DiskStatus::Failed, Vec::new()),
    ];
    assert_eq!(pair.primary.ended, expected);
    assert_eq!(pair.backup.ended, expected);
    assert!(
        pair.backup.disk_requests().is_empty(),
        "nothing to issue again"
    );
}

#[test]
fn a_backup_that_reads_for_itself_is_asked_to_and_checked() {
    let mut pair = Pair::new();
    pair.ask(1, DiskOp::Read);
    pair.record_outputs();
    pair.end(1, DiskStatus::Done, &[7; 512], true);
    assert_eq!(pair.primary.ended[0].2, [7; 512]);
    let entry = pair.reader.peek().unwrap().unwrap();
    assert_eq!(entry.payload().len(), 24, "a digest instead of the data");
    assert!(matches!(
        crate::ft::log::decode(entry.kind(), entry.payload()),
        Ok(Body::DiskRead(_))
    ));
    let asked = pair.step().unwrap();
    assert_eq!(pair.step().unwrap(), asked, "until it is read");
    let Progress::ReadDisk { request, digest } = asked else {
        panic!("the data is not in the log")
    };
    assert_eq!(request.id, 1);
    let region = pair.backup.bounce().unwrap();
    region.write(request.bounce, &[8; 512]);
    assert_ne!(pair.replayer.disk_read(&pair.backup, &request), digest);
    region.write(request.bounce, &[7; 512]);
    assert_eq!(pair.replayer.disk_read(&pair.backup, &request), digest);
    assert!(pair.backup.ended.is_empty());
    assert_eq!(pair.step().unwrap(), Progress::Replayed(Sequence(1)));
    assert_eq!(pair.backup.ended, pair.primary.ended);
}

#[test]
fn a_read_that_failed_on_the_primary_is_shipped_as_such() {
    let mut pair = Pair::new();
    pair.ask(1, DiskOp::Read);
    pair.record_outputs();
    pair.end(1, DiskStatus::Failed, &[], true);
    pair.replay_all();
    assert_eq!(pair.backup.ended, [(1, DiskStatus::Failed, Vec::new())]);
}

#[test]
fn other_data_on_the_backups_disk_is_a_divergence() {
    let mut pair = Pair::new();
    pair.ask(1, DiskOp::Read);
    pair.record_outputs();
    pair.end(1, DiskStatus::Done, &[7; 512], true);
    let Progress::ReadDisk { request, .. } = pair.step().unwrap() else {
        panic!("the data is not in the log")
    };
    pair.replayer.disk_read(&pair.backup, &request);
    let error = pair.step().unwrap_err();
    assert!(
        matches!(
            error,
            ReplayError::Diverged(Divergence::DiskRead { id: 1, .. })
        ),
        "{error}"
    );
    assert!(matches!(pair.step(), Err(ReplayError::FailedBefore)));
}

#[test]
fn the_end_of_a_read_that_the_backup_has_not_made_is_a_divergence() {
    let mut pair = Pair::new();
    pair.primary.ask(1, DiskOp::Read);
    pair.backup.ask(1, WRITE);
    pair.backup.next_output();
    pair.record_outputs();
    pair.end(1, DiskStatus::Done, &[7; 512], true);
    let error = pair.step().unwrap_err();
    assert!(
        matches!(
            error,
            ReplayError::Diverged(Divergence::NoSuchRead { id: 1, .. })
        ),
        "{error}"
    );
}

#[test]
fn a_write_with_other_data_is_a_divergence() {
    let mut pair = Pair::new();
    pair.primary.ask(1, WRITE);
    pair.backup.ask(1, DiskOp::Write { durable: true });
    pair.record_outputs();
    let error = pair.step().unwrap_err();
    assert!(
        matches!(
            error,
            ReplayError::Diverged(Divergence::Output { number: 1, .. })
        ),
        "{error}"
    );
}

#[test]
fn a_backup_starts_on_its_own_disk_what_the_primary_has_marked() {
    let mut pair = Pair::with_own_disks();
    for (id, op) in [(1, DiskOp::Read), (2, WRITE), (3, DiskOp::Read)] {
        pair.ask(id, op);
    }
    pair.ask(4, DiskOp::Flush);
    assert_eq!(pair.step().unwrap(), Progress::Idle);
    assert_eq!(pair.own_steps(), [], "not before the primary's mark");
    pair.record_outputs();
    let requests: Vec<_> = (1..=4).map(|id| pair.request(id)).collect();
    // In the order of the kicks, the reads where they were.
    assert_eq!(pair.step().unwrap(), Progress::Replayed(Sequence(1)));
    assert_eq!(
        pair.own_steps(),
        [
            OwnDisk::Reads(requests[0]),
            OwnDisk::Start(requests[1]),
            OwnDisk::Reads(requests[2])
        ]
    );
    pair.replay_all();
    assert_eq!(pair.own_steps(), [OwnDisk::Start(requests[3])]);
    assert_eq!(
        pair.replayer.go_live().unwrap().said,
        2,
        "reads are not counted"
    );
}

#[test]
fn the_end_of_a_write_is_applied_once_the_own_disk_has_done_it_too() {
    let mut pair = Pair::with_own_disks();
    pair.ask(1, WRITE);
    pair.record_outputs();
    pair.end(1, DiskStatus::Done, &[], false);
    pair.step().unwrap();
    for _ in 0..3 {
        assert_eq!(pair.step().unwrap(), Progress::AwaitDisk { id: 1 });
        assert!(pair.backup.ended.is_empty(), "its buffer is in use");
        assert!(!pair.replayer.drained());
    }
    pair.replayer.own_disk_ended(1, DiskStatus::Done);
    assert_eq!(pair.step().unwrap(), Progress::Replayed(Sequence(2)));
    assert_eq!(pair.backup.ended, pair.primary.ended);
}

#[test]
fn the_end_of_a_read_lets_later_writes_go_on_the_own_disk() {
    for backup_reads in [false, true] {
        let mut pair = Pair::with_own_disks();
        pair.ask(1, DiskOp::Read);
        pair.record_outputs();
        pair.end(1, DiskStatus::Done, &[7; 512], backup_reads);
        if backup_reads {
            let Progress::ReadDisk { request, .. } = pair.step().unwrap() else {
                panic!("the data is not in the log")
            };
            assert_eq!(pair.own_steps(), [OwnDisk::Reads(request)]);
            let region = pair.backup.bounce().unwrap();
            region.write(request.bounce, &[7; 512]);
            pair.replayer.disk_read(&pair.backup, &request);
        }
        assert_eq!(pair.step().unwrap(), Progress::Replayed(Sequence(1)));
        assert_eq!(pair.own_steps().last(), Some(&OwnDisk::HasRead(1)));
    }
}

#[test]
fn an_own_disk_that_fails_where_the_primarys_did_not_is_no_copy_any_more() {
    for (primary, backup, same) in [
        (DiskStatus::Done, DiskStatus::Failed, false),
        (DiskStatus::Done, DiskStatus::Unsupported, false),
        (DiskStatus::Failed, DiskStatus::Done, true),
        (DiskStatus::Failed, DiskStatus::Failed, true),
        (DiskStatus::Unsupported, DiskStatus::Done, true),
    ] {
        let mut pair = Pair::with_own_disks();
        pair.ask(1, WRITE);
        pair.record_outputs();
        pair.end(1, primary, &[], false);
        pair.step().unwrap();
        pair.replayer.own_disk_ended(1, backup);
        match pair.step() {
            Ok(progress) => assert!(same, "{progress:?}"),
            Err(error) => {
                assert!(
                    !same && matches!(error, ReplayError::OwnDisk { id: 1, .. }),
                    "{error}"
                );
                assert!(matches!(pair.replayer.go_live(), Err(NotReady::Failed)));
            }
        }
    }
}

#[test]
fn a_write_to_an_own_disk_asks_for_no_acknowledgement_and_what_is_held_does() {
    let flags = |pair: &mut Pair| {
        let mut flags = Vec::new();
        while let Some(entry) = pair.reader.peek().unwrap() {
            flags.push(entry.flags());
            pair.reader.release();
        }
        flags
    };
    let mut pair = Pair::with_own_disks();
    pair.ask(1, WRITE);
    pair.record_outputs();
    assert_eq!(pair.recorder.counts().awaited, 0);
    assert_eq!(flags(&mut pair), [Flags::NONE]);
    pair.ask(2, WRITE);
    pair.primary.speak();
    pair.ask(3, WRITE);
    pair.record_outputs();
    assert_eq!(
        (
            pair.recorder.counts().awaited,
            pair.recorder.counts().outputs
        ),
        (1, 4)
    );
    assert_eq!(
        flags(&mut pair),
        [Flags::NONE, Flags::ACK_AT_ONCE, Flags::NONE]
    );
}
