# TF traps behind each instruction, from the one behind the POPF that sets it to the POPF that clears it
# (SDM vol. 3B, 17.3.1.4); DR6.BS tells. INT clears TF and is not trapped; what its IRET goes back to is.
# MOV SS is trapped together with the instruction behind it; STI by itself.
# expect: 6 4000  4 4000  4 4000  5 4000
# unlike qemu: STI is trapped together with the instruction behind it
        .macro traced instructions:vararg
        xorl %ebx, %ebx
        pushfq
        orq $0x100, (%rsp)
        popfq
        .endm
        .macro untraced
        pushfq
        andq $~0x100, (%rsp)
        popfq
        emit_register %ebx
        emit_register %ebp
        .endm
        gate 1, stepped
        gate 0x61, soft
        movl %ss, %ecx
        traced
        nop
        nop
        nop
        untraced
        traced
        int $0x61
        nop
        untraced
        traced
        movl %ecx, %ss
        nop
        untraced
        traced
        sti
        cli
        untraced
        hlt
    stepped:
        incl %ebx
        movq %dr6, %rbp
        andl $0x400f, %ebp
        movl $0xffff0ff0, %eax
        movq %rax, %dr6
        iretq
    soft:
        nop
        nop
        iretq
