//! What decoded blocks, their links and the translation caches must not change: anything.

mod guest;
use guest::Guest;
use lockstep_cpu::RunExit;

/// Runs to HLT in pieces of at most `most` instructions, of pseudo-random length.
fn run_cut(guest: &mut Guest, most: u64) {
    let mut seed = most;
    loop {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        match guest.run(1 + (seed >> 33) % most) {
            RunExit::Budget => {}
            RunExit::Halted => return,
            other => panic!("{other:?} at RIP {:#x}", guest.cpu.state().rip),
        }
    }
}

/// A routine in a page of its own, one of whose immediates is rewritten before each call.
const REWRITTEN: &str = "
    xor %eax, %eax
    mov $60000, %ecx
1:  incb routine + 3
    call routine
    dec %ecx
    jnz 1b
    hlt
    .balign 4096
routine:
    .rept 44
    add $1, %rax
    .endr
    ret
";

#[test]
fn a_full_block_cache_starts_anew_and_changes_nothing() {
    // 60,000 times 46 ops of 32 bytes are more than the 64 MiB that decoded code may take.
    let mut g = Guest::assembly(REWRITTEN);
    g.run_to_halt();
    // The immediate is signed, and wraps.
    let first: i64 = (1..=60_000_u64).map(|n| i64::from((n + 1) as i8)).sum();
    assert_eq!(g.cpu.state().gpr[0] as i64, first + 43 * 60_000);
    assert_eq!(g.cpu.retired(), 3 + 60_000 * 49);
}

#[test]
fn blocks_run_into_each_other_on_a_bounded_stack() {
    // FXSAVE has a buffer on the stack, which may keep its handler from ending in a jump.
    let source = "
    mov $200000, %ecx
1:  fxsave 0x200000
    jmp 2f
2:  fxrstor 0x200000
    dec %ecx
    jnz 1b
    hlt
";
    let code = guest::compile(source, "S", &[]);
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(move || Guest::new(&code).run_to_halt())
        .expect("a thread")
        .join()
        .expect("no overflow");
}

#[test]
fn code_that_a_device_wrote_is_executed_as_written() {
    let mut g = Guest::assembly("1: add $1, %eax\n jmp 2f\n nop\n2: jmp 1b\n");
    assert_eq!(g.run(30_000), RunExit::Budget);
    assert_eq!(g.cpu.state().gpr[0], 10_000);
    // The immediate of the ADD, in blocks that are linked in a ring.
    let word = g.read_u64(guest::ENTRY);
    g.write_u64(guest::ENTRY, word & !0xff_0000 | 5 << 16);
    g.cpu.memory_written(guest::ENTRY, 8);
    assert_eq!(g.run(30_000), RunExit::Budget);
    assert_eq!(g.cpu.state().gpr[0], 60_000);
}

/// Clears accessed bits without INVLPG and notes when they come back: for data, and for the two code
/// pages (4 MiB apart, so that they displace one another) that call each other. The page directory of
/// the first GiB is at 0x3000.
const ACCESSED: &str = "
    .set far, 0x500000
    mov $routine, %esi
    mov $far, %edi
    mov $(end - routine), %ecx
    rep movsb
    xor %eax, %eax
    mov $300, %ecx
1:  andq $~0x20, 0x3010         /* 0x400000: the far code */
    andq $~0x20, 0x3020         /* 0x800000: data */
    mov 0x800000, %rdx
    cmp $100, %ecx
    jb 2f
    mov $far, %edx
    call *%rdx
    jmp 3f
2:  mov $far, %edx
    test $3, %ecx
    jz 3f
    call *%rdx
3:  mov 0xc00000, %rdx          /* displaces the data's translation */
    movq $5, routine - 8        /* a page of code: written the slow way */
    rol $1, %rax
    xor 0x3010, %rax
    rol $1, %rax
    xor 0x3020, %rax
    dec %ecx
    jnz 1b
    hlt
    .quad 0
routine:
    test $1, %cl
    jz 4f
    nopw 0(%rax,%rax,1)
    mov 0x800008, %rdx
4:  ret
end:
";

#[test]
fn accessed_bits_do_not_depend_on_where_a_run_is_cut() {
    let mut whole = Guest::assembly(ACCESSED);
    whole.run_to_halt();
    let state = whole.cpu.state();
    let code = guest::compile(ACCESSED, "S", &[]);
    for most in [1, 2, 3, 7, 50, 1000] {
        let mut cut = Guest::new(&code);
        run_cut(&mut cut, most);
        assert_eq!(cut.cpu.retired(), whole.cpu.retired(), "pieces of {most}");
        assert_eq!(cut.cpu.state(), state, "pieces of {most}");
        for at in (0x3000..0x4000).step_by(8) {
            assert_eq!(
                cut.read_u64(at),
                whole.read_u64(at),
                "pieces of {most}, entry at {at:#x}"
            );
        }
    }
}
