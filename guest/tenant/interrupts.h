/* Descriptors, the two 8259 interrupt controllers, and sleeping. */

#ifndef INTERRUPTS_H
#define INTERRUPTS_H

#include "types.h"

/* Loads the interrupt table and programs the controllers, every line masked. */
void interrupts_init(void);

/* Lets line `irq` (0 to 15) through. */
void interrupt_unmask(u32 irq);

/* Sleeps until an interrupt; see boot.S. */
void idle(void);

/* Resets the machine. */
void triple_fault(void) NORETURN;

#endif
