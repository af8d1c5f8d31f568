//! Interrupts and NMIs that come from outside, at chosen instructions.

mod guest;

use guest::Guest;
use lockstep_cpu::{Cpu, CpuModel, RunExit};

/// Gates for NMI and vector 0x21, then `body`. The interrupt's handler writes ECX to port 0x21, the NMI's
/// EBX to port 2 and again behind a second instruction.
fn guest(body: &str) -> Guest {
    Guest::assembly(&format!(
        "mov $0x500000, %edi\n\
         mov $irq, %eax\n mov %ax, 0x210(%rdi)\n movw $8, 0x212(%rdi)\n movw $0x8e00, 0x214(%rdi)\n shr $16, %eax\n mov %ax, 0x216(%rdi)\n\
         mov $nmi, %eax\n mov %ax, 0x20(%rdi)\n movw $8, 0x22(%rdi)\n movw $0x8e00, 0x24(%rdi)\n shr $16, %eax\n mov %ax, 0x26(%rdi)\n\
         lidt idtr\n\
         {body}\n\
         cli\n hlt\n\
         irq: push %rax\n mov %ecx, %eax\n out %eax, $0x21\n pop %rax\n iretq\n\
         nmi: mov %ebx, %eax\n out %eax, $2\n inc %ebx\n out %eax, $3\n iretq\n\
         .align 8\n idtr: .word 0xfff\n .quad 0x500000\n"
    ))
}

/// Instructions in front of a guest's body.
const PROLOGUE: u64 = 14;

#[test]
fn a_repetition_can_be_interrupted_at_every_count() {
    const COUNT: u64 = 60;
    for at in 0..=COUNT {
        let mut g = guest(
            "sti\n mov $0x100000, %esi\n mov $0x300000, %edi\n mov $60, %ecx\n rep movsb\n nop\n",
        );
        assert_eq!(g.run(PROLOGUE + 4 + at), RunExit::Budget);
        g.bus.pending = Some(0x21);
        g.run_to_halt();
        assert_eq!(
            g.outs(0x21),
            [(COUNT - at) as u32],
            "interrupted after {at}"
        );
        let s = g.cpu.state();
        assert_eq!(
            (s.gpr[1], s.gpr[6], s.gpr[7]),
            (0, 0x10_0000 + COUNT, 0x30_0000 + COUNT)
        );
        for i in (0..COUNT - 8).step_by(4) {
            assert_eq!(g.read_u64(0x30_0000 + i), g.read_u64(0x10_0000 + i));
        }
        // The handler's five instructions, and nothing twice.
        assert_eq!(g.cpu.retired(), PROLOGUE + 4 + COUNT + 1 + 2 + 5);
    }
}

#[test]
fn mov_ss_and_pop_ss_hold_interrupts_off_for_one_instruction_and_lss_does_not() {
    for (load, held) in [
        ("mov %edx, %ss", true),
        ("pop %ss", true),
        ("lss 0x8f000, %esp", false),
    ] {
        // POP SS does not exist in 64-bit code: all of it runs in 32-bit code.
        let body = format!(
            "sti\n mov $0x10, %edx\n movl $0x70000, 0x8f000\n movw $0x10, 0x8f004\n pushq $0x18\n pushq $1f\n rex.w lret\n\
             .code32\n 1: push %edx\n {load}\n inc %ecx\n inc %ecx\n hlt\n .code64\n"
        );
        let mut g = guest(&body);
        assert_eq!(g.run(PROLOGUE + 9), RunExit::Budget);
        g.bus.pending = Some(0x21);
        g.run_to_halt();
        assert_eq!(g.outs(0x21), [u32::from(held)], "{load}");
    }
}

#[test]
fn nmis_are_blocked_until_iret_and_one_waits() {
    let mut g = guest("xor %ebx, %ebx\n nop\n nop\n nop\n");
    assert_eq!(g.run(PROLOGUE + 2), RunExit::Budget);
    g.cpu.raise_nmi();
    // Into the handler, with another and a third behind its first instruction.
    assert_eq!(g.run(1), RunExit::Budget);
    assert!(g.cpu.state().nmi_blocked);
    g.cpu.raise_nmi();
    g.cpu.raise_nmi();
    assert_eq!(g.run(1), RunExit::Budget);
    // What waits is part of the state.
    let state = g.cpu.state();
    assert!(state.nmi_blocked && state.nmi_pending);
    let mut other = Cpu::new(g.memory.clone(), CpuModel::x86_64_v1());
    other.set_state(&state).expect("its own state");
    other.set_retired(g.cpu.retired());
    g.cpu = other;
    g.run_to_halt();
    // Two handlers, one behind the other and not inside it; the third NMI was the second.
    assert_eq!(g.outs(2), [0, 1]);
    assert_eq!(g.outs(3), [0, 1]);
    let s = g.cpu.state();
    assert!(!s.nmi_blocked && !s.nmi_pending);
    assert_eq!(g.cpu.retired(), PROLOGUE + 4 + 2 + 2 * 5);
}

#[test]
fn an_nmi_wakes_a_halted_cpu_and_an_interrupt_does_only_if_enabled() {
    let mut g = guest("xor %ebx, %ebx\n hlt\n mov $7, %ecx\n");
    g.run_to_halt();
    g.bus.pending = Some(0x21);
    assert_eq!(g.run(100), RunExit::Halted);
    g.cpu.raise_nmi();
    g.run_to_halt();
    assert_eq!(g.outs(2), [0]);
    assert_eq!(g.cpu.state().gpr[1], 7);
    assert!(g.outs(0x21).is_empty());
}
