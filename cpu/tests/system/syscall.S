# SYSCALL and SYSRET (SDM vol. 2): RCX and R11, masked flags, selectors out of STAR, and 32-bit SYSRET,
# which leads to compatibility mode.
# expect: 2b 23  8 10 0 46  7 2b  1b 23
        wrmsr64 0xc0000081, 0x001b000800000000
        movl $0xc0000082, %ecx
        movl $entry, %eax
        xorl %edx, %edx
        wrmsr
        wrmsr64 0xc0000084, 0x44700
        movl $user, %ecx
        movl $0x246, %r11d
        xorl %ebx, %ebx
        sysretq
    user:
        movl %cs, %r8d
        movl %ss, %r9d
        xorl %esi, %esi
        syscall
    after:
        movl $1, %ebx
        movl $5, %edi
        addl $2, %edi
        syscall
    entry:
        cmpl $2, %ebx
        je 3f
        cmpl $1, %ebx
        je 2f
        emit_register %r8d
        emit_register %r9d
        movl %cs, %eax
        outl %eax, $0x10
        movl %ss, %eax
        outl %eax, $0x10
        pushfq
        popq %rax
        andl $0x44700, %eax
        outl %eax, $0x10
        # IF and status as they were, without what the mask takes.
        movl %r11d, %eax
        andl $0x46, %eax
        outl %eax, $0x10
        sysretq
    2:  emit_register %edi
        emit_register %r8d
        # A gate for the way back, since SYSCALL in compatibility mode goes elsewhere.
        gate 0x21, from_32, 0, 0xee
        movl $compatible, %ecx
        sysretl
        .code32
    compatible:
        movl %cs, %esi
        movl %ss, %edi
        int $0x21
        .code64
    from_32:
        emit_register %esi
        emit_register %edi
    3:  hlt
