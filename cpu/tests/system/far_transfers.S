# Far jumps and returns (SDM vol. 2, JMP, RET, IRET): what the target and the stack segment must be; a conforming
# segment keeps the privilege; a return goes outward only.
# expect: d 10  b 50  d 0  d 28  73  d 8  2b 23 62000  d 8  d 0  d 10  d 58  d 1000
        lgdt table
        # 0x50 code not present, 0x58 data read-only, 0x70 conforming code.
        movabsq $0x00af1b000000ffff, %rax
        movq %rax, 0x8050
        movabsq $0x00cf91000000ffff, %rax
        movq %rax, 0x8058
        movabsq $0x00af9f000000ffff, %rax
        movq %rax, 0x8070
        movl $3f, 0x700000
        .irp selector, 0x10, 0x50, 0, 0x2b
        movw $\selector, 0x700004
        faults ljmp *0x700000
        .endr
        movw $0x70, 0x700004
        leaq 1f(%rip), %r15
        to_user 2f
    2:  ljmp *0x700000
    3:  movl %cs, %esi
        int $0x20
    1:  emit_register %esi
        movw $8, 0x700004
        leaq 1f(%rip), %r15
        to_user 2f
    2:  ljmp *0x700000
        # Outward, with a stack.
    1:  leaq 1f(%rip), %r15
        pushq $USER_DATA
        pushq $0x62000
        pushq $USER_CODE
        pushq $2f
        lretq
    2:  movl %cs, %esi
        movl %ss, %edi
        movl %esp, %ebp
        int $0x20
    1:  emit_register %esi
        emit_register %edi
        emit_register %ebp
        # Inward.
        leaq 1f(%rip), %r15
        to_user 2f
    2:  pushq $8
        pushq $1f
        lretq
    1:  movabsq $0x800000000000, %rax
        pushq $8
        pushq %rax
        faults lretq
        # To ring 3 with the stack segment of ring 0, with one that cannot be written, with none.
        .irp selector, 0x10, 0x5b, 0x1003
        pushq $\selector
        pushq $0x62000
        pushq $2
        pushq $USER_CODE
        pushq $1f
        faults iretq
        .endr
    1:  hlt
        .align 8
    table: .word 0xff
        .quad 0x8000
