# Debug registers (SDM vol. 3B, 17.2): an instruction breakpoint faults before its instruction, and does so
# once if the handler sets RF in the frame, also where that instruction repeats; a data breakpoint traps
# behind; a read passes one that waits for writes; general detect, a fault whose frame has RF as it was, as
# processors have it and the manual does not; INT1 sets nothing in DR6.
# expect: 1 1 0 0  1 2 0 1  1 4 0 1  1 2000 0 1  1 1 0 1  0  1 0 0 2
# unlike qemu: it has no general detect, and an instruction breakpoint stops each iteration of a repetition
        gate 1, trapped
        xorl %ebx, %ebx
        movl $target, %eax
        movq %rax, %dr0
        movl $0x700004, %eax
        movq %rax, %dr1
        movl $0x700010, %eax
        movq %rax, %dr2
        # Execute at DR0; four bytes written at DR1; one byte accessed at DR2.
        movl $(3 << 24 | 0 << 26 | 1 << 20 | 3 << 22 | 0 << 16 | 0x400 | 0x2a), %eax
        movq %rax, %dr7
        movl $0x700000, %edi
        # So that no hypervisor has to map this page in the midst of the repetition below.
        movb $0, 0x702000
    target:
        incl %ebx
        movl 4(%rdi), %eax
        movw $1, 6(%rdi)
        movb $1, 8(%rdi)
        movb 0x10(%rdi), %al
        movq %dr7, %rax
        orl $0x2000, %eax
        movq %rax, %dr7
        movq %dr0, %rcx
        movl $3f, %eax
        movq %rax, %dr0
        movl $0x402, %eax
        movq %rax, %dr7
        movl $20, %ecx
        movl $0x702000, %edi
    3:  rep stosb
        emit_register %ecx
        xorl %eax, %eax
        movq %rax, %dr7
        incl %ebx
        .byte 0xf1
        hlt
    trapped:
        emit 1
        movq %dr6, %rax
        andl $0x600f, %eax
        outl %eax, $0x10
        movl 16(%rsp), %eax
        andl $0x10000, %eax
        outl %eax, $0x10
        movl %ebx, %eax
        outl %eax, $0x10
        # A fault (instruction breakpoint, general detect) is to go on.
        movq %dr6, %rax
        testl $0x2001, %eax
        jz 1f
        orl $0x10000, 16(%rsp)
    1:  movl $0xffff0ff0, %eax
        movq %rax, %dr6
        iretq
