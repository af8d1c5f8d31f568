//! The key-value service against memcached's protocol and against a model of it.

mod native;

use std::collections::BTreeMap;

use lockstep_guest::{KEY_MOST, VALUE_MOST};
use native::{Config, Tenant};
use proptest::prelude::*;

/// Asks and answers in turn; the text of each must be exactly that.
fn converse(tenant: &mut Tenant, turns: &[(&str, &str)]) {
    for (question, answer) in turns {
        let got = tenant.ask(question.as_bytes()).unwrap_or_default();
        assert_eq!(
            String::from_utf8_lossy(&got),
            *answer,
            "answering {question:?}"
        );
    }
}

#[test]
fn commands_answer_as_memcached_does() {
    let Some(mut tenant) = Tenant::start("commands_answer_as_memcached_does", Config::default())
    else {
        return;
    };
    converse(
        &mut tenant,
        &[
            ("get a\r\n", "END\r\n"),
            ("set a 5 0 3\r\nabc\r\n", "STORED\r\n"),
            ("get a\r\n", "VALUE a 5 3\r\nabc\r\nEND\r\n"),
            ("gets a\r\n", "VALUE a 5 3 1\r\nabc\r\nEND\r\n"),
            ("get a\n", "VALUE a 5 3\r\nabc\r\nEND\r\n"),
            ("get  a  \r\n", "VALUE a 5 3\r\nabc\r\nEND\r\n"),
            ("add a 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
            ("replace b 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
            ("add b 4294967295 0 0\r\n\r\n", "STORED\r\n"),
            (
                "get b a nothing\r\n",
                "VALUE b 4294967295 0\r\n\r\nVALUE a 5 3\r\nabc\r\nEND\r\n",
            ),
            ("replace b 0 0 1\r\n7\r\n", "STORED\r\n"),
            ("cas b 0 0 1 2\r\n8\r\n", "EXISTS\r\n"),
            ("cas b 0 0 1 3\r\n8\r\n", "STORED\r\n"),
            ("cas c 0 0 1 3\r\n8\r\n", "NOT_FOUND\r\n"),
            ("incr b 3\r\n", "11\r\n"),
            ("decr b 2\r\n", "9\r\n"),
            ("get b\r\n", "VALUE b 0 1\r\n9\r\nEND\r\n"),
            ("decr b 10\r\n", "0\r\n"),
            (
                "incr b 18446744073709551615\r\n",
                "18446744073709551615\r\n",
            ),
            ("incr b 2\r\n", "1\r\n"),
            ("incr nothing 1\r\n", "NOT_FOUND\r\n"),
            (
                "incr a 1\r\n",
                "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
            ),
            (
                "incr b x\r\n",
                "CLIENT_ERROR invalid numeric delta argument\r\n",
            ),
            (
                "incr b 18446744073709551616\r\n",
                "CLIENT_ERROR invalid numeric delta argument\r\n",
            ),
            ("touch b 0\r\n", "TOUCHED\r\n"),
            ("touch nothing 0\r\n", "NOT_FOUND\r\n"),
            ("delete b\r\n", "DELETED\r\n"),
            ("delete b\r\n", "NOT_FOUND\r\n"),
            ("version\r\n", "VERSION test\r\n"),
        ],
    );
    tenant.finish();
}

#[test]
fn malformed_requests_are_told_what_is_wrong_and_change_nothing() {
    let name = "malformed_requests_are_told_what_is_wrong_and_change_nothing";
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    const BAD_LINE: &str = "CLIENT_ERROR bad command line format\r\n";
    const BAD_DATA: &str = "CLIENT_ERROR bad data chunk\r\n";
    let longest = "k".repeat(KEY_MOST);
    let too_long = "k".repeat(KEY_MOST + 1);
    let too_large = format!("set a 0 0 {}\r\n", VALUE_MOST + 1);
    let turns = [
        ("set a 0 0 1\r\n1\r\n".to_owned(), "STORED\r\n"),
        ("\r\n".to_owned(), "ERROR\r\n"),
        ("get\r\n".to_owned(), "ERROR\r\n"),
        ("get ".to_owned(), "ERROR\r\n"),
        ("fetch a\r\n".to_owned(), "ERROR\r\n"),
        ("gett a\r\n".to_owned(), "ERROR\r\n"),
        ("version".to_owned(), "ERROR\r\n"),
        ("verylongcommand a\r\n".to_owned(), "ERROR\r\n"),
        (format!("get {longest}\r\n"), "END\r\n"),
        (format!("get {too_long}\r\n"), BAD_LINE),
        (format!("set {too_long} 0 0 1\r\nx\r\n"), BAD_LINE),
        ("get a\tb\r\n".to_owned(), BAD_LINE),
        ("set a\r\n".to_owned(), "ERROR\r\n"),
        ("set a 0 0\r\nx\r\n".to_owned(), "ERROR\r\n"),
        ("set a x 0 1\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a -1 0 1\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 4294967296 0 1\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 0 0 -1\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 0 0 1x\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 0 0 1 norepl\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 0 0 1 noreply x\r\nx\r\n".to_owned(), BAD_LINE),
        ("cas a 0 0 1\r\nx\r\n".to_owned(), "ERROR\r\n"),
        ("set a 0 0 2\r\nx\r\n".to_owned(), BAD_DATA),
        ("set a 0 0 1\r\nxyz\r\n".to_owned(), BAD_DATA),
        ("set a 0 0 1\r\nx".to_owned(), BAD_DATA),
        ("set a 0 0 1\r\nx\r".to_owned(), BAD_DATA),
        (too_large, "SERVER_ERROR object too large for cache\r\n"),
        ("delete\r\n".to_owned(), "ERROR\r\n"),
        ("delete a 0\r\n".to_owned(), BAD_LINE),
        ("incr a\r\n".to_owned(), "ERROR\r\n"),
        // What follows a malformed request is not executed: it may be data.
        ("bogus a 0 0 10\r\ndelete a\r\n\r\n".to_owned(), "ERROR\r\n"),
        ("get a\r\n".to_owned(), "VALUE a 0 1\r\n1\r\nEND\r\n"),
    ];
    let turns: Vec<(&str, &str)> = turns
        .iter()
        .map(|(question, answer)| (question.as_str(), *answer))
        .collect();
    converse(&mut tenant, &turns);
    tenant.finish();
}

#[test]
fn noreply_is_silent_and_a_datagram_may_hold_several_commands() {
    let name = "noreply_is_silent_and_a_datagram_may_hold_several_commands";
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    assert_eq!(
        tenant.ask(b"set a 0 0 1 noreply\r\n1\r\nincr a 4 noreply\r\n"),
        None
    );
    assert_eq!(
        tenant.ask(b"touch a 0 noreply\r\ndelete b noreply\r\n"),
        None
    );
    // A well-formed request that fails is silent, too.
    assert_eq!(
        tenant.ask(b"set t 0 0 1 noreply\r\nx\r\nincr t 1 noreply\r\n"),
        None
    );
    converse(
        &mut tenant,
        &[
            (
                "set b 0 0 1 noreply\r\n2\r\nget a b\r\nincr b 1\r\n",
                "VALUE a 0 1\r\n5\r\nVALUE b 0 1\r\n2\r\nEND\r\n3\r\n",
            ),
            // A key may be called noreply.
            (
                "set noreply 0 0 1\r\nx\r\ndelete noreply noreply\r\nget noreply\r\n",
                "STORED\r\nEND\r\n",
            ),
        ],
    );
    tenant.finish();
}

#[test]
fn items_live_at_least_as_long_as_asked_and_not_two_seconds_longer() {
    let name = "items_live_at_least_as_long_as_asked_and_not_two_seconds_longer";
    let config = Config {
        epoch: 1_800_000_000,
        ..Config::default()
    };
    let Some(mut tenant) = Tenant::start(name, config) else {
        return;
    };
    tenant.set_uptime(100);
    converse(
        &mut tenant,
        &[
            ("set a 0 10 1\r\n1\r\n", "STORED\r\n"),
            ("set forever 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("set absolute 0 1800000150 1\r\n1\r\n", "STORED\r\n"),
            (
                "set past 0 1800000099 1\r\n1\r\nget past\r\n",
                "STORED\r\nEND\r\n",
            ),
            (
                "set touched 0 1 1\r\n1\r\ntouch touched 1000\r\n",
                "STORED\r\nTOUCHED\r\n",
            ),
            (
                "set gone 0 0 1\r\n1\r\nset gone 0 -1 1\r\n1\r\nget gone\r\n",
                "STORED\r\nSTORED\r\nEND\r\n",
            ),
        ],
    );
    tenant.set_uptime(110);
    converse(&mut tenant, &[("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n")]);
    // Counting keeps the time that was set.
    converse(&mut tenant, &[("incr a 1\r\n", "2\r\n")]);
    tenant.set_uptime(111);
    converse(
        &mut tenant,
        &[
            ("get a\r\n", "END\r\n"),
            ("add a 0 0 1\r\n3\r\n", "STORED\r\n"),
        ],
    );
    tenant.set_uptime(149);
    converse(
        &mut tenant,
        &[("get absolute\r\n", "VALUE absolute 0 1\r\n1\r\nEND\r\n")],
    );
    tenant.set_uptime(150);
    converse(&mut tenant, &[("get absolute\r\n", "END\r\n")]);
    tenant.set_uptime(1000);
    converse(
        &mut tenant,
        &[("get touched\r\n", "VALUE touched 0 1\r\n1\r\nEND\r\n")],
    );
    tenant.set_uptime(u32::MAX);
    converse(
        &mut tenant,
        &[(
            "get touched forever\r\n",
            "VALUE forever 0 1\r\n1\r\nEND\r\n",
        )],
    );
    tenant.finish();
}

#[test]
fn an_expiry_that_no_clock_can_measure_is_refused() {
    let name = "an_expiry_that_no_clock_can_measure_is_refused";
    const REFUSED: &str = "SERVER_ERROR no clock for this expiry\r\n";
    let Some(mut tenant) = Tenant::start(
        name,
        Config {
            clock: false,
            ..Config::default()
        },
    ) else {
        return;
    };
    converse(
        &mut tenant,
        &[
            ("set a 0 1 1\r\n1\r\n", REFUSED),
            ("set a 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("touch a 10\r\n", REFUSED),
            ("set b 0 -1 1\r\n1\r\n", "STORED\r\n"),
            ("get a b\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
        ],
    );
    tenant.finish();
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    converse(&mut tenant, &[("set a 0 1800000000 1\r\n1\r\n", REFUSED)]);
    tenant.finish();
}

#[test]
fn a_long_answer_is_cut_into_datagrams_and_one_too_long_is_refused() {
    let name = "a_long_answer_is_cut_into_datagrams_and_one_too_long_is_refused";
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    let value = "v".repeat(VALUE_MOST);
    for key in 0..10 {
        let set = format!("set {key} 0 0 {VALUE_MOST}\r\n{value}\r\n");
        assert_eq!(tenant.ask(set.as_bytes()).unwrap(), b"STORED\r\n");
    }
    let keys: Vec<String> = (0..10).map(|key| key.to_string()).collect();
    let expected: String = keys
        .iter()
        .map(|key| format!("VALUE {key} 0 {VALUE_MOST}\r\n{value}\r\n"))
        .chain(["END\r\n".to_owned()])
        .collect();
    let answer = tenant
        .ask(format!("get {}\r\n", keys.join(" ")).as_bytes())
        .unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), expected);
    let twice = format!("get {} {}\r\n", keys.join(" "), keys.join(" "));
    assert_eq!(
        tenant.ask(twice.as_bytes()).unwrap(),
        b"SERVER_ERROR response too large\r\n"
    );
    tenant.finish();
}

#[test]
fn a_request_in_several_datagrams_is_refused() {
    let name = "a_request_in_several_datagrams_is_refused";
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    for header in [
        [0, 1, 0, 0, 0, 2, 0, 0],
        [0, 1, 0, 1, 0, 1, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
    ] {
        let mut payload = header.to_vec();
        payload.extend_from_slice(b"set a 0 0 1\r\n1\r\n");
        let answers = tenant.datagram(lockstep_guest::KV_PORT, &payload);
        assert_eq!(answers.len(), 1);
        assert_eq!(
            &answers[0][8..],
            b"SERVER_ERROR multi-packet request not supported\r\n"
        );
    }
    assert_eq!(tenant.ask(b"get a\r\n").unwrap(), b"END\r\n");
    tenant.finish();
}

/// Reads a number out of the tenant's statistics.
fn statistic(tenant: &mut Tenant, name: &str) -> u64 {
    let text = String::from_utf8(tenant.ask(b"stats\r\n").unwrap()).unwrap();
    let prefix = format!("STAT {name} ");
    let line = text.lines().find(|line| line.starts_with(&prefix)).unwrap();
    line[prefix.len()..].parse().unwrap()
}

#[test]
fn full_memory_refuses_and_loses_nothing_that_was_acknowledged() {
    let name = "full_memory_refuses_and_loses_nothing_that_was_acknowledged";
    let Some(mut tenant) = Tenant::start(
        name,
        Config {
            arena: 100_000,
            ..Config::default()
        },
    ) else {
        return;
    };
    let mut stored = BTreeMap::new();
    let mut refused = 0;
    for round in 0..400_usize {
        // Sizes of many classes, and keys that come back with another size.
        let (key, size) = (round % 230, (round * 397) % (VALUE_MOST + 1));
        let value = format!("{round:04}").repeat(size / 4 + 1)[..size].to_owned();
        let answer = tenant
            .ask(format!("set {key} 0 0 {size}\r\n{value}\r\n").as_bytes())
            .unwrap();
        match answer.as_slice() {
            b"STORED\r\n" => {
                stored.insert(key, value);
            }
            b"SERVER_ERROR out of memory storing object\r\n" => refused += 1,
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    assert!(refused > 50, "the arena was never full");
    for (key, value) in &stored {
        let expected = format!("VALUE {key} 0 {}\r\n{value}\r\nEND\r\n", value.len());
        let answer = tenant.ask(format!("get {key}\r\n").as_bytes()).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), expected);
    }
    assert_eq!(statistic(&mut tenant, "curr_items"), stored.len() as u64);
    for key in stored.keys() {
        assert_eq!(
            tenant.ask(format!("delete {key}\r\n").as_bytes()).unwrap(),
            b"DELETED\r\n"
        );
    }
    assert_eq!(statistic(&mut tenant, "bytes"), 0);
    let set = format!("set again 0 0 100\r\n{}\r\n", "x".repeat(100));
    assert_eq!(tenant.ask(set.as_bytes()).unwrap(), b"STORED\r\n");
    tenant.finish();
}

#[test]
fn memory_of_large_items_serves_small_ones() {
    let name = "memory_of_large_items_serves_small_ones";
    let Some(mut tenant) = Tenant::start(
        name,
        Config {
            arena: 100_000,
            ..Config::default()
        },
    ) else {
        return;
    };
    let value = "v".repeat(VALUE_MOST);
    let set = |key: usize| format!("set {key} 0 0 {VALUE_MOST}\r\n{value}\r\n");
    let large = (0..)
        .take_while(|key| tenant.ask(set(*key).as_bytes()).unwrap() == b"STORED\r\n")
        .count();
    for key in 0..large {
        assert_eq!(
            tenant.ask(format!("delete {key}\r\n").as_bytes()).unwrap(),
            b"DELETED\r\n"
        );
    }
    let set = |key: usize| format!("set {key} 0 0 1\r\n1\r\n");
    let small = (0..)
        .take_while(|key| tenant.ask(set(*key).as_bytes()).unwrap() == b"STORED\r\n")
        .count();
    // 64 bytes each, and not a block is left over.
    assert_eq!(small as u64 * 64, statistic(&mut tenant, "limit_maxbytes"));
    tenant.finish();
}

#[test]
fn memory_of_expired_items_is_used_again() {
    let name = "memory_of_expired_items_is_used_again";
    let Some(mut tenant) = Tenant::start(
        name,
        Config {
            arena: 100_000,
            ..Config::default()
        },
    ) else {
        return;
    };
    let value = "v".repeat(500);
    let mut stored = [0; 3];
    for (generation, stored) in (0_u32..).zip(&mut stored) {
        tenant.set_uptime(generation * 1000);
        for key in 0.. {
            let set = format!("set {generation}-{key} 0 100 500\r\n{value}\r\n");
            if tenant.ask(set.as_bytes()).unwrap() != b"STORED\r\n" {
                break;
            }
            *stored += 1;
        }
    }
    assert!(stored[0] > 100);
    assert_eq!(stored, [stored[0]; 3]);
    tenant.finish();
}

/// The tenant's hash, to choose keys by.
fn hash(seed: u64, key: &[u8]) -> u64 {
    let mix = |value: u64| {
        let product = u128::from(value) * 0x9e37_79b9_7f4a_7c15;
        product as u64 ^ (product >> 64) as u64
    };
    let mut hash = seed ^ (key.len() as u64) << 56;
    let mut words = key.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    for word in words.by_ref() {
        hash = mix(hash ^ word);
    }
    mix(hash)
}

#[test]
fn colliding_keys_cannot_make_a_request_slow() {
    let name = "colliding_keys_cannot_make_a_request_slow";
    let seed = 0x1234_5678;
    // 1024 buckets.
    let config = Config {
        arena: 1_000_000,
        seed,
        ..Config::default()
    };
    let Some(mut tenant) = Tenant::start(name, config) else {
        return;
    };
    let colliding = (0_u32..)
        .map(|n| format!("key{n}"))
        .filter(|key| hash(seed, key.as_bytes()) % 1024 == 7);
    let mut answers = Vec::new();
    for key in colliding.take(70) {
        answers.push(
            tenant
                .ask(format!("set {key} 0 0 1\r\n1\r\n").as_bytes())
                .unwrap(),
        );
    }
    assert!(answers[..64].iter().all(|answer| answer == b"STORED\r\n"));
    assert!(
        answers[64..]
            .iter()
            .all(|answer| answer.starts_with(b"SERVER_ERROR out of memory"))
    );
    assert_eq!(
        tenant.ask(b"set other 0 0 1\r\n1\r\n").unwrap(),
        b"STORED\r\n"
    );
    tenant.finish();
}

#[derive(Debug, Clone)]
enum Command {
    Store {
        how: &'static str,
        key: usize,
        flags: u32,
        expiry: i32,
        value: Vec<u8>,
        cas_back: u64,
    },
    Get {
        cas: bool,
        keys: Vec<usize>,
    },
    Delete {
        key: usize,
    },
    Count {
        up: bool,
        key: usize,
        delta: u64,
    },
    Touch {
        key: usize,
        expiry: i32,
    },
    Wait {
        seconds: u32,
    },
}

/// Few keys, so that they meet; of lengths around the word size, and with bytes beyond ASCII.
fn key_text(key: usize) -> Vec<u8> {
    const LENGTHS: [usize; 12] = [1, 2, 7, 8, 9, 15, 16, 17, 64, 249, 250, 250];
    let mut text = vec![0x80 + key as u8; LENGTHS[key]];
    *text.last_mut().unwrap() = b'!' + key as u8;
    text
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        // With the longest key such a request still fits one datagram.
        proptest::collection::vec(any::<u8>(), 0..1150),
        any::<u64>().prop_map(|number| number.to_string().into_bytes()),
        (0_u64..12).prop_map(|number| number.to_string().into_bytes()),
        Just(b"\r\nEND\r\n".to_vec()),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let key = || 0_usize..12;
    let expiry = || prop_oneof![4 => Just(0), 2 => 1..100_i32, 1 => -5..0_i32];
    prop_oneof![
        6 => (
            prop::sample::select(vec!["set", "add", "replace", "cas"]),
            key(), any::<u32>(), expiry(), value(), 0_u64..3,
        ).prop_map(|(how, key, flags, expiry, value, cas_back)| {
            Command::Store { how, key, flags, expiry, value, cas_back }
        }),
        6 => (any::<bool>(), proptest::collection::vec(key(), 1..5))
            .prop_map(|(cas, keys)| Command::Get { cas, keys }),
        2 => key().prop_map(|key| Command::Delete { key }),
        3 => (any::<bool>(), key(), prop_oneof![0_u64..20, any::<u64>()])
            .prop_map(|(up, key, delta)| Command::Count { up, key, delta }),
        1 => (key(), expiry()).prop_map(|(key, expiry)| Command::Touch { key, expiry }),
        1 => (0_u32..50).prop_map(|seconds| Command::Wait { seconds }),
    ]
}

struct Entry {
    flags: u32,
    expires: u32,
    value: Vec<u8>,
    cas: u64,
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<usize, Entry>,
    uptime: u32,
    last_cas: u64,
}

impl Model {
    fn expires(&self, expiry: i32) -> u32 {
        match expiry {
            0 => u32::MAX,
            negative if negative < 0 => 0,
            positive => self.uptime + positive as u32 + 1,
        }
    }

    fn put(&mut self, key: usize, flags: u32, expires: u32, value: Vec<u8>) {
        if expires == 0 {
            self.entries.remove(&key);
            return;
        }
        self.last_cas += 1;
        self.entries.insert(
            key,
            Entry {
                flags,
                expires,
                value,
                cas: self.last_cas,
            },
        );
    }

    /// The request's text, and what is to be answered.
    fn execute(&mut self, command: &Command) -> (Vec<u8>, Vec<u8>) {
        let uptime = self.uptime;
        self.entries.retain(|_, entry| entry.expires > uptime);
        match command {
            Command::Store {
                how,
                key,
                flags,
                expiry,
                value,
                cas_back,
            } => {
                let cas = self
                    .entries
                    .get(key)
                    .map_or(0, |entry| entry.cas)
                    .wrapping_sub(*cas_back);
                let mut text = format!("{how} ").into_bytes();
                text.extend(key_text(*key));
                text.extend(format!(" {flags} {expiry} {}", value.len()).into_bytes());
                if *how == "cas" {
                    text.extend(format!(" {cas}").into_bytes());
                }
                text.extend(b"\r\n");
                text.extend(value);
                text.extend(b"\r\n");
                let present = self.entries.contains_key(key);
                let answer: &[u8] = match *how {
                    "add" if present => b"NOT_STORED\r\n",
                    "replace" if !present => b"NOT_STORED\r\n",
                    "cas" if !present => b"NOT_FOUND\r\n",
                    "cas" if *cas_back != 0 => b"EXISTS\r\n",
                    _ => {
                        self.put(*key, *flags, self.expires(*expiry), value.clone());
                        b"STORED\r\n"
                    }
                };
                (text, answer.to_vec())
            }
            Command::Get { cas, keys } => {
                let mut text = if *cas {
                    b"gets".to_vec()
                } else {
                    b"get".to_vec()
                };
                let mut answer = Vec::new();
                for key in keys {
                    text.push(b' ');
                    text.extend(key_text(*key));
                    let Some(entry) = self.entries.get(key) else {
                        continue;
                    };
                    answer.extend(b"VALUE ");
                    answer.extend(key_text(*key));
                    answer.extend(format!(" {} {}", entry.flags, entry.value.len()).into_bytes());
                    if *cas {
                        answer.extend(format!(" {}", entry.cas).into_bytes());
                    }
                    answer.extend(b"\r\n");
                    answer.extend(&entry.value);
                    answer.extend(b"\r\n");
                }
                text.extend(b"\r\n");
                answer.extend(b"END\r\n");
                (text, answer)
            }
            Command::Delete { key } => {
                let mut text = b"delete ".to_vec();
                text.extend(key_text(*key));
                text.extend(b"\r\n");
                let present = self.entries.remove(key).is_some();
                (
                    text,
                    if present {
                        b"DELETED\r\n".to_vec()
                    } else {
                        b"NOT_FOUND\r\n".to_vec()
                    },
                )
            }
            Command::Count { up, key, delta } => {
                let mut text = if *up {
                    b"incr ".to_vec()
                } else {
                    b"decr ".to_vec()
                };
                text.extend(key_text(*key));
                text.extend(format!(" {delta}\r\n").into_bytes());
                let Some(entry) = self.entries.get(key) else {
                    return (text, b"NOT_FOUND\r\n".to_vec());
                };
                let digits = entry.value.iter().all(u8::is_ascii_digit);
                let number = std::str::from_utf8(&entry.value)
                    .ok()
                    .and_then(|text| text.parse::<u64>().ok());
                let Some(number) = number.filter(|_| digits) else {
                    let message =
                        b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
                    return (text, message.to_vec());
                };
                let number = if *up {
                    number.wrapping_add(*delta)
                } else {
                    number.saturating_sub(*delta)
                };
                let (flags, expires) = (entry.flags, entry.expires);
                self.put(*key, flags, expires, number.to_string().into_bytes());
                (text, format!("{number}\r\n").into_bytes())
            }
            Command::Touch { key, expiry } => {
                let mut text = b"touch ".to_vec();
                text.extend(key_text(*key));
                text.extend(format!(" {expiry}\r\n").into_bytes());
                let expires = self.expires(*expiry);
                let Some(entry) = self.entries.get_mut(key) else {
                    return (text, b"NOT_FOUND\r\n".to_vec());
                };
                entry.expires = expires;
                (text, b"TOUCHED\r\n".to_vec())
            }
            Command::Wait { seconds } => {
                self.uptime += seconds;
                (b"get waiting\r\n".to_vec(), b"END\r\n".to_vec())
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_the_models(
        seed in any::<u64>(),
        commands in proptest::collection::vec(command(), 1..300),
    ) {
        let config = Config { seed, ..Config::default() };
        let Some(mut tenant) = Tenant::start("every_answer_is_the_models", config) else {
            return Ok(());
        };
        let mut model = Model::default();
        for command in &commands {
            let (text, expected) = model.execute(command);
            tenant.set_uptime(model.uptime);
            let answer = tenant.ask(&text).unwrap_or_default();
            prop_assert_eq!(
                String::from_utf8_lossy(&answer), String::from_utf8_lossy(&expected),
                "answering {:?}", String::from_utf8_lossy(&text)
            );
        }
        // The last command may have let some of them expire.
        let uptime = model.uptime;
        model.entries.retain(|_, entry| entry.expires > uptime);
        let (counted, live) = (statistic(&mut tenant, "curr_items"), model.entries.len());
        prop_assert!(counted >= live as u64, "curr_items {counted}, of which {live} live");
        tenant.finish();
    }
}
