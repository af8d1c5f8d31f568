//! What the bounce buffers cost: copies, by the accessors that the machine uses.
//!
//! A write's data is gathered from guest memory, page by page as a driver hands it over, and copied to
//! its bounce buffer. A read's is copied from the bounce buffer to where the log entry is made, and from
//! there to guest memory. Places are random, in more memory than the caches hold: a guest's data
//! may be warmer.

use lockstep_perf::interval::{IntervalRecorder, Series};
use lockstep_perf::stamp;
use lockstep_vmm::machine::bounce::BounceRegion;
use lockstep_vmm::machine::memory::GuestRam;
use std::time::Duration;

use super::DiskBenchError;
use super::pattern::{Pattern, Places};
use crate::report::Report;

/// Guest memory and bounce memory, bytes each.
const MEMORY_BYTES: u64 = 128 << 20;
const PAGE: usize = 4096;

/// Measures `copies` copies of 4 KiB each way, and fewer of 1 MiB.
pub(super) fn measure(copies: usize, report: &mut Report) -> Result<(), DiskBenchError> {
    let lacking = |what, why: String| DiskBenchError::Memory { what, why };
    let ram = GuestRam::new(MEMORY_BYTES).map_err(|error| lacking("a guest", error.to_string()))?;
    let region = BounceRegion::new(MEMORY_BYTES)
        .map_err(|error| lacking("bounce buffers", error.to_string()))?;
    // Both are there before anything is measured: a first touch is a page fault.
    let page = [0x5a; PAGE];
    for offset in (0..MEMORY_BYTES).step_by(PAGE) {
        ram.write(offset, &page)
            .map_err(|error| lacking("a guest", error.to_string()))?;
        region.write(offset, &page);
    }
    let mut names = Vec::new();
    for (size, pattern, count) in [
        ("4k", Pattern::RandomRead, copies),
        ("1m", Pattern::SequentialRead, (copies / 40).max(20)),
    ] {
        let mut data = vec![0; pattern.block_bytes() as usize];
        let write = record(count, pattern, 1, |guest, bounce| {
            for (n, page) in data.chunks_exact_mut(PAGE).enumerate() {
                let there = ram.read(guest + (n * PAGE) as u64, page);
                debug_assert!(there.is_ok());
            }
            region.write(bounce, &data);
        });
        let mut data = vec![0; pattern.block_bytes() as usize];
        let read = record(count, pattern, 2, |guest, bounce| {
            region.read(bounce, &mut data);
            for (n, page) in data.chunks_exact(PAGE).enumerate() {
                let there = ram.write(guest + (n * PAGE) as u64, page);
                debug_assert!(there.is_ok());
            }
        });
        for (way, series) in [("write", write), ("read", read)] {
            let name = format!("bounce/{way}-{size}");
            report.series(&name, &series)?;
            names.push(name);
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    report.plot(
        "bounce",
        "What the bounce buffer adds to a request: its copies",
        &names,
    )?;
    Ok(())
}

/// The time of each of `count` copies; a tenth before them warms up.
fn record(count: usize, pattern: Pattern, seed: u64, mut copy: impl FnMut(u64, u64)) -> Series {
    let mut guests = Places::new(pattern, MEMORY_BYTES, seed);
    let mut bounces = Places::new(pattern, MEMORY_BYTES, seed + 100);
    for _ in 0..count / 10 {
        copy(guests.next(), bounces.next());
    }
    let mut recorder = IntervalRecorder::new(Duration::from_secs(5));
    recorder.begin(stamp::now());
    for _ in 0..count {
        let (guest, bounce) = (guests.next(), bounces.next());
        let start = stamp::now();
        copy(guest, bounce);
        let end = stamp::now();
        recorder.record(end, end - start);
    }
    recorder.finish(stamp::now())
}
