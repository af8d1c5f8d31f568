//! Descriptor chains of a split virtqueue (virtio 1.2, 2.7), walked whole before anything is done with
//! them, and copied to and from guest memory. Everything in them is hostile.

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::virtio_mmio::QUEUE_SIZE;
use crate::machine::memory::WrittenRanges;

/// The driver broke a rule of the specification, or named memory that is not RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DriverFault;

impl From<virtio_queue::Error> for DriverFault {
    fn from(_: virtio_queue::Error) -> Self {
        Self
    }
}

impl From<vm_memory::GuestMemoryError> for DriverFault {
    fn from(_: vm_memory::GuestMemoryError) -> Self {
        Self
    }
}

/// A buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Segment {
    /// Guest-physical.
    pub address: u64,
    /// Bytes.
    pub length: u32,
}

/// Walks a chain into `segments` and returns its length in bytes. All its buffers must be the
/// device's to write (`writable`), or none.
pub(super) fn collect(
    chain: DescriptorChain<&GuestMemoryMmap>,
    writable: bool,
    segments: &mut Vec<Segment>,
) -> Result<u64, DriverFault> {
    segments.clear();
    let mut bytes = 0;
    // The iterator ends silently at a descriptor it cannot follow: then the last one it gave still
    // names a successor. An indirect table may be longer than the queue, which 2.7.5.3.1 forbids.
    let mut complete = false;
    for descriptor in chain {
        if descriptor.is_write_only() != writable || segments.len() == usize::from(QUEUE_SIZE) {
            return Err(DriverFault);
        }
        bytes += u64::from(descriptor.len());
        segments.push(Segment {
            address: descriptor.addr().0,
            length: descriptor.len(),
        });
        complete = !descriptor.has_next();
    }
    if complete {
        Ok(bytes)
    } else {
        Err(DriverFault)
    }
}

/// Walks a chain whose buffers for the device to read come first, those for it to write last (2.7.4.2),
/// and returns their lengths in bytes. Empty buffers are left out.
pub(super) fn split(
    chain: DescriptorChain<&GuestMemoryMmap>,
    readable: &mut Vec<Segment>,
    writable: &mut Vec<Segment>,
) -> Result<(u64, u64), DriverFault> {
    readable.clear();
    writable.clear();
    let mut bytes = (0, 0);
    // As in `collect`.
    let mut complete = false;
    for (descriptors, descriptor) in chain.enumerate() {
        let ours = descriptor.is_write_only();
        if descriptors == usize::from(QUEUE_SIZE) || (!ours && !writable.is_empty()) {
            return Err(DriverFault);
        }
        let (segments, sum) = match ours {
            false => (&mut *readable, &mut bytes.0),
            true => (&mut *writable, &mut bytes.1),
        };
        if descriptor.len() > 0 {
            *sum += u64::from(descriptor.len());
            segments.push(Segment {
                address: descriptor.addr().0,
                length: descriptor.len(),
            });
        }
        complete = !descriptor.has_next();
    }
    if complete {
        Ok(bytes)
    } else {
        Err(DriverFault)
    }
}

/// Copies the first bytes of `segments`, which are long enough, to `head`.
pub(super) fn first(
    memory: &GuestMemoryMmap,
    segments: &[Segment],
    mut head: &mut [u8],
) -> Result<(), DriverFault> {
    for segment in segments {
        let length = head.len().min(segment.length as usize);
        let (now, later) = head.split_at_mut(length);
        memory.read_slice(now, GuestAddress(segment.address))?;
        head = later;
    }
    Ok(())
}

/// Copies what follows the first `skip` bytes of `segments` into `frame`. The caller has bounded
/// their length.
pub(super) fn gather(
    memory: &GuestMemoryMmap,
    segments: &[Segment],
    mut skip: usize,
    frame: &mut Vec<u8>,
) -> Result<(), DriverFault> {
    for segment in segments {
        let skipped = skip.min(segment.length as usize);
        skip -= skipped;
        let length = segment.length as usize - skipped;
        if length == 0 {
            continue;
        }
        let address = segment
            .address
            .checked_add(skipped as u64)
            .ok_or(DriverFault)?;
        let filled = frame.len();
        frame.resize(filled + length, 0);
        memory.read_slice(&mut frame[filled..], GuestAddress(address))?;
    }
    Ok(())
}

/// Copies `bytes` into `segments`, `skip` bytes from their start. The caller has checked the room.
pub(super) fn scatter(
    memory: &GuestMemoryMmap,
    segments: &[Segment],
    mut skip: usize,
    mut bytes: &[u8],
    written: &mut WrittenRanges,
) -> Result<(), DriverFault> {
    for segment in segments {
        let skipped = skip.min(segment.length as usize);
        skip -= skipped;
        let length = bytes.len().min(segment.length as usize - skipped);
        if length == 0 {
            continue;
        }
        let address = segment
            .address
            .checked_add(skipped as u64)
            .ok_or(DriverFault)?;
        let (now, later) = bytes.split_at(length);
        // Noted first: a buffer that ends outside RAM is written in part.
        written.add(address, length as u64);
        memory.write_slice(now, GuestAddress(address))?;
        bytes = later;
    }
    Ok(())
}

/// The device is about to write the used ring: flags, index, elements, `avail_event` (2.7.8).
pub(super) fn note_used_ring(queue: &Queue, written: &mut WrittenRanges) {
    written.add(queue.used_ring(), 6 + 8 * u64::from(queue.size()));
}
