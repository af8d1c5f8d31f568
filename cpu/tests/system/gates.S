# Gates that refuse (SDM vol. 2, INT n): DPL below CPL #GP(vector * 8 + 2), not present #NP, a type that is
# no 64-bit gate #GP, beyond the limit #GP; a selector that is not code #GP(selector).
# expect: d 30a  b 30a  d 30a  d 402  d 10  d 0
# unlike qemu: error codes of gates are vector * 16 + 2
        gate 0x61, back
        leaq 1f(%rip), %r15
        to_user 2f
    2:  int $0x61
    1:  gate 0x61, back, 0, 0x0e
        faults int $0x61
        gate 0x61, back, 0, 0x85
        faults int $0x61
        movw $0x7ff, idtr
        lidt idtr
        faults int $0x80
        gate 0x61, back, 0, 0x8e, 0x10
        faults int $0x61
        gate 0x61, back, 0, 0x8e, 0
        faults int $0x61
        hlt
