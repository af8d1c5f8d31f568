#include "boot_info.h"

#include "decimal.h"

/* Linux, Documentation/arch/x86/zero-page.rst and boot.rst. */
enum {
    ZERO_PAGE_E820_COUNT = 0x1e8,
    ZERO_PAGE_COMMAND_LINE = 0x228,
    ZERO_PAGE_E820_TABLE = 0x2d0,
    ZERO_PAGE_E820_MOST = 128,
    COMMAND_LINE_MOST = 4096,
};

struct e820_entry {
    u64 address, size;
    u32 type;
} PACKED;

/* Xen, xen/include/public/arch-x86/hvm/start_info.h. */
struct pvh_start_info {
    u32 magic, version, flags, modules;
    u64 module_list, command_line, rsdp, memory_map;
    u32 memory_map_entries, reserved;
};

struct pvh_memory_entry {
    u64 address, size;
    u32 type, reserved;
};

#define RAM 1
#define FOUR_GIB 0x100000000ull
#define PAGE 4096

extern u8 image_end[];

static void consider_range(struct boot_info *info, u64 address, u64 size, u32 type)
{
    u64 image = (u64)image_end;
    if (type != RAM || address > image || size <= image - address)
        return;
    info->arena_start = image;
    info->arena_end = address + size < FOUR_GIB ? address + size : FOUR_GIB;
}

/* Moves `*text` behind `prefix` if it begins with it. */
static bool skip(const u8 **text, const char *prefix)
{
    const u8 *p = *text;
    while (*prefix)
        if (*p++ != (u8)*prefix++)
            return false;
    *text = p;
    return true;
}

static bool read_hex(const u8 **text, u64 *value)
{
    const u8 *p = *text;
    u64 result = 0;
    for (;; p++) {
        u32 digit = *p >= 'a' && *p <= 'f'   ? *p - 'a' + 10u
                    : *p >= 'A' && *p <= 'F' ? *p - 'A' + 10u
                    : *p >= '0' && *p <= '9' ? *p - '0' + 0u
                                             : 16;
        if (digit == 16)
            break;
        result = result << 4 | digit;
    }
    bool any = p != *text;
    *text = p;
    *value = result;
    return any;
}

static bool read_address(const u8 **text, u32 *address)
{
    u32 result = 0;
    for (u32 octet = 0; octet < 4; octet++) {
        u64 value;
        if ((octet && !skip(text, ".")) || !decimal_read(text, 255, &value))
            return false;
        result |= (u32)value << (8 * octet);
    }
    *address = result;
    return true;
}

/* virtio_mmio.device=<size>[KMG]@<address>:<irq>[:<id>] (Linux, drivers/virtio/virtio_mmio.c) */
static void read_virtio(struct boot_info *info, const u8 *text)
{
    u64 size, irq;
    struct virtio_slot slot;
    if (!decimal_read(&text, ~0ull, &size))
        return;
    while (*text > ' ' && *text != '@')
        text++;
    if (!skip(&text, "@0x") || !read_hex(&text, &slot.base) || !skip(&text, ":") ||
        !decimal_read(&text, 15, &irq) || info->virtio_count == MOST_VIRTIO_DEVICES)
        return;
    slot.irq = (u32)irq;
    info->virtio[info->virtio_count++] = slot;
}

static void read_command_line(struct boot_info *info, const u8 *text)
{
    const u8 *end = text + COMMAND_LINE_MOST;
    while (*text && text < end) {
        const u8 *value = text;
        if (skip(&value, "virtio_mmio.device="))
            read_virtio(info, value);
        else if (skip(&value, "ip="))
            read_address(&value, &info->address);
        else if (skip(&value, "tenant.seed="))
            decimal_read(&value, ~0ull, &info->seed);
        else if (skip(&value, "tenant.epoch="))
            decimal_read(&value, ~0u, &info->epoch);
        else if (skip(&value, "tenant.control"))
            info->control = true;
        while (*text > ' ' && text < end)
            text++;
        while (*text && *text <= ' ' && text < end)
            text++;
    }
}

bool boot_info_read(struct boot_info *info, u64 start, bool is_pvh)
{
    const u8 *command_line;
    if (is_pvh) {
        const struct pvh_start_info *pvh = (const void *)start;
        const struct pvh_memory_entry *map = (const void *)pvh->memory_map;
        for (u32 i = 0; i < pvh->memory_map_entries; i++)
            consider_range(info, map[i].address, map[i].size, map[i].type);
        command_line = (const void *)pvh->command_line;
    } else {
        const u8 *page = (const void *)start;
        const struct e820_entry *map = (const void *)(page + ZERO_PAGE_E820_TABLE);
        u32 count = page[ZERO_PAGE_E820_COUNT];
        if (count > ZERO_PAGE_E820_MOST)
            count = ZERO_PAGE_E820_MOST;
        for (u32 i = 0; i < count; i++)
            consider_range(info, map[i].address, map[i].size, map[i].type);
        command_line = (const void *)(u64)load32(page + ZERO_PAGE_COMMAND_LINE);
    }
    if (command_line)
        read_command_line(info, command_line);
    return info->arena_end > info->arena_start;
}
