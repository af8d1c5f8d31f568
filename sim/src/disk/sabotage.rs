//! Mistakes that a driver could make, to show that the checks notice them.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskSabotage {
    /// None.
    #[default]
    None,
    /// The primary starts held requests as soon as they are recorded.
    StartEarly,
    /// A backup that goes live issues nothing again.
    ReissueNothing,
    /// It issues again what has ended, too.
    ReissueEnded,
    /// It lets new writes go at once to blocks that the old primary may still be writing.
    NoQuarantine,
    /// Requests start as soon as they may leave, whatever else is under way.
    NoOrder,
    /// A primary that was stopped goes on with what had been acknowledged before.
    NoFence,
    /// The primary does not keep writes off blocks that the backup still has to read.
    NotReading,
    /// The disk says that a flush is done, and does nothing.
    FlushNothing,
    /// The guest is told of the end of a request while its I/O is still under way.
    EndEarly,
    /// A backup does not wait for its own disk before it applies the end of a request.
    OwnNotAwaited,
    /// It takes no notice of the primary's reads when it writes to its own disk.
    OwnReadsIgnored,
    /// It leaves the flushes out.
    OwnNotFlushed,
    /// It goes live, and issues requests again, while they are under way on its own disk.
    OwnNotAtRest,
    /// It says that it has written to its own disk, and has not.
    OwnNotCopied,
}

impl DiskSabotage {
    /// Every mistake.
    pub const ALL: [Self; 14] = [
        Self::StartEarly,
        Self::ReissueNothing,
        Self::ReissueEnded,
        Self::NoQuarantine,
        Self::NoOrder,
        Self::NoFence,
        Self::NotReading,
        Self::FlushNothing,
        Self::EndEarly,
        Self::OwnNotAwaited,
        Self::OwnReadsIgnored,
        Self::OwnNotFlushed,
        Self::OwnNotAtRest,
        Self::OwnNotCopied,
    ];
}

impl std::str::FromStr for DiskSabotage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|one| format!("{one:?}") == text);
        known.ok_or_else(|| format!("found sabotage {text:?}, expected one of {:?}", Self::ALL))
    }
}
