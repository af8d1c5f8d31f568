# SYSRET to an address that is not canonical is #GP(0) in ring 0, as on Intel's processors.
# expect: d 0 8
# unlike amd: SYSRET checks nothing, and the fetch of the next instruction is ring 3's #GP (APM vol. 3)
        gate 13, show
        wrmsr64 0xc0000081, 0x0018000800000000
        movabsq $0x800000000000, %rcx
        movl $2, %r11d
        faults sysretq
        hlt
    show:
        popq %r14
        emit 13
        emit_register %r14d
        movl 8(%rsp), %eax
        outl %eax, $0x10
        jmp resume
