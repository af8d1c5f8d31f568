/* The tenant's protocol code on the host, under the address and undefined-behaviour sanitizers.
 *
 * Arguments: arena bytes, seed, epoch, whether there is a clock. Standard input: 'T' and a u32 (uptime
 * from now on, seconds), or 'F', a u32 and that many bytes (a frame arrives). Each frame is answered on
 * standard output by the frames it caused, a u32 and the bytes each, and a u32 of all ones. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "control.h"
#include "net.h"
#include "store.h"
#include "virtio_net.h"

static const u8 mac[6] = {0x52, 0x54, 0x00, 0x00, 0x00, 0x02};
#define ADDRESS (10u | 77u << 8 | 2u << 24)

static u32 uptime;
static u64 epoch;
static bool has_clock;
static u32 frames_out;

bool clock_present(void)
{
    return has_clock;
}

u32 clock_uptime(void)
{
    return uptime;
}

u64 clock_epoch(void)
{
    return epoch;
}

static void require(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "harness: %s\n", what);
        abort();
    }
}

/* Each frame is an allocation of its own, so that a byte beyond the slack is an error. */
u8 *virtio_net_frame(void)
{
    require(++frames_out <= UDP_MOST_REPLIES, "more frames taken than the caller made sure of");
    u8 *frame = malloc(FRAME_MOST + FRAME_SLACK);
    require(frame, "out of memory");
    memset(frame, 0xaa, FRAME_MOST + FRAME_SLACK);
    return frame;
}

void virtio_net_discard(u8 *frame)
{
    frames_out--;
    free(frame);
}

void virtio_net_send(u8 *frame, u32 length)
{
    require(length <= FRAME_MOST, "a frame is too long");
    fwrite(&length, sizeof length, 1, stdout);
    fwrite(frame, 1, length, stdout);
    virtio_net_discard(frame);
}

static u32 read_u32(void)
{
    u32 value;
    require(fread(&value, sizeof value, 1, stdin) == 1, "standard input ended inside a command");
    return value;
}

static void frame_arrives(void)
{
    u32 length = read_u32(), end = ~0u;
    u8 *frame = malloc(length + FRAME_SLACK);
    require(frame, "out of memory");
    memset(frame, '7', length + FRAME_SLACK);
    require(fread(frame, 1, length, stdin) == length, "standard input ended inside a frame");
    net_receive(frame, length);
    require(frames_out == 0, "a frame was neither sent nor discarded");
    free(frame);
    fwrite(&end, sizeof end, 1, stdout);
    fflush(stdout);
}

int main(int count, char **arguments)
{
    require(count == 5, "usage: harness ARENA_BYTES SEED EPOCH HAS_CLOCK");
    u64 bytes = strtoull(arguments[1], NULL, 0);
    u8 *arena = malloc(bytes);
    require(arena, "out of memory");
    memset(arena, 0x55, bytes);
    epoch = strtoull(arguments[3], NULL, 0);
    has_clock = atoi(arguments[4]);
    net_init(mac, ADDRESS);
    control_open();
    require(store_init(arena, bytes, strtoull(arguments[2], NULL, 0)), "the arena is too small");
    for (int command; (command = getchar()) != EOF;) {
        require(command == 'T' || command == 'F', "unknown command");
        if (command == 'T')
            uptime = read_u32();
        else
            frame_arrives();
    }
    free(arena);
    return 0;
}
