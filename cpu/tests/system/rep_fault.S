# A repetition that faults leaves RCX, RSI and RDI at the element that faulted (SDM vol. 2, REP), up and down,
# and goes on when restarted. A byte copy onto itself, shifted by one, spreads the first byte.
# expect: e 2 40001000  4 40001000 700ffc  e 2 3ffffffe  6 3ffffffe  0  aaaaaaaa
        movq $0x600007, 0x4000
        movq $0x700007, 0x600000
        movq $0, 0x3ff8
        cld
        movl $0x40000ff0, %edi
        movl $0x700fec, %esi
        movl $20, %ecx
        leaq 1f(%rip), %r15
        rep movsb
    1:  emit_register %ecx
        emit_register %edi
        emit_register %esi
        std
        movl $0x40000002, %edi
        movl $9, %ecx
        subl $1, %ecx
        leaq 1f(%rip), %r15
        rep stosw
    1:  emit_register %ecx
        emit_register %edi
        # Map the missing page and go on.
        movq $0x400087, 0x3ff8
        invlpg (%rdi)
        std
        rep stosw
        cld
        emit_register %ecx
        movl $0x702000, %esi
        movb $0xaa, (%rsi)
        leal 1(%rsi), %edi
        movl $100, %ecx
        rep movsb
        emit_register 0x702060
        hlt
