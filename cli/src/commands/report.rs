//! What a run leaves behind: printed, and as JSON for programs.

use lockstep_perf::disk_stages::{DiskHistograms, DiskStage};
use lockstep_perf::histogram::Percentiles;
use lockstep_perf::stages::{Stage, StageHistograms};
use lockstep_vmm::ft::vm::StateDigest;
use lockstep_vmm::machine::engine::EngineKind;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The report of `run`, `primary` and `backup`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunReport {
    /// As what the process was started.
    pub role: Role,
    /// What executed the guest.
    pub engine: EngineKind,
    /// Why the run ended, in words.
    pub end: String,
    /// Whether it ended because this side must not go on.
    pub halted: bool,
    /// The failover, if there was one.
    pub failover: Option<serde_json::Value>,
    /// Digest of the whole state at the end of the log, where a backup saw it end in order.
    pub digest: Option<StateDigest>,
    /// Where the outputs that were released spent their time.
    pub stages: StageHistograms,
    /// Where the disk requests that ended spent theirs.
    #[serde(default)]
    pub disk_stages: DiskHistograms,
}

/// As what a process was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// By itself.
    Unprotected,
    /// The side that executes.
    Primary,
    /// The side that follows.
    Backup,
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ended: {}", self.end)?;
        if let Some(digest) = self.digest {
            writeln!(
                f,
                "digest: state {:016x} memory {:016x}",
                digest.state, digest.memory
            )?;
        }
        for stage in Stage::ALL {
            let p = self.stages.get(stage).percentiles();
            write_stage(f, stage.name(), "outputs", &p)?;
        }
        for stage in DiskStage::ALL {
            let p = self.disk_stages.get(stage).percentiles();
            write_stage(f, stage.name(), "requests", &p)?;
        }
        Ok(())
    }
}

/// One line, if anything was counted.
fn write_stage(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    counted: &str,
    p: &Percentiles,
) -> fmt::Result {
    if p.count == 0 {
        return Ok(());
    }
    writeln!(
        f,
        "{name:<16} {:>8} {counted}, p50 {:.2} p99 {:.2} p99.9 {:.2} max {:.2} us",
        p.count, p.p50, p.p99, p.p99_9, p.max
    )
}
