use proptest::prelude::*;

use super::*;
use crate::ft::gate::{OutputGate, OutputSink, ReleaseLimit};
use crate::ft::log::{Flags, LogBytes, LogWrite, kind};
use crate::ft::recorder::{RecordError, Recorder, RecorderSettings};
use crate::ft::testing::{Dice, log, mix};
use crate::ft::vm::{DigestScope, Event, OutputKind};
use lockstep_logchan::reader::EntryReader;
use lockstep_logchan::writer::EntryWriter;

mod disk;

const SETTINGS: RecorderSettings = RecorderSettings {
    clock_drift: 2_000,
    digest_interval: 20_000,
    digest_stripe: 256,
};

/// A primary, for as long as it lives.
struct Primary {
    vm: Dice,
    recorder: Recorder,
    log: EntryWriter,
    gate: OutputGate,
    now: u64,
    /// Everything said, in order.
    said: Vec<(OutputKind, Vec<u8>)>,
    /// How many of those are known to have been sent.
    sent: usize,
}

/// Notes what goes into the gate.
struct Noting<'a>(&'a mut OutputGate, &'a mut Vec<(OutputKind, Vec<u8>)>);

impl OutputSink for Noting<'_> {
    fn has_room(&self, bytes: usize) -> bool {
        self.0.has_room(bytes)
    }
    fn hold(&mut self, sequence: Sequence, output: Output) {
        self.1.push((output.kind, output.bytes.clone()));
        self.0.hold(sequence, output);
    }
    fn pass(&mut self, output: Output) {
        self.0.pass(output);
    }
    fn released(&self) -> Sequence {
        self.0.released()
    }
}

#[derive(Debug, Clone)]
enum Move {
    Frame(Vec<u8>),
    Console(Vec<u8>),
    PowerButton,
    Digest,
    Pass(u64),
    Run {
        positions: u64,
        kicked: Option<u64>,
    },
    Release(usize),
    Replay {
        steps: usize,
        budget: u64,
        kicked: Option<u64>,
    },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..80);
    let kicked = || proptest::option::weighted(0.2, 0u64..20);
    let one = prop_oneof![
        4 => bytes().prop_map(Move::Frame),
        1 => bytes().prop_map(Move::Console),
        1 => Just(Move::PowerButton),
        1 => Just(Move::Digest),
        3 => (1u64..10_000).prop_map(Move::Pass),
        8 => (1u64..60, kicked()).prop_map(|(positions, kicked)| Move::Run { positions, kicked }),
        3 => (0usize..6).prop_map(Move::Release),
        4 => (1usize..12, 1u64..40, kicked())
            .prop_map(|(steps, budget, kicked)| Move::Replay { steps, budget, kicked }),
    ];
    proptest::collection::vec(one, 1..120)
}

impl Primary {
    fn new(seed: u64, rate: u64, log: EntryWriter) -> Self {
        let vm = Dice::new(seed, rate);
        let recorder = Recorder::new(SETTINGS, 1_000, 0, 0);
        let gate = OutputGate::new();
        Self {
            vm,
            recorder,
            log,
            gate,
            now: 1_000,
            said: Vec::new(),
            sent: 0,
        }
    }

    fn event(&mut self, event: Event<'_>) {
        if !self.vm.at_position() {
            return;
        }
        match self
            .recorder
            .event(&mut self.vm, &mut self.log, event, self.now)
        {
            Ok(_) | Err(RecordError::LogFull { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn frame(&mut self, bytes: &[u8]) {
        if !self.vm.at_position() {
            return;
        }
        let Ok(mut draft) = LogWrite::draft(&mut self.log, 2_000) else {
            return;
        };
        draft.payload_mut()[..bytes.len()].copy_from_slice(bytes);
        self.recorder
            .frame(&mut self.vm, draft, bytes.len(), self.now)
            .unwrap();
    }

    fn run(&mut self, positions: u64) {
        let mut sink = Noting(&mut self.gate, &mut self.said);
        let until = self.vm.position + positions;
        match self
            .recorder
            .run(&mut self.vm, &mut self.log, &mut sink, until)
        {
            Ok(_) | Err(RecordError::LogFull { .. } | RecordError::GateFull) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn make(&mut self, one: &Move) {
        match one {
            Move::Frame(bytes) => self.frame(bytes),
            Move::Console(bytes) => self.event(Event::Console(bytes)),
            Move::PowerButton => self.event(Event::PowerButton),
            Move::Digest if self.vm.at_position() => {
                let _full = self
                    .recorder
                    .digest(&mut self.vm, &mut self.log, DigestScope::Full)
                    .is_err();
            }
            Move::Pass(time) => {
                self.now += time;
                let halted = self.vm.halted;
                match self
                    .recorder
                    .tick(&mut self.vm, &mut self.log, self.now, halted)
                {
                    Ok(_) | Err(RecordError::LogFull { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Move::Run { positions, kicked } => {
                self.vm.kick_at = kicked.map(|after| self.vm.position + after);
                self.run(*positions);
            }
            Move::Release(count) => {
                for _ in 0..*count {
                    if self.gate.next(ReleaseLimit::Everything).is_some() {
                        self.gate.sent();
                        self.sent += 1;
                    }
                }
            }
            Move::Digest | Move::Replay { .. } => {}
        }
    }
}

struct Backup {
    vm: Dice,
    replayer: Replayer,
    log: EntryReader,
}

impl Backup {
    fn step(&mut self, budget: u64) -> Progress {
        let progress = self
            .replayer
            .step(&mut self.vm, &mut self.log, budget)
            .unwrap();
        if let Ok(Some(entry)) = self.log.peek() {
            assert!(
                self.vm.position <= entry.position(),
                "the backup ran past the next entry"
            );
        }
        progress
    }

    fn drain(&mut self) {
        while self.step(7) != Progress::Idle {}
    }
}

fn pair(seed: u64, rate: u64, capacity: usize) -> (Primary, Backup) {
    let (writer, reader) = log(capacity);
    let replayer = Replayer::new(Sequence::NONE, 0);
    let backup = Backup {
        vm: Dice::new(seed, rate),
        replayer,
        log: reader,
    };
    (Primary::new(seed, rate, writer), backup)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens to the primary, at whatever moments it is interrupted and in whatever
    /// portions the backup replays, on a log that is often full: the backup's state and outputs are
    /// the primary's, and going live sends exactly what the primary may not have released.
    #[test]
    fn a_replayed_run_equals_the_recorded_one(
        seed: u64,
        rate in prop_oneof![Just(0u64), Just(1), Just(100)],
        moves in moves(),
    ) {
        let (mut primary, mut backup) = pair(seed, rate, 4096);
        for one in &moves {
            primary.make(one);
            if let Move::Replay { steps, budget, kicked } = one {
                backup.vm.kick_at = kicked.map(|after| backup.vm.position + after);
                for _ in 0..*steps {
                    backup.step(*budget);
                }
            }
            prop_assert!(backup.vm.position <= primary.vm.position);
        }
        // Bring the primary to a position, with everything it said in the log, and mark it.
        backup.drain();
        while !primary.vm.at_position() {
            primary.run(1);
        }
        backup.drain();
        primary.run(0);
        while primary.said.len() < primary.recorder.said() as usize {
            backup.drain();
            primary.run(0);
        }
        backup.drain();
        primary.recorder.digest(&mut primary.vm, &mut primary.log, DigestScope::Full).unwrap();
        backup.drain();
        prop_assert_eq!(backup.vm.summary(), primary.vm.summary());
        prop_assert_eq!(backup.replayer.replayed(), primary.log.last_sequence());

        backup.replayer.primary_released(&mut backup.vm, primary.gate.released());
        let live = backup.replayer.go_live().unwrap();
        let resent: Vec<_> = live.resend.into_iter().map(|output| (output.kind, output.bytes)).collect();
        prop_assert_eq!(&resent[..], &primary.said[primary.sent..]);
        prop_assert_eq!(live.said, primary.said.len() as u64);
    }

    /// A primary that dies anywhere leaves a log from which the backup goes on; what the backup then
    /// says begins no later than at the first output that had not left.
    #[test]
    fn no_output_is_missing_after_the_primary_died(
        seed: u64,
        moves in moves(),
    ) {
        let (mut primary, mut backup) = pair(seed, 1, 1 << 16);
        let mut left = Vec::new();
        for one in &moves {
            primary.make(one);
            if let Move::Release(_) = one {
                left = primary.said[..primary.sent].to_vec();
            }
        }
        backup.drain();
        let live = backup.replayer.go_live().unwrap();
        let first = live.said as usize - live.resend.len();
        prop_assert!(first <= left.len(), "outputs {}..{first} are missing", left.len());
        for (again, output) in live.resend.iter().zip(&primary.said[first..]) {
            prop_assert_eq!((again.kind, &again.bytes), (output.0, &output.1));
        }
    }
}

/// A primary that has run for a while, and its backup.
fn after_a_while(seed: u64) -> (Primary, Backup) {
    let (mut primary, backup) = pair(seed, 1, 1 << 16);
    for round in 0..20 {
        primary.frame(&[round; 60]);
        for _ in 0..5 {
            primary.run(20);
        }
        primary.now += 1_000;
    }
    primary
        .recorder
        .digest(&mut primary.vm, &mut primary.log, DigestScope::Full)
        .unwrap();
    (primary, backup)
}

fn diverge(backup: &mut Backup) -> Divergence {
    loop {
        match backup.replayer.step(&mut backup.vm, &mut backup.log, 1_000) {
            Ok(Progress::Idle) => panic!("no divergence was noticed"),
            Ok(_) => {}
            Err(ReplayError::Diverged(divergence)) => return divergence,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_changed_register_is_noticed_and_never_goes_live() {
    let (_primary, mut backup) = after_a_while(1);
    for _ in 0..10 {
        backup.step(1_000);
    }
    backup.vm.state ^= 1 << 40;
    diverge(&mut backup);
    assert_eq!(backup.replayer.go_live().unwrap_err(), NotReady::Failed);
    let again = backup.replayer.step(&mut backup.vm, &mut backup.log, 1_000);
    assert!(matches!(again, Err(ReplayError::FailedBefore)));
}

#[test]
fn a_changed_byte_of_memory_is_noticed_by_the_digest() {
    let (primary, mut backup) = after_a_while(2);
    backup.vm.memory[1000] ^= 4;
    let found = diverge(&mut backup);
    let Divergence::State {
        position,
        primary: theirs,
        backup: ours,
    } = found
    else {
        panic!("{found}");
    };
    assert_eq!(position, primary.vm.position);
    assert_eq!(theirs.state, ours.state);
    assert_ne!(theirs.memory, ours.memory);
}

/// Writes a mark of an output that the machine did not say, or not so.
fn forge(primary: &mut Primary, change: impl FnOnce(&mut OutputMark)) {
    let mut mark = OutputMark {
        number: 1,
        kind: OutputKind::Frame,
        length: 3,
        digest: xxhash_rust::xxh3::xxh3_64(b"abc"),
        released: Sequence::NONE,
    };
    change(&mut mark);
    let mut draft = primary.log.draft(32).unwrap();
    let (kind, length) = crate::ft::log::encode_mark(&Mark::Output(mark), draft.payload_mut());
    draft.commit(
        kind,
        Flags::NONE,
        primary.vm.position,
        primary.vm.clock,
        length,
    );
}

#[test]
fn an_output_that_the_backup_did_not_say_is_a_divergence() {
    let (mut primary, mut backup) = pair(3, 1, 4096);
    forge(&mut primary, |_| {});
    let expected = OutputKind::Frame;
    assert_eq!(
        diverge(&mut backup),
        Divergence::Missing {
            position: 0,
            number: 1,
            expected
        }
    );
}

#[test]
fn outputs_are_compared_in_every_field() {
    let output = || Output {
        kind: OutputKind::Frame,
        bytes: b"abc".to_vec(),
    };
    type Change = fn(&mut OutputMark);
    let changes: [(Change, OutputField); 3] = [
        (|mark| mark.kind = OutputKind::Console, OutputField::Kind),
        (|mark| mark.length = 4, OutputField::Length),
        (|mark| mark.digest ^= 1, OutputField::Digest),
    ];
    for (change, expected) in changes {
        let (mut primary, mut backup) = pair(3, 1, 4096);
        forge(&mut primary, change);
        backup.replayer.said.push_back(Said {
            position: 0,
            output: output(),
        });
        let found = diverge(&mut backup);
        assert!(
            matches!(found, Divergence::Output { number: 1, field, .. } if field == expected),
            "{found}"
        );
    }
    let (mut primary, mut backup) = pair(3, 1, 4096);
    forge(&mut primary, |mark| mark.number = 2);
    backup.replayer.said.push_back(Said {
        position: 0,
        output: output(),
    });
    assert_eq!(
        diverge(&mut backup),
        Divergence::Number {
            position: 0,
            found: 2,
            expected: 1
        }
    );

    let (mut primary, mut backup) = pair(3, 1, 4096);
    forge(&mut primary, |mark| mark.released = Sequence(1));
    backup.replayer.said.push_back(Said {
        position: 0,
        output: output(),
    });
    assert!(matches!(diverge(&mut backup), Divergence::Released { .. }));
}

#[test]
fn an_output_that_the_primary_did_not_say_is_a_divergence() {
    // A guest that says something before it halts for the first time.
    let talks = |seed: &u64| matches!(Dice::new(*seed, 1).run(500), Ok(Stop::Boundary));
    let (mut primary, mut backup) = pair((0..).find(talks).unwrap(), 1, 4096);
    // The primary's clock entry is 500 positions further on, and all it said is missing.
    primary.vm.position = 500;
    primary.vm.clock = 500;
    primary.event(Event::Clock);
    let found = diverge(&mut backup);
    assert!(
        matches!(found, Divergence::Unlogged { next: 500, .. }),
        "{found}"
    );
}

#[test]
fn a_machine_that_halts_where_the_primary_ran_on_is_a_divergence() {
    let (mut primary, mut backup) = pair(3, 1, 4096);
    backup.vm.halted = true;
    primary.vm.position = 1;
    primary.event(Event::Clock);
    assert_eq!(
        diverge(&mut backup),
        Divergence::Halted {
            position: 0,
            entry: 1
        }
    );
}

#[test]
fn an_entry_for_a_position_in_the_past_is_a_divergence() {
    let (mut primary, mut backup) = pair(3, 0, 4096);
    backup.vm.position = 5;
    primary.event(Event::Clock);
    assert_eq!(
        diverge(&mut backup),
        Divergence::Passed {
            entry: 0,
            machine: 5
        }
    );
}

#[test]
fn a_clock_that_would_go_back_is_a_divergence() {
    let (mut primary, mut backup) = pair(3, 0, 4096);
    backup.vm.clock = 1;
    primary.event(Event::Clock);
    let found = diverge(&mut backup);
    assert!(
        matches!(
            found,
            Divergence::Clock {
                primary: 0,
                backup: 1,
                ..
            }
        ),
        "{found}"
    );
}

#[test]
fn a_payload_that_makes_no_sense_stops_the_backup() {
    let (mut primary, mut backup) = pair(3, 0, 4096);
    primary
        .log
        .draft(0)
        .unwrap()
        .commit(0x77, Flags::NONE, 0, 0, 0);
    let error = backup
        .replayer
        .step(&mut backup.vm, &mut backup.log, 1)
        .unwrap_err();
    assert!(matches!(error, ReplayError::Payload(_)), "{error}");
    assert_eq!(backup.replayer.go_live().unwrap_err(), NotReady::Failed);
}

#[test]
fn a_backup_with_entries_left_does_not_go_live() {
    let (_primary, mut backup) = after_a_while(4);
    assert_eq!(backup.replayer.go_live().unwrap_err(), NotReady::NotDrained);
    backup.step(1_000);
    assert_eq!(backup.replayer.go_live().unwrap_err(), NotReady::NotDrained);
}

#[test]
fn a_backup_behind_the_world_does_not_go_live() {
    let (_primary, mut backup) = after_a_while(5);
    backup.drain();
    let replayed = backup.replayer.replayed();
    backup
        .replayer
        .primary_released(&mut backup.vm, replayed.next());
    let expected = NotReady::Behind {
        released: replayed.next(),
        replayed,
    };
    assert_eq!(backup.replayer.go_live().unwrap_err(), expected);
}

#[test]
fn nobody_goes_live_after_a_log_that_ended_in_order() {
    let (mut primary, mut backup) = after_a_while(6);
    primary
        .recorder
        .end(&mut primary.vm, &mut primary.log, EndReason::PoweredOff)
        .unwrap();
    let ended = Progress::Ended(EndReason::PoweredOff);
    while backup.step(1_000) != ended {}
    assert_eq!(backup.step(1_000), ended);
    let error = backup.replayer.go_live().unwrap_err();
    assert_eq!(error, NotReady::Ended(EndReason::PoweredOff));
}

#[test]
fn released_outputs_are_given_back_and_not_sent_again() {
    let (primary, mut backup) = after_a_while(7);
    backup.drain();
    assert_eq!(backup.replayer.kept(), primary.said.len());
    let everything = backup.replayer.replayed();
    backup.replayer.primary_released(&mut backup.vm, everything);
    assert_eq!(backup.replayer.kept(), 0);
    assert_eq!(backup.vm.recycled, primary.said.len());
}

/// A saved log, three times over.
#[test]
fn a_saved_log_replays_to_the_same_state_each_time() {
    let (primary, backup) = after_a_while(8);
    let saved = backup.log.consumer().readable().to_vec();
    for _ in 0..3 {
        let mut vm = Dice::new(8, 1);
        let mut log = LogBytes::new(&saved, Sequence::NONE);
        let mut replayer = Replayer::new(Sequence::NONE, 0);
        while replayer.step(&mut vm, &mut log, 50).unwrap() != Progress::Idle {}
        assert_eq!(log.remaining(), 0);
        assert_eq!(vm.summary(), primary.vm.summary());
    }
}

/// The log's bytes are input: flip any bit, and replay stops with an error or, where the flip is not
/// in what has been read, does not change what was read. It never panics.
#[test]
fn a_damaged_log_is_refused_without_a_panic() {
    let (_primary, backup) = after_a_while(9);
    let saved = backup.log.consumer().readable().to_vec();
    for round in 0..2_000 {
        let mut damaged = saved.clone();
        let bit = mix(round) as usize % (damaged.len() * 8);
        damaged[bit / 8] ^= 1 << (bit % 8);
        let mut vm = Dice::new(9, 1);
        let mut log = LogBytes::new(&damaged, Sequence::NONE);
        let mut replayer = Replayer::new(Sequence::NONE, 0);
        let ended = loop {
            match replayer.step(&mut vm, &mut log, 1 << 20) {
                Ok(Progress::Idle) => break log.remaining() == 0,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        assert!(
            !ended,
            "bit {bit} was flipped, and the log was replayed to its end"
        );
    }
}

/// Payloads under a valid checksum are input too: whoever can write the ring can write any of them.
#[test]
fn forged_entries_end_in_errors_not_panics() {
    for round in 0..3_000u64 {
        let (mut writer, mut reader) = log(4096);
        let mut vm = Dice::new(1, 1);
        let mut replayer = Replayer::new(Sequence::NONE, 0);
        let kinds = [
            kind::CLOCK,
            kind::FRAME,
            kind::CONSOLE,
            kind::OUTPUT,
            kind::DIGEST,
            kind::END,
        ];
        for entry in 0..8 {
            let draw = mix(round * 8 + entry);
            let mut draft = writer.draft(32).unwrap();
            for (at, byte) in draft.payload_mut().iter_mut().enumerate() {
                *byte = (mix(draw ^ at as u64) % 3) as u8;
            }
            let kind = kinds[(draw % 6) as usize];
            let length = if draw & 0x100 == 0 {
                32
            } else {
                (draw >> 9) as usize % 33
            };
            draft.commit(
                kind,
                Flags::NONE,
                (draw >> 20) % 16,
                (draw >> 30) % 16,
                length,
            );
        }
        while let Ok(Progress::Running | Progress::Replayed(_)) =
            replayer.step(&mut vm, &mut reader, 1_000)
        {}
    }
}
