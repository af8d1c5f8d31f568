# A 1-GiB page, a 2-MiB page and 4-KiB pages of one frame; an operand across the end of a large page;
# rights are the strictest of the walk's.
# expect: 12345678 12345678 12345678  5678  e 3 40000000
        movl $0x12345678, 0x700000
        movq $0x87, 0x2010
        movl $0x80700000, %ebx
        emit_register (%rbx)
        movq $0x600007, 0x4000
        movq $0x700007, 0x600000
        movl $0x40000000, %ebx
        emit_register (%rbx)
        movq $0x600087, 0x4008
        movl $0x40300000, %ebx
        emit_register (%rbx)
        # The last two bytes of the page at 0x40000000 + 2 MiB - 4 KiB, the first two of the next.
        movq $0x701007, 0x600ff8
        movw $0x5678, 0x701ffe
        movw $0, 0x600000
        movl $0x401ffffe, %ebx
        movw $0, 0x600000 + 0x100000
        movq $0x400087, 0x4008
        invlpg 2(%rbx)
        movw $0, 0x400000
        emit_register (%rbx)
        # Writable in the last entry, not in the one above.
        movq $0x600005, 0x4000
        movq $0x700007, 0x600000
        movq %cr3, %rax
        movq %rax, %cr3
        movl $0x40000000, %ebx
        faults movl $1, (%rbx)
        hlt
