//! The switch with real sockets.

use super::{MAX_MEMBERS, Switch, SwitchError, SwitchPort};
use crate::host::port::{MAX_FRAME, NetworkPort};
use std::path::Path;
use std::time::{Duration, Instant};

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &[0x88, 0xb5], payload].concat()
}

/// The payload by which a member makes itself known.
const HELLO: &[u8] = b"hello";

/// The next frame that is no greeting: those of earlier members may still be on their way.
fn receive(port: &mut SwitchPort) -> Vec<u8> {
    loop {
        let frame = receive_any(port);
        if !frame.ends_with(HELLO) {
            return frame;
        }
    }
}

/// The next frame, waited for.
fn receive_any(port: &mut SwitchPort) -> Vec<u8> {
    let mut buf = [0u8; MAX_FRAME];
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(length) = port.receive_into(&mut buf).expect("the switch is there") {
            return buf[..length].to_vec();
        }
        assert!(Instant::now() < deadline, "no frame within 10 s");
        wait_readable(port);
    }
}

fn wait_readable(port: &SwitchPort) {
    let mut set = [rustix::event::PollFd::from_borrowed_fd(
        port.fd(),
        rustix::event::PollFlags::IN,
    )];
    let timeout = rustix::time::Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut set, Some(&timeout)).expect("poll");
}

/// Joins the switch, and returns when the switch has learned `address`.
fn join(path: &Path, address: [u8; 6], others: &mut [&mut SwitchPort]) -> SwitchPort {
    let mut port = SwitchPort::connect(path).expect("connect");
    let hello = frame([0xff; 6], address, HELLO);
    port.send(&hello).expect("send");
    for other in others {
        while receive_any(other) != hello {}
    }
    port
}

#[test]
fn frames_reach_their_receiver_and_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("switch");
    let switch = Switch::bind(&path).expect("bind");
    let mut a = join(&path, mac(1), &mut []);
    let mut b = join(&path, mac(2), &mut [&mut a]);
    let mut c = join(&path, mac(3), &mut [&mut a, &mut b]);

    let to_a = frame(mac(1), mac(3), b"to a alone");
    c.send(&to_a).expect("send");
    assert_eq!(receive(&mut a), to_a);
    let to_all = frame([0xff; 6], mac(1), &[7; MAX_FRAME - 14]);
    a.send(&to_all).expect("send");
    assert_eq!(receive(&mut b), to_all, "b saw nothing of what was for a");
    assert_eq!(receive(&mut c), to_all);

    // The address moves: what a fail-over does.
    let moved = frame([0xff; 6], mac(1), b"mac 1 is here now");
    b.send(&moved).expect("send");
    assert_eq!(receive(&mut a), moved);
    assert_eq!(receive(&mut c), moved);
    c.send(&to_a).expect("send");
    assert_eq!(receive(&mut b), to_a);

    drop(switch);
    assert!(!path.exists(), "the switch removes its path");
    let gone = loop {
        match a.receive_into(&mut [0; MAX_FRAME]) {
            Ok(Some(_)) => {}
            Ok(None) => wait_readable(&a),
            Err(gone) => break gone,
        }
    };
    assert!(gone.to_string().contains("is gone"), "{gone}");
}

#[test]
fn a_member_that_does_not_read_loses_only_its_own_frames() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("switch");
    let switch = Switch::bind(&path).expect("bind");
    let mut good = join(&path, mac(1), &mut []);
    let _deaf = join(&path, mac(2), &mut [&mut good]);
    let mut source = join(&path, mac(3), &mut [&mut good]);

    let filler = frame(mac(2), mac(3), &[0; 1000]);
    let mut rounds = 0u32;
    while switch.counters().dropped == 0 {
        source.send(&filler).expect("send");
        rounds += 1;
        assert!(rounds < 1_000_000, "nothing bounds what waits for a member");
    }
    // The source's own queue may be full for a moment; the frame for the good member gets through.
    let probe = frame(mac(1), mac(3), b"still here");
    let before = source.counters().sent;
    while source.counters().sent == before {
        source.send(&probe).expect("send");
    }
    assert_eq!(receive(&mut good), probe);
}

#[test]
fn nonsense_and_crowds_are_counted_and_harm_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("switch");
    let switch = Switch::bind(&path).expect("bind");
    let mut a = join(&path, mac(1), &mut []);
    let mut b = join(&path, mac(2), &mut [&mut a]);

    // Past our own port's checks, as a hostile member would.
    for nonsense in [&[1u8; 13][..], &vec![1; MAX_FRAME + 1], &vec![1; 60_000]] {
        rustix::net::send(b.fd(), nonsense, rustix::net::SendFlags::empty()).expect("send");
    }
    let good = frame(mac(1), mac(2), b"good");
    b.send(&good).expect("send");
    assert_eq!(receive(&mut a), good);
    assert_eq!(switch.counters().malformed, 3);
    b.send(&[0; 13]).expect("counted, not an error");
    b.send(&[0; MAX_FRAME + 1]).expect("counted, not an error");
    assert_eq!(b.counters().send_malformed, 2);

    let crowd: Vec<_> = (0..MAX_MEMBERS)
        .map(|_| SwitchPort::connect(&path))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    while switch.counters().refused != 2 {
        assert!(Instant::now() < deadline, "{:?}", switch.counters());
        std::thread::sleep(Duration::from_millis(1));
    }
    b.send(&good).expect("send");
    assert_eq!(receive(&mut a), good);
    drop(crowd);
}

#[test]
fn a_path_that_cannot_be_is_refused_with_its_reason() {
    let long = Path::new("/tmp").join("x".repeat(200));
    assert!(matches!(
        Switch::bind(&long),
        Err(SwitchError::PathTooLong { .. })
    ));
    let error = SwitchPort::connect(Path::new("/nonexistent/switch")).expect_err("nobody there");
    assert!(error.to_string().contains("lockstep switch"), "{error}");
}
