/* The bare tenant: a network service that is all there is on its machine. */

#include "boot_info.h"
#include "clock.h"
#include "console.h"
#include "control.h"
#include "interrupts.h"
#include "io.h"
#include "net.h"
#include "store.h"
#include "virtio_net.h"

/* The machine's power-off register: SLP_EN with the sleep type of S5. */
#define POWER_PORT 0x604
#define POWER_OFF 0x2000

static NORETURN void power_off(void)
{
    out16(POWER_PORT, POWER_OFF);
    triple_fault();
}

static NORETURN void stop(const char *why)
{
    console_print("tenant: ");
    console_print(why);
    console_print("\n");
    power_off();
}

/* Starts the first network device of the command line, and lets its interrupt through. */
static void network_start(const struct boot_info *info)
{
    u8 mac[6];
    for (u32 i = 0; i < info->virtio_count; i++) {
        const char *why = virtio_net_start(info->virtio[i].base, mac);
        if (why && *why)
            stop(why);
        if (!why) {
            net_init(mac, info->address);
            interrupt_unmask(info->virtio[i].irq);
            return;
        }
    }
    stop("no virtio-net device on the command line (virtio_mmio.device=4K@0xd0000000:5)");
}

/* Handles frames until there are none: one kick for what a batch of them queued. */
static NORETURN void serve(void)
{
    for (;;) {
        u32 length;
        u8 *frame = NULL;
        bool room = true;
        clock_forget();
        while ((room = virtio_net_room() >= UDP_MOST_REPLIES) &&
               (frame = virtio_net_receive(&length))) {
            net_receive(frame, length);
            virtio_net_receive_done();
        }
        virtio_net_kick();
        if (control_wants_poweroff())
            power_off();
        if (virtio_net_arm(!room)) {
            idle();
            virtio_net_interrupt();
        }
    }
}

void tenant_main(u64 boot, u32 is_pvh);

void tenant_main(u64 boot, u32 is_pvh)
{
    static struct boot_info info;
    console_init();
    interrupts_init();
    if (!boot_info_read(&info, boot, is_pvh))
        stop("no memory behind the image in the memory map");
    if (!info.address)
        stop("no address on the command line (ip=10.77.0.2/24)");
    clock_init(info.epoch);
    if (!store_init((u8 *)info.arena_start, info.arena_end - info.arena_start, info.seed))
        stop("too little memory");
    if (info.control)
        control_open();
    network_start(&info);
    net_announce();
    virtio_net_kick();
    console_print("tenant " TENANT_VERSION " ");
    console_print_address(info.address);
    console_print(" ready\n");
    serve();
}
