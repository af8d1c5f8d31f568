#include "virtio_net.h"

#include "io.h"

/* virtio 1.2, 4.2.2 */
enum {
    REG_MAGIC = 0x000,
    REG_VERSION = 0x004,
    REG_DEVICE_ID = 0x008,
    REG_DEVICE_FEATURES = 0x010,
    REG_DEVICE_FEATURES_SELECT = 0x014,
    REG_DRIVER_FEATURES = 0x020,
    REG_DRIVER_FEATURES_SELECT = 0x024,
    REG_QUEUE_SELECT = 0x030,
    REG_QUEUE_SIZE_MAX = 0x034,
    REG_QUEUE_SIZE = 0x038,
    REG_QUEUE_READY = 0x044,
    REG_QUEUE_NOTIFY = 0x050,
    REG_INTERRUPT_STATUS = 0x060,
    REG_INTERRUPT_ACK = 0x064,
    REG_STATUS = 0x070,
    REG_QUEUE_DESCRIPTORS = 0x080,
    REG_QUEUE_DRIVER = 0x090,
    REG_QUEUE_DEVICE = 0x0a0,
    REG_CONFIG = 0x100,

    MAGIC = 0x74726976,
    MMIO_VERSION = 2,
    DEVICE_NETWORK = 1,

    STATUS_ACKNOWLEDGE = 1,
    STATUS_DRIVER = 2,
    STATUS_DRIVER_OK = 4,
    STATUS_FEATURES_OK = 8,
    STATUS_FAILED = 128,

    DESCRIPTOR_DEVICE_WRITES = 2,
    AVAILABLE_NO_INTERRUPT = 1,
    USED_NO_NOTIFY = 1,

    NET_HEADER_BYTES = 12,
    RECEIVE = 0,
    TRANSMIT = 1,
};

#define FEATURE_NET_MAC (1ull << 5)
#define FEATURE_EVENT_INDEX (1ull << 29)
#define FEATURE_VERSION_1 (1ull << 32)

#define ENTRIES 256u
#define SLOT(index) ((u16)(index) % ENTRIES)
#define BUFFER_BYTES 2048u

_Static_assert(NET_HEADER_BYTES + FRAME_MOST + FRAME_SLACK <= BUFFER_BYTES, "slack");

struct descriptor {
    u64 address;
    u32 length;
    u16 flags, next;
};

struct available_ring {
    u16 flags, index, ring[ENTRIES], used_event;
};

struct used_element {
    u32 id, length;
};

struct used_ring {
    u16 flags, index;
    struct used_element ring[ENTRIES];
    u16 available_event;
};

struct queue {
    struct descriptor descriptors[ENTRIES] __attribute__((aligned(4096)));
    volatile struct available_ring available;
    volatile struct used_ring used __attribute__((aligned(4096)));
    /* Entries published, as of the last kick, and entries of the used ring already seen. */
    u16 published, kicked, seen;
};

static struct queue receive, transmit;
static u8 receive_buffers[ENTRIES][BUFFER_BYTES] __attribute__((section(".noinit"), aligned(4096)));
static u8 transmit_buffers[ENTRIES][BUFFER_BYTES]
    __attribute__((section(".noinit"), aligned(4096)));

/* Transmit buffers that nobody holds. */
static u16 idle_buffers[ENTRIES];
static u32 idle_count;

static u64 device;
static bool event_index;

static void queue_publish(struct queue *queue, u16 id)
{
    queue->available.ring[SLOT(queue->published)] = id;
    queue->published++;
    /* The index is stored last: what it announces is there when the device sees it. */
    compiler_barrier();
    queue->available.index = queue->published;
}

/* 2.7.10: tells the device that entries were published, unless it asked not to be told. */
static void queue_kick(struct queue *queue, u32 number)
{
    u16 count = (u16)(queue->published - queue->kicked);
    if (!count)
        return;
    full_barrier();
    bool wanted;
    if (event_index)
        wanted = (u16)(queue->published - queue->used.available_event - 1) < count;
    else
        wanted = !(queue->used.flags & USED_NO_NOTIFY);
    queue->kicked = queue->published;
    if (wanted)
        mmio_write32(device + REG_QUEUE_NOTIFY, number);
}

/* 2.7.7: no interrupts, until queue_arm. With the event index an interrupt comes at one moment
 * only: when the used ring passes the index that was armed. */
static void queue_disarm(struct queue *queue)
{
    if (event_index)
        queue->available.used_event = (u16)(queue->seen - 1);
    else
        queue->available.flags = AVAILABLE_NO_INTERRUPT;
}

/* Asks for an interrupt at the next used entry. False: there is one already. */
static bool queue_arm(struct queue *queue)
{
    if (event_index)
        queue->available.used_event = queue->seen;
    else
        queue->available.flags = 0;
    full_barrier();
    return queue->used.index == queue->seen;
}

static bool queue_start(struct queue *queue, u32 number)
{
    mmio_write32(device + REG_QUEUE_SELECT, number);
    if (mmio_read32(device + REG_QUEUE_READY) ||
        mmio_read32(device + REG_QUEUE_SIZE_MAX) < ENTRIES)
        return false;
    mmio_write32(device + REG_QUEUE_SIZE, ENTRIES);
    u64 parts[] = {(u64)queue->descriptors, (u64)&queue->available, (u64)&queue->used};
    u32 registers[] = {REG_QUEUE_DESCRIPTORS, REG_QUEUE_DRIVER, REG_QUEUE_DEVICE};
    for (u32 i = 0; i < 3; i++) {
        mmio_write32(device + registers[i], (u32)parts[i]);
        mmio_write32(device + registers[i] + 4, (u32)(parts[i] >> 32));
    }
    queue_disarm(queue);
    mmio_write32(device + REG_QUEUE_READY, 1);
    return true;
}

static const char *fail(const char *why)
{
    mmio_write32(device + REG_STATUS, STATUS_FAILED);
    return why;
}

static u64 negotiate(void)
{
    mmio_write32(device + REG_DEVICE_FEATURES_SELECT, 0);
    u64 offered = mmio_read32(device + REG_DEVICE_FEATURES);
    mmio_write32(device + REG_DEVICE_FEATURES_SELECT, 1);
    offered |= (u64)mmio_read32(device + REG_DEVICE_FEATURES) << 32;
    u64 taken = offered & (FEATURE_VERSION_1 | FEATURE_NET_MAC | FEATURE_EVENT_INDEX);
    mmio_write32(device + REG_DRIVER_FEATURES_SELECT, 0);
    mmio_write32(device + REG_DRIVER_FEATURES, (u32)taken);
    mmio_write32(device + REG_DRIVER_FEATURES_SELECT, 1);
    mmio_write32(device + REG_DRIVER_FEATURES, (u32)(taken >> 32));
    return taken;
}

const char *virtio_net_start(u64 base, u8 mac[6])
{
    device = base;
    if (mmio_read32(device + REG_MAGIC) != MAGIC ||
        mmio_read32(device + REG_DEVICE_ID) != DEVICE_NETWORK)
        return "";
    if (mmio_read32(device + REG_VERSION) != MMIO_VERSION)
        return "virtio-mmio is not version 2";

    /* 3.1.1, driver initialization */
    mmio_write32(device + REG_STATUS, 0);
    mmio_write32(device + REG_STATUS, STATUS_ACKNOWLEDGE);
    mmio_write32(device + REG_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    u64 features = negotiate();
    if (!(features & FEATURE_VERSION_1))
        return fail("virtio-net lacks VERSION_1");
    if (!(features & FEATURE_NET_MAC))
        return fail("virtio-net has no MAC address");
    u32 status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
    mmio_write32(device + REG_STATUS, status);
    if (!(mmio_read32(device + REG_STATUS) & STATUS_FEATURES_OK))
        return fail("virtio-net refuses the features");
    event_index = features & FEATURE_EVENT_INDEX;
    if (!queue_start(&receive, RECEIVE) || !queue_start(&transmit, TRANSMIT))
        return fail("virtio-net queues are too small");
    for (u32 i = 0; i < 6; i++)
        mac[i] = mmio_read8(device + REG_CONFIG + i);
    mmio_write32(device + REG_STATUS, status | STATUS_DRIVER_OK);

    for (u32 i = 0; i < ENTRIES; i++) {
        receive.descriptors[i] = (struct descriptor){
            .address = (u64)receive_buffers[i],
            .length = NET_HEADER_BYTES + FRAME_MOST,
            .flags = DESCRIPTOR_DEVICE_WRITES,
        };
        queue_publish(&receive, (u16)i);
        /* 5.1.6.2: no offload was negotiated, so every header is zero and stays so. */
        for (u32 j = 0; j < NET_HEADER_BYTES; j++)
            transmit_buffers[i][j] = 0;
        transmit.descriptors[i].address = (u64)transmit_buffers[i];
        idle_buffers[i] = (u16)i;
    }
    idle_count = ENTRIES;
    queue_kick(&receive, RECEIVE);
    return NULL;
}

u8 *virtio_net_receive(u32 *length)
{
    if (receive.used.index == receive.seen)
        return NULL;
    compiler_barrier();
    volatile struct used_element *element = &receive.used.ring[SLOT(receive.seen)];
    u32 total = element->length;
    /* A device that returns less than a header: an empty frame, which the caller drops. */
    if (unlikely(total < NET_HEADER_BYTES))
        total = NET_HEADER_BYTES;
    *length = total - NET_HEADER_BYTES;
    return receive_buffers[element->id % ENTRIES] + NET_HEADER_BYTES;
}

void virtio_net_receive_done(void)
{
    u16 id = (u16)receive.used.ring[SLOT(receive.seen)].id % ENTRIES;
    receive.seen++;
    queue_publish(&receive, id);
}

u32 virtio_net_room(void)
{
    while (transmit.seen != transmit.used.index) {
        compiler_barrier();
        idle_buffers[idle_count++] = (u16)transmit.used.ring[SLOT(transmit.seen)].id % ENTRIES;
        transmit.seen++;
    }
    return idle_count;
}

u8 *virtio_net_frame(void)
{
    return transmit_buffers[idle_buffers[--idle_count]] + NET_HEADER_BYTES;
}

static u16 buffer_id(const u8 *frame)
{
    return (u16)((u64)(frame - &transmit_buffers[0][0]) / BUFFER_BYTES);
}

void virtio_net_send(u8 *frame, u32 length)
{
    u16 id = buffer_id(frame);
    transmit.descriptors[id].length = NET_HEADER_BYTES + length;
    queue_publish(&transmit, id);
}

void virtio_net_discard(u8 *frame)
{
    idle_buffers[idle_count++] = buffer_id(frame);
}

void virtio_net_kick(void)
{
    queue_kick(&transmit, TRANSMIT);
    queue_kick(&receive, RECEIVE);
}

bool virtio_net_arm(bool for_room)
{
    bool quiet = queue_arm(&receive);
    if (for_room)
        quiet &= queue_arm(&transmit);
    return quiet;
}

void virtio_net_interrupt(void)
{
    u32 causes = mmio_read32(device + REG_INTERRUPT_STATUS);
    if (causes)
        mmio_write32(device + REG_INTERRUPT_ACK, causes);
    /* An event index that was passed asks for nothing more by itself; the flag must be set back. */
    if (!event_index) {
        queue_disarm(&receive);
        queue_disarm(&transmit);
    }
}
