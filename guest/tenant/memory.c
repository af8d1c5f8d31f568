/* What a C compiler may call even in a freestanding program (GCC manual, "Language Standards
 * Supported by GCC"). The hot path uses copy_words instead. */

#include "types.h"

void *memcpy(void *restrict to, const void *restrict from, size_t length);
void *memmove(void *to, const void *from, size_t length);
void *memset(void *to, int byte, size_t length);
int memcmp(const void *a, const void *b, size_t length);

void *memcpy(void *restrict to, const void *restrict from, size_t length)
{
    void *result = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
    return result;
}

void *memmove(void *to, const void *from, size_t length)
{
    u8 *target = to;
    const u8 *source = from;
    if (target <= source || target >= source + length)
        return memcpy(to, from, length);
    while (length--)
        target[length] = source[length];
    return to;
}

void *memset(void *to, int byte, size_t length)
{
    void *result = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(byte) : "memory");
    return result;
}

int memcmp(const void *a, const void *b, size_t length)
{
    const u8 *left = a, *right = b;
    for (size_t i = 0; i < length; i++)
        if (left[i] != right[i])
            return left[i] - right[i];
    return 0;
}
