//! What executes the guest, and whether this host is a guest itself.

use super::source::Text;
use super::{Check, Finding, parse};
use lockstep_vmm::machine::engine::kvm::capabilities::KvmCapabilities;

const KVM: Check = Check {
    name: "kvm",
    wanted: "/dev/kvm on hardware virtualization, with all that the engine needs",
    costs: "without it the guest runs on the software CPU, some hundred times slower; with a limited \
            one, what was found says what does not run",
    remedy: "modprobe kvm_intel or kvm_amd, give this user /dev/kvm (group kvm); in a VM, ask its \
             host for nested virtualization",
};

/// By executing a guest of a few instructions.
pub(super) fn kvm() -> Finding {
    match KvmCapabilities::probe() {
        Ok(capabilities) => KVM.judge(capabilities.limits().is_empty(), capabilities.to_string()),
        Err(error) => KVM.costs(error.to_string()),
    }
}

const HYPERVISOR: Check = Check {
    name: "hypervisor",
    wanted: "none: Lockstep on the bare host",
    costs: "exits of a nested guest go through two hypervisors (ten times as long), and the outer one \
            takes cores away unseen",
    remedy: "run on bare metal, or ask for dedicated cores and look at steal time in /proc/stat",
};

/// `/proc/cpuinfo`.
pub(super) fn hypervisor(text: &Text) -> Finding {
    let text = match text {
        Err(why) => return HYPERVISOR.unknown(why),
        Ok(text) => text,
    };
    // The CPUID bit that hardware leaves clear for hypervisors to set.
    match parse::value_of(text, "flags") {
        None => HYPERVISOR.unknown("/proc/cpuinfo lists no flags"),
        Some(flags) if flags.split_whitespace().any(|flag| flag == "hypervisor") => {
            HYPERVISOR.costs("this host is a virtual machine")
        }
        Some(_) => HYPERVISOR.good("none"),
    }
}
