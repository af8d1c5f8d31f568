# An instruction across the end of a page whose second page is missing, is another's or may not be executed: the
# fault is a fetch's, at that page's first byte, whatever the instruction would do (SDM vol. 3A, 4.7).
# expect: e 10 40001000  e 15 40001000  e 11 40001000  d 0
        movq $0x600007, 0x4000
        movq $0x700007, 0x600000
        # movl $..., %eax in the last three bytes.
        movb $0xb8, 0x700ffd
        movl $0x40000ffd, %ebx
        faults jmp *%rbx
        movq $0x701003, 0x600008
        leaq 1f(%rip), %r15
        to_user 0x40000ffd
    1:  movq $0x701007, 0x600008
        btsq $63, 0x600008
        invlpg 0x1000 - 0xffd(%rbx)
        faults jmp *%rbx
        # Sixteen bytes are no instruction, whatever the sixteenth is.
        movl $0x66666666, %eax
        movl $0x700100, %edi
        movl $4, %ecx
        rep stosl
        movl $0x40000100, %ebx
        faults jmp *%rbx
        hlt
