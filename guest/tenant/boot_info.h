/* What the loader says about the machine. */

#ifndef BOOT_INFO_H
#define BOOT_INFO_H

#include "types.h"

#define MOST_VIRTIO_DEVICES 16

struct virtio_slot {
    u64 base;
    u32 irq;
};

struct boot_info {
    /* Memory behind the image that the tenant may use, below 4 GiB. */
    u64 arena_start, arena_end;
    struct virtio_slot virtio[MOST_VIRTIO_DEVICES];
    u32 virtio_count;
    /* Own IPv4 address, network byte order. */
    u32 address;
    /* Key of the hash function. */
    u64 seed;
    /* Unix time at the machine's start, seconds; 0 is unknown. */
    u64 epoch;
    /* Whether the control port is open. */
    bool control;
};

/* Reads the zero page of the Linux boot protocol, or the start info of PVH. False: no usable memory
 * behind the image. */
bool boot_info_read(struct boot_info *info, u64 start, bool is_pvh);

#endif
