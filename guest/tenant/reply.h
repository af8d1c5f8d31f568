/* The answer to one datagram of the key-value service: text, cut into as many datagrams as it takes,
 * each with memcached's UDP frame header (memcached, doc/protocol.txt, "UDP protocol"). */

#ifndef REPLY_H
#define REPLY_H

#include "net.h"

struct kv_header {
    u16 id, sequence, total, reserved;
} PACKED;

/* Sequence number 0 and total 1, side by side in memory: the only datagram. */
#define REPLY_ALONE 0x01000000u

/* As memcached cuts them: clients have buffers of this size. */
#define REPLY_DATAGRAM_MOST 1400
#define REPLY_ROOM (REPLY_DATAGRAM_MOST - sizeof(struct kv_header))

/* How far a reply has come: where it goes on, in how many datagrams it is, and whether it is more than
 * they hold. */
struct reply_mark {
    u8 *out;
    u32 room;
    u32 count;
    bool overflow;
};

struct reply {
    struct reply_mark at;
    u8 *frames[UDP_MOST_REPLIES];
};

void reply_begin(struct reply *reply);

/* Appends bytes one by one, across datagrams: what does not fit, or is not worth speed. */
void reply_split(struct reply *reply, const u8 *from, u32 length);

/* Takes back what was appended since it was at `mark`. */
void reply_rewind(struct reply *reply, const struct reply_mark *mark);

/* Sends what was appended, if anything was. */
void reply_end(struct reply *reply, const struct datagram *request);

/* Appends bytes; up to 7 behind them are read. */
static inline void reply_bytes(struct reply *reply, const u8 *from, u32 length)
{
    if (unlikely(length > reply->at.room)) {
        reply_split(reply, from, length);
        return;
    }
    copy_words(reply->at.out, from, length);
    reply->at.out += length;
    reply->at.room -= length;
}

/* Appends a string literal: stores of constants. */
#define reply_text(reply, literal) reply_literal(reply, literal, sizeof literal - 1)

static inline __attribute__((always_inline)) void reply_literal(struct reply *reply,
                                                                const char *literal, u32 length)
{
    if (unlikely(length > reply->at.room)) {
        reply_split(reply, (const u8 *)literal, length);
        return;
    }
    __builtin_memcpy(reply->at.out, literal, length);
    reply->at.out += length;
    reply->at.room -= length;
}

void reply_decimal(struct reply *reply, u64 value);

#endif
