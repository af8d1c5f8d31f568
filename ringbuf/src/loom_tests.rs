//! Every interleaving of the cursor protocol, on loom's atomics: exactly the code that ships, with a
//! futex whose comparison and falling asleep are one step.
//!
//! A light and a heavy fence are full ones here. P1202 defines the pair so: whichever of the two comes
//! first in the order of all fences, what stands before it is seen behind the other. `membarrier(2)`
//! keeps that by making every running thread of a registered process execute a full fence at some
//! moment of the call: a light fence (program order) that lies before this moment is as good as a full
//! one there, one behind it follows the sealer's or sleeper's store. Only two light fences would get
//! more from loom than they have, and no two ever face each other: `wake` and `sealed` are the light
//! sides, `sleep_unless` and `seal` the heavy ones.
//!
//! Loom finds by itself a read of bytes that are not yet written or already written over: the bytes
//! are in its `UnsafeCell`s. The same protocol with a kind of fence left out shows that the
//! exploration finds what the fences are for.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use loom::sync::{Arc, Condvar, Mutex};

use crate::atomics::{Atom, Atomics};
use crate::control::Control;
use crate::cursor::{ConsumerCursor, ProducerCursor};
use crate::wait::{self, Waited};

/// Loom's atomics; with `FULL` fences or without, with the `ASYMMETRIC` pair or without.
#[derive(Default)]
struct Explored<const FULL: bool, const ASYMMETRIC: bool>;

/// What ships.
type Fenced = Explored<true, true>;

/// A word with the kernel's queue of sleepers on it.
#[derive(Default)]
struct FutexWord {
    value: AtomicU32,
    bucket: Mutex<Bucket>,
    changed: Condvar,
}

#[derive(Default)]
struct Bucket {
    asleep: bool,
    /// No further wake-up can come.
    over: bool,
    /// Somebody slept, or went to sleep, when it was over.
    lost: bool,
}

impl<const FULL: bool, const ASYMMETRIC: bool> Atomics for Explored<FULL, ASYMMETRIC> {
    type U64 = AtomicU64;
    type U32 = FutexWord;

    fn full_fence() {
        if FULL {
            fence(Ordering::SeqCst);
        }
    }
    fn light_fence() {
        if ASYMMETRIC {
            fence(Ordering::SeqCst);
        }
    }
    fn heavy_fence() {
        if ASYMMETRIC {
            fence(Ordering::SeqCst);
        }
    }
    fn futex_wait(word: &FutexWord, expected: u32, timeout: Option<Duration>) {
        assert_eq!(timeout, None, "loom has no time");
        let mut bucket = word.bucket.lock().unwrap();
        if word.value.load(Ordering::Relaxed) == expected {
            bucket.lost |= bucket.over;
            bucket.asleep = true;
            while bucket.asleep && !bucket.over {
                bucket = word.changed.wait(bucket).unwrap();
            }
        }
    }
    fn futex_wake(word: &FutexWord) {
        word.bucket.lock().unwrap().asleep = false;
        word.changed.notify_one();
    }
}

impl FutexWord {
    /// Says that whoever still sleeps now has lost its wake-up; it is let go on, so that the
    /// exploration ends orderly.
    fn no_wake_up_comes_any_more(&self) {
        let mut bucket = self.bucket.lock().unwrap();
        bucket.over = true;
        bucket.lost |= bucket.asleep;
        self.changed.notify_one();
    }

    fn lost_a_wake_up(&self) -> bool {
        self.bucket.lock().unwrap().lost
    }
}

macro_rules! explored_atom {
    ($atom:ty, $value:ty, $($field:ident)?) => {
        impl Atom<$value> for $atom {
            fn load(&self, order: Ordering) -> $value {
                self$(.$field)?.load(order)
            }
            fn store(&self, value: $value, order: Ordering) {
                self$(.$field)?.store(value, order);
            }
            fn swap(&self, value: $value, order: Ordering) -> $value {
                self$(.$field)?.swap(value, order)
            }
        }
    };
}
explored_atom!(AtomicU64, u64,);
explored_atom!(FutexWord, u32, value);

/// A ring of two bytes.
const CAPACITY: u64 = 2;

#[derive(Default)]
struct TinyRing<A: Atomics> {
    control: Control<A>,
    data: [UnsafeCell<u8>; CAPACITY as usize],
}

// SAFETY: of its parts only loom's `UnsafeCell` is not `Sync`, and loom fails the test that accesses
// one from two threads at once.
unsafe impl<const FULL: bool, const ASYMMETRIC: bool> Sync
    for TinyRing<Explored<FULL, ASYMMETRIC>>
{
}

impl<A: Atomics + Default> TinyRing<A> {
    fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }
    fn write(&self, cursor: u64, byte: u8) {
        self.data[(cursor % CAPACITY) as usize].with_mut(|cell| {
            // SAFETY: loom hands out the pointer only after it checked that no access is concurrent.
            unsafe { *cell = byte }
        });
    }
    fn read(&self, cursor: u64) -> u8 {
        self.data[(cursor % CAPACITY) as usize].with(|cell| {
            // SAFETY: as above.
            unsafe { *cell }
        })
    }
    fn producer(&self) -> ProducerCursor {
        ProducerCursor::open(&self.control, CAPACITY).expect("a new ring is consistent")
    }
    fn consumer(&self) -> ConsumerCursor {
        ConsumerCursor::open(&self.control, CAPACITY).expect("a new ring is consistent")
    }
    /// Waits as [`wait::wait`] does under [`wait::WaitPolicy::Block`].
    fn wait(word: &A::U32, mut look: impl FnMut() -> Option<Waited>) -> Waited {
        loop {
            if let Some(waited) = look() {
                return waited;
            }
            if let Some(waited) = wait::sleep_unless::<A>(word, None, &mut look) {
                return waited;
            }
        }
    }
    fn wait_free(&self, producer: &ProducerCursor) -> Waited {
        Self::wait(&self.control.producer_sleep.0, || {
            producer.look_free(&self.control, 1)
        })
    }
    fn wait_committed(&self, consumer: &ConsumerCursor, beyond: u64) -> Waited {
        Self::wait(&self.control.consumer_sleep.0, || {
            consumer.look_beyond(&self.control, beyond)
        })
    }
    /// Commits one byte that is known to fit.
    fn push(&self, producer: &mut ProducerCursor, byte: u8) {
        producer.reserve(&self.control, 1).expect("it fits");
        self.write(producer.committed(), byte);
        producer.publish(&self.control, 1);
        producer.wake_consumer(&self.control);
    }
}

/// Runs `model` in every interleaving with at most `preemptions` forced switches (`None`: all), and
/// returns what it came to.
fn outcomes<T: Ord + Send + 'static>(
    preemptions: Option<usize>,
    model: impl Fn() -> T + Sync + Send + 'static,
) -> BTreeSet<T> {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    let outcomes = std::sync::Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let seen = std::sync::Arc::clone(&outcomes);
    builder.check(move || {
        let outcome = model();
        seen.lock().unwrap().insert(outcome);
    });
    std::mem::take(&mut *outcomes.lock().unwrap())
}

#[test]
fn what_is_committed_is_there_and_what_is_released_may_be_overwritten() {
    let consumed = outcomes(Some(4), || {
        let ring = TinyRing::<Fenced>::new();
        let mut producer = ring.producer();
        let theirs = Arc::clone(&ring);
        let consumer = loom::thread::spawn(move || {
            let mut consumer = theirs.consumer();
            let mut next = 0;
            // Looks a bounded number of times, for loom ends only where spinning does.
            for _ in 0..3 {
                let committed = consumer.look(&theirs.control);
                while next < committed {
                    assert_eq!(theirs.read(next), 10 + next as u8);
                    consumer.release(&theirs.control, 1);
                    next += 1;
                }
            }
            next
        });
        for byte in 10..14 {
            if producer.reserve(&ring.control, 1).is_err() {
                break;
            }
            ring.write(producer.committed(), byte);
            producer.publish(&ring.control, 1);
            producer.wake_consumer(&ring.control);
        }
        consumer.join().unwrap()
    });
    assert_eq!(consumed, (0..=4).collect(), "more than once round the ring");
}

/// Two commits for a consumer that sleeps. Returns whether it missed a wake-up.
fn sleep_through_two_commits<const FULL: bool, const ASYMMETRIC: bool>() -> bool {
    let ring = TinyRing::<Explored<FULL, ASYMMETRIC>>::new();
    let mut producer = ring.producer();
    let theirs = Arc::clone(&ring);
    let consumer = loom::thread::spawn(move || {
        let mut consumer = theirs.consumer();
        for next in 0..2 {
            assert_eq!(theirs.wait_committed(&consumer, next), Waited::Ready);
            assert_eq!(theirs.read(next), 10 + next as u8);
            consumer.release(&theirs.control, 1);
        }
    });
    ring.push(&mut producer, 10);
    ring.push(&mut producer, 11);
    let word = &ring.control.consumer_sleep.0;
    word.no_wake_up_comes_any_more();
    consumer.join().unwrap();
    word.lost_a_wake_up()
}

#[test]
fn a_sleeping_consumer_misses_no_commit() {
    assert_eq!(
        outcomes(Some(3), sleep_through_two_commits::<true, true>),
        [false].into()
    );
}

#[test]
fn without_full_fences_a_sleeping_consumer_would_miss_a_commit() {
    assert_eq!(
        outcomes(Some(3), sleep_through_two_commits::<false, true>),
        [false, true].into()
    );
}

#[test]
fn without_the_asymmetric_fences_a_sleeping_consumer_would_miss_a_commit() {
    assert_eq!(
        outcomes(Some(3), sleep_through_two_commits::<true, false>),
        [false, true].into()
    );
}

#[test]
fn a_sleeping_producer_misses_no_release() {
    let lost = outcomes(Some(3), || {
        let ring = TinyRing::<Fenced>::new();
        let mut producer = ring.producer();
        ring.push(&mut producer, 10);
        ring.push(&mut producer, 11);
        let theirs = Arc::clone(&ring);
        let consumer = loom::thread::spawn(move || {
            let mut consumer = theirs.consumer();
            for next in 0..2 {
                assert_eq!(theirs.read(next), 10 + next as u8);
                consumer.release(&theirs.control, 1);
            }
            theirs.control.producer_sleep.0.no_wake_up_comes_any_more();
        });
        for byte in 12..14 {
            assert_eq!(ring.wait_free(&producer), Waited::Ready);
            ring.push(&mut producer, byte);
        }
        consumer.join().unwrap();
        ring.control.producer_sleep.0.lost_a_wake_up()
    });
    assert_eq!(lost, [false].into());
}

#[test]
fn both_sides_sleeping_in_turn_lose_no_wake_up() {
    let lost = outcomes(Some(2), || {
        let ring = TinyRing::<Fenced>::new();
        let mut producer = ring.producer();
        let theirs = Arc::clone(&ring);
        let consumer = loom::thread::spawn(move || {
            let mut consumer = theirs.consumer();
            for next in 0..4 {
                assert_eq!(theirs.wait_committed(&consumer, next), Waited::Ready);
                assert_eq!(theirs.read(next), 10 + next as u8);
                consumer.release(&theirs.control, 1);
            }
            theirs.control.producer_sleep.0.no_wake_up_comes_any_more();
        });
        for byte in 10..14 {
            assert_eq!(ring.wait_free(&producer), Waited::Ready);
            ring.push(&mut producer, byte);
        }
        let Control {
            producer_sleep,
            consumer_sleep,
            ..
        } = &ring.control;
        consumer_sleep.0.no_wake_up_comes_any_more();
        consumer.join().unwrap();
        producer_sleep.0.lost_a_wake_up() || consumer_sleep.0.lost_a_wake_up()
    });
    assert_eq!(lost, [false].into());
}

/// Where a seal fell among two commits, and what the producer made of it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sealed {
    /// The log's end.
    end: u64,
    /// Commits that the producer took for acknowledged.
    acknowledged: u64,
}

fn seal_among_two_commits<const FULL: bool, const ASYMMETRIC: bool>() -> Sealed {
    let ring = TinyRing::<Explored<FULL, ASYMMETRIC>>::new();
    let mut producer = ring.producer();
    let theirs = Arc::clone(&ring);
    let sealer = loom::thread::spawn(move || {
        let mut consumer = theirs.consumer();
        let end = consumer.seal(&theirs.control);
        for cursor in 0..end {
            assert_eq!(theirs.read(cursor), 10 + cursor as u8);
        }
        let later = consumer.look(&theirs.control);
        assert_eq!(later, end, "the log grew after its end");
        end
    });
    let mut acknowledged = 0;
    for byte in [10, 11] {
        ring.push(&mut producer, byte);
        if !producer.sealed(&ring.control) {
            acknowledged = producer.committed();
        }
    }
    Sealed {
        end: sealer.join().unwrap(),
        acknowledged,
    }
}

#[test]
fn the_sealer_sees_the_commit_or_the_producer_sees_the_seal() {
    let outcomes = outcomes(None, seal_among_two_commits::<true, true>);
    for Sealed { end, acknowledged } in &outcomes {
        assert!(
            acknowledged <= end,
            "{acknowledged} commits were taken for acknowledged, and the log ended at {end}"
        );
    }
    for end in 0..=2 {
        assert!(
            outcomes.iter().any(|sealed| sealed.end == end),
            "a seal after {end} commits was never explored: {outcomes:?}"
        );
    }
}

#[test]
fn without_the_asymmetric_fences_an_acknowledged_commit_would_be_lost() {
    let outcomes = outcomes(None, seal_among_two_commits::<true, false>);
    assert!(
        outcomes
            .iter()
            .any(|sealed| sealed.acknowledged > sealed.end)
    );
}

#[test]
fn a_producer_that_waits_for_room_wakes_when_the_ring_is_sealed() {
    let lost = outcomes(None, || {
        let ring = TinyRing::<Fenced>::new();
        let mut producer = ring.producer();
        ring.push(&mut producer, 10);
        ring.push(&mut producer, 11);
        let theirs = Arc::clone(&ring);
        let sealer = loom::thread::spawn(move || {
            assert_eq!(theirs.consumer().seal(&theirs.control), 2);
            theirs.control.producer_sleep.0.no_wake_up_comes_any_more();
        });
        assert_eq!(ring.wait_free(&producer), Waited::Sealed);
        sealer.join().unwrap();
        ring.control.producer_sleep.0.lost_a_wake_up()
    });
    assert_eq!(lost, [false].into());
}
