//! Asks the arbiter from a thread of its own: shared storage may hang, and the machine's thread must
//! not hang with it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::RunError;
use super::doorbell::Doorbell;
use crate::ft::arbiter::{Answer, Claim, OutOfReach, Party};
use crate::host::arbiter_file::{ArbiterFile, Candidate, Outcome};

/// The asking side. Dropping it lets the thread end once the storage has answered.
#[derive(Debug)]
pub(super) struct ArbiterDesk {
    questions: SyncSender<()>,
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
                        return;
                    }
                }
            })
            .map_err(RunError::host("starting the arbiter's thread"))?;
        Ok(Self { questions, answers })
    }

    /// Puts the claim; nothing happens if it is being put already.
    pub fn put(&self) {
        let _ = self.questions.try_send(());
    }

    /// An answer, if one is there.
    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
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
