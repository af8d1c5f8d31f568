# Frames start at a multiple of 16 below RSP, IST or RSP0, five or six quadwords (SDM vol. 3A, 6.14.2);
# ring 0 keeps its stack without IST; the SS of a change of ring is null.
# expect: 6ffc8  6ffc0  7bfd8  77fd8 0 23
        gate 6, show
        gate 13, show_error
        movq $0x6fff9, %rsp
        leaq 1f(%rip), %r15
        ud2
    1:  movq $0x6fff9, %rsp
        leaq 1f(%rip), %r15
        movabsq $0x8000000000000000, %rbx
        movl (%rbx), %eax
    1:  gate 6, show, 1
        leaq 1f(%rip), %r15
        ud2
    1:  gate 6, show_ss
        leaq 1f(%rip), %r15
        to_user 2f
    2:  ud2
    1:  hlt
    show:
        emit_register %esp
        jmp resume
    show_error:
        emit_register %esp
        addq $8, %rsp
        jmp resume
    show_ss:
        emit_register %esp
        movl %ss, %eax
        outl %eax, $0x10
        movl 32(%rsp), %eax
        outl %eax, $0x10
        jmp resume
