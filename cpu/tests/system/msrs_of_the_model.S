# The model has no MISC_ENABLE. A write of its TSC changes nothing: it is the machine's clock, which counts
# instructions.
# expect: d 0  1
# unlike kvm: KVM has a MISC_ENABLE whatever CPUID says, and a TSC that counts time, which the guest may set
        movl $0x1a0, %ecx
        faults rdmsr
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
