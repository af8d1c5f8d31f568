//! The CPU model under KVM: the software CPU's, as far as KVM obeys. Back ends without hardware
//! virtualization do not mask CPUID; [`super::capabilities`] finds out.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use lockstep_cpu::{CpuModel, TSC_DEADLINE};

/// Leaves that the model answers; all others answer zero.
const LEAVES: [u32; 18] = [
    0,
    1,
    6,
    7,
    0xd,
    0x4000_0000,
    0x4000_0001,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_0009,
    0x8000_000a,
];

/// A leaf of which the model answers the first subleaf alone.
const STRUCTURED_FEATURES: u32 = 7;

/// What the model answers, less the deadline mode of the local APIC's timer: its register is KVM's
/// where it exists at all, and its counter the host's.
fn answer(model: &CpuModel, leaf: u32) -> [u32; 4] {
    let mut answer = model.cpuid(leaf, 0);
    if leaf == 1 {
        answer[2] &= !TSC_DEADLINE;
    }
    answer
}

/// The table for KVM_SET_CPUID2.
pub fn table(model: &CpuModel) -> CpuId {
    let entries: Vec<kvm_cpuid_entry2> = LEAVES
        .iter()
        .map(|leaf| {
            let [eax, ebx, ecx, edx] = answer(model, *leaf);
            kvm_cpuid_entry2 {
                function: *leaf,
                flags: if *leaf == STRUCTURED_FEATURES {
                    KVM_CPUID_FLAG_SIGNIFCANT_INDEX
                } else {
                    0
                },
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            }
        })
        .collect();
    CpuId::from_entries(&entries).expect("18 entries are fewer than the 256 that KVM takes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_every_leaf_that_the_model_answers() {
        let model = CpuModel::x86_64_v1();
        let listed = table(&model);
        for leaf in (0..0x20)
            .chain(0x4000_0000..0x4000_0020)
            .chain(0x8000_0000..0x8000_0020)
        {
            let answer = answer(&model, leaf);
            let entry = listed
                .as_slice()
                .iter()
                .find(|entry| entry.function == leaf);
            let given = entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]);
            assert_eq!(given, answer, "leaf {leaf:#x}");
        }
    }
}
