//! A peer that writes what no peer should: the header before we attach, the cursors afterwards.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use lockstep_ringbuf::{Cursor, Ring, RingError, RingOptions, WaitPolicy, Waited, layout};
use proptest::prelude::*;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};

const CAPACITY: usize = 8192;

fn ring() -> Ring {
    Ring::create(CAPACITY, RingOptions::default()).unwrap()
}

/// The ring's memory as a file: a write to it is a peer's store.
fn memory(ring: &Ring) -> File {
    File::from(ring.fd().try_clone_to_owned().unwrap())
}

fn poke(ring: &Ring, offset: usize, value: u64) {
    (memory(ring).write_all_at(&value.to_le_bytes(), offset as u64)).unwrap();
}

fn attach(ring: &Ring) -> Result<Ring, RingError> {
    Ring::attach(ring.fd().try_clone_to_owned().unwrap())
}

/// A memory file of `len` bytes that begins with `header`, allocated, its size sealed.
fn forged(header: &[(usize, u64)], len: u64) -> OwnedFd {
    let fd = memfd_create(c"forged", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(fd);
    file.set_len(len).unwrap();
    if len > 0 {
        fallocate(&file, FallocateFlags::empty(), 0, len).unwrap();
    }
    for (offset, value) in header {
        file.write_all_at(&value.to_le_bytes(), *offset as u64)
            .unwrap();
    }
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    file.into()
}

#[test]
fn attach_refuses_another_magic_naming_both() {
    let ring = ring();
    poke(&ring, layout::MAGIC_AT, 0xdead);
    let error = attach(&ring).unwrap_err();
    assert!(
        matches!(error, RingError::Magic { found: 0xdead, expected } if expected == layout::MAGIC)
    );
    let text = error.to_string();
    assert!(
        text.contains("0x000000000000dead") && text.contains("0x504554534b434f4c"),
        "{text}"
    );
}

#[test]
fn attach_refuses_another_version_naming_both() {
    let ring = ring();
    poke(&ring, layout::VERSION_AT, 7);
    let error = attach(&ring).unwrap_err();
    assert!(
        matches!(
            error,
            RingError::Version {
                found: 7,
                expected: layout::VERSION
            }
        ),
        "{error}"
    );
}

#[test]
fn attach_refuses_sizes_that_are_not_the_files() {
    for (offset, value) in [
        (layout::CAPACITY_AT, 0),
        (layout::CAPACITY_AT, 4096),
        (layout::CAPACITY_AT, 8191),
        (layout::CAPACITY_AT, 16384),
        (layout::CAPACITY_AT, u64::MAX),
        (layout::CAPACITY_AT, 1 << 63),
        (layout::CONTROL_BYTES_AT, 0),
        (layout::CONTROL_BYTES_AT, 768),
        (layout::CONTROL_BYTES_AT, 8192),
        (layout::CONTROL_BYTES_AT, u64::MAX - 4095),
    ] {
        let ring = ring();
        poke(&ring, offset, value);
        let error = attach(&ring).unwrap_err();
        assert!(
            matches!(error, RingError::Size { .. }),
            "{offset} {value}: {error}"
        );
        assert!(error.to_string().contains(&value.to_string()), "{error}");
    }
}

#[test]
fn attach_refuses_what_is_no_sealed_memory_file() {
    // A pipe has no seals.
    let (pipe, _writer) = std::io::pipe().unwrap();
    let error = Ring::attach(pipe.into()).unwrap_err();
    assert!(matches!(error, RingError::NoMemfd { .. }), "{error}");
    // This one could be truncated under us, and then a read would end in SIGBUS.
    let fd = memfd_create(c"open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let error = Ring::attach(fd).unwrap_err();
    assert!(
        matches!(
            error,
            RingError::NotSealed {
                found: 0,
                expected: 6
            }
        ),
        "{error}"
    );
    // An empty one, one of less than a page, and one of pages that are not there.
    for len in [0, 100] {
        let error = Ring::attach(forged(&[], len)).unwrap_err();
        assert!(matches!(error, RingError::Size { .. }), "{error}");
    }
    let fd = memfd_create(c"sparse", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, 1 << 40).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    let error = Ring::attach(fd).unwrap_err();
    assert!(
        matches!(error, RingError::Sparse { found: 0, .. }),
        "{error}"
    );
}

proptest! {
    #[test]
    fn attach_answers_any_header(words in prop::collection::vec(any::<u64>(), 4), pages in 0u64..6) {
        let header: Vec<_> = words.iter().enumerate().map(|(i, word)| (8 * i, *word)).collect();
        let header = if pages > 0 { header } else { Vec::new() };
        let attached = Ring::attach(forged(&header, pages * 4096));
        prop_assert!(attached.is_err());
    }

    #[test]
    fn attach_answers_any_sizes(control in 0u64..20_000, capacity in 0u64..20_000, pages in 1u64..6) {
        let header = [
            (layout::MAGIC_AT, layout::MAGIC),
            (layout::VERSION_AT, u64::from(layout::VERSION)),
            (layout::CONTROL_BYTES_AT, control),
            (layout::CAPACITY_AT, capacity),
        ];
        let attached = Ring::attach(forged(&header, pages * 4096));
        let sound = control == 4096
            && capacity.is_power_of_two()
            && capacity >= 4096
            && control + capacity == pages * 4096;
        prop_assert_eq!(attached.is_ok(), sound);
    }
}

#[test]
fn the_size_of_a_ring_cannot_change() {
    let ring = ring();
    let file = memory(&ring);
    for len in [0, 4096, 1 << 20] {
        assert!(file.set_len(len).is_err(), "resized to {len}");
    }
    // Nor can a peer seal it against further attachments.
    assert!(fcntl_add_seals(ring.fd().as_fd(), SealFlags::FUTURE_WRITE).is_err());
    attach(&ring).unwrap();
}

#[test]
fn create_refuses_a_capacity_that_is_no_ring() {
    for capacity in [0, 1, 4095, 4097, 12288, 1 << 30, usize::MAX] {
        let error = Ring::create(capacity, RingOptions::default()).unwrap_err();
        assert!(
            matches!(error, RingError::Capacity { found, least: 4096, .. } if found == capacity),
            "{error}"
        );
    }
    // A huge page is 2 MiB.
    let error = Ring::create(1 << 20, RingOptions { huge_pages: true }).unwrap_err();
    assert!(
        matches!(
            error,
            RingError::Capacity {
                least: 2_097_152,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn huge_pages_are_had_or_the_error_says_what_to_raise() {
    // Both answers are right, each on its host; which one is asked of the kernel first.
    let free: usize =
        std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
            .map_or(0, |text| text.trim().parse().unwrap());
    let made = Ring::create(4 << 20, RingOptions { huge_pages: true });
    // One page of control, two of data.
    if free >= 3 {
        let ring = made.unwrap();
        let peer = attach(&ring).unwrap();
        let mut producer = ring.producer().unwrap();
        producer.reserve(4 << 20).unwrap().fill(3);
        producer.commit(4 << 20);
        assert!(
            peer.consumer()
                .unwrap()
                .readable()
                .iter()
                .all(|byte| *byte == 3)
        );
    } else {
        let text = made.unwrap_err().to_string();
        assert!(text.contains("vm.nr_hugepages"), "{text}");
    }
}

/// Values of a cursor that lie outside what is possible when bytes `low..=high` are.
fn impossible(low: u64, high: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (high + 1)..(high + 100_000),
        low.saturating_sub(100_000)..low.max(1),
        Just(u64::MAX),
        Just(1 << 63),
    ]
    .prop_filter("possible", move |value| !(low..=high).contains(value))
}

/// The ring is at byte 10,000: 10,000 committed, of which 6,000 released.
fn used_ring() -> Ring {
    let ring = ring();
    let mut producer = ring.producer().unwrap();
    let mut consumer = ring.consumer().unwrap();
    for (commit, release) in [(6000, 6000), (4000, 0)] {
        producer.reserve(commit).unwrap().fill(7);
        producer.commit(commit);
        assert_eq!(consumer.readable().len(), commit);
        consumer.release(release);
    }
    drop((producer, consumer));
    ring
}

proptest! {
    #[test]
    fn a_corrupt_committed_cursor_shows_the_consumer_nothing_more(
        found in impossible(10_000, 6000 + CAPACITY as u64),
    ) {
        let ring = used_ring();
        let mut consumer = ring.consumer().unwrap();
        prop_assert_eq!(consumer.readable().len(), 4000);
        poke(&ring, layout::COMMITTED_AT, found);
        prop_assert_eq!(consumer.readable(), &[7; 4000]);
        let fault = consumer.fault().expect("the fault is found");
        prop_assert_eq!((fault.cursor, fault.found), (Cursor::Committed, found));
        prop_assert_eq!((fault.low, fault.high), (10_000, 6000 + CAPACITY as u64));
        prop_assert_eq!(
            consumer.wait_committed(10_000, &WaitPolicy::Block, None),
            Waited::Corrupt
        );
        // Not even if it becomes plausible again: the peer is not to be trusted any more.
        poke(&ring, layout::COMMITTED_AT, 10_001);
        prop_assert_eq!(consumer.readable().len(), 4000);
        prop_assert_eq!(consumer.seal(), 10_000);
        consumer.release(4000);
        prop_assert_eq!(consumer.readable().len(), 0);
    }

    #[test]
    fn a_corrupt_released_cursor_gives_the_producer_no_room(found in impossible(6000, 10_000)) {
        let ring = used_ring();
        let mut producer = ring.producer().unwrap();
        let free = CAPACITY - 4000;
        poke(&ring, layout::RELEASED_AT, found);
        prop_assert_eq!(producer.free(), free);
        let fault = producer.fault().expect("the fault is found");
        prop_assert_eq!((fault.cursor, fault.found), (Cursor::Released, found));
        prop_assert_eq!((fault.low, fault.high), (6000, 10_000));
        prop_assert_eq!(producer.reserve(free + 1).unwrap_err().free, free);
        prop_assert_eq!(producer.reserve(free).unwrap().len(), free);
        prop_assert_eq!(
            producer.wait_free(free + 1, &WaitPolicy::Block, None),
            Waited::Corrupt
        );
        poke(&ring, layout::RELEASED_AT, 10_000);
        prop_assert_eq!(producer.free(), free);
    }

    #[test]
    fn an_end_does_not_open_on_cursors_that_contradict_each_other(
        committed in any::<u64>(),
        released in any::<u64>(),
    ) {
        let ring = ring();
        poke(&ring, layout::COMMITTED_AT, committed);
        poke(&ring, layout::RELEASED_AT, released);
        if committed.wrapping_sub(released) <= CAPACITY as u64 {
            return Ok(());
        }
        for error in [ring.producer().unwrap_err(), ring.consumer().unwrap_err()] {
            let RingError::Cursors(fault) = error else {
                panic!("{error}");
            };
            prop_assert_eq!((fault.found, fault.low), (committed, released));
        }
        // Refusing does not take the end away.
        poke(&ring, layout::COMMITTED_AT, released);
        prop_assert!(ring.producer().is_ok() && ring.consumer().is_ok());
    }
}

#[test]
fn cursors_that_pass_two_to_the_64_are_sound() {
    let ring = ring();
    let start = u64::MAX - 5000;
    poke(&ring, layout::COMMITTED_AT, start);
    poke(&ring, layout::RELEASED_AT, start);
    let mut producer = ring.producer().unwrap();
    let mut consumer = ring.consumer().unwrap();
    for round in 0..4u8 {
        producer.reserve(CAPACITY / 2).unwrap().fill(round);
        let beyond = producer.committed();
        producer.commit(CAPACITY / 2);
        let waited = consumer.wait_committed(beyond, &WaitPolicy::Spin, Some(Duration::ZERO));
        assert_eq!(waited, Waited::Ready);
        assert_eq!(consumer.readable(), [round; CAPACITY / 2]);
        consumer.release(CAPACITY / 2);
    }
    assert_eq!((producer.fault(), consumer.fault()), (None, None));
}

#[test]
fn garbage_in_the_other_words_harms_nothing() {
    for value in [1, 2, 3, u64::MAX] {
        let ring = ring();
        poke(&ring, layout::PRODUCER_SLEEP_AT, value);
        poke(&ring, layout::CONSUMER_SLEEP_AT, value);
        let mut producer = ring.producer().unwrap();
        let mut consumer = ring.consumer().unwrap();
        producer.reserve(1).unwrap()[0] = 9;
        producer.commit(1);
        assert_eq!(consumer.readable(), [9]);
        consumer.release(1);
        let brief = Some(Duration::from_millis(1));
        let waited = consumer.wait_committed(1, &WaitPolicy::Block, brief);
        assert_eq!(waited, Waited::TimedOut);
        poke(&ring, layout::SEALED_AT, value);
        assert!(producer.sealed());
    }
}
