//! The host's side of a disk, kept at a depth.

use std::time::Duration;

use lockstep_perf::interval::{IntervalRecorder, Series};
use lockstep_perf::stamp;
use lockstep_vmm::ft::disk::{DiskOp, DiskRequest, DiskStatus};
use lockstep_vmm::host::disk::{DiskFile, DiskOptions, Disks, Sharing};
use lockstep_vmm::machine::bounce::BounceRegion;

use super::pattern::Places;
use super::scratch::ScratchFile;
use super::{DiskBenchError, Options, Point};

/// Longest sleep for a completion.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a lap brought.
pub(super) struct Lap {
    pub(super) rate: f64,
    pub(super) latency: Series,
    pub(super) direct: bool,
    pub(super) alignment: u32,
    pub(super) fixed_buffers: bool,
    pub(super) entries_a_request: f64,
}

/// Keeps `point.depth` requests under way for a lap.
pub(super) fn lap(
    point: Point,
    options: &Options,
    file: &ScratchFile,
    seed: u64,
) -> Result<Lap, DiskBenchError> {
    let block = point.pattern.block_bytes();
    let region = BounceRegion::new(block * u64::from(point.depth)).map_err(|error| {
        DiskBenchError::Memory {
            what: "bounce buffers",
            why: error.to_string(),
        }
    })?;
    let disk = DiskFile {
        path: file.path(),
        bytes: file.bytes(),
        read_only: !point.pattern.writes(),
        sharing: Sharing::Shared,
    };
    let disk_options = DiskOptions {
        queue_depth: point.depth,
        ..DiskOptions::default()
    };
    let mut disks = Disks::open(&[disk], region, &disk_options)?;
    let mut places = Places::new(point.pattern, file.bytes(), seed);
    let op = if point.pattern.writes() {
        DiskOp::Write { durable: false }
    } else {
        DiskOp::Read
    };
    // A request's number is that of its buffer, from 1.
    let mut request = |buffer: u64| DiskRequest {
        id: buffer + 1,
        disk: 0,
        op,
        offset: places.next(),
        length: block,
        bounce: buffer * block,
        digest: 0,
    };
    let mut begun = vec![0; point.depth as usize];
    for buffer in 0..u64::from(point.depth) {
        disks.submit(&request(buffer));
        begun[buffer as usize] = stamp::now();
    }
    disks.flush(u64::MAX)?;
    let start = stamp::now() + options.warm_up.as_nanos() as u64;
    let stop = start + options.lap.as_nanos() as u64;
    let mut recorder = IntervalRecorder::new(options.lap);
    recorder.begin(start);
    let (mut count, mut entries, mut now) = (0_u64, None, stamp::now());
    while now < stop {
        let mut ended = false;
        while let Some((id, status)) = disks.completed() {
            ended = true;
            let buffer = id - 1;
            now = stamp::now();
            if status != DiskStatus::Done {
                return Err(DiskBenchError::Request {
                    point,
                    offset: buffer,
                    status: format!("{status:?}"),
                });
            }
            if now >= start {
                entries.get_or_insert(disks.kernel_entries());
                recorder.record(now, now - begun[buffer as usize]);
                count += 1;
            }
            begun[buffer as usize] = now;
            disks.submit(&request(buffer));
        }
        if ended {
            disks.flush(u64::MAX)?;
        } else {
            disks.wait(PATIENCE)?;
            now = stamp::now();
        }
    }
    let entered = disks.kernel_entries() - entries.unwrap_or_default();
    let health = disks.health().remove(0);
    Ok(Lap {
        rate: count as f64 * 1e9 / (now - start) as f64,
        latency: recorder.finish(stop),
        direct: health.direct,
        alignment: health.alignment,
        fixed_buffers: disks.has_fixed_buffers(),
        entries_a_request: entered as f64 / count.max(1) as f64,
    })
}
