#include "store.h"

#include "clock.h"

enum {
    UNIT = 64,
    /* Units of the largest item; what is copied is rounded up to words. */
    UNITS_MOST = (sizeof(struct item) + TEXT_MOST + 7 + UNIT - 1) / UNIT,
    /* An arena of n bytes gets n / 512 buckets of 4 bytes. */
    BYTES_PER_BUCKET = 512,
    FEWEST_BUCKETS = 64,
    /* A chain this long is no accident with a hash that distributes: someone chose the keys. Refusing to
     * grow it bounds the work for every request. */
    DEPTH_MOST = 64,
    /* Buckets searched for expired items when memory has run out. */
    SWEEP_BUCKETS = 1024,
};

_Static_assert(UNITS_MOST < 32, "size classes are bits of a u32");

static u32 *buckets;
static u32 bucket_mask;
static u8 *arena;
/* The arena's first unit that was never used, and its end. Unit 0 stays unused: it means none. */
static u32 fresh_unit, end_unit;
/* Freed blocks by their size in units, linked by their first word, and which lists have any. */
static u32 free_blocks[UNITS_MOST + 1];
static u32 free_sizes;
static u32 sweep_hand;
static u32 expiring;
static u64 hash_seed;
static u64 last_cas;
static struct store_statistics statistics;

static struct item *item_at(u32 unit)
{
    return (struct item *)(arena + (u64)unit * UNIT);
}

static u32 unit_of(const struct item *item)
{
    return (u32)((u64)((const u8 *)item - arena) / UNIT);
}

static u32 units_for(u32 text_length)
{
    return ((u32)sizeof(struct item) + text_length + 7 + UNIT - 1) / UNIT;
}

bool store_init(u8 *memory, u64 bytes, u64 seed)
{
    u64 skew = (UNIT - (u64)memory % UNIT) % UNIT;
    if (bytes < skew + FEWEST_BUCKETS * BYTES_PER_BUCKET + UNITS_MOST * UNIT)
        return false;
    bytes -= skew;
    u64 count = FEWEST_BUCKETS;
    while (count * 2 <= bytes / BYTES_PER_BUCKET)
        count *= 2;
    buckets = (u32 *)(memory + skew);
    bucket_mask = (u32)(count - 1);
    void *clear = buckets;
    u64 words = count * sizeof *buckets / 8;
    __asm__ volatile("rep stosq" : "+D"(clear), "+c"(words) : "a"(0) : "memory");

    arena = memory + skew + count * sizeof *buckets;
    end_unit = (u32)((bytes - count * sizeof *buckets) / UNIT);
    fresh_unit = 1;
    hash_seed = seed;
    statistics.capacity = (u64)(end_unit - fresh_unit) * UNIT;
    return true;
}

/* Multiply and fold, a word at a time. Keyed, so that whoever chooses keys without knowing the seed
 * cannot choose their buckets; no cryptographic strength (DEPTH_MOST is what holds then). */
static u64 mix(u64 value)
{
    unsigned __int128 product = (unsigned __int128)value * 0x9e3779b97f4a7c15ull;
    return (u64)product ^ (u64)(product >> 64);
}

/* A key in words: the bytes before its last word, and that word, filled up with zeros. A key has at least
 * one byte, so the last word has, too. */
struct key {
    const u8 *text;
    u64 mask, last;
    u32 length, before;
};

static inline struct key key_of(const u8 *text, u32 length)
{
    u32 before = (length - 1) & ~7u;
    u64 mask = ~0ull >> ((0u - length) * 8 & 63);
    return (struct key){text, mask, load64(text + before) & mask, length, before};
}

static inline u64 key_hash(const struct key *key)
{
    u64 hash = hash_seed ^ ((u64)key->length << 56);
    for (u32 at = 0; at < key->before; at += 8)
        hash = mix(hash ^ load64(key->text + at));
    return mix(mix(hash ^ key->last));
}

static inline bool key_equal(const struct key *key, const struct item *item)
{
    for (u32 at = 0; at < key->before; at += 8)
        if (load64(key->text + at) != load64(item->text + at))
            return false;
    return (load64(item->text + key->before) & key->mask) == key->last;
}

static bool has_expired(const struct item *item)
{
    return item->expires && item->expires <= clock_uptime();
}

static void free_block(u32 unit, u32 units)
{
    item_at(unit)->next = free_blocks[units];
    free_blocks[units] = unit;
    free_sizes |= 1u << units;
}

static u32 take_block(u32 units)
{
    u32 unit = free_blocks[units];
    free_blocks[units] = item_at(unit)->next;
    if (!free_blocks[units])
        free_sizes &= ~(1u << units);
    return unit;
}

/* A block of exactly `units`; 0: none. Blocks are split and never joined again. */
static u32 allocate(u32 units)
{
    if (free_sizes & 1u << units)
        return take_block(units);
    if (end_unit - fresh_unit >= units) {
        u32 unit = fresh_unit;
        fresh_unit += units;
        return unit;
    }
    u32 larger = free_sizes & ~0u << units;
    if (!larger)
        return 0;
    u32 size = (u32)__builtin_ctz(larger);
    u32 unit = take_block(size);
    free_block(unit + units, size - units);
    return unit;
}

static void forget(struct item *item)
{
    statistics.items--;
    statistics.bytes -= item->units * UNIT;
    expiring -= item->expires != 0;
    free_block(unit_of(item), item->units);
}

/* Frees expired items that nobody asked for since, some buckets at a time. */
static void sweep(void)
{
    for (u32 i = 0; expiring && i < SWEEP_BUCKETS && i <= bucket_mask; i++) {
        u32 *link = &buckets[sweep_hand++ & bucket_mask];
        while (*link) {
            struct item *item = item_at(*link);
            if (has_expired(item)) {
                *link = item->next;
                statistics.expired++;
                forget(item);
            } else {
                link = &item->next;
            }
        }
    }
}

struct item *store_find(struct place *place, const u8 *text, u32 length)
{
    struct key key = key_of(text, length);
    u64 hash = key_hash(&key);
    u32 tag = (u32)(hash >> 32);
    u32 *link = &buckets[(u32)hash & bucket_mask];
    u32 depth = 0;
    place->bucket = link;
    place->hash = tag;
    for (; *link; link = &item_at(*link)->next) {
        struct item *item = item_at(*link);
        depth++;
        if (item->hash != tag || item->key_length != length || !key_equal(&key, item))
            continue;
        place->link = link;
        place->depth = depth;
        if (unlikely(has_expired(item))) {
            *link = item->next;
            statistics.expired++;
            forget(item);
            return NULL;
        }
        return item;
    }
    place->depth = depth;
    return NULL;
}

struct item *store_place(const struct place *place, struct item *old, u32 text_length, u32 expires)
{
    u32 units = units_for(text_length);
    if (old && old->units == units) {
        store_touch(old, expires);
        old->cas = ++last_cas;
        statistics.items_ever++;
        return old;
    }
    if (!old && place->depth >= DEPTH_MOST)
        return NULL;
    u32 unit = allocate(units);
    if (unlikely(!unit)) {
        /* The old item stays (it has just been found unexpired, at the same time of day), but its
         * neighbours may go, and with them what place->link points at: it is not used below. */
        sweep();
        unit = allocate(units);
        if (!unit)
            return NULL;
    }
    struct item *item = item_at(unit);
    if (old) {
        u32 *link = place->bucket;
        while (*link != unit_of(old))
            link = &item_at(*link)->next;
        *link = old->next;
        forget(old);
    }
    item->next = *place->bucket;
    *place->bucket = unit;
    item->hash = place->hash;
    item->cas = ++last_cas;
    item->expires = expires;
    item->units = (u8)units;
    expiring += expires != 0;
    statistics.items++;
    statistics.items_ever++;
    statistics.bytes += units * UNIT;
    return item;
}

void store_remove(const struct place *place, struct item *item)
{
    *place->link = item->next;
    forget(item);
}

void store_touch(struct item *item, u32 expires)
{
    expiring -= item->expires != 0;
    expiring += expires != 0;
    item->expires = expires;
}

const struct store_statistics *store_statistics(void)
{
    return &statistics;
}
