# MSRs: one that does not exist is #GP(0), to read and to write; so is a write of one that is read-only, are
# reserved bits of EFER, a memory type that does not exist in PAT, a base that is not canonical.
# expect: d 0  d 0  d 0  d 0  d 0  d 0  70406 1
# unlike qemu: it does not check whether a base is canonical
        movl $0x9999, %ecx
        faults rdmsr
        faults wrmsr
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
        hlt
