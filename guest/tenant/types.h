/* Fixed-width names, and access to memory of any alignment. */

#ifndef TYPES_H
#define TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;

#define PACKED __attribute__((packed))
#define NORETURN __attribute__((noreturn))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

static inline u16 load16(const void *p)
{
    u16 value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

static inline u32 load32(const void *p)
{
    u32 value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

static inline u64 load64(const void *p)
{
    u64 value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

static inline void store64(void *p, u64 value)
{
    __builtin_memcpy(p, &value, sizeof value);
}

/* Network byte order, both ways. */
static inline u16 be16(u16 value)
{
    return __builtin_bswap16(value);
}

static inline u32 be32(u32 value)
{
    return __builtin_bswap32(value);
}

/* The low `bytes` (1 to 8) bytes of a word. */
static inline u64 low_bytes(u64 bytes)
{
    return ~0ull >> (64 - 8 * bytes);
}

/* Copies `length` bytes rounded up to whole words: both sides own up to 7 bytes behind the end. One
 * string instruction is one instruction, where instructions are emulated one at a time. */
static inline void copy_words(void *to, const void *from, u64 length)
{
    u64 words = (length + 7) / 8;
#ifdef __SANITIZE_ADDRESS__
    /* A sanitizer sees no accesses in assembly. */
    for (u64 i = 0; i < words; i++)
        store64((u8 *)to + 8 * i, load64((const u8 *)from + 8 * i));
#else
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
#endif
}

#endif
