//! The block devices against a driver that keeps the rules, and against one that keeps none.

use lockstep_vmm::ft::disk::{DiskDone, DiskOp, DiskRequest, DiskStatus};
use lockstep_vmm::ft::vm::OutputKind;
use lockstep_vmm::machine::disks::{DiskDoneError, Disks};
use lockstep_vmm::machine::memory::{GuestRam, WrittenRanges};
use lockstep_vmm::machine::outputs::Outputs;
use lockstep_vmm::machine::{DiskCounters, DiskSpec, MachineConfig};
use proptest::prelude::*;
use std::hash::{DefaultHasher, Hash, Hasher};
use xxhash_rust::xxh3::xxh3_64;

const RAM_BYTES: u64 = 4 << 20;
const DISK_BYTES: u64 = 1 << 20;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NEEDS_RESET: u32 = 0x40;
const SIZE: u16 = 128;

// Registers (virtio 1.2, 4.2.2).
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const CONFIG: u64 = 0x100;
const WRITEBACK: u64 = CONFIG + 32;

// Features: flush, configurable cache.
const FLUSH: u32 = 1 << 9;
const CONFIG_WCE: u32 = 1 << 11;

// Requests (5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_REQUEST: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const DONE: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// What the driver puts where the status goes.
const UNTOUCHED: u8 = 0xee;

/// Of each queue: rings, then 128 slots with a header, a status and 32 KiB of data each... shared by the
/// queues of a disk, which do not use the same slots.
const RINGS: u64 = 0x1_0000;
const HEADERS: u64 = 0x8_0000;
const DATA: u64 = 0x10_0000;
const DATA_BYTES: u64 = 0x4000;

fn spec(serial: &str) -> DiskSpec {
    DiskSpec {
        serial: serial.into(),
        bytes: DISK_BYTES,
        queues: 2,
        ..DiskSpec::default()
    }
}

struct Bench {
    disks: Disks,
    ram: GuestRam,
    outputs: Outputs,
    written: WrittenRanges,
    /// Next index of each available ring, and of each used one: disks times queues.
    available: [[u16; 4]; 4],
    used: [[u16; 4]; 4],
}

impl Bench {
    fn new(config: &MachineConfig) -> Self {
        config.validate().unwrap();
        Self {
            disks: Disks::new(config).unwrap().unwrap(),
            ram: GuestRam::new(RAM_BYTES).unwrap(),
            outputs: Outputs::default(),
            written: WrittenRanges::default(),
            available: [[0; 4]; 4],
            used: [[0; 4]; 4],
        }
    }

    /// Disks of these specifications, all of them driven.
    fn live(disks: Vec<DiskSpec>) -> Self {
        let config = MachineConfig {
            disks,
            bounce_bytes: 1 << 20,
            ..MachineConfig::default()
        };
        let mut bench = Self::new(&config);
        for (disk, spec) in config.disks.iter().enumerate() {
            bench.drive(disk, spec.queues, FLUSH | CONFIG_WCE);
        }
        bench
    }

    fn ring(disk: usize, queue: usize) -> u64 {
        RINGS + 0x4000 * disk as u64 + 0x1000 * queue as u64
    }

    fn drive(&mut self, disk: usize, queues: u8, features: u32) {
        for (register, value) in [
            (STATUS, 3),
            (0x24, 0),
            (0x20, features),
            (0x24, 1),
            (0x20, 1),
        ] {
            self.write(disk, register, value);
        }
        self.write(disk, STATUS, 0xb);
        assert_eq!(self.read(disk, STATUS), 0xb, "features are accepted");
        for queue in 0..usize::from(queues) {
            let base = Self::ring(disk, queue) as u32;
            self.ram.write(base.into(), &[0; 0x1000]).unwrap();
            for (register, value) in [
                (QUEUE_SEL, queue as u32),
                (0x38, u32::from(SIZE)),
                (0x80, base),
                (0x90, base + 0x800),
                (0xa0, base + 0xa00),
                (0x44, 1),
            ] {
                self.write(disk, register, value);
            }
            self.available[disk][queue] = 0;
            self.used[disk][queue] = 0;
        }
        self.write(disk, STATUS, 0xf);
        assert_eq!(self.read(disk, STATUS), 0xf);
    }

    fn read(&mut self, disk: usize, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.disks.read(disk, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, disk: usize, offset: u64, value: u32) {
        self.write_bytes(disk, offset, &value.to_le_bytes());
    }

    fn write_bytes(&mut self, disk: usize, offset: u64, data: &[u8]) {
        let memory = self.ram.accessor();
        self.disks.write(
            disk,
            offset,
            data,
            memory,
            &mut self.outputs,
            &mut self.written,
        );
    }

    fn memory(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read(address, &mut bytes).unwrap();
        bytes
    }

    /// Puts descriptors (address, length, flags) at `head` and makes them available.
    fn offer_raw(&mut self, disk: usize, queue: usize, head: u16, chain: &[(u64, u32, u16)]) {
        let base = Self::ring(disk, queue);
        for (index, (address, length, flags)) in (head..).zip(chain) {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            let next = if index + 1 < head + chain.len() as u16 {
                NEXT
            } else {
                0
            };
            bytes.extend((flags | next).to_le_bytes());
            bytes.extend((index + 1).to_le_bytes());
            let at = base + 16 * u64::from(index);
            self.ram.write(at, &bytes).unwrap();
        }
        let available = &mut self.available[disk][queue];
        let slot = base + 0x800 + 4 + 2 * u64::from(*available % SIZE);
        self.ram.write(slot, &head.to_le_bytes()).unwrap();
        *available = available.wrapping_add(1);
        let bytes = available.to_le_bytes();
        self.ram.write(base + 0x802, &bytes).unwrap();
    }

    /// A request by the book in slot `slot`, of three descriptors; its data is at [`Bench::data`].
    fn offer(&mut self, disk: usize, queue: usize, slot: u16, kind: u32, sector: u64, length: u32) {
        let header = HEADERS + 0x40 * u64::from(slot);
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        self.ram.write(header, &bytes).unwrap();
        self.ram.write(header + 16, &[UNTOUCHED]).unwrap();
        let data = match kind {
            IN | GET_ID => WRITE,
            _ => 0,
        };
        let mut chain = vec![(header, 16, 0)];
        if length > 0 {
            chain.push((Self::data(slot), length, data));
        }
        chain.push((header + 16, 1, WRITE));
        self.offer_raw(disk, queue, 3 * slot, &chain);
    }

    fn data(slot: u16) -> u64 {
        DATA + DATA_BYTES * u64::from(slot)
    }

    fn status(&self, slot: u16) -> u8 {
        self.memory(HEADERS + 0x40 * u64::from(slot) + 16, 1)[0]
    }

    fn kick(&mut self, disk: usize, queue: usize) {
        self.write(disk, QUEUE_NOTIFY, queue as u32);
    }

    /// The requests made since the last call, which must be said as what they are.
    fn said(&mut self) -> Vec<DiskRequest> {
        let mut said = Vec::new();
        while let Some(output) = self.outputs.pop() {
            let request = DiskRequest::read_from(&output.bytes).unwrap();
            let kind = match request.op {
                DiskOp::Read => OutputKind::DiskRead,
                _ => OutputKind::Disk,
            };
            assert_eq!(output.kind, kind);
            said.push(request);
            self.outputs.recycle(output.bytes);
        }
        said
    }

    fn done(&mut self, id: u64, status: DiskStatus, data: &[u8]) -> Result<(), DiskDoneError> {
        let done = DiskDone { id, status, data };
        let memory = self.ram.accessor();
        self.disks
            .done(&done, memory, &mut self.outputs, &mut self.written)
    }

    /// The chains that came back: head and length.
    fn take_used(&mut self, disk: usize, queue: usize) -> Vec<(u32, u32)> {
        let base = Self::ring(disk, queue) + 0xa00;
        let index = u16::from_le_bytes(self.memory(base + 2, 2).try_into().unwrap());
        let used = &mut self.used[disk][queue];
        let mut taken = Vec::new();
        while *used != index {
            let mut element = [0; 8];
            let at = base + 4 + 8 * u64::from(*used % SIZE);
            self.ram.read(at, &mut element).unwrap();
            let (head, length) = element.split_at(4);
            taken.push((
                u32::from_le_bytes(head.try_into().unwrap()),
                u32::from_le_bytes(length.try_into().unwrap()),
            ));
            *used = used.wrapping_add(1);
        }
        taken
    }

    fn bounced(&self, request: &DiskRequest) -> Vec<u8> {
        let mut data = vec![0; request.length as usize];
        self.disks.region().read(request.bounce, &mut data);
        data
    }

    fn counters(&self) -> DiskCounters {
        self.disks.counters()
    }

    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.disks.hash(&mut hasher);
        hasher.finish()
    }

    fn line(&self, disk: usize) -> bool {
        self.disks.lines().nth(disk).unwrap()
    }
}

#[test]
fn the_driver_reads_what_disk_it_has() {
    let mut bench = Bench::live(vec![
        spec("one"),
        DiskSpec {
            read_only: true,
            write_cache: false,
            ..spec("two")
        },
    ]);
    assert_eq!(bench.read(0, 8), 2, "a block device");
    let half = |bench: &mut Bench, offset| bench.read(0, CONFIG + offset);
    assert_eq!(half(&mut bench, 0), (DISK_BYTES / 512) as u32);
    assert_eq!((half(&mut bench, 8), half(&mut bench, 12)), (4096, 30));
    assert_eq!(half(&mut bench, 20), 512);
    let mut byte = [0];
    for (disk, writeback) in [(0, 1), (1, 0)] {
        bench.disks.read(disk, WRITEBACK, &mut byte);
        assert_eq!(byte[0], writeback);
    }
    bench.write(0, 0x14, 0);
    bench.write(1, 0x14, 0);
    let read_only = |features: u32| features >> 5 & 1;
    assert_eq!(read_only(bench.read(0, 0x10)), 0);
    assert_eq!(read_only(bench.read(1, 0x10)), 1);
}

#[test]
fn a_read_is_asked_for_at_the_kick_and_reaches_the_guest_with_its_end() {
    let mut bench = Bench::live(vec![spec("a")]);
    bench.offer(0, 0, 0, IN, 8, 8192);
    bench.kick(0, 0);
    let [request] = bench.said()[..] else {
        panic!("one request")
    };
    assert_eq!(
        request,
        DiskRequest {
            id: 1,
            disk: 0,
            op: DiskOp::Read,
            offset: 4096,
            length: 8192,
            bounce: 0,
            digest: 0,
        }
    );
    assert_eq!(bench.disks.outstanding().collect::<Vec<_>>(), [request]);
    assert_eq!(bench.status(0), UNTOUCHED);
    assert!(!bench.line(0) && bench.take_used(0, 0).is_empty());
    let data: Vec<u8> = (0..8192u32).map(|byte| byte as u8 ^ 0x5a).collect();
    bench.done(1, DiskStatus::Done, &data).unwrap();
    assert_eq!(bench.memory(Bench::data(0), 8192), data);
    assert_eq!(bench.status(0), DONE);
    assert_eq!(bench.take_used(0, 0), [(0, 8193)]);
    assert!(bench.line(0));
    bench.write(0, INTERRUPT_ACK, 1);
    assert!(!bench.line(0));
    assert_eq!(bench.disks.outstanding().len(), 0);
}

#[test]
fn a_writes_data_is_that_of_the_kick_and_named_by_its_digest() {
    let mut bench = Bench::live(vec![spec("a")]);
    let data = vec![0xab; 1024];
    bench.ram.write(Bench::data(0), &data).unwrap();
    bench.offer(0, 0, 0, OUT, 2, 1024);
    bench.kick(0, 0);
    let [request] = bench.said()[..] else {
        panic!("one request")
    };
    assert_eq!(request.op, DiskOp::Write { durable: false });
    assert_eq!((request.offset, request.length), (1024, 1024));
    assert_eq!(request.digest, xxh3_64(&data));
    bench.ram.write(Bench::data(0), &[0xff; 1024]).unwrap();
    assert_eq!(bench.bounced(&request), data, "the guest cannot change it");
    bench.done(1, DiskStatus::Failed, &[]).unwrap();
    assert_eq!(bench.status(0), FAILED);
    assert_eq!(bench.take_used(0, 0), [(0, 1)]);
}

#[test]
fn flush_discard_and_zeroes_are_asked_for_without_a_buffer() {
    let mut bench = Bench::live(vec![spec("a")]);
    let range = |sector: u64, sectors: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    bench.offer(0, 0, 0, FLUSH_REQUEST, 0, 0);
    let cases = [
        (DISCARD, range(8, 16, 0)),
        (WRITE_ZEROES, range(0, 2048, 0)),
        (WRITE_ZEROES, range(2047, 1, 1)),
        // Not known, too much, not there, two ranges.
        (DISCARD, range(8, 16, 1)),
        (DISCARD, range(2040, 9, 0)),
        (WRITE_ZEROES, range(u64::MAX, 1, 0)),
        (WRITE_ZEROES, range(0, 0, 0)),
        (DISCARD, [range(0, 1, 0), range(2, 1, 0)].concat()),
    ];
    for (slot, (kind, bytes)) in (1..).zip(&cases) {
        bench.ram.write(Bench::data(slot), bytes).unwrap();
        bench.offer(0, 0, slot, *kind, 0, bytes.len() as u32);
    }
    bench.kick(0, 0);
    let said = bench.said();
    let asked: Vec<_> = said.iter().map(|r| (r.op, r.offset, r.length)).collect();
    assert_eq!(
        asked,
        [
            (DiskOp::Flush, 0, 0),
            (DiskOp::Discard, 4096, 8192),
            (DiskOp::WriteZeroes { unmap: false }, 0, 1 << 20),
            (DiskOp::WriteZeroes { unmap: true }, 2047 * 512, 512),
        ]
    );
    let status: Vec<u8> = (4..9).map(|slot| bench.status(slot)).collect();
    assert_eq!(status, [UNSUPPORTED, FAILED, FAILED, FAILED, FAILED]);
    for request in said {
        bench
            .done(request.id, DiskStatus::Unsupported, &[])
            .unwrap();
    }
    assert_eq!(bench.status(1), UNSUPPORTED);
}

#[test]
fn what_a_request_is_wrong_about_the_device_says_at_once() {
    let read_only = DiskSpec {
        read_only: true,
        ..spec("b")
    };
    let mut bench = Bench::live(vec![spec("a"), read_only]);
    let last = DISK_BYTES / 512;
    for (disk, kind, sector, length, status) in [
        (0, IN, last, 512, FAILED),
        (0, IN, last - 1, 1024, FAILED),
        (0, OUT, u64::MAX, 512, FAILED),
        (0, OUT, 1 << 55, 512, FAILED),
        (0, IN, 0, 511, FAILED),
        (0, IN, 0, 0, FAILED),
        (0, OUT, 0, 513, FAILED),
        (0, IN, 0, 121 << 10, FAILED),
        (0, GET_ID, 0, 19, FAILED),
        (0, 99, 0, 512, UNSUPPORTED),
        (1, OUT, 0, 512, FAILED),
    ] {
        bench.offer(disk, 1, 7, kind, sector, length);
        bench.kick(disk, 1);
        assert_eq!(bench.said(), [], "{kind} at {sector}, {length}");
        assert_eq!(bench.status(7), status, "{kind} at {sector}, {length}");
        assert_eq!(bench.take_used(disk, 1), [(21, 1)]);
    }
    assert_eq!(bench.counters().driver_faults, 0);
    assert_eq!(bench.counters().answered, 11);
}

#[test]
fn the_serial_number_is_padded_with_zeros() {
    let mut bench = Bench::live(vec![spec("disk-7")]);
    bench.offer(0, 0, 0, GET_ID, 0, 20);
    bench.kick(0, 0);
    assert_eq!(
        bench.memory(Bench::data(0), 20),
        *b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(
        (bench.status(0), bench.take_used(0, 0)),
        (DONE, vec![(0, 21)])
    );
}

#[test]
fn a_write_is_durable_while_the_cache_is_off_and_where_no_flush_is_known() {
    let mut bench = Bench::live(vec![spec("a")]);
    let asked = |bench: &mut Bench| {
        bench.offer(0, 0, 0, OUT, 0, 512);
        bench.kick(0, 0);
        let request = bench.said()[0];
        bench.done(request.id, DiskStatus::Done, &[]).unwrap();
        request.op
    };
    assert_eq!(asked(&mut bench), DiskOp::Write { durable: false });
    bench.write_bytes(0, WRITEBACK, &[0]);
    assert_eq!(asked(&mut bench), DiskOp::Write { durable: true });
    bench.write_bytes(0, WRITEBACK, &[1]);
    assert_eq!(asked(&mut bench), DiskOp::Write { durable: false });
    bench.write_bytes(0, WRITEBACK, &[0]);
    bench.write(0, STATUS, 0);
    bench.drive(0, 2, 0);
    assert_eq!(asked(&mut bench), DiskOp::Write { durable: true });
}

#[test]
fn buffers_may_be_cut_anywhere() {
    let mut bench = Bench::live(vec![spec("a")]);
    let header = HEADERS;
    let mut bytes = OUT.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(3u64.to_le_bytes());
    bytes.extend([7; 100]);
    bench.ram.write(header, &bytes).unwrap();
    bench.ram.write(DATA, &[9; 412]).unwrap();
    // Header in two pieces, the second with the first data; an empty buffer.
    let chain = [
        (header, 5, 0),
        (header + 5, 111, 0),
        (0, 0, 0),
        (DATA, 412, 0),
        (DATA + 0x1000, 1, WRITE),
    ];
    bench.offer_raw(0, 0, 0, &chain);
    bench.kick(0, 0);
    let request = bench.said()[0];
    assert_eq!((request.offset, request.length), (1536, 512));
    assert_eq!(
        bench.bounced(&request),
        [vec![7; 100], vec![9; 412]].concat()
    );
    // A read into pieces, the last of which takes the status as well.
    bench.ram.write(header, &IN.to_le_bytes()).unwrap();
    let chain = [
        (header, 16, 0),
        (DATA + 0x2000, 500, WRITE),
        (DATA + 0x3000, 13, WRITE),
    ];
    bench.offer_raw(0, 0, 10, &chain);
    bench.kick(0, 0);
    let request = bench.said()[0];
    assert_eq!((request.op, request.length), (DiskOp::Read, 512));
    bench.done(request.id, DiskStatus::Done, &[3; 512]).unwrap();
    assert_eq!(
        bench.memory(DATA + 0x2000, 501),
        [vec![3; 500], vec![0]].concat()
    );
    assert_eq!(
        bench.memory(DATA + 0x3000, 13),
        [vec![3; 12], vec![DONE]].concat()
    );
}

#[test]
fn queues_and_disks_number_their_requests_together_and_end_in_any_order() {
    let mut bench = Bench::live(vec![spec("a"), spec("b")]);
    let places = [(0, 0), (1, 1), (0, 1), (1, 0)];
    for (slot, (disk, queue)) in (0..).zip(places) {
        bench.offer(disk, queue, slot, IN, u64::from(slot), 512);
        bench.kick(disk, queue);
    }
    let said = bench.said();
    let ids: Vec<_> = said.iter().map(|r| (r.id, usize::from(r.disk))).collect();
    assert_eq!(ids, [(1, 0), (2, 1), (3, 0), (4, 1)]);
    for id in [3, 1, 4, 2] {
        let (disk, queue) = places[id as usize - 1];
        bench.done(id, DiskStatus::Done, &[id as u8; 512]).unwrap();
        let slot = id as u16 - 1;
        assert_eq!(bench.take_used(disk, queue), [(3 * u32::from(slot), 513)]);
        assert_eq!(bench.memory(Bench::data(slot), 512), [id as u8; 512]);
    }
}

#[test]
fn without_a_buffer_a_chain_stays_in_its_ring_and_is_served_in_turn() {
    let mut bench = Bench::live(vec![spec("a"), spec("b")]);
    // 1 MiB of buffers, 16 KiB a request: 64 find room.
    for slot in 0..42 {
        bench.offer(0, 0, slot, IN, 0, 0x4000);
    }
    bench.kick(0, 0);
    for slot in 0..40 {
        bench.offer(1, 0, slot, OUT, 0, 0x4000);
    }
    bench.kick(1, 0);
    // Small, but not before those that wait.
    bench.offer(0, 1, 41, FLUSH_REQUEST, 0, 0);
    bench.kick(0, 1);
    let said = bench.said();
    assert_eq!(said.len(), 64);
    assert_eq!(said.iter().filter(|request| request.disk == 1).count(), 22);
    assert!(bench.disks.save().is_none());
    let mut next = 64;
    for id in 1..=64 {
        let data = match said[id as usize - 1].op {
            DiskOp::Read => vec![1; 0x4000],
            _ => Vec::new(),
        };
        bench.done(id, DiskStatus::Done, &data).unwrap();
        for request in bench.said() {
            next += 1;
            assert_eq!(request.id, next);
            let flush = next == 64 + 18 + 1;
            assert_eq!(request.op == DiskOp::Flush, flush, "request {next}");
            assert_eq!(request.disk, u8::from(!flush));
        }
    }
    assert_eq!(next, 64 + 18 + 1, "all were served");
    assert!(bench.counters().waited > 0);
    for id in 65..=next {
        bench.done(id, DiskStatus::Done, &[]).unwrap();
    }
    assert!(bench.disks.save().is_some());
}

#[test]
fn requests_without_data_are_bounded_too() {
    let mut bench = Bench::live(vec![spec("a")]);
    let mut made = 0;
    for _ in 0..40 {
        for slot in 0..42 {
            bench.offer(0, 0, slot, FLUSH_REQUEST, 0, 0);
        }
        bench.kick(0, 0);
        made += bench.said().len();
        bench.write(0, STATUS, 0);
        bench.drive(0, 2, FLUSH);
    }
    assert_eq!(made, 1024);
    assert_eq!(bench.disks.outstanding().len(), 1024);
    for id in 1..=1024 {
        bench.done(id, DiskStatus::Done, &[]).unwrap();
    }
    assert_eq!(bench.counters().swallowed, 1024);
}

#[test]
fn a_reset_forgets_requests_and_their_ends_reach_nobody() {
    let mut bench = Bench::live(vec![spec("a")]);
    bench.offer(0, 0, 0, IN, 0, 512);
    bench.offer(0, 0, 1, OUT, 8, 512);
    bench.kick(0, 0);
    assert_eq!(bench.said().len(), 2);
    bench.write(0, STATUS, 0);
    assert_eq!(
        bench.disks.outstanding().len(),
        2,
        "the world still answers"
    );
    assert!(bench.disks.save().is_none());
    bench.drive(0, 2, FLUSH | CONFIG_WCE);
    bench.offer(0, 0, 2, IN, 1, 512);
    bench.kick(0, 0);
    let request = bench.said()[0];
    assert_eq!(
        (request.id, request.bounce),
        (3, 8192),
        "buffers are taken still"
    );
    bench.done(1, DiskStatus::Done, &[1; 512]).unwrap();
    bench.done(2, DiskStatus::Done, &[]).unwrap();
    assert_eq!(bench.memory(Bench::data(0), 512), [0; 512]);
    assert_eq!((bench.status(0), bench.status(1)), (UNTOUCHED, UNTOUCHED));
    assert!(bench.take_used(0, 0).is_empty() && !bench.line(0));
    bench.done(3, DiskStatus::Done, &[3; 512]).unwrap();
    assert_eq!(bench.memory(Bench::data(2), 512), [3; 512]);
    assert_eq!(bench.counters().swallowed, 2);
    assert!(bench.disks.save().is_some());
}

#[test]
fn an_end_that_cannot_be_is_refused_and_changes_nothing() {
    let mut bench = Bench::live(vec![spec("a")]);
    bench.offer(0, 0, 0, IN, 0, 512);
    bench.offer(0, 0, 1, OUT, 0, 512);
    bench.kick(0, 0);
    bench.said();
    let before = bench.digest();
    for (id, status, bytes) in [
        (0, DiskStatus::Done, 0),
        (3, DiskStatus::Done, 0),
        (1, DiskStatus::Done, 511),
        (1, DiskStatus::Failed, 512),
        (2, DiskStatus::Done, 512),
    ] {
        assert!(
            bench.done(id, status, &vec![1; bytes]).is_err(),
            "{id} {bytes}"
        );
    }
    assert_eq!(bench.digest(), before);
    bench.done(1, DiskStatus::Done, &[1; 512]).unwrap();
    assert!(matches!(
        bench.done(1, DiskStatus::Done, &[1; 512]),
        Err(DiskDoneError::Unknown { id: 1 })
    ));
}

#[test]
fn rules_that_the_driver_breaks_put_the_device_into_needs_reset() {
    let chains: [&[(u64, u32, u16)]; 6] = [
        &[(HEADERS, 15, 0), (DATA, 513, WRITE)], // a short header
        &[(HEADERS, 16, 0)],                     // no status
        &[(DATA, 513, WRITE), (HEADERS, 16, 0)], // the wrong way round
        &[(RAM_BYTES - 8, 16, 0), (DATA, 513, WRITE)], // a header outside RAM
        &[(HEADERS, 16, 0), (DATA, 512, WRITE), (0, 0, WRITE | NEXT)], // goes on nowhere
        &[(HEADERS, 16, NEXT), (DATA, 16, NEXT)], // goes on outside what is there
    ];
    for (index, chain) in chains.into_iter().enumerate() {
        let mut bench = Bench::live(vec![spec("a")]);
        let head = if index == 5 { SIZE - 2 } else { 0 };
        bench.offer_raw(0, 0, head, chain);
        bench.kick(0, 0);
        let status = bench.read(0, STATUS);
        assert_eq!(status & NEEDS_RESET, NEEDS_RESET, "chain {index}");
        assert_eq!(bench.said(), [], "chain {index}");
        bench.offer(0, 0, 1, IN, 0, 512);
        bench.kick(0, 0);
        assert_eq!(bench.said(), [], "until it is reset");
    }
}

#[test]
fn memory_that_is_gone_when_a_read_ends_is_the_drivers_fault() {
    let mut bench = Bench::live(vec![spec("a")]);
    let chain = [(HEADERS, 16, 0), (RAM_BYTES - 100, 513, WRITE)];
    bench.offer_raw(0, 0, 0, &chain);
    bench.kick(0, 0);
    let request = bench.said()[0];
    bench.done(request.id, DiskStatus::Done, &[1; 512]).unwrap();
    assert_eq!(bench.read(0, STATUS) & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(bench.disks.outstanding().len(), 0);
}

#[derive(Debug, Clone)]
enum Move {
    Offer(u16, u32, u64, u32),
    Kick(usize),
    End(prop::sample::Index, u8),
    Register(u64, u32),
    Memory(u64, Vec<u8>),
    Reset,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let kind = prop::sample::select(vec![
        IN,
        OUT,
        FLUSH_REQUEST,
        GET_ID,
        DISCARD,
        WRITE_ZEROES,
        9,
    ]);
    let length = prop_oneof![Just(512u32), Just(4096), Just(0x4000), 0u32..200_000];
    let one = prop_oneof![
        6 => (0u16..42, kind, 0u64..2060, length).prop_map(|(a, b, c, d)| Move::Offer(a, b, c, d)),
        6 => (0usize..3).prop_map(Move::Kick),
        6 => (any::<prop::sample::Index>(), 0u8..3).prop_map(|(which, status)| Move::End(which, status)),
        1 => (0u64..0x140, any::<u32>()).prop_map(|(offset, value)| Move::Register(offset, value)),
        1 => (0u64..0x1000, prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Move::Memory(at, bytes)),
        1 => Just(Move::Reset),
    ];
    prop::collection::vec(one, 1..80)
}

impl Bench {
    fn make(&mut self, one: &Move) {
        match one {
            Move::Offer(slot, kind, sector, length) => {
                self.offer(0, 0, *slot, *kind, *sector, *length);
            }
            Move::Kick(queue) => self.kick(0, *queue),
            Move::End(which, status) => {
                let outstanding: Vec<_> = self.disks.outstanding().collect();
                if outstanding.is_empty() {
                    return;
                }
                let request = outstanding[which.index(outstanding.len())];
                let status = [
                    DiskStatus::Done,
                    DiskStatus::Failed,
                    DiskStatus::Unsupported,
                ][usize::from(*status)];
                let length = match (request.op, status) {
                    (DiskOp::Read, DiskStatus::Done) => request.length,
                    _ => 0,
                };
                let data = vec![request.id as u8; length as usize];
                self.done(request.id, status, &data).unwrap();
            }
            Move::Register(offset, value) => self.write(0, *offset, *value),
            Move::Memory(at, bytes) => self.ram.write(RINGS + at, bytes).unwrap(),
            Move::Reset => {
                self.write(0, STATUS, 0);
                self.drive(0, 2, FLUSH | CONFIG_WCE);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever is in memory and written to registers: no panic, no unbounded work, nothing asked for
    /// outside the disk, buffers that never overlap. Two devices that are treated alike are alike; and
    /// once all requests have ended, the state saves and restores.
    #[test]
    fn a_hostile_driver_harms_only_itself_and_two_devices_stay_alike(moves in moves()) {
        let mut bench = Bench::live(vec![spec("a")]);
        let mut twin = Bench::live(vec![spec("a")]);
        for one in &moves {
            bench.make(one);
            twin.make(one);
            let said = bench.said();
            prop_assert_eq!(&said, &twin.said());
            for request in said {
                prop_assert!(request.offset + request.length <= DISK_BYTES);
            }
            prop_assert_eq!(bench.digest(), twin.digest());
            let mut held: Vec<_> = bench.disks.outstanding()
                .filter(|r| matches!(r.op, DiskOp::Read | DiskOp::Write { .. }))
                .map(|r| (r.bounce, r.bounce + r.length))
                .collect();
            held.sort_unstable();
            prop_assert!(held.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{:?}", held);
        }
        loop {
            let first = bench.disks.outstanding().next();
            let Some(first) = first else { break };
            prop_assert!(bench.disks.save().is_none());
            let length = if first.op == DiskOp::Read { first.length } else { 0 };
            bench.done(first.id, DiskStatus::Done, &vec![0; length as usize]).unwrap();
            bench.said();
        }
        let state = bench.disks.save().expect("nothing is outstanding");
        let mut other = Bench::live(vec![spec("a")]);
        if other.disks.restore(&state, bench.ram.accessor()).is_ok() {
            prop_assert_eq!(other.disks.save(), Some(state));
            prop_assert_eq!(other.digest(), bench.digest());
        }
    }
}
