//! Servers on loopback for the tests of the clients.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_perf::stages::{OutputStamps, StageHistograms};
use lockstep_perf::stamp;

/// What goes wrong between client and server, in parts of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Requests that never arrive.
    pub drop_requests: u64,
    /// Replies that never arrive: the request took effect.
    pub drop_replies: u64,
    /// Replies that arrive twice.
    pub double_replies: u64,
    /// Chooses which.
    pub seed: u64,
}

enum Control {
    Stop,
    Stall(Duration),
    UndoWrites(usize, Sender<usize>),
}

/// A key-value store: set, get and incr of memcached's protocol over UDP, and its faults.
pub struct KvServer {
    pub address: SocketAddr,
    control: Sender<Control>,
    thread: Option<JoinHandle<io::Result<StageHistograms>>>,
}

/// What a server does with a reply before it lets it go, as an output gate does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gate {
    /// Holds every reply for this long.
    pub hold: Option<Duration>,
    /// Leaves what came in the first while out of the stage histograms.
    pub warm_up: Duration,
}

impl KvServer {
    pub fn start(faults: Faults) -> Self {
        Self::start_gated(faults, Gate::default())
    }

    pub fn start_gated(faults: Faults, gate: Gate) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
        let address = socket.local_addr().expect("bound");
        let timeout = Some(Duration::from_millis(5));
        socket.set_read_timeout(timeout).expect("a timeout");
        let (control, commands) = channel();
        let thread = std::thread::spawn(move || Store::new(faults, gate).serve(&socket, &commands));
        Self {
            address,
            control,
            thread: Some(thread),
        }
    }

    /// Answers nothing for `length`.
    pub fn stall(&self, length: Duration) {
        self.control.send(Control::Stall(length)).expect("running");
    }

    /// Undoes the last `count` writes, as a server does that loses its memory; returns how many there
    /// were.
    pub fn undo_writes(&self, count: usize) -> usize {
        let (done, undone) = channel();
        self.control
            .send(Control::UndoWrites(count, done))
            .expect("running");
        undone.recv().expect("running")
    }

    /// Ends it; returns where its replies spent their time.
    pub fn stop(mut self) -> StageHistograms {
        self.join().expect("not stopped before")
    }

    fn join(&mut self) -> Option<StageHistograms> {
        let _ = self.control.send(Control::Stop);
        let served = self.thread.take()?.join();
        if std::thread::panicking() {
            // The test has failed already, and says why.
            return None;
        }
        let stages = served.expect("the server did not panic");
        Some(stages.expect("its socket works"))
    }
}

impl Drop for KvServer {
    fn drop(&mut self) {
        self.join();
    }
}

type Text = Vec<u8>;

struct Store {
    values: HashMap<Text, Text>,
    /// Key, and what it held before.
    history: Vec<(Text, Option<Text>)>,
    faults: Faults,
    random: u64,
    gate: Gate,
}

impl Store {
    fn new(faults: Faults, gate: Gate) -> Self {
        Self {
            values: HashMap::new(),
            history: Vec::new(),
            random: faults.seed.max(1),
            faults,
            gate,
        }
    }

    fn serve(
        &mut self,
        socket: &UdpSocket,
        commands: &Receiver<Control>,
    ) -> io::Result<StageHistograms> {
        let mut datagram = [0; 2048];
        let mut stages = StageHistograms::new();
        let begun = Instant::now();
        loop {
            match commands.try_recv() {
                Ok(Control::Stop) => return Ok(stages),
                Ok(Control::Stall(length)) => std::thread::sleep(length),
                Ok(Control::UndoWrites(count, done)) => {
                    let _ = done.send(self.undo(count));
                }
                Err(_) => {}
            }
            let (length, from) = match socket.recv_from(&mut datagram) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            if self.happens(self.faults.drop_requests) {
                continue;
            }
            let mut stamps = OutputStamps {
                kick: stamp::now(),
                ..OutputStamps::default()
            };
            let mut reply = datagram[..8].to_vec();
            reply.extend(self.answer(&datagram[8..length]));
            if self.happens(self.faults.drop_replies) {
                continue;
            }
            if let Some(hold) = self.gate.hold {
                stamps.committed = stamp::now();
                stamps.sent = stamp::now();
                std::thread::sleep(hold);
                stamps.acked = stamp::now();
            }
            socket.send_to(&reply, from)?;
            stamps.released = stamp::now();
            if begun.elapsed() >= self.gate.warm_up {
                stages.record(&stamps);
            }
            if self.happens(self.faults.double_replies) {
                socket.send_to(&reply, from)?;
            }
        }
    }

    fn happens(&mut self, parts: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < parts
    }

    fn undo(&mut self, count: usize) -> usize {
        let mut undone = 0;
        while undone < count {
            match self.history.pop() {
                Some((key, Some(value))) => self.values.insert(key, value),
                Some((key, None)) => self.values.remove(&key),
                None => break,
            };
            undone += 1;
        }
        undone
    }

    fn write(&mut self, key: &[u8], value: &[u8]) {
        let old = self.values.insert(key.to_vec(), value.to_vec());
        self.history.push((key.to_vec(), old));
    }

    fn answer(&mut self, request: &[u8]) -> Text {
        let end = request
            .windows(2)
            .position(|pair| pair == b"\r\n")
            .unwrap_or(request.len());
        let words: Vec<&[u8]> = request[..end].split(|byte| *byte == b' ').collect();
        match words[..] {
            [b"set", key, b"0", b"0", bytes] => {
                let bytes: usize = text(bytes).parse().expect("a length");
                let data = &request[end + 2..];
                assert_eq!(data.len(), bytes + 2, "length and data agree");
                assert_eq!(&data[bytes..], b"\r\n");
                self.write(key, &data[..bytes]);
                b"STORED\r\n".to_vec()
            }
            [b"get", key] => match self.values.get(key) {
                Some(value) => {
                    let head = format!("VALUE {} 0 {}\r\n", text(key), value.len());
                    [head.as_bytes(), value, b"\r\nEND\r\n"].concat()
                }
                None => b"END\r\n".to_vec(),
            },
            [b"incr", key, by] => match self.values.get(key) {
                Some(value) => {
                    let sum: u64 = text(value).parse::<u64>().expect("a number")
                        + text(by).parse::<u64>().expect("a number");
                    self.write(key, sum.to_string().as_bytes());
                    format!("{sum}\r\n").into_bytes()
                }
                None => b"NOT_FOUND\r\n".to_vec(),
            },
            _ => b"ERROR\r\n".to_vec(),
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("ASCII")
}
