//! The guests of `cpu/tests/system` on KVM: what the software CPU does by the manual, a processor does.
//!
//! Assembled when the test runs, by gcc; for a host with a processor of its own. Inside `.ci/kvm-in-qemu` there
//! is no gcc, and QEMU 7.2 is no processor to measure by: its error codes of gates (16 * vector) and of
//! reserved bits (P clear), its #GP for a stack limit and its reads before writes are not silicon's.

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
    if std::process::Command::new("gcc")
        .arg("--version")
        .output()
        .is_err()
    {
        lockstep_perf::not_run::report(NAME, "gcc, which assembles the guests, is not installed");
        return;
    }
    if !processor_virtualizes() {
        let why = "the processor has neither VMX nor SVM: this KVM emulates ring 0, and is no processor \
                   to measure by";
        lockstep_perf::not_run::report(NAME, why);
        return;
    }
    for name in SystemGuest::names() {
        let guest = SystemGuest::read(&name);
        if let Some(reason) = &guest.not_on_kvm {
            eprintln!("{name}: not on KVM, {reason}");
            continue;
        }
        // The soft CPU's guest is made for its memory and its first state.
        let soft = Guest::new(&guest.image);
        let mut engine = KvmEngine::new(soft.memory.clone()).expect("KVM was there just now");
        engine
            .set_state(&guest::start_state())
            .expect("a legal state");
        let mut bus = TestBus::default();
        loop {
            match engine.run(100_000, &mut bus) {
                Ok(Stop::Halted) => break,
                Ok(Stop::Position) => panic!("{name}: does not end"),
                Ok(_) => {}
                Err(error) => panic!("{name}: {error}"),
            }
        }
        let written: Vec<u32> = bus
            .out
            .iter()
            .filter(|o| o.1 == 0x10)
            .map(|o| o.2)
            .collect();
        assert_eq!(
            written, guest.expected,
            "{name}: in hexadecimal {written:x?}"
        );
    }
}

/// Whether guests execute on the processor itself, by `/proc/cpuinfo`.
fn processor_virtualizes() -> bool {
    let facts = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    facts
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}
