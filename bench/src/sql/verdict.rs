//! What came of all that was asked of a database.

use crate::load::Verification;
use serde::Serialize;
use std::fmt;

/// Whether everything that was acknowledged is there, and whether the database itself is content.
#[derive(Debug, Clone, Serialize)]
pub struct SqlVerdict {
    /// The transactions.
    pub ledger: Verification,
    /// Things that the database's own checks looked at: indexes of PostgreSQL, files of SQLite.
    pub checked: u64,
    /// What they complain of.
    pub complaints: Vec<String>,
}

impl SqlVerdict {
    /// Whether every acknowledged transaction is there, every other one whole or absent, and no check
    /// complains.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.ledger.passed() && self.complaints.is_empty() && self.checked > 0
    }
}

impl fmt::Display for SqlVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ledger = &self.ledger;
        write!(
            f,
            "{} transactions, {} acknowledged: {} lost, {} things corrupt, {} unread; {} checks by the \
             database, {} complaints",
            ledger.keys,
            ledger.acknowledged_writes,
            ledger.lost_writes,
            ledger.corrupt_keys,
            ledger.unread_keys,
            self.checked,
            self.complaints.len()
        )?;
        for text in ledger.examples.iter().chain(&self.complaints) {
            write!(f, "\n  {text}")?;
        }
        Ok(())
    }
}
