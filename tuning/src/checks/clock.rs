//! What reading the time costs.

use super::source::Text;
use super::{Check, Finding};

const CLOCKSOURCE: Check = Check {
    name: "clocksource",
    wanted: "tsc",
    costs: "reading the clock leaves user space: 0.1 µs to over 1 µs instead of 20 ns, several \
            times for every output",
    remedy: "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource; if the \
             kernel marked it unstable, dmesg says why",
};

/// `/sys/devices/system/clocksource/clocksource0/current_clocksource`.
pub(super) fn clocksource(text: &Text) -> Finding {
    match text.as_deref() {
        Err(why) => CLOCKSOURCE.unknown(why),
        // Read in user space through the vDSO too, by a scale from the hypervisor's page.
        Ok(name @ ("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page")) => CLOCKSOURCE.good(name),
        Ok("") => CLOCKSOURCE.unknown("the kernel names none"),
        Ok(name) => CLOCKSOURCE.costs(name),
    }
}
