# What may not be loaded into a segment register (SDM vol. 2, MOV, LTR, LLDT): not present #NP, for SS #SS; a
# selector beyond the table, of the wrong type or privilege #GP(selector without RPL); null into SS by its RPL.
# expect: b 48  c 48  d 58  d 60  d 1000  d 20  d 38  d 4  d 0  d 38  d 38  d 10  d 0  d 0  5
# unlike qemu: LTR takes null, and SS in ring 0 any null
        lgdt table
        # 0x48 data not present, 0x50 code not present, 0x58 data read-only, 0x60 code execute-only.
        movabsq $0x00cf13000000ffff, %rax
        movq %rax, 0x8048
        movabsq $0x00af1b000000ffff, %rax
        movq %rax, 0x8050
        movabsq $0x00cf91000000ffff, %rax
        movq %rax, 0x8058
        movabsq $0x00cf99000000ffff, %rax
        movq %rax, 0x8060
        xorl %ebp, %ebp
        .macro loads selector, register
        movl $\selector, %eax
        faults movl %eax, \register
        .endm
        loads 0x48, %ds
        loads 0x48, %ss
        loads 0x58, %ss
        # Read-only data may be read.
        loads 0x58, %ds
        loads 0x60, %es
        loads 0x1000, %es
        loads 0x23, %ss
        loads 0x38, %fs
        # There is no LDT.
        loads 4, %gs
        loads 0, %ss
        loads 3, %ss
        # The TSS is busy, and no LDT; null is one.
        movl $0x38, %eax
        faults ltr %ax
        xorl %eax, %eax
        lldt %ax
        movl $0x38, %eax
        faults lldt %ax
        leaq 1f(%rip), %r15
        to_user 2f
    2:  movl $0x10, %eax
        movl %eax, %ds
    1:  leaq 1f(%rip), %r15
        to_user 2f
    2:  xorl %eax, %eax
        movl %eax, %ds
        movl %eax, %ss
        # Null is no TSS.
    1:  xorl %eax, %eax
        faults ltr %ax
        emit 5
        hlt
        .align 8
    table: .word 0xff
        .quad 0x8000
