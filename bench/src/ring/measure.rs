//! One round of one contender: a stream one way, or a ball back and forth.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::interval::{Interval, Series};
use lockstep_perf::pin::{self, PinError};
use lockstep_perf::stamp;

use super::contender::{Contender, Receiver, Sender};

/// The two cores between which is measured.
pub(super) type Cores = [usize; 2];

/// A contender with entries of one size, as the suite sees it.
pub(super) trait Arm {
    fn name(&self) -> &'static str;
    /// Streams `entries` from the first core to the second; returns how long that took, after an
    /// eighth as many to warm up.
    fn stream(&mut self, cores: Cores, entries: u64) -> Result<Duration, PinError>;
    /// Sends an entry to the second core, which answers with one of its own, `trips` times after an
    /// eighth as many to warm up, and appends half of each round trip to `one_way`.
    fn ping_pong(&mut self, cores: Cores, trips: u64, one_way: &mut Series)
    -> Result<(), PinError>;
}

/// One end, on cache lines of its own: nobody is to pay for where this suite keeps things.
#[repr(align(128))]
struct End<T>(T);

/// A way there and a way back.
pub(super) struct Ways<const N: usize, C: Contender<N>> {
    there: (End<C::Sender>, End<C::Receiver>),
    back: (End<C::Sender>, End<C::Receiver>),
    /// Number of the next entry there.
    next_there: u64,
    /// Number of the next entry back.
    next_back: u64,
}

impl<const N: usize, C: Contender<N>> Ways<N, C> {
    pub(super) fn open(capacity: usize) -> Box<dyn Arm> {
        let open = || {
            let (sender, receiver) = C::open(capacity);
            (End(sender), End(receiver))
        };
        Box::new(Self {
            there: open(),
            back: open(),
            next_there: 0,
            next_back: 0,
        })
    }
}

/// Where two pinned threads meet before they start. A sleeping barrier would wake one late.
#[derive(Default)]
struct Meeting(AtomicU32);

impl Meeting {
    fn pinned(&self, core: usize) -> Result<(), PinError> {
        let pinned = pin::current_thread(core);
        // Also after a refusal, or the other would wait for ever. Release and Acquire pair with each
        // other: both have begun.
        self.0.fetch_add(1, Ordering::AcqRel);
        while self.0.load(Ordering::Acquire) < 2 {
            spin_loop();
        }
        pinned
    }
}

fn joined<T>(result: std::thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl<const N: usize, C: Contender<N>> Arm for Ways<N, C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn stream(&mut self, cores: Cores, entries: u64) -> Result<Duration, PinError> {
        let warm = entries / 8;
        let first = self.next_there;
        self.next_there += warm + entries;
        let last = self.next_there;
        let (End(sender), End(receiver)) = &mut self.there;
        let meeting = Meeting::default();
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                meeting.pinned(cores[0])?;
                for number in first..last {
                    sender.send(number);
                }
                Ok(())
            });
            let receiving = scope.spawn(|| {
                meeting.pinned(cores[1])?;
                let warm_sum = receiver.receive(warm);
                let start = stamp::now();
                let sum = receiver.receive(entries);
                let took = Duration::from_nanos(stamp::now() - start);
                Ok((took, sum.wrapping_add(warm_sum)))
            });
            joined(sending.join())?;
            let (took, sum) = joined(receiving.join())?;
            check::<N, C>(first..last, sum);
            Ok(took)
        })
    }

    fn ping_pong(
        &mut self,
        cores: Cores,
        trips: u64,
        one_way: &mut Series,
    ) -> Result<(), PinError> {
        let warm = trips / 8;
        let (there, back) = (self.next_there, self.next_back);
        self.next_there += warm + trips;
        self.next_back += warm + trips;
        let (End(send_there), End(receive_there)) = &mut self.there;
        let (End(send_back), End(receive_back)) = &mut self.back;
        let meeting = Meeting::default();
        let sum = |receiver: &mut C::Receiver, sum: &mut u64| {
            *sum = sum.wrapping_add(receiver.receive(1));
        };
        std::thread::scope(|scope| {
            let answering = scope.spawn(|| {
                meeting.pinned(cores[1])?;
                let mut total = 0;
                for number in back..back + warm + trips {
                    sum(receive_there, &mut total);
                    send_back.send(number);
                }
                Ok(total)
            });
            let asking = scope.spawn(|| {
                let mut latencies = LatencyHistogram::new();
                meeting.pinned(cores[0])?;
                let mut total = 0;
                for number in there..there + warm {
                    send_there.send(number);
                    sum(receive_back, &mut total);
                }
                let started = SystemTime::now();
                let begin = stamp::now();
                let mut sent = begin;
                for number in there + warm..there + warm + trips {
                    send_there.send(number);
                    sum(receive_back, &mut total);
                    // One stamp a trip: its end is the next one's beginning.
                    let came = stamp::now();
                    latencies.record((came - sent) / 2);
                    sent = came;
                }
                let interval = Interval {
                    start: started,
                    length: Duration::from_nanos(sent - begin),
                    latencies,
                };
                Ok((interval, total))
            });
            let sum_there = joined(answering.join())?;
            let (interval, sum_back) = joined(asking.join())?;
            check::<N, C>(there..there + warm + trips, sum_there);
            check::<N, C>(back..back + warm + trips, sum_back);
            one_way.push(interval);
            Ok(())
        })
    }
}

/// Fails loudly when a contender lost, invented or changed something: its times would mean nothing.
fn check<const N: usize, C: Contender<N>>(numbers: std::ops::Range<u64>, found: u64) {
    let expected = numbers.fold(0u64, |sum, number| {
        sum.wrapping_add(C::expected_sum(number))
    });
    assert_eq!(
        found,
        expected,
        "{} did not deliver what was sent ({N} bytes an entry)",
        C::NAME
    );
}
