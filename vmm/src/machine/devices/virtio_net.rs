//! A virtio network device (virtio 1.2, 5.1): one receive and one transmit queue, no offloads.
//!
//! Frames never share memory with the world. A transmitted frame is copied out of guest memory
//! inside the kick that offers it; a received one is copied in when its event is applied. Work per
//! kick is bounded by the queue: at most [`QUEUE_SIZE`] chains of at most [`QUEUE_SIZE`] descriptors.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::DamagedState;
use super::chain::{DriverFault, Segment, collect, gather, note_used_ring, scatter};
use super::virtio_mmio::{Effect, MmioTransport, QUEUE_SIZE, TransportState};
use crate::ft::vm::OutputKind;
use crate::machine::memory::WrittenRanges;
use crate::machine::outputs::{FRAME_LIMIT, Outputs};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// `struct virtio_net_hdr` with `num_buffers`, which VERSION_1 always has (5.1.6).
const HEADER_BYTES: usize = 12;
/// What the device puts before a received frame: no offload, one buffer.
const RECEIVED_HEADER: [u8; HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Two addresses and a type: what is shorter is no Ethernet frame.
const FRAME_MINIMUM: usize = 14;
/// Frames held while the guest offers no buffer; more are dropped and counted.
pub const RECEIVE_BACKLOG: usize = 256;

/// What became of frames, since the VM's start. Deterministic, so part of the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetCounters {
    /// Frames handed to the guest.
    pub received: u64,
    /// Frames that the guest sent.
    pub transmitted: u64,
    /// Arrived while no driver was there.
    pub dropped_without_driver: u64,
    /// Arrived while [`RECEIVE_BACKLOG`] frames waited.
    pub dropped_backlog_full: u64,
    /// Arrived longer than the guest's buffer, or no Ethernet frame at all.
    pub dropped_unfit: u64,
    /// Sent longer than [`FRAME_LIMIT`], or no Ethernet frame at all.
    pub dropped_transmit: u64,
    /// How often the driver broke the rules and the device went into DEVICE_NEEDS_RESET.
    pub driver_faults: u64,
}

/// Whether a frame found its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Done,
    /// The guest's buffer is too small; it stays with the device.
    Unfit,
    NoBuffer,
}

/// The network device behind its transport.
#[derive(Debug)]
pub struct VirtioNet {
    transport: MmioTransport,
    mac: [u8; 6],
    backlog: VecDeque<Vec<u8>>,
    counters: NetCounters,
    /// Buffers of one chain; empty between calls.
    segments: Vec<Segment>,
}

/// Saved state of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    transport: TransportState,
    backlog: Vec<Vec<u8>>,
    counters: NetCounters,
}

impl Hash for VirtioNet {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.transport.hash(hasher);
        self.mac.hash(hasher);
        self.backlog.hash(hasher);
        self.counters.hash(hasher);
    }
}

impl VirtioNet {
    /// A device with the address `mac`, not yet driven.
    pub fn new(mac: [u8; 6]) -> Self {
        let features =
            1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        Self {
            transport: MmioTransport::new(VIRTIO_ID_NET, features, 2),
            mac,
            backlog: VecDeque::new(),
            counters: NetCounters::default(),
            segments: Vec::with_capacity(usize::from(QUEUE_SIZE)),
        }
    }

    /// The interrupt line.
    pub fn line(&self) -> bool {
        self.transport.line()
    }

    /// What became of frames.
    pub fn counters(&self) -> NetCounters {
        self.counters
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
        // `struct virtio_net_config`: the address; what follows belongs to features not offered.
        for (byte, value) in data
            .iter_mut()
            .zip(self.mac.iter().skip(config_offset as usize))
        {
            *byte = *value;
        }
    }

    /// Writes registers at `offset` in the device's page; a kick is served here.
    pub fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) {
        let (Ok(value), 0) = (<[u8; 4]>::try_from(data), offset % 4) else {
            return;
        };
        if offset >= u64::from(VIRTIO_MMIO_CONFIG) {
            return;
        }
        let result = match self
            .transport
            .write(offset, u32::from_le_bytes(value), memory)
        {
            Effect::None => Ok(()),
            Effect::Reset => {
                self.backlog.clear();
                Ok(())
            }
            // Kicks for receive buffers are wanted only while a frame waits for one.
            Effect::Live => self.want_receive_kicks(false, memory, written),
            Effect::Notify(TRANSMIT) => self.transmit(memory, outputs, written),
            Effect::Notify(_) => self.receive_backlog(memory, outputs, written),
        };
        self.settle(result);
    }

    fn settle(&mut self, result: Result<(), DriverFault>) {
        if result.is_err() {
            count(&mut self.counters.driver_faults);
            self.backlog.clear();
            self.transport.fail();
        }
    }

    /// Sends the chains that the driver made available.
    fn transmit(
        &mut self,
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) -> Result<(), DriverFault> {
        let Some(queue) = self.transport.queue(TRANSMIT) else {
            return Ok(());
        };
        note_used_ring(queue, written);
        let mut used = false;
        // Not "until empty": rings that overlap could feed themselves for ever.
        for _ in 0..queue.size() {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let bytes = collect(chain, false, &mut self.segments)?;
            let frame_bytes = bytes.saturating_sub(HEADER_BYTES as u64);
            if (FRAME_MINIMUM as u64..=FRAME_LIMIT as u64).contains(&frame_bytes) {
                let mut frame = outputs.buffer();
                gather(memory, &self.segments, HEADER_BYTES, &mut frame)?;
                outputs.push(OutputKind::Frame, frame);
                count(&mut self.counters.transmitted);
            } else {
                count(&mut self.counters.dropped_transmit);
            }
            queue.add_used(memory, head, 0)?;
            used = true;
        }
        if used && queue.needs_notification(memory)? {
            self.transport.raise_used();
        }
        if let Some(queue) = self.transport.queue(TRANSMIT) {
            queue.enable_notification(memory)?;
        }
        Ok(())
    }

    /// A frame arrives.
    pub fn receive(
        &mut self,
        frame: &[u8],
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) {
        if self.transport.queue(RECEIVE).is_none() {
            count(&mut self.counters.dropped_without_driver);
        } else if !(FRAME_MINIMUM..=FRAME_LIMIT).contains(&frame.len()) {
            count(&mut self.counters.dropped_unfit);
        } else if self.backlog.is_empty() {
            let result = self.receive_first(frame, memory, outputs, written);
            self.settle(result);
        } else if self.backlog.len() < RECEIVE_BACKLOG {
            self.hold(frame, outputs);
        } else {
            count(&mut self.counters.dropped_backlog_full);
        }
    }

    fn hold(&mut self, frame: &[u8], outputs: &mut Outputs) {
        let mut held = outputs.buffer();
        held.extend_from_slice(frame);
        self.backlog.push_back(held);
    }

    /// A frame arrives and none waits before it.
    fn receive_first(
        &mut self,
        frame: &[u8],
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) -> Result<(), DriverFault> {
        let delivery = self.deliver(frame, memory, written)?;
        if delivery == Delivery::NoBuffer {
            self.hold(frame, outputs);
            self.want_receive_kicks(true, memory, written)?;
        }
        self.notify_received(delivery == Delivery::Done, memory)
    }

    /// The driver offered buffers while frames wait.
    fn receive_backlog(
        &mut self,
        memory: &GuestMemoryMmap,
        outputs: &mut Outputs,
        written: &mut WrittenRanges,
    ) -> Result<(), DriverFault> {
        let mut delivered = false;
        while let Some(frame) = self.backlog.pop_front() {
            match self.deliver(&frame, memory, written)? {
                Delivery::Done => delivered = true,
                Delivery::Unfit => {}
                Delivery::NoBuffer => {
                    self.backlog.push_front(frame);
                    break;
                }
            }
            outputs.recycle(frame);
        }
        self.want_receive_kicks(!self.backlog.is_empty(), memory, written)?;
        self.notify_received(delivered, memory)
    }

    /// Says to the driver whether it is to kick when it offers receive buffers.
    fn want_receive_kicks(
        &mut self,
        wanted: bool,
        memory: &GuestMemoryMmap,
        written: &mut WrittenRanges,
    ) -> Result<(), DriverFault> {
        if let Some(queue) = self.transport.queue(RECEIVE) {
            note_used_ring(queue, written);
            if wanted {
                // Whether buffers came in the meantime need not be asked: the guest stands still.
                queue.enable_notification(memory)?;
            } else {
                queue.disable_notification(memory)?;
            }
        }
        Ok(())
    }

    fn notify_received(
        &mut self,
        delivered: bool,
        memory: &GuestMemoryMmap,
    ) -> Result<(), DriverFault> {
        if delivered
            && let Some(queue) = self.transport.queue(RECEIVE)
            && queue.needs_notification(memory)?
        {
            self.transport.raise_used();
        }
        Ok(())
    }

    /// Copies `frame` into the next receive buffer.
    fn deliver(
        &mut self,
        frame: &[u8],
        memory: &GuestMemoryMmap,
        written: &mut WrittenRanges,
    ) -> Result<Delivery, DriverFault> {
        let Some(queue) = self.transport.queue(RECEIVE) else {
            return Ok(Delivery::NoBuffer);
        };
        let Some(chain) = queue.iter(memory)?.next() else {
            return Ok(Delivery::NoBuffer);
        };
        let head = chain.head_index();
        let room = collect(chain, true, &mut self.segments)?;
        let needed = HEADER_BYTES + frame.len();
        if room < needed as u64 {
            queue.go_to_previous_position();
            count(&mut self.counters.dropped_unfit);
            return Ok(Delivery::Unfit);
        }
        note_used_ring(queue, written);
        scatter(memory, &self.segments, 0, &RECEIVED_HEADER, written)?;
        scatter(memory, &self.segments, HEADER_BYTES, frame, written)?;
        queue.add_used(memory, head, needed as u32)?;
        count(&mut self.counters.received);
        Ok(Delivery::Done)
    }

    /// Everything the device holds.
    pub fn save(&self) -> NetState {
        NetState {
            transport: self.transport.save(),
            backlog: self.backlog.iter().cloned().collect(),
            counters: self.counters,
        }
    }

    /// Puts back what [`VirtioNet::save`] returned, over the same memory.
    ///
    /// # Errors
    /// The state is damaged, or names queues that this memory cannot hold.
    pub fn restore(
        &mut self,
        state: &NetState,
        memory: &GuestMemoryMmap,
    ) -> Result<(), DamagedState> {
        let fits = |frame: &Vec<u8>| (FRAME_MINIMUM..=FRAME_LIMIT).contains(&frame.len());
        if state.backlog.len() > RECEIVE_BACKLOG || !state.backlog.iter().all(fits) {
            return Err(DamagedState("network interface: frames that wait"));
        }
        self.transport.restore(&state.transport, memory)?;
        self.backlog = state.backlog.iter().cloned().collect();
        self.counters = state.counters;
        Ok(())
    }
}

/// One more. A counter from a damaged saved state may stand at the end of its range.
fn count(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}
