//! The service against a model of it.

use super::native::{Config, Tenant};
use super::statistic;
use proptest::prelude::*;
use std::collections::BTreeMap;

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
