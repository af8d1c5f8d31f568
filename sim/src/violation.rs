//! What a run must never do.

/// The rules that are checked after every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// No output leaves before the backup has the entry that leads to it.
    OutputRule,
    /// Never are both sides live.
    OneLive,
    /// What a client saw acknowledged is there ever after, once, in order.
    Durability,
    /// The backup's state after an entry is the primary's after that entry.
    SameState,
    /// Whatever the machine said reaches the world: before or after the failover.
    NothingMissing,
    /// Once faults end, clients are served again, unless both sides were lost.
    Progress,
    /// A part that must not fail in this run failed.
    Unexpected,
}

impl Rule {
    const fn text(self) -> &'static str {
        match self {
            Self::OutputRule => "no output is released before its entry is acknowledged",
            Self::OneLive => "never are two sides live",
            Self::Durability => "what a client saw acknowledged survives",
            Self::SameState => "the backup's state equals the primary's at the same entry",
            Self::NothingMissing => "no output is missing after a failover",
            Self::Progress => "clients are served once faults have ended",
            Self::Unexpected => "nothing fails that need not",
        }
    }
}

/// A rule was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The run.
    pub seed: u64,
    /// When, in nanoseconds of simulated time.
    pub at: u64,
    /// Which rule.
    pub rule: Rule,
    /// How.
    pub detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            seed,
            at,
            rule,
            detail,
        } = self;
        writeln!(f, "seed {seed}, {} us: broken: {}", at / 1_000, rule.text())?;
        writeln!(f, "  {detail}")?;
        write!(
            f,
            "  replay: cargo run -p lockstep-sim --release -- --seed {seed} --trace"
        )
    }
}

impl std::error::Error for Violation {}
