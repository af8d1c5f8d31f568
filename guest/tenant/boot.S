/* From a loader to C: two ways in, one set of descriptor and page tables, and the way to sleep. */

#define CODE_SELECTOR 0x10
#define DATA_SELECTOR 0x18
#define STACK_BYTES 16384

#define CR0_PE 0x00000001
#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100

#define PRESENT_WRITABLE 0x03
#define UNCACHED 0x18
/* Accessed and dirty are set from the start. Otherwise the processor's page walker would set them
 * in guest memory at moments of its own choice, speculation included, and two replicas that
 * executed the same instructions would differ. */
#define TABLE (PRESENT_WRITABLE | 0x20)
#define LARGE_PAGE (PRESENT_WRITABLE | 0xe0)

    /* Xen's PVH entry (an ELF note of type XEN_ELFNOTE_PHYS32_ENTRY): what QEMU boots an ELF by. */
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start

    .section .text.boot, "ax"

    /* 64-bit Linux boot protocol: long mode, paging on with memory mapped one to one, interrupts
     * off, CS 0x10, DS/ES/SS 0x18, RSI = zero page. */
    .code64
    .globl linux_start
linux_start:
    /* CS need not be reloaded: our table has the same descriptors at the same selectors. */
    lgdt gdt_pointer(%rip)
    movq $pml4, %rax
    movq %rax, %cr3
    xorl %ebp, %ebp
    jmp start

    /* PVH: 32-bit protected mode, flat segments, no paging, interrupts off, EBX = start info. */
    .code32
pvh_start:
    movl %ebx, %esi
    lgdt gdt_pointer
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl %cr0, %eax
    orl $(CR0_PG | CR0_PE), %eax
    movl %eax, %cr0
    ljmp $CODE_SELECTOR, $1f
    .code64
1:
    movl $DATA_SELECTOR, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %esi, %esi
    movl $1, %ebp

start:
    movq $stack_top, %rsp
    cld
    xorl %eax, %eax
    movq $bss_start, %rdi
    movq $bss_end, %rcx
    subq %rdi, %rcx
    shrq $3, %rcx
    rep stosq
    movq %rsi, %rdi
    movl %ebp, %esi
    call tenant_main
2:  cli
    hlt
    jmp 2b

    .text

    /* void idle(void): sleeps until an interrupt. Interrupts are enabled nowhere else, so a handler
     * has no state to restore: it drops the interrupt's frame and returns from idle() in its place,
     * interrupts off again by the gate. That spares IRETQ, which the instruction emulator of a host
     * without hardware virtualization lacks. STI holds interrupts off until HLT has begun: none is lost
     * between the caller's last look at the rings and here. */
    .globl idle
idle:
    sti
    hlt
    cli
    ret

    .globl interrupt_entry
interrupt_entry:
    movq 24(%rsp), %rsp
    ret

    /* One entry per exception, 16 bytes apart: a frame with an error code always, the vector, then C.
     * The mask has the vectors for which the processor itself pushes an error code. */
    .globl exception_entries
    .balign 16
exception_entries:
    .set vector, 0
    .rept 32
    .balign 16
    .ifeq (0x60227d00 >> vector) & 1
    pushq $0
    .endif
    pushq $vector
    jmp exception
    .set vector, vector + 1
    .endr

exception:
    movq %rsp, %rdi
    andq $-16, %rsp
    call exception_fatal

    /* void triple_fault(void): an interrupt without a descriptor table resets the machine. */
    .globl triple_fault
triple_fault:
    lidt empty_idt_pointer(%rip)
    ud2

    .section .rodata, "a"
    .balign 8
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
empty_idt_pointer:
    .word 0
    .quad 0

    /* The first 4 GiB, one to one, in 2 MiB pages; the last of them, where devices live, uncached. */
    .section .data, "aw"
    .balign 4096
pml4:
    .quad pdpt + TABLE
    .fill 511, 8, 0
pdpt:
    .quad pd + TABLE
    .quad pd + 0x1000 + TABLE
    .quad pd + 0x2000 + TABLE
    .quad pd + 0x3000 + TABLE
    .fill 508, 8, 0
pd:
    .set page, 0
    .rept 1536
    .quad page + LARGE_PAGE
    .set page, page + 0x200000
    .endr
    .rept 512
    .quad page + LARGE_PAGE + UNCACHED
    .set page, page + 0x200000
    .endr

    .section .noinit, "aw", @nobits
    .balign 16
    .skip STACK_BYTES
stack_top:

    .section .note.GNU-stack, "", @progbits
