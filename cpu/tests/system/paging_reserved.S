# Reserved bits (SDM vol. 3A, 4.5.4 and 4.7): bit 7 of a PML4 entry, bits below the frame of a large page.
# The error code has P and RSVD, and W and U as ever.
# expect: e 9 0  e b 10  e 9 40200000  e f 40200000
# unlike qemu: P is clear in the error code of a reserved bit
        movq $0x2087, 0x1008
        movq $0x8000000000, %rbx
        faults movl (%rbx), %eax
        faults movl $1, 0x10(%rbx)
        movq $0x202087, 0x4008
        movl $0x40200000, %ebx
        faults movl (%rbx), %eax
        leaq 1f(%rip), %r15
        to_user 2f
    2:  movl $1, (%rbx)
    1:  hlt
