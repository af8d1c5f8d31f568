//! Tenant images: what runs inside the machine. [`debian`] builds guests from Debian's packages; the rest
//! of this page is about the other one.
//!
//! The **bare tenant** is a network service with no operating system under it: 20 KiB of freestanding C
//! that boots in milliseconds, sleeps in HLT while nothing happens, and executes no instruction whose
//! result is not a function of the machine (no RDTSC, no CPUID, no RDRAND), so that every engine can
//! run it in lockstep. Its sources are in `guest/tenant`; this crate's build script compiles them.
//!
//! # What it asks of the machine
//! - Entry by the 64-bit Linux boot protocol at the ELF entry point (or PVH, by its ELF note).
//! - RAM in the e820 map from 1 MiB to behind the image (2.2 MiB) and on: all that follows in that
//!   range, up to 4 GiB, becomes the arena for items.
//! - A virtio-net device at version 2 of virtio-mmio, named on the command line in Linux's way
//!   (`virtio_mmio.device=4K@0xd0000000:5`), offering `VERSION_1` and `MAC`, with queues of at least 256
//!   entries. `EVENT_IDX` is used where offered.
//! - Two 8259 interrupt controllers at 0x20 and 0xa0 with automatic end of interrupt.
//! - A 16550 at 0x3f8 for what it says at boot. Optional: the 32-bit ACPI timer at port 0x608 (without it an
//!   expiry is refused), power-off at port 0x604 (without it, a triple fault).
//!
//! # What a request costs
//! One interrupt, a read and a write to acknowledge it, and one kick for all the replies of a batch: four
//! exits with the HLT. No timer ticks.

pub mod debian;

use std::fmt;
use std::net::Ipv4Addr;

/// UDP port of the echo service (RFC 862).
pub const ECHO_PORT: u16 = 7;
/// UDP port of the control service; see [`TenantArguments::control`].
pub const CONTROL_PORT: u16 = 9;
/// UDP port of the key-value service: memcached's ASCII protocol with its UDP frame header.
pub const KV_PORT: u16 = 11211;
/// Longest key, bytes.
pub const KEY_MOST: usize = 250;
/// Longest value, bytes. A request must fit one datagram of 1,472 bytes.
pub const VALUE_MOST: usize = 1400;

/// The bare tenant: an ELF64 executable linked at 1 MiB.
pub fn bare_tenant() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/tenant.elf"))
}

/// The tenant's part of the kernel command line. The machine adds where its devices are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantArguments {
    /// Own address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix, bits. The tenant has no use for it (it answers to whatever MAC
    /// address asked), people do.
    pub prefix: u8,
    /// Key of the hash table's function, so that a stranger cannot choose keys that collide.
    pub seed: u64,
    /// Unix time at the machine's start, seconds: what an absolute expiry is measured by. Without it such
    /// an expiry is refused.
    pub epoch: Option<u32>,
    /// Opens [`CONTROL_PORT`]: whoever can send a datagram there may keep the machine busy (`burn
    /// 1000000`) and power it off (`poweroff`). For tests.
    pub control: bool,
}

impl TenantArguments {
    /// A tenant at `address`, its control port closed.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        Self {
            address,
            prefix,
            seed: 0,
            epoch: None,
            control: false,
        }
    }
}

impl fmt::Display for TenantArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ip={}/{}", self.address, self.prefix)?;
        if self.seed != 0 {
            write!(f, " tenant.seed={}", self.seed)?;
        }
        if let Some(epoch) = self.epoch {
            write!(f, " tenant.epoch={epoch}")?;
        }
        if self.control {
            f.write_str(" tenant.control")?;
        }
        Ok(())
    }
}
