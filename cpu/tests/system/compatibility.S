# Compatibility mode (SDM vol. 3A, 9.7): 32-bit operands, INC and DEC of one byte, PUSHA, limits of segments
# (#GP; #SS through SS), a far call there and back, what is undefined there.
# expect: 7 33  d 0  c 0  6  d 0  99 12345678
# unlike qemu: it knows no limits of segments
        # 0x48: data, base 0x700000, limit 0xfff bytes, ring 3.
        movabsq $0x0040f37000000fff, %rax
        movq %rax, 0x8048
        # The GDT reaches that far.
        gate 0x21, report, 0, 0xee
        movl $0x12345678, 0x700010
        leaq 1f(%rip), %r15
        to_user first, USER_CODE_32
    1:  .set LIMITED, 0x4b
        .irp n, 1, 2, 3, 4
        leaq 1f(%rip), %r15
        to_user part\n, USER_CODE_32
    1:
        .endr
        # A far call into 32-bit code of this ring and its far return.
        movl $far, 0x700100
        movw $KERNEL_CODE_32, 0x700104
        lcall *0x700100
        emit_register %ebx
        emit_register 0x700200
        hlt
    report:
        emit_register %ecx
        emit_register %ebx
        jmp resume
        .code32
    first:
        movl $5, %ecx
        incl %ecx
        .byte 0x41
        movl %cs, %ebx
        pushal
        popal
        int $0x21
        # Inside the limit, then beyond it.
    part1:
        # IRET took DS away, which was the kernel's.
        movl $USER_DATA, %eax
        movl %eax, %ds
        movl $LIMITED, %eax
        movl %eax, %es
        movl %es:0x10, %ebx
        movl %ebx, 0x700200
        movl %es:0xffd, %ebx
        ud2
    part2:
        movl $LIMITED, %eax
        movl %eax, %ss
        movl $0x1002, %esp
        popl %eax
        ud2
    part3:
        ud2
    part4:
        # A target beyond CS's limit cannot be, with 4 GiB; a privileged instruction can.
        cli
        hlt
    far:
        movl $0x98, %ebx
        .byte 0x43
        lret
        .code64
