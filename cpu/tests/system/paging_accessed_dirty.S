# Accessed and dirty (SDM vol. 3A, 4.8): a read sets A in every entry of the walk, a write D in the last;
# a write that is refused leaves D; CMPXCHG writes even when it fails to match.
# expect: 20 20 0  60  e 3 40001000  0  60  0 60
        movq $0x600007, 0x4000
        movq $0x700007, 0x600000
        movq $0x701005, 0x600008
        movq $0x702007, 0x600010
        movq $0x703007, 0x600018
        movq $0x40000000, %rbx
        movl (%rbx), %eax
        movl 0x600000, %eax
        andl $0x60, %eax
        outl %eax, $0x10
        movl 0x4000, %eax
        andl $0x20, %eax
        outl %eax, $0x10
        movl 0x600000, %eax
        andl $0x40, %eax
        outl %eax, $0x10
        movb $1, (%rbx)
        movl 0x600000, %eax
        andl $0x60, %eax
        outl %eax, $0x10
        faults movb $1, 0x1000(%rbx)
        movl 0x600008, %eax
        andl $0x40, %eax
        outl %eax, $0x10
        movl $1, 0x702000
        xorl %eax, %eax
        lock cmpxchgl %ecx, 0x2000(%rbx)
        movl 0x600010, %eax
        andl $0x60, %eax
        outl %eax, $0x10
        # A read-modify-write of a page that was only read before.
        movl 0x3000(%rbx), %eax
        movl 0x600018, %eax
        andl $0x40, %eax
        outl %eax, $0x10
        addl $1, 0x3000(%rbx)
        movl 0x600018, %eax
        andl $0x60, %eax
        outl %eax, $0x10
        hlt
