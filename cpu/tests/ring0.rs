//! Freestanding 64-bit ring-0 programs.

mod guest;
use guest::Guest;
use lockstep_cpu::RunExit;

const C_PRELUDE: &str = r#"
typedef unsigned long u64; typedef unsigned int u32; typedef unsigned char u8;
static inline void out(unsigned short p, u32 v) { __asm__ volatile("outl %0, %1" :: "a"(v), "Nd"(p)); }
void guest(void);
__attribute__((naked, section(".text.unlikely"))) void _start(void) { __asm__("call guest; hlt"); }
"#;

#[test]
fn retires_exactly_the_budget() {
    let mut g = Guest::assembly("mov $1000, %ecx\n1: inc %rax\n dec %ecx\n jnz 1b\n hlt\n");
    for n in 1..=200_u64 {
        assert_eq!(g.run(7), RunExit::Budget);
        assert_eq!(g.cpu.retired(), 7 * n);
        // After the first instruction, three instructions a round.
        assert_eq!(g.cpu.state().gpr[0], (7 * n - 1).div_ceil(3));
    }
    g.run_to_halt();
    assert_eq!(g.cpu.retired(), 3002);
}

#[test]
fn c_program_computes_primes_and_crc() {
    let source = format!(
        "{C_PRELUDE}{}",
        r#"
static u8 sieve[100000];
static u32 crc(const u8 *p, u64 n) { u32 c = ~0u; for (u64 i = 0; i < n; i++) { c ^= p[i]; for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0); } return ~c; }
static u64 gcd(u64 a, u64 b) { return b ? gcd(b, a % b) : a; }
void guest(void) {
    u32 n = 0;
    for (u32 i = 2; i < sizeof sieve; i++) if (!sieve[i]) { n++; for (u64 j = (u64)i * i; j < sizeof sieve; j += i) sieve[j] = 1; }
    out(0x10, n);
    out(0x11, crc((const u8 *)"123456789", 9));
    out(0x12, gcd(1234567890123456789ul * 6, 987654321ul * 6));
    __int128 x = -1234567890123456789l; x *= 987654321987654321l; out(0x13, (u32)(x >> 64)); out(0x13, (u32)((x >> 32)));
    long d = -7; out(0x14, d / 2); out(0x14, d % 2);
}
"#
    );
    let mut g = Guest::c(&source);
    g.run_to_halt();
    assert_eq!(g.outs(0x10), [9592]);
    assert_eq!(g.outs(0x11), [0xcbf4_3926]);
    assert_eq!(g.outs(0x12), [54]);
    let x = -1234567890123456789_i128 * 987654321987654321;
    assert_eq!(g.outs(0x13), [(x >> 64) as u32, (x >> 32) as u32]);
    assert_eq!(g.outs(0x14), [-3_i32 as u32, -1_i32 as u32]);
}

#[test]
fn rep_counts_each_iteration_and_can_be_cut_anywhere() {
    let source =
        "cld\n mov $0x200000, %edi\n mov $0x100000, %esi\n mov $5000, %ecx\n rep movsb\n hlt\n";
    let mut whole = Guest::assembly(source);
    whole.run_to_halt();
    assert_eq!(whole.cpu.retired(), 4 + 5000 + 1);
    let mut cut = Guest::assembly(source);
    assert_eq!(cut.run(4 + 123), RunExit::Budget);
    let s = cut.cpu.state();
    assert_eq!(
        (s.gpr[1], s.gpr[6], s.gpr[7]),
        (4877, 0x10_0000 + 123, 0x20_0000 + 123)
    );
    cut.run_to_halt();
    assert_eq!(cut.cpu.retired(), whole.cpu.retired());
    assert_eq!(cut.cpu.state(), whole.cpu.state());
}

#[test]
fn exceptions_and_interrupts_go_through_the_idt() {
    let source = r#"
        .macro gate n, handler
        mov $\handler, %rax
        mov $(0x500000 + \n * 16), %rdi
        mov %ax, (%rdi)
        movw $8, 2(%rdi)
        movw $0x8e00, 4(%rdi)
        shr $16, %rax
        mov %ax, 6(%rdi)
        .endm
        gate 0, de
        gate 6, ud
        gate 13, gp
        gate 14, pf
        gate 0x80, soft
        gate 0x21, irq
        lidt idtr
        xor %ecx, %ecx
        xor %edx, %edx
        mov $1, %eax
        div %ecx
        ud2
        int $0x80
        mov $0x8000000000000000, %rbx
        mov (%rbx), %rax
        movq $0, 0x3008
        mov $0x200000, %ebx
        invlpg (%rbx)
        movb $1, 0x123(%rbx)
        sti
        mov $0x55, %al
        outb %al, $0xf4
        nop
        hlt
        cli
        hlt
    de: mov $0xde, %al; outb %al, $0x10; addq $2, (%rsp); iretq
    ud: mov $0x0d, %al; outb %al, $0x10; addq $2, (%rsp); iretq
    soft: mov $0x80, %al; outb %al, $0x10; iretq
    gp: pop %rax; mov $0x13, %al; outb %al, $0x10; addq $3, (%rsp); iretq
    pf: pop %rax; outb %al, $0x10; mov %cr2, %rax; outl %eax, $0x11; addq $7, (%rsp); iretq
    irq: mov $0x21, %al; outb %al, $0x10; iretq
        .align 8
    idtr: .word 0x8ff; .quad 0x500000
    "#;
    let mut g = Guest::assembly(source);
    g.bus.raise_on_f4 = Some(0x21);
    g.run_to_halt();
    assert_eq!(g.outs(0x10), [0xde, 0x0d, 0x80, 0x13, 2, 0x21]);
    assert_eq!(g.outs(0x11), [0x20_0123]);
    // The first HLT; an interrupt wakes it to the second.
    assert_ne!(g.cpu.state().rflags & 0x200, 0);
    g.bus.pending = Some(0x21);
    g.run_to_halt();
    assert_eq!(g.cpu.state().rflags & 0x200, 0);
    assert_eq!(g.outs(0x10).len(), 7);
}

#[test]
fn triple_fault_names_the_first_exception() {
    let mut g = Guest::assembly("nop\n ud2\n");
    assert_eq!(
        g.run(100),
        RunExit::TripleFault {
            rip: guest::ENTRY + 1,
            vector: 6
        }
    );
    assert_eq!(g.cpu.retired(), 1);
}

#[test]
fn mmio_goes_to_the_bus_with_its_position() {
    let mut g = Guest::assembly(
        "nop\n mov $0xd0000000, %ebx\n movl $0x11223344, 8(%rbx)\n mov 4(%rbx), %rax\n addb $1, (%rbx)\n hlt\n",
    );
    g.run_to_halt();
    assert_eq!(
        g.bus.mmio,
        [
            (2, 0xd000_0008, vec![0x44, 0x33, 0x22, 0x11]),
            (4, 0xd000_0000, vec![1])
        ]
    );
    assert_eq!(g.cpu.state().gpr[0], 3 << 32 | 0xd000_0004);
}

#[test]
fn stop_is_honoured_behind_the_access() {
    let mut g = Guest::assembly("nop\n out %al, $0xf5\n nop\n hlt\n");
    assert_eq!(g.run(100), RunExit::StopRequested);
    assert_eq!(g.cpu.retired(), 2);
    g.bus.stop = false;
    g.run_to_halt();
}

#[test]
fn code_that_rewrites_itself_runs_as_rewritten() {
    // The immediate of the MOV behind the store is patched while its block runs.
    let source = "mov $3, %ecx\n1: mov %cl, 2f+1(%rip)\n2: mov $0x7f, %al\n out %al, $0x10\n dec %ecx\n jnz 1b\n hlt\n";
    let mut g = Guest::assembly(source);
    g.run_to_halt();
    assert_eq!(g.outs(0x10), [3, 2, 1]);
}

#[test]
fn tsc_counts_instructions() {
    let mut g = Guest::assembly("nop\n rdtsc\n mov %eax, %ebx\n nop\n rdtsc\n hlt\n");
    g.cpu.set_tsc(1000);
    g.run_to_halt();
    let s = g.cpu.state();
    assert_eq!((s.gpr[3], s.gpr[0]), (1001, 1004));
}

/// A program with timer-like interrupts, repetitions, faults and code that changes under it.
const BUSY: &str = r#"
        mov $0x500000, %edi
        mov $irq, %rax
        mov %ax, 0x210(%rdi); movw $8, 0x212(%rdi); movw $0x8e00, 0x214(%rdi); shr $16, %rax; mov %ax, 0x216(%rdi)
        mov $ud, %rax
        mov %ax, 0x60(%rdi); movw $8, 0x62(%rdi); movw $0x8e00, 0x64(%rdi); shr $16, %rax; mov %ax, 0x66(%rdi)
        lidt idtr
        sti
        mov $200, %r12d
    1:  mov $0x300000, %edi
        mov $0x100000, %esi
        lea 3(%r12), %ecx
        rep movsb
        mov $0x300001, %edi
        mov $97, %ecx
        mov %r12b, %al
        rep stosw
        mov $0x300000, %esi
        mov $0x300101, %edi
        mov $300, %ecx
        repe cmpsb
        pushfq
        pop %rbx
        add %rbx, %r13
        ud2
        mov %r12b, 2f+1(%rip)
    2:  mov $0, %al
        add %rax, %r13
        cli
        add %rcx, %r13
        sti
        out %al, $0xf4
        rol $7, %r13
        rdtsc
        add %rax, %r13
        dec %r12d
        jnz 1b
        cli
        hlt
    ud: addq $2, (%rsp); inc %r14; iretq
    irq: inc %r15; add %r12, %r13; iretq
        .align 8
    idtr: .word 0x8ff; .quad 0x500000
"#;

#[test]
fn a_run_cut_anywhere_ends_like_an_uncut_one() {
    let mut whole = Guest::assembly(BUSY);
    whole.bus.raise_on_f4 = Some(0x21);
    whole.run_to_halt();
    let s = whole.cpu.state();
    assert_eq!((s.gpr[14], s.gpr[15]), (200, 200));
    let code = guest::compile(BUSY, "S", &[]);
    let mut seed = 7_u64;
    for round in 0..20 {
        let mut cut = Guest::new(&code);
        cut.bus.raise_on_f4 = Some(0x21);
        loop {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let budget = if round == 0 {
                1
            } else {
                1 + (seed >> 33) % (1 << (round % 12))
            };
            let before = cut.cpu.retired();
            match cut.run(budget) {
                RunExit::Budget => assert_eq!(cut.cpu.retired(), before + budget),
                RunExit::Halted => break,
                other => panic!("{other:?}"),
            }
            if round % 3 == 2 {
                // A state that went out and in again is the same state.
                let state = cut.cpu.state();
                cut.cpu.set_state(&state).expect("its own state");
            }
        }
        assert_eq!(cut.cpu.retired(), whole.cpu.retired(), "round {round}");
        assert_eq!(cut.cpu.state(), whole.cpu.state(), "round {round}");
        assert_eq!(cut.bus.out, whole.bus.out, "round {round}");
        for at in (0x30_0000..0x30_1000).step_by(8) {
            assert_eq!(
                cut.read_u64(at),
                whole.read_u64(at),
                "round {round}, memory at {at:#x}"
            );
        }
    }
}

#[test]
fn shadow_of_sti_holds_interrupts_off_for_one_instruction() {
    let mut g = Guest::assembly(
        "mov $0x500000, %edi\n mov $irq, %rax\n mov %ax, 0x210(%rdi)\n movw $8, 0x212(%rdi)\n movw $0x8e00, 0x214(%rdi)\n\
         shr $16, %rax\n mov %ax, 0x216(%rdi)\n lidt idtr\n\
         out %al, $0xf4\n sti\n inc %ebx\n inc %ebx\n\
         cli\n hlt\n\
         irq: mov %ebx, %eax\n out %eax, $0x10\n iretq\n .align 8\n idtr: .word 0x8ff\n .quad 0x500000\n",
    );
    g.bus.raise_on_f4 = Some(0x21);
    g.run_to_halt();
    assert_eq!(g.outs(0x10), [1]);
}

#[test]
fn syscall_and_sysret_cross_to_user_code_and_back() {
    let mut g = Guest::assembly(
        "mov $0xc0000081, %ecx\n xor %eax, %eax\n mov $0x00180008, %edx\n wrmsr\n inc %ecx\n mov $entry, %eax\n xor %edx, %edx\n wrmsr\n\
         mov $0xc0000084, %ecx\n mov $0x200, %eax\n wrmsr\n\
         mov $user, %ecx\n mov $0x202, %r11d\n sysretq\n\
         user: mov %cs, %eax\n mov $5, %ebx\n syscall\n ud2\n\
         entry: out %eax, $0x10\n mov %cs, %eax\n out %eax, $0x10\n pushfq\n pop %rax\n and $0x200, %eax\n out %eax, $0x10\n hlt\n",
    );
    g.run_to_halt();
    assert_eq!(g.outs(0x10), [0x2b, 8, 0]);
}
