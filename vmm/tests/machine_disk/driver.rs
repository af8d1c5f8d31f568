//! A driver of the block devices, with their registers, rings and memory.

use lockstep_vmm::ft::disk::{DiskDone, DiskOp, DiskRequest, DiskStatus};
use lockstep_vmm::ft::vm::OutputKind;
use lockstep_vmm::machine::disks::{DiskDoneError, Disks};
use lockstep_vmm::machine::memory::{GuestRam, WrittenRanges};
use lockstep_vmm::machine::outputs::Outputs;
use lockstep_vmm::machine::{DiskCounters, DiskSpec, MachineConfig};
use std::hash::{DefaultHasher, Hash, Hasher};

pub const RAM_BYTES: u64 = 4 << 20;
pub const DISK_BYTES: u64 = 1 << 20;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const NEEDS_RESET: u32 = 0x40;
pub const SIZE: u16 = 128;

// Registers (virtio 1.2, 4.2.2).
pub const QUEUE_SEL: u64 = 0x30;
pub const QUEUE_NOTIFY: u64 = 0x50;
pub const INTERRUPT_ACK: u64 = 0x64;
pub const STATUS: u64 = 0x70;
pub const CONFIG: u64 = 0x100;
pub const WRITEBACK: u64 = CONFIG + 32;

// Features: flush, configurable cache.
pub const FLUSH: u32 = 1 << 9;
pub const CONFIG_WCE: u32 = 1 << 11;

// Requests (5.2.6).
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH_REQUEST: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const DONE: u8 = 0;
pub const FAILED: u8 = 1;
pub const UNSUPPORTED: u8 = 2;
/// What the driver puts where the status goes.
pub const UNTOUCHED: u8 = 0xee;

/// Of each queue: rings, then 128 slots with a header, a status and 32 KiB of data each... shared by the
/// queues of a disk, which do not use the same slots.
pub const RINGS: u64 = 0x1_0000;
pub const HEADERS: u64 = 0x8_0000;
pub const DATA: u64 = 0x10_0000;
pub const DATA_BYTES: u64 = 0x4000;

pub fn spec(serial: &str) -> DiskSpec {
    DiskSpec {
        serial: serial.into(),
        bytes: DISK_BYTES,
        queues: 2,
        ..DiskSpec::default()
    }
}

pub struct Bench {
    pub disks: Disks,
    pub ram: GuestRam,
    pub outputs: Outputs,
    pub written: WrittenRanges,
    /// Next index of each available ring, and of each used one: disks times queues.
    pub available: [[u16; 4]; 4],
    pub used: [[u16; 4]; 4],
}

impl Bench {
    pub fn new(config: &MachineConfig) -> Self {
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
    pub fn live(disks: Vec<DiskSpec>) -> Self {
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

    pub fn ring(disk: usize, queue: usize) -> u64 {
        RINGS + 0x4000 * disk as u64 + 0x1000 * queue as u64
    }

    pub fn drive(&mut self, disk: usize, queues: u8, features: u32) {
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

    pub fn read(&mut self, disk: usize, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.disks.read(disk, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write(&mut self, disk: usize, offset: u64, value: u32) {
        self.write_bytes(disk, offset, &value.to_le_bytes());
    }

    pub fn write_bytes(&mut self, disk: usize, offset: u64, data: &[u8]) {
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

    pub fn memory(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read(address, &mut bytes).unwrap();
        bytes
    }

    /// Puts descriptors (address, length, flags) at `head` and makes them available.
    pub fn offer_raw(&mut self, disk: usize, queue: usize, head: u16, chain: &[(u64, u32, u16)]) {
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
    pub fn offer(
        &mut self,
        disk: usize,
        queue: usize,
        slot: u16,
        kind: u32,
        sector: u64,
        length: u32,
    ) {
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

    pub fn data(slot: u16) -> u64 {
        DATA + DATA_BYTES * u64::from(slot)
    }

    pub fn status(&self, slot: u16) -> u8 {
        self.memory(HEADERS + 0x40 * u64::from(slot) + 16, 1)[0]
    }

    pub fn kick(&mut self, disk: usize, queue: usize) {
        self.write(disk, QUEUE_NOTIFY, queue as u32);
    }

    /// The requests made since the last call, which must be said as what they are.
    pub fn said(&mut self) -> Vec<DiskRequest> {
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

    pub fn done(&mut self, id: u64, status: DiskStatus, data: &[u8]) -> Result<(), DiskDoneError> {
        let done = DiskDone { id, status, data };
        let memory = self.ram.accessor();
        self.disks
            .done(&done, memory, &mut self.outputs, &mut self.written)
    }

    /// The chains that came back: head and length.
    pub fn take_used(&mut self, disk: usize, queue: usize) -> Vec<(u32, u32)> {
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

    pub fn bounced(&self, request: &DiskRequest) -> Vec<u8> {
        let mut data = vec![0; request.length as usize];
        self.disks.region().read(request.bounce, &mut data);
        data
    }

    pub fn counters(&self) -> DiskCounters {
        self.disks.counters()
    }

    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.disks.hash(&mut hasher);
        hasher.finish()
    }

    pub fn line(&self, disk: usize) -> bool {
        self.disks.lines().nth(disk).unwrap()
    }
}
