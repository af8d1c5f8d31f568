//! A bounded run of the differential fuzzer: the engine and the host's CPU must agree.

use std::process::Command;

#[test]
fn engine_agrees_with_the_hosts_cpu_on_every_listed_mnemonic() {
    // In a process of its own: random code runs natively there, and its faults are signals.
    let run = Command::new(env!("CARGO_BIN_EXE_fuzz"))
        .args(["--cases", "40000", "--seed", "5"])
        .output()
        .expect("the fuzzer was built");
    assert!(
        run.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
}
