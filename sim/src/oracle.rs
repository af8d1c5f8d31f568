//! Knows everything, from outside: checks the rules that no single replica can.

use lockstep_logchan::entry::Sequence;

use crate::plan::Side;
use crate::violation::Rule;

/// A rule that was broken, and how.
pub type Broken = (Rule, String);

/// What is known of the run so far.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Digest of the primary's whole state after each entry, from entry 1.
    after: Vec<u64>,
    /// The last entry that the backup has, or will have even if the primary dies now.
    held: Sequence,
    /// Who has gone on without the other.
    live: [bool; 2],
    /// Outputs that left the primary, in order.
    released: Vec<Vec<u8>>,
    /// The entry of the last of them that waited for an acknowledgement.
    released_entry: Sequence,
    /// The primary was stopped when the backup went live, and has been continued.
    overtaken: bool,
    /// Where the backup's life as the only one began.
    went_live_at: Option<Sequence>,
    /// Outputs that the machine has said on the backup and that have left it.
    sent_by_backup: u64,
    /// Number of the first output that the backup sends, and how many there are to be sent again.
    resent_from: u64,
}

impl Oracle {
    /// The primary has written entries up to `last`; its state after them is `digest`.
    pub fn recorded(&mut self, last: Sequence, digest: u64) {
        self.after.resize(last.0 as usize, digest);
    }

    /// The last entry written.
    #[must_use]
    pub fn last_recorded(&self) -> Sequence {
        Sequence(self.after.len() as u64)
    }

    /// The backup's state after entry `replayed` is `digest`.
    ///
    /// # Errors
    /// The primary's was another.
    pub fn replayed(&self, replayed: Sequence, digest: u64) -> Result<(), Broken> {
        match self.after.get((replayed.0 as usize).wrapping_sub(1)) {
            None if replayed == Sequence::NONE => Ok(()),
            Some(expected) if *expected == digest => Ok(()),
            found => Err((
                Rule::SameState,
                format!("after entry {replayed}: primary {found:x?}, backup {digest:#x}"),
            )),
        }
    }

    /// The backup has the log up to `sequence` for good.
    pub fn held(&mut self, sequence: Sequence) {
        self.held = self.held.max(sequence);
    }

    /// An output left the primary. `entry` recorded it, `alone` says that it waited for nobody.
    ///
    /// # Errors
    /// It should have waited.
    pub fn primary_sent(
        &mut self,
        entry: Sequence,
        alone: bool,
        bytes: &[u8],
    ) -> Result<(), Broken> {
        self.released.push(bytes.to_vec());
        if alone {
            return Ok(());
        }
        self.released_entry = self.released_entry.max(entry);
        if self.overtaken {
            let why = format!("the output of entry {entry} left after the backup had gone live");
            return Err((Rule::OneLive, why));
        }
        if entry > self.held {
            let held = self.held;
            let why = format!("the output of entry {entry} left, the backup has up to {held}");
            return Err((Rule::OutputRule, why));
        }
        self.nothing_beyond_the_takeover()
    }

    /// What the old primary released must be part of what the new one went on from, whenever it was
    /// released.
    fn nothing_beyond_the_takeover(&self) -> Result<(), Broken> {
        match self.went_live_at {
            Some(end) if self.released_entry > end => {
                let entry = self.released_entry;
                let why = format!(
                    "the primary released the output of entry {entry}, the backup went live at {end}"
                );
                Err((Rule::OutputRule, why))
            }
            _ => Ok(()),
        }
    }

    /// The primary goes on after it was stopped for longer than half of what counts as silence.
    pub const fn primary_continued(&mut self) {
        self.overtaken |= self.went_live_at.is_some();
    }

    /// `side` goes on without the other.
    ///
    /// # Errors
    /// The other does, or did, too.
    pub fn went_live(&mut self, side: Side) -> Result<(), Broken> {
        self.live[side.index()] = true;
        if self.live == [true; 2] {
            return Err((
                Rule::OneLive,
                format!("{side:?} went live, and the other had"),
            ));
        }
        Ok(())
    }

    /// The backup went live behind entry `at`, having said `said` outputs, of which it sends the
    /// last `resent` again.
    ///
    /// # Errors
    /// The world has seen more, or will not see something.
    pub fn took_over(&mut self, at: Sequence, said: u64, resent: u64) -> Result<(), Broken> {
        self.went_live_at = Some(at);
        self.resent_from = said - resent;
        self.nothing_beyond_the_takeover()?;
        let left = self.released.len() as u64;
        if self.resent_from > left {
            let first = self.resent_from;
            let why =
                format!("{left} outputs had left, and the backup begins behind the {first}th");
            return Err((Rule::NothingMissing, why));
        }
        Ok(())
    }

    /// Whether the next output of the backup is one that the primary had sent too.
    #[must_use]
    pub const fn sent_before(&self) -> bool {
        self.resent_from + self.sent_by_backup < self.released.len() as u64
    }

    /// An output left the backup after it went live.
    ///
    /// # Errors
    /// The old primary had said something else in its place.
    pub fn backup_sent(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let number = self.resent_from + self.sent_by_backup;
        self.sent_by_backup += 1;
        match self.released.get(number as usize) {
            Some(earlier) if earlier != bytes => {
                let why = format!(
                    "output {}: the primary sent {earlier:x?}, the backup {bytes:x?}",
                    number + 1
                );
                Err((Rule::SameState, why))
            }
            _ => Ok(()),
        }
    }

    /// Which side went on alone, if any.
    #[must_use]
    pub fn live(&self) -> Option<Side> {
        match self.live {
            [true, _] => Some(Side::Primary),
            [_, true] => Some(Side::Backup),
            _ => None,
        }
    }
}
