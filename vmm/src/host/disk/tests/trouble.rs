//! Bad storage: the guest is told what a real disk would tell it.

use std::fs::{File, OpenOptions};
use std::time::{Duration, Instant};

use lockstep_perf::stamp;

use super::{Rig, file, written};
use crate::ft::disk::{DiskOp, DiskStatus};
use crate::host::disk::{DiskError, DiskOptions, Sharing};
use crate::host::test_storage::{Frozen, LoopDevice, mount_ext4, mount_memory, with_mounts};

const MIB: u64 = 1 << 20;

#[test]
fn a_full_file_system_is_a_failed_write_and_a_disk_that_goes_on() {
    with_mounts(
        "a_full_file_system_is_a_failed_write_and_a_disk_that_goes_on",
        |directory| {
            mount_memory("tmpfs", directory, MIB)?;
            let path = directory.join("disk");
            File::create(&path)
                .and_then(|file| file.set_len(4 * MIB))
                .expect("a sparse file");
            let mut rig = Rig::one(&path, 4 * MIB);
            let data = vec![3; 65_536];
            let status: Vec<_> = (0..64).map(|n| rig.write(n * 65_536, &data)).collect();
            let full = status.iter().position(|status| *status != DiskStatus::Done);
            let full = full.expect("1 MiB does not hold 4");
            assert!(full > 0);
            assert!(status[full..].contains(&DiskStatus::Failed));
            let health = rig.disks.health().remove(0);
            assert!(health.errors > 0);
            let said = health.last_error.expect("an error");
            assert!(said.contains("No space left"), "{said}");
            assert_eq!(rig.read(0, 65_536), Ok(data), "what was done stays");
            // Space that the guest gives back is there again.
            assert_eq!(rig.run(DiskOp::Discard, 0, 524_288), DiskStatus::Done);
            assert_eq!(rig.write(3 * MIB, &[4; 4096]), DiskStatus::Done);
            Ok(())
        },
    );
}

#[test]
fn an_error_of_the_medium_is_a_failed_request() {
    with_mounts("an_error_of_the_medium_is_a_failed_request", |directory| {
        mount_memory("tmpfs", directory, MIB)?;
        let path = directory.join("disk");
        File::create(&path)
            .and_then(|file| file.set_len(4 * MIB))
            .expect("a sparse file");
        // A device whose own storage gives out says EIO.
        let device = LoopDevice::new(&path, 512)?;
        let mut rig = Rig::one(&device.0, 4 * MIB);
        let data = vec![5; 131_072];
        let status: Vec<_> = (0..32).map(|n| rig.write(n * 131_072, &data)).collect();
        assert!(status.contains(&DiskStatus::Failed), "{status:?}");
        assert_eq!(status[0], DiskStatus::Done);
        assert_eq!(rig.read(0, 131_072), Ok(data));
        Ok(())
    });
}

#[test]
fn a_disk_that_has_lost_its_end_fails_what_is_not_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), MIB);
    let options = DiskOptions {
        read_retry: Duration::from_millis(50),
        ..DiskOptions::default()
    };
    let mut rig = Rig::new(&[file(&path, MIB, Sharing::Shared)], &options);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(4096))
        .expect("cut");
    assert_eq!(rig.read(0, 4096), Ok(vec![0x5a; 4096]));
    // The first part comes, the rest is asked for again, and is not there.
    assert_eq!(rig.read(0, 16_384), Err(DiskStatus::Failed));
    assert_eq!(rig.read(65_536, 4096), Err(DiskStatus::Failed));
    assert_eq!(rig.disks.health()[0].errors, 2);
    let request = rig.request(DiskOp::Read, 65_536, 4096);
    let begun = Instant::now();
    let error = rig.disks.read_now(&request).expect_err("not there");
    assert!(begun.elapsed() >= options.read_retry, "it is repeated");
    assert!(
        matches!(error, DiskError::Read { offset: 65_536, .. }),
        "{error}"
    );
}

#[test]
fn a_file_system_that_cannot_discard_says_unsupported() {
    with_mounts(
        "a_file_system_that_cannot_discard_says_unsupported",
        |directory| {
            mount_memory("ramfs", directory, MIB)?;
            let path = written(directory, MIB);
            let mut rig = Rig::one(&path, MIB);
            for op in [
                DiskOp::Discard,
                DiskOp::WriteZeroes { unmap: true },
                DiskOp::WriteZeroes { unmap: false },
            ] {
                assert_eq!(rig.run(op, 0, 65_536), DiskStatus::Unsupported, "{op:?}");
            }
            assert_eq!(rig.read(0, 65_536), Ok(vec![0x5a; 65_536]));
            assert_eq!(rig.disks.health()[0].errors, 0, "no fault of the disk");
            Ok(())
        },
    );
}

fn hanging() -> DiskOptions {
    DiskOptions {
        hang_after: Duration::from_millis(100),
        ..DiskOptions::default()
    }
}

#[test]
fn a_disk_that_hangs_is_shown_and_the_guest_is_told_nothing() {
    with_mounts(
        "a_disk_that_hangs_is_shown_and_the_guest_is_told_nothing",
        |directory| {
            let (_device, at) = mount_ext4(directory)?;
            let path = written(&at, MIB);
            let mut rig = Rig::new(&[file(&path, MIB, Sharing::Shared)], &hanging());
            let frozen = Frozen::new(&at)?;
            let request = rig.request(DiskOp::Write { durable: false }, 0, 4096);
            rig.region.write(request.bounce, &[6; 4096]);
            rig.start(&request);
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(300) {
                assert_eq!(rig.disks.completed(), None);
                rig.disks.watch(stamp::now());
                rig.disks
                    .wait(Duration::from_millis(10))
                    .expect("waited for");
            }
            assert!(rig.disks.health()[0].hanging);
            drop(frozen);
            assert_eq!(rig.next(), (request.id, DiskStatus::Done));
            std::thread::sleep(hanging().hang_after);
            rig.disks.watch(stamp::now());
            assert!(!rig.disks.health()[0].hanging, "it answers again");
            assert_eq!(rig.read(0, 4096), Ok(vec![6; 4096]));
            Ok(())
        },
    );
}

#[test]
fn dropping_the_disks_waits_for_what_the_kernel_has() {
    with_mounts(
        "dropping_the_disks_waits_for_what_the_kernel_has",
        |directory| {
            let (_device, at) = mount_ext4(directory)?;
            let path = written(&at, MIB);
            let mut rig = Rig::new(&[file(&path, MIB, Sharing::Shared)], &hanging());
            let frozen = Frozen::new(&at)?;
            for n in 0..4 {
                let request = rig.request(DiskOp::Write { durable: false }, n * 4096, 4096);
                rig.region.write(request.bounce, &[8; 4096]);
                rig.start(&request);
            }
            let begun = Instant::now();
            let (thaw, thawed) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                // It was made in these mounts, and is thawed in them: the thread inherits them.
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(300));
                    drop(frozen);
                    let _ = thaw.send(begun.elapsed());
                });
                drop(rig);
            });
            let thawed = thawed.recv().expect("thawed");
            assert!(begun.elapsed() >= thawed, "dropped in the middle");
            let found = std::fs::read(&path).expect("there");
            assert!(found[..16_384].iter().all(|byte| *byte == 8));
            Ok(())
        },
    );
}
