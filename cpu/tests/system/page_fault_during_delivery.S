# A page fault while #UD is delivered (its IST stack is not mapped) is delivered itself; one while a page
# fault is delivered is #DF, and CR2 is the second one's.
# expect: e 2 7fffffe8  8 0 7fffffe8
        movq $0, 0x4ff8
        movq $0x80000000 - 16, %rax
        movq %rax, TSS + 0x2c
        gate 6, record6, 2
        faults ud2
        gate 14, record14, 2
        gate 8, second, 1
        movq $0, 0x4ff0
        faults movl 0x7fc00000, %eax
        hlt
    second:
        popq %r14
        emit 8
        emit_register %r14d
        movq %cr2, %rax
        outl %eax, $0x10
        jmp resume
