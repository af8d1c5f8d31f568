//! UDP echo, closed loop: one datagram out, the same back, the next (RFC 862, port 7).
//!
//! The smallest round trip that a guest can make: what the machine and its network cost, without a
//! key-value store on top.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::stamp;

/// Longest payload, bytes: fits one Ethernet frame over IPv4.
pub const PAYLOAD_MAX: usize = 1472;
/// Shortest payload, bytes: it holds the datagram's number.
pub const PAYLOAD_MIN: usize = 8;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EchoConfig {
    /// The echo service.
    pub target: SocketAddr,
    /// Length of a datagram's payload, bytes; 8 to 1,472.
    pub payload_bytes: u16,
    /// Look for the reply without sleeping. Keeps a core busy.
    pub spin: bool,
    /// The least time from one datagram to the next; zero sends the next as soon as the reply is there.
    /// Where it is not zero, the histogram is corrected for the datagrams that a long wait kept from
    /// being sent.
    pub interval: Duration,
    /// A reply that takes longer than this is lost.
    pub timeout: Duration,
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub struct EchoReport {
    /// Round trips; a lost one counts with the timeout.
    pub latency: LatencyHistogram,
    /// Datagrams answered.
    pub answered: u64,
    /// Datagrams lost.
    pub lost: u64,
}

/// Echoes for `length`, from the network namespace of the calling thread.
///
/// # Errors
/// A setting is out of range, or the socket fails in another way than by losing datagrams.
pub fn run(config: &EchoConfig, length: Duration) -> io::Result<EchoReport> {
    let bytes = usize::from(config.payload_bytes);
    if !(PAYLOAD_MIN..=PAYLOAD_MAX).contains(&bytes) || config.timeout.is_zero() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "echo: {bytes} bytes of payload, timeout {:?}; use {PAYLOAD_MIN} to {PAYLOAD_MAX} bytes \
                 and a timeout above zero",
                config.timeout
            ),
        ));
    }
    let any: SocketAddr = if config.target.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(config.target)?;
    socket.set_read_timeout(Some(config.timeout))?;
    socket.set_nonblocking(config.spin)?;

    let mut report = EchoReport {
        latency: LatencyHistogram::new(),
        answered: 0,
        lost: 0,
    };
    let interval_ns = config.interval.as_nanos() as u64;
    let timeout_ns = config.timeout.as_nanos() as u64;
    let mut out = vec![b'e'; bytes];
    let mut back = vec![0; bytes + 1];
    let end = Instant::now() + length;
    let mut number = 0_u64;
    while Instant::now() < end {
        number += 1;
        out[..8].copy_from_slice(&number.to_be_bytes());
        let sent = stamp::now();
        // Refused or not: without a reply it is lost.
        let _ = socket.send(&out);
        let took = wait_for(&socket, &out, &mut back, sent, timeout_ns)?;
        match took {
            Some(ns) => {
                report.answered += 1;
                report.latency.record_correct(ns, interval_ns);
            }
            None => {
                report.lost += 1;
                report.latency.record_correct(timeout_ns, interval_ns);
            }
        }
        let rest = interval_ns.saturating_sub(stamp::now() - sent);
        if rest > 0 && config.spin {
            while stamp::now() - sent < interval_ns {
                std::hint::spin_loop();
            }
        } else if rest > 0 {
            std::thread::sleep(Duration::from_nanos(rest));
        }
    }
    Ok(report)
}

/// The round trip's nanoseconds; `None` if no reply came in time.
fn wait_for(
    socket: &UdpSocket,
    out: &[u8],
    back: &mut [u8],
    sent: u64,
    timeout_ns: u64,
) -> io::Result<Option<u64>> {
    loop {
        match socket.recv(back) {
            Ok(length) if back[..length] == *out => return Ok(Some(stamp::now() - sent)),
            // The reply to one that was given up.
            Ok(_) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => std::hint::spin_loop(),
                // Nobody listens, or no route: what a client sees while the other side is replaced.
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable => std::thread::yield_now(),
                _ => return Err(error),
            },
        }
        if stamp::now() - sent >= timeout_ns {
            return Ok(None);
        }
    }
}
