//! The arms of `output-latency`: machines of a scenario.

use crate::commands::report::RunReport;
use crate::scenario::{Host, Pair, Process, Scenario, ScenarioError};
use lockstep_bench::channel::{SHM_LIMIT_US, TCP_LIMIT};
use lockstep_bench::load::{Load, LoadConfig};
use lockstep_bench::output_latency::{AddedPromise, Arm, ArmError, Running};
use lockstep_bench::pingpong::{Client, Server, Waiting};
use lockstep_perf::histogram::LatencyHistogram;
use lockstep_perf::pin;
use lockstep_perf::stages::StageHistograms;
use lockstep_vmm::host::namespaces::LOG_ADDRESS_B;
use lockstep_vmm::settings::TransportKind;
use std::time::Duration;

/// An arm with a scenario of its own.
pub(super) struct OwnedArm {
    scenario: Scenario,
    protection: Option<TransportKind>,
}

impl OwnedArm {
    pub(super) fn unprotected(scenario: Scenario) -> Self {
        Self {
            scenario,
            protection: None,
        }
    }

    /// `scenario`'s settings name the same transport.
    pub(super) fn protected(scenario: Scenario, transport: TransportKind) -> Self {
        Self {
            scenario,
            protection: Some(transport),
        }
    }
}

impl Arm for OwnedArm {
    fn name(&self) -> &str {
        match self.protection {
            None => "unprotected",
            Some(TransportKind::Shm) => "shm",
            Some(TransportKind::Tcp) => "tcp",
        }
    }

    fn protected(&self) -> bool {
        self.protection.is_some()
    }

    fn promise(&self) -> Option<AddedPromise> {
        Some(match self.protection? {
            TransportKind::Shm => AddedPromise::Microseconds(SHM_LIMIT_US),
            TransportKind::Tcp => AddedPromise::RoundTrips(TCP_LIMIT),
        })
    }

    fn start(&mut self, warm_up: Duration) -> Result<Box<dyn Running + '_>, ArmError> {
        let machine = match self.protection {
            None => Machine::Alone(self.scenario.unprotected(Host::A, warm_up)?),
            Some(_) => Machine::Protected(Box::new(self.scenario.pair(Host::A, warm_up)?)),
        };
        Ok(Box::new(Started {
            scenario: &self.scenario,
            machine,
        }))
    }
}

enum Machine {
    Alone(Process),
    Protected(Box<Pair>),
}

struct Started<'a> {
    scenario: &'a Scenario,
    machine: Machine,
}

impl Running for Started<'_> {
    fn client(&self, load: &LoadConfig) -> Result<Load, ArmError> {
        let config = LoadConfig {
            target: self.scenario.target(),
            ..load.clone()
        };
        Ok(self.scenario.connect(config)?)
    }

    fn stop(self: Box<Self>) -> Result<StageHistograms, ArmError> {
        let report: RunReport = match self.machine {
            Machine::Alone(process) => self.scenario.end(process)?,
            Machine::Protected(pair) => self.scenario.end_pair(*pair)?.0,
        };
        Ok(report.stages)
    }
}

/// The bare round trip of the logging network of `link`, from host to host, each on its own core as
/// their machines are. Left to the scheduler, both ends come to share a core: then a wake-up costs a
/// context switch there, and not what it costs between two hosts.
pub(super) fn round_trip(
    link: &Scenario,
    waiting: Waiting,
    interval: Duration,
    length: Duration,
) -> Result<LatencyHistogram, ArmError> {
    let topology = link.topology();
    let server = topology
        .host_b
        .run(|| Server::bind((LOG_ADDRESS_B, 0).into()))
        .map_err(ScenarioError::from)??;
    let address = server.address()?;
    let (core_a, core_b) = (link.core_of(Host::A), link.core_of(Host::B));
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            place(core_b);
            server.serve(waiting)
        });
        let played = topology
            .host_a
            .run(|| {
                place(core_a);
                Client::connect(address, waiting)?.play_every(interval, length)
            })
            .map_err(ScenarioError::from)?;
        match serving.join() {
            Ok(served) => served.map(drop)?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(played?)
    })
}

fn place(core: i32) {
    if let pin::Placement::Refused { why, .. } = pin::place(core) {
        tracing::warn!(%why, "an end of the ping-pong is not pinned");
    }
}
