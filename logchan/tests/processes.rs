//! Two processes: what the primary saw acknowledged survives it.
//!
//! The test starts its own executable once more, as the primary, kills it in the middle of its work
//! and looks at what the backup has.

mod support;

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockstep_logchan::entry::{Flags, Sequence};
use lockstep_logchan::protocol::Role;
use lockstep_logchan::reader::EntryReader;
use lockstep_logchan::transport::connect::{
    Address, Connection, Incoming, Listener, Offer, Patience, connect,
};
use lockstep_logchan::transport::shm::{
    ShmAck, ShmBackup, ShmParts, ShmPrimary, receive_parts, send_parts,
};
use lockstep_logchan::transport::tcp::{TcpBackup, TcpPrimary};
use lockstep_logchan::transport::{BackupChannel, ChannelError, PrimaryChannel};
use lockstep_logchan::writer::EntryWriter;
use lockstep_perf::stamp;
use support::*;

const ADDRESS: &str = "LOCKSTEP_TEST_PRIMARY_ADDRESS";
const ACK: &str = "LOCKSTEP_TEST_PRIMARY_ACK";

fn shm_ack(name: &str) -> ShmAck {
    if name == "received" {
        ShmAck::Received
    } else {
        ShmAck::Committed
    }
}

/// The primary's process, when this executable is started as one: writes entries without end and
/// says on standard output how far they are acknowledged.
#[test]
fn primary_process() {
    let (Ok(address), Ok(ack)) = (std::env::var(ADDRESS), std::env::var(ACK)) else {
        // As a test among others: nothing to do, the tests below start it.
        return;
    };
    let ring = ring();
    let connection = pair(&address.parse().expect("an address"));
    let mut writer = writer(&ring);
    let mut primary: Box<dyn PrimaryChannel> = if ack == "tcp" {
        let options = tcp_options(SPIN_THEN_BLOCK);
        let agreed = connection.agreed;
        Box::new(
            TcpPrimary::new(connection.stream, &ring, Sequence::NONE, &agreed, &options)
                .expect("an end"),
        )
    } else {
        let parts = ShmParts::create(&ring).expect("a control page");
        send_parts(connection.stream.as_fd(), &parts).expect("passed");
        let options = shm_options(shm_ack(&ack), SPIN_THEN_BLOCK);
        Box::new(ShmPrimary::new(
            connection.stream,
            parts,
            Sequence::NONE,
            options,
        ))
    };
    let mut said = Sequence::NONE;
    loop {
        write_one(&mut writer, primary.as_mut());
        primary.flush(&writer, stamp::now()).expect("flushed");
        let acked = primary.poll(&writer, stamp::now()).expect("polled").acked;
        if acked.since(said) >= 50 {
            println!("acknowledged {}", acked.0);
            said = acked;
        }
        primary.wake_backup(&writer);
    }
}

fn write_one(writer: &mut EntryWriter, primary: &mut dyn PrimaryChannel) {
    let next = writer.last_sequence().next().0;
    write(
        (writer, primary),
        &next.to_le_bytes().repeat(20),
        Flags::ACK_AT_ONCE,
    );
}

fn pair(address: &Address) -> Connection {
    let mut listener = Listener::bind(address, PATIENCE).expect("listening");
    println!("listening {}", listener.address().expect("its address"));
    match listener
        .poll(Offer::Pair(&hello(Role::Primary)), PATIENCE)
        .expect("polled")
    {
        Some(Incoming::Paired(connection)) => connection,
        other => panic!("no backup: {other:?}"),
    }
}

/// A primary's process; killed when dropped.
struct Primary(Child);

impl Primary {
    fn start(address: &str, ack: &str) -> Self {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "primary_process", "--nocapture"])
            .envs([(ADDRESS, address), (ACK, ack)])
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        Self(child)
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        // SIGKILL; gone already is as well.
        let _killed = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Runs a pair, kills the primary and compares.
fn survives(address: &str, ack: &str) {
    let mut primary = Primary::start(address, ack);
    let mut said = BufReader::new(primary.0.stdout.take().expect("piped")).lines();
    let address = loop {
        let line = said.next().expect("it listens").expect("text");
        if let Some((_, address)) = line.split_once("listening ") {
            break address.parse().expect("an address");
        }
    };
    let connection =
        connect(&address, &hello(Role::Backup), &Patience::default()).expect("accepted");
    let far = ring();
    let (backup, mut reader): (Box<dyn BackupChannel>, EntryReader) = if ack == "tcp" {
        let options = tcp_options(SPIN_THEN_BLOCK);
        let (backup, reader) =
            TcpBackup::new(connection.stream, &far, Sequence::NONE, &options).expect("an end");
        (Box::new(backup), reader)
    } else {
        let parts = receive_parts(connection.stream.as_fd()).expect("passed");
        let options = shm_options(shm_ack(ack), SPIN_THEN_BLOCK);
        let (backup, reader) =
            ShmBackup::new(connection.stream, parts, Sequence::NONE, options).expect("an end");
        (Box::new(backup), reader)
    };
    let receiving = Receiving::start(backup);
    let report = receiving.report.clone();
    let check = |(sequence, payload): (Sequence, Vec<u8>)| {
        assert_eq!(payload, sequence.0.to_le_bytes().repeat(20));
    };
    for _ in 0..2000 {
        check(read_next(&mut reader, &report));
    }
    primary.0.kill().expect("killed");
    let killed = Instant::now();
    // The replay goes on: a full ring must not hide the end of the stream.
    while !receiving.is_finished() {
        assert!(
            killed.elapsed() < PATIENCE,
            "the primary's end went unnoticed"
        );
        if reader.peek().expect("a good log").is_some() {
            check(read_next(&mut reader, &report));
        } else {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    let error = receiving.end();
    let detected = killed.elapsed();
    assert!(matches!(error, ChannelError::Closed { .. }), "{error}");
    assert!(
        detected < Duration::from_secs(2),
        "noticed only after {detected:?}"
    );
    reader.seal();
    while reader.peek().expect("a good log").is_some() {
        check(read_next(&mut reader, &report));
    }
    let acknowledged = said
        .map_while(Result::ok)
        .filter_map(|line| {
            line.split_once("acknowledged ")?
                .1
                .trim()
                .parse::<u64>()
                .ok()
        })
        .max()
        .expect("it said something");
    let survived = reader.last_sequence().0;
    assert!(
        survived >= acknowledged,
        "{ack}: {acknowledged} acknowledged, {survived} survived"
    );
}

#[test]
fn what_was_acknowledged_survives_a_killed_primary_over_tcp() {
    survives("127.0.0.1:0", "tcp");
}

#[test]
fn what_was_acknowledged_survives_a_killed_primary_in_shared_memory() {
    for ack in ["committed", "received"] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        survives(&format!("unix:{}", path.display()), ack);
    }
}
