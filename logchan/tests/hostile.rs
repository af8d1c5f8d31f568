//! A peer that is broken, or means harm: a typed error on our side, and nothing else.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lockstep_logchan::entry::{EntryError, Flags, Sequence};
use lockstep_logchan::protocol::ack::{Ack, AckError};
use lockstep_logchan::protocol::receiver::Replayed;
use lockstep_logchan::reader::EntryReader;
use lockstep_logchan::transport::shm::{
    ShmAck, ShmBackup, ShmParts, ShmPrimary, receive_parts, send_parts,
};
use lockstep_logchan::transport::tcp::{TcpBackup, TcpPrimary};
use lockstep_logchan::transport::{ChannelError, PrimaryChannel};
use lockstep_logchan::writer::EntryWriter;
use lockstep_perf::stamp;
use lockstep_ringbuf::{Ring, RingOptions, WaitPolicy};
use support::*;

/// The entries 1 to `entries` as a primary sends them, each with `payload` bytes.
fn log(entries: u64, payload: usize) -> Vec<u8> {
    let ring = Ring::create(1 << 20, RingOptions::default()).expect("a ring");
    let mut writer = EntryWriter::new(ring.producer().expect("free"), Sequence::NONE);
    for n in 0..entries {
        let mut draft = writer.draft(payload).expect("room");
        draft.payload_mut().fill(n as u8);
        draft.commit(1, Flags::ACK_AT_ONCE, n, n, payload);
    }
    ring.consumer().expect("free").readable().to_vec()
}

/// Sends `bytes` to a backup and closes; returns the backup's error and its reader.
fn told(bytes: &[u8]) -> (ChannelError, EntryReader) {
    let (mut ours, theirs) = tcp_pair();
    let far = ring();
    let options = tcp_options(SPIN_THEN_BLOCK);
    let (backup, reader) =
        TcpBackup::new(theirs.into(), &far, Sequence::NONE, &options).expect("an end");
    let receiving = Receiving::start(Box::new(backup));
    // It may hang up on us before we are through.
    let _sent = ours.write_all(bytes);
    ours.shutdown(std::net::Shutdown::Write).ok();
    (receiving.end(), reader)
}

fn entries(reader: &mut EntryReader) -> u64 {
    while reader
        .peek()
        .expect("only good entries are visible")
        .is_some()
    {
        reader.release();
    }
    reader.last_sequence().0
}

#[test]
fn a_primary_that_stops_in_the_middle_of_an_entry_leaves_the_whole_ones() {
    let log = log(3, 100);
    for length in [
        0,
        5,
        47,
        log.len() / 3,
        log.len() / 3 + 1,
        log.len() - 1,
        log.len(),
    ] {
        let (error, mut reader) = told(&log[..length]);
        assert!(matches!(error, ChannelError::Closed { .. }), "{error}");
        assert_eq!(
            entries(&mut reader),
            (length / (log.len() / 3)) as u64,
            "{length} bytes"
        );
    }
}

#[test]
fn a_log_that_goes_wrong_is_good_up_to_there() {
    let log = log(3, 100);
    let third = log.len() / 3;
    let mut damaged = log.clone();
    damaged[2 * third + 60] ^= 4;
    let gap = [&log[..third], &log[2 * third..]].concat();
    let repeated = [&log[..2 * third], &log[third..]].concat();
    let mut endless = log.clone();
    endless[2 * third + 4..2 * third + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    let cases: [(&str, Vec<u8>, u64); 4] = [
        ("crc", damaged, 2),
        ("sequence", gap, 1),
        ("sequence", repeated, 2),
        ("length", endless, 2),
    ];
    for (field, bytes, good) in cases {
        let (error, mut reader) = told(&bytes);
        assert!(matches!(error, ChannelError::Entry(_)), "{error}");
        assert!(error.to_string().contains(&format!("`{field}`")), "{error}");
        assert_eq!(entries(&mut reader), good, "{field}");
    }
    let (error, _) = told(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n and some more to fill a header up");
    assert!(
        matches!(
            error,
            ChannelError::Entry(EntryError::LengthAboveMaximum { .. })
        ),
        "{error}"
    );
}

/// Answers a primary that has sent three entries; returns what it makes of it.
fn answered(answer: &[u8]) -> (ChannelError, EntryWriter) {
    let (ours, mut theirs) = tcp_pair();
    let near = ring();
    let options = tcp_options(SPIN_THEN_BLOCK);
    let mut primary =
        TcpPrimary::new(ours.into(), &near, Sequence::NONE, &agreed(), &options).expect("an end");
    let mut writer = writer(&near);
    let credit = Ack {
        free: RING as u64,
        ..Ack::default()
    };
    theirs.write_all(&credit.encode()).expect("sent");
    let start = Instant::now();
    while primary.poll(&writer, stamp::now()).expect("credit").credit == 0 {
        assert!(start.elapsed() < PATIENCE);
    }
    for _ in 0..3 {
        writer
            .draft(8)
            .expect("room")
            .commit(1, Flags::ACK_AT_ONCE, 0, 0, 8);
    }
    primary.flush(&writer, stamp::now()).expect("sent");
    theirs.write_all(answer).expect("sent");
    loop {
        match primary.poll(&writer, stamp::now()) {
            Ok(known) => assert!(known.acked <= Sequence(3)),
            Err(error) => return (error, writer),
        }
        assert!(start.elapsed() < PATIENCE, "nothing came of the answer");
        primary
            .wait(&writer, 0, Duration::from_millis(5))
            .expect("waited");
    }
}

#[test]
fn a_backup_that_acknowledges_nonsense_is_dropped_and_the_primarys_log_goes_on() {
    let ack = Ack {
        acked: Sequence(2),
        free: 4096,
        ..Ack::default()
    };
    let mut damaged = ack.encode();
    damaged[20] ^= 1;
    let cases: [(&str, Vec<u8>); 5] = [
        ("crc", damaged.to_vec()),
        (
            "magic",
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 123\r\n\r\n".to_vec(),
        ),
        (
            "acked",
            Ack {
                acked: Sequence(4),
                ..ack
            }
            .encode()
            .to_vec(),
        ),
        (
            "free",
            Ack {
                free: RING as u64 + 8,
                ..ack
            }
            .encode()
            .to_vec(),
        ),
        (
            "replayed",
            Ack {
                replayed: Sequence(3),
                ..ack
            }
            .encode()
            .to_vec(),
        ),
    ];
    for (field, answer) in cases {
        let (error, mut writer) = answered(&answer);
        assert!(matches!(error, ChannelError::Ack(_)), "{field}: {error}");
        assert!(error.to_string().contains(&format!("`{field}`")), "{error}");
        // The vCPU's side is as it was.
        assert_eq!(
            writer
                .draft(8)
                .expect("room")
                .commit(1, Flags::NONE, 0, 0, 8),
            Sequence(4)
        );
    }
}

#[test]
fn a_backup_that_floods_does_not_keep_the_primary() {
    let (ours, mut theirs) = tcp_pair();
    let near = ring();
    let options = tcp_options(SPIN_THEN_BLOCK);
    let mut primary =
        TcpPrimary::new(ours.into(), &near, Sequence::NONE, &agreed(), &options).expect("an end");
    let writer = writer(&near);
    theirs
        .set_write_timeout(Some(Duration::from_millis(50)))
        .expect("set");
    let flooding = std::thread::spawn(move || {
        let acks = Ack {
            free: 8,
            ..Ack::default()
        }
        .encode()
        .repeat(1000);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            let _sent = theirs.write_all(&acks);
        }
        theirs
    });
    let mut longest = Duration::ZERO;
    while !flooding.is_finished() {
        let start = Instant::now();
        primary
            .poll(&writer, stamp::now())
            .expect("nothing wrong with it");
        longest = longest.max(start.elapsed());
    }
    // Milliseconds only because others use this core, too.
    assert!(
        longest < Duration::from_millis(200),
        "a poll took {longest:?}"
    );
    let _theirs: TcpStream = flooding.join().expect("no panic");
}

/// A shared ring, and its parts as a hostile peer holds them.
fn shared(
    ack: ShmAck,
) -> (
    EntryWriter,
    ShmPrimary,
    ShmBackup,
    EntryReader,
    [OwnedFd; 2],
) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let near = ring();
    let parts = ShmParts::create(&near).expect("a control page");
    let fds =
        [parts.ring().fd(), parts.control_fd()].map(|fd| fd.try_clone_to_owned().expect("a copy"));
    send_parts(ours.as_fd(), &parts).expect("sent");
    let passed = receive_parts(theirs.as_fd()).expect("received");
    let options = shm_options(ack, WaitPolicy::Block);
    let primary = ShmPrimary::new(ours.into(), parts, Sequence::NONE, options.clone());
    let (backup, reader) =
        ShmBackup::new(theirs.into(), passed, Sequence::NONE, options).expect("an end");
    (writer(&near), primary, backup, reader, fds)
}

/// Writes into memory that others map.
fn scribble(fd: &OwnedFd, at: u64, value: u64) {
    rustix::io::pwrite(fd, &value.to_le_bytes(), at).expect("written");
}

#[test]
fn a_hostile_backup_in_shared_memory_cannot_acknowledge_what_is_not_there() {
    let (mut writer, mut primary, _backup, _reader, [_, page]) = shared(ShmAck::Received);
    writer
        .draft(0)
        .expect("room")
        .commit(1, Flags::NONE, 0, 0, 0);
    primary.flush(&writer, stamp::now()).expect("flushed");
    scribble(&page, 256, 2);
    let error = primary.poll(&writer, stamp::now()).expect_err("a lie");
    let (found, sent) = (Sequence(2), Sequence(1));
    assert!(
        matches!(&error, ChannelError::Ack(ack) if *ack == AckError::BeyondSent { found, sent }),
        "{error}"
    );

    let (mut writer, mut primary, _backup, _reader, [_, page]) = shared(ShmAck::Committed);
    writer
        .draft(0)
        .expect("room")
        .commit(1, Flags::NONE, 0, 0, 0);
    // What it says of its replay is never more than there is.
    scribble(&page, 384, u64::MAX);
    scribble(&page, 392, u64::MAX);
    // The first poll brings the acknowledgement, and puts off the look at what nothing waits for.
    primary.poll(&writer, stamp::now()).expect("harmless");
    let known = primary.poll(&writer, stamp::now()).expect("harmless");
    assert_eq!(known.replayed, Sequence(1));
}

#[test]
fn a_hostile_backup_in_shared_memory_cannot_break_the_ring() {
    let (mut writer, mut primary, _backup, _reader, [ring, _]) = shared(ShmAck::Committed);
    scribble(&ring, lockstep_ringbuf::layout::RELEASED_AT as u64, 1 << 40);
    let start = Instant::now();
    let error = loop {
        if let Ok(draft) = writer.draft(60_000) {
            draft.commit(1, Flags::NONE, 0, 0, 60_000);
        }
        match primary.poll(&writer, stamp::now()) {
            Ok(_) => assert!(start.elapsed() < PATIENCE),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ChannelError::Corrupt(_)), "{error}");
}

#[test]
fn a_hostile_primary_in_shared_memory_is_found_out() {
    // Hands over more than the ring holds.
    let (_writer, _primary, backup, _reader, [_, page]) = shared(ShmAck::Received);
    scribble(&page, 128, RING as u64 + 8);
    let error = Receiving::start(Box::new(backup)).end();
    assert!(matches!(error, ChannelError::Corrupt(_)), "{error}");

    // Hands over bytes that are no entry.
    let (_writer, _primary, backup, mut reader, [_, page]) = shared(ShmAck::Received);
    scribble(&page, 128, 4096);
    let error = Receiving::start(Box::new(backup)).end();
    assert!(
        matches!(
            error,
            ChannelError::Entry(EntryError::LengthBelowHeader { found: 0 })
        ),
        "{error}"
    );
    assert!(reader.peek().expect("nothing was received").is_none());

    // Commits bytes that are no entry.
    let (_writer, _primary, _backup, mut reader, [ring, _]) = shared(ShmAck::Committed);
    scribble(&ring, lockstep_ringbuf::layout::COMMITTED_AT as u64, 64);
    assert!(matches!(
        reader.peek(),
        Err(EntryError::LengthBelowHeader { found: 0 })
    ));

    // Commits more than the ring holds.
    let (_writer, _primary, _backup, mut reader, [ring, _]) = shared(ShmAck::Committed);
    scribble(
        &ring,
        lockstep_ringbuf::layout::COMMITTED_AT as u64,
        1 << 40,
    );
    assert!(matches!(reader.peek(), Err(EntryError::Ring(_))));
}

#[test]
fn a_changed_entry_in_shared_memory_is_not_acknowledged_as_received() {
    let (mut writer, mut primary, backup, mut reader, [ring, page]) = shared(ShmAck::Received);
    for _ in 0..2 {
        writer
            .draft(8)
            .expect("room")
            .commit(1, Flags::NONE, 0, 0, 8);
    }
    // The data area begins behind the control page, the second entry 48 bytes in.
    let mut control = [0; 8];
    rustix::io::pread(
        &ring,
        &mut control,
        lockstep_ringbuf::layout::CONTROL_BYTES_AT as u64,
    )
    .expect("read");
    scribble(&ring, u64::from_le_bytes(control) + 48 + 40, 0xBAD);
    primary.flush(&writer, stamp::now()).expect("flushed");
    let error = Receiving::start(Box::new(backup)).end();
    assert!(
        matches!(error, ChannelError::Entry(EntryError::Crc { .. })),
        "{error}"
    );
    let acked = rustix::io::pread(&page, &mut control, 256).map(|_| u64::from_le_bytes(control));
    assert_eq!(acked, Ok(1));
    assert_eq!(entries(&mut reader), 1);
}

#[test]
fn nothing_is_acknowledged_once_the_backup_has_sealed_the_ring() {
    for ack in [ShmAck::Committed, ShmAck::Received] {
        let (mut writer, mut primary, backup, mut reader, _) = shared(ack);
        writer
            .draft(0)
            .expect("room")
            .commit(1, Flags::NONE, 0, 0, 0);
        primary.flush(&writer, stamp::now()).expect("flushed");
        if ack == ShmAck::Received {
            let receiving = Receiving::start(Box::new(backup));
            settle(&writer, &mut primary);
            assert!(receiving.stop().is_none());
        } else {
            // Held until the end: its drop would close the socket.
            assert_eq!(
                primary.poll(&writer, stamp::now()).expect("polled").acked,
                Sequence(1)
            );
            std::mem::forget(backup);
        }
        let end = reader.seal();
        writer
            .draft(0)
            .expect("room")
            .commit(1, Flags::NONE, 0, 0, 0);
        primary.flush(&writer, stamp::now()).expect("flushed");
        let start = Instant::now();
        let error = loop {
            match primary.poll(&writer, stamp::now()) {
                Ok(known) => assert!(
                    known.acked == Sequence(1) && start.elapsed() < PATIENCE,
                    "{known:?}"
                ),
                Err(error) => break error,
            }
        };
        // With its socket closed the backup may be found dead before it is found to have sealed.
        assert!(
            matches!(error, ChannelError::Sealed | ChannelError::Closed { .. }),
            "{error}"
        );
        assert_eq!(end, 40);
        assert_eq!(entries(&mut reader), 1, "the log ended at the seal");
    }
}

#[test]
fn going_live_reads_on_behind_the_receiver() {
    let (mut writer, mut primary, backup, mut reader, _) = shared(ShmAck::Received);
    let receiving = Receiving::start(Box::new(backup));
    writer
        .draft(0)
        .expect("room")
        .commit(1, Flags::NONE, 0, 0, 0);
    settle(&writer, &mut primary);
    let report = receiving.report.clone();
    assert!(receiving.stop().is_none());
    // Committed, and never handed over: the primary died in between.
    writer
        .draft(0)
        .expect("room")
        .commit(1, Flags::NONE, 0, 0, 0);
    assert_eq!(read_next(&mut reader, &report).0, Sequence(1));
    assert!(
        reader.peek().expect("nothing wrong").is_none(),
        "not received"
    );
    reader.seal();
    assert_eq!(
        entries(&mut reader),
        2,
        "committed before the seal, so part of the log"
    );
    assert_eq!(
        report.get(),
        Replayed {
            sequence: Sequence(1),
            position: 0
        }
    );
}
