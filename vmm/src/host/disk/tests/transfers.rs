//! What is asked for is done, when it is asked for.

use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use lockstep_perf::stamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{BUFFERS, PATIENCE, Rig, file, written};
use crate::ft::disk::{DiskOp, DiskRequest, DiskStatus};
use crate::host::disk::{DiskOptions, MAX_TRANSFER_BYTES, Sharing};

const MIB: u64 = 1 << 20;
const WRITE: DiskOp = DiskOp::Write { durable: false };

#[test]
fn only_a_flush_starts_what_was_taken_in() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), MIB);
    let mut rig = Rig::one(&path, MIB);
    let request = rig.request(WRITE, 0, 4096);
    rig.region.write(request.bounce, &[1; 4096]);
    rig.disks.submit(&request);
    for _ in 0..20 {
        assert_eq!(rig.disks.completed(), None);
        rig.disks.wait(Duration::from_millis(1)).expect("no wait");
    }
    assert_eq!((rig.disks.in_flight(), rig.disks.waiting()), (0, 1));
    assert_eq!(rig.disks.kernel_entries(), 0);
    drop(rig);
    let found = fs::read(&path).expect("there");
    assert!(found.iter().all(|byte| *byte == 0x5a), "a fenced write");
}

#[test]
fn nothing_starts_once_the_right_to_start_it_has_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), MIB);
    let mut rig = Rig::one(&path, MIB);
    let request = rig.request(WRITE, 0, 4096);
    rig.region.write(request.bounce, &[1; 4096]);
    rig.disks.submit(&request);
    for until in [0, stamp::now()] {
        rig.disks.flush(until).expect("nothing to do");
        assert_eq!((rig.disks.in_flight(), rig.disks.waiting()), (0, 1));
    }
    assert_eq!(rig.disks.kernel_entries(), 0);
    assert_eq!(rig.disks.completed(), None);
    let found = fs::read(&path).expect("there");
    assert!(found.iter().all(|byte| *byte == 0x5a), "a fenced write");
    rig.disks.flush(u64::MAX).expect("handed over");
    assert_eq!(rig.next(), (request.id, DiskStatus::Done));
    assert_eq!(fs::read(&path).expect("there")[..4096], [1; 4096]);
}

/// A right that ends in the middle of a flush ends there, whatever has been queued by then.
#[test]
fn what_a_flush_did_not_get_to_in_time_never_starts() {
    const DEPTH: u64 = 1000;
    let options = DiskOptions {
        queue_depth: DEPTH as u32,
        ..DiskOptions::default()
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), DEPTH * 4096);
    let mut partly = 0;
    // How long a flush takes is the host's affair: some length is in the middle of it.
    for micros in (0..).step_by(20).take(200) {
        let mut rig = Rig::new(&[file(&path, DEPTH * 4096, Sharing::Own)], &options);
        for n in 0..DEPTH {
            let request = rig.request(DiskOp::Read, n * 4096, 4096);
            rig.disks.submit(&request);
        }
        let until = stamp::now() + micros * 1000;
        rig.disks.flush(until).expect("handed over");
        let waiting = rig.disks.waiting();
        for _ in 0..DEPTH - waiting as u64 {
            while rig.disks.completed().is_none() {
                rig.disks.wait(PATIENCE).expect("waited for");
            }
        }
        rig.disks
            .wait(Duration::from_millis(1))
            .expect("waited for");
        assert_eq!(
            rig.disks.completed(),
            None,
            "one of the {waiting} that wait has started"
        );
        partly += u32::from(0 < waiting && waiting < DEPTH as usize);
        if waiting == 0 {
            break;
        }
    }
    assert!(partly > 0, "no flush was cut off");
}

#[test]
fn as_many_as_the_queue_is_deep_go_a_pair_with_each_entry_and_the_rest_wait() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), MIB);
    let options = DiskOptions {
        queue_depth: 9,
        ..DiskOptions::default()
    };
    let mut rig = Rig::new(&[file(&path, MIB, Sharing::Own)], &options);
    let mut wanted: Vec<u64> = (0..100)
        .map(|n| {
            // Reads may share a buffer here: nobody looks at what they bring.
            let request = rig.request(DiskOp::Read, n * 4096, 4096);
            rig.disks.submit(&request);
            request.id
        })
        .collect();
    rig.disks.flush(u64::MAX).expect("handed over");
    assert_eq!((rig.disks.in_flight(), rig.disks.waiting()), (9, 91));
    assert_eq!(rig.disks.kernel_entries(), 5);
    while !rig.disks.is_idle() {
        let (id, status) = rig.next();
        assert_eq!(status, DiskStatus::Done);
        assert!(rig.disks.in_flight() <= 9);
        wanted.retain(|wanted| *wanted != id);
    }
    assert_eq!(wanted, [0; 0], "each ended once");
    assert_eq!(rig.disks.completed(), None);
}

#[test]
fn a_descriptor_wakes_who_sleeps_until_a_request_ends() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), MIB);
    let mut rig = Rig::one(&path, MIB);
    for n in 0..20 {
        let request = rig.request(DiskOp::Read, n * 4096, 4096);
        rig.start(&request);
        let mut wait = [PollFd::from_borrowed_fd(rig.disks.as_fd(), PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).expect("a time");
        assert_eq!(poll(&mut wait, Some(&patience)), Ok(1), "request {n}");
        assert_eq!(rig.disks.completed(), Some((request.id, DiskStatus::Done)));
    }
}

#[test]
fn what_one_thread_started_another_finishes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), MIB);
    let mut rig = Rig::one(&path, MIB);
    // The first ends before its requests do, perhaps; they are the kernel's.
    let mut rig = std::thread::spawn(move || {
        for n in 0..BUFFERS {
            let request = rig.request(WRITE, n * 4096, 4096);
            rig.region.write(request.bounce, &[n as u8; 4096]);
            rig.disks.submit(&request);
        }
        rig.disks.flush(u64::MAX).expect("handed over");
        rig
    })
    .join()
    .expect("the first thread");
    for _ in 0..BUFFERS {
        assert_eq!(rig.next().1, DiskStatus::Done);
    }
    for n in 0..BUFFERS {
        assert_eq!(rig.read(n * 4096, 4096), Ok(vec![n as u8; 4096]));
    }
}

#[test]
fn holes_are_punched_and_zeroes_written_without_data() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), MIB);
    let mut rig = Rig::one(&path, MIB);
    let blocks = || {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&path).expect("there").blocks()
    };
    rig.run(DiskOp::Flush, 0, 0);
    let before = blocks();
    for (n, op) in [
        DiskOp::Discard,
        DiskOp::WriteZeroes { unmap: true },
        DiskOp::WriteZeroes { unmap: false },
    ]
    .into_iter()
    .enumerate()
    {
        let offset = n as u64 * 262_144;
        let status = rig.run(op, offset, 131_072 + 512);
        if status == DiskStatus::Unsupported {
            lockstep_perf::not_run::report(
                "holes_are_punched_and_zeroes_written_without_data",
                &format!("{op:?}: the file system of the temporary directory refuses it"),
            );
            continue;
        }
        assert_eq!(status, DiskStatus::Done, "{op:?}");
        assert_eq!(rig.read(offset, 65_536), Ok(vec![0; 65_536]), "{op:?}");
        let end = offset + 131_072;
        let mut edge = vec![0; 512];
        edge.extend([0x5a; 512]);
        assert_eq!(rig.read(end, 1024), Ok(edge), "{op:?}");
        if n == 0 {
            assert!(blocks() < before, "a discard gives space back");
        }
    }
    assert_eq!(fs::metadata(&path).expect("there").len(), MIB);
}

#[test]
fn a_request_that_is_not_on_the_disk_fails_without_touching_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), MIB);
    let mut rig = Rig::one(&path, MIB);
    let region = rig.region.bytes();
    let hostile = |disk, offset, length, bounce| DiskRequest {
        id: 7,
        disk,
        op: WRITE,
        offset,
        length,
        bounce,
        digest: 0,
    };
    for request in [
        hostile(0, MIB, 512, 0),
        hostile(0, MIB - 512, 1024, 0),
        hostile(0, u64::MAX - 511, 512, 0),
        hostile(0, u64::MAX - 511, 1024, 0),
        hostile(0, 0, 0, 0),
        hostile(0, 1, 512, 0),
        hostile(0, 0, 100, 0),
        hostile(0, 0, MAX_TRANSFER_BYTES + 512, 0),
        hostile(0, 0, 512, region),
        hostile(0, 0, 8192, region - 4096),
        hostile(0, 0, 512, 1),
        hostile(0, 0, 512, u64::MAX - 4095),
        hostile(1, 0, 512, 0),
        hostile(255, 0, 512, 0),
    ] {
        rig.start(&request);
        assert_eq!(
            rig.disks.completed(),
            Some((7, DiskStatus::Failed)),
            "{request:?}"
        );
        assert!(rig.disks.read_now(&request).is_err(), "{request:?}");
    }
    for op in [DiskOp::Discard, DiskOp::WriteZeroes { unmap: false }] {
        assert_eq!(rig.run(op, MIB - 512, 1024), DiskStatus::Failed);
    }
    drop(rig);
    let found = fs::read(&path).expect("there");
    assert_eq!(found.len() as u64, MIB);
    assert!(found.iter().all(|byte| *byte == 0x5a));
}

#[test]
fn the_backup_reads_what_the_primary_wrote() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), MIB);
    let mut primary = Rig::one(&path, MIB);
    let mut backup = Rig::one(&path, MIB);
    for n in 0..8_u8 {
        let data = vec![n; 8192];
        assert_eq!(primary.write(u64::from(n) * 512, &data), DiskStatus::Done);
        let request = backup.request(DiskOp::Read, u64::from(n) * 512, 8192);
        backup.disks.read_now(&request).expect("read");
        let mut found = vec![0; 8192];
        backup.region.read(request.bounce, &mut found);
        assert_eq!(found, data);
    }
}

#[test]
fn disks_are_told_apart_by_their_numbers() {
    let homes = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let files: Vec<_> = homes
        .iter()
        .map(|home| file(&written(home.path(), MIB), MIB, Sharing::Shared))
        .collect();
    let mut rig = Rig::new(&files, &DiskOptions::default());
    for disk in 0..3_u8 {
        let request = DiskRequest {
            disk,
            ..rig.request(WRITE, 0, 4096)
        };
        rig.region.write(request.bounce, &[disk; 4096]);
        rig.start(&request);
    }
    for _ in 0..3 {
        assert_eq!(rig.next().1, DiskStatus::Done);
    }
    for (disk, file) in files.iter().enumerate() {
        assert_eq!(
            fs::read(&file.path).expect("there")[..4096],
            [disk as u8; 4096]
        );
    }
}
