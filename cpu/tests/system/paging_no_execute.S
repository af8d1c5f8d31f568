# Execute-disable (SDM vol. 3A, 4.6.1): a fetch faults with I/D, from ring 3 with U as well; without
# EFER.NXE the bit is reserved.
# expect: 77  e 11 40000000  e 15 40000000  e 9 40000000
# unlike qemu: P is clear in the error code of a reserved bit
        movq $0x600007, 0x4000
        movq $0x700007, 0x600000
        # mov $0x77, %eax; out %eax, $0x10; jmp *%r15
        movb $0xb8, 0x700000
        movl $0x77, 0x700001
        movw $0x10e7, 0x700005
        movl $0xe7ff41, 0x700007
        movq $0x40000000, %rbx
        faults jmp *%rbx
        btsq $63, 0x600000
        invlpg (%rbx)
        faults jmp *%rbx
        leaq 1f(%rip), %r15
        to_user 0x40000000
    1:  movl $0xc0000080, %ecx
        rdmsr
        andl $~0x800, %eax
        wrmsr
        faults movl (%rbx), %eax
        hlt
