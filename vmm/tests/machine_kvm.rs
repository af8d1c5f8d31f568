//! The machine on KVM. Each test says so where this host has no KVM that can be used.

mod machine_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_cpu::CpuState;
use lockstep_vmm::ft::vm::{DigestScope, Event, OutputKind, Vm};
use lockstep_vmm::machine::engine::kvm::KvmEngine;
use lockstep_vmm::machine::engine::kvm::capabilities::{self, KvmCapabilities};
use lockstep_vmm::machine::engine::{Engine, EngineChoice, EngineKind, Stop};
use lockstep_vmm::machine::memory::GuestRam;
use lockstep_vmm::machine::{Machine, MachineConfig, PowerOffReason, boot};
use machine_support::*;

const KVM: EngineKind = EngineKind::Kvm;

/// Whether KVM can be used; if not, says that `test` did not run.
fn host_has_kvm(test: &str) -> bool {
    match capabilities::open() {
        Ok(_) => true,
        Err(error) => {
            lockstep_perf::not_run::report(test, &error.to_string());
            false
        }
    }
}

/// Runs until the guest is idle or off; moves no clock.
fn run_until_idle(machine: &mut Machine, log: &mut Vec<Entry>) {
    loop {
        let stop = machine.run(u64::MAX).unwrap();
        take_outputs(machine, log);
        if stop == Stop::Halted {
            return;
        }
    }
}

fn start(config: &MachineConfig, image: &[u8]) -> Machine {
    Machine::new(config, image).unwrap()
}

#[test]
fn the_probe_tells_what_this_kvm_does() {
    if !host_has_kvm("the_probe_tells_what_this_kvm_does") {
        return;
    }
    let found = KvmCapabilities::probe().unwrap();
    eprintln!("KVM: {found} ({found:?})");
    let selection = EngineChoice::Auto
        .select(lockstep_guest::bare_tenant())
        .unwrap();
    assert_eq!(selection.kind, KVM, "{}", selection.reason);
}

#[test]
fn the_tenant_serves_requests_under_kvm() {
    if !host_has_kvm("the_tenant_serves_requests_under_kvm") {
        return;
    }
    let config = tenant(KVM);
    let mut machine = start(&config, lockstep_guest::bare_tenant());
    let mut log = Vec::new();
    run_until_idle(&mut machine, &mut log);
    let mut answers = Vec::new();
    for (id, text) in ["set a 0 0 3\r\nabc\r\n", "get a\r\n", "incr a 1\r\n"]
        .iter()
        .enumerate()
    {
        let mut log = Vec::new();
        apply(
            &mut machine,
            &mut log,
            0,
            Moment::Frame(request(&config, id as u16, text)),
        );
        run_until_idle(&mut machine, &mut log);
        answers.extend(log.iter().filter_map(|(_, _, moment)| match moment {
            Moment::Said(OutputKind::Frame, frame) => Some(answer(frame)),
            _ => None,
        }));
    }
    assert_eq!(
        answers[..2],
        ["STORED\r\n", "VALUE a 0 3\r\nabc\r\nEND\r\n"]
    );
    assert_eq!(answers.len(), 3);
}

/// Frames at random positions, also in the middle of a request's work, and kicks at random times.
#[test]
fn a_recorded_run_replays_to_the_same_outputs_and_digests_under_kvm() {
    if !host_has_kvm("a_recorded_run_replays_to_the_same_outputs_and_digests_under_kvm") {
        return;
    }
    let config = tenant(KVM);
    for seed in 0..4 {
        let mut random = Random(seed);
        let mut primary = start(&config, lockstep_guest::bare_tenant());
        let kicker = primary.kicker().unwrap();
        let mut log = Vec::new();
        for round in 0..60u16 {
            if random.below(4) == 0 {
                kicker.kick();
            }
            let until = primary.position() + 1 + random.below(12);
            loop {
                let stop = primary.run(until).unwrap();
                take_outputs(&mut primary, &mut log);
                if matches!(stop, Stop::Position | Stop::Halted) {
                    break;
                }
            }
            let clock = primary.clock() + random.below(1_000_000);
            let key = random.below(3);
            let moment = match random.below(6) {
                0 => Moment::Clock,
                1 => Moment::Frame(random.bytes(200)),
                2 => Moment::Frame(udp(&config, lockstep_guest::ECHO_PORT, &random.bytes(64))),
                3 => Moment::Frame(request(&config, round, &format!("get k{key}\r\n"))),
                4 => Moment::Frame(request(&config, round, &format!("incr k{key} 3\r\n"))),
                _ => Moment::Frame(request(
                    &config,
                    round,
                    &format!("set k{key} 0 0 1\r\n{key}\r\n"),
                )),
            };
            apply(&mut primary, &mut log, clock, moment);
            if random.below(6) == 0 {
                let digest = primary.digest(DigestScope::Full).unwrap();
                log.push((primary.position(), clock, Moment::Digest(digest)));
            }
        }
        run_until_idle(&mut primary, &mut log);
        let digest = primary.digest(DigestScope::Full).unwrap();
        log.push((primary.position(), primary.clock(), Moment::Digest(digest)));
        for pieces in [None, Some(Random(seed))] {
            let mut backup = start(&config, lockstep_guest::bare_tenant());
            replay(&mut backup, &log, pieces);
        }
    }
}

/// The same guest, step by step, on both engines: what it says, what it leaves in memory and the
/// registers it ends with.
#[test]
fn both_engines_execute_a_guest_alike() {
    if !host_has_kvm("both_engines_execute_a_guest_alike") {
        return;
    }
    let run = |engine| {
        let mut machine = start(&plain(engine), &ports());
        let mut log = Vec::new();
        run_until_idle(&mut machine, &mut log);
        let mut read = [0; 21];
        machine.ram().read(0x150000, &mut read).unwrap();
        let said: Vec<Moment> = log.into_iter().map(|entry| entry.2).collect();
        (said, read, machine.powered_off())
    };
    assert_eq!(run(KVM), run(EngineKind::Soft));
}

/// KVM serves string instructions and read-modify-write by several exits. Taking the state between
/// two of them, at every position, changes nothing.
#[test]
fn looking_at_the_state_at_every_position_does_not_disturb_the_guest() {
    if !host_has_kvm("looking_at_the_state_at_every_position_does_not_disturb_the_guest") {
        return;
    }
    let with_nic = MachineConfig {
        nic: true,
        ..plain(KVM)
    };
    for (config, image) in [(plain(KVM), ports()), (with_nic, read_modify_write())] {
        let mut undisturbed = start(&config, &image);
        let mut expected = Vec::new();
        run_until_idle(&mut undisturbed, &mut expected);
        let mut watched = start(&config, &image);
        let mut said = Vec::new();
        loop {
            let before = watched.position();
            let stop = watched.run(before + 1).unwrap();
            assert!(
                watched.position() <= before + 1,
                "{stop:?} beyond the position asked for"
            );
            watched.digest(DigestScope::Full).unwrap();
            take_outputs(&mut watched, &mut said);
            if stop == Stop::Halted {
                break;
            }
        }
        assert_eq!(said, expected);
        assert_eq!(
            watched.digest(DigestScope::Full).unwrap(),
            undisturbed.digest(DigestScope::Full).unwrap()
        );
    }
}

#[test]
fn timer_interrupts_come_when_the_log_moves_the_clock() {
    if !host_has_kvm("timer_interrupts_come_when_the_log_moves_the_clock") {
        return;
    }
    for guest in [ticker(), apic_ticker()] {
        counts_while_the_clock_is_moved(&guest);
    }
}

fn counts_while_the_clock_is_moved(guest: &[u8]) {
    let mut machine = start(&plain(KVM), guest);
    let mut log = Vec::new();
    // The guest counts 40 interrupts between HLTs and busy work; time is moved at positions.
    while machine.powered_off().is_none() {
        let stop = machine.run(machine.position() + 3).unwrap();
        take_outputs(&mut machine, &mut log);
        if stop != Stop::Kicked && machine.powered_off().is_none() {
            let clock = machine.clock() + 60_000;
            apply(&mut machine, &mut log, clock, Moment::Clock);
        }
        assert!(machine.position() < 100_000, "the guest does not end");
    }
    take_outputs(&mut machine, &mut log);
    assert_eq!(machine.powered_off(), Some(PowerOffReason::AcpiSleep));
    let mut again = start(&plain(KVM), guest);
    replay(&mut again, &log, Some(Random(5)));
    assert_eq!(
        again.digest(DigestScope::Full).unwrap(),
        machine.digest(DigestScope::Full).unwrap()
    );
}

#[test]
fn a_kick_ends_a_guest_that_never_exits() {
    if !host_has_kvm("a_kick_ends_a_guest_that_never_exits") {
        return;
    }
    // jmp $
    let mut machine = start(&plain(KVM), &elf(&[0xeb, 0xfe]));
    let kicker = machine.kicker().unwrap();
    let early = Instant::now();
    kicker.kick();
    assert_eq!(
        machine.run(1).unwrap(),
        Stop::Kicked,
        "a kick before the run counts"
    );
    assert!(machine.at_position(), "and nothing was executed");
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
                kicker.kick();
            }
        });
        for _ in 0..20 {
            assert_eq!(machine.run(1).unwrap(), Stop::Kicked);
        }
        enough.store(true, Ordering::Relaxed);
    });
    assert!(!machine.at_position());
    assert!(machine.apply(0, Event::Clock).is_err());
    assert!(machine.digest(DigestScope::Full).is_err());
    assert!(early.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_machine_may_move_to_another_thread_between_runs() {
    if !host_has_kvm("a_machine_may_move_to_another_thread_between_runs") {
        return;
    }
    let mut machine = start(&plain(KVM), &ports());
    let first = machine.run(2).unwrap();
    assert_eq!(first, Stop::Position);
    let kicker = machine.kicker().unwrap();
    let mut machine = std::thread::spawn(move || {
        kicker.kick();
        assert_eq!(machine.run(u64::MAX).unwrap(), Stop::Kicked);
        machine
    })
    .join()
    .unwrap();
    run_until_idle(&mut machine, &mut Vec::new());
    assert_eq!(machine.powered_off(), Some(PowerOffReason::KeyboardReset));
}

#[test]
fn failures_name_rip_and_the_last_exit() {
    if !host_has_kvm("failures_name_rip_and_the_last_exit") {
        return;
    }
    let mut machine = start(&plain(KVM), &triple_fault());
    let text = machine.run(u64::MAX).unwrap_err().to_string();
    assert!(
        text.contains("triple fault") && text.contains("port 0x61"),
        "{text}"
    );
    let mut machine = start(&plain(KVM), &access_to_nothing());
    let text = machine.run(u64::MAX).unwrap_err().to_string();
    assert!(
        text.contains("0xe0001000") && text.contains("RIP 0x10000"),
        "{text}"
    );
    let mut machine = start(&plain(KVM), &halt_disabled());
    run_until_idle(&mut machine, &mut Vec::new());
    assert_eq!(machine.powered_off(), Some(PowerOffReason::HaltedForever));
}

/// The state set is the state read, all of it.
#[test]
fn a_cpu_state_survives_kvm() {
    if !host_has_kvm("a_cpu_state_survives_kvm") {
        return;
    }
    let ram = GuestRam::new(4 << 20).unwrap();
    let mut engine = KvmEngine::new(ram.accessor().clone()).unwrap();
    let mut random = Random(7);
    let mut state = boot::long_mode(&ram, 0x10_0000).unwrap();
    engine.set_state(&state).unwrap();
    let read = engine.state().unwrap();
    assert_same(&read, &state);
    for register in &mut state.gpr {
        *register = random.next();
    }
    state.rip = 0x12_3456;
    state.rflags = 0x8d7;
    state.cr2 = random.next();
    state.cr8 = 5;
    state.star = random.next();
    // Kernel addresses: what MSRs of addresses take must be canonical.
    let address = |random: &mut Random| 0xffff_8000_0000_0000 | random.next() >> 20;
    state.lstar = address(&mut random);
    state.cstar = address(&mut random);
    state.sfmask = 0x4_7700;
    state.kernel_gs_base = address(&mut random);
    state.sysenter_cs = 0x10;
    // 32 bits: AMD's have no more.
    state.sysenter_esp = random.next() >> 32;
    state.sysenter_eip = random.next() >> 32;
    state.segments[4].base = address(&mut random);
    state.segments[5].base = address(&mut random);
    state.dr = [0x1000, 0x2000, 0x3000, 0x4000, 0xffff_0ff1, 0x0000_0402];
    for byte in &mut state.fxsave[160..416] {
        *byte = random.next() as u8;
    }
    state.nmi_blocked = true;
    state.interrupt_shadow = 1;
    state.halted = true;
    engine.set_state(&state).unwrap();
    let mut read = engine.state().unwrap();
    // SVM holds off interrupts without saying after which instruction.
    assert!(
        matches!(read.interrupt_shadow, 1 | 3),
        "{}",
        read.interrupt_shadow
    );
    read.interrupt_shadow = state.interrupt_shadow;
    assert_same(&read, &state);
}

/// As `assert_eq`, field by field where it matters: a whole state is a page of numbers.
fn assert_same(found: &CpuState, expected: &CpuState) {
    let lines = |state: &CpuState| {
        format!("{state:#?}")
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let different: Vec<_> = lines(found)
        .into_iter()
        .zip(lines(expected))
        .filter(|(found, expected)| found != expected)
        .collect();
    assert!(found == expected, "found, expected: {different:#?}");
}

/// A state saved under one engine goes on under the other.
#[test]
fn a_snapshot_moves_between_the_engines() {
    if !host_has_kvm("a_snapshot_moves_between_the_engines") {
        return;
    }
    for (from, to) in [(KVM, EngineKind::Soft), (EngineKind::Soft, KVM)] {
        let config = tenant(from);
        let mut machine = start(&config, lockstep_guest::bare_tenant());
        run_until_idle(&mut machine, &mut Vec::new());
        let mut log = Vec::new();
        apply(
            &mut machine,
            &mut log,
            0,
            Moment::Frame(request(&config, 1, "set a 0 0 2\r\nhi\r\n")),
        );
        run_until_idle(&mut machine, &mut log);
        let state = machine.save().unwrap();
        let mut moved = Machine::restore(&state, to, |ram| copy_memory(&machine, ram)).unwrap();
        assert_eq!(moved.config().engine, to);
        let mut log = Vec::new();
        let clock = moved.clock();
        apply(
            &mut moved,
            &mut log,
            clock,
            Moment::Frame(request(&config, 2, "get a\r\n")),
        );
        run_until_idle(&mut moved, &mut log);
        let answers: Vec<String> = log
            .iter()
            .filter_map(|(_, _, moment)| match moment {
                Moment::Said(OutputKind::Frame, frame) => Some(answer(frame)),
                _ => None,
            })
            .collect();
        assert_eq!(answers, ["VALUE a 0 2\r\nhi\r\nEND\r\n"], "{from} to {to}");
    }
}

/// Device memory that reads as 1.5 and remembers writes.
#[derive(Default)]
struct Doubles {
    written: Vec<(u64, u64, Vec<u8>)>,
    ports: Vec<(u64, u16)>,
}

impl lockstep_cpu::Bus for Doubles {
    fn port_read(&mut self, _at: u64, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&mut self, at: u64, port: u16, _data: &[u8]) {
        self.ports.push((at, port));
    }
    fn mmio_read(&mut self, _at: u64, _address: u64, data: &mut [u8]) {
        data.copy_from_slice(&1.5_f64.to_bits().to_le_bytes()[..data.len()]);
    }
    fn mmio_write(&mut self, at: u64, address: u64, data: &[u8]) {
        self.written.push((at, address, data.to_vec()));
    }
    fn msr_read(&mut self, _at: u64, _index: u32) -> Result<u64, lockstep_cpu::MsrFault> {
        Err(lockstep_cpu::MsrFault)
    }
    fn msr_write(
        &mut self,
        _at: u64,
        _index: u32,
        _value: u64,
    ) -> Result<(), lockstep_cpu::MsrFault> {
        Err(lockstep_cpu::MsrFault)
    }
    fn interrupt_line(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self) -> u8 {
        unreachable!("the line is never up")
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

/// KVM's emulator has no x87 loads and stores, which a guest may well use on device memory.
#[test]
fn what_kvm_cannot_emulate_the_software_cpu_executes() {
    if !host_has_kvm("what_kvm_cannot_emulate_the_software_cpu_executes") {
        return;
    }
    let ram = GuestRam::new(4 << 20).unwrap();
    let mut engine = KvmEngine::new(ram.accessor().clone()).unwrap();
    let mut state = boot::long_mode(&ram, 0x10_0000).unwrap();
    state.gpr[3] = 0xd000_0000;
    // fldl 8(%rbx); fstpl 16(%rbx); out %al, $0x99; hlt
    ram.write(
        0x10_0000,
        &[0xdd, 0x43, 8, 0xdd, 0x5b, 16, 0xe6, 0x99, 0xf4],
    )
    .unwrap();
    engine.set_state(&state).unwrap();
    let mut bus = Doubles::default();
    while engine.run(u64::MAX, &mut bus).unwrap() != Stop::Halted {}
    let bytes = 1.5_f64.to_bits().to_le_bytes().to_vec();
    assert_eq!(bus.written, [(1, 0xd000_0010, bytes)]);
    assert_eq!(bus.ports, [(2, 0x99)]);
    assert_eq!(engine.position(), 4);
    assert_eq!(engine.emulated_instructions(), 2);
    assert_eq!(engine.state().unwrap().rip, 0x10_0009);
}
