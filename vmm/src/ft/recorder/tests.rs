use super::*;
use crate::ft::gate::{MAX_HELD_OUTPUTS, OutputGate, ReleaseLimit};
use crate::ft::log::{Body, Unlogged, decode};
use crate::ft::testing::{Dice, log};
use crate::ft::vm::OutputKind;
use lockstep_logchan::reader::EntryReader;

const SETTINGS: RecorderSettings = RecorderSettings {
    clock_drift: 1_000,
    digest_interval: 0,
    digest_stripe: 256,
};

/// The next entry: number, flags, content.
fn next(reader: &mut EntryReader) -> Option<(Sequence, Flags, u64, String)> {
    let entry = reader.peek().unwrap()?;
    let body = match decode(entry.kind(), entry.payload()).unwrap() {
        Body::Event(event) => format!("{event:?}"),
        Body::DiskRead(mark) => format!("{mark:?}"),
        Body::Mark(Mark::Output(mark)) => format!("output {} {:?}", mark.number, mark.kind),
        Body::Mark(mark) => format!("{mark:?}"),
    };
    let found = (entry.sequence(), entry.flags(), entry.clock(), body);
    reader.release();
    Some(found)
}

#[test]
fn only_the_last_of_several_outputs_asks_for_an_acknowledgement() {
    let (mut writer, mut reader) = log(4096);
    let mut vm = Dice::new(1, 1);
    let mut recorder = Recorder::new(SETTINGS, 0, 0, 0);
    let mut gate = OutputGate::new();
    for _ in 0..3 {
        recorder
            .event(&mut vm, &mut writer, Event::PowerButton, 0)
            .unwrap();
        next(&mut reader).unwrap();
    }
    let last = recorder.outputs(&mut vm, &mut writer, &mut gate).unwrap();
    let flags: Vec<_> = std::iter::from_fn(|| next(&mut reader))
        .map(|entry| entry.1)
        .collect();
    assert_eq!(flags, [Flags::NONE, Flags::NONE, Flags::ACK_AT_ONCE]);
    assert_eq!(last, Some(Sequence(6)));
    assert_eq!(gate.held(), 3);
    assert_eq!(gate.waits_for(), Some(Sequence(4)));
}

#[test]
fn an_output_waits_for_room_in_the_log_and_is_not_lost() {
    let (mut writer, mut reader) = log(4096);
    let mut vm = Dice::new(1, 1);
    let mut recorder = Recorder::new(SETTINGS, 0, 0, 0);
    let mut gate = OutputGate::new();
    recorder
        .event(&mut vm, &mut writer, Event::PowerButton, 0)
        .unwrap();
    while writer.draft(0).is_ok() {
        recorder
            .event(&mut vm, &mut writer, Event::Clock, 0)
            .unwrap();
    }
    for _ in 0..3 {
        let full = recorder.run(&mut vm, &mut writer, &mut gate, 100);
        assert!(matches!(full, Err(RecordError::LogFull { .. })), "{full:?}");
        assert_eq!(vm.position(), 0, "the vCPU waits");
        assert_eq!(gate.held(), 0, "no output is held that no entry records");
    }
    while next(&mut reader).is_some() {}
    recorder.outputs(&mut vm, &mut writer, &mut gate).unwrap();
    assert_eq!(next(&mut reader).unwrap().3, "output 1 PowerOff");
    assert_eq!(gate.held(), 1);
}

#[test]
fn an_output_waits_for_room_in_the_gate_and_is_not_lost() {
    let (mut writer, mut reader) = log(4096);
    let mut vm = Dice::new(1, 1);
    let mut recorder = Recorder::new(SETTINGS, 0, 0, 0);
    let mut gate = OutputGate::new();
    for number in 0..MAX_HELD_OUTPUTS as u64 {
        gate.hold(
            Sequence(number + 1),
            Output {
                kind: OutputKind::Console,
                bytes: vec![1],
            },
        );
    }
    recorder
        .event(&mut vm, &mut writer, Event::PowerButton, 0)
        .unwrap();
    next(&mut reader).unwrap();
    let full = recorder.run(&mut vm, &mut writer, &mut gate, 100);
    assert!(matches!(full, Err(RecordError::GateFull)), "{full:?}");
    assert!(
        next(&mut reader).is_none(),
        "no entry for an output that is not held"
    );
    gate.discard();
}

#[test]
fn marks_carry_what_has_been_released() {
    let (mut writer, mut reader) = log(4096);
    let mut vm = Dice::new(1, 1);
    let mut recorder = Recorder::new(SETTINGS, 0, 0, 0);
    let mut gate = OutputGate::new();
    let mut released = Vec::new();
    for _ in 0..3 {
        recorder
            .event(&mut vm, &mut writer, Event::PowerButton, 0)
            .unwrap();
        next(&mut reader).unwrap();
        recorder.outputs(&mut vm, &mut writer, &mut gate).unwrap();
        let entry = reader.peek().unwrap().unwrap();
        let Ok(Body::Mark(Mark::Output(mark))) = decode(entry.kind(), entry.payload()) else {
            panic!("no output mark");
        };
        released.push(mark.released);
        reader.release();
        assert!(gate.next(ReleaseLimit::Everything).is_some());
        gate.sent();
    }
    assert_eq!(released, [Sequence::NONE, Sequence(2), Sequence(4)]);
}

#[test]
fn the_clock_of_a_running_guest_is_moved_when_it_drifts() {
    let (mut writer, mut reader) = log(4096);
    let mut vm = Dice::new(1, 0);
    let mut recorder = Recorder::new(SETTINGS, 5_000, 0, 0);
    assert_eq!(
        recorder.tick(&mut vm, &mut writer, 6_000, false).unwrap(),
        None
    );
    assert_eq!(
        recorder.tick(&mut vm, &mut writer, 6_001, false).unwrap(),
        Some(Sequence(1))
    );
    assert_eq!(vm.clock(), 1_001);
    let entry = next(&mut reader).unwrap();
    assert_eq!((entry.2, entry.3.as_str()), (1_001, "Clock"));
}

#[test]
fn a_halted_guest_is_left_alone_until_its_timer_is_due() {
    let (mut writer, _reader) = log(1 << 16);
    // One that waits for its timer.
    let (mut vm, mut recorder) = (0..)
        .map(|seed| {
            let mut vm = Dice::new(seed, 1);
            let mut recorder = Recorder::new(SETTINGS, 0, 0, 0);
            let mut unlogged = Unlogged::after(Sequence::NONE);
            let mut gate = OutputGate::new();
            while !vm.halted {
                recorder
                    .run(&mut vm, &mut unlogged, &mut gate, 1 << 20)
                    .unwrap();
            }
            (vm, recorder)
        })
        .find(|(vm, _)| vm.next_timer().is_some())
        .unwrap();
    let timer = vm.next_timer().unwrap();
    assert_eq!(recorder.wake_at(&vm), Some(timer));
    assert_eq!(
        recorder
            .tick(&mut vm, &mut writer, timer - 1, true)
            .unwrap(),
        None
    );
    assert!(vm.halted);
    assert!(
        recorder
            .tick(&mut vm, &mut writer, timer, true)
            .unwrap()
            .is_some()
    );
    assert!(!vm.halted);
    assert_eq!(vm.clock(), timer);
}

#[test]
fn the_clock_never_goes_back() {
    let (mut writer, mut reader) = log(4096);
    let mut vm = Dice::new(1, 1);
    let mut recorder = Recorder::new(SETTINGS, 5_000, 0, 0);
    vm.clock = 700;
    recorder
        .event(&mut vm, &mut writer, Event::Frame(&[1]), 5_100)
        .unwrap();
    recorder
        .event(&mut vm, &mut writer, Event::Frame(&[2]), 4_000)
        .unwrap();
    assert_eq!(next(&mut reader).unwrap().2, 700);
    assert_eq!(next(&mut reader).unwrap().2, 700);
}

#[test]
fn digests_come_at_their_interval_and_walk_through_memory() {
    let settings = RecorderSettings {
        digest_interval: 100,
        ..SETTINGS
    };
    let (mut writer, mut reader) = log(4096);
    let mut vm = Dice::new(1, 0);
    let mut recorder = Recorder::new(settings, 0, 0, 0);
    let written: Vec<_> = (0..10)
        .map(|tick| {
            recorder
                .tick(&mut vm, &mut writer, tick * 50, true)
                .unwrap()
                .is_some()
        })
        .collect();
    assert_eq!(
        written,
        [
            false, false, true, false, true, false, true, false, true, false
        ]
    );
    for index in 0..4 {
        let body = next(&mut reader).unwrap().3;
        assert!(body.contains(&format!("index: {index}")), "{body}");
    }
    assert_eq!(recorder.wake_at(&vm), Some(500));
}

#[test]
fn a_machine_that_nobody_follows_is_not_woken_for_digests() {
    let settings = RecorderSettings {
        digest_interval: 100,
        ..SETTINGS
    };
    let mut unlogged = Unlogged::after(Sequence::NONE);
    let mut vm = Dice::new(1, 0);
    let mut recorder = Recorder::new(settings, 0, 0, 0);
    let written = recorder.tick(&mut vm, &mut unlogged, 1_000, true).unwrap();
    assert_eq!(written, None);
    assert_eq!(recorder.wake_at(&vm), None);
}

#[test]
fn nothing_is_recorded_between_two_positions() {
    let (mut writer, mut reader) = log(4096);
    let mut vm = Dice::new(1, 1);
    let mut recorder = Recorder::new(SETTINGS, 0, 0, 0);
    let mut gate = OutputGate::new();
    vm.kick_at = Some(0);
    assert_eq!(
        recorder.run(&mut vm, &mut writer, &mut gate, 100).unwrap(),
        Stop::Kicked
    );
    let refused = recorder.event(&mut vm, &mut writer, Event::Clock, 9_000);
    assert!(
        matches!(refused, Err(RecordError::NotAtPosition { position: 0 })),
        "{refused:?}"
    );
    assert_eq!(
        recorder.tick(&mut vm, &mut writer, 9_000, false).unwrap(),
        None
    );
    assert!(
        recorder
            .digest(&mut vm, &mut writer, DigestScope::Full)
            .is_err()
    );
    assert!(
        recorder
            .end(&mut vm, &mut writer, EndReason::Stopped)
            .is_err()
    );
    assert!(next(&mut reader).is_none());
}

/// Protected or not, the guest takes the same turns.
#[test]
fn an_unlogged_machine_runs_as_a_logged_one() {
    let (mut writer, mut reader) = log(1 << 16);
    let mut unlogged = Unlogged::after(Sequence::NONE);
    let mut vms = [Dice::new(5, 1), Dice::new(5, 1)];
    let mut recorders = [0, 1].map(|_| Recorder::new(SETTINGS, 0, 0, 0));
    let mut gates = [OutputGate::new(), OutputGate::new()];
    for round in 0..50u8 {
        let now = u64::from(round) * 700;
        let frame = [round; 20];
        recorders[0]
            .event(&mut vms[0], &mut writer, Event::Frame(&frame), now)
            .unwrap();
        let until = vms[0].position() + 30;
        recorders[0]
            .run(&mut vms[0], &mut writer, &mut gates[0], until)
            .unwrap();
        while next(&mut reader).is_some() {}

        let mut draft = LogWrite::draft(&mut unlogged, 64).unwrap();
        draft.payload_mut()[..20].copy_from_slice(&frame);
        recorders[1].frame(&mut vms[1], draft, 20, now).unwrap();
        recorders[1]
            .run(&mut vms[1], &mut unlogged, &mut gates[1], until)
            .unwrap();
        assert_eq!(vms[0].summary(), vms[1].summary());
    }
    assert_eq!(gates[0].held(), gates[1].held());
    assert_eq!(gates[0].waits_for(), gates[1].waits_for());
}
