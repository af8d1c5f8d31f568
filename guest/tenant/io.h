/* Ports, device registers, and the one memory barrier. */

#ifndef IO_H
#define IO_H

#include "types.h"

static inline void out8(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out16(u16 port, u16 value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

/* A plain MOV and nothing else: every hypervisor can decode it when it traps. */
static inline u32 mmio_read32(u64 address)
{
    u32 value;
    __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline u8 mmio_read8(u64 address)
{
    u8 value;
    __asm__ volatile("movb (%1), %0" : "=q"(value) : "r"(address) : "memory");
    return value;
}

static inline void mmio_write32(u64 address, u32 value)
{
    __asm__ volatile("movl %0, (%1)" : : "r"(value), "r"(address) : "memory");
}

/* x86 keeps loads and stores in order among themselves: only the compiler must be held. */
static inline void compiler_barrier(void)
{
    __asm__ volatile("" : : : "memory");
}

/* A store before, a load after. A locked instruction and not MFENCE, which KVM's instruction
 * emulator lacks. */
static inline void full_barrier(void)
{
    __asm__ volatile("lock orl $0, (%%rsp)" : : : "memory", "cc");
}

#endif
