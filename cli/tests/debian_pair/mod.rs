//! A pair that protects an unmodified Debian, for tests.

use lockstep_cli::progress::Progress;
use lockstep_cli::scenario::{Scenario, ScenarioError, ScenarioOptions, Tenant};
use lockstep_perf::not_run;
use lockstep_vmm::host::disk::Sharing;
use lockstep_vmm::machine::engine::EngineChoice;
use lockstep_vmm::settings::Settings;
use std::path::{Path, PathBuf};

/// Names another program than the one built beside this test: a release build, where it is measured or lasts.
const OTHER_PROGRAM: &str = "LOCKSTEP_TEST_PROGRAM";

fn program() -> PathBuf {
    std::env::var_os(OTHER_PROGRAM).map_or(env!("CARGO_BIN_EXE_lockstep").into(), PathBuf::from)
}

/// The guest of `recipe`; nothing, and said so, where this host lacks the package client.
pub fn tenant(recipe: &str, test: &str) -> Option<Tenant> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let progress = Progress::new();
    match Tenant::debian(recipe, &program(), EngineChoice::Soft, &cache, &progress) {
        Ok(tenant) => Some(tenant),
        // What the package client lacks is the host's; everything else is a failure.
        Err(ScenarioError::Guest(lack)) => {
            not_run::report(test, &format!("no Debian guest: {lack}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Two hosts and a client for `tenant`.
pub fn scenario(tenant: Tenant, disk_sharing: Sharing) -> Scenario {
    // A busy test host is no dead one. A killed process is known by its connection; how soon a silent
    // one is known is another test's.
    let mut settings = Settings::default();
    settings.failure.heartbeat_timeout_ms = 500;
    settings.failure.stall_timeout_ms = 500;
    Scenario::new(ScenarioOptions {
        program: program(),
        engine: EngineChoice::Soft,
        settings,
        save_logs: false,
        tenant,
        disk_sharing,
        evidence: None,
    })
    .expect("a network, as probed")
}
