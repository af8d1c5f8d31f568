//! Puts claims to the arbiter from a thread of its own: shared storage may hang, and the machine's
//! thread must not hang with it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::doorbell::Doorbell;
use crate::ft::arbiter::{Answer, Claim, OutOfReach, Party};
use crate::host::arbiter_file::{ArbiterFile, Outcome};

/// The asking side. Dropping it lets the thread end once the storage has answered.
#[derive(Debug)]
pub(super) struct ArbiterDesk {
    claims: SyncSender<Claim>,
    answers: Receiver<Answer>,
}

impl ArbiterDesk {
    /// Starts the thread; `doorbell` is rung for every answer.
    pub fn open(arbiter: ArbiterFile, doorbell: Doorbell) -> std::io::Result<Self> {
        // One claim may wait while one is being put: a repeated attempt says nothing new.
        let (claims, inbox) = sync_channel::<Claim>(1);
        let (outbox, answers) = sync_channel(4);
        thread::Builder::new()
            .name("arbiter".into())
            .spawn(move || {
                while let Ok(claim) = inbox.recv() {
                    let answer = ask(&arbiter, &claim);
                    if outbox.send(answer).is_err() {
                        return;
                    }
                    doorbell.ring();
                }
            })?;
        Ok(Self { claims, answers })
    }

    /// Puts `claim`; nothing happens if one is waiting already.
    pub fn put(&self, claim: Claim) {
        let _ = self.claims.try_send(claim);
    }

    /// An answer, if one is there.
    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

fn ask(arbiter: &ArbiterFile, claim: &Claim) -> Answer {
    match arbiter.test_and_set(claim.generation, claim.party.name()) {
        Outcome::Won => Ok(claim.party.clone()),
        Outcome::Lost { by } => Ok(Party::named(by.party)),
        Outcome::OutOfReach { why } => Err(OutOfReach {
            reason: why.to_string(),
        }),
    }
}
