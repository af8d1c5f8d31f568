/* Touches pages that are not there; the handler of #PF maps each, and all are unmapped by a load of
 * CR3 when the window is full. */
    .globl prepare, workload
prepare:
    mov $14, %edi
    mov $handler, %esi
    jmp set_gate
workload:
    mov $0x40000000, %esi
    xor %ebx, %ebx
1:  add (%rsi), %rbx
    add $0x1000, %rsi
    cmp $0x40200000, %rsi
    je 3f
2:  dec %rdi
    jnz 1b
    ret
3:  mov %rdi, %r8
    mov $window, %edi
    mov $512, %ecx
    xor %eax, %eax
    rep stosq
    mov %cr3, %rax
    mov %rax, %cr3
    mov %r8, %rdi
    mov $0x40000000, %esi
    jmp 2b
handler:
    push %rax
    push %rdx
    mov %cr2, %rax
    shr $12, %rax
    and $511, %eax
    mov %rax, %rdx
    shl $12, %rdx
    add $0x1000003, %rdx
    mov %rdx, window(,%rax,8)
    pop %rdx
    pop %rax
    add $8, %rsp
    iretq
