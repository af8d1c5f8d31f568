/* A bare guest for measuring: says BEGIN, runs `workload` (RDI: how many times), says END, halts.
 *
 * Two ways in: the 64-bit entry of an ELF image, as Lockstep's machine starts it, and the 32-bit one
 * of PVH (the note below), as QEMU's -kernel does. Both end in 64-bit code, ring 0, interrupts off,
 * the first GiB mapped one to one by large pages that ring 3 may use, and tables of its own. */

    .text
    .code64
    .globl start_64
start_64:
    cli
    mov $stack_end, %esp
    mov $pml4, %eax
    mov %rax, %cr3
    lgdt gdt_pointer
    push $0x08
    push $common
    lretq

    .code32
start_32:
    cli
    mov $stack_end, %esp
    lgdt gdt_pointer
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax              /* PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx       /* EFER: LME */
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax        /* PG, PE */
    mov %eax, %cr0
    ljmp $0x08, $common

    .code64
common:
    mov $0x10, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    mov $0xc0000080, %ecx       /* EFER: SCE */
    rdmsr
    or $1, %eax
    wrmsr
    lidt idt_pointer
    call prepare
    mov $begin, %esi
    call say
    mov iterations, %rdi
    call workload
    mov $end, %esi
    call say
1:  hlt
    jmp 1b

/* Sends the string at RSI to the serial port. */
say:
    mov $0x3f8, %edx
1:  lodsb
    test %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  ret

/* Points the gate of vector EDI at RSI. */
    .globl set_gate
set_gate:
    shl $4, %edi
    mov %si, idt(%rdi)
    movw $0x08, idt+2(%rdi)
    movw $0x8e00, idt+4(%rdi)
    shr $16, %esi
    mov %si, idt+6(%rdi)
    movl $0, idt+8(%rdi)
    ret

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18              /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad start_32

    .data
/* The host writes the count behind the mark. */
    .balign 8
    .ascii "ITERATES"
    .globl iterations
iterations:
    .quad 1
begin:
    .asciz "BEGIN\n"
end:
    .asciz "END\n"

    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 0x08 code, ring 0 */
    .quad 0x00cf93000000ffff    /* 0x10 data, ring 0 */
    .quad 0                     /* 0x18 SYSRET's base */
    .quad 0x00cff3000000ffff    /* 0x20 data, ring 3 */
    .quad 0x00affb000000ffff    /* 0x28 code, ring 3 */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 0xfff
    .quad idt

    .balign 4096
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
    .globl pdpt
pdpt:
    .quad pages_2m + 7
    .quad window_directory + 7
    .fill 510, 8, 0
pages_2m:
    .set i, 0
    .rept 512
    .quad (i << 21) | 0x87
    .set i, i + 1
    .endr
/* 2 MiB from 1 GiB on, for workloads that map pages. */
window_directory:
    .quad window + 7
    .fill 511, 8, 0
    .globl window
window:
    .fill 512, 8, 0

    .bss
    .balign 4096
idt:
    .skip 4096
    .skip 16384
stack_end:
