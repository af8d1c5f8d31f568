//! The command line, as people and programs meet it.

use std::process::{Command, Output};

fn lockstep(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(arguments)
        .output()
        .expect("lockstep")
}

fn fails(arguments: &[&str], code: i32, says: &[&str]) {
    let output = lockstep(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for part in says {
        assert!(
            said.contains(part),
            "{arguments:?} does not say {part:?}: {said}"
        );
    }
}

#[test]
fn what_is_missing_or_wrong_is_named_with_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let write = |name: &str, text: &str| {
        std::fs::write(path(name), text).expect("write");
        path(name)
    };
    let bare = write("bare.toml", "[vm]\nname = 'x'\nengine = 'soft'");
    let typo = write("typo.toml", "[vm]\nname = 'x'\nmemory = 64");
    let kernel = write("kernel.toml", "[vm]\nname = 'x'\nkernel = 'nothing-here'");
    let knob = write(
        "knob.toml",
        "[vm]\nname = 'x'\n[settings.failure]\nheartbeat-timeout-ms = 0",
    );

    fails(&["run", "--config", &path("none.toml")], 1, &["none.toml"]);
    fails(
        &["run", "--config", &typo],
        1,
        &["line 3", "nearest valid name is `memory-mib`"],
    );
    fails(
        &["run", "--config", &kernel],
        1,
        &["vm.kernel", "nothing-here"],
    );
    fails(
        &["run", "--config", &knob],
        1,
        &["heartbeat-timeout-ms", "found 0"],
    );
    fails(
        &["primary", "--config", &bare],
        1,
        &["channel.address", "10.78.0.1:7070"],
    );
    fails(&["backup", "--config", &bare], 1, &["channel.address"]);
    fails(&["run"], 2, &["--config"]);
    fails(
        &[
            "run",
            "--config",
            &bare,
            "--failure-heartbeat-timeout-ms",
            "x",
        ],
        2,
        &["heartbeat-timeout-ms"],
    );
    fails(&["demo", "--engine", "fast"], 2, &["auto", "soft", "kvm"]);
    fails(
        &["status", "--socket", &path("nobody")],
        1,
        &["no answer", "nobody"],
    );
    fails(
        &["replay", &path("no.log"), "--config", &bare],
        1,
        &["replaying the saved log"],
    );
    let switchless = write(
        "switchless.toml",
        "[vm]\nname = 'x'\nengine = 'soft'\n[network]\nswitch = 'gone'",
    );
    fails(
        &["run", "--config", &switchless],
        1,
        &["network.switch", "lockstep switch"],
    );
}

#[test]
fn every_knob_is_an_argument_and_is_listed_with_its_default() {
    let output = lockstep(&[
        "tune",
        "knobs",
        "--json",
        "--failure-heartbeat-timeout-ms",
        "321",
    ]);
    assert!(output.status.success());
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = rows.as_array().expect("a list");
    assert_eq!(rows.len(), lockstep_tuning::knobs::TABLE.len());
    let row = rows
        .iter()
        .find(|row| row["argument"] == "--failure-heartbeat-timeout-ms")
        .expect("listed");
    assert_eq!((&row["value"], &row["default"]), (&321.into(), &100.into()));
    for command in ["run", "primary", "backup", "demo"] {
        let help = lockstep(&[command, "--help"]);
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for row in rows {
            let argument = row["argument"].as_str().expect("text");
            assert!(
                help.contains(argument),
                "{command} does not take {argument}"
            );
        }
    }
}

#[test]
fn what_is_logged_into_a_pipe_has_no_escapes_and_a_filter_that_is_none_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let bare = directory.path().join("bare.toml");
    std::fs::write(&bare, "[vm]\nname = 'x'\nengine = 'soft'").expect("write");
    let run = |filter: &str| {
        let mut lockstep = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        lockstep.args(["run", "--config"]).arg(&bare);
        let output = lockstep.env("LOCKSTEP_LOG", filter).output();
        let output = output.expect("lockstep");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = run("info");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("INFO") && !said.contains('\x1b'), "{said:?}");
    let (code, said) = run("vmm=loud");
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("LOCKSTEP_LOG") && said.contains("debug"),
        "{said}"
    );
}
