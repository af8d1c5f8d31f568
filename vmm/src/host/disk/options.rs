//! How disks are driven.

use std::time::Duration;

use crate::settings::DiskSettings;

/// Fewest and most requests that the kernel is given at a time.
pub const QUEUE_DEPTH_RANGE: std::ops::RangeInclusive<u32> = 1..=1024;

/// How the disks of a VM are driven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// Requests that the kernel has at a time, over all disks, in [`QUEUE_DEPTH_RANGE`]; further ones
    /// wait in user space.
    pub queue_depth: u32,
    /// A request that takes longer than this is a disk that hangs: said once, and shown in
    /// [`DiskHealth`](super::DiskHealth). The guest is told nothing: the request has neither
    /// succeeded nor failed.
    pub hang_after: Duration,
    /// [`Disks::read_now`](super::Disks::read_now) repeats a read that failed for this long.
    pub read_retry: Duration,
}

impl From<&DiskSettings> for DiskOptions {
    fn from(settings: &DiskSettings) -> Self {
        Self {
            queue_depth: settings.queue_depth,
            hang_after: Duration::from_millis(settings.hang_ms.into()),
            read_retry: Duration::from_millis(settings.read_retry_ms.into()),
        }
    }
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            queue_depth: 64,
            hang_after: Duration::from_secs(5),
            read_retry: Duration::from_secs(5),
        }
    }
}
