# What ring 3 may not do (SDM vol. 3A, 5.9; vol. 1, 19.5): #GP(0) each, with IOPL 0, no I/O bitmap, CR4.TSD set
# and CR4.PCE clear. SMSW, SGDT and SLDT it may.
# expect: d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 d 0 77
        .macro refused instruction:vararg
        leaq 1f(%rip), %r15
        to_user 2f
    2:  \instruction
        int $0x20
    1:
        .endm
        movq %cr4, %rax
        orq $4, %rax
        movq %rax, %cr4
        movl $0x10, %ecx
        refused hlt
        refused cli
        refused sti
        refused inb $0x80, %al
        refused outb %al, $0x80
        refused insb
        refused outsb
        refused clts
        refused invd
        refused wbinvd
        refused invlpg 0x700000
        refused lgdt 0x700000
        refused lidt 0x700000
        refused ltr %ax
        refused lldt %ax
        refused lmsw %ax
        refused movq %cr0, %rax
        refused movq %rax, %dr0
        refused rdmsr
        refused wrmsr
        refused rdtsc
        refused rdpmc
        refused sysretq
        refused sysexit
        refused smsw %eax
        refused sgdt 0x700000
        refused sldt %eax
        emit 0x77
        hlt
