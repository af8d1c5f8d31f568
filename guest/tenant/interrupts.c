#include "interrupts.h"

#include "console.h"
#include "io.h"

enum {
    EXCEPTIONS = 32,
    IRQS = 16,
    FIRST_IRQ_VECTOR = EXCEPTIONS,
    CODE_SELECTOR = 0x10,
    PRESENT_INTERRUPT_GATE = 0x8e00,

    /* Intel 8259A data sheet, initialization and operation command words. */
    MASTER_COMMAND = 0x20,
    MASTER_DATA = 0x21,
    SLAVE_COMMAND = 0xa0,
    SLAVE_DATA = 0xa1,
    ICW1_EDGE_CASCADE_ICW4 = 0x11,
    ICW3_SLAVE_ON_LINE_2 = 1 << 2,
    ICW3_SLAVE_IDENTITY = 2,
    /* End of interrupt at the acknowledge cycle: no EOI command, and so no exit for one. Safe
     * because a handler never runs with interrupts enabled. */
    ICW4_8086_AUTO_EOI = 0x03,
};

/* Intel SDM volume 3, 6.14.1. */
struct gate {
    u16 offset_low;
    u16 selector;
    u16 attributes;
    u16 offset_middle;
    u32 offset_high;
    u32 reserved;
} PACKED;

struct table_pointer {
    u16 limit;
    u64 base;
} PACKED;

struct exception_frame {
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

extern const u8 exception_entries[];
void interrupt_entry(void);
void exception_fatal(const struct exception_frame *frame) NORETURN;

static struct gate gates[EXCEPTIONS + IRQS];
static u16 masked = 0xffff;

static void gate_set(u32 vector, u64 handler)
{
    gates[vector] = (struct gate){
        .offset_low = (u16)handler,
        .selector = CODE_SELECTOR,
        .attributes = PRESENT_INTERRUPT_GATE,
        .offset_middle = (u16)(handler >> 16),
        .offset_high = (u32)(handler >> 32),
    };
}

void interrupts_init(void)
{
    for (u32 vector = 0; vector < EXCEPTIONS; vector++)
        gate_set(vector, (u64)exception_entries + 16 * vector);
    for (u32 irq = 0; irq < IRQS; irq++)
        gate_set(FIRST_IRQ_VECTOR + irq, (u64)interrupt_entry);
    struct table_pointer pointer = {sizeof gates - 1, (u64)gates};
    __asm__ volatile("lidt %0" : : "m"(pointer));

    out8(MASTER_COMMAND, ICW1_EDGE_CASCADE_ICW4);
    out8(MASTER_DATA, FIRST_IRQ_VECTOR);
    out8(MASTER_DATA, ICW3_SLAVE_ON_LINE_2);
    out8(MASTER_DATA, ICW4_8086_AUTO_EOI);
    out8(SLAVE_COMMAND, ICW1_EDGE_CASCADE_ICW4);
    out8(SLAVE_DATA, FIRST_IRQ_VECTOR + 8);
    out8(SLAVE_DATA, ICW3_SLAVE_IDENTITY);
    out8(SLAVE_DATA, ICW4_8086_AUTO_EOI);
    out8(MASTER_DATA, 0xff);
    out8(SLAVE_DATA, 0xff);
}

void interrupt_unmask(u32 irq)
{
    masked &= (u16) ~(1u << irq);
    if (irq >= 8)
        masked &= (u16) ~ICW3_SLAVE_ON_LINE_2;
    out8(MASTER_DATA, (u8)masked);
    out8(SLAVE_DATA, (u8)(masked >> 8));
}

/* The tenant has no code that may fault: say where it did, and stop for good. */
void exception_fatal(const struct exception_frame *frame)
{
    console_print("tenant: exception ");
    console_print_decimal(frame->vector);
    console_print(" at ");
    console_print_hex(frame->rip);
    console_print(", error code ");
    console_print_hex(frame->error);
    console_print("\n");
    triple_fault();
}
