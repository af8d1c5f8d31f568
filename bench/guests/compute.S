/* Shifts, additions, a multiplication, a call and a branch that nothing predicts. */
    .globl prepare, workload
prepare:
    ret
workload:
    mov $0x2545f4914f6cdd1d, %rax
    mov %rax, %rbx
    xor %esi, %esi
1:  mov %rax, %rdx
    shl $13, %rdx
    xor %rdx, %rax
    mov %rax, %rdx
    shr $7, %rdx
    xor %rdx, %rax
    mov %rax, %rdx
    shl $17, %rdx
    xor %rdx, %rax
    imul %rax, %rbx
    add %rax, %rbx
    test $1, %al
    jz 2f
    add %rdx, %rsi
2:  call mix
    dec %rdi
    jnz 1b
    ret
mix:
    lea (%rsi,%rax,4), %rcx
    rol $9, %rcx
    xor %rcx, %rsi
    ret
