//! How the disks are doing: said once for each kind of trouble, and shown in the status.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Action, remedy};
use crate::ft::disk::DiskStatus;

/// How a disk is driven, and how it is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskHealth {
    /// Its file.
    pub path: String,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// What transfers are multiples of, bytes; requests that are not are widened, one at a time.
    pub alignment: u32,
    /// Each write is made durable before it completes, asked for or not: the disk is shared, and would
    /// otherwise be in this host's memory alone.
    pub durable_writes: bool,
    /// A request has been under way for longer than
    /// [`DiskOptions::hang_after`](super::DiskOptions::hang_after).
    pub hanging: bool,
    /// Requests that ended in an error since the start, unsupported ones not counted.
    pub errors: u64,
    /// What the last of these was.
    pub last_error: Option<String>,
}

/// What was said already: a disk that fails fails often.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    said: Vec<(Action, i32)>,
}

impl Complaints {
    /// Says once that requests of this kind end with this `errno`, and what to do.
    pub(super) fn say(
        &mut self,
        path: &Path,
        action: Action,
        errno: i32,
        offset: u64,
        status: DiskStatus,
    ) {
        if self.said.contains(&(action, errno)) {
            return;
        }
        self.said.push((action, errno));
        let error = std::io::Error::from_raw_os_error(errno);
        let (disk, action, todo) = (path.display(), action.name(), remedy(errno));
        if status == DiskStatus::Unsupported {
            tracing::warn!(%disk, %error, todo, "no {action} here: the guest does without");
        } else {
            tracing::error!(
                %disk, offset, %error, todo,
                "a {action} failed, and the guest is told. More of this kind are only counted"
            );
        }
    }
}
