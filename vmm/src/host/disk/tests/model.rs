//! Random requests, many under way, beside a disk that is a vector.

use std::collections::BTreeMap;
use std::path::Path;

use lockstep_perf::not_run;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{BUFFERS, Rig, file, written};
use crate::ft::disk::{DiskOp, DiskRequest, DiskStatus};
use crate::host::disk::{DiskOptions, Sharing};
use crate::host::test_storage::{LoopDevice, with_mounts};

const DISK_BYTES: u64 = 256 << 10;
const SECTOR: u64 = 512;

/// What a guest asks for next: kind, place and content.
#[derive(Debug, Clone, Copy)]
struct Step {
    op: DiskOp,
    offset: u64,
    length: u64,
    fill: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let op = prop_oneof![
        8 => Just(DiskOp::Read),
        8 => Just(DiskOp::Write { durable: false }),
        1 => Just(DiskOp::Write { durable: true }),
        1 => Just(DiskOp::Flush),
        1 => Just(DiskOp::Discard),
        1 => any::<bool>().prop_map(|unmap| DiskOp::WriteZeroes { unmap }),
    ];
    // Whole blocks as guests write them, and single sectors as partition tables are read.
    let place = prop_oneof![
        3 => (0..DISK_BYTES / 4096, 1_u64..8).prop_map(|(at, count)| (at * 4096, count * 4096)),
        1 => (0..DISK_BYTES / SECTOR, 1_u64..20).prop_map(|(at, count)| (at * SECTOR, count * SECTOR)),
    ];
    let step = (op, place, any::<u8>()).prop_map(|(op, (offset, length), fill)| match op {
        DiskOp::Flush => Step {
            op,
            offset: 0,
            length: 0,
            fill,
        },
        _ => Step {
            op,
            offset,
            length: length.min(DISK_BYTES - offset),
            fill,
        },
    });
    prop::collection::vec(step, 1..80)
}

/// What is under way, with what a read must bring.
struct UnderWay {
    request: DiskRequest,
    expected: Vec<u8>,
}

struct Model {
    rig: Rig,
    content: Vec<u8>,
    under_way: BTreeMap<u64, UnderWay>,
}

impl Model {
    /// Takes one end, and compares.
    fn settle_one(&mut self) -> Result<(), TestCaseError> {
        let (id, status) = self.rig.next();
        let Some(ended) = self.under_way.remove(&id) else {
            return Err(TestCaseError::fail(format!(
                "{id} ended and was not under way"
            )));
        };
        let UnderWay { request, expected } = ended;
        let range = request.offset as usize..(request.offset + request.length) as usize;
        match request.op {
            DiskOp::Read => {
                prop_assert_eq!(status, DiskStatus::Done);
                let mut found = vec![0; expected.len()];
                self.rig.region.read(request.bounce, &mut found);
                prop_assert!(found == expected, "{request:?} read something else");
            }
            DiskOp::Write { .. } | DiskOp::Flush => prop_assert_eq!(status, DiskStatus::Done),
            DiskOp::Discard | DiskOp::WriteZeroes { .. } => match status {
                DiskStatus::Done => self.content[range].fill(0),
                DiskStatus::Unsupported => {}
                DiskStatus::Failed => prop_assert!(false, "{request:?} failed"),
            },
        }
        Ok(())
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let request = self.rig.request(step.op, step.offset, step.length);
        // As the schedule does: no two that conflict, and no buffer twice.
        while self.under_way.values().any(|other| {
            other.request.conflicts(&request) || other.request.bounce == request.bounce
        }) {
            self.settle_one()?;
        }
        let range = step.offset as usize..(step.offset + step.length) as usize;
        let mut expected = Vec::new();
        match step.op {
            DiskOp::Read => {
                expected = self.content[range].to_vec();
                let rubbish = vec![!step.fill; step.length as usize];
                self.rig.region.write(request.bounce, &rubbish);
            }
            DiskOp::Write { .. } => {
                let data: Vec<u8> = (0..step.length)
                    .map(|n| step.fill.wrapping_add((n / SECTOR) as u8))
                    .collect();
                self.rig.region.write(request.bounce, &data);
                self.content[range].copy_from_slice(&data);
            }
            _ => {}
        }
        self.rig.disks.submit(&request);
        self.under_way
            .insert(request.id, UnderWay { request, expected });
        // Some go together.
        if step.fill.is_multiple_of(3) {
            self.rig.disks.flush(u64::MAX).expect("handed over");
        }
        Ok(())
    }
}

fn agrees(
    path: &Path,
    content: Vec<u8>,
    depth: u32,
    steps: &[Step],
) -> Result<Vec<u8>, TestCaseError> {
    let options = DiskOptions {
        queue_depth: depth,
        ..DiskOptions::default()
    };
    let rig = Rig::new(&[file(path, DISK_BYTES, Sharing::Own)], &options);
    let mut model = Model {
        rig,
        content,
        under_way: BTreeMap::new(),
    };
    for step in steps {
        model.take(*step)?;
    }
    while !model.under_way.is_empty() {
        model.settle_one()?;
    }
    prop_assert!(model.rig.disks.is_idle());
    for offset in (0..DISK_BYTES).step_by(65_536) {
        let found = model.rig.read(offset, 65_536).expect("read");
        let expected = &model.content[offset as usize..][..65_536];
        prop_assert!(found == expected, "the disk differs at {offset}..");
    }
    Ok(model.content)
}

/// Each case goes on with the disk that the one before has left.
fn random_requests_agree(path: &Path, cases: u32) {
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let content = std::cell::RefCell::new(vec![0x5a; DISK_BYTES as usize]);
    runner
        .run(&(steps(), 1..(BUFFERS as u32)), |(steps, depth)| {
            let before = content.borrow().clone();
            let after = agrees(path, before, depth, &steps)?;
            content.replace(after);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn random_requests_to_a_file_agree_with_a_vector() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), DISK_BYTES);
    random_requests_agree(&path, 40);
}

#[test]
fn random_requests_through_the_page_cache_agree_with_a_vector() {
    let test = "random_requests_through_the_page_cache_agree_with_a_vector";
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        return not_run::report(test, "needs a tmpfs at /dev/shm");
    };
    let path = written(directory.path(), DISK_BYTES);
    random_requests_agree(&path, 100);
}

#[test]
fn random_requests_to_a_device_with_blocks_of_4096_agree_with_a_vector() {
    let test = "random_requests_to_a_device_with_blocks_of_4096_agree_with_a_vector";
    with_mounts(test, |directory| {
        let path = written(directory, DISK_BYTES);
        let device = LoopDevice::new(&path, 4096)?;
        random_requests_agree(&device.0, 30);
        Ok(())
    });
}
