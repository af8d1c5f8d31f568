//! A stock Debian kernel on the software CPU: it finds its devices, takes the clocks that it should, and
//! boots twice to the same last bit from one log.

mod machine_support;

use std::path::Path;

use lockstep_guest::debian::{Builder, Guest, GuestSpec, READY_MARKER};
use lockstep_perf::not_run;
use lockstep_vmm::ft::vm::{DigestScope, OutputKind, Vm};
use lockstep_vmm::machine::engine::{EngineKind, Stop};
use lockstep_vmm::machine::{Machine, MachineConfig};
use machine_support::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr,
};

const OURS: Ipv4Address = Ipv4Address::new(10, 77, 0, 1);
const THEIRS: Ipv4Address = Ipv4Address::new(10, 77, 0, 2);
const OUR_MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 9]);
/// A boot is 600 million instructions; one of three times as many is stuck.
const POSITIONS_MOST: u64 = 2_000_000_000;
const SEED: u64 = 4;

/// The guest without a service, from the cache or built.
fn guest() -> Option<Guest> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    match Builder::new(&cache).build(&GuestSpec::new(None), &mut |_| ()) {
        Ok(guest) => Some(guest),
        Err(error) => {
            let test = "a_stock_kernel_boots_twice_to_the_same_bit_from_one_log";
            not_run::report(test, &format!("no Debian kernel: {error}"));
            None
        }
    }
}

/// A primary of the plainest kind: a host whose clock runs by a seed, so that failures repeat.
struct Primary {
    machine: Machine,
    log: Vec<Entry>,
    random: Random,
    console: String,
    frames: Vec<Vec<u8>>,
}

impl Primary {
    fn take(&mut self) {
        let from = self.log.len();
        take_outputs(&mut self.machine, &mut self.log);
        for (_, _, moment) in &self.log[from..] {
            match moment {
                Moment::Said(OutputKind::Console, bytes) => {
                    self.console.push_str(&String::from_utf8_lossy(bytes));
                }
                Moment::Said(OutputKind::Frame, frame) => self.frames.push(frame.clone()),
                _ => {}
            }
        }
    }

    fn apply(&mut self, clock: u64, moment: Moment) {
        apply(&mut self.machine, &mut self.log, clock, moment);
    }

    /// Runs for a slice, and does what a host would: gives entropy, moves the clock on, wakes a
    /// sleeping guest when its timer is due.
    fn turn(&mut self) {
        let slice = 1 + self.random.below(2_000_000);
        let stop = self.machine.run(self.machine.position() + slice).unwrap();
        self.take();
        let wanted = self.machine.entropy_wanted();
        if wanted > 0 {
            let bytes = self.random.bytes(wanted);
            self.apply(self.machine.clock(), Moment::Entropy(bytes));
        }
        let now = self.machine.clock();
        if stop == Stop::Halted {
            let timer = self.machine.next_timer().expect("somebody wakes the guest");
            self.apply(timer.max(now), Moment::Clock);
        } else if self.random.below(4) == 0 {
            let ahead = self.random.below(3_000_000);
            self.apply(now + ahead, Moment::Clock);
        }
        assert!(
            self.machine.position() < POSITIONS_MOST,
            "the guest does not come so far; it said:\n{}",
            self.console
        );
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(
                self.machine.powered_off().is_none(),
                "off before {what}; it said:\n{}",
                self.console
            );
            self.turn();
        }
    }

    fn typed(&mut self, line: &str) {
        self.apply(
            self.machine.clock(),
            Moment::Console(line.as_bytes().to_vec()),
        );
    }
}

fn ethernet(kind: EthernetProtocol, to: EthernetAddress, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + payload.len()];
    let header = EthernetRepr {
        src_addr: OUR_MAC,
        dst_addr: to,
        ethertype: kind,
    };
    header.emit(&mut EthernetFrame::new_unchecked(&mut frame));
    frame[14..].copy_from_slice(payload);
    frame
}

/// An ARP packet that tells where we are, so that the guest need not ask.
fn arp_request() -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: OUR_MAC,
        source_protocol_addr: OURS,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: THEIRS,
    };
    let mut packet = vec![0; arp.buffer_len()];
    arp.emit(&mut ArpPacket::new_unchecked(&mut packet));
    ethernet(EthernetProtocol::Arp, EthernetAddress::BROADCAST, &packet)
}

fn ping(config: &MachineConfig, sequence: u16) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let icmp = Icmpv4Repr::EchoRequest {
        ident: 7,
        seq_no: sequence,
        data: b"lockstep",
    };
    let ip = Ipv4Repr {
        src_addr: OURS,
        dst_addr: THEIRS,
        next_header: IpProtocol::Icmp,
        payload_len: icmp.buffer_len(),
        hop_limit: 64,
    };
    let mut packet = vec![0; ip.buffer_len() + icmp.buffer_len()];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &checksums);
    icmp.emit(
        &mut Icmpv4Packet::new_unchecked(&mut packet[ip.buffer_len()..]),
        &checksums,
    );
    ethernet(EthernetProtocol::Ipv4, EthernetAddress(config.mac), &packet)
}

/// The sequence number of an answer to [`ping`].
fn answered(frame: &[u8]) -> Option<u16> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    let icmp = Icmpv4Packet::new_checked(ip.payload()).ok()?;
    match Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).ok()? {
        Icmpv4Repr::EchoReply { seq_no, .. } => Some(seq_no),
        _ => None,
    }
}

#[test]
fn a_stock_kernel_boots_twice_to_the_same_bit_from_one_log() {
    let Some(guest) = guest() else { return };
    let config = MachineConfig {
        engine: EngineKind::Soft,
        memory_bytes: 192 << 20,
        command_line: guest.command_line("10.77.0.2/24"),
        wall_clock_start: 1_700_000_000,
        ..MachineConfig::default()
    };
    let kernel = std::fs::read(guest.kernel()).unwrap();
    let initramfs = std::fs::read(guest.initramfs()).unwrap();
    let boot = || Machine::with_initrd(&config, &kernel, Some(&initramfs)).unwrap();
    let mut primary = Primary {
        machine: boot(),
        log: Vec::new(),
        random: Random(SEED),
        console: String::new(),
        frames: Vec::new(),
    };

    primary.run_until("it was ready", |primary| {
        primary.console.contains(READY_MARKER)
    });
    primary.typed(
        // The TSC is refined against the ACPI timer for a second before it becomes the clock.
        "sleep 3; cat /sys/devices/system/clocksource/clocksource0/current_clocksource /proc/interrupts; \
         grep Event /proc/timer_list; cat /sys/class/misc/hw_random/rng_current; date +%Y; \
         dd if=/dev/hwrng bs=64 count=1 of=/dev/null && echo END-$((40+2))\n",
    );
    primary.run_until("it had answered", |primary| {
        primary.console.contains("END-42")
    });
    for expected in [
        "tsc\r\n",
        "lapic-deadline",
        "16-fasteoi   virtio",
        "17-fasteoi   virtio",
        "virtio_rng",
        "\n2023\r\n",
    ] {
        assert!(
            primary.console.contains(expected),
            "{expected:?} is not in:\n{}",
            primary.console
        );
    }
    for sequence in 0..3 {
        let clock = primary.machine.clock();
        primary.apply(clock, Moment::Frame(arp_request()));
        primary.apply(clock, Moment::Frame(ping(&config, sequence)));
        primary.run_until("it answered a ping", |primary| {
            primary
                .frames
                .iter()
                .any(|frame| answered(frame) == Some(sequence))
        });
    }
    let entropy = |entry: &&Entry| matches!(entry.2, Moment::Entropy(_));
    assert!(primary.log.iter().filter(entropy).count() > 1);
    let digest = primary.machine.digest(DigestScope::Full).unwrap();
    let (position, clock) = (primary.machine.position(), primary.machine.clock());
    primary.log.push((position, clock, Moment::Digest(digest)));

    let mut backup = boot();
    replay(&mut backup, &primary.log, Some(Random(SEED + 1)));
}
