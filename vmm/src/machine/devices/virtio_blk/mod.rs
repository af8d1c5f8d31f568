//! A virtio block device (virtio 1.2, 5.2): requests are taken at the driver's kick, and end by an event.
//!
//! The device owns no storage. A kick turns each chain into a [`DiskRequest`] that is said as an output,
//! with its data in a bounce buffer; what it came to is the world's to say
//! ([`VirtioBlk::complete`]), at a position. What a request is wrong about in itself (out of range, an
//! unknown type, too large) the device answers by itself, at once. Which bounce buffer a request gets,
//! and that it waits while there is none, is decided here alone: see [`Requests`].

mod ask;
mod config;
mod requests;

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use self::ask::{Answer, Ask, Chain};
use self::config::{WRITEBACK_OFFSET, config_space};
use self::requests::{Ended, Place};
pub use self::requests::{MAX_OUTSTANDING, Requests};
use super::DamagedState;
use super::chain::{DriverFault, Segment, note_used_ring, scatter, split};
use super::virtio_mmio::{Effect, MmioTransport, QUEUE_SIZE, TransportState};
use crate::ft::disk::{DiskRequest, DiskStatus};
use crate::ft::vm::OutputKind;
use crate::machine::config::DiskSpec;
use crate::machine::memory::WrittenRanges;
use crate::machine::outputs::Outputs;

/// Unit of positions on a disk, and of sizes (5.2.4): bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Longest serial number, bytes (VIRTIO_BLK_ID_BYTES).
pub const SERIAL_BYTES: usize = 20;
/// Largest segment of a request that the driver is told of, bytes.
pub const SEGMENT_BYTES: u32 = 4096;
/// Most segments of a request that the driver is told of.
pub const SEGMENTS: u32 = 30;
/// Most data of one request, bytes: a read's fits one log entry.
pub const REQUEST_BYTES: u64 = SEGMENT_BYTES as u64 * SEGMENTS as u64;

const _: () = assert!(
    REQUEST_BYTES + crate::ft::log::DISK_HEADER_BYTES as u64
        <= lockstep_logchan::entry::MAX_PAYLOAD_BYTES as u64
);

/// What became of requests, since the VM's start. Deterministic, so part of the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskCounters {
    /// Requests made of the world.
    pub requests: u64,
    /// Requests that the device answered by itself.
    pub answered: u64,
    /// How often a chain had to wait for a bounce buffer.
    pub waited: u64,
    /// Ends of requests that a reset had made the driver forget.
    pub swallowed: u64,
    /// How often the driver broke the rules and the device went into DEVICE_NEEDS_RESET.
    pub driver_faults: u64,
}

impl DiskCounters {
    /// The sums of two disks.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.wrapping_add(other.requests),
            answered: self.answered.wrapping_add(other.answered),
            waited: self.waited.wrapping_add(other.waited),
            swallowed: self.swallowed.wrapping_add(other.swallowed),
            driver_faults: self.driver_faults.wrapping_add(other.driver_faults),
        }
    }
}

/// What a register write asks of whoever holds the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlkEffect {
    /// Nothing.
    None,
    /// The driver made chains available in this queue: [`VirtioBlk::serve`].
    Kick(usize),
    /// The driver reset the device: its requests are forgotten.
    Reset,
}

/// How far [`VirtioBlk::serve`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// All that was there.
    All,
    /// The next chain has no bounce buffer: it stays in the ring until one is free.
    Starved,
}

/// The block device behind its transport.
#[derive(Debug)]
pub struct VirtioBlk {
    transport: MmioTransport,
    number: u8,
    spec: DiskSpec,
    /// The driver's choice of cache mode (5.2.5.2).
    writeback: bool,
    counters: DiskCounters,
    /// Buffers of one chain; of no meaning between calls.
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

/// Saved state of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    transport: TransportState,
    writeback: bool,
    counters: DiskCounters,
}

impl Hash for VirtioBlk {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.transport.hash(hasher);
        self.writeback.hash(hasher);
        self.counters.hash(hasher);
    }
}

impl VirtioBlk {
    /// Disk `number`, not yet driven.
    #[must_use]
    pub fn new(number: u8, spec: &DiskSpec) -> Self {
        let bits = [
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
            VIRTIO_BLK_F_MQ,
        ];
        let read_only = spec.read_only.then_some(VIRTIO_BLK_F_RO);
        let features = bits
            .into_iter()
            .chain(read_only)
            .fold(0, |bits, bit| bits | 1 << bit);
        Self {
            transport: MmioTransport::new(VIRTIO_ID_BLOCK, features, spec.queues.into()),
            number,
            spec: spec.clone(),
            writeback: spec.write_cache,
            counters: DiskCounters::default(),
            readable: Vec::with_capacity(usize::from(QUEUE_SIZE)),
            writable: Vec::with_capacity(usize::from(QUEUE_SIZE)),
        }
    }

    /// The interrupt line.
    #[must_use]
    pub fn line(&self) -> bool {
        self.transport.line()
    }

    /// What became of requests.
    #[must_use]
    pub fn counters(&self) -> DiskCounters {
        self.counters
    }

    /// Whether a write is complete only when it would survive a loss of power: the driver knows of no
    /// flush, or switched the cache off (5.2.6.2).
    fn writes_through(&self) -> bool {
        !self.transport.has_feature(VIRTIO_BLK_F_FLUSH)
            || (self.transport.has_feature(VIRTIO_BLK_F_CONFIG_WCE) && !self.writeback)
    }

    /// Reads registers at `offset` in the device's page. Registers of the transport are 32 bits
    /// wide; other accesses to them read as zero (4.2.2.2).
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some(config_offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) else {
            if let (Ok(data), 0) = (<&mut [u8; 4]>::try_from(data), offset % 4) {
                *data = self.transport.read(offset).to_le_bytes();
            }
            return;
        };
        let config = config_space(&self.spec, self.writeback);
        let at = usize::try_from(config_offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(config.iter().skip(at)) {
            *byte = *value;
        }
    }

    /// Writes registers at `offset` in the device's page.
    pub fn write(&mut self, offset: u64, data: &[u8], memory: &GuestMemoryMmap) -> BlkEffect {
        if let Some(config_offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            // The only field that the driver can write.
            if let ([value], WRITEBACK_OFFSET) = (data, config_offset)
                && self.transport.has_feature(VIRTIO_BLK_F_CONFIG_WCE)
            {
                self.writeback = *value != 0;
            }
            return BlkEffect::None;
        }
        let (Ok(value), 0) = (<[u8; 4]>::try_from(data), offset % 4) else {
            return BlkEffect::None;
        };
        match self
            .transport
            .write(offset, u32::from_le_bytes(value), memory)
        {
            Effect::None | Effect::Live => BlkEffect::None,
            Effect::Notify(queue) => BlkEffect::Kick(queue),
            Effect::Reset => {
                self.writeback = self.spec.write_cache;
                BlkEffect::Reset
            }
        }
    }

    fn settle<T>(&mut self, result: Result<T, DriverFault>) -> Option<T> {
        if result.is_err() {
            count(&mut self.counters.driver_faults);
            self.transport.fail();
        }
        result.ok()
    }

    /// Takes the chains that the driver made available in `queue`.
    pub fn serve(
        &mut self,
        queue: usize,
        requests: &mut Requests,
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) -> Served {
        let result = self.try_serve(queue, requests, memory, outputs, written);
        self.settle(result).unwrap_or(Served::All)
    }

    fn try_serve(
        &mut self,
        number: usize,
        requests: &mut Requests,
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) -> Result<Served, DriverFault> {
        let durable = self.writes_through();
        let Some(queue) = self.transport.queue(number) else {
            return Ok(Served::All);
        };
        note_used_ring(queue, written);
        let (mut served, mut used) = (Served::All, false);
        // Not "until empty": rings that overlap could feed themselves for ever.
        for _ in 0..queue.size() {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let lengths = split(chain, &mut self.readable, &mut self.writable)?;
            let chain = Chain::of(&self.readable, &mut self.writable, lengths)?;
            match chain.ask(&self.spec, durable, memory, requests.scratch())? {
                Ask::Answer(answer) => {
                    let (status, bytes) = match answer {
                        Answer::Serial(serial) => {
                            scatter(memory, &self.writable, 0, &serial, written)?;
                            (DiskStatus::Done, serial.len())
                        }
                        Answer::Status(status) => (status, 0),
                    };
                    put_status(memory, chain.status, status, written)?;
                    queue.add_used(memory, head, bytes as u32 + 1)?;
                    count(&mut self.counters.answered);
                    used = true;
                }
                Ask::Request { op, offset, length } => {
                    let place = Place {
                        queue: number as u8,
                        head,
                        status: chain.status,
                    };
                    let request =
                        requests.take(self.number, op, offset, length, place, &self.writable);
                    let Some(request) = request else {
                        queue.go_to_previous_position();
                        count(&mut self.counters.waited);
                        served = Served::Starved;
                        break;
                    };
                    say(&request, outputs);
                    count(&mut self.counters.requests);
                }
            }
        }
        if used && queue.needs_notification(memory)? {
            self.transport.raise_used();
        }
        if let Some(queue) = self.transport.queue(number) {
            queue.enable_notification(memory)?;
        }
        Ok(served)
    }

    /// A request of this disk has ended; `data` is what a read brought.
    pub(in crate::machine) fn complete(
        &mut self,
        ended: &Ended,
        status: DiskStatus,
        data: &[u8],
        memory: &GuestMemoryMmap,
        written: &mut WrittenRanges,
    ) {
        let result = self.try_complete(ended, status, data, memory, written);
        if self.settle(result) == Some(false) {
            count(&mut self.counters.swallowed);
        }
    }

    /// Whether the driver still waited for it.
    fn try_complete(
        &mut self,
        ended: &Ended,
        status: DiskStatus,
        data: &[u8],
        memory: &GuestMemoryMmap,
        written: &mut WrittenRanges,
    ) -> Result<bool, DriverFault> {
        let Some(place) = ended.place else {
            return Ok(false);
        };
        let Some(queue) = self.transport.queue(place.queue.into()) else {
            return Ok(false);
        };
        note_used_ring(queue, written);
        scatter(memory, &ended.segments, 0, data, written)?;
        put_status(memory, place.status, status, written)?;
        queue.add_used(memory, place.head, data.len() as u32 + 1)?;
        if queue.needs_notification(memory)? {
            self.transport.raise_used();
        }
        Ok(true)
    }

    /// Everything the device holds besides its requests.
    #[must_use]
    pub fn save(&self) -> BlkState {
        BlkState {
            transport: self.transport.save(),
            writeback: self.writeback,
            counters: self.counters,
        }
    }

    /// Puts back what [`VirtioBlk::save`] returned, over the same memory.
    ///
    /// # Errors
    /// The state names queues that this memory cannot hold, or has another number of them.
    pub fn restore(
        &mut self,
        state: &BlkState,
        memory: &GuestMemoryMmap,
    ) -> Result<(), DamagedState> {
        self.transport.restore(&state.transport, memory)?;
        self.writeback = state.writeback;
        self.counters = state.counters;
        Ok(())
    }
}

fn put_status(
    memory: &GuestMemoryMmap,
    address: u64,
    status: DiskStatus,
    written: &mut WrittenRanges,
) -> Result<(), DriverFault> {
    let segment = Segment { address, length: 1 };
    scatter(memory, &[segment], 0, &[status as u8], written)
}

fn say(request: &DiskRequest, outputs: &mut Outputs) {
    let kind = match request.op.is_held() {
        true => OutputKind::Disk,
        false => OutputKind::DiskRead,
    };
    let mut bytes = outputs.buffer();
    request.write_to(&mut bytes);
    outputs.push(kind, bytes);
}

/// One more. A counter from a damaged saved state may stand at the end of its range.
fn count(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}
