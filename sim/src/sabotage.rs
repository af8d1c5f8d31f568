//! Mistakes that a driver of the roles could make, to show that the checks notice them.

/// A mistake. The code that ships is the same in every run; these are mistakes in *using* it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sabotage {
    /// None.
    #[default]
    None,
    /// The primary releases outputs as soon as they are recorded.
    ReleaseEarly,
    /// A backup that is going live goes on acknowledging (`Link`), or leaves the ring unsealed
    /// (`Shared`).
    NoSeal,
    /// The primary takes a commit for acknowledged without asking whether the ring is sealed.
    SealNotAsked,
    /// The backup goes live without asking the arbiter.
    BackupDoesNotAsk,
    /// The primary goes on alone without asking the arbiter.
    PrimaryDoesNotAsk,
    /// The primary releases what it holds while the arbiter decides.
    ReleaseWhileArbitrating,
    /// The backup acknowledges an entry that it lost on the way into its ring.
    AcknowledgeUnstored,
    /// The backup goes live without sending again what may never have left.
    ForgetKept,
    /// The backup runs on past the last entry while it waits for the next one.
    RunAhead,
    /// The backup goes live with a part of the log unread.
    NotDrained,
    /// The primary hands the guest an event past the recorder.
    Unrecorded,
    /// A side asks the arbiter once, and not again when no answer comes.
    AskOnce,
    /// A primary that was stopped goes on releasing what had been acknowledged before.
    NoFence,
}

impl Sabotage {
    /// Every mistake.
    pub const ALL: [Self; 13] = [
        Self::ReleaseEarly,
        Self::NoSeal,
        Self::SealNotAsked,
        Self::BackupDoesNotAsk,
        Self::PrimaryDoesNotAsk,
        Self::ReleaseWhileArbitrating,
        Self::AcknowledgeUnstored,
        Self::ForgetKept,
        Self::RunAhead,
        Self::NotDrained,
        Self::Unrecorded,
        Self::AskOnce,
        Self::NoFence,
    ];
}

impl std::str::FromStr for Sabotage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|one| format!("{one:?}") == text);
        known.ok_or_else(|| format!("found sabotage {text:?}, expected one of {:?}", Self::ALL))
    }
}
