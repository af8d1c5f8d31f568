# SYSRET makes the selectors' RPL 3, whatever STAR has there (SDM vol. 2).
# expect: 2b 23
# unlike amd: SYSRET takes the RPL of SS from STAR (APM vol. 3)
        wrmsr64 0xc0000081, 0x0018000800000000
        leaq 1f(%rip), %r15
        movl $user, %ecx
        movl $2, %r11d
        sysretq
    user:
        movl %cs, %esi
        movl %ss, %edi
        int $0x20
    1:  emit_register %esi
        emit_register %edi
        hlt
