//! Asks the arbiter from a thread of its own: shared storage may hang, and the machine's thread must
//! not hang with it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::RunError;
use super::doorbell::Doorbell;
use crate::ft::arbiter::{Answer, Claim, OutOfReach, Party};
use crate::host::arbiter_file::{ArbiterFile, Candidate, Outcome};

/// A side that ends waits this long for the storage to remove what was prepared there.
const PARTING: Duration = Duration::from_millis(500);

/// The asking side. Dropping it lets the thread end once the storage has answered, and waits a little
/// for that: what was prepared for a question that nobody puts any more is then removed.
#[derive(Debug)]
pub(super) struct ArbiterDesk {
    /// Taken only by `drop`.
    questions: Option<SyncSender<()>>,
    answers: Receiver<Answer>,
}

impl ArbiterDesk {
    /// Starts the thread of the side that has `claim`. What of it can be done before a failover it does
    /// at once; `doorbell` is rung for every answer.
    pub fn open(
        arbiter: &ArbiterFile,
        claim: &Claim,
        doorbell: Doorbell,
    ) -> Result<Self, RunError> {
        let mut candidate = arbiter.candidate(claim.generation, claim.party.name())?;
        // One question may wait while one is being put: a repeated attempt says nothing new.
        let (questions, inbox) = sync_channel(1);
        let (outbox, answers) = sync_channel(4);
        thread::Builder::new()
            .name("arbiter".into())
            .spawn(move || {
                if let Err(error) = candidate.prepare() {
                    tracing::warn!(%error, "without it, nobody goes on after a failure");
                }
                while let Ok(()) = inbox.recv() {
                    let answer = ask(&mut candidate);
                    let decided = answer.is_ok();
                    let wanted = outbox.send(answer).is_ok();
                    doorbell.ring();
                    if decided {
                        candidate.clean_up();
                    }
                    if !wanted {
                        break;
                    }
                }
                // Its file goes with it, and before the other end hears that this thread is done.
                drop(candidate);
                drop(outbox);
            })
            .map_err(RunError::host("starting the arbiter's thread"))?;
        Ok(Self {
            questions: Some(questions),
            answers,
        })
    }

    /// Puts the claim; nothing happens if it is being put already.
    pub fn put(&self) {
        if let Some(questions) = &self.questions {
            let _ = questions.try_send(());
        }
    }

    /// An answer, if one is there.
    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

impl Drop for ArbiterDesk {
    fn drop(&mut self) {
        self.questions = None;
        let end = Instant::now() + PARTING;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return,
            }
        }
    }
}

fn ask(candidate: &mut Candidate) -> Answer {
    match candidate.test_and_set() {
        Outcome::Won => Ok(Party::named(candidate.party().to_owned())),
        Outcome::Lost { by } => Ok(Party::named(by.party)),
        Outcome::OutOfReach { why } => Err(OutOfReach {
            reason: why.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_logchan::protocol::Role;

    #[test]
    fn a_side_that_ends_without_a_question_leaves_nothing_at_the_arbiter() {
        let directory = tempfile::tempdir().expect("a directory");
        let arbiter = ArbiterFile::new(directory.path(), "web").expect("a legal name");
        let claim = Claim {
            generation: 3,
            party: Party::new(Role::Primary, 1),
        };
        let files = || directory.path().read_dir().expect("readable").count();
        let doorbell = Doorbell::new().expect("a doorbell");
        let desk = ArbiterDesk::open(&arbiter, &claim, doorbell).expect("a thread");
        let start = Instant::now();
        while files() == 0 {
            assert!(start.elapsed() < Duration::from_secs(10), "not prepared");
            thread::sleep(Duration::from_millis(1));
        }
        drop(desk);
        assert_eq!(files(), 0);
    }
}
