# SWAPGS exchanges GS's base with the MSR's; ring 3 may not; a base that is not canonical is refused.
# expect: 1111 2222 1111  d 0  d 0
# unlike qemu: it does not check whether a base is canonical
        movl $0x1111, 0x700000
        movl $0x2222, 0x701000
        wrmsr64 0xc0000101, 0x700000
        wrmsr64 0xc0000102, 0x701000
        emit_register %gs:0
        swapgs
        emit_register %gs:0
        swapgs
        emit_register %gs:0
        leaq 1f(%rip), %r15
        to_user 2f
    2:  swapgs
    1:  movl $0xc0000102, %ecx
        xorl %eax, %eax
        movl $0x8000, %edx
        faults wrmsr
        hlt
