//! What a database must be able to do for the client that checks it.

use super::ledger::{Row, Transfer};
use std::net::SocketAddr;
use std::time::Duration;

/// Why something asked of a database was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server answered, and what it answered is that it did not.
    #[error("refused: {0}")]
    Refused(String),
    /// No answer came, or none that can be understood: the connection is of no more use. What the server was
    /// told to commit may be committed.
    #[error("lost: {0}")]
    Lost(String),
    /// The same, before the server was told to commit: nothing may be committed.
    #[error("lost before it was to be committed: {0}")]
    LostBefore(String),
}

impl Failure {
    /// No answer came in that time.
    #[must_use]
    pub fn silent(patience: Duration) -> Self {
        Self::Lost(format!("no answer for {patience:?}"))
    }

    /// Whether the connection is of no more use.
    #[must_use]
    pub const fn is_loss(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// The same, of what came before a commit.
    #[must_use]
    pub fn before_commit(self) -> Self {
        match self {
            Self::Lost(why) => Self::LostBefore(why),
            other => other,
        }
    }
}

/// Everything that the tables hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The transfers, as a scan of the table finds them.
    pub transfers: Vec<Row>,
    /// Balance of each account, by its number.
    pub balances: Vec<i64>,
}

/// A connection to a database. Every call but [`Session::open`] has an answer awaited for at most the
/// patience given there.
#[allow(
    async_fn_in_trait,
    reason = "sessions are driven by one thread: nothing needs their futures to be Send"
)]
pub trait Session: Sized {
    /// The database, for people.
    const NAME: &'static str;

    /// Connects.
    async fn open(target: SocketAddr, patience: Duration) -> Result<Self, Failure>;

    /// Makes the tables anew, with that many accounts that hold nothing.
    async fn prepare(&mut self, accounts: u32) -> Result<(), Failure>;

    /// Readies a connection for [`Session::transfer`] and the reads, once the tables are there.
    async fn begin(&mut self) -> Result<(), Failure>;

    /// One transaction: moves the amount, and enters the transfer.
    async fn transfer(&mut self, transfer: &Transfer) -> Result<(), Failure>;

    /// Whether the transfer of that number is there.
    async fn knows(&mut self, id: i64) -> Result<bool, Failure>;

    /// The sum of all balances.
    async fn sum(&mut self) -> Result<i64, Failure>;

    /// Has what is in memory alone written to where it belongs.
    async fn checkpoint(&mut self) -> Result<(), Failure>;

    /// Reads everything, without help from an index.
    async fn contents(&mut self) -> Result<Contents, Failure>;

    /// What the database's own checks complain of, and how many things they looked at.
    async fn check(&mut self) -> Result<(u64, Vec<String>), Failure>;
}
