//! What saving power costs.

use super::source::{Source, Text};
use super::{Check, Finding};
use std::collections::BTreeMap;

const GOVERNOR: Check = Check {
    name: "governor",
    wanted: "performance on every core",
    costs: "the first packets after a pause meet a core at its lowest frequency, for milliseconds",
    remedy: "echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
};

/// The governor of every core that has one.
pub(super) fn governors(source: &Source) -> Result<Vec<String>, String> {
    let names = source.names("/sys/devices/system/cpu")?;
    Ok(names
        .iter()
        .filter(|name| is_core(name))
        .filter_map(|name| {
            let path = format!("/sys/devices/system/cpu/{name}/cpufreq/scaling_governor");
            source.text(&path).ok()
        })
        .collect())
}

/// `cpu0` is, `cpufreq` and `cpuidle` are not.
fn is_core(name: &str) -> bool {
    name.strip_prefix("cpu")
        .is_some_and(|number| number.parse::<u32>().is_ok())
}

pub(super) fn governor(governors: &Result<Vec<String>, String>) -> Finding {
    let governors = match governors {
        Err(why) => return GOVERNOR.unknown(why),
        Ok(none) if none.is_empty() => {
            return GOVERNOR.unknown(
                "no core has cpufreq: frequencies are up to the firmware, or to the host of this VM",
            );
        }
        Ok(some) => some,
    };
    let mut counts = BTreeMap::<&str, usize>::new();
    for governor in governors {
        *counts.entry(governor).or_default() += 1;
    }
    let found: Vec<String> = counts
        .iter()
        .map(|(governor, count)| format!("{governor} on {count}"))
        .collect();
    let good = counts.keys().all(|governor| *governor == "performance");
    GOVERNOR.judge(good, found.join(", "))
}

const IDLE: Check = Check {
    name: "idle-states",
    wanted: "no enabled state that takes longer than 10 µs to leave, on cores that block",
    costs: "a thread that sleeps wakes up later by the state's exit latency (the wait policy `spin` \
            does not sleep)",
    remedy: "cpupower idle-set -D 10, or boot with intel_idle.max_cstate=1 processor.max_cstate=1",
};

/// Longest exit latency that does not matter beside a wake-up itself, microseconds.
const SHORT_US: u64 = 10;

/// An idle state of the first core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub name: String,
    /// Time to leave it, microseconds.
    pub latency: u64,
    pub disabled: bool,
}

/// The states of the first core; all cores of a host have the same, but for odd hybrids.
pub(super) fn states(source: &Source) -> Result<Vec<State>, String> {
    let directory = "/sys/devices/system/cpu/cpu0/cpuidle";
    source
        .names(directory)?
        .iter()
        .filter(|name| name.starts_with("state"))
        .map(|state| {
            let text = |file| source.text(&format!("{directory}/{state}/{file}"));
            let latency = text("latency")?;
            Ok(State {
                name: text("name")?,
                latency: latency.parse().map_err(|_| {
                    format!("{directory}/{state}/latency: `{latency}` is no number")
                })?,
                disabled: text("disable")? != "0",
            })
        })
        .collect()
}

pub(super) fn idle_states(driver: &Text, states: &Result<Vec<State>, String>) -> Finding {
    let states = match (driver.as_deref(), states) {
        (Ok("none"), _) => {
            return IDLE.unknown(
                "no cpuidle driver: an idle core halts, and what follows is up to the firmware, or \
                 to the host of this VM",
            );
        }
        (_, Err(why)) => return IDLE.unknown(why),
        (_, Ok(none)) if none.is_empty() => return IDLE.unknown("the driver lists no state"),
        (_, Ok(some)) => some,
    };
    let enabled = || states.iter().filter(|state| !state.disabled);
    let found: Vec<String> = enabled()
        .map(|state| format!("{} {} µs", state.name, state.latency))
        .collect();
    let found = format!(
        "{}: {}",
        driver.as_deref().unwrap_or("unknown driver"),
        found.join(", ")
    );
    IDLE.judge(enabled().all(|state| state.latency <= SHORT_US), found)
}
