//! Namespaces, bridges, veth pairs and taps of this kernel, with frames through all of them.

use super::{
    CLIENT_ADDRESS, CLIENT_PORTS, GUEST_ADDRESS, GUEST_MAC, LOG_ADDRESS_A, LOG_ADDRESS_B,
    NETWORK_PREFIX, Namespace, Privilege, TAP_NAME, Topology, VethEnd, gain, probe_privilege,
};
use crate::host::port::{MAX_FRAME, NetworkPort};
use crate::host::tap::{Tap, TapError};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::udp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, IpCidr, IpProtocol,
    Ipv4Packet, UdpPacket,
};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The harness's name of a test of this module.
fn path(test: &str) -> String {
    format!("host::namespaces::tests::{test}")
}

fn with_namespaces(test: &str, body: impl FnOnce()) {
    super::trial::with_namespaces(&path(test), body);
}

/// A guest in the place of a virtual machine: smoltcp on a port, which refuses wrong checksums.
struct Port {
    tap: Tap,
    udp_seen: u64,
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut Tap);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame).expect("the tap is there");
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Received, Sending<'_>)> {
        let mut buf = vec![0; MAX_FRAME];
        let length = self.tap.receive_into(&mut buf).expect("the tap is there")?;
        buf.truncate(length);
        self.udp_seen += u64::from(holds_complete_udp(&buf));
        Some((Received(buf), Sending(&mut self.tap)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.tap))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

/// Whether the frame holds UDP, whose checksum must then be there and right.
fn holds_complete_udp(frame: &[u8]) -> bool {
    let ethernet = EthernetFrame::new_checked(frame).expect("a frame");
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return false;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).expect("an IPv4 packet");
    assert!(ip.verify_checksum(), "IPv4 header checksum: {ip:?}");
    if ip.next_header() != IpProtocol::Udp {
        return false;
    }
    let udp = UdpPacket::new_checked(ip.payload()).expect("a UDP packet");
    assert_ne!(udp.checksum(), 0, "no UDP checksum at all");
    assert!(
        udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()),
        "UDP checksum {:#06x} is not complete",
        udp.checksum()
    );
    true
}

/// Answers UDP on port 7 from `tap` until `done`; returns how many datagrams came.
fn echo(tap: Tap, done: &AtomicBool) -> u64 {
    let mut port = Port { tap, udp_seen: 0 };
    let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
    let now = || SmolInstant::from_micros((lockstep_perf::stamp::monotonic() / 1000) as i64);
    let mut interface = Interface::new(config, &mut port, now());
    interface.update_ip_addrs(|addresses| {
        addresses
            .push(IpCidr::new(GUEST_ADDRESS.into(), NETWORK_PREFIX))
            .expect("room for one address");
    });
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 1 << 16]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(7).expect("a free port");
    let mut sockets = SocketSet::new(vec![]);
    let handle = sockets.add(socket);
    // ORDERING: Relaxed suffices: the flag carries no data.
    while !done.load(Ordering::Relaxed) {
        interface.poll(now(), &mut port, &mut sockets);
        let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
        while let Ok((data, from)) = socket.recv() {
            let data = data.to_vec();
            socket.send_slice(&data, from).expect("room");
        }
        interface.poll(now(), &mut port, &mut sockets);
        let mut set = [rustix::event::PollFd::from_borrowed_fd(
            port.tap.fd(),
            rustix::event::PollFlags::IN,
        )];
        let timeout = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 5_000_000,
        };
        rustix::event::poll(&mut set, Some(&timeout)).expect("poll");
    }
    port.udp_seen
}

/// A client's socket in `clients`, connected to the guest's echo port.
fn client(topology: &Topology) -> UdpSocket {
    topology
        .clients
        .run(|| {
            let socket = UdpSocket::bind((CLIENT_ADDRESS, 0)).expect("bind");
            socket.connect((GUEST_ADDRESS, 7)).expect("connect");
            socket
                .set_read_timeout(Some(Duration::from_millis(200)))
                .expect("timeout");
            socket
        })
        .expect("enter")
}

/// Asks for an echo of `payload`, again while none comes.
fn ask(socket: &UdpSocket, payload: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut buf = [0; 2048];
    loop {
        socket.send(payload).expect("send");
        if let Ok(length) = socket.recv(&mut buf)
            && buf[..length] == *payload
        {
            return;
        }
        assert!(Instant::now() < deadline, "no echo within 10 s");
    }
}

#[test]
fn frames_reach_the_tap_with_complete_checksums() {
    with_namespaces("frames_reach_the_tap_with_complete_checksums", || {
        let topology = Topology::build().expect("build");
        let open = |host: &Namespace| host.run(|| Tap::open(TAP_NAME)).expect("enter");
        let on_a = open(&topology.host_a).expect("open");
        assert!(
            matches!(open(&topology.host_a), Err(TapError::Busy { .. })),
            "a tap has one user"
        );
        let socket = client(&topology);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let guest = scope.spawn(|| echo(on_a, &done));
            for length in [0, 1, 63, 64, 512, 1471, 1472] {
                let payload: Vec<u8> = (0..length).map(|n: usize| n as u8 ^ 0x5a).collect();
                ask(&socket, &payload);
            }
            done.store(true, Ordering::Relaxed);
            let seen = guest.join().expect("the guest");
            assert!(seen >= 7, "{seen} datagrams for 7 questions");
        });
    });
}

#[test]
fn the_guest_is_found_on_the_other_host_once_it_speaks_there() {
    with_namespaces(
        "the_guest_is_found_on_the_other_host_once_it_speaks_there",
        || {
            let topology = Topology::build().expect("build");
            let socket = client(&topology);
            for host in [&topology.host_a, &topology.host_b, &topology.host_a] {
                let mut tap = host
                    .run(|| Tap::open(TAP_NAME))
                    .expect("enter")
                    .expect("open");
                // As at go-live: a gratuitous ARP tells the bridges where the address is now.
                let arp: Vec<u8> = [
                    &[0xff; 6][..],
                    &GUEST_MAC,
                    &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
                    &GUEST_MAC,
                    &GUEST_ADDRESS.octets(),
                    &[0; 6],
                    &GUEST_ADDRESS.octets(),
                ]
                .concat();
                tap.send(&arp).expect("send");
                assert_eq!(tap.counters().sent, 1);
                let done = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let guest = scope.spawn(|| echo(tap, &done));
                    ask(&socket, b"where are you");
                    done.store(true, Ordering::Relaxed);
                    assert!(guest.join().expect("the guest") >= 1);
                });
            }
        },
    );
}

/// What the demo's proof that only one side lives rests on.
#[test]
fn what_a_host_says_is_counted_at_its_port_and_nothing_else_is() {
    with_namespaces(
        "what_a_host_says_is_counted_at_its_port_and_nothing_else_is",
        || {
            let topology = Topology::build().expect("build");
            let counted = |port| topology.clients.frames_received(port).expect("a port");
            let counts = || CLIENT_PORTS.map(counted);
            let open = |host: &Namespace| host.run(|| Tap::open(TAP_NAME)).expect("enter");
            let mut on_b = open(&topology.host_b).expect("open");
            let on_a = open(&topology.host_a).expect("open");
            let socket = client(&topology);
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let guest = scope.spawn(|| echo(on_a, &done));
                ask(&socket, b"speak");
                done.store(true, Ordering::Relaxed);
                guest.join().expect("the guest");
            });
            let before = counts();
            assert!(before[0] > 0 && before[1] == 0, "{before:?}");
            // Frames for the guest are flooded or forwarded to host-a; it has nobody to answer.
            for _ in 0..20 {
                socket.send(b"nobody").expect("send");
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(counts(), before, "a host without a machine speaks");
            on_b.send(&[[0xff; 6], GUEST_MAC, [8; 6]].concat())
                .expect("send");
            let deadline = Instant::now() + Duration::from_secs(10);
            while counts() != [before[0], 1] {
                assert!(Instant::now() < deadline, "{:?}", counts());
                std::thread::sleep(Duration::from_millis(1));
            }
        },
    );
}

#[test]
fn the_logging_network_connects_the_hosts_and_not_the_clients() {
    with_namespaces(
        "the_logging_network_connects_the_hosts_and_not_the_clients",
        || {
            let topology = Topology::build().expect("build");
            let listener = topology
                .host_b
                .run(|| TcpListener::bind((LOG_ADDRESS_B, 0)))
                .expect("enter")
                .expect("bind");
            let address = listener.local_addr().expect("address");
            let mut sender = topology
                .host_a
                .run(|| TcpStream::connect(address))
                .expect("enter")
                .expect("connect");
            let (mut receiver, from) = listener.accept().expect("accept");
            assert_eq!(from.ip(), LOG_ADDRESS_A);
            sender.write_all(b"log").expect("write");
            drop(sender);
            let mut said = String::new();
            receiver.read_to_string(&mut said).expect("read");
            assert_eq!(said, "log");

            let patience = Duration::from_millis(200);
            let stranger = topology
                .clients
                .run(|| TcpStream::connect_timeout(&address, patience))
                .expect("enter");
            assert!(stranger.is_err(), "clients reach the logging network");
        },
    );
}

#[test]
fn a_command_is_placed_inside_even_after_its_namespace_object_is_gone() {
    with_namespaces(
        "a_command_is_placed_inside_even_after_its_namespace_object_is_gone",
        || {
            let mut command = Command::new("cat");
            command.arg("/proc/self/net/dev").stdout(Stdio::piped());
            {
                let namespace = Namespace::create("short-lived").expect("create");
                namespace
                    .configure(|netlink| netlink.add_bridge("mark", [2, 0, 0, 0, 0, 1]))
                    .expect("bridge");
                namespace.place(&mut command).expect("place");
            }
            let output = command.spawn().and_then(|child| child.wait_with_output());
            let inside = String::from_utf8(output.expect("cat").stdout).expect("text");
            assert!(inside.contains("mark:"), "{inside}");
            let outside = std::fs::read_to_string("/proc/thread-self/net/dev").expect("read");
            assert!(!outside.contains("mark:"), "{outside}");
        },
    );
}

#[test]
fn what_was_made_vanishes_with_its_last_descriptor() {
    with_namespaces("what_was_made_vanishes_with_its_last_descriptor", || {
        let stays = Namespace::create("stays").expect("create");
        let goes = Namespace::create("goes").expect("create");
        let end = |name| VethEnd {
            name,
            mac: [2, 0, 0, 0, 0, 9],
        };
        stays
            .configure(|netlink| netlink.add_veth(end("here"), end("there"), goes.as_fd()))
            .expect("veth");
        let links = || {
            stays
                .run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))
                .expect("enter")
                .expect("read")
        };
        assert!(links().contains("here:"));
        drop(goes);
        // The kernel takes namespaces down behind our back; the other end goes with its peer.
        let deadline = Instant::now() + Duration::from_secs(10);
        while links().contains("here:") {
            assert!(
                Instant::now() < deadline,
                "the namespace outlives its descriptors"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn the_kernel_s_refusal_names_the_step() {
    with_namespaces("the_kernel_s_refusal_names_the_step", || {
        let namespace = Namespace::create("wrong").expect("create");
        let missing = namespace.configure(|netlink| netlink.join_bridge("nobody", "nowhere"));
        let error = missing.expect_err("neither is there").to_string();
        for part in ["wrong", "nobody", "nowhere", "No such device"] {
            assert!(error.contains(part), "{error}");
        }
    });
}

/// Also where this process is privileged: the way through a user namespace must work wherever the
/// kernel allows it, because that is the way of most users.
#[test]
fn the_whole_network_can_be_built_in_a_user_namespace() {
    super::trial::in_user_namespace(
        &path("the_whole_network_can_be_built_in_a_user_namespace"),
        || drop(Topology::build().expect("build")),
    );
}

#[test]
fn a_process_with_threads_is_told_why_it_cannot_gain_the_privilege() {
    // The test harness has threads; with the privilege held already there is nothing to gain.
    match (probe_privilege(), gain()) {
        (Ok(Privilege::Held), result) => result.expect("held already"),
        (_, Ok(())) => panic!("a process with threads entered a user namespace"),
        (Ok(Privilege::UserNamespace), Err(error)) => {
            assert!(error.to_string().contains("has threads"), "{error}");
        }
        (Err(lack), Err(_)) => {
            let test = "a_process_with_threads_is_told_why_it_cannot_gain_the_privilege";
            lockstep_perf::not_run::report(test, &lack.to_string());
        }
    }
}
