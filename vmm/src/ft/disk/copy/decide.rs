//! Whose copy is the later one, and what is to be compared.

use serde::{Deserialize, Serialize};

use super::record::{PairingId, Standing};

/// What one side knows of its copy of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum CopyState {
    /// It has a record.
    Known {
        /// Of its last pairing.
        pairing: PairingId,
        /// Since then.
        standing: Standing,
        /// Whether nothing was written since then.
        clean: bool,
    },
    /// It has none, and holds nothing but zeros.
    Blank,
    /// It has none, and holds something.
    Unknown,
}

impl CopyState {
    const fn pairing(self) -> Option<PairingId> {
        match self {
            Self::Known { pairing, .. } => Some(pairing),
            Self::Blank | Self::Unknown => None,
        }
    }
}

/// Which chunks are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Those that one of the two bitmaps has.
    Marked,
    /// All.
    All,
}

/// What is done with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Plan {
    /// Which chunks are compared.
    pub scope: Scope,
    /// Whether the backup takes what differs. If not, a difference ends the resync before anything is written.
    pub overwrite: bool,
}

/// Two copies that are not to be made equal, for what the backup has may be wanted. In its own words to the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "copy")]
pub enum CopyRefusal {
    /// The backup's is the later one.
    #[error(
        "disk {disk}: the copy of the primary ({primary} since their pairing) is older than the backup's ({backup}): \
         start the primary on the other host. (To give up what the backup has: delete its copy record, and start it \
         with --overwrite-disk)"
    )]
    Stale {
        /// Which disk.
        disk: usize,
        /// How the primary's side stood.
        primary: Standing,
        /// How the backup's did.
        backup: Standing,
    },
    /// Neither is older than the other: both went on alone, or one record is a copy of the other.
    #[error(
        "disk {disk}: both sides' copies say `{standing}` since their pairing, so each may hold what the other has \
         not: choose the one to be kept and start its host as the primary; on the other delete the copy record, and \
         start it with --overwrite-disk"
    )]
    Split {
        /// Which disk.
        disk: usize,
        /// How both stood.
        standing: Standing,
    },
    /// The backup's copy was written in another pairing.
    #[error(
        "disk {disk}: the backup's copy ({standing}) was written in pairing {backup}, and the primary's is of \
         {}: start the backup with --overwrite-disk if what it has is not wanted any more",
        match primary { Some(pairing) => pairing.to_string(), None => "none".to_owned() }
    )]
    Elsewhere {
        /// Which disk.
        disk: usize,
        /// The pairing of the primary's copy.
        primary: Option<PairingId>,
        /// Of the backup's.
        backup: PairingId,
        /// How the backup stood in it.
        standing: Standing,
    },
    /// The backup's copy has no record, is not blank, and differs.
    #[error(
        "disk {disk}: what the backup has on it differs from byte {offset} on, and no record says that it is a copy: \
         start the backup with --overwrite-disk if it is not wanted, or name another file"
    )]
    NoCopy {
        /// Which disk.
        disk: usize,
        /// Where the first block that differs begins.
        offset: u64,
    },
    /// The two sides have not the same number of disks of their own: the hellos should have said so.
    #[error("the backup has {backup} disks of its own, expected {primary}")]
    Count {
        /// The primary's.
        primary: usize,
        /// The backup's.
        backup: usize,
    },
}

/// Decides for every disk of a VM what is to be compared. `overwrite`: the operator has said that what the backup's
/// disks hold is not wanted.
///
/// A side stood alike with all its disks; where a crash fell between the records of two, the later word counts for
/// all of the same pairing.
///
/// # Errors
/// What the backup has may be wanted.
pub fn decide(
    primary: &[CopyState],
    backup: &[CopyState],
    overwrite: bool,
) -> Result<Vec<Plan>, CopyRefusal> {
    if primary.len() != backup.len() {
        return Err(CopyRefusal::Count {
            primary: primary.len(),
            backup: backup.len(),
        });
    }
    let disks = primary.iter().zip(backup).enumerate();
    disks
        .map(|(disk, (of_primary, of_backup))| {
            let all = |overwrite| Plan {
                scope: Scope::All,
                overwrite,
            };
            let (pairing, standing, clean) = match *of_backup {
                CopyState::Blank => return Ok(all(true)),
                CopyState::Unknown => return Ok(all(overwrite)),
                CopyState::Known {
                    pairing,
                    standing,
                    clean,
                } => (pairing, standing, clean),
            };
            if of_primary.pairing() == Some(pairing) {
                compare(disk, stood(primary, pairing), stood(backup, pairing))?;
                return Ok(Plan {
                    scope: Scope::Marked,
                    overwrite: true,
                });
            }
            // Unfinished, or equal to what its primary had at a pairing that this primary does not know of: it ended
            // before it could write that down.
            let worthless =
                standing == Standing::Filling || (standing == Standing::Followed && clean);
            if worthless || overwrite {
                return Ok(all(true));
            }
            Err(CopyRefusal::Elsewhere {
                disk,
                primary: of_primary.pairing(),
                backup: pairing,
                standing,
            })
        })
        .collect()
}

/// How a side stood since `pairing`.
fn stood(side: &[CopyState], pairing: PairingId) -> Standing {
    let of_pairing = side.iter().filter_map(|state| match *state {
        CopyState::Known {
            pairing: found,
            standing,
            ..
        } if found == pairing => Some(standing),
        _ => None,
    });
    of_pairing.max().unwrap_or(Standing::Filling)
}

/// Since the same pairing: the side that went on alone is the later one, then the primary.
const fn compare(disk: usize, primary: Standing, backup: Standing) -> Result<(), CopyRefusal> {
    match (primary, backup) {
        (_, Standing::Filling)
        | (Standing::Led | Standing::Alone, Standing::Followed)
        | (Standing::Alone, Standing::Led) => Ok(()),
        (Standing::Followed, Standing::Followed)
        | (Standing::Led, Standing::Led)
        | (Standing::Alone, Standing::Alone) => Err(CopyRefusal::Split {
            disk,
            standing: primary,
        }),
        (Standing::Filling | Standing::Followed | Standing::Led, _) => Err(CopyRefusal::Stale {
            disk,
            primary,
            backup,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Alone, Filling, Followed, Led};

    fn known(pairing: u128, standing: Standing) -> CopyState {
        CopyState::Known {
            pairing: PairingId(pairing),
            standing,
            clean: false,
        }
    }

    fn clean(pairing: u128, standing: Standing) -> CopyState {
        CopyState::Known {
            pairing: PairingId(pairing),
            standing,
            clean: true,
        }
    }

    const MARKED: Plan = Plan {
        scope: Scope::Marked,
        overwrite: true,
    };
    const ALL: Plan = Plan {
        scope: Scope::All,
        overwrite: true,
    };
    const LOOK: Plan = Plan {
        scope: Scope::All,
        overwrite: false,
    };

    fn one(primary: CopyState, backup: CopyState, overwrite: bool) -> Result<Plan, CopyRefusal> {
        decide(&[primary], &[backup], overwrite).map(|plans| plans[0])
    }

    #[test]
    fn since_a_pairing_the_side_that_went_on_alone_is_the_later_one_then_the_primary() {
        let stale = |primary, backup| CopyRefusal::Stale {
            disk: 0,
            primary,
            backup,
        };
        let split = |standing| CopyRefusal::Split { disk: 0, standing };
        for (primary, backup, expected) in [
            (Led, Followed, Ok(MARKED)),
            (Alone, Followed, Ok(MARKED)),
            (Alone, Led, Ok(MARKED)),
            (Led, Filling, Ok(MARKED)),
            (Alone, Filling, Ok(MARKED)),
            (Followed, Filling, Ok(MARKED)),
            (Followed, Led, Err(stale(Followed, Led))),
            (Followed, Alone, Err(stale(Followed, Alone))),
            (Led, Alone, Err(stale(Led, Alone))),
            (Filling, Followed, Err(stale(Filling, Followed))),
            (Followed, Followed, Err(split(Followed))),
            (Led, Led, Err(split(Led))),
            (Alone, Alone, Err(split(Alone))),
        ] {
            // What may be lost here is not for a word on the command line alone.
            for overwrite in [false, true] {
                let found = one(known(1, primary), known(1, backup), overwrite);
                assert_eq!(found, expected, "{primary:?} {backup:?}");
            }
        }
    }

    #[test]
    fn what_is_not_known_to_be_a_copy_is_overwritten_only_when_that_was_asked_for() {
        for primary in [CopyState::Unknown, CopyState::Blank, known(1, Alone)] {
            assert_eq!(one(primary, CopyState::Blank, false), Ok(ALL));
            assert_eq!(one(primary, CopyState::Unknown, false), Ok(LOOK));
            assert_eq!(one(primary, CopyState::Unknown, true), Ok(ALL));
            for standing in [Followed, Led, Alone] {
                let refused = one(primary, known(2, standing), false);
                assert!(
                    matches!(refused, Err(CopyRefusal::Elsewhere { disk: 0, .. })),
                    "{refused:?}"
                );
                assert_eq!(one(primary, known(2, standing), true), Ok(ALL));
            }
        }
    }

    /// The backup writes its record before the primary does, which may not come to it.
    #[test]
    fn a_pairing_that_only_the_backup_knows_of_is_begun_again() {
        for primary in [CopyState::Unknown, known(1, Led), known(1, Alone)] {
            assert_eq!(one(primary, clean(2, Followed), false), Ok(ALL));
            assert_eq!(one(primary, known(2, Filling), false), Ok(ALL));
        }
    }

    #[test]
    fn the_later_word_of_a_side_counts_for_all_its_disks() {
        // The backup's host fell between the records of its two disks when it had gone live.
        let later = [known(1, Alone), known(1, Followed)];
        let former = [known(1, Led), known(1, Led)];
        assert_eq!(decide(&later, &former, false), Ok(vec![MARKED; 2]));
        assert!(matches!(
            decide(&former, &later, false),
            Err(CopyRefusal::Stale { disk: 0, .. })
        ));
        // It fell between the records of two disks that had just been made equal.
        let joined = [clean(2, Followed), known(1, Filling)];
        assert_eq!(decide(&later, &joined, false), Ok(vec![ALL, MARKED]));
    }

    #[test]
    fn other_disks_than_the_primarys_are_refused() {
        assert_eq!(
            decide(&[CopyState::Blank], &[], true),
            Err(CopyRefusal::Count {
                primary: 1,
                backup: 0
            })
        );
    }
}
