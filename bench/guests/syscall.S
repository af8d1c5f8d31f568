/* SYSCALL out of ring 3, and SYSRET back. */
    .globl prepare, workload
prepare:
    mov $0xc0000081, %ecx       /* STAR: kernel at 0x08, user behind 0x18 */
    xor %eax, %eax
    mov $0x001b0008, %edx
    wrmsr
    mov $0xc0000082, %ecx       /* LSTAR */
    mov $entry, %eax
    xor %edx, %edx
    wrmsr
    mov $0xc0000084, %ecx       /* SFMASK */
    mov $0x47700, %eax
    wrmsr
    ret
workload:
    mov %rsp, kernel_stack
    mov $user, %ecx
    mov $2, %r11d
    sysretq
user:
    xor %eax, %eax
1:  syscall
    dec %rdi
    jnz 1b
    mov $1, %eax
    syscall
entry:
    test %eax, %eax
    jnz 2f
    mov %rsp, user_stack
    mov kernel_stack, %rsp
    push %rcx
    push %r11
    add %rdi, %rbx
    pop %r11
    pop %rcx
    mov user_stack, %rsp
    sysretq
2:  mov kernel_stack, %rsp
    ret
    .bss
    .balign 8
kernel_stack:
    .skip 8
user_stack:
    .skip 8
