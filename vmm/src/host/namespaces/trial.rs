//! Tests that need network namespaces, on hosts where the test runner has no right to make them, and
//! on hosts where nobody has. For the tests of this crate and of those that build scenarios.

use super::{Privilege, privilege, probe};
use lockstep_perf::not_run;
use std::process::Command;

/// Set in the environment of a test that was started again in a user namespace.
const INSIDE: &str = "LOCKSTEP_TEST_IN_USER_NAMESPACE";
/// Printed by such a test when what it lacks shows only there.
const LACKS: &str = "LACKS: ";

/// Runs `body` where network namespaces can be made: here, or in this test started again in a user
/// namespace; or reports that this host has no such place. `test` is the test's own name, as the
/// harness knows it (`module::function`).
///
/// # Panics
/// `body` panicked, here or there.
pub fn with_namespaces(test: &str, body: impl FnOnce()) {
    match probe() {
        Ok(Privilege::Held) => body(),
        Ok(Privilege::UserNamespace) if !inside() => start_again(test),
        Ok(Privilege::UserNamespace) => panic!("a user namespace in which nothing is allowed"),
        Err(lack) if inside() => println!("{LACKS}{lack}"),
        Err(lack) => not_run::report(test, &lack.to_string()),
    }
}

/// Runs `body` in a user namespace also where this process needs none; or reports that the host
/// allows none.
///
/// # Panics
/// As [`with_namespaces`].
pub fn in_user_namespace(test: &str, body: impl FnOnce()) {
    if inside() {
        return with_namespaces(test, body);
    }
    match privilege::try_in_child() {
        Ok(()) => start_again(test),
        Err((step, error)) => {
            not_run::report(test, &format!("user namespaces: {step}: {error}"));
        }
    }
}

fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this test again, alone, in a user namespace.
fn start_again(test: &str) {
    let mut again = Command::new(std::env::current_exe().expect("our own path"));
    again
        .args(["--exact", "--nocapture", "--test-threads=1", test])
        .env(INSIDE, "1");
    super::in_user_namespace(&mut again);
    let output = again.output().expect("starting this test again");
    let said = String::from_utf8_lossy(&output.stdout);
    if let Some((_, lack)) = said.split_once(LACKS) {
        return not_run::report(test, lack.lines().next().unwrap_or_default());
    }
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
