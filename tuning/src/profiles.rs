//! Named sets of knobs for a purpose, laid over what is set already.
//!
//! A profile names no core: which cores are free is the host's business ([`crate::checks`] lists
//! them), so `cpu.vcpu-core` and `cpu.channel-core` are left as they are, except that
//! `shared-cores` takes the pins away.

use crate::knobs::{KnobError, check, set};
use lockstep_vmm::settings::Settings;
use serde::Serialize;
use std::fmt::Write as _;

/// One knob of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Assignment {
    /// The knob, `group.field`.
    pub knob: &'static str,
    /// Its value, as on the command line.
    pub value: &'static str,
    /// Why this value serves the purpose.
    pub because: &'static str,
}

/// Assignments that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// What it is asked for by.
    pub name: &'static str,
    /// What it is for, and what it costs.
    pub purpose: &'static str,
    /// What it sets.
    pub assignments: &'static [Assignment],
}

impl Profile {
    /// `base`, with this profile laid over it.
    ///
    /// # Errors
    /// The profile's values do not go together with those of `base` that it leaves alone.
    pub fn apply(&self, base: Settings) -> Result<Settings, KnobError> {
        let mut settings = base;
        for assignment in self.assignments {
            set(&mut settings, assignment.knob, assignment.value)?;
        }
        check(&settings)?;
        Ok(settings)
    }
}

const fn assign(knob: &'static str, value: &'static str, because: &'static str) -> Assignment {
    Assignment {
        knob,
        value,
        because,
    }
}

/// Every profile.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "latency",
        purpose: "Outputs leave as soon as they may. Needs a core for every thread that spins: two \
                  on each host, and pins (cpu.vcpu-core, cpu.channel-core).",
        assignments: &[
            assign(
                "channel.flush",
                "inline",
                "an entry leaves in the call that wrote it: no hand-over to another thread",
            ),
            assign(
                "cpu.idle-wait",
                "spin",
                "an acknowledgement is seen within a cache miss, not after a wake-up",
            ),
            assign(
                "cpu.receive-wait",
                "spin",
                "the backup acknowledges without being woken first",
            ),
            assign(
                "cpu.replay-wait",
                "spin-then-block",
                "replay is not on an output's path, but lag is on a failover's",
            ),
            assign(
                "cpu.spin-us",
                "100",
                "longer than the usual gap between two entries of a busy guest",
            ),
            assign(
                "cpu.slice-instructions",
                "5000",
                "the soft engine sees an acknowledgement within tens of microseconds",
            ),
            assign(
                "replay.digest-stripe-bytes",
                "65536",
                "the guest waits while a stripe is read: a few microseconds instead of a hundred",
            ),
            assign(
                "replay.lag-limit-ms",
                "20",
                "what the backup has not replayed is part of a failover",
            ),
        ],
    },
    Profile {
        name: "throughput",
        purpose: "Most guest work and log bytes a second; a single output may wait longer. Needs a \
                  core for the channel's thread on the primary's host.",
        assignments: &[
            assign(
                "channel.flush",
                "core",
                "the system calls of sending are taken off the vCPU's thread",
            ),
            assign(
                "channel.ring-bytes",
                "64MiB",
                "a burst is buffered instead of halting the primary",
            ),
            assign(
                "channel.ack-entries",
                "256",
                "fewer acknowledgements to make and to take for entries that nobody waits for",
            ),
            assign(
                "cpu.idle-wait",
                "spin-then-block",
                "a core that spins for a halted guest is a core that others could use",
            ),
            assign(
                "cpu.receive-wait",
                "spin-then-block",
                "under load there is always something to receive, so it seldom sleeps",
            ),
            assign(
                "cpu.replay-wait",
                "spin-then-block",
                "a replayer that keeps up keeps the primary from being slowed down",
            ),
            assign(
                "cpu.slice-instructions",
                "100000",
                "the soft engine leaves its loop less often",
            ),
            assign(
                "replay.digest-interval-ms",
                "500",
                "less of the guest's time goes into hashing its memory",
            ),
            assign(
                "replay.lag-limit-ms",
                "1000",
                "a burst is executed at full speed and replayed behind it",
            ),
        ],
    },
    Profile {
        name: "shared-cores",
        purpose: "For hosts whose cores are shared with other work, or are fewer than the threads. \
                  Nothing spins, nothing is pinned, and a side that waits for its turn on a core is \
                  not taken for dead.",
        assignments: &[
            assign(
                "channel.flush",
                "inline",
                "a further thread would only compete with the vCPU's",
            ),
            assign(
                "channel.sqpoll",
                "false",
                "its kernel thread spins on a core that somebody needs",
            ),
            assign(
                "channel.busy-poll-us",
                "0",
                "polling the card burns time of whoever runs beside",
            ),
            assign(
                "cpu.idle-wait",
                "block",
                "spinning keeps the very thread from its core that is waited for",
            ),
            assign("cpu.receive-wait", "block", "the same"),
            assign("cpu.replay-wait", "block", "the same"),
            assign("cpu.spin-us", "0", "the same"),
            assign(
                "cpu.vcpu-core",
                "-1",
                "the scheduler knows better than a pin which core is free",
            ),
            assign("cpu.channel-core", "-1", "the same"),
            assign(
                "failure.heartbeat-timeout-ms",
                "300",
                "a busy host delays heartbeats by several time slices; failover takes longer for it",
            ),
            assign(
                "failure.stall-timeout-ms",
                "300",
                "the same holds for acknowledgements",
            ),
        ],
    },
];

/// There is no such profile.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no profile `{0}`, expected one of {names}", names = names().join(", "))]
pub struct UnknownProfile(pub String);

/// The names of all profiles.
#[must_use]
pub fn names() -> Vec<&'static str> {
    PROFILES.iter().map(|profile| profile.name).collect()
}

/// The profile called `name`.
///
/// # Errors
/// There is none; the error lists those that there are.
pub fn by_name(name: &str) -> Result<&'static Profile, UnknownProfile> {
    PROFILES
        .iter()
        .find(|profile| profile.name == name)
        .ok_or_else(|| UnknownProfile(name.to_owned()))
}

/// All profiles as text. [`PROFILES`] serializes to the same.
#[must_use]
pub fn listing() -> String {
    let mut text = String::new();
    for profile in PROFILES {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}\n    {}", profile.name, profile.purpose);
        for Assignment {
            knob,
            value,
            because,
        } in profile.assignments
        {
            let _ = writeln!(text, "    {knob:28} {value:16} {because}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_vmm::settings::Wait;

    #[test]
    fn every_profile_can_be_laid_over_the_defaults_and_over_every_other() {
        for first in PROFILES {
            let base = first.apply(Settings::default()).expect("over the defaults");
            for second in PROFILES {
                second.apply(base.clone()).expect("over another");
            }
        }
    }

    #[test]
    fn a_profile_sets_what_it_lists_and_leaves_the_rest() {
        for profile in PROFILES {
            let mut expected = Settings::default();
            expected.channel.ack_delay_us = 7;
            let applied = profile.apply(expected.clone()).expect("over a base");
            for assignment in profile.assignments {
                set(&mut expected, assignment.knob, assignment.value).expect("a knob");
                assert!(!assignment.because.is_empty());
            }
            assert_eq!(applied, expected, "{}", profile.name);
        }
    }

    #[test]
    fn a_profile_names_each_knob_once() {
        for profile in PROFILES {
            let mut knobs: Vec<_> = profile.assignments.iter().map(|a| a.knob).collect();
            knobs.sort_unstable();
            let named = knobs.len();
            knobs.dedup();
            assert_eq!(knobs.len(), named, "{}", profile.name);
        }
    }

    #[test]
    fn nothing_spins_on_shared_cores() {
        let mut base = Settings::default();
        base.cpu.vcpu_core = 1;
        base.channel.sqpoll = true;
        let settings = by_name("shared-cores")
            .expect("it")
            .apply(base)
            .expect("valid");
        let cpu = &settings.cpu;
        for wait in [cpu.idle_wait, cpu.receive_wait, cpu.replay_wait] {
            assert_eq!(wait, Wait::Block);
        }
        assert_eq!((cpu.vcpu_core, cpu.channel_core), (-1, -1));
        assert!(!settings.channel.sqpoll);
    }

    #[test]
    fn an_unknown_profile_is_answered_with_those_that_there_are() {
        let error = by_name("speed").expect_err("no such profile").to_string();
        for part in ["`speed`", "latency", "throughput", "shared-cores"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_listing_gives_every_assignment_with_its_reason() {
        let text = listing();
        let json = serde_json::to_string(PROFILES).expect("plain data");
        for profile in PROFILES {
            for assignment in profile.assignments {
                assert!(text.contains(assignment.because), "{text}");
                assert!(json.contains(assignment.because), "{json}");
            }
        }
    }
}
