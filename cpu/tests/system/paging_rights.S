# Rights of a page (SDM vol. 3A, 4.6 and 4.7): not present, read-only under CR0.WP and without it,
# supervisor's, and the error codes of each.
# expect: e 0 40000000  e 2 40000008  e 3 40001000  5a5a  e 5 40002010  e 7 40001004  e 6 40000010
        movq $0x600007, 0x4000
        movq $0x700000, 0x600000
        movq $0x701005, 0x600008
        movq $0x702003, 0x600010
        movq $0x40000000, %rbx
        faults movl (%rbx), %eax
        faults movl $1, 8(%rbx)
        faults movl $1, 0x1000(%rbx)
        # Without WP the supervisor may.
        movq %cr0, %rax
        andq $~0x10000, %rax
        movq %rax, %cr0
        faults movl $0x5a5a, 0x1000(%rbx)
        movq %cr0, %rax
        orq $0x10000, %rax
        movq %rax, %cr0
        emit_register 0x701000
        leaq 1f(%rip), %r15
        to_user 2f
    2:  movl 0x2010(%rbx), %eax
    1:  leaq 1f(%rip), %r15
        to_user 2f
    2:  movl $1, 0x1004(%rbx)
    1:  leaq 1f(%rip), %r15
        to_user 2f
    2:  movl $1, 0x10(%rbx)
    1:  hlt
