# SYSENTER and SYSEXIT (SDM vol. 2): selectors from SYSENTER_CS, stack and entry from the MSRs; a null
# selector is #GP(0).
# expect: d 0  8 10 71000 0  2b 62000
# unlike amd: SYSENTER and SYSEXIT are #UD in long mode (APM vol. 3), and KVM leaves them to the software CPU
        faults sysenter
        wrmsr64 0x174, 8
        movl $0x175, %ecx
        movl $0x71000, %eax
        xorl %edx, %edx
        wrmsr
        movl $0x176, %ecx
        movl $entry, %eax
        wrmsr
        to_user user
    user:
        sysenter
    entry:
        movl %cs, %eax
        outl %eax, $0x10
        movl %ss, %eax
        outl %eax, $0x10
        emit_register %esp
        pushfq
        popq %rax
        andl $0x200, %eax
        outl %eax, $0x10
        movl $there, %edx
        movl $0x62000, %ecx
        rex.w sysexit
    there:
        movl %cs, %esi
        movl %esp, %edi
        to_kernel
        emit_register %esi
        emit_register %edi
        hlt
