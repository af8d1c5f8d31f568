//! Two replicas in one process, from a seed.
//!
//! A run drives exactly the code that ships: the roles, recorder, replayer, output gate, failure
//! detector and arbitration of `lockstep_vmm::ft`; entries, acknowledgements, credit and heartbeats
//! of `lockstep_logchan`; the log ring of `lockstep_ringbuf`. Simulated are the machine ([`guest`]), its clients
//! ([`clients`]), time, the networks, the arbiter's storage ([`mod@env`]) and the threads that drive the
//! roles ([`replica`]). Everything that happens follows from the seed, so a failure replays.
//!
//! # The fault model
//!
//! **What must be survived**, without a client noticing more than a delay: the loss of any *one*
//! replica, at any moment, by any of
//! - its process being killed (its kernel closes its connections), at any step: an entry reserved and
//!   not committed, committed and not sent, sent and not acknowledged; an output put on the wire and
//!   not accounted for;
//! - its host losing power (nobody says good-bye);
//! - a wrong suspicion: the process is stopped for a while and goes on, the network between the
//!   replicas is cut in one direction or both, or loses heartbeats. One of the two is then lost by
//!   the arbiter's verdict, although it is well.
//!
//! Around that, for as long as it likes: the network between the replicas delays, drops, duplicates,
//! reorders and damages messages; so does the one to the clients; the storage is slow, out of reach
//! of one side, loses requests, loses answers after it did what was asked, or never answers.
//!
//! **What need not be survived**: the loss of both replicas. That includes the loss of the side that
//! holds the arbiter's flag, also when it died before it learned that it had won: the other side
//! must not go on, and nobody does. Then only safety is asked for. Not modelled are Byzantine
//! replicas, storage that forgets or contradicts itself, and the same bug on both sides.
//!
//! On shared memory (two processes of one host, a commit is the acknowledgement) the host's own loss
//! need not be survived, and there is no network to be cut.
//!
//! # What is checked, after every step
//!
//! 1. No output leaves before the backup has the entry that records it; nothing that the old primary
//!    ever released is missing from what the new one went on from.
//! 2. Never are both sides live.
//! 3. What a client saw acknowledged is there ever after: histories are linearizable.
//! 4. The backup's whole state after each entry equals the primary's after that entry; what both
//!    sent is equal.
//! 5. After a failover no output is missing.
//! 6. Once faults end, every client is served, unless both sides were lost; a side that lost has
//!    halted.
//!
//! That these checks can fail is shown by [`Sabotage`]: mistakes in using the shipping code, each of
//! which must be caught.

pub mod clients;
pub mod disk;
pub mod env;
pub mod guest;
mod machine;
mod options;
pub mod oracle;
mod plan;
pub mod replica;
mod rng;
mod sabotage;
mod violation;
pub mod wire;
mod world;

pub use env::Counts;
pub use options::Options;
pub use plan::Side;
pub use sabotage::Sabotage;
pub use violation::{Rule, Violation};
pub use world::Outcome;

use lockstep_ringbuf::RingError;

/// A run could not be carried out, or broke a rule.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A rule was broken.
    #[error(transparent)]
    Broken(#[from] Violation),
    /// The host has no memory for the rings.
    #[error("cannot simulate: {0}")]
    Host(#[from] RingError),
}

/// Runs `seed`.
///
/// # Errors
/// A rule was broken: the message says which, and how to replay the run.
pub fn run(seed: u64, options: Options) -> Result<Outcome, Failure> {
    let world = world::World::new(seed, options)?;
    world.run().map_err(|(at, (rule, detail))| {
        Violation {
            seed,
            at,
            rule,
            detail,
        }
        .into()
    })
}
