//! The protocol without a link, and over one that loses, repeats and reorders.

mod support;

use std::collections::VecDeque;

use lockstep_logchan::entry::{Flags, Sequence, whole_entries};
use lockstep_logchan::protocol::Role;
use lockstep_logchan::protocol::ack::{Ack, AckError};
use lockstep_logchan::protocol::hello::{
    HelloError, MAX_BODY_BYTES, Message, PREAMBLE_BYTES, PROTOCOL_VERSION, Refusal,
};
use lockstep_logchan::protocol::receiver::{AckPolicy, Receiver, Replayed, Verdict};
use lockstep_logchan::protocol::sender::Sender;
use lockstep_logchan::writer::EntryWriter;
use lockstep_ringbuf::{Ring, RingOptions};
use proptest::prelude::*;
use support::{Numbers, RING, hello};

const POLICY: AckPolicy = AckPolicy {
    entries: 4,
    delay_ns: 1000,
};

/// A log of `entries` entries; each seventh asks for an acknowledgement.
fn log(entries: u64, seed: u64) -> Vec<u8> {
    let ring = Ring::create(4 << 20, RingOptions::default()).expect("a ring");
    let mut writer = EntryWriter::new(ring.producer().expect("free"), Sequence::NONE);
    let mut numbers = Numbers(seed | 1);
    for n in 0..entries {
        let size = (numbers.next() % 500) as usize;
        let flags = if n % 7 == 6 {
            Flags::ACK_AT_ONCE
        } else {
            Flags::NONE
        };
        let mut draft = writer.draft(size).expect("room");
        draft.payload_mut().fill(numbers.next() as u8);
        draft.commit(1, flags, n, 10 * n, size);
    }
    ring.consumer().expect("free").readable().to_vec()
}

fn sender() -> Sender {
    Sender::new(Sequence::NONE, 0, RING as u64, 1_000_000)
}

/// A sender that has sent all of `log`.
fn having_sent(log: &[u8]) -> Sender {
    let mut sender = sender();
    let credit = Ack {
        free: RING as u64,
        ..Ack::default()
    };
    sender.acknowledge(&credit, &[], 0).expect("credit");
    sender.sent(log.len() as u64, 10);
    sender
}

#[test]
fn nothing_is_sent_without_credit_and_no_more_than_it() {
    let log = log(20, 1);
    let mut sender = sender();
    assert_eq!(sender.sendable(log.len() as u64), 0);
    sender
        .acknowledge(
            &Ack {
                free: 300,
                ..Ack::default()
            },
            &log,
            0,
        )
        .expect("credit");
    assert_eq!(sender.sendable(100), 100);
    assert_eq!(sender.sendable(log.len() as u64), 300);
    sender.sent(300, 0);
    assert_eq!(
        (sender.sendable(log.len() as u64), sender.acked().credit),
        (0, 0)
    );
}

#[test]
fn an_acknowledgement_that_cannot_be_true_is_refused_and_changes_nothing() {
    let log = log(5, 2);
    let mut sender = having_sent(&log);
    let before = sender.acked();
    let cases = [
        (
            Ack {
                acked: Sequence(6),
                ..Ack::default()
            },
            AckError::BeyondSent {
                found: Sequence(6),
                sent: Sequence(5),
            },
        ),
        (
            Ack {
                free: RING as u64 + 1,
                ..Ack::default()
            },
            AckError::CreditBeyondRing {
                found: RING as u64 + 1,
                ring: RING as u64,
            },
        ),
        (
            Ack {
                acked: Sequence(2),
                replayed: Sequence(3),
                ..Ack::default()
            },
            AckError::ReplayedBeyondAcked {
                found: Sequence(3),
                acked: Sequence(2),
            },
        ),
    ];
    for (ack, error) in cases {
        assert_eq!(sender.acknowledge(&ack, &log, 20), Err(error));
        assert_eq!(sender.acked(), before);
    }
}

#[test]
fn an_entry_cut_by_the_credit_is_not_sent_yet() {
    let log = log(2, 3);
    let mut sender = sender();
    let ack = Ack {
        free: log.len() as u64 - 8,
        ..Ack::default()
    };
    sender.acknowledge(&ack, &log, 0).expect("credit");
    sender.sent(sender.sendable(log.len() as u64), 0);
    let both = Ack {
        acked: Sequence(2),
        ..Ack::default()
    };
    let error = AckError::BeyondSent {
        found: Sequence(2),
        sent: Sequence(1),
    };
    assert_eq!(sender.acknowledge(&both, &log, 1), Err(error));
}

#[test]
fn an_old_acknowledgement_changes_nothing() {
    let log = log(5, 4);
    let mut sender = having_sent(&log);
    let ack = |acked| Ack {
        acked: Sequence(acked),
        free: 5000,
        ..Ack::default()
    };
    assert_eq!(sender.acknowledge(&ack(3), &log, 20), Ok(true));
    let known = sender.acked();
    let rest = &log[sender.acked_cursor() as usize..];
    assert_eq!(sender.acknowledge(&ack(2), rest, 30), Ok(false));
    assert_eq!(sender.acknowledge(&ack(3), rest, 30), Ok(false));
    assert_eq!(sender.acked(), known);
}

#[test]
fn a_stall_is_bytes_under_way_without_progress_and_nothing_else() {
    let log = log(5, 5);
    let mut idle = sender();
    idle.acknowledge(
        &Ack {
            free: 1,
            ..Ack::default()
        },
        &log,
        0,
    )
    .expect("credit");
    assert_eq!(idle.stalled(u64::MAX), None, "nothing is under way");

    let mut sender = having_sent(&log);
    assert_eq!(sender.stalled(1_000_009), None);
    let stall = sender.stalled(1_000_010).expect("a stall");
    assert_eq!(
        (stall.acked, stall.unacked_bytes, stall.for_ns),
        (Sequence(0), log.len() as u64, 1_000_000)
    );
    let ack = |acked| Ack {
        acked: Sequence(acked),
        free: 0,
        ..Ack::default()
    };
    sender.acknowledge(&ack(2), &log, 900_000).expect("true");
    assert_eq!(
        sender.stalled(1_800_000),
        None,
        "progress starts the clock anew"
    );
    assert!(sender.stalled(1_900_000).is_some());
    let rest = &log[sender.acked_cursor() as usize..];
    sender.acknowledge(&ack(5), rest, 1_950_000).expect("true");
    assert_eq!(
        sender.stalled(u64::MAX),
        None,
        "nothing is under way any more"
    );
}

#[test]
fn an_acknowledgement_is_due_at_once_by_count_by_time_and_for_room() {
    let bytes = log(40, 6);
    let free = RING as u64;
    let none = Replayed::default();
    let mut receiver = Receiver::new(Sequence::NONE, RING as u64, POLICY);
    let mut at = 0;
    let mut take = |receiver: &mut Receiver, now| match receiver.accept(&bytes[at..], now) {
        Ok(Verdict::Next(entry)) => at += entry.bytes_in_log(),
        other => panic!("{other:?}"),
    };
    assert!(
        receiver.ack_due(0, none, free),
        "the first one grants credit"
    );
    receiver.ack(0, none, free);
    assert!(
        !receiver.ack_due(u64::MAX, none, free),
        "nothing to acknowledge"
    );

    take(&mut receiver, 100);
    assert_eq!(receiver.ack_at(none), Some(1100));
    assert!(
        !receiver.ack_due(1099, none, free) && receiver.ack_due(1100, none, free),
        "by time"
    );
    for _ in 0..2 {
        take(&mut receiver, 100);
    }
    assert!(!receiver.ack_due(100, none, free));
    take(&mut receiver, 100);
    assert!(receiver.ack_due(100, none, free), "by count");
    assert_eq!(receiver.ack(200, none, 0).acked, Sequence(4));
    for _ in 0..2 {
        take(&mut receiver, 300);
    }
    assert!(!receiver.ack_due(300, none, 0));
    take(&mut receiver, 300);
    assert!(receiver.ack_due(300, none, 0), "the seventh asks");

    receiver.ack(400, none, 0);
    assert!(
        !receiver.ack_due(400, none, free / 4 - 8),
        "no room worth telling"
    );
    assert!(receiver.ack_due(400, none, free / 4), "room again");
    receiver.ack(500, none, free);

    let replayed = Replayed {
        sequence: Sequence(5),
        position: 4,
    };
    assert_eq!(
        receiver.ack_at(replayed),
        Some(10_500),
        "news of the replay, ten times slower"
    );
    let ack = receiver.ack(10_500, replayed, free);
    assert_eq!((ack.replayed, ack.replayed_position), (Sequence(5), 4));
    assert_eq!(receiver.ack_at(replayed), None);
}

#[test]
fn each_difference_of_two_hellos_is_named_with_both_values() {
    let (ours, theirs) = (hello(Role::Primary), hello(Role::Backup));
    let agreed = ours.compare(&theirs).expect("they agree");
    assert_eq!(
        (agreed.generation, agreed.peer_ring_bytes),
        (7, RING as u64)
    );
    assert_eq!(theirs.compare(&ours).expect("they agree").generation, 7);

    let mut other = theirs.clone();
    other.vm = "another".into();
    let differs = |field: &str, primary: &str, backup: &str| {
        HelloError::Unwanted(Refusal::Differs {
            field: field.into(),
            primary: primary.into(),
            backup: backup.into(),
        })
        .to_string()
    };
    let error = |ours: &lockstep_logchan::protocol::hello::Hello, theirs| {
        ours.compare(theirs).expect_err("they differ").to_string()
    };
    assert_eq!(error(&ours, &other), differs("vm", "tenant", "another"));
    assert_eq!(
        error(&other, &ours),
        differs("vm", "tenant", "another"),
        "seen from the backup"
    );

    let mut other = theirs.clone();
    other.generation = Some(6);
    assert_eq!(error(&ours, &other), differs("generation", "7", "6"));

    let mut other = theirs.clone();
    other.starts_behind = Sequence(9);
    assert_eq!(error(&ours, &other), differs("starts-behind", "0", "9"));

    let mut other = theirs.clone();
    other.configuration.insert("memory-bytes".into(), 5.into());
    assert_eq!(
        error(&ours, &other),
        differs("memory-bytes", "67108864", "5")
    );

    let mut other = theirs.clone();
    other.configuration.remove("engine");
    assert_eq!(
        error(&ours, &other),
        differs("engine", "\"soft\"", "nothing")
    );

    let mut other = theirs.clone();
    other
        .configuration
        .insert("more".into(), "x".repeat(100_000).into());
    let text = error(&ours, &other);
    assert!(
        text.contains("`more`") && text.len() < 500,
        "{} bytes",
        text.len()
    );

    let mut other = theirs.clone();
    other.ring_bytes = 4096;
    assert!(error(&ours, &other).contains("ring-bytes"));
    assert!(error(&ours, &ours).contains("field `role`: found primary, expected backup"));
}

/// A hello on the wire, changed by `change`.
fn wire(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Message::Hello(hello(Role::Backup))
        .encode()
        .expect("it fits");
    change(&mut bytes);
    bytes
}

#[test]
fn each_wrong_field_of_a_hello_is_named() {
    let error = |bytes: &[u8]| Message::decode(bytes).expect_err("it is wrong").to_string();
    assert!(
        matches!(Message::decode(b"GET / HTTP/1.1"), Err(HelloError::Magic { found }) if found == b"GET / HT")
    );
    assert!(
        matches!(Message::decode(b"LOx"), Err(HelloError::Magic { .. })),
        "at the first wrong byte"
    );
    assert!(matches!(Message::decode(b"LOC"), Ok(None)));
    let version = wire(|bytes| bytes[8] = 9);
    assert!(error(&version).contains(&format!("`version`: found 9, expected {PROTOCOL_VERSION}")));
    assert!(error(&wire(|bytes| bytes[12] = 7)).contains("`kind`: found 7"));
    assert!(error(&wire(|bytes| bytes[14] = 7)).contains("`reserved`: found 0x0007"));
    let length = wire(|bytes| bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes()));
    assert!(error(&length).contains(&format!(
        "found 4294967295, expected at most {MAX_BODY_BYTES}"
    )));
    assert!(error(&wire(|bytes| bytes[PREAMBLE_BYTES] ^= 1)).contains("`crc`"));
    let body = |body: &[u8]| {
        wire(|bytes| {
            bytes.truncate(PREAMBLE_BYTES);
            bytes[16..20].copy_from_slice(&(body.len() as u32).to_le_bytes());
            bytes[20..24].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
            bytes.extend(body);
        })
    };
    assert!(error(&body(b"{}")).contains("missing field `role`"));
    let deep = format!(r#"{{"configuration":{{"x":{}"#, "[".repeat(60_000));
    let text = error(&body(deep.as_bytes()));
    assert!(text.contains("recursion limit"), "{text}");
    let long = format!(
        r#"{{"role":"backup","vm":"{}","ring-bytes":1,"starts-behind":0,"configuration":{{}}}}"#,
        "v".repeat(129)
    );
    assert!(
        error(&body(long.as_bytes())).contains("`vm`: a name of 129 bytes, expected at most 128")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_stream_in_pieces_of_any_size_is_the_same_log(
        seed in any::<u64>(),
        cuts in proptest::collection::vec(1..700_usize, 1..40),
    ) {
        let bytes = log(60, seed);
        let mut receiver = Receiver::new(Sequence::NONE, 4 << 20, POLICY);
        let (mut arrived, mut taken) = (0, 0);
        let mut cuts = cuts.iter().cycle();
        while arrived < bytes.len() {
            arrived = (arrived + cuts.next().expect("a cycle")).min(bytes.len());
            loop {
                match receiver.accept(&bytes[taken..arrived], 0).expect("a good log") {
                    Verdict::Next(entry) => taken += entry.bytes_in_log(),
                    Verdict::Incomplete => break,
                    other => panic!("{other:?}"),
                }
            }
        }
        prop_assert_eq!((taken, receiver.last_sequence()), (bytes.len(), Sequence(60)));
    }

    #[test]
    fn a_hello_in_pieces_of_any_size_is_the_same_hello(cut in 0..200_usize) {
        let bytes = wire(|_| {});
        let cut = cut.min(bytes.len() - 1);
        prop_assert!(Message::decode(&bytes[..cut]).expect("nothing wrong so far").is_none());
        let whole = Message::decode(&bytes).expect("right");
        prop_assert_eq!(whole, Some(Message::Hello(hello(Role::Backup))));
    }

    /// The log gets over a link that loses, repeats and reorders packets of whole entries, in either
    /// direction, when the driver rewinds at a stall.
    #[test]
    fn a_bad_link_delays_the_log_and_changes_nothing(seed in any::<u64>()) {
        let log = log(80, seed);
        let mut numbers = Numbers(seed | 1);
        let mut sender = Sender::new(Sequence::NONE, 0, 8192, 50);
        let mut receiver = Receiver::new(Sequence::NONE, 8192, POLICY);
        let (mut there, mut back) = (VecDeque::<Vec<u8>>::new(), VecDeque::<Ack>::new());
        let mut received = Vec::new();
        let mut now = 0;
        while sender.acked().acked < Sequence(80) {
            now += 1;
            prop_assert!(now < 200_000, "no progress: {:?}", sender);
            let start = sender.sent_cursor() as usize;
            let unsent = &log[start..start + sender.sendable(log.len() as u64) as usize];
            let packet = whole_entries(unsent, 1400);
            if packet > 0 {
                there.push_back(unsent[..packet].to_vec());
                sender.sent(packet as u64, now);
            }
            if sender.stalled(now).is_some() {
                sender.rewind(now);
            }
            if let Some(packet) = misfortune(&mut there, &mut numbers) {
                let mut at = 0;
                while at < packet.len() {
                    match receiver.accept(&packet[at..], now).expect("whole entries") {
                        Verdict::Next(entry) => {
                            received.extend_from_slice(entry.as_bytes());
                            at += entry.bytes_in_log();
                        }
                        Verdict::Duplicate(entry) => at += entry.bytes_in_log(),
                        Verdict::Gap { .. } | Verdict::Incomplete => break,
                    }
                }
            }
            // Replayed at once: the ring is free again.
            let replayed = Replayed { sequence: receiver.last_sequence(), position: 0 };
            if receiver.ack_due(now, replayed, 8192) || numbers.next().is_multiple_of(16) {
                back.push_back(receiver.ack(now, replayed, 8192));
            }
            if let Some(ack) = misfortune(&mut back, &mut numbers) {
                let unacked = &log[sender.acked_cursor() as usize..];
                sender.acknowledge(&ack, unacked, now).expect("an honest acknowledgement");
            }
        }
        prop_assert!(received == log);
    }
}

/// What the link delivers of what is on it, if anything.
fn misfortune<T: Clone>(link: &mut VecDeque<T>, numbers: &mut Numbers) -> Option<T> {
    if link.is_empty() {
        return None;
    }
    let any = (numbers.next() % link.len() as u64) as usize;
    match numbers.next() % 10 {
        0 => {
            link.remove(any);
            None
        }
        1 => link.get(any).cloned(),
        2 => link.remove(any),
        3 => None,
        _ => link.pop_front(),
    }
}
