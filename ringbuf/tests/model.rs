//! The ring against a model: a `VecDeque` of the bytes committed and not released.

use std::collections::VecDeque;
use std::time::Duration;

use lockstep_ringbuf::{Ring, RingOptions, WaitPolicy, Waited};
use proptest::prelude::*;

const CAPACITY: usize = 4096;

#[derive(Debug, Clone)]
enum Step {
    /// Reserve, write, commit a part of it.
    Write { reserve: usize, commit: usize },
    /// Commit some more of what is reserved.
    CommitRest { part: usize },
    /// Release a part of what is readable.
    Release { part: usize },
    /// Read from somewhere in the middle.
    ReadFrom { part: usize },
    /// Hand the ends back and take them again, as a restarted process does.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    // Small ones, so that steps make many entries; large ones, so that the ring fills and wraps.
    let len = || prop_oneof![3 => 0..200usize, 1 => 0..=CAPACITY + 1];
    prop_oneof![
        4 => (len(), len()).prop_map(|(reserve, commit)| Step::Write { reserve, commit }),
        1 => len().prop_map(|part| Step::CommitRest { part }),
        4 => len().prop_map(|part| Step::Release { part }),
        2 => len().prop_map(|part| Step::ReadFrom { part }),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #[test]
    fn every_byte_comes_out_once_and_in_order(steps in prop::collection::vec(step(), 1..200)) {
        let ring = Ring::create(CAPACITY, RingOptions::default()).unwrap();
        // Another attachment of the same memory, as the other process has.
        let peer = Ring::attach(ring.fd().try_clone_to_owned().unwrap()).unwrap();
        let mut producer = ring.producer().unwrap();
        let mut consumer = peer.consumer().unwrap();
        let mut model: VecDeque<u8> = VecDeque::new();
        let mut reserved: VecDeque<u8> = VecDeque::new();
        let (mut committed, mut released) = (0u64, 0u64);
        let mut next = 0u8;

        for step in steps {
            match step {
                Step::Write { reserve, commit } => {
                    let free = CAPACITY - model.len();
                    match producer.reserve(reserve) {
                        Ok(bytes) => {
                            prop_assert!(reserve <= free);
                            prop_assert_eq!(bytes.len(), reserve);
                            reserved.clear();
                            for byte in bytes {
                                next = next.wrapping_mul(5).wrapping_add(1);
                                *byte = next;
                                reserved.push_back(next);
                            }
                            let commit = commit.min(reserve);
                            producer.commit(commit);
                            model.extend(reserved.drain(..commit));
                            committed += commit as u64;
                        }
                        Err(full) => {
                            prop_assert!(reserve > free);
                            prop_assert_eq!(full.free, free);
                            prop_assert_eq!(full.never_fits(), reserve > CAPACITY);
                        }
                    }
                }
                Step::CommitRest { part } => {
                    let commit = part.min(reserved.len());
                    producer.commit(commit);
                    model.extend(reserved.drain(..commit));
                    committed += commit as u64;
                }
                Step::Release { part } => {
                    let release = part.min(consumer.readable().len());
                    consumer.release(release);
                    model.drain(..release);
                    released += release as u64;
                }
                Step::ReadFrom { part } => {
                    let skip = part.min(model.len());
                    prop_assert_eq!(
                        consumer.readable_from(released + skip as u64),
                        &model.make_contiguous()[skip..]
                    );
                }
                Step::Reopen => {
                    drop(producer);
                    drop(consumer);
                    producer = ring.producer().unwrap();
                    consumer = peer.consumer().unwrap();
                    reserved.clear();
                }
            }
            prop_assert_eq!(consumer.readable(), &*model.make_contiguous());
            prop_assert_eq!(producer.free(), CAPACITY - model.len());
            prop_assert_eq!(ring.fill(), model.len());
            prop_assert_eq!(producer.committed(), committed);
            prop_assert_eq!(consumer.committed(), committed);
            prop_assert_eq!(consumer.released(), released);
            prop_assert!(!producer.sealed());
        }
        // A seal ends the log where it is; what is committed later does not count.
        prop_assert_eq!(consumer.seal(), committed);
        prop_assert!(producer.sealed() && ring.is_sealed());
        consumer.release(model.len());
        let late = producer.reserve(1).map(|byte| byte[0] = 1);
        prop_assert!(late.is_ok());
        producer.commit(1);
        prop_assert_eq!(consumer.readable(), &[] as &[u8]);
        prop_assert_eq!(
            consumer.wait_committed(committed, &WaitPolicy::Block, Some(Duration::from_secs(9))),
            Waited::Sealed
        );
        prop_assert_eq!(consumer.seal(), committed);
    }
}

#[test]
fn a_stretch_is_contiguous_wherever_it_begins() {
    let ring = Ring::create(CAPACITY, RingOptions::default()).unwrap();
    let mut producer = ring.producer().unwrap();
    let mut consumer = ring.consumer().unwrap();
    for begin in 0..CAPACITY {
        for (i, byte) in producer.reserve(CAPACITY).unwrap().iter_mut().enumerate() {
            *byte = (begin + i) as u8;
        }
        producer.commit(CAPACITY);
        let wrong =
            (consumer.readable().iter().enumerate()).find(|(i, byte)| **byte != (begin + i) as u8);
        assert_eq!(wrong, None, "beginning at {begin}");
        consumer.release(CAPACITY);
        // One byte on.
        producer.reserve(1).unwrap();
        producer.commit(1);
        consumer.release(consumer.readable().len());
    }
}

#[test]
fn the_raw_pointers_name_the_bytes_that_the_slices_name() {
    let ring = Ring::create(CAPACITY, RingOptions::default()).unwrap();
    let mut producer = ring.producer().unwrap();
    let mut consumer = ring.consumer().unwrap();
    assert_eq!(ring.mapped_len(), 2 * CAPACITY);
    for len in [0, 1, 4000, 4096, 100] {
        let at = ring.ptr_at(producer.committed());
        let offset = at.addr() - ring.data_ptr().addr();
        assert!(offset + CAPACITY <= ring.mapped_len());
        assert_eq!(producer.reserve(len).unwrap().as_ptr(), at.cast_const());
        producer.commit(len);
        assert_eq!(consumer.readable().as_ptr(), at.cast_const());
        consumer.release(len);
    }
}

#[test]
fn each_end_is_handed_out_once_at_a_time() {
    let ring = Ring::create(CAPACITY, RingOptions::default()).unwrap();
    let producer = ring.producer().unwrap();
    let refused = ring.clone().producer().unwrap_err().to_string();
    assert!(refused.contains("producer is already taken"), "{refused}");
    let consumer = ring.consumer().unwrap();
    let refused = ring.consumer().unwrap_err().to_string();
    assert!(refused.contains("consumer is already taken"), "{refused}");
    drop((producer, consumer));
    ring.producer().unwrap();
    ring.consumer().unwrap();
}

#[test]
#[should_panic(expected = "commit of 11 bytes, 10 are reserved")]
fn no_more_is_committed_than_reserved() {
    let ring = Ring::create(CAPACITY, RingOptions::default()).unwrap();
    let mut producer = ring.producer().unwrap();
    producer.reserve(10).unwrap();
    producer.commit(11);
}

#[test]
#[should_panic(expected = "release of 11 bytes, 10 were seen committed")]
fn no_more_is_released_than_read() {
    let ring = Ring::create(CAPACITY, RingOptions::default()).unwrap();
    let mut producer = ring.producer().unwrap();
    let mut consumer = ring.consumer().unwrap();
    producer.reserve(10).unwrap();
    producer.commit(10);
    assert_eq!(consumer.readable().len(), 10);
    consumer.release(11);
}
