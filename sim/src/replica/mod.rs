//! The two replicas: drivers of the code that ships, one step at a time.
//!
//! A driver does what the threads of the real program do, in an order that chance decides, and is
//! interrupted, stopped or killed between any two steps. A step is as small as the real program's
//! smallest indivisible deed: one entry recorded, one packet sent, one output put on the wire.

mod backup;
mod primary;

pub use backup::BackupHost;
pub use primary::PrimaryHost;

use lockstep_logchan::protocol::heartbeat::{Heartbeat, HeartbeatMonitor, HeartbeatSchedule};
use lockstep_logchan::protocol::{Role, VmId};
use lockstep_vmm::ft::arbiter::{ArbitrationSettings, Claim, Party};
use lockstep_vmm::ft::detector::DetectorSettings;
use lockstep_vmm::ft::recorder::RecorderSettings;

use crate::plan::{MS, Plan, US};

/// Time between heartbeats.
const HEARTBEAT: u64 = MS;
/// A peer silent for longer is suspected.
pub const SILENCE: u64 = 5 * MS;
/// An ordinary step takes up to this long.
const STEP: u64 = 3 * US;

const VM: VmId = VmId([7; 16]);
const GENERATION: u64 = 1;
const DETECTOR: DetectorSettings = DetectorSettings {
    silence: SILENCE,
    stall: 6 * MS,
};
const ARBITRATION: ArbitrationSettings = ArbitrationSettings { retry: 3 * MS };

fn recorder_settings(plan: &Plan) -> RecorderSettings {
    RecorderSettings {
        clock_drift: 300 * US,
        digest_interval: plan.digest_interval,
        digest_stripe: 64,
    }
}

fn claim(role: Role) -> Claim {
    Claim {
        generation: GENERATION,
        party: Party::new(role, 1),
    }
}

/// Heartbeats, both ways.
struct Pulse {
    schedule: HeartbeatSchedule,
    monitor: HeartbeatMonitor,
}

impl Pulse {
    fn new(role: Role, now: u64) -> Self {
        Self {
            schedule: HeartbeatSchedule::new(VM, GENERATION, role, HEARTBEAT, now),
            monitor: HeartbeatMonitor::new(VM, GENERATION, role.peer(), SILENCE, now),
        }
    }

    /// The peer's heartbeat, if the datagram is a new one. A damaged or late one is dropped.
    fn hear(&mut self, datagram: &[u8], now: u64) -> Option<Heartbeat> {
        self.monitor.hear(datagram, now).ok()
    }
}
