/* The serial console, COM1: output only. */

#ifndef CONSOLE_H
#define CONSOLE_H

#include "types.h"

void console_init(void);
void console_print(const char *text);
void console_print_decimal(u64 value);
void console_print_hex(u64 value);
void console_print_address(u32 address);

#endif
