//! The judges on what other hosts say, and on nonsense.

use super::power::State;
use super::source::Text;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn says(text: &str) -> Text {
    Ok(text.to_owned())
}

/// Which verdict, without the reason.
fn word(finding: &Finding) -> &'static str {
    match finding.verdict {
        Verdict::Good => "good",
        Verdict::Costs => "costs",
        Verdict::Unknown { .. } => "unknown",
    }
}

/// Writes a file of a pretended host.
fn write(root: &Path, path: &str, text: &str) {
    let place = root.join(path);
    fs::create_dir_all(place.parent().expect("a directory")).expect("made");
    fs::write(place, text).expect("written");
}

/// A bare host, set up as Lockstep would have it.
fn tuned_host(root: &Path) {
    let cpu = "sys/devices/system/cpu";
    for (path, text) in [
        ("isolated", "2-3\n"),
        ("smt/active", "0\n"),
        ("cpu0/cpufreq/scaling_governor", "performance\n"),
        ("cpu1/cpufreq/scaling_governor", "performance\n"),
        ("cpufreq/boost", "1\n"),
        ("cpuidle/current_driver", "intel_idle\n"),
        ("cpu0/cpuidle/state0/name", "POLL\n"),
        ("cpu0/cpuidle/state0/latency", "0\n"),
        ("cpu0/cpuidle/state0/disable", "0\n"),
        ("cpu0/cpuidle/state1/name", "C6\n"),
        ("cpu0/cpuidle/state1/latency", "133\n"),
        ("cpu0/cpuidle/state1/disable", "1\n"),
        ("vulnerabilities/meltdown", "Not affected\n"),
        ("vulnerabilities/mds", "Not affected\n"),
        (
            "vulnerabilities/spectre_v2",
            "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional\n",
        ),
    ] {
        write(root, &format!("{cpu}/{path}"), text);
    }
    for (path, text) in [
        (
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "tsc\n",
        ),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "[always] madvise never\n",
        ),
        (
            "proc/meminfo",
            "MemTotal: 1 kB\nHugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n",
        ),
        ("proc/sys/net/core/busy_poll", "50\n"),
        ("proc/sys/net/core/busy_read", "50\n"),
        ("proc/sys/kernel/io_uring_disabled", "0\n"),
        ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vmx sse2\n"),
        (
            "proc/interrupts",
            "      CPU0  CPU1\n 40:  1  2  PCI-MSI 1-edge  eth0-TxRx-0\n",
        ),
        ("proc/irq/40/smp_affinity_list", "0-3\n"),
        ("proc/irq/40/effective_affinity_list", "1\n"),
    ] {
        write(root, path, text);
    }
    let card = root.join("sys/class/net/eth0");
    fs::create_dir_all(&card).expect("made");
    std::os::unix::fs::symlink("../../../0000:3b:00.0", card.join("device")).expect("a link");
}

#[test]
fn a_host_set_up_for_lockstep_has_nothing_that_costs() {
    let root = tempfile::tempdir().expect("a directory");
    tuned_host(root.path());
    let findings = of_files(&Source::at(root.path()), &Settings::default());
    for finding in &findings {
        assert_eq!(word(finding), "good", "{finding:?}");
    }
    // And each thing that is changed shows up under its own name, and only there.
    for (path, text, name) in [
        ("sys/devices/system/cpu/isolated", "", "isolated-cores"),
        ("sys/devices/system/cpu/smt/active", "1", "smt"),
        (
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor",
            "powersave",
            "governor",
        ),
        (
            "sys/devices/system/cpu/cpu0/cpuidle/state1/disable",
            "0",
            "idle-states",
        ),
        (
            "sys/devices/system/cpu/vulnerabilities/meltdown",
            "Mitigation: PTI",
            "page-table-isolation",
        ),
        (
            "sys/devices/system/cpu/vulnerabilities/mds",
            "Mitigation: Clear CPU buffers; SMT vulnerable",
            "mitigations",
        ),
        (
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "hpet",
            "clocksource",
        ),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never",
            "transparent-huge-pages",
        ),
        (
            "proc/meminfo",
            "HugePages_Total: 8\nHugePages_Free: 8\nHugepagesize: 2048 kB",
            "reserved-huge-pages",
        ),
        ("proc/sys/net/core/busy_read", "0", "busy-poll"),
        ("proc/sys/kernel/io_uring_disabled", "2", "io-uring-switch"),
        ("proc/cpuinfo", "flags\t: fpu hypervisor", "hypervisor"),
        ("proc/irq/40/effective_affinity_list", "3", "irq-affinity"),
    ] {
        let before = fs::read_to_string(root.path().join(path)).expect("there");
        write(root.path(), path, text);
        let findings = of_files(&Source::at(root.path()), &Settings::default());
        let costing: Vec<_> = findings.iter().filter(|f| word(f) == "costs").collect();
        assert_eq!(costing.len(), 1, "{path}: {costing:?}");
        assert_eq!(costing[0].name, name);
        write(root.path(), path, &before);
    }
}

#[test]
fn a_host_without_any_of_the_files_is_unknown_with_reasons() {
    let root = tempfile::tempdir().expect("a directory");
    for finding in of_files(&Source::at(root.path()), &Settings::default()) {
        let Verdict::Unknown { why } = &finding.verdict else {
            panic!("{finding:?}");
        };
        assert!(!why.is_empty());
        assert_eq!(finding.found, "");
    }
}

#[test]
fn a_file_is_read_to_a_bound() {
    let root = tempfile::tempdir().expect("a directory");
    let path = root.path().join("endless");
    let file = fs::File::create(path).expect("made");
    file.set_len(1 << 33).expect("a sparse file of 8 GiB");
    let text = Source::at(root.path())
        .text("/endless")
        .expect("its beginning");
    assert_eq!(text.len(), 4 << 20);
}

#[test]
fn lists_of_cores_read_as_the_kernel_writes_them() {
    let list = |text| parse::core_list(text).map(Vec::from_iter);
    assert_eq!(list(""), Ok(vec![]));
    assert_eq!(list("0-2,7"), Ok(vec![0, 1, 2, 7]));
    assert_eq!(list("5"), Ok(vec![5]));
    for text in ["x", "3-1", "0-", "-1", "0-4294967295", "1-2-3"] {
        let error = parse::core_list(text).expect_err("no list");
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn the_cores_kept_for_vcpus_are_those_set_and_those_isolated() {
    let mut settings = Settings::default();
    let kept = |text: &str, settings: &Settings| cores::kept_for_vcpus(&says(text), settings);
    assert_eq!(kept("", &settings), BTreeSet::new());
    assert_eq!(kept("2-3", &settings), [2, 3].into());
    settings.cpu.vcpu_core = 5;
    assert_eq!(kept("2-3", &settings), [2, 3, 5].into());
    assert_eq!(
        cores::kept_for_vcpus(&Err("gone".into()), &settings),
        [5].into()
    );
}

#[test]
fn one_core_costs_and_two_do_not() {
    assert_eq!(word(&cores::count(1)), "costs");
    assert_eq!(word(&cores::count(2)), "good");
}

#[test]
fn governors_are_counted() {
    let of = |names: &[&str]| power::governor(&Ok(names.iter().map(|&n| n.to_owned()).collect()));
    let mixed = of(&["performance", "schedutil", "schedutil"]);
    assert_eq!(mixed.found, "performance on 1, schedutil on 2");
    assert_eq!(word(&mixed), "costs");
    assert_eq!(word(&of(&["performance"])), "good");
    assert_eq!(word(&of(&[])), "unknown");
}

#[test]
fn only_enabled_idle_states_count_and_only_the_slow_ones_cost() {
    let state = |latency, disabled| State {
        name: "C".into(),
        latency,
        disabled,
    };
    let of = |states: Vec<State>| power::idle_states(&says("acpi_idle"), &Ok(states));
    assert_eq!(word(&of(vec![state(0, false), state(10, false)])), "good");
    assert_eq!(word(&of(vec![state(11, false)])), "costs");
    assert_eq!(word(&of(vec![state(11, true)])), "good");
    assert_eq!(word(&of(vec![])), "unknown");
    let none = power::idle_states(&says("none"), &Ok(vec![]));
    assert_eq!(word(&none), "unknown");
}

#[test]
fn mitigations_cost_only_where_they_act_at_every_entry() {
    let of = |text: &str| kernel::mitigations(&Ok(vec![("x".to_owned(), text.to_owned())]));
    for (text, verdict) in [
        ("Mitigation: IBRS; IBPB: conditional; RSB filling", "costs"),
        ("Mitigation: Retpolines; IBPB: conditional", "costs"),
        (
            "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional",
            "good",
        ),
        (
            "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable",
            "costs",
        ),
        ("Mitigation: PTE Inversion", "good"),
        (
            "Mitigation: Speculative Store Bypass disabled via prctl",
            "good",
        ),
        (
            "Mitigation: Clear CPU buffers; SMT Host state unknown",
            "costs",
        ),
        ("Mitigation: untrained return thunk; SMT disabled", "costs"),
        ("Mitigation: Safe RET", "costs"),
        ("Vulnerable", "good"),
        ("Not affected", "good"),
    ] {
        assert_eq!(word(&of(text)), verdict, "{text}");
    }
}

#[test]
fn busy_polling_matters_to_tcp_alone_and_the_knob_is_enough() {
    let of = |settings: &Settings| word(&network::busy_poll(&says("0"), &says("0"), settings));
    let mut settings = Settings::default();
    assert_eq!(of(&settings), "costs");
    settings.channel.busy_poll_us = 50;
    assert_eq!(of(&settings), "good");
    settings.channel.busy_poll_us = 0;
    settings.channel.transport = lockstep_vmm::settings::TransportKind::Shm;
    assert_eq!(of(&settings), "good");
}

#[test]
fn this_host_is_looked_at_whole_and_nothing_is_left_unsaid() {
    let findings = run(&Settings::default());
    let names: BTreeSet<_> = findings.iter().map(|finding| finding.name).collect();
    assert_eq!(names.len(), findings.len(), "a name is there twice");
    for finding in &findings {
        match &finding.verdict {
            Verdict::Unknown { why } => assert!(!why.is_empty(), "{finding:?}"),
            _ => assert!(!finding.found.is_empty(), "{finding:?}"),
        }
        for text in [finding.wanted, finding.costs, finding.remedy] {
            assert!(!text.is_empty(), "{finding:?}");
            assert!(!text.contains("  "), "{text}");
        }
    }
    let shown = text(&findings);
    for finding in &findings {
        assert!(shown.contains(finding.name), "{shown}");
        let todo = shown.contains(finding.remedy);
        assert!(todo || word(finding) != "costs", "{shown}");
    }
    assert!(
        shown.contains(&format!("{} checks: ", findings.len())),
        "{shown}"
    );
    // A check that cannot be told from good output is of no use to a program.
    let json = serde_json::to_value(&findings).expect("plain data");
    for (row, finding) in json.as_array().expect("rows").iter().zip(&findings) {
        assert_eq!(row["verdict"], word(finding));
        assert_eq!(row["name"], finding.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_whatever_panics(text in "[ -~\n\t]{0,80}", brackets in r"[\[\]a-z:0-9,-]{0,20}") {
        for text in [text, brackets] {
            let root = tempfile::tempdir().expect("a directory");
            tuned_host(root.path());
            for path in [
                "sys/devices/system/cpu/isolated",
                "sys/devices/system/cpu/cpu0/cpuidle/state1/latency",
                "sys/kernel/mm/transparent_hugepage/enabled",
                "proc/meminfo",
                "proc/interrupts",
                "proc/irq/40/effective_affinity_list",
                "proc/cpuinfo",
            ] {
                write(root.path(), path, &text);
            }
            let findings = of_files(&Source::at(root.path()), &Settings::default());
            prop_assert!(!super::text(&findings).is_empty());
        }
    }
}
