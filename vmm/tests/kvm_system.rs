//! The guests of `cpu/tests/system` on KVM: what the software CPU does by the manual, a processor does.
//!
//! For a host with a processor that virtualizes, or for one of the machines that emulate one
//! (`.ci/kvm-in-bochs`, `.ci/kvm-in-qemu`; ARCHITECTURE.md says how to run it there, and what agrees). Where
//! a processor or KVM does otherwise for a good reason, the guest says so in a line
//! `# unlike SILICON: REASON`: it runs there all the same, and is reported if it does not end as expected.

#[path = "../../cpu/tests/guest/mod.rs"]
mod guest;

use guest::{Guest, SystemGuest, TestBus};
use lockstep_vmm::machine::engine::kvm::KvmEngine;
use lockstep_vmm::machine::engine::kvm::capabilities;
use lockstep_vmm::machine::engine::{Engine, Stop};

const NAME: &str = "guests_of_system_behaviour_write_on_kvm_what_the_manual_says";

#[test]
fn guests_of_system_behaviour_write_on_kvm_what_the_manual_says() {
    if let Err(error) = capabilities::open() {
        lockstep_perf::not_run::report(NAME, &error.to_string());
        return;
    }
    if let Some(missing) = SystemGuest::missing() {
        lockstep_perf::not_run::report(NAME, &missing);
        return;
    }
    let silicon = silicon();
    if silicon.is_empty() {
        let why = "the processor has neither VMX nor SVM: this KVM emulates ring 0, and is no processor \
                   to measure by";
        lockstep_perf::not_run::report(NAME, why);
        return;
    }
    let mut unexpected = Vec::new();
    for name in SystemGuest::names() {
        let guest = SystemGuest::read(&name);
        let written = written_on_kvm(&guest);
        if written.as_ref() == Ok(&guest.expected) {
            eprintln!("{name}: agrees");
            continue;
        }
        let found = match written {
            Ok(written) => format!("wrote {written:x?}"),
            Err(error) => error,
        };
        let found = format!("{found}, expected {:x?}", guest.expected);
        let reasons = guest.unlike.iter().filter(|(on, _)| silicon.contains(on));
        let reasons: Vec<&str> = reasons.map(|(_, reason)| reason.as_str()).collect();
        if reasons.is_empty() {
            eprintln!("{name}: {found}");
            unexpected.push(format!("{name}: {found}"));
        } else {
            let why = format!("{} ({found})", reasons.join("; "));
            lockstep_perf::not_run::report(&format!("{NAME}: {name}"), &why);
        }
    }
    assert!(
        unexpected.is_empty(),
        "on {}, in hexadecimal:\n{}",
        silicon.join(", "),
        unexpected.join("\n")
    );
}

/// What it writes to port 0x10 up to its HLT, or how it ended otherwise. What KVM had the software CPU execute
/// proves nothing about a processor.
fn written_on_kvm(guest: &SystemGuest) -> Result<Vec<u32>, String> {
    // The soft CPU's guest is made for its memory and its first state.
    let soft = Guest::new(&guest.image);
    let mut engine = KvmEngine::new(soft.memory.clone()).map_err(|error| error.to_string())?;
    engine
        .set_state(&guest::start_state())
        .map_err(|error| error.to_string())?;
    let mut bus = TestBus::default();
    let written = |bus: &TestBus| -> Vec<u32> {
        let port = bus.out.iter().filter(|out| out.1 == 0x10);
        port.map(|out| out.2).collect()
    };
    loop {
        // Some positions more than any of them takes.
        match engine.run(100, &mut bus) {
            Ok(Stop::Halted) => match engine.emulated_instructions() {
                0 => return Ok(written(&bus)),
                n => return Err(format!("{n} instructions were the software CPU's")),
            },
            Ok(Stop::Position) => return Err(format!("does not end, wrote {:x?}", written(&bus))),
            Ok(_) => {}
            Err(error) => return Err(format!("{error}; wrote {:x?}", written(&bus))),
        }
    }
}

/// The names, in lines `# unlike`, of what executes guests here: KVM, who makes the processor, and what
/// emulates it, if something does. None if the processor does not virtualize.
fn silicon() -> Vec<String> {
    let facts = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |word: &str| facts.split_whitespace().any(|found| found == word);
    let maker = match (has("vmx"), has("svm")) {
        (true, _) => "intel",
        (_, true) => "amd",
        _ => return Vec::new(),
    };
    let emulated = std::env::var("LOCKSTEP_SILICON").ok();
    ["kvm", maker]
        .map(str::to_owned)
        .into_iter()
        .chain(emulated)
        .collect()
}
