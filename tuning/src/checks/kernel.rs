//! What entering the kernel costs, and whether io_uring is to be had.

use super::source::{Source, Text};
use super::{Check, Finding};

const IO_URING_SWITCH: Check = Check {
    name: "io-uring-switch",
    wanted: "kernel.io_uring_disabled = 0",
    costs: "the transport tcp needs io_uring: without it there is no protection across hosts",
    remedy: "sysctl kernel.io_uring_disabled=0; at 1, being in the group kernel.io_uring_group or \
             having CAP_SYS_ADMIN is enough",
};

/// `/proc/sys/kernel/io_uring_disabled`.
pub(super) fn io_uring_switch(text: &Text) -> Finding {
    match text.as_deref() {
        // Linux before 6.6 cannot switch it off.
        Err(why) => IO_URING_SWITCH.unknown(format!("{why} (Linux has it from 6.6 on)")),
        Ok(value) => IO_URING_SWITCH.judge(value == "0", value),
    }
}

const IO_URING: Check = Check {
    name: "io-uring",
    wanted: "this process can set up an io_uring",
    costs: IO_URING_SWITCH.costs,
    remedy: "a kernel with CONFIG_IO_URING; in a container a seccomp profile that lets io_uring_setup, \
             io_uring_enter and io_uring_register through",
};

/// By trying.
pub(super) fn io_uring_trial() -> Finding {
    match io_uring::IoUring::new(2) {
        Ok(_) => IO_URING.good("set up and let go"),
        Err(error) => IO_URING.costs(format!("io_uring_setup: {error}")),
    }
}

const ISOLATION: Check = Check {
    name: "page-table-isolation",
    wanted: "off: a CPU that is not affected by Meltdown",
    costs: "each system call and interrupt changes page tables twice: 0.1 to 0.4 µs, and translation \
            misses behind it",
    remedy: "a CPU made after 2018; or, where only trusted code runs, nopti on the kernel's command \
             line (weigh it: it opens kernel memory to every process)",
};

/// `/sys/devices/system/cpu/vulnerabilities/meltdown`.
pub(super) fn page_table_isolation(text: &Text) -> Finding {
    match text.as_deref() {
        Err(why) => ISOLATION.unknown(why),
        Ok(found) => ISOLATION.judge(!found.contains("PTI"), found),
    }
}

const MITIGATIONS: Check = Check {
    name: "mitigations",
    wanted: "none that acts on each system call or each entry to the guest",
    costs: "buffers are cleared and branch prediction is restrained on the way in and out of kernel \
            and guest: 0.1 to some µs each time",
    remedy: "a CPU that is not affected; or, where only trusted code runs, mitigations=off on the \
             kernel's command line (weigh it: it opens this host to its guests and processes)",
};

/// What every file of `/sys/devices/system/cpu/vulnerabilities` says, by name.
pub(super) fn vulnerabilities(source: &Source) -> Result<Vec<(String, String)>, String> {
    let directory = "/sys/devices/system/cpu/vulnerabilities";
    let names = source.names(directory)?;
    names
        .into_iter()
        .map(|name| {
            let text = source.text(&format!("{directory}/{name}"))?;
            Ok((name, text))
        })
        .collect()
}

/// Words of mitigations that act at every entry or exit
/// (kernel documentation, admin-guide/hw-vuln).
const AT_EVERY_ENTRY: [&str; 7] = [
    "Clear CPU buffers",
    "Mitigation: IBRS",
    "untrained return thunk",
    "Safe RET",
    "IBPB before exit to userspace",
    "cache flushes",
    "Retpolines",
];

/// All but Meltdown, which has a check of its own.
pub(super) fn mitigations(files: &Result<Vec<(String, String)>, String>) -> Finding {
    let files = match files {
        Err(why) => return MITIGATIONS.unknown(why),
        Ok(none) if none.is_empty() => {
            return MITIGATIONS.unknown("the kernel lists no vulnerabilities");
        }
        Ok(some) => some,
    };
    let acting: Vec<String> = files
        .iter()
        .filter(|(name, _)| name != "meltdown")
        .filter_map(|(name, text)| {
            let word = AT_EVERY_ENTRY.iter().find(|word| text.contains(**word))?;
            Some(format!(
                "{name}: {}",
                word.trim_start_matches("Mitigation: ")
            ))
        })
        .collect();
    if acting.is_empty() {
        return MITIGATIONS.good(format!("none of {} acts at every entry", files.len()));
    }
    MITIGATIONS.costs(acting.join("; "))
}
