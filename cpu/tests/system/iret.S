# IRET in 64-bit mode (SDM vol. 2): always pops SS:RSP; NT is #GP; a frame that is not canonical is #GP
# with nothing changed; ring 3 changes neither IF nor IOPL; 32-bit frames.
# expect: 6b000 10  d 0  d 0  0  6c000
# unlike bochs: IRETD to the same privilege leaves SS:RSP
        movq $0x6b000, %rbx
        pushq $0x10
        pushq %rbx
        pushq $2
        pushq $8
        pushq $1f
        iretq
    1:  emit_register %esp
        movl %ss, %eax
        outl %eax, $0x10
        pushfq
        orq $0x4000, (%rsp)
        popfq
        faults iretq
        # resume cleared NT by the frame's flags.
        movq $0x70000, %rsp
        pushq $0x10
        pushq %rbx
        pushq $2
        pushq $8
        movabsq $0x800000000000, %rax
        pushq %rax
        faults iretq
        # From ring 3 to ring 3, with IF and IOPL set in the frame.
        leaq 1f(%rip), %r15
        to_user 2f
    2:  pushq $USER_DATA
        pushq $USER_STACK
        pushq $0x3202
        pushq $USER_CODE
        pushq $3f
        iretq
    3:  pushfq
        popq %rsi
        andl $0x3200, %esi
        int $0x20
    1:  emit_register %esi
        movl $0x6c000, %ebx
        subq $20, %rsp
        movl $1f, (%rsp)
        movl $8, 4(%rsp)
        movl $2, 8(%rsp)
        movl %ebx, 12(%rsp)
        movl $0x10, 16(%rsp)
        iretl
    1:  emit_register %esp
        hlt
