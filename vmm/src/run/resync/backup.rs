//! The backup's end: says what it has otherwise, and takes it.

use std::collections::VecDeque;

use xxhash_rust::xxh3::xxh3_128;

use super::{Line, ResyncError, ResyncProgress, SYNC_EVERY};
use crate::ft::disk::copy::{CopyRefusal, CopyState, PairingId, Plan, Record, Scope, Standing};
use crate::ft::disk::resync::{BLOCK_BYTES, BackupState, BlockDigest, Frame};
use crate::host::disk::CopyFile;

/// Makes `copies`, this side's, equal to the primary's, and writes down that they are. `states` is what is known of
/// them; `overwrite` says that what they hold is not wanted; `shown` is told now and then how far it is.
///
/// # Errors
/// The copies are not equal. Their records say that they are incomplete if any of them was written.
pub(in crate::run) fn join(
    line: &mut Line,
    copies: &mut [CopyFile],
    states: Vec<CopyState>,
    overwrite: bool,
    shown: &mut dyn FnMut(ResyncProgress),
) -> Result<ResyncProgress, ResyncError> {
    let state = BackupState {
        overwrite,
        copies: states,
    };
    line.send(&Frame::State(state))?;
    for (disk, copy) in copies.iter().enumerate() {
        if let Some(record) = copy.record() {
            let bits = record.map.to_bytes();
            let disk = disk as u8;
            line.send(&Frame::Map { disk, bits })?;
        }
    }
    let plans = match line.receive()? {
        Frame::Plans(plans) if plans.len() == copies.len() => plans,
        other => {
            return Err(ResyncError::OutOfTurn {
                found: other.name(),
                expected: "plans, one for each disk",
            });
        }
    };
    let mut taker = Taker {
        line,
        copies,
        plans,
        wanted: VecDeque::new(),
        buffer: vec![0; BLOCK_BYTES],
        unsynced: 0,
        filling: false,
        progress: ResyncProgress::default(),
    };
    let pairing = loop {
        match taker.line.receive()? {
            Frame::Digests { disk, digests } => taker.compare(disk, &digests)?,
            Frame::Data { disk, block, bytes } => taker.take(disk, block, Some(&bytes))?,
            Frame::Zeros { disk, block } => taker.take(disk, block, None)?,
            Frame::Finish(pairing) => break pairing,
            other => {
                return Err(ResyncError::OutOfTurn {
                    found: other.name(),
                    expected: "digests, data, zeros or finish",
                });
            }
        }
        shown(taker.progress);
    };
    let progress = taker.finish(pairing)?;
    line.send(&Frame::Finished(pairing))?;
    Ok(progress)
}

/// Takes what differs.
struct Taker<'a> {
    line: &'a mut Line,
    copies: &'a mut [CopyFile],
    plans: Vec<Plan>,
    /// Blocks that are on their way, oldest first. At most those of the batches that the primary sends ahead.
    wanted: VecDeque<(u8, u64)>,
    buffer: Vec<u8>,
    /// Bytes written since the disks were last made durable.
    unsynced: u64,
    /// The records say that the copies are incomplete.
    filling: bool,
    progress: ResyncProgress,
}

impl Taker<'_> {
    fn compare(&mut self, disk: u8, digests: &[BlockDigest]) -> Result<(), ResyncError> {
        let expected = self.copies.len();
        let Some(copy) = self.copies.get_mut(usize::from(disk)) else {
            return Err(ResyncError::Disk {
                found: disk,
                expected,
            });
        };
        let mut blocks = Vec::new();
        for one in digests {
            let block = one.block.get();
            if block >= crate::ft::disk::resync::blocks_of(copy.bytes()) {
                return Err(ResyncError::Block {
                    found: block,
                    expected: format!("one of a disk of {} bytes", copy.bytes()),
                });
            }
            let bytes = copy.read_block(block, &mut self.buffer)?;
            if xxh3_128(bytes) != one.digest.get() {
                blocks.push(block);
            }
        }
        self.progress.compared += digests.len() as u64;
        self.progress.differed += blocks.len() as u64;
        if let Some(first) = blocks.first()
            && !self.plans[usize::from(disk)].overwrite
        {
            let refusal = CopyRefusal::NoCopy {
                disk: usize::from(disk),
                offset: first * BLOCK_BYTES as u64,
            };
            self.line.send(&Frame::Refusal(refusal))?;
            return Err(ResyncError::Refused(refusal));
        }
        self.wanted
            .extend(blocks.iter().map(|block| (disk, *block)));
        self.line.send(&Frame::Differ { disk, blocks })
    }

    /// A block has come; without bytes it is zero.
    fn take(&mut self, disk: u8, block: u64, bytes: Option<&[u8]>) -> Result<(), ResyncError> {
        let next = self.wanted.pop_front();
        if next != Some((disk, block)) {
            return Err(ResyncError::Block {
                found: block,
                expected: match next {
                    Some((disk, block)) => format!("block {block} of disk {disk}"),
                    None => "none, for none was asked for".to_owned(),
                },
            });
        }
        if !self.filling {
            // From the first write until all are equal no machine may run on them.
            for (copy, plan) in self.copies.iter_mut().zip(&self.plans) {
                begin(copy, plan.scope)?;
            }
            self.filling = true;
        }
        // Asked for, so it is there.
        let copy = &mut self.copies[usize::from(disk)];
        match bytes {
            Some(bytes) => {
                let left = copy.bytes().saturating_sub(block * BLOCK_BYTES as u64);
                let expected = left.min(BLOCK_BYTES as u64) as usize;
                if bytes.len() != expected {
                    return Err(ResyncError::Length {
                        what: "a block",
                        found: bytes.len(),
                        expected,
                    });
                }
                copy.write_block(block, bytes)?;
                self.unsynced += expected as u64;
            }
            None => copy.zero_block(block)?,
        }
        if self.unsynced >= SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), ResyncError> {
        for copy in self.copies.iter() {
            copy.sync()?;
        }
        self.unsynced = 0;
        Ok(())
    }

    fn finish(mut self, pairing: PairingId) -> Result<ResyncProgress, ResyncError> {
        if !self.wanted.is_empty() {
            return Err(ResyncError::OutOfTurn {
                found: "finish",
                expected: "the blocks that were asked for",
            });
        }
        self.sync()?;
        for copy in self.copies.iter_mut() {
            copy.replace(Record::new(pairing, Standing::Followed, copy.bytes()))?;
            copy.forget_cache();
        }
        Ok(self.progress)
    }
}

/// Writes down, durably, that `copy` is about to be made equal to another, in these chunks.
fn begin(copy: &mut CopyFile, scope: Scope) -> Result<(), ResyncError> {
    match scope {
        // Its pairing and its bits stay: with them the next attempt compares as little as this one.
        Scope::Marked => copy.stand(Standing::Filling)?,
        Scope::All => {
            // Nobody has this pairing, so the next attempt compares all, whoever then is the primary.
            let record = Record::new(PairingId(0), Standing::Filling, copy.bytes());
            copy.replace(record)?;
        }
    }
    Ok(())
}
