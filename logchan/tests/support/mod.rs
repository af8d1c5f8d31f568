//! Both ends of a channel in one process, over real sockets and shared memory.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses its part"
)]

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_logchan::entry::{Flags, Sequence};
use lockstep_logchan::protocol::Role;
use lockstep_logchan::protocol::hello::{Agreed, Hello};
use lockstep_logchan::protocol::receiver::Replayed;
use lockstep_logchan::reader::EntryReader;
use lockstep_logchan::transport::on_core::OnCore;
use lockstep_logchan::transport::shm::{self, ShmAck, ShmBackup, ShmOptions, ShmParts, ShmPrimary};
use lockstep_logchan::transport::tcp::{TcpBackup, TcpOptions, TcpPrimary};
use lockstep_logchan::transport::{BackupChannel, ChannelError, PrimaryChannel, ReplayReport};
use lockstep_logchan::writer::{DraftError, EntryWriter};
use lockstep_perf::stamp;
use lockstep_ringbuf::{Ring, RingOptions, WaitPolicy, Waited};

/// Waits that are this long have failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Ring size: small, so that every test goes round it many times.
pub const RING: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    TcpOnCore,
    ShmCommitted,
    ShmReceived,
}

pub const KINDS: [Kind; 4] = [
    Kind::Tcp,
    Kind::TcpOnCore,
    Kind::ShmCommitted,
    Kind::ShmReceived,
];

pub const SPIN_THEN_BLOCK: WaitPolicy = WaitPolicy::SpinThenBlock {
    spin: Duration::from_micros(20),
};

pub struct Ends {
    pub writer: EntryWriter,
    pub primary: Box<dyn PrimaryChannel>,
    pub backup: Box<dyn BackupChannel>,
    pub reader: EntryReader,
}

pub fn ring() -> Ring {
    Ring::create(RING, RingOptions::default()).expect("a ring")
}

pub fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let connecting = std::thread::spawn(move || TcpStream::connect(address).expect("connected"));
    let (accepted, _) = listener.accept().expect("accepted");
    (accepted, connecting.join().expect("connected"))
}

pub fn agreed() -> Agreed {
    Agreed {
        generation: 1,
        peer_ring_bytes: RING as u64,
    }
}

pub fn tcp_options(wait: WaitPolicy) -> TcpOptions {
    TcpOptions {
        wait,
        ..TcpOptions::default()
    }
}

pub fn shm_options(ack: ShmAck, wait: WaitPolicy) -> ShmOptions {
    ShmOptions {
        ack,
        wait,
        stall_timeout: Duration::from_millis(100),
    }
}

pub fn writer(ring: &Ring) -> EntryWriter {
    EntryWriter::new(ring.producer().expect("the producer"), Sequence::NONE)
}

pub fn ends(kind: Kind, wait: WaitPolicy) -> Ends {
    match kind {
        Kind::Tcp | Kind::TcpOnCore => tcp_ends(kind, &tcp_options(wait)),
        Kind::ShmCommitted => shm_ends(ShmAck::Committed, wait),
        Kind::ShmReceived => shm_ends(ShmAck::Received, wait),
    }
}

pub fn tcp_ends(kind: Kind, options: &TcpOptions) -> Ends {
    let (ours, theirs) = tcp_pair();
    let (near, far) = (ring(), ring());
    let primary = TcpPrimary::new(ours.into(), &near, Sequence::NONE, &agreed(), options)
        .expect("the primary's end");
    let (backup, reader) =
        TcpBackup::new(theirs.into(), &far, Sequence::NONE, options).expect("the backup's end");
    let primary: Box<dyn PrimaryChannel> = match kind {
        Kind::TcpOnCore => {
            Box::new(OnCore::start(primary, -1, options.wait, options.wait).expect("a thread"))
        }
        _ => Box::new(primary),
    };
    Ends {
        writer: writer(&near),
        primary,
        backup: Box::new(backup),
        reader,
    }
}

fn shm_ends(ack: ShmAck, wait: WaitPolicy) -> Ends {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let near = ring();
    let parts = ShmParts::create(&near).expect("a control page");
    shm::send_parts(ours.as_fd(), &parts).expect("sent");
    let received = shm::receive_parts(theirs.as_fd()).expect("received");
    let primary = ShmPrimary::new(ours.into(), parts, Sequence::NONE, shm_options(ack, wait));
    let (backup, reader) = ShmBackup::new(
        theirs.into(),
        received,
        Sequence::NONE,
        shm_options(ack, wait),
    )
    .expect("the backup's end");
    Ends {
        writer: writer(&near),
        primary: Box::new(primary),
        backup: Box::new(backup),
        reader,
    }
}

pub fn hello(role: Role) -> Hello {
    Hello {
        role,
        vm: "tenant".into(),
        generation: (role == Role::Primary).then_some(7),
        ring_bytes: RING as u64,
        starts_behind: Sequence::NONE,
        configuration: BTreeMap::from([
            ("engine".to_owned(), "soft".into()),
            ("memory-bytes".to_owned(), (64 << 20).into()),
        ]),
    }
}

/// Writes one entry, waiting for room as a vCPU's thread does.
pub fn write(
    ends: (&mut EntryWriter, &mut dyn PrimaryChannel),
    payload: &[u8],
    flags: Flags,
) -> Sequence {
    let (writer, primary) = ends;
    let start = Instant::now();
    loop {
        match writer.draft(payload.len()) {
            Ok(mut draft) => {
                draft.payload_mut().copy_from_slice(payload);
                let n = payload.len() as u64;
                return draft.commit(3, flags, n, n * 10, payload.len());
            }
            Err(DraftError::Full { needed, .. }) => {
                assert!(
                    start.elapsed() < PATIENCE,
                    "no room for {needed} bytes: {:?}",
                    primary.counters()
                );
                primary.flush(writer, stamp::now()).expect("flushed");
                primary.poll(writer, stamp::now()).expect("polled");
                primary.wake_backup(writer);
                primary
                    .wait(writer, needed, Duration::from_millis(10))
                    .expect("waited");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until everything written is acknowledged.
pub fn settle(writer: &EntryWriter, primary: &mut dyn PrimaryChannel) {
    let start = Instant::now();
    loop {
        primary.flush(writer, stamp::now()).expect("flushed");
        let acked = primary.poll(writer, stamp::now()).expect("polled").acked;
        primary.wake_backup(writer);
        if acked == writer.last_sequence() {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "acknowledged {acked} of {}: {:?}",
            writer.last_sequence(),
            primary.counters()
        );
        primary
            .wait(writer, 0, Duration::from_millis(10))
            .expect("waited");
    }
}

/// A receiving thread; ends with the channel's error, or when told to.
pub struct Receiving {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<ChannelError>>,
    pub report: ReplayReport,
}

impl Receiving {
    pub fn start(mut backup: Box<dyn BackupChannel>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let report = backup.report();
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                if let Err(error) = backup.receive(Duration::from_millis(5)) {
                    return Some(error);
                }
            }
            None
        });
        Self {
            stop,
            thread,
            report,
        }
    }

    pub fn stop(self) -> Option<ChannelError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the receiving thread ends")
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the channel's own end.
    pub fn end(self) -> ChannelError {
        let start = Instant::now();
        while !self.thread.is_finished() {
            assert!(
                start.elapsed() < PATIENCE,
                "the receiving thread does not end"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stop().expect("an error")
    }
}

/// Reads the next entry as a replaying thread does: sequence, payload.
pub fn read_next(reader: &mut EntryReader, report: &ReplayReport) -> (Sequence, Vec<u8>) {
    let start = Instant::now();
    loop {
        if let Some(entry) = reader.peek().expect("a good log") {
            let read = (entry.sequence(), entry.payload().to_vec());
            let replayed = Replayed {
                sequence: entry.sequence(),
                position: entry.position(),
            };
            reader.release();
            report.replayed(replayed);
            return read;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "nothing to replay behind {}",
            reader.last_sequence()
        );
        if reader.wait(&WaitPolicy::Block, Duration::from_millis(50)) == Waited::Corrupt {
            panic!("the ring is corrupt");
        }
    }
}

/// Small reproducible numbers (xorshift).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Sizes as a log has them: mostly small, now and then a large frame.
    pub fn payload(&mut self) -> Vec<u8> {
        let size = match self.next() % 16 {
            0 => self.next() % (64 << 10),
            1 => self.next() % 9000,
            _ => self.next() % 300,
        };
        let seed = self.next();
        (0..size)
            .map(|n| (seed.wrapping_mul(n | 1) >> 13) as u8)
            .collect()
    }
}
