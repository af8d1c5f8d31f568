//! The primary's end: decides what is compared, and sends what differs.

use std::collections::VecDeque;

use xxhash_rust::xxh3::xxh3_128;
use zerocopy::little_endian::{U64, U128};

use super::{Line, ResyncError, ResyncProgress};
use crate::ft::disk::copy::{ChunkMap, CopyState, PairingId, Plan, Record, Standing, decide};
use crate::ft::disk::resync::{
    BATCH_BLOCKS, BATCHES_AHEAD, BLOCK_BYTES, BlockDigest, Frame, blocks_to_compare,
};
use crate::host::disk::CopyFile;

/// Makes the backup's copies equal to `copies`, this side's, and writes down on both that they are, as `pairing`.
/// `shown` is told now and then how far it is.
///
/// # Errors
/// The copies are not equal. The backup's record says that its are incomplete if any of it was written.
pub(in crate::run) fn serve(
    line: &mut Line,
    copies: &mut [CopyFile],
    pairing: PairingId,
    shown: &mut dyn FnMut(ResyncProgress),
) -> Result<ResyncProgress, ResyncError> {
    let (plans, theirs) = agree(line, copies)?;
    line.send(&Frame::Plans(plans.clone()))?;
    let mut progress = ResyncProgress::default();
    let blocks: Vec<Vec<u64>> = (copies.iter().zip(&plans).zip(&theirs))
        .map(|((copy, plan), theirs)| to_compare(copy, plan, theirs.as_ref()))
        .collect();
    progress.to_compare = blocks.iter().map(|blocks| blocks.len() as u64).sum();
    let mut batches = (blocks.iter().enumerate())
        .flat_map(|(disk, blocks)| blocks.chunks(BATCH_BLOCKS).map(move |batch| (disk, batch)));
    let mut sender = Sender {
        line,
        copies,
        unanswered: VecDeque::new(),
        buffer: vec![0; BLOCK_BYTES],
    };
    loop {
        while sender.unanswered.len() < BATCHES_AHEAD
            && let Some((disk, batch)) = batches.next()
        {
            sender.offer(disk, batch)?;
        }
        let Some((compared, differed)) = sender.answer()? else {
            break;
        };
        progress.compared += compared;
        progress.differed += differed;
        shown(progress);
        sender.line.check_stop()?;
    }
    line.send(&Frame::Finish(pairing))?;
    match line.receive()? {
        Frame::Finished(found) if found == pairing => {}
        other => {
            return Err(ResyncError::OutOfTurn {
                found: other.name(),
                expected: "finished, with this pairing's number",
            });
        }
    }
    // The backup has written down that both are equal. If this side does not come to it, they are compared in full.
    for copy in copies {
        copy.replace(Record::new(pairing, Standing::Led, copy.bytes()))?;
        copy.forget_cache();
    }
    Ok(progress)
}

/// Hears what the backup knows, and decides. The refused one is told so.
fn agree(
    line: &mut Line,
    copies: &mut [CopyFile],
) -> Result<(Vec<Plan>, Vec<Option<ChunkMap>>), ResyncError> {
    let state = match line.receive()? {
        Frame::State(state) => state,
        other => {
            return Err(ResyncError::OutOfTurn {
                found: other.name(),
                expected: "state",
            });
        }
    };
    let mut maps = Vec::with_capacity(copies.len());
    for (index, (copy, state)) in copies.iter().zip(&state.copies).enumerate() {
        let known = matches!(state, CopyState::Known { .. });
        maps.push(match known {
            true => Some(hear_map(line, index, copy.bytes())?),
            false => None,
        });
    }
    let mut ours = Vec::with_capacity(copies.len());
    for copy in copies.iter_mut() {
        ours.push(match copy.record() {
            Some(_) => copy.state()?,
            // Whatever it holds is the truth.
            None => CopyState::Unknown,
        });
    }
    // Everything that it says first has been heard: a connection that is closed before may lose the answer.
    match decide(&ours, &state.copies, state.overwrite) {
        Ok(plans) => Ok((plans, maps)),
        Err(refusal) => {
            line.send(&Frame::Refusal(refusal))?;
            Err(ResyncError::Refused(refusal))
        }
    }
}

fn hear_map(line: &mut Line, index: usize, disk_bytes: u64) -> Result<ChunkMap, ResyncError> {
    match line.receive()? {
        Frame::Map { disk, bits } if usize::from(disk) == index => {
            let expected = ChunkMap::new(disk_bytes).to_bytes().len();
            ChunkMap::from_bytes(disk_bytes, &bits).ok_or(ResyncError::Length {
                what: "a bitmap",
                found: bits.len(),
                expected,
            })
        }
        other => Err(ResyncError::OutOfTurn {
            found: other.name(),
            expected: "map of the next disk",
        }),
    }
}

fn to_compare(copy: &CopyFile, plan: &Plan, theirs: Option<&ChunkMap>) -> Vec<u64> {
    let ours = copy.record().map(|record| record.map.clone());
    let ours = ours.unwrap_or_else(|| ChunkMap::new(copy.bytes()));
    blocks_to_compare(plan.scope, &ours, theirs).collect()
}

/// Offers batches and sends what the backup wants of them.
struct Sender<'a> {
    line: &'a mut Line,
    copies: &'a mut [CopyFile],
    /// Batches on their way, oldest first.
    unanswered: VecDeque<(usize, Vec<u64>)>,
    buffer: Vec<u8>,
}

impl Sender<'_> {
    fn offer(&mut self, disk: usize, batch: &[u64]) -> Result<(), ResyncError> {
        let mut digests = Vec::with_capacity(batch.len());
        for block in batch {
            let bytes = self.copies[disk].read_block(*block, &mut self.buffer)?;
            digests.push(BlockDigest {
                block: U64::new(*block),
                digest: U128::new(xxh3_128(bytes)),
            });
        }
        self.unanswered.push_back((disk, batch.to_vec()));
        let disk = disk as u8;
        self.line.send(&Frame::Digests { disk, digests })
    }

    /// Hears the answer to the oldest batch, and sends what differs: how many blocks were compared, and differed.
    /// `None`: no batch is unanswered.
    fn answer(&mut self) -> Result<Option<(u64, u64)>, ResyncError> {
        let Some((disk, batch)) = self.unanswered.pop_front() else {
            return Ok(None);
        };
        let wanted = match self.line.receive()? {
            Frame::Differ {
                disk: found,
                blocks,
            } if usize::from(found) == disk => blocks,
            other => {
                return Err(ResyncError::OutOfTurn {
                    found: other.name(),
                    expected: "differ, for the oldest batch",
                });
            }
        };
        let mut offered = batch.iter();
        for block in &wanted {
            // In the batch's order, each once.
            if !offered.any(|one| one == block) {
                return Err(ResyncError::Block {
                    found: *block,
                    expected: "one of the batch, in its order".to_owned(),
                });
            }
            let bytes = self.copies[disk].read_block(*block, &mut self.buffer)?;
            let (disk, block) = (disk as u8, *block);
            let frame = if bytes.iter().all(|byte| *byte == 0) {
                Frame::Zeros { disk, block }
            } else {
                let bytes = bytes.to_vec();
                Frame::Data { disk, block, bytes }
            };
            self.line.send(&frame)?;
        }
        Ok(Some((batch.len() as u64, wanted.len() as u64)))
    }
}
