//! Every suite of `lockstep bench`, small: so that none rots unseen.

use lockstep_perf::not_run;
use lockstep_vmm::host::namespaces::trial::with_namespaces;
use std::fs;
use std::process::Command;

/// Runs a suite and checks that it wrote everything that the results' page promises. Whether it kept
/// its promises of speed is not looked at: a debug build beside other tests does not.
fn runs_small(suite: &str, series: &[&str]) {
    let directory = tempfile::tempdir().expect("a directory");
    let results = directory.path().join("results");
    let output = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["bench", suite, "--small", "--json", "--results"])
        .arg(&results)
        .output()
        .expect("lockstep");
    let said = String::from_utf8_lossy(&output.stderr);
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{suite} prints no summary ({error}): {said}"));
    assert_eq!(summary["suite"], suite);
    let written: Vec<String> = fs::read_dir(&results)
        .expect("the results' directory")
        .map(|entry| entry.expect("an entry").file_name().into_string())
        .collect::<Result<_, _>>()
        .expect("names in UTF-8");
    for kind in [".hgrm", ".hlog", ".svg", "summary.json"] {
        assert!(
            written.iter().any(|name| name.ends_with(kind)),
            "{suite} wrote no {kind}: {written:?}"
        );
    }
    for name in series {
        let found = &summary["series"][*name];
        assert!(
            found["count"].as_u64() > Some(0),
            "{suite} measured nothing of {name}: {summary}"
        );
    }
}

fn two_cores(test: &str) -> bool {
    let cores = lockstep_perf::pin::cores();
    if cores.len() < 2 {
        not_run::report(test, &format!("needs two cores, has {cores:?}"));
    }
    cores.len() >= 2
}

#[test]
fn the_ring_suite_runs_small() {
    if two_cores("the_ring_suite_runs_small") {
        runs_small("ring", &["64 B/lockstep", "2048 B/bare hand-off, carrying"]);
    }
}

#[test]
fn the_cpu_suite_runs_small() {
    let guests = ["compute", "memory", "syscall", "fault"];
    let series = |contender: &str| guests.map(|guest| format!("{guest}/{contender}"));
    let mut wanted = series("lockstep").to_vec();
    if Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .is_ok()
    {
        wanted.extend(series("qemu -icount"));
        wanted.extend(series("qemu"));
    } else {
        not_run::report(
            "the_cpu_suite_runs_small",
            "compares nothing: qemu-system-x86_64 is missing (package qemu-system-x86)",
        );
    }
    runs_small(
        "cpu",
        &wanted.iter().map(String::as_str).collect::<Vec<_>>(),
    );
}

#[test]
fn the_disk_suite_runs_small() {
    if Command::new("fio").arg("--version").output().is_err() {
        not_run::report(
            "the_disk_suite_runs_small",
            "compares nothing: fio is missing (package fio)",
        );
    }
    runs_small(
        "disk",
        &[
            "host/random-read-1",
            "host/sequential-write-16",
            "bounce/write-4k",
            "bounce/read-1m",
            "output-rule/shm-committed",
            "output-rule/tcp",
        ],
    );
}

#[test]
fn the_channel_suite_runs_small() {
    runs_small("channel", &[]);
}

#[test]
fn the_output_latency_suite_runs_small() {
    with_namespaces("the_output_latency_suite_runs_small", || {
        runs_small(
            "output-latency",
            &[
                "unprotected/kick-released",
                "shm/kick-released",
                "tcp/kick-released",
                "ping-pong-spin",
            ],
        );
    });
}
