//! What on this host costs latency, and what to do about it.
//!
//! Each check reads one fact, compares it with what suits Lockstep and says what the difference
//! costs. Judging is apart from reading: the judges are functions of text, which tests feed with
//! what other hosts say. A fact that cannot be read is [`Verdict::Unknown`] with the reason, never a
//! guess and never an error. Nothing on the host is changed.

mod clock;
mod cores;
mod interrupts;
mod kernel;
mod memory;
mod network;
mod parse;
mod power;
mod source;
mod virtualization;

use lockstep_vmm::settings::Settings;
use serde::Serialize;
use source::Source;
use std::fmt::Write as _;

/// What a check comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// As wanted.
    Good,
    /// Not as wanted: it costs what the finding says.
    Costs,
    /// It could not be found out.
    Unknown {
        /// Why not.
        why: String,
    },
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// What this host has; empty if unknown.
    pub found: String,
    /// What suits Lockstep.
    pub wanted: &'static str,
    /// What it costs where it is otherwise.
    pub costs: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
    /// What it comes to.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// The part of a [`Finding`] that is the same on every host.
struct Check {
    name: &'static str,
    wanted: &'static str,
    costs: &'static str,
    remedy: &'static str,
}

impl Check {
    fn finding(&self, found: String, verdict: Verdict) -> Finding {
        let Self {
            name,
            wanted,
            costs,
            remedy,
        } = *self;
        Finding {
            name,
            found,
            wanted,
            costs,
            remedy,
            verdict,
        }
    }

    fn good(&self, found: impl Into<String>) -> Finding {
        self.finding(found.into(), Verdict::Good)
    }

    fn costs(&self, found: impl Into<String>) -> Finding {
        self.finding(found.into(), Verdict::Costs)
    }

    fn unknown(&self, why: impl Into<String>) -> Finding {
        self.finding(String::new(), Verdict::Unknown { why: why.into() })
    }

    /// Good if `good`, costs otherwise.
    fn judge(&self, good: bool, found: impl Into<String>) -> Finding {
        if good {
            self.good(found)
        } else {
            self.costs(found)
        }
    }
}

/// Looks at this host, for a process that would run with `settings`. Takes some milliseconds, more
/// where `/dev/kvm` is there to be tried.
#[must_use]
pub fn run(settings: &Settings) -> Vec<Finding> {
    let mut findings = of_files(&Source::host(), settings);
    findings.extend([
        cores::count(lockstep_perf::pin::cores().len()),
        memory::memlock_of_this_process(settings.channel.ring_bytes),
        kernel::io_uring_trial(),
        network::tun(),
        network::namespaces(),
        virtualization::kvm(),
    ]);
    findings
}

/// The checks that only read files.
fn of_files(source: &Source, settings: &Settings) -> Vec<Finding> {
    let isolated = source.text("/sys/devices/system/cpu/isolated");
    vec![
        cores::isolated(&isolated),
        cores::smt(&source.text("/sys/devices/system/cpu/smt/active")),
        power::governor(&power::governors(source)),
        power::idle_states(
            &source.text("/sys/devices/system/cpu/cpuidle/current_driver"),
            &power::states(source),
        ),
        clock::clocksource(
            &source.text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        ),
        memory::transparent_huge_pages(&source.text("/sys/kernel/mm/transparent_hugepage/enabled")),
        memory::reserved_huge_pages(&source.text("/proc/meminfo")),
        interrupts::affinity(source, &cores::kept_for_vcpus(&isolated, settings)),
        network::busy_poll(
            &source.text("/proc/sys/net/core/busy_poll"),
            &source.text("/proc/sys/net/core/busy_read"),
            settings,
        ),
        kernel::io_uring_switch(&source.text("/proc/sys/kernel/io_uring_disabled")),
        kernel::page_table_isolation(
            &source.text("/sys/devices/system/cpu/vulnerabilities/meltdown"),
        ),
        kernel::mitigations(&kernel::vulnerabilities(source)),
        virtualization::hypervisor(&source.text("/proc/cpuinfo")),
    ]
}

/// Findings for people; those that cost come with what they cost and what to do.
#[must_use]
pub fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    // Writing to a string does not fail.
    for finding in findings {
        let Finding {
            name,
            found,
            wanted,
            costs,
            remedy,
            verdict,
        } = finding;
        let _ = match verdict {
            Verdict::Good => writeln!(text, "good     {name:width$}  {found}"),
            Verdict::Unknown { why } => writeln!(text, "unknown  {name:width$}  {why}"),
            Verdict::Costs => {
                let indent = width + 11;
                writeln!(text, "costs    {name:width$}  {found}").and_then(|()| {
                    for (label, line) in [("wanted", wanted), ("costs", costs), ("do", remedy)] {
                        writeln!(text, "{:indent$}{label:6}  {line}", "")?;
                    }
                    Ok(())
                })
            }
        };
    }
    let of =
        |verdict: fn(&Verdict) -> bool| findings.iter().filter(|f| verdict(&f.verdict)).count();
    let _ = writeln!(
        text,
        "{} checks: {} good, {} cost latency, {} unknown",
        findings.len(),
        of(|verdict| *verdict == Verdict::Good),
        of(|verdict| *verdict == Verdict::Costs),
        of(|verdict| matches!(verdict, Verdict::Unknown { .. }))
    );
    text
}

#[cfg(test)]
mod tests;
