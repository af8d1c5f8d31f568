# Alignment (SDM vol. 3A, 6.15, interrupt 17): checked in ring 3 under CR0.AM and RFLAGS.AC, by the operand's size.
# expect: 11 0  11 0  11 0  1 2 3
# unlike qemu: it does not check alignment
        movl $0x700000, %ebx
        .macro checked instruction:vararg
        leaq 1f(%rip), %r15
        to_user 2f
    2:  pushfq
        orl $0x40000, (%rsp)
        popfq
        \instruction
        int $0x20
    1:
        .endm
        # Without AM.
        movl $1, 0x700001
        checked movl 1(%rbx), %esi
        movq %cr0, %rax
        orq $0x40000, %rax
        movq %rax, %cr0
        checked movl 1(%rbx), %eax
        checked movq 4(%rbx), %rax
        # The stack's operands too.
        leaq 1f(%rip), %r15
        to_user 2f
    2:  pushfq
        orl $0x40000, (%rsp)
        popfq
        decq %rsp
        pushq %rax
    1:
        emit_register %esi
        # Aligned, bytes, and ring 0.
        movb $2, 0x700005
        checked movzbl 5(%rbx), %esi
        emit_register %esi
        movl $3, 0x700009
        pushfq
        orl $0x40000, (%rsp)
        popfq
        movl 9(%rbx), %eax
        outl %eax, $0x10
        hlt
