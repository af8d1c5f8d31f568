# MSRs: one that the model lacks is #GP(0), to read and to write; so are reserved bits of EFER, a memory type
# that does not exist in PAT, a base that is not canonical. A write of the TSC changes nothing: it is the
# machine's clock.
# expect: d 0  d 0  d 0  d 0  d 0  70406 1  1
# kvm: no, because KVM has MSRs that the model lacks
        movl $0x1a0, %ecx
        faults rdmsr
        movl $0xfe, %ecx
        faults wrmsr
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x4000, %eax
        faults wrmsr
        movl $0x277, %ecx
        movl $0x02, %eax
        xorl %edx, %edx
        faults wrmsr
        movl $0xc0000100, %ecx
        movl $0x8000, %edx
        faults wrmsr
        movl $0x277, %ecx
        movl $0x00070406, %eax
        movl $1, %edx
        wrmsr
        xorl %eax, %eax
        xorl %edx, %edx
        rdmsr
        outl %eax, $0x10
        emit_register %edx
        rdtsc
        movl %eax, %ebx
        movl $0x10, %ecx
        xorl %eax, %eax
        wrmsr
        rdtsc
        # Five instructions later, five ticks.
        subl %ebx, %eax
        cmpl $5, %eax
        sete %al
        movzbl %al, %eax
        outl %eax, $0x10
        hlt
