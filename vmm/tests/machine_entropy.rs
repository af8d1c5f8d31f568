//! The entropy device against a driver that keeps the rules, and against one that keeps none.

use lockstep_vmm::ft::vm::ENTROPY_LIMIT;
use lockstep_vmm::machine::devices::virtio_rng::VirtioRng;
use lockstep_vmm::machine::memory::{GuestRam, WrittenRanges};
use proptest::prelude::*;

const RAM_BYTES: u64 = 64 << 10;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x8000;
const QUEUE: u16 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NEEDS_RESET: u32 = 0x40;

struct Bench {
    device: VirtioRng,
    ram: GuestRam,
    written: WrittenRanges,
    available: u16,
}

impl Bench {
    /// A device that is driven: VERSION_1, one queue, DRIVER_OK.
    fn live() -> Self {
        let mut bench = Self {
            device: VirtioRng::default(),
            ram: GuestRam::new(RAM_BYTES).unwrap(),
            written: WrittenRanges::default(),
            available: 0,
        };
        for (register, value) in [
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 0xb),
            (0x30, 0),
            (0x38, u32::from(QUEUE)),
            (0x80, DESCRIPTORS as u32),
            (0x90, AVAILABLE as u32),
            (0xa0, USED as u32),
            (0x44, 1),
            (0x70, 0xf),
        ] {
            bench.write(register, value);
        }
        assert_eq!(bench.read(0x70), 0xf);
        bench
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.device
            .write(offset, &value.to_le_bytes(), self.ram.accessor());
    }

    fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.ram
            .write(DESCRIPTORS + 16 * u64::from(index), &bytes)
            .unwrap();
    }

    /// Makes the chain at `head` available and kicks.
    fn offer(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE);
        self.ram.write(slot, &head.to_le_bytes()).unwrap();
        self.available = self.available.wrapping_add(1);
        self.ram
            .write(AVAILABLE + 2, &self.available.to_le_bytes())
            .unwrap();
        self.write(0x50, 0);
    }

    fn fill(&mut self, bytes: &[u8]) {
        self.device
            .fill(bytes, self.ram.accessor(), &mut self.written);
    }

    fn memory(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read(address, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn a_kick_asks_for_what_the_buffer_takes_and_the_bytes_go_into_it_whole() {
    let mut bench = Bench::live();
    assert_eq!(bench.device.wanted(), 0);
    bench.descriptor(0, BUFFERS, 40, WRITE | NEXT, 1);
    bench.descriptor(1, BUFFERS + 0x100, 24, WRITE, 0);
    bench.offer(0);
    assert_eq!(bench.device.wanted(), 64);
    assert!(!bench.device.line(), "nothing has come yet");
    let bytes: Vec<u8> = (1..=64).collect();
    bench.fill(&bytes);
    assert_eq!(bench.memory(BUFFERS, 41), [&bytes[..40], &[0]].concat());
    assert_eq!(bench.memory(BUFFERS + 0x100, 24), bytes[40..]);
    assert_eq!(bench.memory(USED + 2, 10), [1, 0, 0, 0, 0, 0, 64, 0, 0, 0]);
    assert!(bench.device.line());
    assert_eq!(bench.device.wanted(), 0);
    bench.write(0x64, 1);
    assert!(!bench.device.line());
}

#[test]
fn a_request_is_bounded_and_the_next_buffer_is_asked_for_after_the_first() {
    let mut bench = Bench::live();
    bench.descriptor(0, BUFFERS, 4096, WRITE, 0);
    bench.descriptor(1, BUFFERS + 0x1000, 16, WRITE, 0);
    bench.offer(0);
    bench.offer(1);
    assert_eq!(bench.device.wanted(), ENTROPY_LIMIT);
    bench.fill(&[7; ENTROPY_LIMIT]);
    assert_eq!(
        bench.memory(BUFFERS + ENTROPY_LIMIT as u64 - 1, 2),
        [7, 0],
        "the driver is told how much of its buffer was used"
    );
    assert_eq!(bench.device.wanted(), 16);
    bench.fill(&[8; 16]);
    assert_eq!(bench.device.wanted(), 0);
    assert_eq!(bench.device.counters().bytes, ENTROPY_LIMIT as u64 + 16);
}

#[test]
fn a_reset_forgets_the_request_and_bytes_that_nobody_waits_for_go_nowhere() {
    let mut bench = Bench::live();
    bench.descriptor(0, BUFFERS, 16, WRITE, 0);
    bench.offer(0);
    bench.write(0x70, 0);
    assert_eq!(bench.device.wanted(), 0);
    bench.fill(&[7; 16]);
    assert_eq!(bench.memory(BUFFERS, 16), [0; 16]);
    assert_eq!(bench.device.counters().driver_faults, 0);
}

#[test]
fn rules_that_the_driver_breaks_put_the_device_into_needs_reset() {
    for (address, flags, next) in [
        (BUFFERS, 0, 0),             // for the device to read
        (RAM_BYTES - 8, WRITE, 0),   // ends outside RAM
        (u64::MAX - 4, WRITE, 0),    // ends nowhere
        (BUFFERS, WRITE | NEXT, 0),  // a loop
        (BUFFERS, WRITE | NEXT, 99), // a successor that is not there
    ] {
        let mut bench = Bench::live();
        bench.descriptor(0, address, 16, flags, next);
        bench.offer(0);
        bench.fill(&[7; 16]);
        assert_eq!(
            bench.read(0x70) & NEEDS_RESET,
            NEEDS_RESET,
            "{address:#x} {flags} {next}"
        );
        assert_eq!(bench.device.counters().driver_faults, 1);
        assert_eq!(bench.device.wanted(), 0);
        bench.offer(0);
        assert_eq!(bench.device.wanted(), 0, "until it is reset");
    }
}

proptest! {
    /// Whatever is in memory and written to registers: no panic, no unbounded work, no request above
    /// the limit, and the same state saves and restores.
    #[test]
    fn a_hostile_driver_harms_only_itself(
        memory in prop::collection::vec(any::<u8>(), 0x3000),
        writes in prop::collection::vec((0u64..0x110, any::<u32>()), 0..40),
        bytes in prop::collection::vec(any::<u8>(), 0..=ENTROPY_LIMIT),
    ) {
        let mut bench = Bench::live();
        bench.ram.write(DESCRIPTORS, &memory).unwrap();
        bench.write(0x50, 0);
        for (offset, value) in writes {
            bench.write(offset & !3, value);
            prop_assert!(bench.device.wanted() <= ENTROPY_LIMIT);
            bench.fill(&bytes);
        }
        let state = bench.device.save();
        let mut other = VirtioRng::default();
        if other.restore(&state, bench.ram.accessor()).is_ok() {
            prop_assert_eq!(other.save(), state);
        }
    }
}
