/* The ACPI power management timer: the one clock that is a function of virtual time on every engine.
 * The time stamp counter is not: on KVM it is the host's, and reading it would be an input that no
 * log knows. */

#include "clock.h"

#include "io.h"

/* ACPI specification 4.8.3.3, with TMR_VAL_EXT: 32 bits. */
#define PM_TIMER_PORT 0x608
#define PM_TIMER_HZ 3579545

static bool present;
static bool fresh;
static u64 epoch_at_start;
static u32 last_ticks;
static u64 ticks;
static u32 uptime;

void clock_init(u64 epoch)
{
    epoch_at_start = epoch;
    last_ticks = in32(PM_TIMER_PORT);
    /* A port that nobody owns reads as all ones. A running counter may, too, but not for long. */
    for (u32 attempt = 0; attempt < 1000 && last_ticks == ~0u; attempt++)
        last_ticks = in32(PM_TIMER_PORT);
    present = last_ticks != ~0u;
    ticks = 0;
    fresh = false;
}

void clock_forget(void)
{
    fresh = false;
}

bool clock_present(void)
{
    return present;
}

u32 clock_uptime(void)
{
    if (!fresh && present) {
        u32 now = in32(PM_TIMER_PORT);
        ticks += (u32)(now - last_ticks);
        last_ticks = now;
        uptime = (u32)(ticks / PM_TIMER_HZ);
        fresh = true;
    }
    return uptime;
}

u64 clock_epoch(void)
{
    return epoch_at_start;
}
