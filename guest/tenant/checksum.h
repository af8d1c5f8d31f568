/* The Internet checksum (RFC 1071), 64 bits at a time.
 *
 * A one's complement sum does not care for byte order nor for the width it is computed in, as long
 * as carries come back in at the bottom. */

#ifndef CHECKSUM_H
#define CHECKSUM_H

#include "types.h"

static inline u64 checksum_add(u64 sum, u64 word)
{
    __asm__("addq %1, %0\n\tadcq $0, %0" : "+r"(sum) : "rm"(word) : "cc");
    return sum;
}

/* Adds `length` bytes that begin at an even offset and are filled up to a whole word with zeros. One
 * instruction a word: the chain is entered where as many additions are left as there are odd words (an
 * ADCQ with a displacement of one byte has four bytes), and taken again whole for every eight more; LEA
 * and DEC leave the carry alone. */
static inline u64 checksum_bytes(u64 sum, const u8 *p, u64 length)
{
    u64 words = (length + 7) / 8;
#ifdef __SANITIZE_ADDRESS__
    /* A sanitizer sees no accesses in assembly. */
    for (; words; words--, p += 8)
        sum = checksum_add(sum, load64(p));
#else
    u64 odd = words % 8, eights = words / 8;
    p += 8 * odd;
    u64 entry = -odd;
    __asm__("leaq 2f(, %[entry], 4), %[entry]\n\t"
            "testq %[entry], %[entry]\n\t" /* no carry */
            "jmp *%[entry]\n"
            "1:\n\t"
            "adcq -64(%[p]), %[sum]\n\t"
            "adcq -56(%[p]), %[sum]\n\t"
            "adcq -48(%[p]), %[sum]\n\t"
            "adcq -40(%[p]), %[sum]\n\t"
            "adcq -32(%[p]), %[sum]\n\t"
            "adcq -24(%[p]), %[sum]\n\t"
            "adcq -16(%[p]), %[sum]\n\t"
            "adcq -8(%[p]), %[sum]\n"
            "2:\n\t"
            "leaq 64(%[p]), %[p]\n\t"
            "decq %[eights]\n\t"
            "jns 1b\n\t"
            "adcq $0, %[sum]"
            : [sum] "+r"(sum), [p] "+r"(p), [eights] "+r"(eights), [entry] "+r"(entry)
            :
            : "cc", "memory");
#endif
    return sum;
}

/* The sum of both halves of a word, with the carry: of a word added to itself with its halves exchanged,
 * that is the upper half. */
static inline u16 checksum_fold16(u32 sum)
{
    return (u16)((sum + (sum << 16 | sum >> 16)) >> 16);
}

/* 0xffff if the summed data includes a right checksum. */
static inline u16 checksum_fold(u64 sum)
{
    return checksum_fold16((u32)((sum + (sum << 32 | sum >> 32)) >> 32));
}

#endif
