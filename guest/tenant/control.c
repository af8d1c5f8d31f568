#include "control.h"

#include "decimal.h"
#include "virtio_net.h"

static bool open;
static bool poweroff;

void control_open(void)
{
    open = true;
}

bool control_wants_poweroff(void)
{
    return poweroff;
}

/* A chain of dependent multiplications: time passes, and the result proves that it was executed. */
static u64 burn(u64 iterations)
{
    u64 value = 1;
    while (iterations--) {
        value = value * 6364136223846793005ull + 1442695040888963407ull;
        __asm__ volatile("" : "+r"(value));
    }
    return value;
}

static u32 print(u8 *to, const char *text)
{
    u32 length = 0;
    for (; text[length]; length++)
        to[length] = (u8)text[length];
    return length;
}

/* Where the argument of the command `name` begins; NULL: it is another command. A zero byte ends the
 * datagram. */
static const u8 *argument_of(const u8 *text, const char *name)
{
    while (*name)
        if (*text++ != (u8)*name++)
            return NULL;
    return text;
}

void control_receive(const struct datagram *request)
{
    if (!open)
        return;
    u8 *frame = virtio_net_frame();
    u8 *text = udp_reply_payload(frame);
    u32 length;
    u64 iterations;
    const u8 *argument = argument_of(request->payload, "burn ");
    if (argument && decimal_read(&argument, 0xffffffff, &iterations)) {
        length = print(text, "burned ");
        length += decimal_print(text + length, iterations);
        text[length++] = ' ';
        length += decimal_print(text + length, burn(iterations));
        text[length++] = '\n';
    } else if (argument_of(request->payload, "poweroff")) {
        poweroff = true;
        length = print(text, "ok\n");
    } else {
        length = print(text, "unknown\n");
    }
    udp_reply_send(request, frame, length);
}
