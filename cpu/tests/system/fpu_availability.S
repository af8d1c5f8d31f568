# When x87, MMX and SSE are there (SDM vol. 3A, tables 2-2 and 13-1): CR0.TS, CR0.EM and CR0.MP, CR4.OSFXSR; where
# what they raise goes: CR4.OSXMMEXCPT, CR0.NE.
# expect: 7 7 7 7 7  7  6 7 6  6  10  13  6  99
# unlike qemu: unmasked exceptions of SSE raise nothing
        .macro set_cr0 on, off
        movq %cr0, %rax
        orq $\on, %rax
        andq $~\off, %rax
        movq %rax, %cr0
        .endm
        .macro set_cr4 on, off
        movq %cr4, %rax
        orq $\on, %rax
        andq $~\off, %rax
        movq %rax, %cr4
        .endm
        # TS, with MP.
        set_cr0 8, 0
        faults fninit
        faults paddb %mm0, %mm0
        faults addps %xmm0, %xmm0
        faults fxsave 0x700000
        faults fwait
        # TS without MP: FWAIT does not ask. These neither.
        set_cr0 0, 2
        faults fwait
        faults sfence
        faults prefetchnta 0x700000
        faults addps %xmm0, %xmm0
        clts
        # EM.
        set_cr0 6, 0
        faults addps %xmm0, %xmm0
        faults fninit
        faults paddb %mm0, %mm0
        set_cr0 2, 4
        # Without OSFXSR.
        set_cr4 0, 0x200
        faults addps %xmm0, %xmm0
        set_cr4 0x200, 0
        # 1 / 0 in x87: #MF at the next instruction that waits.
        fninit
        movw $0x37b, 0x700000
        fldcw 0x700000
        fld1
        fldz
        fdivrp
        faults fwait
        fninit
        # And in SSE: #XM, or #UD.
        movl $0x1d80, 0x700000
        ldmxcsr 0x700000
        movl $0x3f800000, 0x700000
        movss 0x700000, %xmm0
        xorps %xmm1, %xmm1
        faults divss %xmm1, %xmm0
        set_cr4 0, 0x400
        faults divss %xmm1, %xmm0
        emit 0x99
        hlt
