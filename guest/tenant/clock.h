/* Uptime. */

#ifndef CLOCK_H
#define CLOCK_H

#include "types.h"

/* Looks for a clock. `epoch`: Unix time now, seconds; 0 is unknown. */
void clock_init(u64 epoch);

/* The next clock_uptime reads the hardware again. Called once per batch of frames: a reading is an
 * exit, and requests that arrived together may as well see one time. */
void clock_forget(void);

/* Whether there is a clock at all. */
bool clock_present(void);

/* Seconds since clock_init, 0 without a clock. Counts only while it is called at least every 20
 * minutes (the counter's period): a longer silence counts for less than it was, so that an item
 * may outlive its expiry, and never falls short of it. */
u32 clock_uptime(void);

/* Unix time of uptime 0, seconds; 0 is unknown. */
u64 clock_epoch(void);

#endif
