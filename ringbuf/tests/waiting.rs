//! Waiting and waking between two threads, each with its own attachment.

use std::time::{Duration, Instant};

use lockstep_ringbuf::{Ring, RingOptions, WaitPolicy, Waited};

const CAPACITY: usize = 4096;
const POLICIES: [WaitPolicy; 3] = [
    WaitPolicy::Spin,
    WaitPolicy::SpinThenBlock {
        spin: Duration::from_micros(5),
    },
    WaitPolicy::Block,
];

fn two_attachments() -> (Ring, Ring) {
    let ring = Ring::create(CAPACITY, RingOptions::default()).unwrap();
    let peer = Ring::attach(ring.fd().try_clone_to_owned().unwrap()).unwrap();
    (ring, peer)
}

/// Entries of all lengths through a small ring, so that both sides wait often.
fn stream(producing: WaitPolicy, consuming: WaitPolicy, entries: u64) {
    let (ring, peer) = two_attachments();
    let mut producer = ring.producer().unwrap();
    let mut consumer = peer.consumer().unwrap();
    let limit = Some(Duration::from_secs(20));
    let length = |entry: u64| 1 + (entry.wrapping_mul(2_654_435_761) % 1500) as usize;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for entry in 0..entries {
                let len = length(entry);
                assert_eq!(producer.wait_free(len, &producing, limit), Waited::Ready);
                producer.reserve(len).unwrap().fill(entry as u8);
                producer.commit(len);
            }
        });
        for entry in 0..entries {
            let len = length(entry);
            let beyond = consumer.released() + len as u64 - 1;
            let waited = consumer.wait_committed(beyond, &consuming, limit);
            assert_eq!(waited, Waited::Ready, "entry {entry} of {consuming:?}");
            let bytes = &consumer.readable()[..len];
            assert!(bytes.iter().all(|byte| *byte == entry as u8), "{entry}");
            consumer.release(len);
        }
    });
    assert_eq!(ring.fill(), 0);
}

#[test]
fn every_pair_of_policies_delivers_every_entry() {
    for producing in POLICIES {
        for consuming in POLICIES {
            // Where neither spins each entry may cost two sleeps.
            stream(producing, consuming, 3000);
        }
    }
}

#[test]
fn a_wait_ends_when_its_time_is_up_and_not_before() {
    let (ring, peer) = two_attachments();
    let mut producer = ring.producer().unwrap();
    let consumer = peer.consumer().unwrap();
    producer.reserve(CAPACITY).unwrap();
    producer.commit(CAPACITY);
    for policy in POLICIES {
        for millis in [0, 1, 20] {
            let timeout = Duration::from_millis(millis);
            let start = Instant::now();
            let waited = consumer.wait_committed(CAPACITY as u64, &policy, Some(timeout));
            assert_eq!(waited, Waited::TimedOut);
            assert!(start.elapsed() >= timeout);
            let start = Instant::now();
            assert_eq!(
                producer.wait_free(1, &policy, Some(timeout)),
                Waited::TimedOut
            );
            assert!(start.elapsed() >= timeout);
            // What is there is there, whatever the time.
            let waited = consumer.wait_committed(CAPACITY as u64 - 1, &policy, Some(timeout));
            assert_eq!(waited, Waited::Ready);
        }
    }
}

#[test]
fn publishing_without_waking_is_seen_and_wakes_when_told_to() {
    let (ring, peer) = two_attachments();
    let mut producer = ring.producer().unwrap();
    let consumer = peer.consumer().unwrap();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(move || {
            consumer.wait_committed(0, &WaitPolicy::Block, Some(Duration::from_secs(20)))
        });
        // Give it time to fall asleep; should it not have, the test is easier, not wrong.
        std::thread::sleep(Duration::from_millis(20));
        producer.reserve(1).unwrap();
        producer.publish(1);
        producer.wake_consumer();
        assert_eq!(sleeper.join().unwrap(), Waited::Ready);
    });
}

#[test]
fn a_producer_that_sleeps_for_room_learns_of_the_seal() {
    let (ring, peer) = two_attachments();
    let mut producer = ring.producer().unwrap();
    let mut consumer = peer.consumer().unwrap();
    producer.reserve(CAPACITY).unwrap();
    producer.commit(CAPACITY);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(move || {
            producer.wait_free(1, &WaitPolicy::Block, Some(Duration::from_secs(20)))
        });
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(consumer.seal(), CAPACITY as u64);
        assert_eq!(sleeper.join().unwrap(), Waited::Sealed);
    });
    // What is committed stays readable.
    assert_eq!(consumer.readable().len(), CAPACITY);
}
