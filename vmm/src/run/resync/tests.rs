use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::ft::disk::copy::{PairingId, Plan, Record, Scope, Standing};
use crate::ft::disk::resync::{BLOCK_BYTES, Frame};
use crate::host::disk::CopyFile;
use crate::host::test_storage::{LoopDevice, with_mounts};
use crate::run::control::Control;

/// Two chunks, and a bit of a third.
const BYTES: u64 = (2 << 20) + 512;

/// A host with two disks of its own.
struct Host {
    directory: tempfile::TempDir,
    /// Over the two files, if these are not the disks themselves.
    devices: Vec<LoopDevice>,
}

impl Host {
    fn new(fill: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = Self {
            directory,
            devices: Vec::new(),
        };
        for path in host.paths() {
            let file = File::create(&path).unwrap();
            file.set_len(BYTES).unwrap();
            if fill != 0 {
                file.write_all_at(&[fill; 3000], 70_000).unwrap();
            }
        }
        host
    }

    /// The same on block devices, if this process may make any.
    fn on_devices(fill: u8) -> Result<Self, String> {
        let mut host = Self::new(fill);
        for path in host.paths() {
            host.devices.push(LoopDevice::new(&path, 512)?);
        }
        Ok(host)
    }

    fn paths(&self) -> [PathBuf; 2] {
        ["a", "b"].map(|name| self.directory.path().join(name))
    }

    /// As a process that starts finds them.
    fn open(&self) -> Vec<CopyFile> {
        if self.devices.is_empty() {
            let open = |path: &PathBuf| CopyFile::open(path, BYTES, None).unwrap();
            return self.paths().iter().map(open).collect();
        }
        let records = Some(self.directory.path());
        let open = |device: &LoopDevice| CopyFile::open(&device.0, BYTES, records).unwrap();
        self.devices.iter().map(open).collect()
    }

    fn content(&self) -> Vec<Vec<u8>> {
        let read = |path: &PathBuf| std::fs::read(path).unwrap();
        self.paths().iter().map(read).collect()
    }

    fn is_whole(&self) -> bool {
        self.open().iter().all(|copy| copy.check_whole().is_ok())
    }
}

/// Carries what comes from one end to the other, `bytes` in all.
fn carry(mut from: UnixStream, mut to: UnixStream, bytes: &std::sync::atomic::AtomicI64) {
    let mut buffer = [0; 4096];
    while let Ok(read) = from.read(&mut buffer) {
        let left = bytes.fetch_sub(read as i64, std::sync::atomic::Ordering::Relaxed);
        if read == 0 || left < read as i64 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // Both ways: the connection is lost.
    let _ended = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

type Ended = Result<ResyncProgress, ResyncError>;

/// A resync over a connection that is lost after `cut` bytes: how it ended for the primary and for the backup.
fn resync(
    primary: &Host,
    backup: &Host,
    pairing: u128,
    cut: Option<u32>,
    overwrite: bool,
) -> (Ended, Ended) {
    let (ours, near) = UnixStream::pair().unwrap();
    let (theirs, far) = UnixStream::pair().unwrap();
    let left = std::sync::atomic::AtomicI64::new(cut.map_or(i64::MAX, i64::from));
    let control = Control::new().unwrap();
    std::thread::scope(|scope| {
        let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
        scope.spawn(|| carry(near, far, &left));
        scope.spawn(|| carry(back.0, back.1, &left));
        let lead = scope.spawn(|| {
            let mut line = Line::new(ours.into(), control.clone());
            let mut copies = primary.open();
            serve(&mut line, &mut copies, PairingId(pairing), &mut |_| ())
        });
        let mut line = Line::new(theirs.into(), control.clone());
        let mut copies = backup.open();
        let states = copies
            .iter_mut()
            .map(|copy| copy.state().unwrap())
            .collect();
        let joined = join(&mut line, &mut copies, states, overwrite, &mut |_| ());
        drop(line);
        (lead.join().unwrap(), joined)
    })
}

fn equal(primary: &Host, backup: &Host) -> bool {
    primary.content() == backup.content()
}

#[test]
fn a_blank_disk_becomes_a_copy_and_later_only_what_may_differ_is_compared() {
    let (primary, backup) = (Host::new(5), Host::new(0));
    let (lead, join) = resync(&primary, &backup, 1, None, false);
    // Two disks, one block on each.
    let blocks = 2 * crate::ft::disk::resync::blocks_of(BYTES);
    assert_eq!(
        lead.unwrap(),
        ResyncProgress {
            compared: blocks,
            to_compare: blocks,
            differed: 2
        }
    );
    join.unwrap();
    assert!(equal(&primary, &backup));
    let standing = |host: &Host| host.open()[0].record().unwrap().standing;
    assert_eq!(
        (standing(&primary), standing(&backup)),
        (Standing::Led, Standing::Followed)
    );
    // The backup writes to its last chunk of one disk, and goes live.
    let mut copies = backup.open();
    copies[1].stand(Standing::Alone).unwrap();
    copies[1].mark(2 << 20, 512);
    copies[1].commit().unwrap();
    copies[1].write_block(32, &[9; 512]).unwrap();
    drop(copies);
    let (lead, join) = resync(&backup, &primary, 2, None, false);
    let progress = lead.unwrap();
    assert_eq!((progress.compared, progress.differed), (1, 1));
    join.unwrap();
    assert!(equal(&primary, &backup));
    assert_eq!(primary.content()[1].last(), Some(&9));
}

#[test]
fn block_devices_are_made_equal_with_their_records_elsewhere() {
    let test = "block_devices_are_made_equal_with_their_records_elsewhere";
    with_mounts(test, |_| {
        let (primary, backup) = (Host::on_devices(5)?, Host::on_devices(0)?);
        // What is on a device is equal once it is durable: the files beneath have it then.
        let equal = || {
            for copy in primary.open().iter().chain(&backup.open()) {
                copy.sync().unwrap();
            }
            equal(&primary, &backup)
        };
        let (lead, join) = resync(&primary, &backup, 1, None, false);
        assert_eq!((lead.unwrap().differed, join.is_ok()), (2, true));
        assert!(equal());
        let records = |host: &Host| {
            let entries = host.directory.path().read_dir().unwrap();
            let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
            let ends = |name: &std::ffi::OsString| name.to_string_lossy().ends_with(".copy");
            entries.map(name).filter(ends).count()
        };
        assert_eq!((records(&primary), records(&backup)), (2, 2));
        // The backup goes live and removes what was on the first disk, and writes to the second.
        let mut copies = backup.open();
        for copy in &mut copies {
            copy.stand(Standing::Alone).unwrap();
            copy.mark(0, 1 << 20);
            copy.commit().unwrap();
        }
        copies[0].zero_block(1).unwrap();
        copies[1].write_block(0, &[9; BLOCK_BYTES]).unwrap();
        drop(copies);
        let (lead, join) = resync(&backup, &primary, 2, None, false);
        let blocks = 2 * (1 << 20) / BLOCK_BYTES as u64;
        let progress = lead.unwrap();
        assert_eq!((progress.compared, progress.differed), (blocks, 2));
        join.unwrap();
        assert!(equal());
        assert!(primary.content()[0].iter().all(|byte| *byte == 0));
        Ok(())
    });
}

#[test]
fn what_is_not_known_to_be_a_copy_is_left_as_it_is_unless_it_is_equal() {
    let (primary, backup) = (Host::new(5), Host::new(6));
    let before = backup.content();
    let (lead, join) = resync(&primary, &backup, 1, None, false);
    // The primary may find the connection closed before it has heard why.
    let told = lead.unwrap_err();
    let heard = matches!(told, ResyncError::Refused(_) | ResyncError::Closed);
    assert!(heard && !told.is_ours(), "{told}");
    let refused = join.unwrap_err();
    assert!(
        matches!(
            refused,
            ResyncError::Refused(CopyRefusal::NoCopy {
                disk: 0,
                offset: 65_536
            })
        ),
        "{refused}"
    );
    assert!(refused.to_string().contains("--overwrite-disk"));
    assert_eq!(backup.content(), before);
    assert!(backup.open()[0].record().is_none());
    let same = Host::new(5);
    resync(&primary, &same, 2, None, false).1.unwrap();
    resync(&primary, &backup, 3, None, true).1.unwrap();
    assert!(equal(&primary, &backup));
}

#[test]
fn an_older_copy_is_no_primary() {
    let (primary, backup) = (Host::new(5), Host::new(0));
    resync(&primary, &backup, 1, None, false).1.unwrap();
    backup.open()[0].stand(Standing::Alone).unwrap();
    let before = backup.content();
    for overwrite in [false, true] {
        let (lead, join) = resync(&primary, &backup, 2, None, overwrite);
        for refused in [lead, join] {
            let refused = refused.unwrap_err();
            assert!(
                matches!(refused, ResyncError::Refused(CopyRefusal::Stale { .. })),
                "{refused}"
            );
            assert!(!refused.is_ours(), "the primary waits on");
        }
    }
    assert_eq!(backup.content(), before);
}

/// What a backup makes of a primary that speaks so after the plans.
fn told(scope: Scope, frames: &[Frame]) -> ResyncError {
    let host = Host::new(5);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let control = Control::new().unwrap();
    let mut line = Line::new(ours.into(), control.clone());
    let plan = Plan {
        scope,
        overwrite: true,
    };
    line.send(&Frame::Plans(vec![plan; 2])).unwrap();
    for frame in frames {
        line.send(frame).unwrap();
    }
    let mut copies = host.open();
    let states = copies
        .iter_mut()
        .map(|copy| copy.state().unwrap())
        .collect();
    let mut theirs = Line::new(theirs.into(), control);
    let error = join(&mut theirs, &mut copies, states, true, &mut |_| ()).unwrap_err();
    drop(copies);
    let content = host.content();
    assert_eq!(content, Host::new(5).content(), "{error}");
    error
}

#[test]
fn a_peer_that_speaks_out_of_turn_changes_nothing() {
    use crate::ft::disk::resync::BlockDigest;
    let digest = |block: u64| BlockDigest {
        block: block.into(),
        digest: 1.into(),
    };
    let digests = |disk, block| Frame::Digests {
        disk,
        digests: vec![digest(block)],
    };
    let data = |block, bytes| Frame::Data {
        disk: 0,
        block,
        bytes: vec![1; bytes],
    };
    let refused = |frames: &[Frame]| told(Scope::All, frames);
    for unasked in [data(0, BLOCK_BYTES), Frame::Zeros { disk: 9, block: 1 }] {
        assert!(matches!(refused(&[unasked]), ResyncError::Block { .. }));
    }
    let other = refused(&[digests(0, 1), data(0, BLOCK_BYTES)]);
    assert!(
        matches!(other, ResyncError::Block { found: 0, .. }),
        "{other}"
    );
    let far = refused(&[digests(0, 33)]);
    assert!(matches!(far, ResyncError::Block { found: 33, .. }), "{far}");
    let disk = refused(&[digests(2, 0)]);
    assert!(
        matches!(
            disk,
            ResyncError::Disk {
                found: 2,
                expected: 2
            }
        ),
        "{disk}"
    );
    let short = refused(&[digests(0, 1), data(1, 512)]);
    assert!(
        matches!(short, ResyncError::Length { found: 512, .. }),
        "{short}"
    );
    let early = refused(&[digests(0, 1), Frame::Finish(PairingId(1))]);
    assert!(
        matches!(
            early,
            ResyncError::OutOfTurn {
                found: "finish",
                ..
            }
        ),
        "{early}"
    );
    let state = refused(&[Frame::Finished(PairingId(1))]);
    assert!(matches!(state, ResyncError::OutOfTurn { .. }), "{state}");
}

/// What a side has gone through.
#[derive(Debug, Clone, Copy, Default)]
struct History {
    /// The last resync that ended for it.
    pairing: Option<u128>,
    led: bool,
    alone: bool,
    wrote: bool,
}

#[derive(Debug, Clone)]
enum Step {
    /// A first or later write of a machine that runs there, and whether it comes to pass after it is noted.
    Write {
        side: usize,
        disk: usize,
        at: u64,
        byte: u8,
        falls_before: bool,
    },
    Alone {
        side: usize,
        both_records: bool,
    },
    Resync {
        primary: usize,
        cut: Option<u32>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let cut = prop_oneof![1 => Just(None), 1 => (0u32..2_000).prop_map(Some), 1 => (0u32..400_000).prop_map(Some)];
    prop_oneof![
        5 => (0usize..2, 0usize..2, 0..BYTES / 512, any::<u8>(), any::<bool>()).prop_map(
            |(side, disk, at, byte, falls_before)| Step::Write { side, disk, at, byte, falls_before }
        ),
        1 => (0usize..2, any::<bool>()).prop_map(|(side, both_records)| Step::Alone { side, both_records }),
        3 => (0usize..2, cut).prop_map(|(primary, cut)| Step::Resync { primary, cut }),
    ]
}

fn write(path: &Path, at: u64, byte: u8) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&[byte; 512], at * 512).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever befell either side, and however often the connection was lost: once a resync has ended for both,
    /// their copies are equal, and what was overwritten was not the later.
    #[test]
    fn copies_become_equal_to_the_later_one_whatever_befell_them(
        second in prop_oneof![Just(0u8), Just(5), Just(6)],
        steps in proptest::collection::vec(step(), 1..24),
    ) {
        let hosts = [Host::new(5), Host::new(second)];
        let mut histories = [History::default(); 2];
        for (number, step) in (1u128..).zip(steps) {
            match step {
                // A machine runs where there is a record, or it would have been none of a pair's.
                Step::Write { side, disk, at, byte, falls_before } => {
                    let host = &hosts[side];
                    if histories[side].pairing.is_none() || !host.is_whole() {
                        continue;
                    }
                    let mut copies = host.open();
                    copies[disk].mark(at * 512, 512);
                    if falls_before {
                        continue;
                    }
                    copies[disk].commit().unwrap();
                    write(&host.paths()[disk], at, byte);
                    histories[side].wrote = true;
                }
                Step::Alone { side, both_records } => {
                    if histories[side].pairing.is_none() || !hosts[side].is_whole() {
                        continue;
                    }
                    for copy in hosts[side].open().iter_mut().take(1 + usize::from(both_records)) {
                        copy.stand(Standing::Alone).unwrap();
                    }
                    histories[side].alone = true;
                }
                Step::Resync { primary, cut } => {
                    let (first, second) = (&hosts[primary], &hosts[1 - primary]);
                    if !first.is_whole() {
                        continue;
                    }
                    let (truth, theirs) = (first.content(), second.content());
                    let was_whole = second.is_whole();
                    let (lead, joined) = resync(first, second, number, cut, false);
                    prop_assert_eq!(&first.content(), &truth, "a primary changes nothing");
                    if matches!(joined, Err(ResyncError::Refused(_))) {
                        prop_assert_eq!(second.content(), theirs);
                        continue;
                    }
                    if second.content() == theirs && joined.is_err() {
                        continue;
                    }
                    // Something was overwritten, or all is said to be equal.
                    let (ours, lost) = (histories[primary], histories[1 - primary]);
                    if was_whole && lost.pairing.is_some() {
                        if lost.pairing == ours.pairing {
                            prop_assert!(!lost.alone && (!lost.led || ours.alone), "{ours:?} {lost:?}");
                        } else {
                            prop_assert!(!lost.alone && !lost.led && !lost.wrote, "{ours:?} {lost:?}");
                        }
                    }
                    if joined.is_err() {
                        prop_assert!(!second.is_whole(), "written in part, and not said to be");
                        continue;
                    }
                    prop_assert!(equal(first, second));
                    let history = History { pairing: Some(number), ..History::default() };
                    histories[1 - primary] = history;
                    if lead.is_ok() {
                        histories[primary] = History { led: true, ..history };
                    }
                }
            }
        }
        // A record of a pairing that both know of says what may differ.
        let records = hosts.each_ref().map(Host::open);
        for (ours, theirs) in records[0].iter().zip(&records[1]) {
            if let (Some(ours), Some(theirs)) = (ours.record(), theirs.record())
                && ours.pairing == theirs.pairing
            {
                let compared: Vec<u64> = crate::ft::disk::resync::blocks_to_compare(
                    Scope::Marked,
                    &ours.map,
                    Some(&theirs.map),
                )
                .collect();
                let disk = records[0].iter().position(|copy| std::ptr::eq(copy.record().unwrap(), ours));
                let disk = disk.unwrap();
                let contents = [hosts[0].content(), hosts[1].content()];
                let blocks = contents[0][disk].chunks(BLOCK_BYTES).zip(contents[1][disk].chunks(BLOCK_BYTES));
                for (block, (one, other)) in (0u64..).zip(blocks) {
                    prop_assert!(one == other || compared.contains(&block), "block {block} of disk {disk}");
                }
            }
        }
    }
}

/// A record whose pairing nobody has is as good as none, but for the right to overwrite the disk.
#[test]
fn a_backup_that_fell_in_the_middle_is_filled_when_it_comes_again() {
    let (primary, backup) = (Host::new(5), Host::new(0));
    for mut copy in backup.open() {
        let record = Record::new(PairingId(0), Standing::Filling, BYTES);
        copy.replace(record).unwrap();
        copy.write_block(1, &[6; BLOCK_BYTES]).unwrap();
    }
    resync(&primary, &backup, 1, None, false).1.unwrap();
    assert!(equal(&primary, &backup));
}
