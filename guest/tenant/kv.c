/* Requests of memcached's ASCII protocol (memcached, doc/protocol.txt). A datagram may hold several,
 * answered in order in one reply; the first that is malformed ends it, because what follows it might
 * be data and not a command. */

#include "kv.h"

#include "clock.h"
#include "decimal.h"
#include "reply.h"
#include "store.h"

/* An expiry beyond this many seconds (30 days) is a Unix time. */
#define RELATIVE_MOST 2592000
#define NUMBER_MOST 0xffffffffull

enum storage { SET, ADD, REPLACE, CAS };

/* What is left of a datagram. At `end` are eight zero bytes: every scan for a delimiter stops there,
 * so none needs to look at `end` itself. */
struct request {
    const u8 *at, *end;
    struct reply reply;
};

static struct {
    u64 get, set, touch, get_hits, get_misses, delete_hits, delete_misses, cas_misses, cas_hits,
        cas_badval;
} counters;

#define NOT_NUMERIC "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
#define OUT_OF_MEMORY "SERVER_ERROR out of memory storing object\r\n"

/* Answers with a string literal, and ends the datagram. */
#define refuse(r, literal) refuse_with(r, literal, sizeof literal - 1)

static bool refuse_with(struct request *r, const char *text, u32 length)
{
    reply_split(&r->reply, (const u8 *)text, length);
    return false;
}

static void skip_spaces(struct request *r)
{
    while (*r->at == ' ')
        r->at++;
}

/* Moves behind the next word; returns its length, 0 if the line ends here. A word ends at the first
 * byte up to and including the space. Eight bytes at a time: the subtraction borrows into the top bit of
 * each byte below 0x21 that had it clear, and the lowest such byte is exact. */
static u32 word(struct request *r, const u8 **start)
{
    skip_spaces(r);
    const u8 *p = r->at;
    *start = p;
    for (;;) {
        u64 bytes = load64(p);
        u64 low = (bytes - 0x2121212121212121) & ~bytes & 0x8080808080808080;
        if (likely(low)) {
            p += __builtin_ctzll(low) / 8;
            break;
        }
        p += 8;
    }
    r->at = p;
    return (u32)(p - *start);
}

#define CR_LF ('\r' | '\n' << 8)

static bool line_end(struct request *r)
{
    if (likely(load16(r->at) == CR_LF)) {
        r->at += 2;
        return true;
    }
    skip_spaces(r);
    if (load16(r->at) == CR_LF)
        r->at += 2;
    else if (*r->at == '\n')
        r->at += 1;
    else
        return false;
    return true;
}

/* A line that ends too early is no command; any other that cannot be read, or whose key is too long, is a
 * bad one. */
static bool refuse_line(struct request *r, u32 key_length)
{
    return key_length <= KEY_MOST && line_end(r)
               ? refuse(r, "ERROR\r\n")
               : refuse(r, "CLIENT_ERROR bad command line format\r\n");
}

/* A number as it was written, without leading zeros. */
struct digits {
    const u8 *at;
    u32 length;
};

static inline bool number(struct request *r, u64 most, u64 *value)
{
    skip_spaces(r);
    return decimal_read(&r->at, most, value) && *r->at <= ' ';
}

static inline bool number_as_written(struct request *r, u64 most, u64 *value, struct digits *digits)
{
    skip_spaces(r);
    const u8 *start = r->at;
    if (!number(r, most, value))
        return false;
    while (unlikely(*start == '0') && start + 1 < r->at)
        start++;
    *digits = (struct digits){start, (u32)(r->at - start)};
    return true;
}

static bool no_reply(struct request *r)
{
    skip_spaces(r);
    if ((load64(r->at) & low_bytes(7)) != (load64("noreply") & low_bytes(7)) || r->at[7] > ' ')
        return false;
    r->at += 7;
    return true;
}

/* Reads an expiry. `*expires` becomes the uptime from which the item is no more, 0 if never;
 * `*gone`: it is no more from the start. */
static bool expiry(struct request *r, u32 *expires, bool *gone)
{
    u64 value;
    if (likely(load16(r->at) == (' ' | '0' << 8) && r->at[2] <= ' ')) {
        r->at += 2;
        *expires = 0;
        *gone = false;
        return true;
    }
    skip_spaces(r);
    bool negative = *r->at == '-';
    r->at += negative;
    if (!number(r, NUMBER_MOST, &value))
        return false;
    *expires = 0;
    *gone = negative && value;
    if (!value || negative)
        return true;
    if (value <= RELATIVE_MOST) {
        /* A second of uptime may be as good as over: one more, so that none is missing. */
        *expires = clock_uptime() + (u32)value + 1;
        return true;
    }
    u64 epoch = clock_epoch();
    if (value <= epoch + clock_uptime())
        *gone = true;
    else
        *expires = (u32)(value - epoch);
    return true;
}

/* Whether the machine can tell when that is. */
static bool clock_suffices(u32 expires)
{
    return !expires || (clock_present() && (expires < 2 * RELATIVE_MOST || clock_epoch()));
}

/* Appends a number of at most ten digits; a whole word is written. */
static u8 *append_digits(u8 *to, struct digits digits)
{
    store64(to, load64(digits.at));
    if (unlikely(digits.length > 8))
        store64(to + 8, load64(digits.at + 8));
    return to + digits.length;
}

/* Stores an item under the key that `place` was found for. `size` is `bytes` in digits; `data` is followed
 * by "\r\n". */
static bool put(const struct place *place, struct item *old, const u8 *key, u32 key_length,
                struct digits flags, u32 expires, struct digits size, const u8 *data, u32 bytes)
{
    u32 head_length = key_length + flags.length + size.length + 4;
    u32 text_length = head_length + bytes + 2;
    struct item *item = store_place(place, old, text_length, expires);
    if (unlikely(!item))
        return false;
    item->text_length = (u16)text_length;
    item->head_length = (u16)head_length;
    item->key_length = (u8)key_length;
    item->flags_length = (u8)flags.length;
    /* Each piece is written over what the one before it wrote too much. What is written too much at the end
     * is in the item: seven bytes were added to its size for that. */
    copy_words(item->text, key, key_length);
    u8 *to = item->text + key_length;
    *to++ = ' ';
    to = append_digits(to, flags);
    *to++ = ' ';
    to = append_digits(to, size);
    *to++ = '\r';
    *to++ = '\n';
    copy_words(to, data, bytes + 2);
    return true;
}

/* <command> <key> <flags> <exptime> <bytes> [<cas>] [noreply]\r\n<data>\r\n */
static bool command_store(struct request *r, enum storage how)
{
    const u8 *key;
    u32 key_length = word(r, &key);
    u64 value, bytes, cas = 0;
    struct digits flags, size;
    u32 expires;
    bool gone;
    if (!key_length || key_length > KEY_MOST ||
        !number_as_written(r, NUMBER_MOST, &value, &flags) || !expiry(r, &expires, &gone) ||
        !number_as_written(r, NUMBER_MOST, &bytes, &size) ||
        (how == CAS && !number(r, ~0ull, &cas)))
        return refuse_line(r, key_length);
    bool silent = no_reply(r);
    if (!line_end(r))
        return refuse_line(r, key_length);
    if (bytes > VALUE_MOST)
        return refuse(r, "SERVER_ERROR object too large for cache\r\n");
    const u8 *data = r->at;
    if ((u64)(r->end - data) < bytes + 2 || load16(data + bytes) != CR_LF)
        return refuse(r, "CLIENT_ERROR bad data chunk\r\n");
    r->at += bytes + 2;
    if (!clock_suffices(expires))
        return refuse(r, "SERVER_ERROR no clock for this expiry\r\n");

    counters.set++;
    struct place place;
    struct item *old = store_find(&place, key, key_length);
    if (how == ADD ? old != NULL : how == REPLACE ? old == NULL : false) {
        if (!silent)
            reply_text(&r->reply, "NOT_STORED\r\n");
        return true;
    }
    if (how == CAS) {
        if (!old) {
            counters.cas_misses++;
            if (!silent)
                reply_text(&r->reply, "NOT_FOUND\r\n");
            return true;
        }
        if (old->cas != cas) {
            counters.cas_badval++;
            if (!silent)
                reply_text(&r->reply, "EXISTS\r\n");
            return true;
        }
        counters.cas_hits++;
    }
    if (unlikely(gone)) {
        if (old)
            store_remove(&place, old);
    } else if (!put(&place, old, key, key_length, flags, expires, size, data, (u32)bytes)) {
        return silent || refuse(r, OUT_OF_MEMORY);
    }
    if (!silent)
        reply_text(&r->reply, "STORED\r\n");
    return true;
}

/* get <key>*\r\n, gets <key>*\r\n */
static bool command_get(struct request *r, bool with_cas)
{
    struct reply_mark before = r->reply.at;
    const u8 *key;
    u32 key_length = word(r, &key);
    if (!key_length)
        return refuse(r, "ERROR\r\n");
    for (; key_length; key_length = load16(r->at) == CR_LF ? 0 : word(r, &key)) {
        if (key_length > KEY_MOST)
            break;
        counters.get++;
        struct place place;
        const struct item *item = store_find(&place, key, key_length);
        if (!item) {
            counters.get_misses++;
            continue;
        }
        counters.get_hits++;
        reply_text(&r->reply, "VALUE ");
        if (with_cas) {
            u32 head = item->head_length - 2u;
            reply_bytes(&r->reply, item->text, head);
            reply_text(&r->reply, " ");
            reply_decimal(&r->reply, item->cas);
            reply_bytes(&r->reply, item->text + head, item->text_length - head);
        } else {
            reply_bytes(&r->reply, item->text, item->text_length);
        }
    }
    if (key_length || !line_end(r)) {
        reply_rewind(&r->reply, &before);
        return refuse_line(r, key_length);
    }
    reply_text(&r->reply, "END\r\n");
    return true;
}

/* delete <key> [noreply]\r\n */
static bool command_delete(struct request *r)
{
    const u8 *key;
    u32 key_length = word(r, &key);
    bool silent = no_reply(r);
    if (!key_length || key_length > KEY_MOST || !line_end(r))
        return refuse_line(r, key_length);
    struct place place;
    struct item *item = store_find(&place, key, key_length);
    if (item) {
        counters.delete_hits++;
        store_remove(&place, item);
    } else {
        counters.delete_misses++;
    }
    if (silent)
        return true;
    if (item)
        reply_text(&r->reply, "DELETED\r\n");
    else
        reply_text(&r->reply, "NOT_FOUND\r\n");
    return true;
}

/* incr <key> <delta> [noreply]\r\n, and decr. An increment wraps at 2^64; a decrement stops at 0. */
static bool command_count(struct request *r, bool up)
{
    const u8 *key;
    u32 key_length = word(r, &key);
    if (!key_length || key_length > KEY_MOST)
        return refuse_line(r, key_length);
    u64 delta, value;
    if (!number(r, ~0ull, &delta))
        return line_end(r) ? refuse(r, "ERROR\r\n")
                           : refuse(r, "CLIENT_ERROR invalid numeric delta argument\r\n");
    bool silent = no_reply(r);
    if (!line_end(r))
        return refuse_line(r, key_length);
    struct place place;
    struct item *item = store_find(&place, key, key_length);
    if (!item) {
        if (!silent)
            reply_text(&r->reply, "NOT_FOUND\r\n");
        return true;
    }
    const u8 *digits = item->text + item->head_length;
    const u8 *digits_end = item->text + item->text_length - 2;
    if (!decimal_read(&digits, ~0ull, &value) || digits != digits_end)
        return silent || refuse(r, NOT_NUMERIC);
    value = up ? value + delta : value > delta ? value - delta : 0;
    u8 text[DECIMAL_MOST + 2 + 7], size_text[DECIMAL_MOST];
    /* Copied: the item may be written over in place. */
    u8 flags_text[16];
    copy_words(flags_text, item->text + key_length + 1, sizeof flags_text);
    u32 length = decimal_print(text, value);
    text[length] = '\r';
    text[length + 1] = '\n';
    struct digits size = {size_text, decimal_print(size_text, length)};
    struct digits flags = {flags_text, item->flags_length};
    if (!put(&place, item, key, key_length, flags, item->expires, size, text, length))
        return silent || refuse(r, OUT_OF_MEMORY);
    if (!silent)
        reply_bytes(&r->reply, text, length + 2);
    return true;
}

/* touch <key> <exptime> [noreply]\r\n */
static bool command_touch(struct request *r)
{
    const u8 *key;
    u32 expires;
    bool gone;
    u32 key_length = word(r, &key);
    if (!key_length || key_length > KEY_MOST || !expiry(r, &expires, &gone))
        return refuse_line(r, key_length);
    bool silent = no_reply(r);
    if (!line_end(r))
        return refuse_line(r, key_length);
    if (!clock_suffices(expires))
        return refuse(r, "SERVER_ERROR no clock for this expiry\r\n");
    counters.touch++;
    struct place place;
    struct item *item = store_find(&place, key, key_length);
    if (item && gone)
        store_remove(&place, item);
    else if (item)
        store_touch(item, expires);
    if (silent)
        return true;
    if (item)
        reply_text(&r->reply, "TOUCHED\r\n");
    else
        reply_text(&r->reply, "NOT_FOUND\r\n");
    return true;
}

static void statistic(struct request *r, const char *name, u32 length, u64 value)
{
    reply_text(&r->reply, "STAT ");
    reply_split(&r->reply, (const u8 *)name, length);
    reply_text(&r->reply, " ");
    reply_decimal(&r->reply, value);
    reply_text(&r->reply, "\r\n");
}

#define statistic(r, literal, value) statistic(r, literal, sizeof literal - 1, value)

/* stats\r\n */
static bool command_statistics(struct request *r)
{
    if (!line_end(r))
        return refuse(r, "ERROR\r\n");
    const struct store_statistics *store = store_statistics();
    statistic(r, "uptime", clock_uptime());
    if (clock_epoch())
        statistic(r, "time", clock_epoch() + clock_uptime());
    reply_text(&r->reply, "STAT version " TENANT_VERSION "\r\n");
    statistic(r, "cmd_get", counters.get);
    statistic(r, "cmd_set", counters.set);
    statistic(r, "cmd_touch", counters.touch);
    statistic(r, "get_hits", counters.get_hits);
    statistic(r, "get_misses", counters.get_misses);
    statistic(r, "delete_hits", counters.delete_hits);
    statistic(r, "delete_misses", counters.delete_misses);
    statistic(r, "cas_hits", counters.cas_hits);
    statistic(r, "cas_misses", counters.cas_misses);
    statistic(r, "cas_badval", counters.cas_badval);
    statistic(r, "curr_items", store->items);
    statistic(r, "total_items", store->items_ever);
    statistic(r, "expired", store->expired);
    statistic(r, "evictions", 0);
    statistic(r, "bytes", store->bytes);
    statistic(r, "limit_maxbytes", store->capacity);
    reply_text(&r->reply, "END\r\n");
    return true;
}

static bool command_version(struct request *r)
{
    if (!line_end(r))
        return refuse(r, "ERROR\r\n");
    reply_text(&r->reply, "VERSION " TENANT_VERSION "\r\n");
    return true;
}

/* A word of up to eight letters as the number that it is in memory. */
#define NAME4(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)
#define NAME8(a, b, c, d, e, f, g, h)                                                              \
    ((u64)NAME4(a, b, c, d) | (u64)NAME4(e, f, g, h) << 32)

/* Executes the next command. False: the rest of the datagram is not to be looked at. */
static bool command(struct request *r)
{
    /* The two that matter, as they are usually written. */
    u32 begin = load32(r->at);
    if (likely(begin == NAME4('g', 'e', 't', ' '))) {
        r->at += 4;
        return command_get(r, false);
    }
    if (likely(begin == NAME4('s', 'e', 't', ' '))) {
        r->at += 4;
        return command_store(r, SET);
    }
    const u8 *name;
    u32 length = word(r, &name);
    if (length == 0 || length > 8)
        return refuse(r, "ERROR\r\n");
    switch (load64(name) & low_bytes(length)) {
    case NAME8('g', 'e', 't', 0, 0, 0, 0, 0):
        return command_get(r, false);
    case NAME8('g', 'e', 't', 's', 0, 0, 0, 0):
        return command_get(r, true);
    case NAME8('s', 'e', 't', 0, 0, 0, 0, 0):
        return command_store(r, SET);
    case NAME8('a', 'd', 'd', 0, 0, 0, 0, 0):
        return command_store(r, ADD);
    case NAME8('r', 'e', 'p', 'l', 'a', 'c', 'e', 0):
        return command_store(r, REPLACE);
    case NAME8('c', 'a', 's', 0, 0, 0, 0, 0):
        return command_store(r, CAS);
    case NAME8('i', 'n', 'c', 'r', 0, 0, 0, 0):
        return command_count(r, true);
    case NAME8('d', 'e', 'c', 'r', 0, 0, 0, 0):
        return command_count(r, false);
    case NAME8('d', 'e', 'l', 'e', 't', 'e', 0, 0):
        return command_delete(r);
    case NAME8('t', 'o', 'u', 'c', 'h', 0, 0, 0):
        return command_touch(r);
    case NAME8('s', 't', 'a', 't', 's', 0, 0, 0):
        return command_statistics(r);
    case NAME8('v', 'e', 'r', 's', 'i', 'o', 'n', 0):
        return command_version(r);
    default:
        return refuse(r, "ERROR\r\n");
    }
}

void kv_receive(const struct datagram *datagram)
{
    const struct kv_header *header = (const void *)datagram->payload;
    if (datagram->length <= sizeof *header)
        return;
    struct request r;
    r.at = datagram->payload + sizeof *header;
    r.end = datagram->payload + datagram->length;
    reply_begin(&r.reply);
    if (unlikely(load32(&header->sequence) != REPLY_ALONE))
        refuse(&r, "SERVER_ERROR multi-packet request not supported\r\n");
    else
        while (r.at < r.end && command(&r))
            ;
    reply_end(&r.reply, datagram);
}
