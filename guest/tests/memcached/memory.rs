//! What the service does when its memory is full, and with keys chosen to collide.

use super::native::{Config, Tenant};
use super::statistic;
use lockstep_guest::VALUE_MOST;
use std::collections::BTreeMap;

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
