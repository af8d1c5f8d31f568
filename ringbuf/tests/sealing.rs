//! The seal and a commit, raced on this machine's processor: what loom explores on its own atomics is
//! here the program's store and load, and the kernel's fence on the other core.

use std::sync::atomic::{AtomicU32, Ordering};

use lockstep_ringbuf::{Ring, RingOptions};

/// Rings sealed. With the sealer's fence left out, one of the first hundred or so lost a commit, on two
/// cores.
const RACES: u32 = 400;
/// Bytes committed at a time.
const ENTRY: usize = 8;

/// Where two threads meet. A sleeping barrier would wake one late; on a single core, spinning alone would
/// wait for the scheduler.
fn meet(arrived: &AtomicU32) {
    // Release and Acquire pair with each other: both have begun.
    arrived.fetch_add(1, Ordering::AcqRel);
    let mut looks = 0;
    while arrived.load(Ordering::Acquire) < 2 {
        looks += 1;
        if looks % 10_000 == 0 {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn no_commit_that_was_taken_for_acknowledged_lies_behind_the_end_of_a_sealed_log() {
    for race in 0..RACES {
        let ring = Ring::create(4096, RingOptions::default()).unwrap();
        let mut producer = ring.producer().unwrap();
        let mut consumer = ring.consumer().unwrap();
        let arrived = AtomicU32::new(0);
        let (end, acknowledged) = std::thread::scope(|scope| {
            let sealing = scope.spawn(|| {
                meet(&arrived);
                for _ in 0..race % 64 {
                    std::hint::spin_loop();
                }
                consumer.seal()
            });
            meet(&arrived);
            let mut acknowledged = 0;
            while producer.reserve(ENTRY).is_ok() {
                producer.commit(ENTRY);
                if producer.sealed() {
                    break;
                }
                acknowledged = producer.committed();
            }
            (sealing.join().unwrap(), acknowledged)
        });
        assert!(
            acknowledged <= end,
            "race {race}: {acknowledged} bytes were taken for acknowledged, the log ended at {end}"
        );
    }
}
