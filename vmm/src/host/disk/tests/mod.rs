//! Disks on real files, file systems and devices.

mod model;
mod opening;
mod transfers;
mod trouble;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_perf::stamp;

use super::{DiskFile, DiskOptions, Disks, Sharing};
use crate::ft::disk::{DiskOp, DiskRequest, DiskStatus, RequestId};
use crate::machine::bounce::BounceRegion;

/// Longest wait for a request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bounce buffers of the tests: so many of so many bytes.
const BUFFERS: u64 = 16;
const BUFFER_BYTES: u64 = 128 << 10;

/// Disks under test, with their numbers and buffers.
struct Rig {
    disks: Disks,
    region: BounceRegion,
    last: RequestId,
}

fn file(path: &Path, bytes: u64, sharing: Sharing) -> DiskFile {
    DiskFile {
        path: path.to_owned(),
        bytes,
        read_only: false,
        sharing,
    }
}

/// A file of `bytes` bytes in `directory`, written in full.
fn written(directory: &Path, bytes: u64) -> PathBuf {
    let path = directory.join("disk");
    let file = File::create(&path).expect("a file");
    file.write_all_at(&vec![0x5a; bytes as usize], 0)
        .expect("written");
    path
}

impl Rig {
    fn new(files: &[DiskFile], options: &DiskOptions) -> Self {
        let region = BounceRegion::new(BUFFERS * BUFFER_BYTES).expect("memory");
        let disks = Disks::open(files, region.clone(), options).expect("opened");
        Self {
            disks,
            region,
            last: 0,
        }
    }

    /// One disk with every option at its default.
    fn one(path: &Path, bytes: u64) -> Self {
        let file = file(path, bytes, Sharing::Shared);
        Self::new(&[file], &DiskOptions::default())
    }

    /// A request with the buffer that its number gives it.
    fn request(&mut self, op: DiskOp, offset: u64, length: u64) -> DiskRequest {
        self.last += 1;
        DiskRequest {
            id: self.last,
            disk: 0,
            op,
            offset,
            length,
            bounce: (self.last % BUFFERS) * BUFFER_BYTES,
            digest: 0,
        }
    }

    fn start(&mut self, request: &DiskRequest) {
        self.disks.submit(request);
        self.disks.flush(u64::MAX).expect("handed over");
    }

    /// The next end of a request, with waiting for it.
    fn next(&mut self) -> (RequestId, DiskStatus) {
        let give_up = stamp::now() + PATIENCE.as_nanos() as u64;
        loop {
            if let Some(ended) = self.disks.completed() {
                return ended;
            }
            assert!(stamp::now() < give_up, "nothing ends: {:?}", self.disks);
            self.disks.flush(u64::MAX).expect("handed over");
            self.disks
                .wait(Duration::from_millis(100))
                .expect("waited for");
        }
    }

    fn run(&mut self, op: DiskOp, offset: u64, length: u64) -> DiskStatus {
        let request = self.request(op, offset, length);
        self.start(&request);
        let (id, status) = self.next();
        assert_eq!(id, request.id);
        status
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> DiskStatus {
        let request = self.request(DiskOp::Write { durable: false }, offset, data.len() as u64);
        self.region.write(request.bounce, data);
        self.start(&request);
        self.next().1
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, DiskStatus> {
        let request = self.request(DiskOp::Read, offset, length);
        self.region
            .write(request.bounce, &vec![0xee; length as usize]);
        self.start(&request);
        match self.next().1 {
            DiskStatus::Done => {
                let mut data = vec![0; length as usize];
                self.region.read(request.bounce, &mut data);
                Ok(data)
            }
            status => Err(status),
        }
    }
}
