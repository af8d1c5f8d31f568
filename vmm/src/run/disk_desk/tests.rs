use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::ft::disk::copy::{PairingId, Record};
use crate::ft::replayer::{NotReady, Progress, Replayer};
use crate::ft::testing::{Asking, log};
use crate::machine::config::DiskSpec;

const BLOCK: u64 = 4096;

fn write(id: u64) -> Output {
    let request = DiskRequest {
        id,
        disk: 0,
        op: DiskOp::Write { durable: false },
        offset: (id - 1) * BLOCK,
        length: BLOCK,
        bounce: 0,
        digest: 0,
    };
    let mut bytes = Vec::new();
    request.write_to(&mut bytes);
    Output {
        kind: OutputKind::Disk,
        bytes,
    }
}

/// A disk of two blocks that takes one request at a time. What is written is 0x5a.
fn desk(file: &tempfile::NamedTempFile) -> DiskDesk {
    file.as_file().set_len(2 * BLOCK).expect("a size");
    open(file.path(), Sharing::Shared)
}

fn open(path: &Path, sharing: Sharing) -> DiskDesk {
    let machine = MachineConfig {
        disks: vec![DiskSpec {
            bytes: 2 * BLOCK,
            ..DiskSpec::default()
        }],
        ..MachineConfig::default()
    };
    let backing = DiskBacking {
        path: path.to_owned(),
        sharing,
        records: None,
    };
    let settings = DiskSettings {
        queue_depth: 1,
        ..DiskSettings::default()
    };
    let region = BounceRegion::new(BLOCK).expect("memory");
    region.write(0, &[0x5a; BLOCK as usize]);
    DiskDesk::open(
        &machine,
        &[backing],
        Some(&region),
        &settings,
        Part::Primary,
        0,
    )
    .expect("opened")
    .expect("a disk")
}

/// Waits until a request has ended, which the guest is not told yet.
fn await_end(desk: &mut DiskDesk) {
    while desk.ended().is_none() {
        desk.await_progress(Duration::from_millis(10))
            .expect("waited");
    }
}

fn frame() -> Output {
    Output {
        kind: OutputKind::Frame,
        bytes: vec![0; 60],
    }
}

/// Whether a backup goes live whose log ends before entry 1, the primary having said so much.
fn goes_live_without_a_log(primary_released: Sequence) -> Result<(), NotReady> {
    let mut vm = Asking::new();
    let (_writer, mut reader) = log(1 << 12);
    let mut replayer = Replayer::new(Sequence::NONE, 0);
    replayer.primary_released(&mut vm, primary_released);
    let progress = replayer
        .step(&mut vm, &mut reader, 1)
        .expect("an empty log");
    assert_eq!(progress, Progress::Idle);
    replayer.go_live().map(drop)
}

#[test]
fn a_backup_without_the_entry_of_a_write_that_was_started_does_not_go_live() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut desk = desk(&file);
    let (mut gate, mut spent) = (OutputGate::new(), Vec::new());
    let mut outlets = Outlets {
        gate: &mut gate,
        disks: Some(&mut desk),
        spent: &mut spent,
        now: 0,
    };
    outlets.hold(Sequence(1), write(1));
    assert_eq!(goes_live_without_a_log(outlets.released()), Ok(()));

    desk.start(ReleaseLimit::UpTo(Sequence(1)), Sequence::NONE, u64::MAX)
        .expect("started");
    let expected = NotReady::Behind {
        released: Sequence(1),
        replayed: Sequence::NONE,
    };
    let found = goes_live_without_a_log(gate.released_with(desk.released()));
    assert_eq!(found, Err(expected));
    await_end(&mut desk);
}

/// The backup would drop its copy, which is not out.
#[test]
fn a_frame_at_the_gate_is_not_released_by_a_later_write_that_was_started() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut desk = desk(&file);
    let (mut gate, mut spent) = (OutputGate::new(), Vec::new());
    let mut outlets = Outlets {
        gate: &mut gate,
        disks: Some(&mut desk),
        spent: &mut spent,
        now: 0,
    };
    outlets.hold(Sequence(1), frame());
    outlets.hold(Sequence(2), write(1));
    outlets.hold(Sequence(3), frame());
    desk.start(ReleaseLimit::UpTo(Sequence(2)), Sequence::NONE, u64::MAX)
        .expect("started");
    assert_eq!(gate.released_with(desk.released()), Sequence::NONE);
    gate.sent();
    assert_eq!(gate.released_with(desk.released()), Sequence(2));
    gate.sent();
    assert_eq!(gate.released_with(desk.released()), Sequence(3));
    await_end(&mut desk);
}

/// A primary that was stopped, or that suspects its backup, may have more allowed writes than the
/// queue had places: the other side may be live by now.
#[test]
fn a_write_that_waited_for_a_place_in_the_queue_does_not_start_once_nothing_may_be_released() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut desk = desk(&file);
    let acknowledged = ReleaseLimit::UpTo(Sequence(2));
    for id in 1..=2 {
        desk.add(&write(id), Some(Sequence(id)), 0);
    }
    let start = |desk: &mut DiskDesk, limit| {
        desk.start(limit, Sequence::NONE, u64::MAX)
            .expect("started");
    };
    start(&mut desk, acknowledged);
    await_end(&mut desk);
    desk.told(Sequence(3), true);
    for _ in 0..20 {
        start(&mut desk, ReleaseLimit::Nothing);
        desk.await_progress(Duration::from_millis(1))
            .expect("waited");
        assert!(desk.ended().is_none(), "the second write started");
    }
    let mut second = [1; BLOCK as usize];
    file.as_file()
        .read_exact_at(&mut second, BLOCK)
        .expect("read");
    assert_eq!(second, [0; BLOCK as usize]);

    start(&mut desk, acknowledged);
    await_end(&mut desk);
    file.as_file()
        .read_exact_at(&mut second, BLOCK)
        .expect("read");
    assert_eq!(second, [0x5a; BLOCK as usize]);
}

/// What the record of the own disk at `path` says, as whoever starts after a crash finds it.
fn record(path: &Path) -> Record {
    let bytes = std::fs::read(path.with_extension("copy")).expect("a record");
    Record::from_bytes(&bytes, 2 * BLOCK).expect("sound").0
}

#[test]
fn a_write_to_an_own_disk_waits_for_nobody_but_is_noted_before_it_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let new = std::fs::File::create(&path).expect("a file");
    new.set_len(2 * BLOCK).expect("a size");
    let file = std::fs::File::open(&path).expect("the file");
    let mut copy = CopyFile::open(&path, 2 * BLOCK, None).expect("a copy");
    let paired = Record::new(PairingId(1), Standing::Led, 2 * BLOCK);
    copy.replace(paired).expect("a record");
    drop(copy);

    let mut desk = open(&path, Sharing::Own);
    let (mut gate, mut spent) = (OutputGate::new(), Vec::new());
    let mut outlets = Outlets {
        gate: &mut gate,
        disks: Some(&mut desk),
        spent: &mut spent,
        now: 0,
    };
    assert!(outlets.awaits(&frame()) && !outlets.awaits(&write(1)));
    outlets.hold(Sequence(1), write(1));
    // Nothing is acknowledged, and time is up: it may be begun, and is noted, but is not handed over.
    let none = ReleaseLimit::UpTo(Sequence::NONE);
    desk.start(none, Sequence::NONE, 0).expect("noted");
    assert_eq!(record(&path).map.count(), 1);
    let mut block = [1; BLOCK as usize];
    file.read_exact_at(&mut block, 0).expect("read");
    assert_eq!(block, [0; BLOCK as usize]);

    desk.start(none, Sequence::NONE, u64::MAX).expect("started");
    await_end(&mut desk);
    desk.told(Sequence(9), true);
    file.read_exact_at(&mut block, 0).expect("read");
    assert_eq!(block, [0x5a; BLOCK as usize]);
    assert_eq!(
        desk.released(),
        Sequence::NONE,
        "the backup may go live without it"
    );

    // How the side stands changes with the first write that follows, and not before.
    desk.goes_alone();
    desk.start(none, Sequence::NONE, u64::MAX).expect("nothing");
    assert_eq!(record(&path).standing, Standing::Led);
    desk.add(&write(2), None, 0);
    desk.start(ReleaseLimit::Everything, Sequence::NONE, 0)
        .expect("noted");
    assert_eq!(record(&path).standing, Standing::Alone);
    desk.start(ReleaseLimit::Everything, Sequence::NONE, u64::MAX)
        .expect("started");
    await_end(&mut desk);
}

/// Half of it may be there, and the other side's disk may hold all of it: what is read is the primary's.
#[test]
fn what_is_read_from_an_own_disk_is_shipped_once_a_change_of_it_failed() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(2 * BLOCK).expect("a size");
    for (sharing, shipped) in [(Sharing::Shared, false), (Sharing::Own, true)] {
        let mut desk = open(file.path(), sharing);
        desk.backup_reads = true;
        let mut end = |op, offset| {
            let request = DiskRequest {
                op,
                offset,
                ..DiskRequest::read_from(&write(1).bytes).expect("a request")
            };
            desk.schedule.add(request, None, 0);
            desk.start(ReleaseLimit::Everything, Sequence::NONE, u64::MAX)
                .expect("started");
            await_end(&mut desk);
            let ended = desk.ended().expect("ended");
            let by_backup = desk.read_by_backup(&ended.request);
            desk.told(Sequence(1), true);
            (ended.status, by_backup)
        };
        assert_eq!(end(DiskOp::Read, 0), (DiskStatus::Done, true));
        let write = DiskOp::Write { durable: false };
        let nowhere = 2 * BLOCK;
        assert_eq!(end(DiskOp::Read, nowhere), (DiskStatus::Failed, true));
        assert_eq!(end(DiskOp::Read, 0), (DiskStatus::Done, true));
        assert_eq!(end(write, nowhere), (DiskStatus::Failed, false));
        assert_eq!(end(DiskOp::Read, 0), (DiskStatus::Done, !shipped));
    }
}
