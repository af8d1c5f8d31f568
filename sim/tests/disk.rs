//! Disks under failover from seeds: a bounded part of the series, and mistakes that must be caught.

use lockstep_sim::Side;
use lockstep_sim::disk::{DiskRule, DiskSabotage, DiskViolation, run};

/// Seeds of one test: seconds in a debug build. CI's minute is `lockstep-sim --disk --count 100000`.
const SEEDS: u64 = 4_000;
/// Seeds among which a mistake has to show.
const SEEDS_OF_A_MISTAKE: u64 = 3_000;

#[test]
fn no_seed_loses_tears_or_reorders_a_write() {
    let (mut failovers, mut reissued, mut finished) = (0, 0, 0);
    for seed in 0..SEEDS {
        let outcome =
            run(seed, DiskSabotage::None, false).unwrap_or_else(|error| panic!("{error}"));
        failovers += u64::from(outcome.live == Some(Side::Backup));
        reissued += outcome.reissued;
        finished += u64::from(outcome.finished);
    }
    // The series is worth something: replicas fail over, with requests under way, and go on.
    assert!(failovers > SEEDS / 4, "{failovers} failovers");
    assert!(reissued > SEEDS as usize / 2, "{reissued} issued again");
    assert!(finished > SEEDS / 2, "{finished} finished");
}

/// The first violation that a mistake leads to.
fn caught(sabotage: DiskSabotage) -> DiskViolation {
    (0..SEEDS_OF_A_MISTAKE)
        .find_map(|seed| run(seed, sabotage, false).err())
        .unwrap_or_else(|| panic!("{sabotage:?} was not noticed in {SEEDS_OF_A_MISTAKE} seeds"))
}

#[test]
fn every_mistake_is_caught() {
    for sabotage in DiskSabotage::ALL {
        let violation = caught(sabotage);
        eprintln!("{sabotage:?}: {violation}");
    }
}

#[test]
fn a_mistake_breaks_the_rule_that_forbids_it() {
    for (sabotage, rule) in [
        (DiskSabotage::StartEarly, DiskRule::OutputRule),
        (DiskSabotage::NoFence, DiskRule::Fence),
        (DiskSabotage::FlushNothing, DiskRule::Durable),
        (DiskSabotage::NotReading, DiskRule::Equal),
        (DiskSabotage::ReissueNothing, DiskRule::Served),
        (DiskSabotage::NoQuarantine, DiskRule::Orderly),
        (DiskSabotage::OwnNotAwaited, DiskRule::Bounce),
        (DiskSabotage::OwnNotFlushed, DiskRule::Durable),
    ] {
        assert_eq!(caught(sabotage).rule, rule, "{sabotage:?}");
    }
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 0..50 {
        let one = run(seed, DiskSabotage::None, false);
        let two = run(seed, DiskSabotage::None, false);
        assert_eq!(one.ok(), two.ok());
    }
}
