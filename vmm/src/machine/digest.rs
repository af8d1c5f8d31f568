//! Digests that primary and backup compare. Both are of one build (the log's header says so): the
//! digest of device state goes by the order of fields in memory structures, through `Hash`.

use std::hash::{Hash, Hasher};

use lockstep_cpu::{CpuState, DescriptorTable, Segment};
use xxhash_rust::xxh3::Xxh3;

use super::bus::MachineBus;
use super::engine::Position;
use super::memory::GuestRam;
use crate::ft::vm::DigestScope;

/// XXH3 over the CPU's registers, the time at `position`, and every device.
pub fn state(cpu: &CpuState, bus: &MachineBus, position: Position) -> u64 {
    let mut hasher = Xxh3::new();
    hash_cpu(cpu, &mut hasher);
    bus.hash_at(position, &mut hasher);
    hasher.finish()
}

/// XXH3 over the part of RAM that `scope` names.
pub fn memory(ram: &GuestRam, scope: DigestScope) -> u64 {
    let (offset, length) = match scope {
        DigestScope::Full => (0, ram.bytes()),
        DigestScope::Stripe { index, bytes } => {
            let bytes = u64::from(bytes).max(1);
            (index % ram.bytes().div_ceil(bytes) * bytes, bytes)
        }
    };
    let mut hasher = Xxh3::new();
    ram.for_each_chunk(offset, length, |chunk| hasher.update(chunk));
    hasher.digest()
}

/// Every field, by name, so that none is forgotten when one is added.
fn hash_cpu(cpu: &CpuState, hasher: &mut Xxh3) {
    let CpuState {
        gpr,
        rip,
        rflags,
        segments,
        ldtr,
        tr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        apic_base,
        dr,
        fxsave,
        halted,
        interrupt_shadow,
        nmi_blocked,
        nmi_pending,
        pending_debug,
    } = cpu;
    (gpr, rip, rflags).hash(hasher);
    for segment in segments.iter().chain([ldtr, tr]) {
        let Segment {
            selector,
            base,
            limit,
            attributes,
        } = segment;
        (selector, base, limit, attributes).hash(hasher);
    }
    for table in [gdtr, idtr] {
        let DescriptorTable { base, limit } = table;
        (base, limit).hash(hasher);
    }
    (cr0, cr2, cr3, cr4, cr8, efer).hash(hasher);
    (star, lstar, cstar, sfmask, kernel_gs_base).hash(hasher);
    (sysenter_cs, sysenter_esp, sysenter_eip, pat, apic_base, dr).hash(hasher);
    (fxsave, halted, interrupt_shadow, nmi_blocked).hash(hasher);
    (nmi_pending, pending_debug).hash(hasher);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_ram_is_in_exactly_one_stripe() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let stripes = |ram: &GuestRam| {
            (0..5)
                .map(|index| {
                    memory(
                        ram,
                        DigestScope::Stripe {
                            index,
                            bytes: 300_000,
                        },
                    )
                })
                .collect::<Vec<_>>()
        };
        let before = stripes(&ram);
        assert_eq!(before[4], before[0], "four stripes, then round again");
        for (address, stripe) in [(0, 0), (299_999, 0), (300_000, 1), ((1 << 20) - 1, 3)] {
            let full = memory(&ram, DigestScope::Full);
            ram.write(address, &[1]).unwrap();
            let after = stripes(&ram);
            let changed: Vec<usize> = (0..4)
                .filter(|index| after[*index] != before[*index])
                .collect();
            assert_eq!(changed, [stripe]);
            assert_ne!(memory(&ram, DigestScope::Full), full);
            ram.write(address, &[0]).unwrap();
        }
    }
}
