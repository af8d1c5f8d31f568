/* The Internet checksum (RFC 1071), 64 bits at a time.
 *
 * A one's complement sum does not care for byte order nor for the width it is computed in, as long
 * as carries come back in at the bottom: here every ADD is followed by an ADC. */

#ifndef CHECKSUM_H
#define CHECKSUM_H

#include "types.h"

static inline u64 checksum_word(u64 sum, u64 word)
{
    __asm__("addq %1, %0\n\tadcq $0, %0" : "+r"(sum) : "r"(word) : "cc");
    return sum;
}

/* Adds `length` bytes that begin at an even offset; up to 7 behind them are read too. */
static inline u64 checksum_bytes(u64 sum, const u8 *p, u64 length)
{
    for (; length >= 64; p += 64, length -= 64)
        __asm__("addq (%1), %0\n\t"
                "adcq 8(%1), %0\n\t"
                "adcq 16(%1), %0\n\t"
                "adcq 24(%1), %0\n\t"
                "adcq 32(%1), %0\n\t"
                "adcq 40(%1), %0\n\t"
                "adcq 48(%1), %0\n\t"
                "adcq 56(%1), %0\n\t"
                "adcq $0, %0"
                : "+r"(sum)
                : "r"(p), "m"(*(const u8(*)[64])p)
                : "cc");
    for (; length >= 8; p += 8, length -= 8)
        sum = checksum_word(sum, load64(p));
    if (length)
        sum = checksum_word(sum, load64(p) & low_bytes(length));
    return sum;
}

/* Folds to 16 bits: 0xffff if the summed data includes a right checksum. */
static inline u16 checksum_fold(u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (u16)sum;
}

#endif
