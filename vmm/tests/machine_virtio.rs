//! The network device against a driver that keeps the rules, and against one that keeps none.

use std::collections::VecDeque;

use lockstep_vmm::ft::vm::OutputKind;
use lockstep_vmm::machine::devices::virtio_mmio::QUEUE_SIZE;
use lockstep_vmm::machine::devices::virtio_net::{NetCounters, RECEIVE_BACKLOG, VirtioNet};
use lockstep_vmm::machine::memory::{GuestRam, WrittenRanges};
use lockstep_vmm::machine::outputs::{FRAME_LIMIT, Outputs};
use proptest::prelude::*;

const RAM_BYTES: u64 = 512 << 10;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NEEDS_RESET: u32 = 0x40;
const EVENT_IDX: u32 = 1 << 29;

// Registers (virtio 1.2, 4.2.2).
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;

/// The device with RAM around it.
struct Bench {
    device: VirtioNet,
    ram: GuestRam,
    outputs: Outputs,
    written: WrittenRanges,
}

impl Bench {
    fn new() -> Self {
        Self {
            device: VirtioNet::new(MAC),
            ram: GuestRam::new(RAM_BYTES).unwrap(),
            outputs: Outputs::default(),
            written: WrittenRanges::default(),
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.device.write(
            offset,
            &value.to_le_bytes(),
            self.ram.accessor(),
            &mut self.outputs,
            &mut self.written,
        );
    }

    fn receive(&mut self, frame: &[u8]) {
        self.device.receive(
            frame,
            self.ram.accessor(),
            &mut self.outputs,
            &mut self.written,
        );
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        while let Some(output) = self.outputs.pop() {
            assert_eq!(output.kind, OutputKind::Frame);
            sent.push(output.bytes.clone());
            self.outputs.recycle(output.bytes);
        }
        sent
    }

    fn u16_at(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.ram.read(address, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }
}

/// The driver's half of one queue, by the book.
struct Queue {
    index: u32,
    size: u16,
    base: u64,
    available: u16,
    used: u16,
}

impl Queue {
    fn descriptors(&self) -> u64 {
        self.base
    }
    fn available_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }
    fn used_ring(&self) -> u64 {
        (self.available_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    fn describe(&mut self, bench: &mut Bench) {
        bench.write(QUEUE_SEL, self.index);
        bench.write(QUEUE_NUM, u32::from(self.size));
        let rings = [
            (0x80, self.descriptors()),
            (0x90, self.available_ring()),
            (0xa0, self.used_ring()),
        ];
        for (register, address) in rings {
            bench.write(register, address as u32);
            bench.write(register + 4, (address >> 32) as u32);
        }
        bench.write(QUEUE_READY, 1);
        assert_eq!(bench.read(QUEUE_READY), 1);
    }

    /// Offers a chain of buffers (address, length) that starts at descriptor `head`.
    fn offer(&mut self, bench: &Bench, head: u16, buffers: &[(u64, u32)], flags: u16) {
        for (step, (address, length)) in buffers.iter().enumerate() {
            let index = (head + step as u16) % self.size;
            let last = step + 1 == buffers.len();
            let flags = flags | if last { 0 } else { NEXT };
            write_descriptor(
                bench,
                self.descriptors(),
                index,
                *address,
                *length,
                flags,
                (index + 1) % self.size,
            );
        }
        let slot = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        bench.ram.write(slot, &head.to_le_bytes()).unwrap();
        self.available = self.available.wrapping_add(1);
        bench
            .ram
            .write(self.available_ring() + 2, &self.available.to_le_bytes())
            .unwrap();
    }

    /// The chains that came back: head and length.
    fn take_used(&mut self, bench: &Bench) -> Vec<(u32, u32)> {
        let mut taken = Vec::new();
        while self.used != bench.u16_at(self.used_ring() + 2) {
            let mut element = [0; 8];
            let slot = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
            bench.ram.read(slot, &mut element).unwrap();
            let half = |range: std::ops::Range<usize>| {
                u32::from_le_bytes(element[range].try_into().unwrap())
            };
            taken.push((half(0..4), half(4..8)));
            self.used = self.used.wrapping_add(1);
        }
        taken
    }
}

fn write_descriptor(
    bench: &Bench,
    table: u64,
    index: u16,
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    let _ = bench.ram.write(table + 16 * u64::from(index), &bytes);
}

/// A live device and its two queues.
fn live(size: u16, features: u32) -> (Bench, Queue, Queue) {
    let mut bench = Bench::new();
    assert_eq!(bench.read(0), u32::from_le_bytes(*b"virt"));
    assert_eq!((bench.read(4), bench.read(8)), (2, 1));
    for status in [1, 3] {
        bench.write(STATUS, status);
    }
    bench.write(DEVICE_FEATURES_SEL, 1);
    assert_eq!(bench.read(DEVICE_FEATURES), 1, "VERSION_1");
    bench.write(DRIVER_FEATURES_SEL, 1);
    bench.write(DRIVER_FEATURES, 1);
    bench.write(DRIVER_FEATURES_SEL, 0);
    bench.write(DRIVER_FEATURES, features);
    bench.write(STATUS, 11);
    assert_eq!(bench.read(STATUS), 11, "features are accepted");
    let queue = |index: u32| Queue {
        index,
        size,
        base: 0x1_0000 * u64::from(index + 1),
        available: 0,
        used: 0,
    };
    let (mut receive, mut transmit) = (queue(0), queue(1));
    receive.describe(&mut bench);
    transmit.describe(&mut bench);
    bench.write(STATUS, 15);
    (bench, receive, transmit)
}

fn frame(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + seed) as u8).collect()
}

/// Splits `[address, address + length)` at `cuts`.
fn pieces(address: u64, length: usize, cuts: &[usize]) -> Vec<(u64, u32)> {
    let mut ends: Vec<usize> = cuts
        .iter()
        .map(|cut| cut % (length + 1))
        .chain([length])
        .collect();
    ends.sort_unstable();
    let mut start = 0;
    ends.into_iter()
        .map(|end| {
            let piece = (address + start as u64, (end - start) as u32);
            start = end;
            piece
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn frames_leave_in_order_whole_and_once_however_their_buffers_are_cut(
        size_log in 2u32..8,
        event_idx: bool,
        frames in prop::collection::vec((14usize..2000, prop::collection::vec(any::<usize>(), 0..3)), 1..60),
    ) {
        let features = if event_idx { EVENT_IDX } else { 0 };
        let (mut bench, _, mut transmit) = live(1 << size_log, features);
        for (number, (length, cuts)) in frames.iter().enumerate() {
            let bytes = frame(number, *length);
            bench.ram.write(0x4_0000, &[0; 12]).unwrap();
            bench.ram.write(0x4_0000 + 12, &bytes).unwrap();
            let buffers = pieces(0x4_0000, length + 12, cuts);
            transmit.offer(&bench, (number * 4) as u16 % transmit.size, &buffers, 0);
            bench.write(QUEUE_NOTIFY, 1);
            prop_assert_eq!(bench.sent(), [bytes]);
            prop_assert_eq!(transmit.take_used(&bench).len(), 1);
        }
        prop_assert_eq!(bench.read(STATUS), 15);
    }

    #[test]
    fn frames_arrive_in_order_whole_and_once_whether_buffers_or_frames_come_first(
        event_idx: bool,
        steps in prop::collection::vec((any::<bool>(), 14usize..1600), 1..200),
    ) {
        let features = if event_idx { EVENT_IDX } else { 0 };
        let (mut bench, mut receive, _) = live(64, features);
        let mut offered = VecDeque::new();
        let mut waiting = VecDeque::new();
        let mut heads = 0u16;
        let slot = |head: u16| 0x4_0000 + u64::from(head) * 0x800;
        for (number, (arrives, length)) in steps.iter().enumerate() {
            if *arrives {
                waiting.push_back(frame(number, *length));
                bench.receive(&frame(number, *length));
            } else if offered.len() < usize::from(receive.size) {
                let head = heads % receive.size;
                heads = heads.wrapping_add(1);
                receive.offer(&bench, head, &[(slot(head), 0x800)], WRITE);
                offered.push_back(head);
                bench.write(QUEUE_NOTIFY, 0);
            }
            for (head, length) in receive.take_used(&bench) {
                let expected: Vec<u8> = waiting.pop_front().unwrap();
                prop_assert_eq!(Some(head as u16), offered.pop_front());
                prop_assert_eq!(length as usize, 12 + expected.len());
                let mut found = vec![0; length as usize];
                bench.ram.read(slot(head as u16), &mut found).unwrap();
                prop_assert_eq!(&found[..12], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
                prop_assert_eq!(&found[12..], &expected[..]);
            }
            prop_assert!(waiting.is_empty() || offered.is_empty(), "a frame and a buffer both wait");
        }
        prop_assert_eq!(bench.read(STATUS), 15);
    }

    /// Registers, rings and descriptors at random, in little memory, so that rings overlap each other
    /// and buffers: no panic, no work or output beyond the bounds, no write outside what was noted.
    #[test]
    fn a_driver_without_rules_harms_nobody_but_itself(
        size_log in 0u32..9,
        features in prop::sample::select(vec![0, EVENT_IDX, EVENT_IDX | 1 << 28, u32::MAX]),
        rings in prop::array::uniform6(prop::sample::select(vec![
            0u64, 16, 0x100, 0x120, 0x1000, 0x1008, 0x2000, RAM_BYTES - 0x100, RAM_BYTES - 0x10, RAM_BYTES, 0xd000_0000, u64::MAX - 15,
        ])),
        steps in prop::collection::vec((0u8..8, any::<u64>(), any::<u64>()), 1..120),
    ) {
        let mut bench = Bench::new();
        for status in [1, 3] {
            bench.write(STATUS, status);
        }
        for (select, value) in [(1, 1), (0, features)] {
            bench.write(DRIVER_FEATURES_SEL, select);
            bench.write(DRIVER_FEATURES, value);
        }
        bench.write(STATUS, 11);
        for queue in 0..2usize {
            bench.write(QUEUE_SEL, queue as u32);
            bench.write(QUEUE_NUM, 1 << size_log);
            for (register, address) in [0x80, 0x90, 0xa0].iter().zip(&rings[queue * 3..]) {
                bench.write(*register, *address as u32);
                bench.write(*register + 4, (*address >> 32) as u32);
            }
            bench.write(QUEUE_READY, 1);
        }
        bench.write(STATUS, 15);
        for (what, first, second) in steps {
            match what {
                0 => bench.write((first % 0x40) * 4, second as u32),
                1 | 2 => {
                    // Into a ring or anywhere near.
                    let base = rings[(first % 6) as usize].wrapping_add(first >> 32 & 0x3f);
                    let _ = bench.ram.write(base, &second.to_le_bytes());
                }
                3 => {
                    let flags = (second >> 32) as u16 & (NEXT | WRITE | INDIRECT);
                    let table = rings[(first % 2) as usize * 3];
                    let address = rings[(second % 6) as usize];
                    let length = (first >> 8) as u32 & 0x1_ffff;
                    if table < RAM_BYTES - 0x1000 {
                        write_descriptor(&bench, table, (first >> 40) as u16 % 8, address, length, flags, second as u16 % 9);
                    }
                }
                4 => {
                    // One more than before is available, or any number.
                    let ring = rings[(first % 2) as usize * 3 + 1];
                    if ring < RAM_BYTES - 4 {
                        let index = if second % 4 == 0 { second as u16 } else { bench.u16_at(ring + 2).wrapping_add(1) };
                        let _ = bench.ram.write(ring + 2, &index.to_le_bytes());
                    }
                }
                _ => {
                    let mut before = vec![0; RAM_BYTES as usize];
                    bench.ram.read(0, &mut before).unwrap();
                    let _ = bench.written.drain().count();
                    if what == 5 {
                        bench.receive(&frame(0, (first % (FRAME_LIMIT as u64 + 20)) as usize));
                    } else {
                        bench.write(QUEUE_NOTIFY, u32::from(what - 6));
                    }
                    let mut after = vec![0; RAM_BYTES as usize];
                    bench.ram.read(0, &mut after).unwrap();
                    let noted: Vec<_> = bench.written.drain().collect();
                    for address in 0..RAM_BYTES {
                        if before[address as usize] != after[address as usize] {
                            prop_assert!(
                                noted.iter().any(|range| range.contains(&address)),
                                "{address:#x} was written unnoted"
                            );
                        }
                    }
                }
            }
            let sent = bench.sent();
            prop_assert!(sent.len() <= usize::from(QUEUE_SIZE));
            prop_assert!(sent.iter().all(|frame| (14..=FRAME_LIMIT).contains(&frame.len())));
        }
        // Whatever it did, a reset brings the device back.
        bench.write(STATUS, 0);
        prop_assert_eq!(bench.read(STATUS), 0);
        prop_assert_eq!(bench.read(INTERRUPT_STATUS), 0);
    }
}

#[test]
fn a_chain_that_breaks_the_rules_stops_the_device_until_it_is_reset() {
    type Breakage = fn(&mut Bench, &mut Queue);
    let breakages: [(&str, Breakage); 8] = [
        ("a loop", |bench, queue| {
            queue.offer(bench, 0, &[(0x4_0000, 20)], 0);
            write_descriptor(bench, queue.descriptors(), 0, 0x4_0000, 20, NEXT, 0);
        }),
        ("a successor beyond the queue", |bench, queue| {
            queue.offer(bench, 0, &[(0x4_0000, 20)], 0);
            write_descriptor(bench, queue.descriptors(), 0, 0x4_0000, 20, NEXT, 999);
        }),
        ("a head beyond the queue", |bench, queue| {
            queue.offer(bench, 0, &[(0x4_0000, 20)], 0);
            bench
                .ram
                .write(queue.available_ring() + 4, &999u16.to_le_bytes())
                .unwrap();
        }),
        ("a buffer outside RAM", |bench, queue| {
            queue.offer(bench, 0, &[(RAM_BYTES - 4, 40)], 0)
        }),
        (
            "a buffer at the end of the address space",
            |bench, queue| {
                queue.offer(bench, 0, &[(u64::MAX - 20, 40)], 0);
            },
        ),
        ("a buffer to write in the transmit queue", |bench, queue| {
            queue.offer(bench, 0, &[(0x4_0000, 40)], WRITE);
        }),
        ("more chains than the queue has room for", |bench, queue| {
            queue.available = 200;
            queue.offer(bench, 0, &[(0x4_0000, 40)], 0);
        }),
        ("an indirect table in an indirect table", |bench, queue| {
            write_descriptor(bench, 0x5_0000, 0, 0x5_0000, 16, INDIRECT, 0);
            queue.offer(bench, 0, &[(0x5_0000, 16)], INDIRECT);
        }),
    ];
    for (what, breakage) in breakages {
        let (mut bench, _, mut transmit) = live(16, 1 << 28);
        breakage(&mut bench, &mut transmit);
        bench.write(QUEUE_NOTIFY, 1);
        assert_eq!(bench.read(STATUS), 15 | NEEDS_RESET, "{what}");
        assert_eq!(
            bench.read(INTERRUPT_STATUS),
            2,
            "{what}: the driver is told"
        );
        assert!(bench.device.line());
        bench.receive(&frame(0, 60));
        assert_eq!(
            bench.device.counters().dropped_without_driver,
            1,
            "{what}: dead"
        );
        bench.write(STATUS, 0);
        assert_eq!(
            (bench.read(STATUS), bench.device.line()),
            (0, false),
            "{what}"
        );
    }
}

#[test]
fn an_indirect_chain_is_sent() {
    let (mut bench, _, mut transmit) = live(16, 1 << 28);
    let bytes = frame(3, 100);
    bench.ram.write(0x4_0000, &[0; 12]).unwrap();
    bench.ram.write(0x4_1000, &bytes).unwrap();
    write_descriptor(&bench, 0x5_0000, 0, 0x4_0000, 12, NEXT, 1);
    write_descriptor(&bench, 0x5_0000, 1, 0x4_1000, 100, 0, 0);
    transmit.offer(&bench, 2, &[(0x5_0000, 32)], INDIRECT);
    bench.write(QUEUE_NOTIFY, 1);
    assert_eq!(bench.sent(), [bytes]);
}

#[test]
fn frames_beyond_the_backlog_are_dropped_and_counted() {
    let (mut bench, mut receive, _) = live(16, 0);
    for number in 0..RECEIVE_BACKLOG + 3 {
        bench.receive(&frame(number, 60));
    }
    assert_eq!(bench.device.counters().dropped_backlog_full, 3);
    for head in 0..16 {
        receive.offer(
            &bench,
            head,
            &[(0x4_0000 + u64::from(head) * 0x800, 0x800)],
            WRITE,
        );
    }
    bench.write(QUEUE_NOTIFY, 0);
    assert_eq!(bench.device.counters().received, 16);
    assert_eq!(bench.read(INTERRUPT_STATUS), 1);
    bench.write(INTERRUPT_ACK, 1);
    assert!(!bench.device.line());
}

#[test]
fn a_frame_longer_than_the_guests_buffer_is_dropped_and_the_buffer_stays() {
    let (mut bench, mut receive, _) = live(16, 0);
    receive.offer(&bench, 0, &[(0x4_0000, 100)], WRITE);
    bench.receive(&frame(1, 89));
    bench.receive(&frame(2, 88));
    assert_eq!(receive.take_used(&bench), [(0, 100)]);
    let expected = NetCounters {
        received: 1,
        dropped_unfit: 1,
        ..NetCounters::default()
    };
    assert_eq!(bench.device.counters(), expected);
}

#[test]
fn nothing_is_done_before_the_driver_is_ready_and_features_must_be_those_offered() {
    let mut bench = Bench::new();
    bench.receive(&frame(0, 60));
    assert_eq!(bench.device.counters().dropped_without_driver, 1);
    bench.write(STATUS, 3);
    bench.write(STATUS, 11);
    assert_eq!(bench.read(STATUS), 3, "without VERSION_1");
    bench.write(DRIVER_FEATURES_SEL, 1);
    bench.write(DRIVER_FEATURES, 3);
    bench.write(STATUS, 11);
    assert_eq!(bench.read(STATUS), 3, "with a feature not offered");
    bench.write(QUEUE_READY, 1);
    assert_eq!(bench.read(QUEUE_READY), 0, "no queue before the features");
    bench.write(STATUS, 15);
    assert_eq!(bench.read(STATUS), 3, "no DRIVER_OK before the features");
}

#[test]
fn the_configuration_shows_the_address_byte_by_byte() {
    let mut bench = Bench::new();
    let mut bytes = [0xee; 8];
    bench.device.read(0x100, &mut bytes);
    assert_eq!(bytes[..6], MAC);
    let mut byte = [0];
    bench.device.read(0x105, &mut byte);
    assert_eq!(byte[0], MAC[5]);
    bench.device.read(0x1f0, &mut byte);
    assert_eq!(byte[0], 0);
    bench.device.read(0x01, &mut byte);
    assert_eq!(byte[0], 0, "registers are 32 bits wide");
}
