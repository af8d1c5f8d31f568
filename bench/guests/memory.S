/* Loads, each from where the one before says, all over 16 MiB, and a store for each. */
    .set WORDS, 2 << 20
    .set RING, 0x1000000
    .globl prepare, workload
/* A ring through all words: a linear congruence of full period (Hull and Dobell). */
prepare:
    xor %eax, %eax
1:  lea 0x3c6ef(%rax,%rax,4), %rdx
    and $(WORDS - 1), %edx
    mov %rdx, RING(,%rax,8)
    inc %eax
    cmp $WORDS, %eax
    jne 1b
    ret
workload:
    xor %eax, %eax
    xor %ebx, %ebx
    mov $scratch, %esi
1:  mov RING(,%rax,8), %rax
    add %rax, %rbx
    mov %rbx, (%rsi)
    dec %rdi
    jnz 1b
    ret
    .bss
    .balign 8
scratch:
    .skip 8
