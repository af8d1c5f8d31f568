/* The items: a hash table over an arena, both of fixed size. Nothing is evicted: an item stays until
 * it is deleted, replaced or expired. */

#ifndef STORE_H
#define STORE_H

#include "types.h"

#define KEY_MOST 250
#define VALUE_MOST 1400
/* "<key> <flags> <bytes>\r\n<data>\r\n" */
#define TEXT_MOST (KEY_MOST + 1 + 10 + 1 + 4 + 2 + VALUE_MOST + 2)

struct item {
    /* The next item of the bucket, in units of the arena; 0 ends the chain. */
    u32 next;
    u32 hash;
    /* Changes with every store. */
    u64 cas;
    /* Uptime in seconds from which the item is no more; 0 is never. */
    u32 expires;
    u16 text_length;
    /* Bytes of the text before the data. */
    u16 head_length;
    u8 key_length;
    u8 flags_length;
    u8 units;
    u8 reserved[5];
    /* What a get answers with, behind "VALUE ": so that answering is one copy. */
    u8 text[];
};

/* Where a key is, or would go. */
struct place {
    u32 *link;
    u32 *bucket;
    u32 hash;
    u32 depth;
};

struct store_statistics {
    u64 items, items_ever, bytes, capacity, expired;
};

/* Takes over `bytes` of memory, 4 GiB at most. False: too few. */
bool store_init(u8 *memory, u64 bytes, u64 seed);

/* The item with that key, or NULL; `place` is good until the store is next changed. Up to 7 bytes
 * behind the key are read. */
struct item *store_find(struct place *place, const u8 *key, u32 length);

/* Makes room for `text_length` bytes under the key that `place` was found for: the same item where it
 * fits, else a new one in the place of `old` (NULL: none). Its text and lengths are the caller's to
 * fill in. NULL: no memory, nothing has changed. */
struct item *store_place(const struct place *place, struct item *old, u32 text_length, u32 expires);

void store_remove(const struct place *place, struct item *item);

/* Changes when the item expires. */
void store_touch(struct item *item, u32 expires);

const struct store_statistics *store_statistics(void);

#endif
