//! The tenant's protocol code as a process of this host, under gcc's sanitizers, and the frames to talk
//! to it: built and taken apart by smoltcp, an implementation that shares nothing with the tenant.

use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol,
    Ipv4Address, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

pub const TENANT_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 2]);
pub const TENANT: Ipv4Address = Ipv4Address::new(10, 77, 0, 2);
pub const CLIENT_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 1]);
pub const CLIENT: Ipv4Address = Ipv4Address::new(10, 77, 0, 1);
pub const CLIENT_PORT: u16 = 40_000;

/// What the tenant is started with.
#[derive(Clone, Copy)]
pub struct Config {
    pub arena: usize,
    pub seed: u64,
    pub epoch: u32,
    pub clock: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            arena: 4 << 20,
            seed: 1,
            epoch: 0,
            clock: true,
        }
    }
}

pub struct Tenant {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// Builds the harness once per test process. `None`: the host's gcc has no sanitizers.
fn harness() -> Option<&'static Path> {
    static HARNESS: OnceLock<Option<PathBuf>> = OnceLock::new();
    HARNESS.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "gcc".to_owned());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let program = directory.join(format!("tenant-harness-{}", std::process::id()));
    let empty = directory.join(format!("empty-{}.c", std::process::id()));
    std::fs::write(&empty, "int main(void) { return 0; }\n").unwrap();
    let probe = Command::new(&compiler)
        .args(sanitizers)
        .arg(&empty)
        .arg("-o")
        .arg(&program)
        .output();
    std::fs::remove_file(&empty).unwrap();
    if !probe.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let sources = [
        "control.c",
        "kv.c",
        "net.c",
        "reply.c",
        "store.c",
        "../tests/native/harness.c",
    ];
    let output = Command::new(&compiler)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tenant"))
        .args(["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-I."])
        .args(sanitizers)
        .arg("-DTENANT_VERSION=\"test\"")
        .args(sources)
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(program)
}

impl Tenant {
    /// Starts a tenant. `None`: `test` cannot run here, and that has been reported.
    pub fn start(test: &str, config: Config) -> Option<Self> {
        let Some(program) = harness() else {
            lockstep_perf::not_run::report(
                test,
                "gcc has no sanitizers here: install libasan and libubsan",
            );
            return None;
        };
        let mut child = Command::new(program)
            .args([
                config.arena.to_string(),
                config.seed.to_string(),
                config.epoch.to_string(),
            ])
            .arg(u8::from(config.clock).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Some(Self {
            child,
            input,
            output,
        })
    }

    fn send(&mut self, bytes: &[u8]) {
        self.input
            .as_mut()
            .unwrap()
            .write_all(bytes)
            .expect("the harness died; see its message");
    }

    fn receive_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.output
            .read_exact(&mut bytes)
            .expect("the harness died; see its message");
        u32::from_le_bytes(bytes)
    }

    /// Moves the clock to `uptime` seconds.
    #[allow(dead_code, reason = "each test binary uses a part of this module")]
    pub fn set_uptime(&mut self, uptime: u32) {
        let mut command = vec![b'T'];
        command.extend_from_slice(&uptime.to_le_bytes());
        self.send(&command);
    }

    /// Lets a frame arrive; returns the frames it caused.
    pub fn frame(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let mut command = vec![b'F'];
        command.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_le_bytes());
        command.extend_from_slice(frame);
        self.send(&command);
        let mut frames = Vec::new();
        loop {
            let length = self.receive_u32();
            if length == u32::MAX {
                return frames;
            }
            let mut frame = vec![0; length as usize];
            self.output.read_exact(&mut frame).unwrap();
            frames.push(frame);
        }
    }

    /// Sends a datagram; returns the payloads of the datagrams that came back.
    pub fn datagram(&mut self, port: u16, payload: &[u8]) -> Vec<Vec<u8>> {
        let frames = self.frame(&udp_frame(port, payload));
        frames
            .iter()
            .map(|frame| udp_payload(frame, port))
            .collect()
    }

    /// Asks the key-value service; returns the text of its answer, `None` if there was none.
    #[allow(dead_code, reason = "each test binary uses a part of this module")]
    pub fn ask(&mut self, text: &[u8]) -> Option<Vec<u8>> {
        const ID: [u8; 2] = [0xab, 0xcd];
        let mut payload = vec![ID[0], ID[1], 0, 0, 0, 1, 0, 0];
        payload.extend_from_slice(text);
        let datagrams = self.datagram(lockstep_guest::KV_PORT, &payload);
        let total = u16::try_from(datagrams.len()).unwrap();
        let mut answer = Vec::new();
        for (sequence, datagram) in (0_u16..).zip(&datagrams) {
            assert!(
                datagram.len() <= 1400,
                "memcached's clients have buffers of 1400 bytes"
            );
            assert_eq!(datagram[..2], ID, "request id");
            assert_eq!(datagram[2..4], sequence.to_be_bytes(), "sequence number");
            assert_eq!(datagram[4..6], total.to_be_bytes(), "number of datagrams");
            assert_eq!(datagram[6..8], [0, 0], "reserved");
            assert!(datagram.len() > 8, "a datagram without text");
            answer.extend_from_slice(&datagram[8..]);
        }
        (total > 0).then_some(answer)
    }

    /// Ends the tenant: the sanitizers must have found nothing, leaks included.
    pub fn finish(mut self) {
        drop(self.input.take());
        let status = self.child.wait().unwrap();
        assert!(
            status.success(),
            "the harness ended with {status}; see its message"
        );
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// A datagram from the client to the tenant, in its frame.
pub fn udp_frame(port: u16, payload: &[u8]) -> Vec<u8> {
    let udp = UdpRepr {
        src_port: CLIENT_PORT,
        dst_port: port,
    };
    let ip = Ipv4Repr {
        src_addr: CLIENT,
        dst_addr: TENANT,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: 64,
    };
    let mut bytes = ipv4_frame(&ip);
    let headers = bytes.len() - ip.payload_len;
    let checksums = ChecksumCapabilities::default();
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut bytes[headers..]),
        &IpAddress::Ipv4(CLIENT),
        &IpAddress::Ipv4(TENANT),
        payload.len(),
        |to| to.copy_from_slice(payload),
        &checksums,
    );
    bytes
}

/// A frame from the client to the tenant, its IP payload zero.
pub fn ipv4_frame(ip: &Ipv4Repr) -> Vec<u8> {
    let ethernet = EthernetRepr {
        src_addr: CLIENT_MAC,
        dst_addr: TENANT_MAC,
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[ethernet.buffer_len()..]);
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    bytes
}

/// Takes apart a frame that must be addressed to the client and have right checksums; returns its IP
/// payload's protocol and bytes.
pub fn ipv4_payload(frame: &[u8]) -> (IpProtocol, Vec<u8>) {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(ethernet.src_addr(), TENANT_MAC);
    assert_eq!(ethernet.dst_addr(), CLIENT_MAC);
    assert_eq!(ethernet.ethertype(), EthernetProtocol::Ipv4);
    let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
    let ip = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).unwrap();
    assert_eq!((ip.src_addr, ip.dst_addr), (TENANT, CLIENT));
    assert_eq!(
        usize::from(packet.total_len()),
        ethernet.payload().len(),
        "bytes behind the packet"
    );
    (ip.next_header, packet.payload().to_vec())
}

/// The payload of a datagram that answers one sent to `port`.
pub fn udp_payload(frame: &[u8], port: u16) -> Vec<u8> {
    let (protocol, bytes) = ipv4_payload(frame);
    assert_eq!(protocol, IpProtocol::Udp);
    let packet = UdpPacket::new_checked(&bytes[..]).unwrap();
    assert_ne!(packet.checksum(), 0, "sent without a checksum");
    let (from, to) = (IpAddress::Ipv4(TENANT), IpAddress::Ipv4(CLIENT));
    let udp = UdpRepr::parse(&packet, &from, &to, &ChecksumCapabilities::default()).unwrap();
    assert_eq!((udp.src_port, udp.dst_port), (port, CLIENT_PORT));
    packet.payload().to_vec()
}
