# What control and debug registers and EFER refuse (SDM vol. 2, MOV; vol. 3A, 2.5): #GP(0); registers that do not
# exist #UD; DR4 is DR6 without CR4.DE. LMSW cannot clear PE.
# expect: d 0 d 0 d 0 d 0  d 0 d 0  d 0 d 0  d 0  d 0  d 0 d 0  6 6  ffff0ff0  6  1
# unlike qemu: it does not check what is written to CR4
        .macro refused register, bits, clear=0
        movq %\register, %rax
        movabsq $\bits, %rcx
        orq %rcx, %rax
        movabsq $~\clear, %rcx
        andq %rcx, %rax
        faults movq %rax, %\register
        .endm
        # PE cleared under PG, NW without CD, the upper half, PG cleared in 64-bit mode.
        refused cr0, 0, 1
        refused cr0, 1 << 29
        refused cr0, 1 << 32
        refused cr0, 0, 0x80000000
        # Reserved bits, PAE cleared in long mode.
        refused cr4, 1 << 30
        refused cr4, 0, 0x20
        refused cr3, 1 << 62
        # Without PCID.
        refused cr3, 1 << 63
        movl $16, %eax
        faults movq %rax, %cr8
        # LME cleared under PG.
        movl $0xc0000080, %ecx
        rdmsr
        andl $~0x100, %eax
        faults wrmsr
        refused dr6, 1 << 32
        refused dr7, 1 << 32
        faults .byte 0x0f, 0x20, 0xc8
        faults .byte 0x0f, 0x20, 0xf8
        # MOV from DR4.
        faults .byte 0x0f, 0x21, 0xe0
        outl %eax, $0x10
        movq %cr4, %rax
        orq $8, %rax
        movq %rax, %cr4
        faults .byte 0x0f, 0x21, 0xe0
        xorl %eax, %eax
        lmsw %ax
        smsw %eax
        andl $0xf, %eax
        outl %eax, $0x10
        hlt
