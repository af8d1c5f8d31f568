//! One round of one arm.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_logchan::entry::{Flags, HEADER_BYTES, MAX_PAYLOAD_BYTES, Sequence};
use lockstep_logchan::protocol::ack::ACK_BYTES;
use lockstep_logchan::protocol::hello::Agreed;
use lockstep_logchan::reader::EntryReader;
use lockstep_logchan::transport::on_core::OnCore;
use lockstep_logchan::transport::shm::{self, ShmAck, ShmBackup, ShmOptions, ShmParts, ShmPrimary};
use lockstep_logchan::transport::tcp::{TcpBackup, TcpOptions, TcpPrimary};
use lockstep_logchan::transport::{BackupChannel, ChannelError, PrimaryChannel};
use lockstep_logchan::writer::{DraftError, EntryWriter};
use lockstep_perf::interval::{IntervalRecorder, Series};
use lockstep_perf::{pin, stamp};
use lockstep_ringbuf::{Ring, RingError, RingOptions, WaitPolicy};

use super::bare::End;
use super::{Arm, Flush, Options, Transport, Waiting};

/// What one round brought.
pub(super) struct Round {
    pub(super) closed: Series,
    pub(super) open: Series,
    pub(super) throughput: Option<f64>,
}

/// Why a round brought nothing.
pub(super) enum RoundError {
    /// The host does not have what the arm's knob asks for.
    Lacking(String),
    /// Something that should work did not.
    Failed(String),
}

impl RoundError {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<ChannelError> for RoundError {
    fn from(error: ChannelError) -> Self {
        Self::failed(error)
    }
}

impl From<io::Error> for RoundError {
    fn from(error: io::Error) -> Self {
        Self::failed(error)
    }
}

impl From<RingError> for RoundError {
    fn from(error: RingError) -> Self {
        Self::failed(error)
    }
}

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first part of a round that is measured and thrown away.
const WARM_UP: usize = 5;

/// Capacity of the rings while latency is measured: a round fits, without a replay.
fn ring_bytes(options: &Options) -> usize {
    let entry = (HEADER_BYTES + options.payload_bytes).next_multiple_of(8);
    let open = f64::from(options.rate) * options.open_loop.as_secs_f64() * 1.5;
    ((options.entries + open as usize + 1000) * entry)
        .next_power_of_two()
        .clamp(1 << 20, 1 << 30)
}

/// Runs one round of `arm` on a thread of its own, so that a pin lasts no longer than the round.
pub(super) fn round(
    arm: &Arm,
    options: &Options,
    cores: Option<[usize; 2]>,
) -> Result<Round, RoundError> {
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            pin_to(cores.map(|cores| cores[0]))?;
            let back = cores.map(|cores| cores[1]);
            match arm.transport {
                Transport::Bare => bare(arm.waiting, options, back),
                _ => channel(arm, options, back),
            }
        });
        measuring
            .join()
            .unwrap_or_else(|_| Err(RoundError::Failed("the measuring thread panicked".into())))
    })
}

fn pin_to(core: Option<usize>) -> Result<(), RoundError> {
    core.map_or(Ok(()), |core| {
        pin::current_thread(core).map_err(RoundError::failed)
    })
}

fn tcp_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // The handshake is complete once `connect` returns: the connection waits in the backlog.
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    Ok((near, far))
}

fn bare(waiting: Waiting, options: &Options, back: Option<usize>) -> Result<Round, RoundError> {
    let entry = HEADER_BYTES + options.payload_bytes;
    let (near, far) = tcp_pair()?;
    let mut far = End::new(far, waiting, entry)?;
    let echo = std::thread::spawn(move || -> Result<(), RoundError> {
        pin_to(back)?;
        while far.receive(entry)? {
            far.send(ACK_BYTES)?;
        }
        Ok(())
    });
    let mut near = End::new(near, waiting, entry)?;
    let closed = closed_loop(options, || {
        near.send(entry)?;
        if near.receive(ACK_BYTES)? {
            Ok(())
        } else {
            Err(RoundError::Failed("the echo ended".into()))
        }
    })?;
    drop(near);
    echo.join()
        .unwrap_or_else(|_| Err(RoundError::Failed("the echo panicked".into())))?;
    Ok(Round {
        closed,
        open: Series::new(),
        throughput: None,
    })
}

/// The primary's end, and the backup's on its thread.
struct Ends {
    writer: EntryWriter,
    primary: Box<dyn PrimaryChannel>,
    stop: Arc<AtomicBool>,
    receiving: JoinHandle<Result<(), RoundError>>,
    reader: Option<EntryReader>,
}

impl Ends {
    fn make(arm: &Arm, ring: usize, back: Option<usize>) -> Result<Self, RoundError> {
        let wait = arm.waiting.policy();
        let near = Ring::create(ring, RingOptions::default())?;
        let writer = EntryWriter::new(near.producer()?, Sequence::NONE);
        let (primary, backup, reader): (Box<dyn PrimaryChannel>, Box<dyn BackupChannel>, _) =
            match arm.transport {
                Transport::Shm(ack) => shm_ends(&near, ack, wait)?,
                _ => tcp_ends(arm, &near, wait)?,
            };
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let receiving = std::thread::spawn(move || {
            pin_to(back)?;
            receive(backup, &told)
        });
        Ok(Self {
            writer,
            primary,
            stop,
            receiving,
            reader: Some(reader),
        })
    }

    fn end(self) -> Result<(), RoundError> {
        self.stop.store(true, Ordering::Relaxed);
        let received = self.receiving.join();
        drop(self.primary);
        received.unwrap_or_else(|_| Err(RoundError::Failed("the receiving thread panicked".into())))
    }

    /// Commits one entry and hands it over.
    fn send(&mut self, payload: usize, flags: Flags) -> Result<Sequence, RoundError> {
        let give_up = stamp::now() + PATIENCE.as_nanos() as u64;
        let sequence = loop {
            match self.writer.draft(payload) {
                Ok(draft) => break draft.commit(1, flags, 0, 0, payload),
                Err(DraftError::Full { needed, .. }) if stamp::now() < give_up => {
                    self.primary
                        .wait(&self.writer, needed, Duration::from_millis(1))?;
                    self.primary.flush(&self.writer, stamp::now())?;
                    self.primary.poll(&self.writer, stamp::now())?;
                }
                Err(error) => {
                    let counters = self.primary.counters();
                    return Err(RoundError::Failed(format!("{error}; {counters:?}")));
                }
            }
        };
        self.primary.flush(&self.writer, stamp::now())?;
        Ok(sequence)
    }

    /// Waits until `sequence` is acknowledged, and looks at nothing else.
    fn settle(&mut self, sequence: Sequence) -> Result<(), RoundError> {
        let mut give_up = 0;
        loop {
            let now = stamp::now();
            if self.primary.poll(&self.writer, now)?.acked >= sequence {
                return Ok(());
            }
            if give_up == 0 {
                give_up = now + PATIENCE.as_nanos() as u64;
            } else if now > give_up {
                return Err(RoundError::Failed(format!(
                    "{sequence} is not acknowledged in {PATIENCE:?}"
                )));
            }
            self.primary
                .wait(&self.writer, 0, Duration::from_millis(10))?;
        }
    }
}

type Made = (Box<dyn PrimaryChannel>, Box<dyn BackupChannel>, EntryReader);

fn shm_ends(near: &Ring, ack: ShmAck, wait: WaitPolicy) -> Result<Made, RoundError> {
    let options = ShmOptions {
        ack,
        wait,
        stall_timeout: PATIENCE,
    };
    let (ours, theirs) = UnixStream::pair()?;
    let parts = ShmParts::create(near)?;
    shm::send_parts(ours.as_fd(), &parts)?;
    let passed = shm::receive_parts(theirs.as_fd())?;
    let (backup, reader) = ShmBackup::new(theirs.into(), passed, Sequence::NONE, options.clone())?;
    let primary = ShmPrimary::new(ours.into(), parts, Sequence::NONE, options);
    Ok((Box::new(primary), Box::new(backup), reader))
}

fn tcp_ends(arm: &Arm, near: &Ring, wait: WaitPolicy) -> Result<Made, RoundError> {
    let Transport::Tcp {
        flush,
        sqpoll,
        send_zc,
        busy_poll_us,
    } = arm.transport
    else {
        unreachable!("only TCP comes here");
    };
    let options = TcpOptions {
        wait,
        sqpoll,
        send_zc,
        busy_poll_us,
        ..TcpOptions::default()
    };
    let (ours, theirs) = tcp_pair()?;
    let far = Ring::create(near.capacity(), RingOptions::default())?;
    let agreed = Agreed {
        generation: 1,
        peer_ring_bytes: far.capacity() as u64,
    };
    let made =
        TcpPrimary::new(ours.into(), near, Sequence::NONE, &agreed, &options).and_then(|primary| {
            Ok((
                primary,
                TcpBackup::new(theirs.into(), &far, Sequence::NONE, &options)?,
            ))
        });
    let (primary, (backup, reader)) = match made {
        // With the knobs at their defaults there is nothing to lack.
        Err(error) if arm.transport != Transport::plain_tcp() => {
            return Err(RoundError::Lacking(error.to_string()));
        }
        made => made?,
    };
    let primary: Box<dyn PrimaryChannel> = match flush {
        Flush::Inline => Box::new(primary),
        Flush::Core => Box::new(OnCore::start(primary, -1, wait, wait)?),
    };
    Ok((primary, Box::new(backup), reader))
}

fn receive(mut backup: Box<dyn BackupChannel>, stop: &AtomicBool) -> Result<(), RoundError> {
    while !stop.load(Ordering::Relaxed) {
        backup.receive(Duration::from_millis(5))?;
    }
    Ok(())
}

fn channel(arm: &Arm, options: &Options, back: Option<usize>) -> Result<Round, RoundError> {
    let mut ends = Ends::make(arm, ring_bytes(options), back)?;
    let closed = closed_loop(options, || {
        let sequence = ends.send(options.payload_bytes, Flags::ACK_AT_ONCE)?;
        ends.settle(sequence)
    })?;
    let open = if options.open_loop.is_zero() {
        Series::new()
    } else {
        open_loop(&mut ends, options)?
    };
    ends.end()?;
    let throughput = if options.throughput_bytes == 0 {
        None
    } else {
        let ring = 4 << 20;
        Some(throughput(Ends::make(arm, ring, back)?, options, back)?)
    };
    Ok(Round {
        closed,
        open,
        throughput,
    })
}

/// One thing after another, each done and waited for by `once`: as many as there are to be or there is
/// time for, but one at least. Measured after a fifth of either.
fn closed_loop(
    options: &Options,
    mut once: impl FnMut() -> Result<(), RoundError>,
) -> Result<Series, RoundError> {
    let mut recorder = IntervalRecorder::new(Duration::from_secs(5));
    let begin = stamp::now();
    let time = options.closed_loop.as_nanos() as u64;
    let (warm, over) = (begin + time / WARM_UP as u64, begin + time);
    let mut measured = None;
    for n in 0..options.entries {
        let start = stamp::now();
        if measured.is_none() && (n >= options.entries / WARM_UP || start >= warm) {
            recorder.begin(start);
            measured = Some(0_usize);
        }
        if start >= over && measured.is_some_and(|count| count > 0) {
            break;
        }
        once()?;
        if let Some(count) = &mut measured {
            let end = stamp::now();
            recorder.record(end, end - start);
            *count += 1;
        }
    }
    Ok(recorder.finish(stamp::now()))
}

/// Entries at their times, whatever became of those before; measured from the time due.
fn open_loop(ends: &mut Ends, options: &Options) -> Result<Series, RoundError> {
    let interval = 1_000_000_000 / u64::from(options.rate.max(1));
    let start = stamp::now();
    let stop = start + options.open_loop.as_nanos() as u64;
    let mut recorder = IntervalRecorder::new(options.open_loop);
    recorder.begin(start);
    // Entries are numbered and due in order, so the oldest not yet acknowledged says it all.
    let first = ends.writer.last_sequence().next();
    let due = |sequence: Sequence| start + sequence.since(first) * interval;
    let mut next = first;
    let mut oldest = first;
    loop {
        let now = stamp::now();
        let sending = due(next) < stop;
        if !sending && oldest == next {
            return Ok(recorder.finish(stop));
        }
        if now > stop + PATIENCE.as_nanos() as u64 {
            return Err(RoundError::Failed(format!(
                "{oldest} is not acknowledged in {PATIENCE:?}"
            )));
        }
        if sending && now >= due(next) {
            next = ends.send(options.payload_bytes, Flags::ACK_AT_ONCE)?.next();
        }
        let acked = ends.primary.poll(&ends.writer, stamp::now())?.acked;
        let at = stamp::now();
        while oldest <= acked && oldest < next {
            recorder.record(at, at - due(oldest));
            oldest = oldest.next();
        }
        if oldest < next {
            // Not beyond the time the next is due.
            let left = if sending {
                due(next).saturating_sub(at)
            } else {
                interval
            };
            ends.primary
                .wait(&ends.writer, 0, Duration::from_nanos(left.min(1_000_000)))?;
        } else if sending {
            pause(due(next));
        }
    }
}

/// Waits until `due`, the last stretch spinning: sleeping is not that exact.
fn pause(due: u64) {
    const EXACT_NS: u64 = 60_000;
    let left = due.saturating_sub(stamp::now());
    if left > EXACT_NS {
        std::thread::sleep(Duration::from_nanos(left - EXACT_NS));
    }
    while stamp::now() < due {
        std::hint::spin_loop();
    }
}

/// As much as goes through, replayed by a thread that only reads. Megabytes of log a second.
fn throughput(mut ends: Ends, options: &Options, back: Option<usize>) -> Result<f64, RoundError> {
    let payload = options.throughput_payload_bytes.min(MAX_PAYLOAD_BYTES);
    let most = options
        .throughput_bytes
        .div_ceil((HEADER_BYTES + payload) as u64);
    // The number of the last entry, once it is known.
    let end = Arc::new(AtomicU64::new(u64::MAX));
    let known = Arc::clone(&end);
    let Some(mut reader) = ends.reader.take() else {
        return Err(RoundError::Failed("the reader is gone".into()));
    };
    let replaying = std::thread::spawn(move || -> Result<(), RoundError> {
        pin_to(back)?;
        let mut idle_since = stamp::now();
        // Relaxed: a number, on the strength of which nothing else is read.
        while reader.last_sequence().0 < known.load(Ordering::Relaxed) {
            if reader.peek().map_err(RoundError::failed)?.is_some() {
                reader.release();
                idle_since = stamp::now();
            } else if stamp::now() - idle_since > PATIENCE.as_nanos() as u64 {
                return Err(RoundError::Failed("the log stopped".into()));
            } else {
                let _waited = reader.wait(&WaitPolicy::Block, Duration::from_millis(1));
            }
        }
        Ok(())
    });
    let start = stamp::now();
    let over = start + options.throughput.as_nanos() as u64;
    let mut last = Sequence::NONE;
    while last.0 < most && (last == Sequence::NONE || stamp::now() < over) {
        last = ends.send(payload, Flags::NONE)?;
        ends.primary.poll(&ends.writer, stamp::now())?;
        ends.primary.wake_backup(&ends.writer);
    }
    end.store(last.0, Ordering::Relaxed);
    ends.settle(last)?;
    let replayed = replaying.join();
    let seconds = (stamp::now() - start) as f64 / 1e9;
    replayed.unwrap_or_else(|_| Err(RoundError::Failed("the replaying thread panicked".into())))?;
    ends.end()?;
    Ok(last.0 as f64 * (HEADER_BYTES + payload) as f64 / seconds / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the closed loop of `options` measures, and how often it calls, where each takes `once`.
    fn counts(options: &Options, once: Duration) -> (u64, usize) {
        let mut calls = 0;
        let series = closed_loop(options, || {
            calls += 1;
            std::thread::sleep(once);
            Ok(())
        });
        let Ok(series) = series else {
            panic!("nothing fails");
        };
        (series.total().count(), calls)
    }

    #[test]
    fn a_closed_loop_ends_with_its_entries_or_its_time_and_measures_one_at_least() {
        let options = |entries, ms| Options {
            entries,
            closed_loop: Duration::from_millis(ms),
            ..Options::default()
        };
        assert_eq!(counts(&options(50, 60_000), Duration::ZERO), (40, 50));
        let (measured, calls) = counts(&options(1_000_000, 50), Duration::from_millis(2));
        assert!(
            measured > 0 && calls <= 26 && (measured as usize) < calls,
            "{measured} {calls}"
        );
        // A fifth of the time and all of it are over at once: one warms up, one is measured.
        assert_eq!(counts(&options(1_000, 1), Duration::from_millis(5)), (1, 2));
    }
}
