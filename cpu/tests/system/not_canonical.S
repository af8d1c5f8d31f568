# Addresses that are not canonical (SDM vol. 1, 3.3.7.1): #GP(0), through RSP and RBP #SS(0); a near jump, call or
# return to one faults with nothing changed; INVLPG of one does nothing; LIDT refuses it.
# expect: d 0 70000  c 0 70000  c 0 0  d 0 70000  d 0 70000  d 0 6fff8  d 0 70000  d 0 70000
# unlike qemu: an address that is not canonical is #GP through any register
        gate 13, show
        gate 12, show_stack, 1
        movabsq $0x800000000000, %rbx
        faults movl (%rbx), %eax
        movq %rbx, %rbp
        faults movl (%rbp), %eax
        leaq 1f(%rip), %r15
        movabsq $0x8000000000000000, %rsp
        pushq %rax
    1:  faults jmp *%rbx
        faults call *%rbx
        pushq %rbx
        faults ret
        # The last bytes of an operand.
        faults movl -2(%rbx), %eax
        invlpg (%rbx)
        movw $0xfff, 0x700000
        movq %rbx, 0x700002
        faults lidt 0x700000
        hlt
    show_stack:
        emit 12
        jmp 1f
    show:
        emit 13
    1:  popq %r14
        emit_register %r14d
        # RSP as it was.
        movl 24(%rsp), %eax
        outl %eax, $0x10
        jmp resume
