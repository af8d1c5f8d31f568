//! Memory: page sizes, and how much may be pinned.

use super::source::Text;
use super::{Check, Finding, parse};
use rustix::process::{Resource, getrlimit};

const TRANSPARENT: Check = Check {
    name: "transparent-huge-pages",
    wanted: "always: a guest's memory is then mapped in pages of 2 MiB",
    costs: "translation misses in the guest walk two page tables, through twice the levels: some \
            percent of its time, and jitter",
    remedy: "echo always > /sys/kernel/mm/transparent_hugepage/enabled",
};

/// `/sys/kernel/mm/transparent_hugepage/enabled`.
pub(super) fn transparent_huge_pages(text: &Text) -> Finding {
    match text.as_deref().map(parse::chosen) {
        Err(why) => TRANSPARENT.unknown(why),
        Ok(None) => TRANSPARENT.unknown("no value is marked as chosen"),
        // `madvise` is not enough: guest memory is mapped without the advice.
        Ok(Some(chosen)) => TRANSPARENT.judge(chosen == "always", chosen),
    }
}

const RESERVED: Check = Check {
    name: "reserved-huge-pages",
    wanted: "none that lie idle: guest memory and log ring use transparent huge pages",
    costs: "reserved pages that nobody maps are memory that the host does not have for anything else",
    remedy: "sysctl vm.nr_hugepages=0, unless another program on this host maps them",
};

/// `/proc/meminfo`.
pub(super) fn reserved_huge_pages(text: &Text) -> Finding {
    let text = match text {
        Err(why) => return RESERVED.unknown(why),
        Ok(text) => text,
    };
    let of = |key| parse::number_of(text, key);
    match (
        of("HugePages_Total"),
        of("HugePages_Free"),
        of("Hugepagesize"),
    ) {
        (Some(total), Some(free), Some(size)) => RESERVED.judge(
            free == 0,
            format!("{total} of {size} KiB reserved, {free} of them free"),
        ),
        _ => {
            RESERVED.unknown("/proc/meminfo says nothing of HugePages: a kernel without hugetlbfs")
        }
    }
}

const MEMLOCK: Check = Check {
    name: "locked-memory",
    wanted: "RLIMIT_MEMLOCK of at least the log ring in both its mappings, or CAP_IPC_LOCK",
    costs: "the ring cannot be registered with io_uring: each send pins its pages again, about 1 µs \
            (transport tcp)",
    remedy: "ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit, or a smaller \
             channel.ring-bytes",
};

/// CAP_IPC_LOCK, capability 14 (linux/capability.h), which lifts the limit.
const CAP_IPC_LOCK: u32 = 14;

pub(super) fn memlock_of_this_process(ring_bytes: u64) -> Finding {
    let limit = getrlimit(Resource::Memlock).current;
    let status = super::Source::host().text("/proc/self/status");
    memlock(limit, &status, ring_bytes)
}

/// `limit`: bytes, none if unlimited. `status`: `/proc/self/status`.
fn memlock(limit: Option<u64>, status: &Text, ring_bytes: u64) -> Finding {
    let Some(limit) = limit else {
        return MEMLOCK.good("unlimited");
    };
    let found = format!("{limit} bytes for a ring of {ring_bytes}");
    // The ring's data is mapped twice in a row, and each mapping's pages are counted.
    if limit >= ring_bytes.saturating_mul(2) {
        return MEMLOCK.good(found);
    }
    let capabilities = status.as_deref().map(|status| {
        parse::value_of(status, "CapEff").and_then(|mask| u64::from_str_radix(mask, 16).ok())
    });
    match capabilities {
        Err(why) => MEMLOCK.unknown(format!("{found}, and {why}")),
        Ok(None) => MEMLOCK.unknown(format!("{found}, and /proc/self/status has no CapEff")),
        Ok(Some(mask)) if mask >> CAP_IPC_LOCK & 1 == 1 => {
            MEMLOCK.good(format!("{found}, lifted by CAP_IPC_LOCK"))
        }
        Ok(Some(_)) => MEMLOCK.costs(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Verdict;

    const RING: u64 = 16 << 20;

    fn of(limit: Option<u64>, status: &str) -> Verdict {
        memlock(limit, &Ok(status.to_owned()), RING).verdict
    }

    #[test]
    fn locked_memory_must_hold_the_ring_twice_or_be_without_limit() {
        let none = "Name:\tx\nCapEff:\t0000000000000000\n";
        assert_eq!(of(None, none), Verdict::Good);
        assert_eq!(of(Some(2 * RING), none), Verdict::Good);
        assert_eq!(of(Some(2 * RING - 1), none), Verdict::Costs);
        // Root in its own user namespace, or with everything but that one.
        assert_eq!(of(Some(0), "CapEff:\t000001ffffffffff\n"), Verdict::Good);
        assert_eq!(of(Some(0), "CapEff:\t000001ffffffbfff\n"), Verdict::Costs);
        for strange in ["", "CapEff:\tx\n"] {
            let verdict = of(Some(0), strange);
            assert!(matches!(verdict, Verdict::Unknown { .. }), "{verdict:?}");
        }
    }
}
