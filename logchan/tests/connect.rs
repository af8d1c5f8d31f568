//! Connection set-up: the backup gets in, nobody else does, and nobody else does any harm.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::protocol::Role;
use lockstep_logchan::protocol::VmId;
use lockstep_logchan::protocol::heartbeat::{HEARTBEAT_BYTES, HeartbeatMonitor, HeartbeatSchedule};
use lockstep_logchan::protocol::hello::{HelloError, Lifeline, Message, Refusal, Resync};
use lockstep_logchan::transport::ChannelError;
use lockstep_logchan::transport::connect::{
    self, Address, ConnectError, Incoming, Listener, Offer, Patience, connect, greet,
};
use lockstep_logchan::transport::heartbeat::HeartbeatSocket;
use lockstep_logchan::transport::shm::{ShmParts, receive_parts, send_parts};
use support::{PATIENCE, hello, ring};

const PAIRED: Offer<'_> = Offer::Paired {
    vm: "tenant",
    generation: 7,
    lifeline: true,
};

const HELLO_LIMIT: Duration = Duration::from_millis(300);

fn listener() -> (Listener, Address) {
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener::bind(&any, HELLO_LIMIT).expect("a port");
    let address = listener.address().expect("its address");
    (listener, address)
}

fn stranger(address: &Address) -> TcpStream {
    let Address::Tcp(address) = address else {
        panic!("a TCP address")
    };
    let stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

fn incoming(listener: &mut Listener, offer: Offer<'_>) -> Incoming {
    listener
        .poll(offer, PATIENCE)
        .expect("the listener lives")
        .expect("somebody came")
}

fn refused(listener: &mut Listener, offer: Offer<'_>) -> ConnectError {
    match incoming(listener, offer) {
        Incoming::Refused { error, .. } => error,
        other => panic!("let in: {other:?}"),
    }
}

#[test]
fn the_backup_and_the_primary_find_each_other_over_either_kind_of_socket() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = Address::Unix(directory.path().join("log"));
    let any: Address = "127.0.0.1:0".parse().expect("an address");
    for address in [any, path] {
        let mut listener = Listener::bind(&address, HELLO_LIMIT).expect("listening");
        let address = listener.address().expect("its address");
        let backup = std::thread::spawn(move || {
            connect(&address, &hello(Role::Backup), &Patience::default())
        });
        let ours = hello(Role::Primary);
        let Incoming::Paired(primary) = incoming(&mut listener, Offer::Pair(&ours)) else {
            panic!("the backup was refused")
        };
        let backup = backup.join().expect("no panic").expect("connected");
        assert_eq!(primary.theirs, hello(Role::Backup));
        assert_eq!(backup.theirs, ours);
        assert_eq!(
            (primary.agreed.generation, backup.agreed.generation),
            (7, 7)
        );
    }
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .expect("there")
        .collect();
    assert!(
        left.is_empty(),
        "the socket's file is left behind: {left:?}"
    );
}

#[test]
fn the_backup_waits_for_a_primary_that_is_not_there_yet_and_not_for_ever() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let address = Address::Unix(directory.path().join("log"));
    let patience = Patience {
        connect: Duration::from_millis(100),
        ..Patience::default()
    };
    let error = connect(&address, &hello(Role::Backup), &patience).expect_err("nobody is there");
    assert!(
        matches!(&error, ConnectError::NobodyThere { tried, .. } if *tried < PATIENCE),
        "{error}"
    );

    let there = address.clone();
    let backup =
        std::thread::spawn(move || connect(&there, &hello(Role::Backup), &Patience::default()));
    std::thread::sleep(Duration::from_millis(50));
    let mut listener = Listener::bind(&address, HELLO_LIMIT).expect("listening");
    let ours = hello(Role::Primary);
    assert!(matches!(
        incoming(&mut listener, Offer::Pair(&ours)),
        Incoming::Paired(_)
    ));
    backup.join().expect("no panic").expect("connected");
}

#[test]
fn strangers_are_dropped_with_the_reason_and_the_backup_still_gets_in() {
    let (mut listener, address) = listener();
    let ours = hello(Role::Primary);
    let offer = Offer::Pair(&ours);

    let mut browser = stranger(&address);
    browser.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let error = refused(&mut listener, offer);
    assert!(
        matches!(error, ConnectError::Hello(HelloError::Magic { .. })),
        "{error}"
    );
    drop(browser);

    let mut other_version = stranger(&address);
    let mut bytes = Message::Hello(hello(Role::Backup))
        .encode()
        .expect("it fits");
    bytes[8] = 99;
    other_version.write_all(&bytes).expect("sent");
    let error = refused(&mut listener, offer);
    assert!(
        matches!(
            error,
            ConnectError::Hello(HelloError::Version { found: 99 })
        ),
        "{error}"
    );
    let mut answer = Vec::new();
    // It is told why, unless its own unread bytes reset the connection.
    let _reset = other_version.read_to_end(&mut answer);
    if let Ok(Some(Message::Refusal(refusal))) = Message::decode(&answer) {
        assert!(refusal.to_string().contains("found 99"), "{refusal}");
    }

    let mut half = stranger(&address);
    half.write_all(&bytes[..5]).expect("sent");
    drop(half);
    let error = refused(&mut listener, offer);
    assert!(
        matches!(error, ConnectError::Closed { received: 5 }),
        "{error}"
    );

    let mut giant = stranger(&address);
    let mut bytes = Message::Hello(hello(Role::Backup))
        .encode()
        .expect("it fits");
    bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    giant.write_all(&bytes).expect("sent");
    let error = refused(&mut listener, offer);
    assert!(
        matches!(
            error,
            ConnectError::Hello(HelloError::Length { found: 0xFFFF_FFFF })
        ),
        "{error}"
    );

    let silent = stranger(&address);
    let start = Instant::now();
    let backup =
        std::thread::spawn(move || connect(&address, &hello(Role::Backup), &Patience::default()));
    assert!(
        matches!(incoming(&mut listener, offer), Incoming::Paired(_)),
        "a silent stranger keeps nobody out"
    );
    backup.join().expect("no panic").expect("connected");
    let error = refused(&mut listener, offer);
    assert!(
        matches!(error, ConnectError::TimedOut { received: 0, .. }),
        "{error}"
    );
    assert!(start.elapsed() >= HELLO_LIMIT);
    drop(silent);
}

#[test]
fn unfinished_connections_are_bounded() {
    let (mut listener, address) = listener();
    let ours = hello(Role::Primary);
    let crowd: Vec<TcpStream> = (0..20).map(|_| stranger(&address)).collect();
    let mut crowded = 0;
    for _ in 0..20 {
        match refused(&mut listener, Offer::Pair(&ours)) {
            ConnectError::Crowded { limit } => {
                assert_eq!(limit, 16);
                crowded += 1;
            }
            ConnectError::TimedOut { .. } => {}
            other => panic!("{other}"),
        }
    }
    assert!(crowded > 0, "20 at a time were listened to");
    drop(crowd);
}

#[test]
fn a_second_backup_and_a_different_one_are_told_why_not() {
    let (mut listener, address) = listener();
    let there = address.clone();
    let second =
        std::thread::spawn(move || connect(&there, &hello(Role::Backup), &Patience::default()));
    let error = refused(&mut listener, PAIRED);
    let busy = Refusal::Busy { generation: 7 };
    assert!(
        matches!(&error, ConnectError::Hello(HelloError::Unwanted(refusal)) if *refusal == busy),
        "{error}"
    );
    let told = second.join().expect("no panic").expect_err("refused");
    assert!(
        matches!(&told, ConnectError::Hello(HelloError::Refused(refusal)) if *refusal == busy),
        "{told}"
    );

    let different = std::thread::spawn(move || {
        let mut hello = hello(Role::Backup);
        hello.configuration.insert("memory-bytes".into(), 1.into());
        connect(&address, &hello, &Patience::default())
    });
    let ours = hello(Role::Primary);
    refused(&mut listener, Offer::Pair(&ours));
    let told = different
        .join()
        .expect("no panic")
        .expect_err("refused")
        .to_string();
    assert!(
        told.contains("`memory-bytes` differs: primary has 67108864, backup has 1"),
        "{told}"
    );
}

#[test]
fn the_pairs_lifeline_is_held_once_and_nobody_elses() {
    let (mut listener, address) = listener();
    let of = |vm: &str, generation| Lifeline {
        vm: vm.into(),
        generation,
    };
    let mut ask = |lifeline: Lifeline, offer| {
        let there = address.clone();
        let asked = std::thread::spawn(move || connect::lifeline(&there, &lifeline, PATIENCE));
        let come = incoming(&mut listener, offer);
        (come, asked.join().expect("no panic"))
    };
    for stranger in [of("tenant", 8), of("another", 7)] {
        let (come, told) = ask(stranger, PAIRED);
        assert!(matches!(come, Incoming::Refused { .. }), "{come:?}");
        let told = told.expect_err("refused").to_string();
        assert!(told.contains("has a backup already"), "{told}");
    }
    let (come, ours) = ask(of("tenant", 7), PAIRED);
    let (Incoming::Lifeline(held), Ok(ours)) = (come, ours) else {
        panic!("not held")
    };
    let second = Offer::Paired {
        vm: "tenant",
        generation: 7,
        lifeline: false,
    };
    let (come, told) = ask(of("tenant", 7), second);
    assert!(matches!(come, Incoming::Refused { .. }), "{come:?}");
    told.expect_err("there is one");
    let (come, told) = ask(of("tenant", 7), Offer::Pair(&hello(Role::Primary)));
    assert!(matches!(come, Incoming::Refused { .. }), "{come:?}");
    let told = told.expect_err("no pair yet").to_string();
    assert!(told.contains("a lifeline came where a hello"), "{told}");

    let mut stream = TcpStream::from(ours);
    drop(held);
    assert_eq!(stream.read(&mut [0]).expect("its end"), 0);
}

#[test]
fn the_connection_for_the_disks_is_taken_when_it_is_due_and_from_nobody_else() {
    let (mut listener, address) = listener();
    let of = |vm: &str, generation| Resync {
        vm: vm.into(),
        generation,
    };
    let due = Offer::Resync {
        vm: "tenant",
        generation: 7,
    };
    let mut ask = |resync: Resync, offer| {
        let there = address.clone();
        let asked = std::thread::spawn(move || connect::resync(&there, &resync, PATIENCE));
        let come = incoming(&mut listener, offer);
        (come, asked.join().expect("no panic"))
    };
    let unpaired = hello(Role::Primary);
    for (stranger, offer) in [
        (of("tenant", 8), due),
        (of("another", 7), due),
        (of("tenant", 7), PAIRED),
        (of("tenant", 7), Offer::Pair(&unpaired)),
    ] {
        let (come, told) = ask(stranger, offer);
        assert!(matches!(come, Incoming::Refused { .. }), "{come:?}");
        told.expect_err("refused");
    }
    let (come, ours) = ask(of("tenant", 7), due);
    let (Incoming::Resync(theirs), Ok(ours)) = (come, ours) else {
        panic!("not taken")
    };
    // What follows is theirs alone.
    let (mut ours, mut theirs) = (TcpStream::from(ours), TcpStream::from(theirs));
    ours.write_all(b"disk").expect("sent");
    let mut heard = [0; 4];
    theirs.read_exact(&mut heard).expect("received");
    assert_eq!(&heard, b"disk");
}

#[test]
fn a_pair_of_connected_sockets_will_do_and_two_of_one_role_will_not() {
    let (near, far) = UnixStream::pair().expect("a pair");
    let backup = std::thread::spawn(move || {
        greet(&far, &hello(Role::Backup), PATIENCE)
            .expect("accepted")
            .0
    });
    let (agreed, theirs) = greet(&near, &hello(Role::Primary), PATIENCE).expect("accepted");
    assert_eq!(
        (agreed, theirs.role),
        (backup.join().expect("no panic"), Role::Backup)
    );

    let (near, far) = UnixStream::pair().expect("a pair");
    let other = std::thread::spawn(move || greet(&far, &hello(Role::Backup), PATIENCE));
    let error = greet(&near, &hello(Role::Backup), PATIENCE).expect_err("two backups");
    assert!(
        matches!(error, ConnectError::Hello(HelloError::Role { .. })),
        "{error}"
    );
    assert!(other.join().expect("no panic").is_err());
}

#[test]
fn a_dead_listeners_socket_is_replaced_and_a_living_ones_or_a_file_is_not() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("log");
    // A listener that dies leaves its file.
    drop(UnixListener::bind(&path).expect("listening"));
    assert!(path.exists());
    let address = Address::Unix(path.clone());
    let living = Listener::bind(&address, HELLO_LIMIT).expect("replaced");
    assert!(matches!(
        Listener::bind(&address, HELLO_LIMIT),
        Err(ConnectError::Io { .. })
    ));
    drop(living);
    std::fs::write(&path, "precious").expect("written");
    assert!(matches!(
        Listener::bind(&address, HELLO_LIMIT),
        Err(ConnectError::Io { .. })
    ));
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
}

#[test]
fn an_address_that_is_none_says_what_one_looks_like() {
    for text in ["", "unix:", "nowhere", "127.0.0.1", "127.0.0.1:99999"] {
        let error = text.parse::<Address>().expect_err("no address").to_string();
        assert!(
            error.contains(&format!("`{text}`"))
                && error.contains("expected HOST:PORT or unix:PATH"),
            "{error}"
        );
    }
    let address: Address = "unix:/run/lockstep.sock".parse().expect("an address");
    assert_eq!(address.to_string(), "unix:/run/lockstep.sock");
}

#[test]
fn what_is_passed_instead_of_a_ring_is_refused() {
    let (near, far) = UnixStream::pair().expect("a pair");
    drop(near);
    let error = receive_parts(far.as_fd()).expect_err("nobody is there");
    assert!(matches!(error, ChannelError::Closed { .. }), "{error}");

    let (mut near, far) = UnixStream::pair().expect("a pair");
    near.write_all(b"R").expect("sent");
    let error = receive_parts(far.as_fd())
        .expect_err("no descriptors")
        .to_string();
    assert!(error.contains("found 0 descriptors, expected 2"), "{error}");

    let (near, far) = UnixStream::pair().expect("a pair");
    let file = tempfile::tempfile().expect("a file");
    pass(&near, &[file.as_fd(), file.as_fd()]);
    let error = receive_parts(far.as_fd()).expect_err("no ring");
    assert!(matches!(error, ChannelError::Ring(_)), "{error}");

    // A real ring, and in place of the control page the ring once more.
    let (near, far) = UnixStream::pair().expect("a pair");
    let ring = ring();
    pass(&near, &[ring.fd(), ring.fd()]);
    let error = receive_parts(far.as_fd())
        .expect_err("no control page")
        .to_string();
    assert!(
        error.contains("control page") && error.contains("expected 4096"),
        "{error}"
    );

    let (near, far) = UnixStream::pair().expect("a pair");
    let parts = ShmParts::create(&ring).expect("a control page");
    send_parts(near.as_fd(), &parts).expect("sent");
    let passed = receive_parts(far.as_fd()).expect("the real thing");
    assert_eq!(passed.ring().capacity(), ring.capacity());
}

fn pass(stream: &UnixStream, fds: &[std::os::fd::BorrowedFd<'_>]) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    let byte = [std::io::IoSlice::new(b"R")];
    sendmsg(stream, &byte, &mut ancillary, SendFlags::empty()).expect("sent");
}

#[test]
fn heartbeats_go_both_ways_and_their_absence_is_noticed() {
    let local = "127.0.0.1:0".parse().expect("an address");
    let mut primary = HeartbeatSocket::unpaired(local).expect("a port");
    let mut backup = HeartbeatSocket::unpaired(local).expect("a port");
    primary
        .pair(backup.local_address().expect("bound"))
        .expect("paired");
    backup
        .pair(primary.local_address().expect("bound"))
        .expect("paired");
    let vm = VmId::of_name("tenant");
    let mut schedules = [
        HeartbeatSchedule::new(vm, 7, Role::Primary, 10, 0),
        HeartbeatSchedule::new(vm, 7, Role::Backup, 10, 0),
    ];
    let mut monitors = [
        HeartbeatMonitor::new(vm, 7, Role::Backup, 35, 0),
        HeartbeatMonitor::new(vm, 7, Role::Primary, 35, 0),
    ];
    let sockets = [&primary, &backup];
    let mut buffer = [0; HEARTBEAT_BYTES + 1];
    for now in 0..100 {
        for side in 0..2 {
            if let Some(heartbeat) = schedules[side].due(now, Sequence(now)) {
                assert!(sockets[side].send(&heartbeat));
            }
        }
        for side in 0..2 {
            while let Some(datagram) = sockets[side].receive(&mut buffer) {
                monitors[side].hear(datagram, now).expect("the peer's");
            }
            assert_eq!(monitors[side].silent(now), None, "at {now}");
        }
    }
    assert_eq!(monitors[1].last().expect("heard").counter, 10);
    drop(backup);
    assert!(monitors[0].silent(90 + 34).is_none());
    assert!(monitors[0].silent(90 + 35).is_some());
    // Nobody listens there any more; sending to nobody is no error.
    for now in 100..200 {
        if let Some(heartbeat) = schedules[0].due(now, Sequence::NONE) {
            primary.send(&heartbeat);
        }
        assert!(primary.receive(&mut buffer).is_none());
    }
}
