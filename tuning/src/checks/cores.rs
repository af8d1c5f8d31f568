//! How many cores there are, and who else runs on them.

use super::source::Text;
use super::{Check, Finding, parse};
use lockstep_vmm::settings::Settings;
use std::collections::BTreeSet;

const COUNT: Check = Check {
    name: "cores",
    wanted: "2 for this process on each host (vCPU and channel), 4 with both sides on one host",
    costs: "threads that take turns wait for the scheduler: tens of microseconds to milliseconds in \
            the tail",
    remedy: "give the process more cores (its cpuset, or the VM it runs in), or use the profile \
             `shared-cores`",
};

/// `usable`: cores that this process may run on.
pub(super) fn count(usable: usize) -> Finding {
    let found = match usable {
        1 => "1 core".to_owned(),
        n => format!("{n} cores"),
    };
    COUNT.judge(usable >= 2, found)
}

const ISOLATED: Check = Check {
    name: "isolated-cores",
    wanted: "the cores of the vCPU and the channel kept free of other work",
    costs: "whatever the scheduler puts on the vCPU's core delays outputs by its time slice, \
            milliseconds at the far end of the histogram",
    remedy: "boot with isolcpus=, nohz_full= and rcu_nocbs= naming two cores, then set \
             cpu.vcpu-core and cpu.channel-core to them",
};

/// `/sys/devices/system/cpu/isolated`.
pub(super) fn isolated(text: &Text) -> Finding {
    match text.clone().and_then(|text| parse::core_list(&text)) {
        Err(why) => ISOLATED.unknown(why),
        Ok(cores) if cores.is_empty() => ISOLATED.costs("none"),
        Ok(cores) => ISOLATED.good(parse::show(&cores)),
    }
}

/// The cores that vCPU and channel are meant to have: those set, and those isolated.
pub(super) fn kept_for_vcpus(isolated: &Text, settings: &Settings) -> BTreeSet<usize> {
    let mut cores = isolated
        .as_deref()
        .ok()
        .and_then(|text| parse::core_list(text).ok())
        .unwrap_or_default();
    let set = [settings.cpu.vcpu_core, settings.cpu.channel_core];
    cores.extend(set.iter().filter_map(|core| usize::try_from(*core).ok()));
    cores
}

const SMT: Check = Check {
    name: "smt",
    wanted: "off, or the sibling of every pinned core idle",
    costs: "a busy sibling takes up to half of a core's execution units, and makes the time of an \
            exit vary",
    remedy: "echo off > /sys/devices/system/cpu/smt/control, or keep the siblings free \
             (thread_siblings_list names them)",
};

/// `/sys/devices/system/cpu/smt/active`.
pub(super) fn smt(text: &Text) -> Finding {
    match text.as_deref() {
        Err(why) => SMT.unknown(why),
        Ok("0") => SMT.good("off"),
        Ok("1") => SMT.costs("on"),
        Ok(other) => SMT.unknown(format!("`{other}` is neither 0 nor 1")),
    }
}
