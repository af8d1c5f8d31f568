use lockstep_logchan::protocol::Role;

use super::*;
use crate::ft::arbiter::OutOfReach;

const DETECTOR: DetectorSettings = DetectorSettings {
    silence: 100,
    stall: 60,
};
const ARBITRATION: ArbitrationSettings = ArbitrationSettings { retry: 50 };

fn claim() -> Claim {
    Claim {
        generation: 4,
        party: Party::new(Role::Primary, 1),
    }
}

fn primary() -> Primary {
    Primary::new(claim(), DETECTOR, ARBITRATION, 0)
}

fn actions(primary: &mut Primary) -> Vec<PrimaryAction> {
    std::iter::from_fn(|| primary.next_action()).collect()
}

/// A primary that lost its backup at 30.
fn arbitrating() -> Primary {
    let mut primary = primary();
    primary.acknowledged(10, Sequence(5), false);
    primary.suspect(30, Suspicion::ConnectionLost);
    primary
}

#[test]
fn outputs_leave_up_to_the_acknowledged_entry() {
    let mut primary = primary();
    assert_eq!(primary.release_limit(), ReleaseLimit::UpTo(Sequence::NONE));
    primary.acknowledged(10, Sequence(5), false);
    primary.acknowledged(11, Sequence(3), false);
    assert_eq!(primary.release_limit(), ReleaseLimit::UpTo(Sequence(5)));
    assert_eq!(actions(&mut primary), []);
}

#[test]
fn after_standing_still_nothing_leaves_before_a_new_entry_is_acknowledged() {
    let mut primary = primary();
    primary.acknowledged(10, Sequence(5), true);
    primary.stood_still(Sequence(8));
    assert_eq!(primary.release_limit(), ReleaseLimit::Nothing);
    primary.acknowledged(20, Sequence(7), true);
    assert_eq!(primary.release_limit(), ReleaseLimit::Nothing);
    primary.acknowledged(21, Sequence(8), false);
    assert_eq!(primary.release_limit(), ReleaseLimit::UpTo(Sequence(8)));
}

#[test]
fn while_the_arbiter_decides_nothing_leaves_and_nothing_runs() {
    let mut primary = arbitrating();
    assert_eq!(
        actions(&mut primary),
        [
            PrimaryAction::Disconnect(Suspicion::ConnectionLost),
            PrimaryAction::TestAndSet(claim())
        ]
    );
    assert_eq!(primary.release_limit(), ReleaseLimit::Nothing);
    assert!(!primary.may_run());
    primary.acknowledged(31, Sequence(9), false);
    assert_eq!(
        primary.release_limit(),
        ReleaseLimit::Nothing,
        "an ack now comes too late"
    );
}

#[test]
fn it_goes_on_alone_only_after_it_has_won() {
    let mut primary = arbitrating();
    actions(&mut primary);
    primary.arbiter_answered(70, Ok(claim().party));
    assert_eq!(actions(&mut primary), [PrimaryAction::GoAlone]);
    assert_eq!(primary.release_limit(), ReleaseLimit::Everything);
    assert!(primary.may_run());
    primary.output_left(80);
    primary.output_left(90);
    let times = primary.times().unwrap();
    assert_eq!(times.detection(), 30);
    assert_eq!(times.catch_up(), Some(0));
    assert_eq!(times.arbitration(), Some(40));
    assert_eq!(times.first_output_after(), Some(10));
}

#[test]
fn the_loser_halts_for_good() {
    let mut primary = arbitrating();
    actions(&mut primary);
    let to = Party::new(Role::Backup, 9);
    primary.arbiter_answered(70, Ok(to.clone()));
    let halt = PrimaryHalt::Lost { to, generation: 4 };
    assert_eq!(actions(&mut primary), [PrimaryAction::Halt(halt.clone())]);
    primary.arbiter_answered(80, Ok(claim().party));
    primary.acknowledged(81, Sequence(9), true);
    primary.tick(1_000);
    assert_eq!(actions(&mut primary), []);
    assert_eq!(primary.state(), &PrimaryState::Halted(halt));
    assert_eq!(primary.release_limit(), ReleaseLimit::Nothing);
}

#[test]
fn out_of_reach_it_waits_and_asks_again() {
    let mut primary = arbitrating();
    actions(&mut primary);
    for attempt in 1..1_000 {
        let now = 30 + attempt * 50;
        primary.arbiter_answered(
            now - 1,
            Err(OutOfReach {
                reason: "test".into(),
            }),
        );
        primary.tick(now - 1);
        assert_eq!(actions(&mut primary), []);
        assert_eq!(primary.deadline(), Some(now));
        primary.tick(now);
        assert_eq!(actions(&mut primary), [PrimaryAction::TestAndSet(claim())]);
        assert_eq!(primary.release_limit(), ReleaseLimit::Nothing);
    }
}

#[test]
fn silence_and_stalls_lead_to_the_arbiter_with_their_reason() {
    let mut silent = primary();
    silent.heard(10);
    for now in (25..110).step_by(20) {
        silent.tick(now);
        assert_eq!(silent.state(), &PrimaryState::Protected);
    }
    assert_eq!(silent.deadline(), Some(110));
    silent.tick(110);
    let reason = Suspicion::Silent {
        silent_ns: 100,
        timeout_ns: 100,
    };
    assert_eq!(silent.state(), &PrimaryState::Arbitrating(reason));

    let mut stalled = primary();
    stalled.acknowledged(10, Sequence(3), true);
    for now in (10..80).step_by(10) {
        stalled.heard(now);
        stalled.tick(now);
    }
    let reason = Suspicion::Stalled {
        reached: 3,
        stalled_ns: 60,
        timeout_ns: 60,
    };
    assert_eq!(stalled.state(), &PrimaryState::Arbitrating(reason));
}

#[test]
fn a_backup_that_leaves_after_the_end_is_not_missed() {
    let mut primary = primary();
    primary.ended();
    primary.suspect(20, Suspicion::ConnectionLost);
    primary.tick(1_000);
    assert_eq!(actions(&mut primary), []);
    primary.acknowledged(1_001, Sequence(8), false);
    assert_eq!(primary.release_limit(), ReleaseLimit::UpTo(Sequence(8)));
}

#[test]
fn a_failed_machine_halts_without_asking() {
    let mut primary = primary();
    primary.failed("triple fault at 0x1000".into());
    let halt = PrimaryHalt::Failed("triple fault at 0x1000".into());
    assert_eq!(actions(&mut primary), [PrimaryAction::Halt(halt)]);
    primary.suspect(20, Suspicion::ConnectionLost);
    assert_eq!(actions(&mut primary), []);
}
