//! The machine on the software CPU: the determinism that everything else stands on.

mod machine_support;

use lockstep_vmm::ft::vm::{DigestScope, Event, OutputKind, Vm};
use lockstep_vmm::machine::engine::{EngineKind, Stop};
use lockstep_vmm::machine::{Machine, MachineConfig, MachineError, PowerOffReason};
use machine_support::*;
use proptest::prelude::*;

const SOFT: EngineKind = EngineKind::Soft;

fn machine(image: &[u8]) -> Machine {
    Machine::new(&plain(SOFT), image).unwrap()
}

/// Runs to power-off; returns what was said with the positions. Time passes for a halted guest by
/// moving its clock to the next timer.
fn run_to_the_end(machine: &mut Machine, mut piece: impl FnMut() -> u64) -> Vec<Entry> {
    let mut log = Vec::new();
    while machine.powered_off().is_none() {
        let stop = machine.run(machine.position() + piece()).unwrap();
        take_outputs(machine, &mut log);
        if stop == Stop::Halted
            && machine.powered_off().is_none()
            && let Some(timer) = machine.next_timer()
        {
            machine.apply(timer, Event::Clock).unwrap();
        }
        assert!(machine.position() < 10_000_000, "the guest does not end");
    }
    log
}

#[test]
fn a_guest_with_timer_interrupts_runs_to_its_power_off() {
    for guest in [ticker(), apic_ticker()] {
        counts_to_its_power_off(machine(&guest));
    }
}

/// A guest that counts 40 timer interrupts, says a letter for each, and powers off.
fn counts_to_its_power_off(mut machine: Machine) {
    let log = run_to_the_end(&mut machine, || u64::MAX / 2);
    assert_eq!(machine.powered_off(), Some(PowerOffReason::AcpiSleep));
    let text: Vec<u8> = log
        .iter()
        .filter_map(|(_, _, moment)| match moment {
            Moment::Said(OutputKind::Console, bytes) => Some(bytes.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(
        text.starts_with(b"a") && text.contains(&b'p'),
        "{}",
        String::from_utf8_lossy(&text)
    );
    let last = &log[log.len() - 1].2;
    assert_eq!(
        *last,
        Moment::Said(OutputKind::PowerOff, vec![PowerOffReason::AcpiSleep as u8])
    );
    assert_eq!(machine.run(u64::MAX).unwrap(), Stop::Halted, "off for good");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The contract of `Vm`: whatever `until` values `run` was called with.
    #[test]
    fn a_run_cut_into_random_pieces_equals_an_uncut_one(seed: u64, longest in 1u64..5000) {
        let guest = if seed % 2 == 0 { ticker() } else { apic_ticker() };
        let mut whole = machine(&guest);
        let expected = run_to_the_end(&mut whole, || u64::MAX / 2);
        let mut cut = machine(&guest);
        let mut random = Random(seed);
        let found = run_to_the_end(&mut cut, || 1 + random.below(longest));
        prop_assert_eq!(found, expected);
        prop_assert_eq!(cut.position(), whole.position());
        prop_assert_eq!(
            cut.digest(DigestScope::Full).unwrap(),
            whole.digest(DigestScope::Full).unwrap()
        );
    }

    /// Frames, garbage, console bytes and jumps of the clock at random positions, recorded once and
    /// replayed in other pieces.
    #[test]
    fn the_tenant_replayed_from_its_log_says_the_same_and_has_the_same_digests(seed: u64) {
        let config = tenant(SOFT);
        let mut random = Random(seed);
        let mut primary = Machine::new(&config, lockstep_guest::bare_tenant()).unwrap();
        let mut log = Vec::new();
        for round in 0..40u16 {
            let until = primary.position() + 1 + random.below(30_000);
            primary.run(until).unwrap();
            take_outputs(&mut primary, &mut log);
            let clock = primary.clock() + random.below(2) * random.below(20_000_000);
            let key = random.below(4);
            let moment = match random.below(8) {
                0 => Moment::Clock,
                1 => { let length = random.below(3000) as usize; Moment::Frame(random.bytes(length)) }
                2 => Moment::Console(random.bytes(5)),
                3 => Moment::Frame(udp(&config, lockstep_guest::ECHO_PORT, &random.bytes(100))),
                4 => Moment::Frame(request(&config, round, &format!("get k{key}\r\n"))),
                5 => Moment::Frame(request(&config, round, &format!("incr k{key} 3\r\n"))),
                _ => Moment::Frame(request(&config, round, &format!("set k{key} 0 0 2\r\n{}\r\n", 10 + key))),
            };
            apply(&mut primary, &mut log, clock, moment);
            if random.below(8) == 0 {
                let digest = primary.digest(DigestScope::Full).unwrap();
                log.push((primary.position(), clock, Moment::Digest(digest)));
            }
        }
        primary.run(primary.position() + 200_000).unwrap();
        take_outputs(&mut primary, &mut log);
        let digest = primary.digest(DigestScope::Full).unwrap();
        log.push((primary.position(), primary.clock(), Moment::Digest(digest)));
        let spoke = |entry: &&Entry| matches!(entry.2, Moment::Said(OutputKind::Frame, _));
        prop_assert!(log.iter().filter(spoke).count() > 3, "the tenant hardly answers");

        for pieces in [None, Some(Random(seed ^ 1))] {
            let mut backup = Machine::new(&config, lockstep_guest::bare_tenant()).unwrap();
            replay(&mut backup, &log, pieces);
        }
    }

    /// A state saved anywhere goes on as if nothing had been.
    #[test]
    fn a_machine_restored_from_its_state_goes_on_as_the_saved_one(at in 0u64..150_000) {
        let mut saved = machine(&ticker());
        let mut log = Vec::new();
        while saved.position() < at && saved.powered_off().is_none() {
            let stop = saved.run(at).unwrap();
            take_outputs(&mut saved, &mut log);
            if stop == Stop::Halted && let Some(timer) = saved.next_timer() {
                saved.apply(timer, Event::Clock).unwrap();
            }
        }
        // What the last clock made due is said before the state is taken.
        take_outputs(&mut saved, &mut log);
        let state = saved.save().unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        let mut restored = Machine::restore(&state, SOFT, |ram| copy_memory(&saved, ram)).unwrap();
        prop_assert_eq!(restored.digest(DigestScope::Full).unwrap(), saved.digest(DigestScope::Full).unwrap());
        let mut random = Random(at);
        let expected = run_to_the_end(&mut saved, || u64::MAX / 2);
        prop_assert_eq!(run_to_the_end(&mut restored, || 1 + random.below(3000)), expected);
        prop_assert_eq!(restored.digest(DigestScope::Full).unwrap(), saved.digest(DigestScope::Full).unwrap());
    }
}

#[test]
fn the_tenant_stores_and_returns_a_value() {
    let config = tenant(SOFT);
    let mut machine = Machine::new(&config, lockstep_guest::bare_tenant()).unwrap();
    let mut answers = Vec::new();
    for (id, text) in ["set a 0 0 3\r\nabc\r\n", "get a\r\n"].iter().enumerate() {
        while machine.run(u64::MAX).unwrap() != Stop::Halted {
            while machine.next_output().is_some() {}
        }
        machine
            .apply(0, Event::Frame(&request(&config, id as u16, text)))
            .unwrap();
        assert_eq!(machine.run(u64::MAX).unwrap(), Stop::Boundary);
        answers.extend(
            std::iter::from_fn(|| machine.next_output()).map(|output| answer(&output.bytes)),
        );
    }
    assert_eq!(answers, ["STORED\r\n", "VALUE a 0 3\r\nabc\r\nEND\r\n"]);
    assert_eq!(machine.counters().net.received, 2);
}

#[test]
fn ports_that_nobody_owns_read_as_ones_and_a_reset_ends_the_machine() {
    let mut machine = machine(&ports());
    let log = run_to_the_end(&mut machine, || 7);
    assert_eq!(machine.powered_off(), Some(PowerOffReason::KeyboardReset));
    let mut read = [0; 21];
    machine.ram().read(0x150000, &mut read).unwrap();
    assert_eq!(
        read[..12],
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0xff, 0, 0, 0]
    );
    assert_eq!(read[16..], [0xff; 5]);
    assert_eq!(
        log[0].2,
        Moment::Said(OutputKind::Console, b"ports\n".to_vec())
    );
}

#[test]
fn a_guest_that_can_never_wake_is_powered_off_after_its_last_words() {
    let mut machine = machine(&halt_disabled());
    let log = run_to_the_end(&mut machine, || 1000);
    let said: Vec<_> = log.into_iter().map(|entry| entry.2).collect();
    assert_eq!(
        said,
        [
            Moment::Said(OutputKind::Console, b"!".to_vec()),
            Moment::Said(
                OutputKind::PowerOff,
                vec![PowerOffReason::HaltedForever as u8]
            ),
        ]
    );
}

#[test]
fn a_triple_fault_names_rip_and_the_last_access() {
    let mut machine = machine(&triple_fault());
    let error = machine.run(u64::MAX).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("triple fault at RIP 0x100002"), "{text}");
    assert!(text.contains("read of 1 bytes from port 0x61"), "{text}");
    assert!(matches!(machine.run(u64::MAX), Err(MachineError::Ended)));
}

#[test]
fn an_access_to_nothing_names_the_address_and_rip() {
    let mut machine = machine(&access_to_nothing());
    let text = machine.run(u64::MAX).unwrap_err().to_string();
    assert!(
        text.contains("read of 4 bytes from guest-physical 0xe0001000"),
        "{text}"
    );
    assert!(text.contains("0x10000"), "{text}");
}

#[test]
fn the_power_button_switches_off_at_its_position() {
    let mut machine = machine(&ticker());
    machine.run(1000).unwrap();
    machine.apply(0, Event::PowerButton).unwrap();
    assert_eq!(machine.run(2000).unwrap(), Stop::Boundary);
    while machine.next_output().is_some() {}
    assert_eq!(machine.run(2000).unwrap(), Stop::Halted);
    assert_eq!(machine.position(), 1000);
    assert_eq!(machine.next_timer(), None);
}

#[test]
fn nothing_is_executed_while_an_output_waits() {
    let mut machine = machine(&ports());
    assert_eq!(machine.run(u64::MAX).unwrap(), Stop::Boundary);
    let position = machine.position();
    assert_eq!(machine.run(u64::MAX).unwrap(), Stop::Boundary);
    assert_eq!(machine.position(), position);
    assert!(matches!(machine.save(), Err(MachineError::OutputsWait)));
}

#[test]
fn one_instruction_may_read_and_write_a_device() {
    let config = MachineConfig {
        nic: true,
        ..plain(SOFT)
    };
    let mut machine = Machine::new(&config, &read_modify_write()).unwrap();
    run_to_the_end(&mut machine, || 2);
    assert_eq!(machine.powered_off(), Some(PowerOffReason::ResetControl));
    let mut read = [0; 12];
    machine.ram().read(0x150004, &mut read).unwrap();
    // The register cannot be read back, so it always becomes 1: features 32 to 63.
    assert_eq!(read, [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
}

/// A state comes from another host: whatever is in it, restoring and running it is no panic.
#[test]
fn a_damaged_state_is_refused_or_runs_and_never_panics() {
    let config = tenant(SOFT);
    let mut saved = Machine::new(&config, lockstep_guest::bare_tenant()).unwrap();
    while saved.run(u64::MAX).unwrap() != Stop::Halted {
        while saved.next_output().is_some() {}
    }
    let sound = serde_json::to_value(saved.save().unwrap()).unwrap();
    let mut refused = 0;
    for seed in 0..150 {
        let mut random = Random(seed);
        let mut damaged = sound.clone();
        for _ in 0..1 + random.below(3) {
            damage(&mut damaged, &mut random);
        }
        let Ok(state) = serde_json::from_value(damaged) else {
            refused += 1;
            continue;
        };
        match Machine::restore(&state, SOFT, |ram| copy_memory(&saved, ram)) {
            Err(_) => refused += 1,
            Ok(mut machine) => {
                let clock = machine.clock();
                let frame = request(&config, 1, "get a\r\n");
                let _ = machine.apply(clock.saturating_add(1_000_000), Event::Frame(&frame));
                let until = machine.position().saturating_add(50_000);
                for _ in 0..100 {
                    if !matches!(machine.run(until), Ok(Stop::Boundary)) {
                        break;
                    }
                    while machine.next_output().is_some() {}
                }
            }
        }
    }
    assert!((1..150).contains(&refused), "{refused} of 150 refused");
}

/// Changes a number or a list somewhere in `value`.
fn damage(value: &mut serde_json::Value, random: &mut Random) {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let index = random.below(fields.len() as u64) as usize;
            if let Some((_, field)) = fields.iter_mut().nth(index) {
                damage(field, random);
            }
        }
        Value::Array(items) if !items.is_empty() && random.below(4) > 0 => {
            let index = random.below(items.len() as u64) as usize;
            damage(&mut items[index], random);
        }
        Value::Array(items) => items.resize(random.below(600) as usize, 7.into()),
        Value::Number(_) => {
            *value = [
                0,
                1,
                7,
                255,
                65535,
                u64::from(u32::MAX),
                u64::MAX,
                random.next(),
            ][random.below(8) as usize]
                .into();
        }
        Value::Bool(truth) => *truth = !*truth,
        Value::Null => *value = random.next().into(),
        Value::String(_) => {}
    }
}
