#include "reply.h"

#include "decimal.h"
#include "virtio_net.h"

static u8 *text_of(u8 *frame)
{
    return udp_reply_payload(frame) + sizeof(struct kv_header);
}

void reply_begin(struct reply *reply)
{
    reply->frames[0] = virtio_net_frame();
    reply->count = 1;
    reply->overflow = false;
    reply->out = text_of(reply->frames[0]);
    reply->room = REPLY_ROOM;
}

void reply_split(struct reply *reply, const u8 *from, u32 length)
{
    for (;;) {
        u32 piece = length < reply->room ? length : reply->room;
        for (u32 i = 0; i < piece; i++)
            reply->out[i] = from[i];
        reply->out += piece;
        reply->room -= piece;
        from += piece;
        length -= piece;
        if (!length)
            return;
        if (reply->count == UDP_MOST_REPLIES) {
            reply->overflow = true;
            return;
        }
        u8 *frame = virtio_net_frame();
        reply->frames[reply->count++] = frame;
        reply->out = text_of(frame);
        reply->room = REPLY_ROOM;
    }
}

void reply_decimal(struct reply *reply, u64 value)
{
    u8 text[DECIMAL_MOST + 7];
    reply_bytes(reply, text, decimal_print(text, value));
}

void reply_end(struct reply *reply, const struct datagram *request)
{
    if (unlikely(reply->overflow)) {
        while (reply->count > 1)
            virtio_net_discard(reply->frames[--reply->count]);
        reply->out = text_of(reply->frames[0]);
        reply->room = REPLY_ROOM;
        reply_text(reply, "SERVER_ERROR response too large\r\n");
    }
    if (reply->count == 1 && reply->room == REPLY_ROOM) {
        virtio_net_discard(reply->frames[0]);
        return;
    }
    const struct kv_header *asked = (const struct kv_header *)request->payload;
    for (u32 i = 0; i < reply->count; i++) {
        struct kv_header *header = (struct kv_header *)udp_reply_payload(reply->frames[i]);
        header->id = asked->id;
        header->sequence = be16((u16)i);
        header->total = be16((u16)reply->count);
        header->reserved = 0;
        u32 text = i + 1 < reply->count ? (u32)REPLY_ROOM : (u32)REPLY_ROOM - reply->room;
        udp_reply_send(request, reply->frames[i], sizeof *header + text);
    }
}
