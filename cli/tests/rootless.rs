//! A pair on loopback and the user-space switch: no privilege, no namespace, no tap.

use lockstep_vmm::ft::announce::gratuitous_arp;
use lockstep_vmm::host::port::{MAX_FRAME, NetworkPort};
use lockstep_vmm::host::switch::{Switch, SwitchPort};
use serde_json::Value;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lockstep");
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const GUEST_MAC: [u8; 6] = [2, 0x4c, 0x53, 0, 0, 2];
const OUR_MAC: [u8; 6] = [2, 0x4c, 0x53, 0, 0, 9];
const PATIENCE: Duration = Duration::from_secs(20);

/// A child that does not outlive the test.
struct Side {
    child: Child,
    status: PathBuf,
}

impl Side {
    fn start(role: &str, directory: &Path, configuration: &str) -> Self {
        let config = directory.join(format!("{role}.toml"));
        std::fs::write(&config, configuration).expect("write");
        let status = directory.join(format!("{role}.status"));
        let child = Command::new(PROGRAM)
            .arg(role)
            .arg("--config")
            .arg(&config)
            .arg("--status")
            .arg(&status)
            .args(["--failure-heartbeat-interval-ms", "5"])
            .stdout(Stdio::null())
            .spawn()
            .expect("lockstep");
        Self { child, status }
    }

    /// Waits until `lockstep status --json` says that it is in `role`.
    fn wait_for(&mut self, role: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = Command::new(PROGRAM)
                .args(["status", "--json", "--socket"])
                .arg(&self.status)
                .output()
                .expect("lockstep status");
            let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if said["role"] == role {
                return said;
            }
            let ended = self.child.try_wait().expect("wait");
            assert!(
                ended.is_none(),
                "ended with {ended:?} instead of being {role}"
            );
            assert!(Instant::now() < deadline, "not {role} but {said}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks who has the guest's address until the guest answers.
fn guest_answers(port: &mut SwitchPort) {
    let mut request = gratuitous_arp(OUR_MAC, [10, 77, 0, 1]);
    // The target's protocol address: the guest's.
    request[38..42].copy_from_slice(&GUEST.octets());
    let deadline = Instant::now() + PATIENCE;
    let mut buf = [0; MAX_FRAME];
    loop {
        port.send(&request).expect("the switch");
        let again = Instant::now() + Duration::from_millis(100);
        while Instant::now() < again {
            match port.receive_into(&mut buf).expect("the switch") {
                Some(length) if is_answer(&buf[..length]) => return,
                Some(_) => {}
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        assert!(Instant::now() < deadline, "the guest does not answer");
    }
}

/// An ARP reply (operation 2) from the guest's address to ours.
fn is_answer(frame: &[u8]) -> bool {
    frame.len() >= 42
        && frame[..6] == OUR_MAC
        && frame[6..12] == GUEST_MAC
        && frame[12..14] == [8, 6]
        && frame[20..22] == [0, 2]
        && frame[28..32] == GUEST.octets()
}

/// Ports that nobody has at the moment: one of TCP and two of UDP.
fn free_ports() -> (u16, u16, u16) {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let udp = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"));
    let of = |socket: &UdpSocket| socket.local_addr().expect("an address").port();
    (
        tcp.local_addr().expect("an address").port(),
        of(&udp[0]),
        of(&udp[1]),
    )
}

#[test]
fn a_pair_without_any_privilege_survives_its_primary() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let _switch = Switch::bind(&directory.join("switch")).expect("a switch");
    std::fs::create_dir(directory.join("arbiter")).expect("a directory");
    let (log, first, second) = free_ports();
    let configuration = |own: u16, other: u16| {
        format!(
            "[vm]\nname = 'rootless'\nmemory-mib = 16\nengine = 'soft'\n\
             command-line = 'ip={GUEST}/24'\nmac = '02:4c:53:00:00:02'\nip = '{GUEST}'\n\
             [network]\nswitch = 'switch'\n[arbiter]\ndirectory = 'arbiter'\n\
             [channel]\naddress = '127.0.0.1:{log}'\n\
             heartbeat-listen = '127.0.0.1:{own}'\nheartbeat-peer = '127.0.0.1:{other}'\n"
        )
    };
    let mut primary = Side::start("primary", directory, &configuration(first, second));
    let mut backup = Side::start("backup", directory, &configuration(second, first));
    primary.wait_for("primary");
    backup.wait_for("backup");
    let mut port = SwitchPort::connect(&directory.join("switch")).expect("the switch");
    guest_answers(&mut port);

    primary.child.kill().expect("kill");
    let status = backup.wait_for("alone");
    assert!(status["failover"]["suspicion"].is_string(), "{status}");
    guest_answers(&mut port);
    // What both sides had prepared for the question goes once it is answered.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let names: Vec<_> = std::fs::read_dir(directory.join("arbiter"))
            .expect("readable")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        if names == ["rootless.1.winner"] {
            break;
        }
        assert!(Instant::now() < deadline, "left: {names:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
