//! What became of the acknowledged writes, whatever was written and where.

/// Examples that are kept.
const EXAMPLES: usize = 8;

/// What became of the acknowledged writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Verification {
    /// Keys (in a database: transactions) looked for again.
    pub keys: u64,
    /// Writes that had been acknowledged to this client.
    pub acknowledged_writes: u64,
    /// Of those, how many the server no longer knows: acknowledged writes later than the one it shows,
    /// acknowledged increments missing from a counter, acknowledged transactions that are not there.
    pub lost_writes: u64,
    /// Keys with a value that nobody wrote, a counter above everything asked for, a transaction that is
    /// there in part, or twice.
    pub corrupt_keys: u64,
    /// Keys that could not be read: nothing is known about them.
    pub unread_keys: u64,
    /// The first few of what is wrong, in words.
    pub examples: Vec<String>,
}

impl Verification {
    /// Whether every acknowledged write was found again.
    #[must_use]
    pub fn passed(&self) -> bool {
        (self.lost_writes, self.corrupt_keys, self.unread_keys) == (0, 0, 0)
    }

    pub(crate) fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text());
        }
    }
}
