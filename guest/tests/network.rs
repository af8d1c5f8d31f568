//! Ethernet, ARP, IPv4, ICMP and UDP: what is answered, how, and what is not.

mod native;

use lockstep_guest::{CONTROL_PORT, ECHO_PORT, KV_PORT};
use native::{
    CLIENT, CLIENT_MAC, CLIENT_PORT, Config, TENANT, TENANT_MAC, Tenant, ipv4_frame, ipv4_payload,
    udp_frame,
};
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Address, Ipv4Repr,
};

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;

fn arp_frame(arp: &ArpRepr, to: EthernetAddress) -> Vec<u8> {
    let ethernet = EthernetRepr {
        src_addr: CLIENT_MAC,
        dst_addr: to,
        ethertype: EthernetProtocol::Arp,
    };
    let mut bytes = vec![0; ETHERNET + arp.buffer_len()];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
    arp.emit(&mut ArpPacket::new_unchecked(&mut bytes[ETHERNET..]));
    bytes
}

fn who_has(address: Ipv4Address) -> ArpRepr {
    ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: CLIENT_MAC,
        source_protocol_addr: CLIENT,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: address,
    }
}

#[test]
fn arp_answers_for_its_own_address_only() {
    let Some(mut tenant) = Tenant::start("arp_answers_for_its_own_address_only", Config::default())
    else {
        return;
    };
    for to in [EthernetAddress::BROADCAST, TENANT_MAC] {
        let replies = tenant.frame(&arp_frame(&who_has(TENANT), to));
        assert_eq!(replies.len(), 1);
        let ethernet = EthernetFrame::new_checked(&replies[0][..]).unwrap();
        assert_eq!(
            (ethernet.src_addr(), ethernet.dst_addr()),
            (TENANT_MAC, CLIENT_MAC)
        );
        let reply = ArpRepr::parse(&ArpPacket::new_checked(ethernet.payload()).unwrap()).unwrap();
        let expected = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: TENANT_MAC,
            source_protocol_addr: TENANT,
            target_hardware_addr: CLIENT_MAC,
            target_protocol_addr: CLIENT,
        };
        assert_eq!(reply, expected);
    }
    let other = arp_frame(
        &who_has(Ipv4Address::new(10, 77, 0, 3)),
        EthernetAddress::BROADCAST,
    );
    assert!(tenant.frame(&other).is_empty());
    let elsewhere = arp_frame(&who_has(TENANT), EthernetAddress([0x52, 0x54, 0, 0, 0, 9]));
    assert!(tenant.frame(&elsewhere).is_empty());
    tenant.finish();
}

#[test]
fn ping_comes_back_whole_at_every_size() {
    let Some(mut tenant) = Tenant::start("ping_comes_back_whole_at_every_size", Config::default())
    else {
        return;
    };
    let checksums = ChecksumCapabilities::default();
    for size in (0..80).chain([1000, 1471, 1472]) {
        let data: Vec<u8> = (0..size).map(|i| (i * 7 + size) as u8).collect();
        let icmp = Icmpv4Repr::EchoRequest {
            ident: 77,
            seq_no: size as u16,
            data: &data,
        };
        let ip = Ipv4Repr {
            src_addr: CLIENT,
            dst_addr: TENANT,
            next_header: IpProtocol::Icmp,
            payload_len: icmp.buffer_len(),
            hop_limit: 64,
        };
        let mut frame = ipv4_frame(&ip);
        icmp.emit(
            &mut Icmpv4Packet::new_unchecked(&mut frame[ETHERNET + IP..]),
            &checksums,
        );
        let replies = tenant.frame(&frame);
        assert_eq!(replies.len(), 1, "{size} bytes");
        let (protocol, bytes) = ipv4_payload(&replies[0]);
        assert_eq!(protocol, IpProtocol::Icmp);
        let packet = Icmpv4Packet::new_checked(&bytes[..]).unwrap();
        let reply = Icmpv4Repr::parse(&packet, &checksums).unwrap();
        assert_eq!(
            reply,
            Icmpv4Repr::EchoReply {
                ident: 77,
                seq_no: size as u16,
                data: &data
            }
        );
        // A wrong checksum is not answered.
        *frame.last_mut().unwrap() ^= 1;
        assert!(tenant.frame(&frame).is_empty());
    }
    tenant.finish();
}

#[test]
fn echo_returns_every_payload() {
    let Some(mut tenant) = Tenant::start("echo_returns_every_payload", Config::default()) else {
        return;
    };
    for size in (0..80).chain([1399, 1400, 1464, 1471, 1472]) {
        let payload: Vec<u8> = (0..size).map(|i| (i * 31 + size) as u8).collect();
        assert_eq!(tenant.datagram(ECHO_PORT, &payload), vec![payload]);
    }
    // All ones is how a checksum that computes to zero travels. The echo's checksum is the request's: both
    // addresses and both ports only change places.
    let frame = (0..=u16::MAX)
        .map(|word| udp_frame(ECHO_PORT, &word.to_le_bytes()))
        .find(|frame| frame[ETHERNET + IP + 6..][..2] == [0xff, 0xff])
        .expect("one of the words makes the sum zero");
    let replies = tenant.frame(&frame);
    assert_eq!(replies[0][ETHERNET + IP + 6..][..2], [0xff, 0xff]);
    tenant.finish();
}

#[test]
fn control_burns_instructions_and_reports() {
    let Some(mut tenant) =
        Tenant::start("control_burns_instructions_and_reports", Config::default())
    else {
        return;
    };
    let mut value = 1_u64;
    for _ in 0..1000 {
        value = value
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
    }
    let expected = format!("burned 1000 {value}\n").into_bytes();
    assert_eq!(
        tenant.datagram(CONTROL_PORT, b"burn 1000\n"),
        vec![expected]
    );
    for unknown in [
        &b"burn"[..],
        b"burn ",
        b"burn x",
        b"burn 4294967296",
        b"",
        b"power",
    ] {
        assert_eq!(
            tenant.datagram(CONTROL_PORT, unknown),
            vec![b"unknown\n".to_vec()]
        );
    }
    assert_eq!(
        tenant.datagram(CONTROL_PORT, b"poweroff\n"),
        vec![b"ok\n".to_vec()]
    );
    tenant.finish();
}

/// Sets a two-byte field of the IP header and makes its checksum right again.
fn with_ip_field(frame: &[u8], offset: usize, value: [u8; 2]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[ETHERNET + offset..][..2].copy_from_slice(&value);
    fix_ip_checksum(&mut frame);
    frame
}

fn fix_ip_checksum(frame: &mut [u8]) {
    let header = usize::from(frame[ETHERNET] & 15) * 4;
    if header < IP || ETHERNET + header > frame.len() {
        return;
    }
    frame[ETHERNET + 10..][..2].fill(0);
    let checksum = !sum(&frame[ETHERNET..][..header]);
    frame[ETHERNET + 10..][..2].copy_from_slice(&checksum.to_be_bytes());
}

/// RFC 1071, the plain way.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn what_is_not_a_whole_datagram_for_us_is_dropped() {
    let name = "what_is_not_a_whole_datagram_for_us_is_dropped";
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    let good = udp_frame(ECHO_PORT, b"payload");
    assert_eq!(tenant.frame(&good).len(), 1);
    let altered = |offset: usize, value: u8| {
        let mut frame = good.clone();
        frame[offset] = value;
        frame
    };
    let length = good.len();
    let mut dropped: Vec<(&str, Vec<u8>)> = vec![
        ("another MAC address", altered(5, 99)),
        ("broadcast", [&[0xff; 6][..], &good[6..]].concat()),
        ("a group as sender", altered(6, 0x53)),
        ("IP version 6", altered(ETHERNET, 0x65)),
        ("a header of 16 bytes", altered(ETHERNET, 0x44)),
        (
            "a header longer than the packet",
            with_ip_field(&altered(ETHERNET, 0x4f), 8, [64, 17]),
        ),
        ("an IP checksum", altered(ETHERNET + 8, 63)),
        ("more fragments", with_ip_field(&good, 6, [0x20, 0])),
        ("a fragment's offset", with_ip_field(&good, 6, [0, 1])),
        (
            "a total length beyond the frame",
            with_ip_field(&good, 2, [0, length as u8]),
        ),
        (
            "a total length short of the header",
            with_ip_field(&good, 2, [0, 19]),
        ),
        ("another address", with_ip_field(&good, 18, [0, 3])),
        ("a multicast sender", with_ip_field(&good, 12, [224, 0])),
        ("a sender in network zero", with_ip_field(&good, 12, [0, 0])),
        ("TCP", with_ip_field(&good, 8, [64, 6])),
        ("a UDP checksum", altered(length - 1, b'?')),
        ("a UDP length of 7", altered(ETHERNET + IP + 5, 7)),
        (
            "a UDP length beyond the packet",
            altered(ETHERNET + IP + 5, 16),
        ),
        ("a closed port", udp_frame(8, b"payload")),
        (
            "an echo service as sender",
            without_checksum(&good, &[0, 7]),
        ),
        (
            "a key-value service as sender",
            without_checksum(&good, &KV_PORT.to_be_bytes()),
        ),
        ("port 0 as sender", without_checksum(&good, &[0, 0])),
    ];
    let mut own = with_ip_field(&good, 12, [10, 77]);
    own = with_ip_field(&own, 14, [0, 2]);
    dropped.push(("its own address as sender", own));
    for end in 0..length {
        dropped.push(("a cut frame", good[..end].to_vec()));
    }
    let too_long = [&good[..], &[0; 1515]].concat();
    dropped.push(("a frame of more than 1514 bytes", too_long));
    for (what, frame) in dropped {
        assert!(
            tenant.frame(&frame).is_empty(),
            "answered {what}: {frame:02x?}"
        );
    }
    // And what only looks odd is answered: padding behind the packet, no UDP checksum, IP options.
    let padded = [&good[..], &[0xee; 20]].concat();
    let sender = CLIENT_PORT.to_be_bytes();
    for frame in [
        padded,
        without_checksum(&good, &sender),
        with_options(&good),
    ] {
        let replies = tenant.frame(&frame);
        assert_eq!(replies.len(), 1);
        assert_eq!(native::udp_payload(&replies[0], ECHO_PORT), b"payload");
    }
    tenant.finish();
}

/// The same datagram from another port, and without a checksum.
fn without_checksum(frame: &[u8], port: &[u8; 2]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[ETHERNET + IP..][..2].copy_from_slice(port);
    frame[ETHERNET + IP + 6..][..2].fill(0);
    frame
}

fn with_options(frame: &[u8]) -> Vec<u8> {
    const NO_OPERATION: u8 = 1;
    let mut options = frame[..ETHERNET + IP].to_vec();
    options.extend_from_slice(&[NO_OPERATION; 8]);
    options.extend_from_slice(&frame[ETHERNET + IP..]);
    options[ETHERNET] = 0x47;
    let total = (options.len() - ETHERNET) as u16;
    with_ip_field(&options, 2, total.to_be_bytes())
}

#[derive(Debug, Clone)]
enum Damage {
    Byte { at: usize, value: u8 },
    Cut { keep: usize },
    Extend { by: Vec<u8> },
    Splice { at: usize, with: Vec<u8> },
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, value)| Damage::Byte { at, value }),
        1 => any::<usize>().prop_map(|keep| Damage::Cut { keep }),
        1 => proptest::collection::vec(any::<u8>(), 0..100).prop_map(|by| Damage::Extend { by }),
        2 => (
            any::<usize>(),
            prop::sample::select(vec![
                &b" "[..], b"\r\n", b"\n", b"\0", b"get ", b"noreply", b"-1", b"4294967295",
                b"99999999999999999999", b"1400", b"gets a b c", b"\r\nset x 0 0 1\r\n1\r\n",
            ]),
        ).prop_map(|(at, with)| Damage::Splice { at, with: with.to_vec() }),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    match damage {
        Damage::Byte { at, value } if !bytes.is_empty() => {
            let at = at % bytes.len();
            bytes[at] = *value;
        }
        Damage::Byte { .. } => {}
        Damage::Cut { keep } => bytes.truncate(keep % (bytes.len() + 1)),
        Damage::Extend { by } => bytes.extend_from_slice(by),
        Damage::Splice { at, with } => {
            let at = at % (bytes.len() + 1);
            bytes.splice(at..at, with.iter().copied());
        }
    }
}

fn request() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let text = prop::sample::select(vec![
        &b"set a 1 0 5\r\nhello\r\n"[..],
        b"cas a 1 0 5 1\r\nhello\r\n",
        b"get a b c d e f g h i j k l m n o p q r s t u v w x y z\r\n",
        b"gets a a a a a a a a\r\n",
        b"incr a 18446744073709551615 noreply\r\n",
        b"delete a\r\nstats\r\nversion\r\n",
        b"touch a 2592001\r\n",
    ]);
    prop_oneof![
        6 => text.prop_map(|text| (KV_PORT, [&[0, 1, 0, 0, 0, 1, 0, 0], text].concat())),
        1 => proptest::collection::vec(any::<u8>(), 0..1472).prop_map(|bytes| (KV_PORT, bytes)),
        1 => proptest::collection::vec(any::<u8>(), 0..1472).prop_map(|bytes| (ECHO_PORT, bytes)),
        // A number that is burnt must not be large here.
        1 => Just((CONTROL_PORT, b"burn 12".to_vec())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// The sanitizers see every access; what is left to check is that the tenant lives, and sends
    /// nothing that is not a well-formed frame to the asker.
    #[test]
    fn hostile_frames_harm_nothing(
        frames in proptest::collection::vec(
            (
                request(),
                proptest::collection::vec(damage(), 0..6),
                proptest::collection::vec(damage(), 0..3),
                any::<bool>(),
            ),
            1..300,
        ),
    ) {
        let Some(mut tenant) = Tenant::start("hostile_frames_harm_nothing", Config::default()) else {
            return Ok(());
        };
        tenant.ask(b"set kept 7 0 4\r\nkept\r\n").unwrap();
        for ((port, mut payload), damage_inside, damage_outside, repaired) in frames {
            if port != CONTROL_PORT {
                damage_inside.iter().for_each(|damage| apply(&mut payload, damage));
            }
            payload.truncate(1472);
            let mut frame = udp_frame(port, &payload);
            damage_outside.iter().for_each(|damage| apply(&mut frame, damage));
            if repaired && frame.len() >= ETHERNET + IP + UDP {
                // Let the damage through the checksums.
                fix_ip_checksum(&mut frame);
                frame[ETHERNET + IP + 6..][..2].fill(0);
            }
            for reply in tenant.frame(&frame) {
                let ethernet = EthernetFrame::new_checked(&reply[..]).unwrap();
                prop_assert_eq!(ethernet.src_addr(), TENANT_MAC);
                prop_assert_eq!(&reply[..6], &frame[6..12], "not to the asker");
                if ethernet.ethertype() == EthernetProtocol::Ipv4 {
                    prop_assert_eq!(sum(&reply[ETHERNET..][..IP]), 0xffff, "IP checksum");
                }
            }
        }
        let kept = tenant.ask(b"get kept\r\n").unwrap();
        prop_assert_eq!(kept, b"VALUE kept 7 4\r\nkept\r\nEND\r\n");
        tenant.finish();
    }
}
