#include "reply.h"

#include "decimal.h"
#include "virtio_net.h"

static u8 *text_of(u8 *frame)
{
    return udp_reply_payload(frame) + sizeof(struct kv_header);
}

void reply_begin(struct reply *reply)
{
    u8 *frame = virtio_net_frame();
    reply->frames[0] = frame;
    reply->at = (struct reply_mark){text_of(frame), REPLY_ROOM, 1, false};
}

void reply_split(struct reply *reply, const u8 *from, u32 length)
{
    for (;;) {
        u32 piece = length < reply->at.room ? length : reply->at.room;
        for (u32 i = 0; i < piece; i++)
            reply->at.out[i] = from[i];
        reply->at.out += piece;
        reply->at.room -= piece;
        from += piece;
        length -= piece;
        if (!length)
            return;
        if (reply->at.count == UDP_MOST_REPLIES) {
            reply->at.overflow = true;
            return;
        }
        u8 *frame = virtio_net_frame();
        reply->frames[reply->at.count] = frame;
        reply->at = (struct reply_mark){text_of(frame), REPLY_ROOM, reply->at.count + 1, false};
    }
}

void reply_decimal(struct reply *reply, u64 value)
{
    u8 text[DECIMAL_MOST + 7];
    reply_bytes(reply, text, decimal_print(text, value));
}

void reply_rewind(struct reply *reply, const struct reply_mark *mark)
{
    while (reply->at.count > mark->count)
        virtio_net_discard(reply->frames[--reply->at.count]);
    reply->at = *mark;
}

void reply_end(struct reply *reply, const struct datagram *request)
{
    if (unlikely(reply->at.overflow)) {
        struct reply_mark begin = {text_of(reply->frames[0]), REPLY_ROOM, 1, false};
        reply_rewind(reply, &begin);
        reply_text(reply, "SERVER_ERROR response too large\r\n");
    }
    u64 id = load16(request->payload);
    if (likely(reply->at.count == 1)) {
        u8 *frame = reply->frames[0];
        if (unlikely(reply->at.room == REPLY_ROOM)) {
            virtio_net_discard(frame);
            return;
        }
        store64(udp_reply_payload(frame), id | (u64)REPLY_ALONE << 16);
        udp_reply_send(request, frame, REPLY_DATAGRAM_MOST - reply->at.room);
        return;
    }
    for (u32 i = 0; i < reply->at.count; i++) {
        struct kv_header *header = (struct kv_header *)udp_reply_payload(reply->frames[i]);
        header->id = (u16)id;
        header->sequence = be16((u16)i);
        header->total = be16((u16)reply->at.count);
        header->reserved = 0;
        u32 room = i + 1 < reply->at.count ? 0 : reply->at.room;
        udp_reply_send(request, reply->frames[i], REPLY_DATAGRAM_MOST - room);
    }
}
