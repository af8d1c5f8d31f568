# Code that changes takes effect at the next instruction, without a serializing one (SDM vol. 3A, 8.1.3, what
# processors do on one CPU): in the same straight run, behind a jump, through another mapping, in an
# instruction that crosses a page, by a string store.
# expect: 1  2  3  44332211  5
        movb $1, 1f + 1(%rip)
    1:  movb $0x7f, %al
        movzbl %al, %eax
        outl %eax, $0x10
        movb $2, 1f + 1(%rip)
        jmp 1f
        .align 64
    1:  movb $0x7f, %al
        movzbl %al, %eax
        outl %eax, $0x10
        # 0x40000000 is another name of the page that holds `2f`.
        movq $0x600007, 0x4000
        movl $2f, %ecx
        andl $~0xfff, %ecx
        orl $7, %ecx
        movq %rcx, 0x600000
        movl $2f, %ecx
        andl $0xfff, %ecx
        movl $0x40000000, %ebx
        call 2f
        movb $3, 1(%rbx, %rcx)
        call 2f
        outl %eax, $0x10
        # mov $imm32, %eax; ret: the opcode on one page, most of the immediate on the next.
        movb $0xb8, 0x700ffe
        movl $0x11, 0x700fff
        movb $0xc3, 0x701003
        movl $0x700ffe, %ebx
        call *%rbx
        movl $0x443322, 0x701000
        movb $0xc3, 0x701003
        call *%rbx
        outl %eax, $0x10
        # Twenty NOPs (in a place that has run as RETs) become INC EBX.
        movl $0x702000, %ebx
        movl %ebx, %edi
        movb $0xc3, (%rdi)
        call *%rbx
        movl $10, %ecx
        movw $0xc0ff, %ax
        rep stosw
        movb $0xc3, (%rdi)
        movl $-5, %eax
        call *%rbx
        outl %eax, $0x10
        hlt
        .align 32
    2:  movb $0x7f, %al
        movzbl %al, %eax
        ret
