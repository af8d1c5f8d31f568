/* Decimal numbers as text. */

#ifndef DECIMAL_H
#define DECIMAL_H

#include "types.h"

/* Digits of the largest u64. */
#define DECIMAL_MOST 20

/* Prints without padding or terminator; returns the number of bytes, 1 to DECIMAL_MOST. */
static inline u32 decimal_print(u8 *to, u64 value)
{
    if (value < 10) {
        to[0] = (u8)('0' + value);
        return 1;
    }
    u8 reversed[DECIMAL_MOST];
    u32 length = 0;
    while (value) {
        reversed[length++] = (u8)('0' + value % 10);
        value /= 10;
    }
    for (u32 i = 0; i < length; i++)
        to[i] = reversed[length - 1 - i];
    return length;
}

/* Reads the digits at `*text` and moves `*text` behind them. False: no digit, or above `most`.
 * The caller guarantees a byte that is no digit at or before the end of its memory. */
static inline bool decimal_read(const u8 **text, u64 most, u64 *value)
{
    const u8 *p = *text;
    u64 result = 0;
    u32 digit = (u32)*p - '0';
    if (digit > 9)
        return false;
    do {
        if (__builtin_mul_overflow(result, 10ull, &result) ||
            __builtin_add_overflow(result, (u64)digit, &result))
            return false;
        digit = (u32)*++p - '0';
    } while (digit <= 9);
    *text = p;
    *value = result;
    return result <= most;
}

#endif
