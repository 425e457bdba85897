/* Contract of store/: rows without any structure on top.  A store knows vectors in two planes, 4-bit codes, ids,
 * timestamps and which rows are live; it knows no graph.  Depends on kernels/ and base/.
 *
 * A store has no lock: index/ holds the one lock of an index.  Appending is in two steps: store_reserve can fail and
 * changes nothing visible, store_append after it cannot fail. */
#ifndef FVDB_STORE_H
#define FVDB_STORE_H

#include "../base/base.h"
#include "../kernels/kernels.h"

/* ---- id_map.c: id <-> slot ---- */

/* Ids of slots 0 .. n-1 as bytes in one arena (slot s at offsets[s] .. offsets[s+1]), and a hash table of slots: open
 * addressing, linear probing, power-of-two capacity, at most 7/8 full, backward-shift deletion.  Rows whose id was
 * unlinked (tombstones) keep their bytes until the store is compacted.  The table never holds the same id twice. */
typedef struct id_map {
    region bytes;
    region offsets;              /* (n + 1) uint32 */
    uint32_t *table;             /* table_size slots, FVDB_NO_SLOT = free */
    uint32_t table_size;
    uint32_t n;                  /* slots with an id */
    uint32_t linked;             /* entries in the table */
    uint64_t seed;
} id_map;

void id_map_init(id_map *m, uint64_t seed);
void id_map_free(id_map *m);
/* Room for `rows` more ids of `id_bytes` bytes in all.  FVDB_OK, FVDB_ERR_MEMORY or FVDB_ERR_TOO_MANY (arena > 4 GiB). */
fvdb_status id_map_reserve(id_map *m, uint32_t rows, uint64_t id_bytes, fvdb_diag *diag);
/* Slot of an id, or FVDB_NO_SLOT. */
uint32_t id_map_find(const id_map *m, const uint8_t *id, size_t size);
/* Appends the id of slot m->n, without linking it.  Room was reserved. */
void id_map_append(id_map *m, const uint8_t *id, size_t size);
/* Links slot's id, which no other slot has linked; room was reserved. */
void id_map_link(id_map *m, uint32_t slot);
/* Unlinks slot's id if it is that slot which is linked. */
void id_map_unlink(id_map *m, uint32_t slot);
/* Drops slots >= n (rollback); they must be unlinked already. */
void id_map_truncate(id_map *m, uint32_t n);
/* Keeps only slots with map[slot] != FVDB_NO_SLOT, renumbered (ascending); cannot fail. */
void id_map_compact(id_map *m, const uint32_t *map);
const uint8_t *id_map_get(const id_map *m, uint32_t slot, size_t *size);
int id_map_compare(const id_map *m, uint32_t a, uint32_t b);     /* memcmp order, shorter first on a tie */
size_t id_map_resident(const id_map *m);
/* Empty, over FVDB_ID_BYTES_MAX or not well-formed UTF-8 (no surrogates, no overlong forms): false. */
bool id_valid(const uint8_t *id, size_t size);

/* ---- timestamps.c: int64 microseconds per row, packed ---- */

/* Blocks of 1024 rows as base + offsets of 0 .. 8 bytes (frame of reference): rows added in one call share a timestamp
 * and cost nothing.  The last, open block is plain int64. */
typedef struct timestamps {
    struct timestamp_block *blocks;
    uint32_t n_blocks, cap_blocks;
    uint32_t n;
    int64_t open[1024];
    size_t packed_bytes;
} timestamps;

void timestamps_init(timestamps *t);
void timestamps_free(timestamps *t);
/* Appends all n or none. */
fvdb_status timestamps_append(timestamps *t, const int64_t *us, uint32_t n, fvdb_diag *diag);
int64_t timestamps_get(const timestamps *t, uint32_t slot);
/* Rollback of the newest rows; cannot fail. */
void timestamps_truncate(timestamps *t, uint32_t n);
/* A copy holding only the rows kept by map; all or nothing. */
fvdb_status timestamps_compacted(const timestamps *t, const uint32_t *map, timestamps *out, fvdb_diag *diag);
size_t timestamps_resident(const timestamps *t);

/* ---- codes.c: 4-bit affine codes ---- */

/* Parameters of the codes, per dimension: lo = mean - 2.7 sigma, step = 5.4 sigma / 15 (sigma = 0: step 0, code 0).
 * 2.7 was the best of 2.3 .. 3.2 on real sentence embeddings (DESIGN 3). */
typedef struct codebook {
    float *lo, *step, *inv_step; /* dim64 each, one allocation at lo */
    uint32_t trained_rows;       /* 0: untrained */
} codebook;

/* ---- store.c ---- */

typedef struct store {
    const kernel_table *kernels;
    uint32_t dim, dim16, dim64;
    uint32_t metric, memory;
    uint32_t n;                  /* rows, tombstones included */
    uint32_t live_count;
    region high, low;            /* n x dim16 uint16 */
    region inv_norm;             /* compact and cosine: n float32, 1 / |high row| */
    region codes;                /* default: n x code_bytes, once the codebook is trained */
    region code_norm2;           /* default and L2: n float32, squared norm of the decoded row */
    uint32_t code_bytes;
    codebook book;
    id_map ids;
    timestamps times;
    region live;                 /* bitmap */
} store;

/* Row counts at which the codebook is trained anew (on all rows so far): 1024 x 8^i.  Fixed counts make the codes a
 * function of the rows and their order alone. */
#define CODES_FIRST_ROWS 1024
static inline bool codes_train_at(uint32_t n) {
    for (uint64_t t = CODES_FIRST_ROWS; t <= n; t *= 8)
        if (t == n) return true;
    return false;
}

static inline const uint16_t *store_high(const store *s, uint32_t slot) {
    return (const uint16_t *)s->high.base + (size_t)slot * s->dim16;
}
static inline const uint16_t *store_low(const store *s, uint32_t slot) {
    return (const uint16_t *)s->low.base + (size_t)slot * s->dim16;
}
static inline const uint8_t *store_code(const store *s, uint32_t slot) {
    return s->codes.base + (size_t)slot * s->code_bytes;
}
static inline const uint64_t *store_live(const store *s) { return (const uint64_t *)s->live.base; }

#endif
