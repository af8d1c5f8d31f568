//! The yardstick: one cache line handed from one core to the other, and nothing else. No ring can be
//! faster, for whatever it carries, the reader must learn of it by a line that the writer wrote.

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
