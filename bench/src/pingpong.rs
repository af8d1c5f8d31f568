//! The yardstick: a bare TCP ping-pong, 64 bytes out and 16 back.
//!
//! About what an output costs the logging channel at least: one entry to the other side, and one
//! acknowledgement back, over the same link, in the same run, with nothing else around it. What the
//! output rule adds is judged by how many of these round trips it is worth.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lockstep_logchan::transport::tcp::CONGESTION_CONTROL;
use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::stamp;
use rustix::net::sockopt::set_tcp_congestion;

/// Bytes of a ping: an entry's header and a small payload.
pub const PING: usize = 64;
/// Bytes of a pong: an acknowledgement.
pub const PONG: usize = 16;
/// A side that hears nothing for this long gives up, so that a lost peer ends a run.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a side waits for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waiting {
    /// Asks again and again: the lowest latency, and one core gone. On fewer cores than spinning
    /// sides it measures the scheduler.
    Spin,
    /// Sleeps in the kernel until there is something.
    Block,
}

impl Waiting {
    /// Name in files and plots.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Block => "block",
        }
    }
}

/// The side that answers.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// Listens in the network namespace of the calling thread; port 0 takes any.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address)?,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers one client until that hangs up; returns how many pings came.
    ///
    /// # Errors
    /// Nobody connected, or the client fell silent, for five seconds; or the connection broke.
    pub fn serve(&self, waiting: Waiting) -> io::Result<u64> {
        let stream = self.accept()?;
        let mut side = Side::new(stream, waiting)?;
        let (mut ping, pong) = ([0; PING], [0xAC; PONG]);
        let mut answered = 0;
        while side.receive(&mut ping)? {
            side.stream.write_all(&pong)?;
            answered += 1;
        }
        Ok(answered)
    }

    fn accept(&self) -> io::Result<TcpStream> {
        self.listener.set_nonblocking(true)?;
        let end = Instant::now() + PATIENCE;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if Instant::now() >= end => return Err(silence("nobody connected")),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// The side that asks: connected, from the network namespace of the thread that connected.
#[derive(Debug)]
pub struct Client {
    side: Side,
}

impl Client {
    /// Connects to a [`Server`].
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(server: SocketAddr, waiting: Waiting) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        Ok(Self {
            side: Side::new(stream, waiting)?,
        })
    }

    /// Plays `length`, the first fifth of it as warm-up, and returns the round trips.
    ///
    /// # Errors
    /// The server fell silent for five seconds, or hung up.
    pub fn play(&mut self, length: Duration) -> io::Result<LatencyHistogram> {
        self.play_every(Duration::ZERO, length)
    }

    /// As [`Client::play`], one ping each `interval` at most, asleep in between. A round trip on a
    /// link that is used a thousand times a second costs more than one that follows upon another:
    /// caches are cold and cores idle. What acknowledges packets at some rate is to be compared with
    /// a ping-pong at that rate.
    ///
    /// # Errors
    /// As [`Client::play`].
    pub fn play_every(
        &mut self,
        interval: Duration,
        length: Duration,
    ) -> io::Result<LatencyHistogram> {
        let mut latency = LatencyHistogram::new();
        let begin = stamp::now();
        let length_ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let (measure_ns, end_ns) = (length_ns / 5, length_ns);
        let (ping, mut pong) = ([0x5A; PING], [0; PONG]);
        loop {
            if !interval.is_zero() {
                std::thread::sleep(interval);
            }
            let sent = stamp::now();
            let elapsed = sent - begin;
            if elapsed >= end_ns {
                return Ok(latency);
            }
            self.side.stream.write_all(&ping)?;
            if !self.side.receive(&mut pong)? {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "ping-pong: the server hung up",
                ));
            }
            if elapsed >= measure_ns {
                latency.record(stamp::now() - sent);
            }
        }
    }
}

#[derive(Debug)]
struct Side {
    stream: TcpStream,
    waiting: Waiting,
}

impl Side {
    fn new(stream: TcpStream, waiting: Waiting) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        set_tcp_congestion(&stream, CONGESTION_CONTROL)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // A message is far smaller than the socket's buffer: writing never has to wait.
        stream.set_nonblocking(waiting == Waiting::Spin)?;
        Ok(Self { stream, waiting })
    }

    /// Fills `message`; `false`: the other side hung up between two messages.
    fn receive(&mut self, message: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        let mut idle_since = None;
        while filled < message.len() {
            match self.stream.read(&mut message[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                // Blocking, the kernel has waited as long as its timeout says.
                Err(_) if self.waiting == Waiting::Block => return Err(silence("no message")),
                Err(_) => {
                    let now = stamp::now();
                    let since = *idle_since.get_or_insert(now);
                    if now - since > PATIENCE.as_nanos() as u64 {
                        return Err(silence("no message"));
                    }
                    std::hint::spin_loop();
                }
            }
        }
        Ok(true)
    }
}

fn silence(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("ping-pong: {what} for {PATIENCE:?}"),
    )
}

/// Plays over loopback, both sides in this process: the server on a thread of its own.
///
/// # Errors
/// As [`Client::play`] and [`Server::serve`].
pub fn loopback(waiting: Waiting, length: Duration) -> io::Result<LatencyHistogram> {
    let server = Server::bind(([127, 0, 0, 1], 0).into())?;
    let address = server.address()?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve(waiting));
        let played = Client::connect(address, waiting).and_then(|mut client| client.play(length));
        let served = serving
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The client's error explains the server's.
        let latency = played?;
        served?;
        Ok(latency)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ping_is_answered_and_measured_whichever_way_they_wait() {
        for waiting in [Waiting::Block, Waiting::Spin] {
            let server = Server::bind(([127, 0, 0, 1], 0).into()).expect("bound");
            let address = server.address().expect("bound");
            let serving = std::thread::spawn(move || server.serve(waiting));
            let mut client = Client::connect(address, waiting).expect("connected");
            let latency = client.play(Duration::from_millis(200)).expect("played");
            drop(client);
            let pings = serving.join().expect("no panic").expect("served");
            assert!(
                latency.count() > 0 && latency.count() <= pings,
                "{latency:?} of {pings}"
            );
            assert!(latency.value_at(0.0) > 500, "{latency:?}");
        }
    }

    #[test]
    fn a_server_that_hangs_up_ends_the_game() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        for waiting in [Waiting::Block, Waiting::Spin] {
            let mut client = Client::connect(address, waiting).expect("connected");
            drop(listener.accept().expect("accepted"));
            let error = client.play(Duration::from_secs(60)).expect_err("hung up");
            assert!(
                matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::BrokenPipe
                ),
                "{error}"
            );
        }
    }
}
