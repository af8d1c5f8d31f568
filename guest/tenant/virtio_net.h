/* A virtio network device over MMIO (virtio 1.2, sections 2.7, 4.2 and 5.1). */

#ifndef VIRTIO_NET_H
#define VIRTIO_NET_H

#include "types.h"

/* The largest Ethernet frame, without its check sequence. */
#define FRAME_MOST 1514

/* Memory behind FRAME_MOST bytes that a frame's owner may read and scribble on, bytes. */
#define FRAME_SLACK 64

/* Looks for a network device in the slot at `base` and starts it. NULL: started; an empty string:
 * something else is in the slot; else why it cannot be used. */
const char *virtio_net_start(u64 base, u8 mac[6]);

/* The next received frame, or NULL. It stays the caller's until virtio_net_receive_done. */
u8 *virtio_net_receive(u32 *length);
void virtio_net_receive_done(void);

/* How many frames can be taken now with virtio_net_frame. */
u32 virtio_net_room(void);

/* A frame to fill. The caller made sure of room. */
u8 *virtio_net_frame(void);

/* Queues a filled frame; nothing is sent before virtio_net_kick. Or gives it back unsent. */
void virtio_net_send(u8 *frame, u32 length);
void virtio_net_discard(u8 *frame);

/* Tells the device about all that was queued since, if it wants to be told. */
void virtio_net_kick(void);

/* Asks for an interrupt at the next received frame (`for_room`: or sent one). False: there is
 * work already. */
bool virtio_net_arm(bool for_room);

/* Answers the device's interrupt. */
void virtio_net_interrupt(void);

#endif
