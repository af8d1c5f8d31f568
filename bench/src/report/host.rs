//! Where a measurement was made: a number without its host is a rumour.

use std::fs;
use std::path::Path;

use lockstep_perf::{pin, stamp};
use serde::{Deserialize, Serialize};

/// What about a host explains its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Model name of the first processor.
    pub cpu_model: String,
    /// Cores that this process may use.
    pub cores: Vec<usize>,
    /// Kernel release.
    pub kernel: String,
    /// Whether the host is itself a virtual machine, as CPUID says.
    pub virtual_machine: bool,
    /// `/dev/kvm`: `usable`, or why not.
    pub kvm: String,
    /// Frequency governor of the first usable core, where the host has one.
    pub governor: Option<String>,
    /// Where time stamps come from.
    pub stamps: serde_json::Value,
    /// Load averages over 1, 5 and 15 minutes when the run began: other people's work.
    pub load_average: [f64; 3],
}

impl HostFacts {
    /// Reads them off the host. What cannot be read says so in its place.
    #[must_use]
    pub fn gather() -> Self {
        let cores = pin::cores();
        let cpuinfo = text("/proc/cpuinfo");
        let field = |name: &str| {
            cpuinfo
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned())
        };
        let flags = field("flags").unwrap_or_default();
        let governor = format!(
            "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor",
            cores[0]
        );
        let governor = text(&governor).trim().to_owned();
        let mut load_average = [0.0; 3];
        for (slot, word) in load_average
            .iter_mut()
            .zip(text("/proc/loadavg").split_whitespace())
        {
            *slot = word.parse().unwrap_or(f64::NAN);
        }
        Self {
            cpu_model: field("model name").unwrap_or_else(|| "unknown".into()),
            kernel: match text("/proc/sys/kernel/osrelease").trim() {
                "" => "unknown".into(),
                release => release.to_owned(),
            },
            virtual_machine: flags.split_whitespace().any(|flag| flag == "hypervisor"),
            kvm: kvm(Path::new("/dev/kvm")),
            governor: (!governor.is_empty()).then_some(governor),
            stamps: serde_json::to_value(stamp::source()).unwrap_or_default(),
            load_average,
            cores,
        }
    }

    /// The most telling facts in one line.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "{}, {} core{}{}, Linux {}",
            self.cpu_model,
            self.cores.len(),
            if self.cores.len() == 1 { "" } else { "s" },
            if self.virtual_machine { " of a VM" } else { "" },
            self.kernel
        )
    }
}

/// Empty where it cannot be read.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn kvm(path: &Path) -> String {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => "usable".into(),
        Err(error) => format!("{}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_name_this_host_and_survive_json() {
        let facts = HostFacts::gather();
        assert!(!facts.cores.is_empty());
        assert_ne!(facts.kernel, "unknown");
        assert!(facts.load_average.iter().all(|load| load.is_finite()));
        let text = serde_json::to_string(&facts).expect("serializes");
        let back: HostFacts = serde_json::from_str(&text).expect("its own form");
        assert_eq!(back, facts);
        assert!(facts.line().contains(&facts.kernel));
    }

    #[test]
    fn a_kvm_device_that_is_not_there_is_named() {
        assert!(kvm(Path::new("/nonexistent/kvm")).starts_with("/nonexistent/kvm: "));
    }
}
