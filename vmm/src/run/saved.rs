//! Saved logs: written by a backup as it replays, executed again offline.

use std::path::Path;

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::file::{LogFile, LogFileWriter};
use lockstep_logchan::protocol::Role;
use lockstep_logchan::protocol::hello::Hello;

use super::{RunError, VmSpec, pair};
use crate::ft::disk::RequestId;
use crate::ft::log::{EndReason, LogBytes};
use crate::ft::replayer::{Progress, Replayer};
use crate::ft::vm::{DigestScope, Position, StateDigest, VirtualTime, Vm};

/// What a saved log came to when it was executed again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReplayReport {
    /// Digest of registers, devices, clock and all of memory at the end.
    pub digest: StateDigest,
    /// Where the machine stands at the end.
    pub position: Position,
    /// Virtual time there, nanoseconds.
    pub clock: VirtualTime,
    /// The last entry replayed.
    pub entries: u64,
    /// How the log ends; nothing where it was cut off, as by a failover.
    pub end: Option<String>,
}

/// The log was written with `--backup-reads`: what reads brought is not in it, and the disk that it came
/// from has been written since.
#[derive(Debug, thiserror::Error)]
#[error(
    "the data of read {id} from disk {disk} is not in the log, for the backup read the shared disk itself; \
     save logs of a pair that runs without --backup-reads"
)]
struct NotInLog {
    id: RequestId,
    disk: u8,
}

pub(super) fn create(path: &Path, hello: &Hello) -> Result<LogFileWriter, RunError> {
    LogFileWriter::create(path, hello).map_err(|error| RunError::Replay(Box::new(error)))
}

/// Executes the log saved in `path` on a fresh machine, with every check that a backup makes.
///
/// # Errors
/// The file is no saved log or is damaged, `vm` is not the machine that it was saved from, or the
/// replay diverges.
pub fn replay(vm: &VmSpec, path: &Path) -> Result<ReplayReport, RunError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| RunError::Replay(error);
    let file = LogFile::open(path).map_err(|error| failed(Box::new(error)))?;
    // The file's hello is a backup's; the one it is compared with plays the primary.
    let mut ours = pair::hello(vm, Role::Primary, None, file.hello().ring_bytes, &[]);
    // Whose the disks were changes nothing for a machine whose disks are done without.
    ours.configuration.remove(pair::DISK_SHARING);
    if let Some(sharing) = file.hello().configuration.get(pair::DISK_SHARING) {
        let name = pair::DISK_SHARING.to_owned();
        ours.configuration.insert(name, sharing.clone());
    }
    ours.compare(file.hello())
        .map_err(|error| failed(Box::new(error)))?;
    let mut machine = vm.build()?;
    let mut log = LogBytes::new(file.entries(), Sequence::NONE);
    let mut replayer = Replayer::new(Sequence::NONE, 0);
    let end = loop {
        match replayer.step(&mut machine, &mut log, u64::MAX) {
            // A replayer that has no disks awaits none.
            Ok(Progress::Replayed(_) | Progress::Running | Progress::AwaitDisk { .. }) => {}
            Ok(Progress::Ended(EndReason::PoweredOff)) => break Some("powered-off".to_owned()),
            Ok(Progress::Ended(EndReason::Stopped)) => break Some("stopped".to_owned()),
            Ok(Progress::Idle) => break None,
            Ok(Progress::ReadDisk { request, .. }) => {
                return Err(failed(Box::new(NotInLog {
                    id: request.id,
                    disk: request.disk,
                })));
            }
            Err(error) => return Err(failed(Box::new(error))),
        }
    };
    let digest = machine.digest(DigestScope::Full);
    Ok(ReplayReport {
        digest: digest.map_err(|error| RunError::Machine(Box::new(error)))?,
        position: machine.position(),
        clock: machine.clock(),
        entries: replayer.replayed().0,
        end,
    })
}
