//! A virtio entropy device (virtio 1.2, 5.4): one queue of buffers that the driver wants filled.
//!
//! Where the bytes come from is the world's business. A kick makes the device want bytes
//! ([`VirtioRng::wanted`]); they come by an event, at a position, and are the log's from then on.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::DamagedState;
use super::chain::{DriverFault, Segment, collect, note_used_ring, scatter};
use super::virtio_mmio::{Effect, MmioTransport, QUEUE_SIZE, TransportState};
use crate::ft::vm::ENTROPY_LIMIT;
use crate::machine::memory::WrittenRanges;

const REQUESTS: usize = 0;

/// What became of requests, since the VM's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EntropyCounters {
    /// Bytes handed to the guest.
    pub bytes: u64,
    /// How often the driver broke the rules and the device went into DEVICE_NEEDS_RESET.
    pub driver_faults: u64,
}

/// The entropy device behind its transport.
#[derive(Debug)]
pub struct VirtioRng {
    transport: MmioTransport,
    /// Bytes that the oldest buffer not yet filled takes, up to [`ENTROPY_LIMIT`]; 0: there is none.
    wanted: usize,
    counters: EntropyCounters,
    /// Buffers of one chain; empty between calls.
    segments: Vec<Segment>,
}

/// Saved state of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyState {
    transport: TransportState,
    wanted: usize,
    counters: EntropyCounters,
}

impl Hash for VirtioRng {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.transport.hash(hasher);
        self.wanted.hash(hasher);
        self.counters.hash(hasher);
    }
}

impl Default for VirtioRng {
    fn default() -> Self {
        let features = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        Self {
            transport: MmioTransport::new(VIRTIO_ID_RNG, features, 1),
            wanted: 0,
            counters: EntropyCounters::default(),
            segments: Vec::with_capacity(usize::from(QUEUE_SIZE)),
        }
    }
}

impl VirtioRng {
    /// The interrupt line.
    pub fn line(&self) -> bool {
        self.transport.line()
    }

    /// What became of requests.
    pub fn counters(&self) -> EntropyCounters {
        self.counters
    }

    /// How many bytes the world is to give: up to [`ENTROPY_LIMIT`]; 0 while nobody waits for any.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Reads registers at `offset` in the device's page: those of the transport, 32 bits wide. There
    /// is no configuration.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(data), true) = (
            <&mut [u8; 4]>::try_from(data),
            offset.is_multiple_of(4) && offset < u64::from(VIRTIO_MMIO_CONFIG),
        ) {
            *data = self.transport.read(offset).to_le_bytes();
        }
    }

    /// Writes registers at `offset` in the device's page.
    pub fn write(&mut self, offset: u64, data: &[u8], memory: &GuestMemoryMmap) {
        let (Ok(value), 0) = (<[u8; 4]>::try_from(data), offset % 4) else {
            return;
        };
        if offset >= u64::from(VIRTIO_MMIO_CONFIG) {
            return;
        }
        match self
            .transport
            .write(offset, u32::from_le_bytes(value), memory)
        {
            Effect::None | Effect::Live => {}
            Effect::Reset => self.wanted = 0,
            Effect::Notify(_) => {
                let result = self.look(memory);
                self.settle(result);
            }
        }
    }

    fn settle(&mut self, result: Result<(), DriverFault>) {
        if result.is_err() {
            self.wanted = 0;
            self.counters.driver_faults = self.counters.driver_faults.wrapping_add(1);
            self.transport.fail();
        }
    }

    /// Looks how much the next buffer takes, and leaves it in the queue.
    fn look(&mut self, memory: &GuestMemoryMmap) -> Result<(), DriverFault> {
        self.wanted = 0;
        let Some(queue) = self.transport.queue(REQUESTS) else {
            return Ok(());
        };
        if let Some(chain) = queue.iter(memory)?.next() {
            let room = collect(chain, true, &mut self.segments)?;
            queue.go_to_previous_position();
            // A buffer of no bytes is given back as well.
            self.wanted = usize::try_from(room)
                .unwrap_or(usize::MAX)
                .clamp(1, ENTROPY_LIMIT);
        }
        Ok(())
    }

    /// The world gives `bytes`: they fill the oldest buffer, as far as they go. The driver may have
    /// changed its mind since it was asked for: what there is no room for is forgotten.
    pub fn fill(&mut self, bytes: &[u8], memory: &GuestMemoryMmap, written: &mut WrittenRanges) {
        let result = self.try_fill(bytes, memory, written);
        self.settle(result);
    }

    fn try_fill(
        &mut self,
        bytes: &[u8],
        memory: &GuestMemoryMmap,
        written: &mut WrittenRanges,
    ) -> Result<(), DriverFault> {
        let Some(queue) = self.transport.queue(REQUESTS) else {
            return Ok(());
        };
        note_used_ring(queue, written);
        if let Some(chain) = queue.iter(memory)?.next() {
            let head = chain.head_index();
            let room = collect(chain, true, &mut self.segments)?;
            let length = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            scatter(memory, &self.segments, 0, &bytes[..length], written)?;
            queue.add_used(memory, head, length as u32)?;
            self.counters.bytes = self.counters.bytes.wrapping_add(length as u64);
            if queue.needs_notification(memory)? {
                self.transport.raise_used();
            }
        }
        if let Some(queue) = self.transport.queue(REQUESTS) {
            // Whether buffers came in the meantime need not be asked: the guest stands still.
            queue.enable_notification(memory)?;
        }
        self.look(memory)
    }

    /// Everything the device holds.
    pub fn save(&self) -> EntropyState {
        EntropyState {
            transport: self.transport.save(),
            wanted: self.wanted,
            counters: self.counters,
        }
    }

    /// Puts back what [`VirtioRng::save`] returned, over the same memory.
    ///
    /// # Errors
    /// The state names queues that this memory cannot hold.
    pub fn restore(
        &mut self,
        state: &EntropyState,
        memory: &GuestMemoryMmap,
    ) -> Result<(), DamagedState> {
        self.transport.restore(&state.transport, memory)?;
        self.wanted = state.wanted.min(ENTROPY_LIMIT);
        self.counters = state.counters;
        Ok(())
    }
}
