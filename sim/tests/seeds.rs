//! Ten thousand runs, and the proof that the checks would notice.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_sim::{Counts, Failure, Options, Outcome, Rule, Sabotage, Side, run};

/// Runs `seeds` on every core; returns the outcomes in any order, and the failures.
fn run_all(seeds: std::ops::Range<u64>, options: Options) -> (Vec<Outcome>, Vec<Failure>) {
    let next = AtomicU64::new(seeds.start);
    let results = Mutex::new((Vec::new(), Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let (mut outcomes, mut failures) = (Vec::new(), Vec::new());
                // Relaxed: only the number matters; joining the scope orders the results.
                let draw = || next.fetch_add(1, Ordering::Relaxed);
                for seed in std::iter::from_fn(|| Some(draw()).filter(|seed| seeds.contains(seed)))
                {
                    match run(seed, options) {
                        Ok(outcome) => outcomes.push(outcome),
                        Err(failure) => failures.push(failure),
                    }
                }
                if let Ok(mut results) = results.lock() {
                    results.0.extend(outcomes);
                    results.1.extend(failures);
                }
            });
        }
    });
    results.into_inner().unwrap()
}

#[test]
fn ten_thousand_seeds_break_no_rule() {
    let (outcomes, failures) = run_all(0..10_000, Options::default());
    for failure in failures.iter().take(5) {
        eprintln!("{failure}");
    }
    assert!(
        failures.is_empty(),
        "{} of 10000 seeds broke a rule; the first are above",
        failures.len()
    );

    // The runs must have been worth something: everything that they are there to provoke happened.
    let mut counts = Counts::default();
    outcomes
        .iter()
        .for_each(|outcome| counts.add(&outcome.counts));
    let went_live = |side| {
        outcomes
            .iter()
            .filter(|outcome| outcome.live == Some(side))
            .count()
    };
    let lost = outcomes.iter().filter(|outcome| !outcome.served).count();
    let undisturbed = outcomes
        .iter()
        .filter(|outcome| outcome.live.is_none())
        .count();
    let answered: usize = outcomes.iter().map(|outcome| outcome.answered).sum();
    println!(
        "backup live {}, primary alone {}, neither {undisturbed}, both lost {lost}, {answered} requests, {counts:?}",
        went_live(Side::Backup),
        went_live(Side::Primary),
    );
    assert!(went_live(Side::Backup) > 2_000);
    assert!(went_live(Side::Primary) > 1_000);
    assert!(undisturbed > 1_000);
    assert!((1..2_000).contains(&lost));
    assert!(answered > 100_000);
    let Counts {
        log_full,
        rewinds,
        refused_packets,
        resent,
        sent_twice,
        wrong_suspicions,
        kicks,
        answers_lost,
        found_sealed,
        died_holding,
    } = counts;
    for provoked in [
        log_full,
        rewinds,
        refused_packets,
        resent,
        sent_twice,
        wrong_suspicions,
        kicks,
        answers_lost,
        died_holding,
    ] {
        assert!(provoked > 500, "{counts:?}");
    }
    assert!(found_sealed > 20, "{counts:?}");
}

/// The number of the first seed, among the first `most`, that breaks a rule under `options`.
fn caught(options: Options, most: u64) -> Option<(u64, Rule)> {
    (0..most).find_map(|seed| match run(seed, options) {
        Ok(_) => None,
        Err(Failure::Broken(violation)) => Some((seed, violation.rule)),
        Err(failure) => panic!("{failure}"),
    })
}

#[test]
fn every_mistake_is_caught() {
    for sabotage in Sabotage::ALL {
        let found = caught(sabotage.into(), 6_000);
        println!("{sabotage:?}: {found:?}");
        assert!(found.is_some(), "{sabotage:?} went unnoticed in 6000 seeds");
    }
}

/// Each rule by itself, without the help of the others, which usually notice earlier.
#[test]
fn every_rule_notices_a_mistake_by_itself() {
    let pairs = [
        (Rule::OutputRule, Sabotage::ReleaseEarly),
        (Rule::OutputRule, Sabotage::SealNotAsked),
        (Rule::OneLive, Sabotage::BackupDoesNotAsk),
        (Rule::OneLive, Sabotage::NoFence),
        (Rule::Durability, Sabotage::ReleaseEarly),
        (Rule::Durability, Sabotage::BackupDoesNotAsk),
        (Rule::SameState, Sabotage::Unrecorded),
        (Rule::NothingMissing, Sabotage::ForgetKept),
        (Rule::Progress, Sabotage::AskOnce),
        (Rule::Unexpected, Sabotage::AcknowledgeUnstored),
    ];
    for (rule, sabotage) in pairs {
        let options = Options {
            sabotage,
            only: Some(rule),
            ..Options::default()
        };
        let found = caught(options, 6_000);
        println!("{rule:?} under {sabotage:?}: {found:?}");
        assert!(
            found.is_some(),
            "{rule:?} did not notice {sabotage:?} in 6000 seeds"
        );
    }
}

#[test]
fn a_seed_always_runs_the_same() {
    for seed in 0..200 {
        let first = run(seed, Options::default()).unwrap();
        let again = run(seed, Options::default()).unwrap();
        assert_eq!(first, again, "seed {seed}");
    }
}

#[test]
fn a_failure_names_its_seed_and_how_to_replay_it() {
    let options = Options::from(Sabotage::ReleaseEarly);
    let (seed, _) = caught(options, 6_000).unwrap();
    let text = run(seed, options).unwrap_err().to_string();
    let command = format!("cargo run -p lockstep-sim --release -- --seed {seed} --trace");
    assert!(text.contains(&command), "{text}");
}
