# An operand across a page's end whose second page is missing: CR2 is that page's first byte, and nothing
# of the first is written, also when the instruction reads before it writes.
# expect: e 2 40001000  11111111  e 2 40001000  11111111  e 0 40001000
# unlike qemu: what reads before it writes faults as a read
        movq $0x600007, 0x4000
        movq $0x700007, 0x600000
        movl $0x11111111, 0x700ffc
        movq $0x40000ffe, %rbx
        faults movl $0x22222222, (%rbx)
        emit_register 0x700ffc
        faults addl $5, (%rbx)
        emit_register 0x700ffc
        faults movl (%rbx), %eax
        hlt
