# A contributory exception during the delivery of another is #DF with error code 0, here on IST1
# (SDM vol. 3A, 6.15, interrupt 8); a benign one first is not.
# expect: 8 0 7bfd0  b 6a  8 0 7bfd0
# unlike qemu: #NP in the delivery of #GP is no #DF, and error codes of gates are vector * 16 + 2
        gate 8, on_ist, 1
        movb $0x0e, IDT + 13 * 16 + 5
        # #GP, whose gate is not present: #NP.
        movabsq $0x8000000000000000, %rbx
        faults movl (%rbx), %eax
        # INT of the same vector is no exception: #NP alone, EXT clear.
        faults int $13
        # #DE is contributory too.
        movb $0x0e, IDT + 5
        movb $0x0e, IDT + 11 * 16 + 5
        xorl %ecx, %ecx
        faults divl %ecx
        hlt
    on_ist:
        movq %rsp, %r13
        popq %r14
        emit 8
        emit_register %r14d
        emit_register %r13d
        jmp resume
