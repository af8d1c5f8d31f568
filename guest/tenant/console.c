/* A 16550 at COM1, polled. Every access is an exit, so little is said, and the transmitter is asked
 * for room once per FIFO and not once per byte. */

#include "console.h"

#include "decimal.h"
#include "io.h"

enum {
    COM1 = 0x3f8,
    DATA = COM1,
    INTERRUPT_ENABLE = COM1 + 1,
    FIFO_CONTROL = COM1 + 2,
    LINE_CONTROL = COM1 + 3,
    LINE_STATUS = COM1 + 5,

    DIVISOR_LATCH = 0x80,
    EIGHT_BITS = 0x03,
    FIFO_ENABLE_AND_CLEAR = 0x07,
    TRANSMITTER_EMPTY = 0x20,
    FIFO_BYTES = 16,
    /* A port that nobody answers reads as all ones: the wait must end there too. */
    MOST_POLLS = 100000,
};

static u32 fifo_used;

void console_init(void)
{
    out8(INTERRUPT_ENABLE, 0);
    out8(LINE_CONTROL, DIVISOR_LATCH);
    out8(DATA, 1);
    out8(INTERRUPT_ENABLE, 0);
    out8(LINE_CONTROL, EIGHT_BITS);
    out8(FIFO_CONTROL, FIFO_ENABLE_AND_CLEAR);
    fifo_used = 0;
}

static void print_byte(u8 byte)
{
    if (fifo_used == FIFO_BYTES) {
        for (u32 polls = 0; polls < MOST_POLLS; polls++)
            if (in8(LINE_STATUS) & TRANSMITTER_EMPTY)
                break;
        fifo_used = 0;
    }
    out8(DATA, byte);
    fifo_used++;
}

void console_print(const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            print_byte('\r');
        print_byte((u8)*text);
    }
}

void console_print_decimal(u64 value)
{
    u8 text[DECIMAL_MOST];
    u32 length = decimal_print(text, value);
    for (u32 i = 0; i < length; i++)
        print_byte(text[i]);
}

void console_print_hex(u64 value)
{
    console_print("0x");
    for (int shift = 60; shift >= 0; shift -= 4)
        print_byte((u8) "0123456789abcdef"[(value >> shift) & 15]);
}

void console_print_address(u32 address)
{
    for (int octet = 0; octet < 4; octet++) {
        if (octet)
            print_byte('.');
        console_print_decimal((address >> (8 * octet)) & 255);
    }
}
