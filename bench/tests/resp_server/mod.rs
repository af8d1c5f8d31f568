//! As much of Redis as the checking client asks for, and the lies that it must find.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    /// Every fiftieth GET shows what was there before the last write.
    StaleRead,
    /// The fiftieth SET of a register is acknowledged and forgotten.
    LostUpdate,
    /// Every fiftieth INCR counts twice.
    DoubledIncrement,
    /// Every fiftieth GET shows something else.
    ValueFromNowhere,
    /// The last write to each ledger key was acknowledged, and is gone when it is read.
    ForgottenWrite,
    /// Connections end after so many requests each, the last ones executed but not answered. Every
    /// second one lives.
    CutAfter(u64),
    /// Everything stands still, once, after a tenth of a second's requests.
    StallOnce(Duration),
    /// After so many requests each, connections are not answered any more.
    SilentAfter(u64),
    /// Every command is refused.
    Refusing,
}

#[derive(Default)]
struct Store {
    values: HashMap<Vec<u8>, Vec<u8>>,
    before: HashMap<Vec<u8>, Vec<u8>>,
    commands: u64,
    gets: u64,
    sets: u64,
    increments: u64,
}

/// A server on loopback, until the process ends.
pub struct RespServer {
    pub address: SocketAddr,
}

impl RespServer {
    pub fn start(lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket on loopback");
        let address = listener.local_addr().expect("bound");
        let store = Arc::new(Mutex::new(Store::default()));
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let store = Arc::clone(&store);
                std::thread::spawn(move || {
                    // The client left, or was left: either way this connection is over.
                    let _ = serve(&stream, &store, lie, number);
                });
            }
        });
        Self { address }
    }
}

fn serve(stream: &TcpStream, store: &Mutex<Store>, lie: Lie, number: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut requests = 0;
    loop {
        let words = read_command(&mut reader)?;
        let mut store = store.lock().expect("no thread panics");
        let reply = store.execute(&words, lie);
        store.commands += 1;
        requests += 1;
        match lie {
            Lie::StallOnce(length) if store.commands == 200 => std::thread::sleep(length),
            Lie::CutAfter(most) if number.is_multiple_of(2) && requests > most => {
                if requests > most + 3 {
                    return Ok(());
                }
                continue;
            }
            Lie::SilentAfter(most) if requests > most => continue,
            _ => {}
        }
        drop(store);
        let mut to = stream;
        to.write_all(&reply)?;
    }
}

fn read_command(reader: &mut impl BufRead) -> io::Result<Vec<Vec<u8>>> {
    let count = read_header(reader, '*')?;
    (0..count)
        .map(|_| {
            let length = read_header(reader, '$')?;
            let mut word = vec![0; length + 2];
            reader.read_exact(&mut word)?;
            word.truncate(length);
            Ok(word)
        })
        .collect()
}

fn read_header(reader: &mut impl BufRead, kind: char) -> io::Result<usize> {
    let mut line = String::new();
    reader.take(32).read_line(&mut line)?;
    line.trim_end()
        .strip_prefix(kind)
        .and_then(|number| number.parse().ok())
        .ok_or(io::ErrorKind::InvalidData.into())
}

impl Store {
    fn execute(&mut self, words: &[Vec<u8>], lie: Lie) -> Vec<u8> {
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let bulk = |value: Option<&Vec<u8>>| match value {
            None => b"$-1\r\n".to_vec(),
            Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
        };
        if lie == Lie::Refusing {
            return b"-NOAUTH Authentication required.\r\n".to_vec();
        }
        match words[..] {
            [b"GET", key] => {
                self.gets += 1;
                let due = self.gets.is_multiple_of(50);
                match lie {
                    Lie::StaleRead if due && self.before.contains_key(key) => {
                        bulk(self.before.get(key))
                    }
                    Lie::ValueFromNowhere if due => bulk(Some(&b"9999999".to_vec())),
                    Lie::ForgottenWrite if key.starts_with(b"l:") => bulk(self.before.get(key)),
                    _ => bulk(self.values.get(key)),
                }
            }
            [b"SET", key, value] => {
                self.sets += 1;
                if lie != Lie::LostUpdate || !key.starts_with(b"r:") || self.sets < 50 {
                    self.write(key, value.to_vec());
                } else {
                    self.sets = 0;
                }
                b"+OK\r\n".to_vec()
            }
            [b"INCR", key] => {
                self.increments += 1;
                let doubled = lie == Lie::DoubledIncrement && self.increments.is_multiple_of(50);
                let value = self.values.get(key).map_or("0", |value| {
                    std::str::from_utf8(value).expect("numbers are text")
                });
                let Ok(number) = value.parse::<i64>() else {
                    return b"-ERR value is not an integer or out of range\r\n".to_vec();
                };
                let number = number + 1 + i64::from(doubled);
                self.write(key, number.to_string().into_bytes());
                format!(":{number}\r\n").into_bytes()
            }
            [b"APPEND", key, value] => {
                let mut whole = self.values.get(key).cloned().unwrap_or_default();
                whole.extend_from_slice(value);
                let length = whole.len();
                self.write(key, whole);
                format!(":{length}\r\n").into_bytes()
            }
            [b"EVAL", _, b"1", key, expected, new] => {
                let swap = self.values.get(key).is_some_and(|value| value == expected);
                if swap {
                    self.write(key, new.to_vec());
                }
                format!(":{}\r\n", u8::from(swap)).into_bytes()
            }
            [b"DEL", ..] => {
                for key in &words[1..] {
                    self.values.remove(*key);
                    self.before.remove(*key);
                }
                b":0\r\n".to_vec()
            }
            _ => b"-ERR unknown command\r\n".to_vec(),
        }
    }

    fn write(&mut self, key: &[u8], value: Vec<u8>) {
        if let Some(before) = self.values.insert(key.to_vec(), value) {
            self.before.insert(key.to_vec(), before);
        }
    }
}
