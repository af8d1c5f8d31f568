//! The rings compared, each by the best of its own interface.
//!
//! Rules that are the same for all: every entry is published by itself, as soon as it is written; the
//! reader may take all that is there at once, and give back several at once; who waits spins.

use std::hint::spin_loop;
use std::mem::MaybeUninit;

use crossbeam::channel;
use ringbuf::traits::{Consumer as _, Producer as _, Raw as _, Split as _};
use ringbuf::{HeapCons, HeapProd, HeapRb};

use super::entry::{self, Entry, fill, sum};

/// A way for entries of `N` bytes.
pub(super) trait Contender<const N: usize>: 'static {
    /// What the report calls it.
    const NAME: &'static str;
    type Sender: Sender;
    type Receiver: Receiver;
    /// A way that holds `capacity` bytes.
    fn open(capacity: usize) -> (Self::Sender, Self::Receiver);
    /// What the receiver makes of entry `number`.
    fn expected_sum(number: u64) -> u64 {
        entry::expected_sum::<N>(number)
    }
}

pub(super) trait Sender: Send {
    /// Writes and publishes entry `number`; spins while there is no room.
    fn send(&mut self, number: u64);
}

pub(super) trait Receiver: Send {
    /// Reads the next `count` entries and returns the sum of their sums; spins while there is none.
    fn receive(&mut self, count: u64) -> u64;
}

/// The log ring.
pub(super) struct Lockstep;

impl<const N: usize> Contender<N> for Lockstep {
    const NAME: &'static str = "lockstep";
    type Sender = LockstepSender<N>;
    type Receiver = LockstepReceiver<N>;

    fn open(capacity: usize) -> (LockstepSender<N>, LockstepReceiver<N>) {
        let ring = lockstep_ringbuf::Ring::create(capacity, Default::default())
            .expect("a ring of a few hundred KiB can be made");
        (
            LockstepSender(ring.producer().expect("a new ring")),
            LockstepReceiver(ring.consumer().expect("a new ring")),
        )
    }
}

pub(super) struct LockstepSender<const N: usize>(lockstep_ringbuf::Producer);

impl<const N: usize> Sender for LockstepSender<N> {
    #[inline]
    fn send(&mut self, number: u64) {
        loop {
            if let Ok(place) = self.0.reserve(N) {
                let place: &mut [u8; N] = place.try_into().expect("reserve gives what was asked");
                // SAFETY: `fill` only writes initialised bytes into it.
                fill(
                    unsafe { &mut *std::ptr::from_mut(place).cast::<[MaybeUninit<u8>; N]>() },
                    number,
                );
                return self.0.commit(N);
            }
            let policy = lockstep_ringbuf::WaitPolicy::Spin;
            let _ready = self.0.wait_free(N, &policy, None);
        }
    }
}

pub(super) struct LockstepReceiver<const N: usize>(lockstep_ringbuf::Consumer);

/// Bytes read before they are given back: the writer of a full ring gets on while the rest is read.
const PORTION_BYTES: usize = 16 << 10;

impl<const N: usize> Receiver for LockstepReceiver<N> {
    #[inline]
    fn receive(&mut self, count: u64) -> u64 {
        let (mut left, mut total) = (count, 0u64);
        while left > 0 {
            let (entries, _) = self.0.known().as_chunks::<N>();
            let most = left.min((PORTION_BYTES / N) as u64) as usize;
            let portion = &entries[..entries.len().min(most)];
            for entry in portion {
                total = total.wrapping_add(sum(entry));
            }
            let taken = portion.len();
            if taken > 0 {
                self.0.release(taken * N);
                left -= taken as u64;
            } else {
                let beyond = self.0.cursor();
                let policy = lockstep_ringbuf::WaitPolicy::Spin;
                let _ready = self.0.wait_committed(beyond, &policy, None);
            }
        }
        total
    }
}

/// `rtrb`, values moved in and out.
pub(super) struct RtrbValues;

impl<const N: usize> Contender<N> for RtrbValues {
    const NAME: &'static str = "rtrb push-pop";
    type Sender = RtrbPush<N>;
    type Receiver = RtrbPop<N>;

    fn open(capacity: usize) -> (RtrbPush<N>, RtrbPop<N>) {
        let (producer, consumer) = rtrb::RingBuffer::new(capacity / N);
        (RtrbPush(producer), RtrbPop(consumer))
    }
}

pub(super) struct RtrbPush<const N: usize>(rtrb::Producer<Entry<N>>);

impl<const N: usize> Sender for RtrbPush<N> {
    #[inline]
    fn send(&mut self, number: u64) {
        while self.0.is_full() {
            spin_loop();
        }
        let pushed = self.0.push(Entry::new(number));
        debug_assert!(pushed.is_ok(), "it was not full");
    }
}

pub(super) struct RtrbPop<const N: usize>(rtrb::Consumer<Entry<N>>);

impl<const N: usize> Receiver for RtrbPop<N> {
    #[inline]
    fn receive(&mut self, count: u64) -> u64 {
        let mut total = 0u64;
        for _ in 0..count {
            loop {
                if let Ok(entry) = self.0.pop() {
                    total = total.wrapping_add(entry.sum());
                    break;
                }
                spin_loop();
            }
        }
        total
    }
}

/// `rtrb`, written and read in place by chunks.
pub(super) struct RtrbChunks;

impl<const N: usize> Contender<N> for RtrbChunks {
    const NAME: &'static str = "rtrb chunks";
    type Sender = RtrbWrite<N>;
    type Receiver = RtrbRead<N>;

    fn open(capacity: usize) -> (RtrbWrite<N>, RtrbRead<N>) {
        let (producer, consumer) = rtrb::RingBuffer::new(capacity / N);
        (RtrbWrite(producer), RtrbRead(consumer))
    }
}

pub(super) struct RtrbWrite<const N: usize>(rtrb::Producer<Entry<N>>);

impl<const N: usize> Sender for RtrbWrite<N> {
    #[inline]
    fn send(&mut self, number: u64) {
        loop {
            if let Ok(mut chunk) = self.0.write_chunk_uninit(1) {
                Entry::write(&mut chunk.as_mut_slices().0[0], number);
                // SAFETY: the one slot of the chunk was written just now.
                return unsafe { chunk.commit_all() };
            }
            spin_loop();
        }
    }
}

pub(super) struct RtrbRead<const N: usize>(rtrb::Consumer<Entry<N>>);

impl<const N: usize> Receiver for RtrbRead<N> {
    #[inline]
    fn receive(&mut self, count: u64) -> u64 {
        let (mut left, mut total) = (count, 0u64);
        while left > 0 {
            let ready = left.min(self.0.slots() as u64);
            if ready == 0 {
                spin_loop();
                continue;
            }
            let chunk = self.0.read_chunk(ready as usize).expect("they are there");
            let (first, second) = chunk.as_slices();
            for entry in first.iter().chain(second) {
                total = total.wrapping_add(entry.sum());
            }
            chunk.commit_all();
            left -= ready;
        }
        total
    }
}

/// The `ringbuf` crate, values moved in and out.
pub(super) struct RingbufValues;

impl<const N: usize> Contender<N> for RingbufValues {
    const NAME: &'static str = "ringbuf push-pop";
    type Sender = RingbufPush<N>;
    type Receiver = RingbufPop<N>;

    fn open(capacity: usize) -> (RingbufPush<N>, RingbufPop<N>) {
        let (producer, consumer) = HeapRb::new(capacity / N).split();
        (RingbufPush(producer), RingbufPop(consumer))
    }
}

pub(super) struct RingbufPush<const N: usize>(HeapProd<Entry<N>>);

impl<const N: usize> Sender for RingbufPush<N> {
    #[inline]
    fn send(&mut self, number: u64) {
        let mut entry = Entry::new(number);
        while let Err(refused) = self.0.try_push(entry) {
            entry = refused;
            spin_loop();
        }
    }
}

pub(super) struct RingbufPop<const N: usize>(HeapCons<Entry<N>>);

impl<const N: usize> Receiver for RingbufPop<N> {
    #[inline]
    fn receive(&mut self, count: u64) -> u64 {
        let mut total = 0u64;
        for _ in 0..count {
            loop {
                if let Some(entry) = self.0.try_pop() {
                    total = total.wrapping_add(entry.sum());
                    break;
                }
                spin_loop();
            }
        }
        total
    }
}

/// The `ringbuf` crate, written and read in place by slices.
pub(super) struct RingbufSlices;

impl<const N: usize> Contender<N> for RingbufSlices {
    const NAME: &'static str = "ringbuf slices";
    type Sender = RingbufWrite<N>;
    type Receiver = RingbufRead<N>;

    fn open(capacity: usize) -> (RingbufWrite<N>, RingbufRead<N>) {
        let (producer, consumer) = HeapRb::new(capacity / N).split();
        (RingbufWrite(producer), RingbufRead(consumer))
    }
}

pub(super) struct RingbufWrite<const N: usize>(HeapProd<Entry<N>>);

impl<const N: usize> Sender for RingbufWrite<N> {
    #[inline]
    fn send(&mut self, number: u64) {
        loop {
            if let Some(place) = self.0.vacant_slices_mut().0.first_mut() {
                Entry::write(place, number);
                // SAFETY: the first vacant place was written just now.
                return unsafe { self.0.advance_write_index(1) };
            }
            spin_loop();
        }
    }
}

pub(super) struct RingbufRead<const N: usize>(HeapCons<Entry<N>>);

impl<const N: usize> Receiver for RingbufRead<N> {
    #[inline]
    fn receive(&mut self, count: u64) -> u64 {
        let (mut left, mut total) = (count, 0u64);
        while left > 0 {
            let (first, second) = self.0.as_slices();
            let ready = left.min((first.len() + second.len()) as u64);
            for entry in first.iter().chain(second).take(ready as usize) {
                total = total.wrapping_add(entry.sum());
            }
            // SAFETY: so many are occupied, and an entry needs no drop.
            unsafe { self.0.advance_read_index(ready as usize) };
            if ready == 0 {
                spin_loop();
            }
            left -= ready;
        }
        total
    }
}

/// A bounded `crossbeam` channel of values.
pub(super) struct Crossbeam;

impl<const N: usize> Contender<N> for Crossbeam {
    const NAME: &'static str = "crossbeam channel";
    type Sender = CrossbeamSend<N>;
    type Receiver = CrossbeamReceive<N>;

    fn open(capacity: usize) -> (CrossbeamSend<N>, CrossbeamReceive<N>) {
        let (sender, receiver) = channel::bounded(capacity / N);
        (CrossbeamSend(sender), CrossbeamReceive(receiver))
    }
}

pub(super) struct CrossbeamSend<const N: usize>(channel::Sender<Entry<N>>);

impl<const N: usize> Sender for CrossbeamSend<N> {
    #[inline]
    fn send(&mut self, number: u64) {
        let mut entry = Entry::new(number);
        while let Err(refused) = self.0.try_send(entry) {
            entry = refused.into_inner();
            spin_loop();
        }
    }
}

pub(super) struct CrossbeamReceive<const N: usize>(channel::Receiver<Entry<N>>);

impl<const N: usize> Receiver for CrossbeamReceive<N> {
    #[inline]
    fn receive(&mut self, count: u64) -> u64 {
        let mut total = 0u64;
        for _ in 0..count {
            loop {
                if let Ok(entry) = self.0.try_recv() {
                    total = total.wrapping_add(entry.sum());
                    break;
                }
                spin_loop();
            }
        }
        total
    }
}
