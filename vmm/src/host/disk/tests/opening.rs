//! What is opened, how, and what is refused.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use lockstep_perf::not_run;

use super::{Rig, file, written};
use crate::ft::disk::{DiskOp, DiskStatus};
use crate::host::disk::{DiskError, DiskFile, DiskOptions, Disks, QUEUE_DEPTH_RANGE, Sharing};
use crate::host::test_storage::{LoopDevice, with_mounts};
use crate::machine::bounce::BounceRegion;

fn refused(file: DiskFile) -> DiskError {
    let region = BounceRegion::new(4096).expect("memory");
    Disks::open(&[file], region, &DiskOptions::default()).expect_err("refused")
}

#[test]
fn a_missing_file_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let error = refused(file(
        &directory.path().join("absent"),
        8192,
        Sharing::Shared,
    ));
    let said = error.to_string();
    assert!(
        matches!(error, DiskError::Open { .. }) && said.contains("truncate -s 8192"),
        "{said}"
    );
}

#[test]
fn a_file_of_another_size_is_refused_with_both_sizes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), 8192);
    let error = refused(file(&path, 4096, Sharing::Shared));
    assert!(matches!(
        error,
        DiskError::WrongSize {
            found: 8192,
            expected: 4096,
            ..
        }
    ));
    let said = error.to_string();
    assert!(said.contains("8192") && said.contains("4096"), "{said}");
}

#[test]
fn what_is_no_disk_is_refused_and_never_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let fifo = directory.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
    assert!(made.success());
    for (path, kind) in [
        (directory.path(), "directory"),
        (Path::new("/dev/full"), "character device"),
        (&fifo, "FIFO"),
    ] {
        let error = refused(file(path, 512, Sharing::Own));
        assert!(
            matches!(error, DiskError::NotADisk { found, .. } if found == kind),
            "{error}"
        );
    }
}

#[test]
fn a_queue_depth_out_of_range_is_refused_with_the_range() {
    for queue_depth in [0, QUEUE_DEPTH_RANGE.end() + 1] {
        let options = DiskOptions {
            queue_depth,
            ..DiskOptions::default()
        };
        let region = BounceRegion::new(4096).expect("memory");
        let error = Disks::open(&[], region, &options).expect_err("refused");
        assert!(error.to_string().contains("1 to 1024"), "{error}");
    }
}

#[test]
fn a_file_larger_than_this_process_may_write_is_refused() {
    const CHILD: &str = "LOCKSTEP_TEST_WITH_SMALL_FILES";
    if let Some(path) = std::env::var_os(CHILD) {
        let error = refused(file(Path::new(&path), 8192, Sharing::Own));
        assert!(
            matches!(
                error,
                DiskError::FileSizeLimit {
                    found: 512..4097,
                    ..
                }
            ),
            "{error}"
        );
        return;
    }
    // A limit holds for a whole process, so it gets one of its own.
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), 8192);
    let child = Command::new("sh")
        .args(["-c", r#"ulimit -f 1; exec "$0" "$@""#])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "--nocapture"])
        .arg("host::disk::tests::opening::a_file_larger_than_this_process_may_write_is_refused")
        .env(CHILD, &path)
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

#[test]
fn a_disk_of_a_file_system_in_memory_is_said_to_be_in_the_page_cache() {
    let shm = Path::new("/dev/shm");
    let Ok(directory) = tempfile::tempdir_in(shm) else {
        not_run::report(
            "a_disk_of_a_file_system_in_memory_is_said_to_be_in_the_page_cache",
            "needs a tmpfs at /dev/shm",
        );
        return;
    };
    let path = written(directory.path(), 8192);
    for (sharing, durable) in [(Sharing::Shared, true), (Sharing::Own, false)] {
        let mut rig = Rig::new(&[file(&path, 8192, sharing)], &DiskOptions::default());
        let health = rig.disks.health().remove(0);
        assert_eq!(
            (health.direct, health.durable_writes),
            (false, durable),
            "{sharing:?}"
        );
        assert_eq!(rig.write(512, &[7; 1024]), DiskStatus::Done);
        assert_eq!(rig.read(512, 1024), Ok(vec![7; 1024]));
    }
}

#[test]
fn a_read_only_disk_is_read_and_flushed_and_refuses_every_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), 8192);
    let mut rig = Rig::new(
        &[DiskFile {
            read_only: true,
            ..file(&path, 8192, Sharing::Shared)
        }],
        &DiskOptions::default(),
    );
    assert_eq!(rig.read(0, 4096), Ok(vec![0x5a; 4096]));
    assert_eq!(rig.run(DiskOp::Flush, 0, 0), DiskStatus::Done);
    for op in [
        DiskOp::Write { durable: false },
        DiskOp::Discard,
        DiskOp::WriteZeroes { unmap: true },
    ] {
        assert_eq!(rig.run(op, 0, 4096), DiskStatus::Failed, "{op:?}");
    }
    assert_eq!(rig.read(0, 4096), Ok(vec![0x5a; 4096]));
}

#[test]
fn memory_that_the_kernel_does_not_register_is_used_all_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), 8192);
    // One page more than a registered buffer may have; only what is used takes memory.
    let region = BounceRegion::new((1 << 30) + 4096).expect("address space");
    let disk = file(&path, 8192, Sharing::Own);
    let disks = Disks::open(&[disk], region.clone(), &DiskOptions::default()).expect("opened");
    assert!(!disks.has_fixed_buffers());
    let mut rig = Rig {
        disks,
        region,
        last: 0,
    };
    assert_eq!(rig.write(0, &[9; 4096]), DiskStatus::Done);
    assert_eq!(rig.read(0, 4096), Ok(vec![9; 4096]));
    let small = Rig::one(&path, 8192);
    if !small.disks.has_fixed_buffers() {
        not_run::report(
            "memory_that_the_kernel_does_not_register_is_used_all_the_same",
            "registered buffers: RLIMIT_MEMLOCK is too low for 2 MiB",
        );
    }
}

#[test]
fn a_block_device_is_a_disk_of_its_own_alignment() {
    with_mounts(
        "a_block_device_is_a_disk_of_its_own_alignment",
        |directory| {
            let path = written(directory, 1 << 20);
            for sector in [512, 4096] {
                let device = LoopDevice::new(&path, sector)?;
                let mut rig = Rig::one(&device.0, 1 << 20);
                let health = rig.disks.health().remove(0);
                assert_eq!((health.direct, health.alignment), (true, sector));
                assert!(!health.durable_writes, "a device has it when it says so");
                // Sectors are 512 bytes whatever the device's are.
                for (offset, length) in [(4096, 8192), (512, 512), (3584, 1024)] {
                    let data = vec![offset as u8 | 1; length];
                    assert_eq!(rig.write(offset, &data), DiskStatus::Done);
                    assert_eq!(rig.read(offset, length as u64), Ok(data));
                }
                assert_eq!(rig.run(DiskOp::Flush, 0, 0), DiskStatus::Done);
                let mut found = [0; 512];
                let file = File::open(&path).expect("there");
                file.read_exact_at(&mut found, 512).expect("read");
                assert_eq!(found, [1; 512], "durable without a word");
            }
            Ok(())
        },
    );
}
