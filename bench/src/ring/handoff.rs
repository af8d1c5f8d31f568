//! The yardsticks: one cache line handed from one core to the other, and nothing else; and the same
//! with a payload beside it. No ring can be faster, for whatever it carries, the reader must learn of
//! it by a line that the writer wrote, and the lines of what it carries must travel too.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::contender::{Contender, Receiver, Sender};

/// The line: a number, and nothing near it that somebody else could touch.
#[repr(align(128))]
struct Line(AtomicU64);

/// The hand-off of a bare line. Carries the number alone, and holds one at a time.
pub(super) struct Handoff;

impl<const N: usize> Contender<N> for Handoff {
    const NAME: &'static str = "bare hand-off";
    type Sender = HandoffSender;
    type Receiver = HandoffReceiver;

    fn expected_sum(number: u64) -> u64 {
        number
    }

    fn open(_capacity: usize) -> (HandoffSender, HandoffReceiver) {
        let line = Arc::new(Line(AtomicU64::new(u64::MAX)));
        (
            HandoffSender(Arc::clone(&line)),
            HandoffReceiver { line, next: 0 },
        )
    }
}

pub(super) struct HandoffSender(Arc<Line>);

impl Sender for HandoffSender {
    #[inline]
    fn send(&mut self, number: u64) {
        // Release pairs with the Acquire of the receiver, as in any ring.
        self.0.0.store(number, Ordering::Release);
    }
}

pub(super) struct HandoffReceiver {
    line: Arc<Line>,
    next: u64,
}

impl Receiver for HandoffReceiver {
    #[inline]
    fn receive(&mut self, count: u64) -> u64 {
        debug_assert_eq!(count, 1, "it holds one");
        while self.line.0.load(Ordering::Acquire) != self.next {
            spin_loop();
        }
        let number = self.next;
        self.next += 1;
        number
    }
}

/// A payload in lines of its own, then the number that says it is there: what an entry of `N` bytes
/// costs at least. Atomics, so that a wrong order of use would read a mixture and not be undefined.
struct Parcel<const N: usize> {
    line: Line,
    payload: Box<[AtomicU64]>,
}

/// The hand-off of a payload of `N` bytes: written in full, read in full, always in the same place.
pub(super) struct Carried;

impl<const N: usize> Contender<N> for Carried {
    const NAME: &'static str = "bare hand-off, carrying";
    type Sender = CarriedSender<N>;
    type Receiver = CarriedReceiver<N>;

    fn open(_capacity: usize) -> (CarriedSender<N>, CarriedReceiver<N>) {
        let parcel = Arc::new(Parcel {
            line: Line(AtomicU64::new(u64::MAX)),
            payload: (0..N / 8).map(|_| AtomicU64::new(0)).collect(),
        });
        (
            CarriedSender(Arc::clone(&parcel)),
            CarriedReceiver { parcel, next: 0 },
        )
    }
}

pub(super) struct CarriedSender<const N: usize>(Arc<Parcel<N>>);

impl<const N: usize> Sender for CarriedSender<N> {
    #[inline]
    fn send(&mut self, number: u64) {
        for (i, word) in self.0.payload.iter().enumerate() {
            // Relaxed: the Release below publishes it.
            word.store(number.wrapping_add(i as u64), Ordering::Relaxed);
        }
        // Release pairs with the Acquire of the receiver.
        self.0.line.0.store(number, Ordering::Release);
    }
}

pub(super) struct CarriedReceiver<const N: usize> {
    parcel: Arc<Parcel<N>>,
    next: u64,
}

impl<const N: usize> Receiver for CarriedReceiver<N> {
    #[inline]
    fn receive(&mut self, count: u64) -> u64 {
        debug_assert_eq!(count, 1, "it holds one");
        while self.parcel.line.0.load(Ordering::Acquire) != self.next {
            spin_loop();
        }
        self.next += 1;
        // Relaxed: the Acquire above has made them visible, and the sender waits for our answer
        // before it writes again.
        let words = self.parcel.payload.iter();
        words.fold(0, |sum, word| {
            sum.wrapping_add(word.load(Ordering::Relaxed))
        })
    }
}
