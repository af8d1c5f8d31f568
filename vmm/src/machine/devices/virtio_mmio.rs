//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2), for a device of up to [`QUEUES`] split queues.
//!
//! Everything the driver writes is hostile. What the specification forbids puts the device into
//! DEVICE_NEEDS_RESET (2.1.2), in which it touches no memory until the driver resets it.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;

use super::DamagedState;

/// Size of one device's registers, bytes.
pub const VIRTIO_MMIO_BYTES: u64 = 4096;
/// Most queues of a device.
pub const QUEUES: usize = 4;
/// Largest queue offered, in descriptors.
pub const QUEUE_SIZE: u16 = 256;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const TRANSPORT_VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"LOCK");

/// One queue as the driver describes it, and once it is ready, as the device uses it.
#[derive(Debug)]
struct QueueSlot {
    size: u32,
    descriptors: u64,
    available: u64,
    used: u64,
    queue: Option<Queue>,
}

impl Default for QueueSlot {
    fn default() -> Self {
        Self {
            size: u32::from(QUEUE_SIZE),
            descriptors: 0,
            available: 0,
            used: 0,
            queue: None,
        }
    }
}

impl QueueSlot {
    fn state(&self) -> QueueSlotState {
        QueueSlotState {
            size: self.size,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
            ready: self.queue.is_some(),
            next_available: self.queue.as_ref().map_or(0, Queue::next_avail),
            next_used: self.queue.as_ref().map_or(0, Queue::next_used),
            event_index: self.queue.as_ref().is_some_and(Queue::event_idx_enabled),
        }
    }

    /// What the driver described, as a queue; nothing if it breaks a rule of 2.7.
    fn build(state: &QueueSlotState, memory: &GuestMemoryMmap) -> Option<Queue> {
        let queue = Queue::try_from(QueueState {
            max_size: QUEUE_SIZE,
            next_avail: state.next_available,
            next_used: state.next_used,
            event_idx_enabled: state.event_index,
            size: u16::try_from(state.size).ok()?,
            ready: true,
            desc_table: state.descriptors,
            avail_ring: state.available,
            used_ring: state.used,
        })
        .ok()?;
        // `virtio-queue` takes an available ring at 0 for one that was never set.
        (state.available != 0 && queue.is_valid(memory)).then_some(queue)
    }
}

/// A queue's saved state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct QueueSlotState {
    size: u32,
    descriptors: u64,
    available: u64,
    used: u64,
    ready: bool,
    next_available: u16,
    next_used: u16,
    event_index: bool,
}

/// The registers outside the queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Registers {
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    interrupt_status: u32,
    status: u32,
}

/// What a register write asks of the device behind the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The driver made buffers available in this queue, which is ready, while the device is live.
    Notify(usize),
    /// The driver reset the device.
    Reset,
    /// The driver is ready: the device is live from here.
    Live,
}

/// Saved state of a transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    registers: Registers,
    queues: Vec<QueueSlotState>,
}

/// The transport of one device.
#[derive(Debug)]
pub struct MmioTransport {
    device_id: u32,
    offered: u64,
    registers: Registers,
    queues: Vec<QueueSlot>,
}

impl Hash for MmioTransport {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.registers.hash(hasher);
        for slot in &self.queues {
            slot.state().hash(hasher);
        }
    }
}

impl MmioTransport {
    /// A device of type `device_id` (virtio 1.2, clause 5) that offers the feature bits `features`
    /// besides those of the transport, and has `queue_count` queues, at most [`QUEUES`].
    pub fn new(device_id: u32, features: u64, queue_count: usize) -> Self {
        debug_assert!(queue_count <= QUEUES);
        Self {
            device_id,
            offered: features | 1 << VIRTIO_F_VERSION_1,
            registers: Registers::default(),
            queues: (0..queue_count).map(|_| QueueSlot::default()).collect(),
        }
    }

    /// Whether the driver set DRIVER_OK and the device needs no reset.
    pub fn is_live(&self) -> bool {
        self.registers.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET)
            == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// Whether the device gave up until it is reset.
    pub fn needs_reset(&self) -> bool {
        self.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// A queue, if it is ready and the device is live.
    pub fn queue(&mut self, index: usize) -> Option<&mut Queue> {
        if !self.is_live() {
            return None;
        }
        self.queues.get_mut(index)?.queue.as_mut()
    }

    /// Whether the driver took the feature `bit`. Settled once the device is live.
    pub fn has_feature(&self, bit: u32) -> bool {
        self.registers.driver_features & 1 << bit != 0
    }

    /// The interrupt line.
    pub fn line(&self) -> bool {
        self.registers.interrupt_status != 0
    }

    /// Used buffers wait for the driver.
    pub fn raise_used(&mut self) {
        self.registers.interrupt_status |= VIRTIO_MMIO_INT_VRING;
    }

    /// The driver broke a rule: nothing more is done for it until it resets the device.
    pub fn fail(&mut self) {
        if self.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.registers.interrupt_status |= VIRTIO_MMIO_INT_CONFIG;
        }
        self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    }

    fn selected(&mut self) -> Option<&mut QueueSlot> {
        self.queues.get_mut(self.registers.queue_select as usize)
    }

    /// Reads the 32-bit register at `offset`; those of the device's own configuration are the
    /// device's. Registers that do not exist read as zero.
    pub fn read(&mut self, offset: u64) -> u32 {
        debug_assert!(offset < u64::from(VIRTIO_MMIO_CONFIG));
        match offset as u32 {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => TRANSPORT_VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.registers.device_features_select {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |_| u32::from(QUEUE_SIZE)),
            VIRTIO_MMIO_QUEUE_READY => self
                .selected()
                .map_or(0, |slot| u32::from(slot.queue.is_some())),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.registers.interrupt_status,
            VIRTIO_MMIO_STATUS => self.registers.status,
            // The configuration never changes.
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset`.
    pub fn write(&mut self, offset: u64, value: u32, memory: &GuestMemoryMmap) -> Effect {
        let low = |field: &mut u64| *field = *field & !0xffff_ffff | u64::from(value);
        let high = |field: &mut u64| *field = *field & 0xffff_ffff | u64::from(value) << 32;
        match offset as u32 {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.set_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_select = value,
            VIRTIO_MMIO_INTERRUPT_ACK => self.registers.interrupt_status &= !value,
            VIRTIO_MMIO_STATUS => return self.set_status(value),
            VIRTIO_MMIO_QUEUE_READY => self.set_ready(value, memory),
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                let index = value as usize;
                if self.queue(index).is_some() {
                    return Effect::Notify(index);
                }
            }
            register => {
                // A queue in use keeps its place (4.2.2.2).
                if let Some(slot) = self.selected().filter(|slot| slot.queue.is_none()) {
                    match register {
                        VIRTIO_MMIO_QUEUE_NUM => slot.size = value,
                        VIRTIO_MMIO_QUEUE_DESC_LOW => low(&mut slot.descriptors),
                        VIRTIO_MMIO_QUEUE_DESC_HIGH => high(&mut slot.descriptors),
                        VIRTIO_MMIO_QUEUE_AVAIL_LOW => low(&mut slot.available),
                        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => high(&mut slot.available),
                        VIRTIO_MMIO_QUEUE_USED_LOW => low(&mut slot.used),
                        VIRTIO_MMIO_QUEUE_USED_HIGH => high(&mut slot.used),
                        _ => {}
                    }
                }
            }
        }
        Effect::None
    }

    fn set_driver_features(&mut self, value: u32) {
        // Features are settled once FEATURES_OK is set (3.1.1).
        if self.registers.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_select {
            0 => *features = *features & !0xffff_ffff | u64::from(value),
            1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    fn set_ready(&mut self, value: u32, memory: &GuestMemoryMmap) {
        let features = self.registers.driver_features;
        if self.registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            return;
        }
        let Some(slot) = self.selected() else { return };
        if value == 0 {
            slot.queue = None;
        } else if slot.queue.is_none() {
            let described = QueueSlotState {
                event_index: features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
                ..slot.state()
            };
            slot.queue = QueueSlot::build(&described, memory);
            if slot.queue.is_none() {
                self.fail();
            }
        }
    }

    fn set_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            self.registers = Registers::default();
            self.queues.fill_with(QueueSlot::default);
            return Effect::Reset;
        }
        let before = self.registers.status;
        // Bits are only ever added, and NEEDS_RESET is the device's (2.1.1).
        let mut status = before | value & 0xff & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let acceptable = self.registers.driver_features & !self.offered == 0
            && self.registers.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
        if before & VIRTIO_CONFIG_S_FEATURES_OK == 0 && !acceptable {
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            status &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.registers.status = status;
        let went_live = !before & status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        if went_live && self.is_live() {
            Effect::Live
        } else {
            Effect::None
        }
    }

    /// Everything the driver has set, and how far the queues have come.
    pub fn save(&self) -> TransportState {
        TransportState {
            registers: self.registers.clone(),
            queues: self.queues.iter().map(QueueSlot::state).collect(),
        }
    }

    /// Puts back what [`MmioTransport::save`] returned, over the same memory.
    ///
    /// # Errors
    /// The state has another number of queues, or a ready one that this memory cannot hold.
    pub fn restore(
        &mut self,
        state: &TransportState,
        memory: &GuestMemoryMmap,
    ) -> Result<(), DamagedState> {
        if state.queues.len() != self.queues.len() {
            return Err(DamagedState("virtio device: number of queues"));
        }
        for (slot, saved) in self.queues.iter_mut().zip(&state.queues) {
            let queue = if saved.ready {
                let queue = QueueSlot::build(saved, memory);
                Some(queue.ok_or(DamagedState("virtio device: queues"))?)
            } else {
                None
            };
            *slot = QueueSlot {
                size: saved.size,
                descriptors: saved.descriptors,
                available: saved.available,
                used: saved.used,
                queue,
            };
        }
        self.registers = state.registers.clone();
        Ok(())
    }
}
