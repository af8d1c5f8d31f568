//! System behaviour, by the guests in assembly under `system/`. What each proves, by which chapter of the
//! manual, stands in its first lines; `# expect:` lists what it writes to port 0x10, in hexadecimal.
//!
//! Each guest runs in one go; then cut at every instruction, its state exported and imported at each cut
//! into a CPU that knows nothing else; and cut at random. All must end alike.

mod guest;

use guest::{Guest, SystemGuest};
use lockstep_cpu::{Cpu, CpuModel, RunExit};
use vm_memory::{Bytes, GuestAddress};

/// More than any of the guests takes.
const BUDGET: u64 = 1_000_000;

fn finished(g: &Guest, name: &str) {
    let expected = SystemGuest::read(name).expected;
    assert_eq!(
        g.outs(0x10),
        expected,
        "{name}: in hexadecimal {:x?}, expected {expected:x?}",
        g.outs(0x10)
    );
}

fn assert_same(a: &Guest, b: &Guest, what: &str) {
    assert_eq!(a.cpu.retired(), b.cpu.retired(), "{what}");
    assert_eq!(a.cpu.state(), b.cpu.state(), "{what}");
    assert_eq!(a.bus.out, b.bus.out, "{what}");
    let mut chunks = (vec![0; 1 << 16], vec![0; 1 << 16]);
    for at in (0..guest::RAM).step_by(1 << 16) {
        let at = GuestAddress(at);
        a.memory.read_slice(&mut chunks.0, at).expect("inside RAM");
        b.memory.read_slice(&mut chunks.1, at).expect("inside RAM");
        assert!(chunks.0 == chunks.1, "{what}: memory about {at:x?}");
    }
}

fn check(name: &str) {
    let image = SystemGuest::read(name).image;
    let mut whole = Guest::new(&image);
    assert_eq!(
        whole.run(BUDGET),
        RunExit::Halted,
        "{name}: at {:#x}, wrote {:x?}",
        whole.cpu.state().rip,
        whole.outs(0x10).iter().take(64).collect::<Vec<_>>()
    );
    finished(&whole, name);

    let mut steps = Guest::new(&image);
    loop {
        let before = steps.cpu.retired();
        match steps.run(1) {
            RunExit::Budget => assert_eq!(steps.cpu.retired(), before + 1),
            RunExit::Halted => break,
            other => panic!("{name}: {other:?}"),
        }
        // The state that went out comes in; now and then into a CPU that knows nothing else.
        if !before.is_multiple_of(16) {
            let state = steps.cpu.state();
            steps.cpu.set_state(&state).expect("its own state");
            continue;
        }
        let mut fresh = Cpu::new(steps.memory.clone(), CpuModel::x86_64_v1());
        fresh.set_state(&steps.cpu.state()).expect("its own state");
        fresh.set_retired(steps.cpu.retired());
        fresh.set_tsc(steps.cpu.retired());
        steps.cpu = fresh;
    }
    assert_same(&whole, &steps, &format!("{name}, cut at every instruction"));

    let mut seed = 1_u64;
    for round in 0..4 {
        let mut cut = Guest::new(&image);
        loop {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            match cut.run(1 + (seed >> 33) % 50) {
                RunExit::Budget => {}
                RunExit::Halted => break,
                other => panic!("{name}: {other:?}"),
            }
        }
        assert_same(
            &whole,
            &cut,
            &format!("{name}, cut at random, round {round}"),
        );
    }
}

macro_rules! guests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn every_guest_is_run() {
            let listed = [$(stringify!($name)),*];
            for name in SystemGuest::names() {
                assert!(listed.contains(&name.as_str()), "{name}.S is not in the list");
            }
        }
    };
}

guests! {
    paging_rights paging_no_execute paging_accessed_dirty paging_reserved paging_large paging_crossing
    double_fault page_fault_during_delivery stacks gates
    syscall sysret_not_canonical sysret_privilege sysenter swapgs iret
    single_step breakpoints
    segment_loads far_transfers not_canonical fpu_availability alignment control_registers privileged fetch_crossing
    self_modifying rep_fault compatibility msrs msrs_of_the_model
}
