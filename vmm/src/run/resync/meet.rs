//! Where the two ends find each other: behind the hellos, before anything runs.

use std::time::Instant;

use lockstep_logchan::protocol::hello::Resync;
use lockstep_logchan::transport::connect::{self, Address, Incoming, Listener, Offer};

use super::{Line, ResyncError, SILENCE, join, serve};
use crate::ft::disk::copy::{CopyState, PairingId};
use crate::host::disk::CopyFile;
use crate::run::control::Control;
use crate::run::status::{Standing, Status};

/// How often a waiting primary looks whether it was asked to stop.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(50);

/// What both ends are given.
pub(in crate::run) struct Meeting<'a> {
    /// Whose disks they are, and of which pairing.
    pub greeting: Resync,
    /// The side's own disks, in their order; if there is none, nothing happens.
    pub copies: &'a mut [CopyFile],
    pub control: &'a Control,
    pub status: &'a Status,
}

impl Meeting<'_> {
    /// The primary's end: awaits the backup, whose hello was accepted, at the same door.
    pub fn lead(self, listener: &mut Listener) -> Result<(), ResyncError> {
        if self.copies.is_empty() {
            return Ok(());
        }
        self.status.stand(Standing::Resyncing);
        let mut drawn = [0; 16];
        let filled = rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty());
        filled.map_err(|error| ResyncError::Io(error.into()))?;
        let pairing = PairingId(u128::from_ne_bytes(drawn));
        let give_up = Instant::now() + SILENCE;
        let stream = loop {
            let offer = Offer::Resync {
                vm: &self.greeting.vm,
                generation: self.greeting.generation,
            };
            match listener.poll(offer, LOOK_EVERY)? {
                Some(Incoming::Resync(stream)) => break stream,
                Some(Incoming::Refused { peer, error }) => {
                    tracing::warn!(%peer, %error, "refused");
                }
                Some(Incoming::Paired(_) | Incoming::Lifeline(_)) | None => {}
            }
            if self.control.stop_asked() {
                return Err(ResyncError::Stopped);
            }
            if Instant::now() >= give_up {
                return Err(ResyncError::Silent);
            }
        };
        let began = Instant::now();
        let mut line = Line::new(stream, self.control.clone());
        let status = self.status;
        let done = serve(&mut line, self.copies, pairing, &mut |progress| {
            status.resync(progress);
        })?;
        status.resync(done);
        tracing::info!(
            blocks = done.compared,
            differed = done.differed,
            ms = began.elapsed().as_millis(),
            %pairing,
            "the backup's disks are equal to ours"
        );
        Ok(())
    }

    /// The backup's end. `states` is what is known of the copies.
    pub fn follow(
        self,
        address: &Address,
        states: Vec<CopyState>,
        overwrite: bool,
    ) -> Result<(), ResyncError> {
        if self.copies.is_empty() {
            return Ok(());
        }
        self.status.stand(Standing::Resyncing);
        let began = Instant::now();
        let stream = connect::resync(address, &self.greeting, SILENCE)?;
        let mut line = Line::new(stream, self.control.clone());
        let status = self.status;
        let done = join(&mut line, self.copies, states, overwrite, &mut |progress| {
            status.resync(progress);
        })?;
        status.resync(done);
        tracing::info!(
            blocks = done.compared,
            differed = done.differed,
            ms = began.elapsed().as_millis(),
            "our disks are equal to the primary's"
        );
        Ok(())
    }
}
