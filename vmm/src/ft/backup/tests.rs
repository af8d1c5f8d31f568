use lockstep_logchan::protocol::Role;

use super::*;
use crate::ft::arbiter::OutOfReach;

const DETECTOR: DetectorSettings = DetectorSettings {
    silence: 100,
    stall: 60,
};
const ARBITRATION: ArbitrationSettings = ArbitrationSettings { retry: 50 };
const LOST: Suspicion = Suspicion::ConnectionLost;

fn claim() -> Claim {
    Claim {
        generation: 4,
        party: Party::new(Role::Backup, 1),
    }
}

fn backup() -> Backup {
    Backup::new(claim(), DETECTOR, ARBITRATION, 0)
}

fn actions(backup: &mut Backup) -> Vec<BackupAction> {
    std::iter::from_fn(|| backup.next_action()).collect()
}

/// A backup that lost its primary at 30, sealed with entry 5 acknowledged.
fn draining() -> Backup {
    let mut backup = backup();
    backup.suspect(30, LOST);
    backup.sealed(Sequence(5));
    actions(&mut backup);
    backup
}

#[test]
fn it_stops_acknowledging_before_it_drains_and_drains_before_it_asks() {
    let mut backup = backup();
    assert!(backup.may_acknowledge() && backup.may_replay());
    backup.suspect(30, LOST);
    assert_eq!(actions(&mut backup), [BackupAction::Seal(LOST)]);
    assert!(!backup.may_acknowledge());
    assert!(
        !backup.may_replay(),
        "what there is to drain is not known yet"
    );
    backup.drained(31, Sequence(9));
    assert_eq!(
        backup.state(),
        &BackupState::Sealing(LOST),
        "not before it is sealed"
    );

    backup.sealed(Sequence(5));
    assert_eq!(actions(&mut backup), [BackupAction::Drain]);
    assert!(backup.may_replay() && !backup.may_acknowledge());

    backup.drained(40, Sequence(6));
    assert_eq!(actions(&mut backup), [BackupAction::TestAndSet(claim())]);
    assert!(!backup.may_replay());
}

#[test]
fn it_goes_live_only_after_it_has_won() {
    let mut backup = draining();
    backup.arbiter_answered(35, Ok(claim().party));
    assert_eq!(
        backup.state(),
        &BackupState::Draining(LOST),
        "nobody had asked"
    );
    backup.drained(40, Sequence(5));
    actions(&mut backup);
    assert_eq!(backup.release_limit(), ReleaseLimit::Nothing);
    backup.arbiter_answered(60, Ok(claim().party));
    assert_eq!(actions(&mut backup), [BackupAction::GoLive]);
    assert_eq!(backup.release_limit(), ReleaseLimit::Everything);
    backup.output_left(61);
    let times = backup.times().unwrap();
    let parts = (
        times.detection(),
        times.catch_up(),
        times.arbitration(),
        times.first_output_after(),
    );
    assert_eq!(parts, (30, Some(10), Some(20), Some(1)));
}

#[test]
fn the_loser_halts_for_good() {
    let mut backup = draining();
    backup.drained(40, Sequence(5));
    actions(&mut backup);
    let to = Party::new(Role::Primary, 9);
    backup.arbiter_answered(60, Ok(to.clone()));
    let halt = BackupHalt::Lost { to, generation: 4 };
    assert_eq!(actions(&mut backup), [BackupAction::Halt(halt)]);
    backup.arbiter_answered(61, Ok(claim().party));
    backup.tick(1_000);
    assert_eq!(actions(&mut backup), []);
}

#[test]
fn out_of_reach_it_waits_and_asks_again() {
    let mut backup = draining();
    backup.drained(40, Sequence(5));
    actions(&mut backup);
    for attempt in 1..1_000 {
        let now = 40 + attempt * 50;
        backup.arbiter_answered(
            now - 1,
            Err(OutOfReach {
                reason: "test".into(),
            }),
        );
        assert_eq!(actions(&mut backup), []);
        assert_eq!(backup.deadline(), Some(now));
        backup.tick(now);
        assert_eq!(actions(&mut backup), [BackupAction::TestAndSet(claim())]);
    }
}

#[test]
fn a_backup_that_diverged_never_asks() {
    let mut while_replaying = backup();
    while_replaying.refuse("digest".into());
    let refused = BackupHalt::Refused("digest".into());
    assert_eq!(
        actions(&mut while_replaying),
        [BackupAction::Halt(refused.clone())]
    );
    while_replaying.suspect(30, LOST);
    while_replaying.tick(1_000);
    assert_eq!(actions(&mut while_replaying), []);

    let mut while_draining = draining();
    while_draining.refuse("digest".into());
    assert_eq!(actions(&mut while_draining), [BackupAction::Halt(refused)]);
    while_draining.drained(40, Sequence(5));
    assert_eq!(actions(&mut while_draining), []);
}

#[test]
fn a_backup_that_lost_acknowledged_entries_never_asks() {
    let mut backup = draining();
    backup.drained(40, Sequence(4));
    let halt = BackupHalt::LogLost {
        acknowledged: Sequence(5),
        replayed: Sequence(4),
    };
    assert_eq!(actions(&mut backup), [BackupAction::Halt(halt)]);
}

#[test]
fn a_log_that_ended_in_order_ends_the_role() {
    let mut backup = backup();
    backup.ended(EndReason::PoweredOff);
    backup.suspect(30, LOST);
    backup.tick(1_000);
    assert_eq!(actions(&mut backup), []);

    let mut backup = draining();
    backup.ended(EndReason::Stopped);
    backup.drained(40, Sequence(9));
    assert_eq!(actions(&mut backup), [], "the end was found while draining");
}

#[test]
fn a_log_that_stalls_under_heartbeats_is_a_lost_primary() {
    let mut backup = backup();
    for now in (0..200).step_by(20) {
        backup.heard(now);
        backup.received(now, Sequence(3), now >= 100);
        backup.tick(now);
    }
    let reason = Suspicion::Stalled {
        reached: 3,
        stalled_ns: 60,
        timeout_ns: 60,
    };
    assert_eq!(actions(&mut backup), [BackupAction::Seal(reason)]);
}
