/* Contract of store/: rows without any structure on top.  A store knows vectors in two planes, 4-bit codes, ids,
 * timestamps and which rows are live; it knows no graph.  Depends on kernels/ and base/.
 *
 * A store has no lock: index/ holds the one lock of an index.  Appended rows are seen by nobody before they are
 * made live, which cannot fail. */
#ifndef FVDB_STORE_H
#define FVDB_STORE_H

#include "../base/base.h"
#include "../kernels/kernels.h"

#include <float.h>

/* ---- id_map.c: id <-> slot ---- */

/* Ids of slots 0 .. n-1 as bytes in one arena (slot s at offsets[s] .. offsets[s+1]), and a hash table of slots: open
 * addressing, linear probing, power-of-two capacity, at most 7/8 full, backward-shift deletion.  Rows whose id was
 * unlinked (tombstones) keep their bytes until the store is compacted.  The table never holds the same id twice. */
typedef struct id_map {
    region bytes;
    region offsets;  /* (n + 1) uint32 */
    uint32_t *table; /* table_size slots, FVDB_NO_SLOT = free */
    uint32_t table_size;
    uint32_t n;      /* slots with an id */
    uint32_t linked; /* entries in the table */
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
/* The ids of slots order[0] .. order[n - 1], one after the other, as a second arena. */
fvdb_status id_map_reordered(const id_map *m, const uint32_t *order, uint32_t n, region *bytes, region *offsets,
                             fvdb_diag *diag);
/* Exchanges arenas; only the ids of slots in `live` are linked afterwards.  Cannot fail. */
void id_map_exchange(id_map *m, region *bytes, region *offsets, uint32_t n, const uint64_t *live);
const uint8_t *id_map_get(const id_map *m, uint32_t slot, size_t *size);
/* Brings near where a slot's id begins; and then, in a call of its own, the id. */
static inline void id_map_prefetch_offset(const id_map *m, uint32_t slot) {
    __builtin_prefetch((const uint32_t *)m->offsets.base + slot);
}
static inline void id_map_prefetch(const id_map *m, uint32_t slot) {
    __builtin_prefetch(m->bytes.base + ((const uint32_t *)m->offsets.base)[slot]);
}
int id_map_compare(const id_map *m, uint32_t a, uint32_t b); /* memcmp order, shorter first on a tie */
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
/* A copy of rows order[0] .. order[n - 1]; all or nothing. */
fvdb_status timestamps_reordered(const timestamps *t, const uint32_t *order, uint32_t n, timestamps *out,
                                 fvdb_diag *diag);
size_t timestamps_resident(const timestamps *t);

/* ---- store.c: rows ---- */

/* Parameters of the 4-bit codes, per dimension: a value x has code clamp(round((x - lo) / step), 0, 15). */
typedef struct codebook {
    float *lo, *step, *inv_step; /* dim64 each, zero-padded, one allocation at lo; NULL while untrained */
    uint32_t trained_rows;       /* rows it was trained on; 0: untrained */
    bool coarse;                 /* codes or high halves tell neighbours apart too badly: links and walks go by rows */
    bool bits_serve;             /* bit codes were found to tell them apart */
} codebook;

typedef struct store {
    const kernel_table *kernels;
    uint32_t dim, dim16, dim64;
    uint32_t metric, memory;
    uint32_t n; /* rows, tombstones included */
    uint32_t live_count;
    region high, low;  /* n x dim16 uint16 */
    region inv_norm;   /* cosine: n float32, 1 / |row| */
    region codes;      /* but for compact: n x code_bytes, once the codebook is trained */
    region code_norm2; /* with codes, but for cosine: n float32, squared norm of the decoded row */
    region
        code_error; /* with codes: n uint16, upper halves of float32: no row is farther than this from its decoded self */
    double code_error_max;  /* of all coded rows */
    double code_spread_max; /* no decoded row is farther than this from the middle of the codebook */
    uint32_t code_bytes;
    codebook book;
    id_map ids;
    timestamps times;
    region live;               /* bitmap over n rows, whole words */
    region vectorless;         /* the same of rows without a vector; none while there never was one */
    region found;              /* where `vectorless` is: rows that are live and have a vector */
    uint32_t found_count;      /* how many these are; live_count where there is no `vectorless` */
    uint32_t vectorless_count; /* rows without a vector, tombstones included */
} store;

static inline const uint16_t *store_high(const store *s, uint32_t slot) {
    return (const uint16_t *)s->high.base + (size_t)slot * s->dim16;
}
static inline const uint16_t *store_low(const store *s, uint32_t slot) {
    return (const uint16_t *)s->low.base + (size_t)slot * s->dim16;
}
static inline const uint8_t *store_code(const store *s, uint32_t slot) {
    return s->codes.base + (size_t)slot * s->code_bytes;
}
/* A float32 from its upper half, the lower one zeros. */
static inline float from_upper_half(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline double store_code_error(const store *s, uint32_t slot) {
    return (double)from_upper_half(((const uint16_t *)s->code_error.base)[slot]);
}
static inline uint64_t *store_live(const store *s) { return (uint64_t *)s->live.base; }
static inline bool store_is_vectorless(const store *s, uint32_t slot) {
    return s->vectorless.used && bit_get((const uint64_t *)s->vectorless.base, slot);
}
/* Rows that searches may find. */
static inline const uint64_t *store_found(const store *s) {
    return (const uint64_t *)(s->vectorless.used ? s->found.base : s->live.base);
}
/* Rows with a vector, tombstones included: what codes are trained on. */
static inline uint32_t store_with_vector(const store *s) { return s->n - s->vectorless_count; }
static inline bool store_has_codes(const store *s) { return s->memory != FVDB_MEMORY_COMPACT && s->book.trained_rows; }

void store_init(store *s, const kernel_table *kernels, const fvdb_config *config);
void store_free(store *s);
/* Gives back memory of large arrays that no row uses. */
void store_trim(const store *s);

/* FVDB_OK, FVDB_ERR_NOT_FINITE or FVDB_ERR_ZERO_VECTOR (cosine); *component says where. */
fvdb_status store_check_vector(const store *s, const float *x, uint32_t *component);

/* Room for rows up to n (vectors, codes, bitmap) and for their ids; changes nothing else. */
fvdb_status store_reserve(store *s, uint32_t n, uint64_t id_bytes, fvdb_diag *diag);
/* Appends rows, not live and with unlinked ids; the vectors were checked.  All or nothing. */
fvdb_status store_append(store *s, const fvdb_rows *rows, const uint32_t *picked, uint32_t n, uint64_t id_bytes,
                         thread_pool *c, fvdb_diag *diag);
/* Room for marks of vectorless rows among n; then marks one of them, zeros in its planes. */
fvdb_status store_reserve_vectorless(store *s, uint32_t n, fvdb_diag *diag);
void store_mark_vectorless(store *s, uint32_t slot);
/* The fewest rows from the first on of which `count` have a vector; FVDB_NO_SLOT where not so many do. */
uint32_t store_rows_with_vector(const store *s, uint64_t count);
/* The rows of a store that are all vectorless, tombstones among them, into an empty one of another dimension: all or nothing. */
fvdb_status store_copy_vectorless(const store *from, store *to, fvdb_diag *diag);
/* Makes an appended row visible, or a visible one a tombstone. */
void store_make_live(store *s, uint32_t slot);
void store_make_tombstone(store *s, uint32_t slot);
/* Drops rows >= n, none of them live. */
void store_truncate(store *s, uint32_t n);
/* All rows in a new order, those that go behind the `kept` that stay.  Both arrays are permutations of the n rows. */
typedef struct reordering {
    uint32_t *order, *map; /* new slot -> old slot, old slot -> new slot */
    uint32_t n, kept;
    uint64_t *marks;             /* scratch: n bits */
    region id_bytes, id_offsets; /* what the store does not use at the time: first the new ones, then the old */
    timestamps times;
} reordering;
/* Room for a reordering of n rows, whose caller fills order and `kept`. */
fvdb_status reordering_alloc(reordering *a, uint32_t n, fvdb_diag *diag);
void reordering_free(reordering *a);
/* From the order: the map, and all that can fail. */
fvdb_status reordering_prepare(reordering *a, const store *s, fvdb_diag *diag);
/* Brings the rows into the new order, in place.  Cannot fail. */
void store_reorder(store *s, reordering *a);
/* Takes it back, where those that stay were the live ones. */
void store_reorder_back(store *s, reordering *a);
/* Gives back the memory of the rows that went; from here there is no way back. */
void store_reordered(store *s);
/* After a load filled the planes, ids, times and bitmap of all n rows and the codebook: derives the rest. */
fvdb_status store_finish_load(store *s, thread_pool *c, fvdb_diag *diag);
/* The exact float32 row. */
void store_get(const store *s, uint32_t slot, float *out);

/* ---- codes.c: the codebook, and approximate distances ---- */

/* Counts of rows with a vector at which the codebook is trained anew, on all so far: 1024 x 8^i.  Fixed counts make the
 * codes a function of the rows and their order alone. */
#define CODES_FIRST_ROWS 1024
static inline bool codes_train_at(uint32_t n) {
    for (uint64_t t = CODES_FIRST_ROWS; t <= n; t *= 8)
        if (t == n) return true;
    return false;
}
/* First training count > n. */
static inline uint64_t codes_next_training(uint32_t n) {
    uint64_t t = CODES_FIRST_ROWS;
    while (t <= n) t *= 8;
    return t;
}

fvdb_status codebook_alloc(codebook *b, uint32_t dim64);
/* Levels that span the values of dimension d. */
void codebook_span(codebook *b, uint32_t d, double mean, double variance);
/* The row as the codes see it: exact values, normalised under cosine.  Padding of x up to dim64 stays as it is. */
void coded_row(const store *s, uint32_t slot, float *x);
/* The nearest float32 that is finite. */
float to_finite_float(double x);
void codebook_free(codebook *b);
/* 1 / step, or 0 where step is 0: never infinite, since a step is 0 or at least CODE_STEP_MIN. */
#define CODE_STEP_MIN 1e-30f
void codebook_derive(codebook *b, uint32_t dim64);

/* Trains `out` on rows 0 .. n-1, those with a vector, of which there is one.  The same bits for any number of threads. */
fvdb_status codes_train(const store *s, uint32_t n, codebook *out, thread_pool *c, fvdb_diag *diag);
/* Codes rows first .. end-1 with the current codebook; nothing under memory="compact". */
void codes_encode(store *s, uint32_t first, uint32_t end, thread_pool *c);

/* ---- codes_judge.c ---- */

/* Says in s->book whether walk distances and bit codes tell the nearest of rows 0 .. n-1, which are coded, from the rest. */
fvdb_status codes_judge(store *s, uint32_t n, thread_pool *c, fvdb_diag *diag);
/* Bytes that it takes while it runs. */
uint64_t codes_judge_scratch(uint32_t dim, uint32_t n, uint32_t threads);

/* ---- codes.c: distances ---- */

/* What walk distances are made of: 4-bit codes by default, high planes under memory="compact", both planes, summed in float32,
 * where these are too coarse, or say less of a short row in about as many bytes. */
typedef enum walk_distance { WALK_BY_CODE, WALK_BY_HIGH, WALK_BY_ROW } walk_distance;
static inline walk_distance store_approximate(const store *s) {
    return store_has_codes(s) ? WALK_BY_CODE : WALK_BY_HIGH;
}
/* Rows of so few dimensions are at most 64 bytes in float32; their codes are padded to 64 dimensions, 32 bytes. */
#define ROW_WALK_DIM 16u
static inline walk_distance store_walks_by(const store *s) {
    return s->book.coarse || s->dim <= ROW_WALK_DIM ? WALK_BY_ROW : store_approximate(s);
}

/* A query prepared for walk distances, which are cosine distance, squared Euclidean distance or negative inner product. */
typedef struct scorer {
    const store *s;
    float *x;            /* max(dim16, dim64) float32: the query, normalised under cosine */
    double *wide;        /* dim16 float64: the query for exact distances */
    uint16_t *planes;    /* 2 x dim16: room to split a query */
    int8_t *q_lo, *q_hi; /* dim64 / 2 each */
    float base, scale;   /* inner product = base + scale x code product */
    float norm2;
    double exact_norm2; /* of the query */
    walk_distance by;
} scorer;

fvdb_status scorer_init(scorer *q, const store *s);
void scorer_free(scorer *q);
void scorer_set_vector(scorer *q, const float *x);
void scorer_set_slot(scorer *q, uint32_t slot); /* walk distances only */
/* Brings what the walk distance of a row is made of near, without waiting. */
static inline void scorer_prefetch_by(const scorer *q, walk_distance by, uint32_t slot) {
    const store *s = q->s;
    const size_t plane = s->dim16 * sizeof(uint16_t);
    if (by == WALK_BY_CODE) {
        prefetch_bytes(store_code(s, slot), s->code_bytes);
        return;
    }
    prefetch_bytes(store_high(s, slot), plane);
    if (by == WALK_BY_ROW) prefetch_bytes(store_low(s, slot), plane);
}
static inline void scorer_prefetch(const scorer *q, uint32_t slot) { scorer_prefetch_by(q, q->by, slot); }
/* Distances of rows that were prefetched. */
void scorer_prefetched(const scorer *q, const uint32_t *slots, uint32_t n, float *out);
/* The same by codes or high planes, coarse as they may be. */
void scorer_approximate(const scorer *q, const uint32_t *slots, uint32_t n, float *out);
/* The same by high planes, of rows that were prefetched, where the store has what it takes: inv_norm under cosine. */
void scorer_high(const scorer *q, const uint32_t *slots, uint32_t n, float *out);
/* Prefetches, then scores. */
static inline void scorer_many(const scorer *q, const uint32_t *slots, uint32_t n, float *out) {
    for (uint32_t i = 0; i < n; i++) scorer_prefetch(q, slots[i]);
    scorer_prefetched(q, slots, n, out);
}
/* Brings what scorer_exact reads near; not as what is read once, which made scans of such rows up to 2.6 times slower (Sapphire
 * Rapids). */
static inline void scorer_prefetch_exact(const scorer *q, uint32_t slot) {
    size_t bytes = q->s->dim16 * sizeof(uint16_t);
    prefetch_bytes(store_high(q->s, slot), bytes);
    prefetch_bytes(store_low(q->s, slot), bytes);
}
/* The exact distance of the metric, float64. */
double scorer_exact(const scorer *q, uint32_t slot);
/* The same, and brings `next` near meanwhile. */
double scorer_exact_then(const scorer *q, uint32_t slot, uint32_t next);
/* The same of a row that is elsewhere: dim16 halves each, zero-padded. */
double scorer_exact_halves(const scorer *q, const uint16_t *high, const uint16_t *low);
/* An exact distance as scorer_many gives it approximately. */
static inline double walk_units(const store *s, double exact) {
    return s->metric == FVDB_METRIC_L2 ? exact * exact : exact;
}

/* What a query's approximate distances say for sure of exact ones, from what was lost by coding or by leaving the low plane out.
 * A row of exact distance at most `exact` has an approximate one of at most reach_of(r, error), where r is bounds_by_code or
 * bounds_by_high of `exact`, and `error` bounds what was lost of that row: store_code_error or high_error. */
typedef struct bounds {
    const scorer *q;
    double shift;         /* what quantising the query adds to walk distances for sure */
    double product_error; /* and what it adds at most on top */
    double norm;          /* of the query */
    double rounding;      /* of a sum of float32, as a share of its terms' sizes */
    bool high_serves; /* high planes have bounds: not of inner products without codes, as norms are not known there */
} bounds;
typedef struct reach {
    double base, slope, curve;
} reach;
static inline double reach_of(const reach *r, double error) { return r->base + error * (r->slope + error * r->curve); }

/* For a query that was set by scorer_set_vector. */
void bounds_init(bounds *b, const scorer *q);
reach bounds_by_code(const bounds *b, double exact); /* where the store has codes */
reach bounds_by_high(const bounds *b, double exact);
/* What a row loses without its low plane: as a share of it under cosine; under L2 the reach has it already. */
double high_error(const bounds *b, uint32_t slot);
/* Whether an approximate distance is surely farther: one that may have overflowed on its way says nothing. */
static inline bool beyond(float near, double most) { return (double)near > most && near < FLT_MAX / 2; }

/* ---- edge_codes.c: a bit a dimension, relative to a point near the row ---- */

/* Where the codes of a group begin, behind its factors. */
#define EDGE_CODES_AT (2 * EDGE_LANES * sizeof(uint16_t))
static inline size_t edge_group_bytes(uint32_t dim64) { return EDGE_CODES_AT + dim64 / 8 * EDGE_LANES; }
/* The origin of codes, from the middle of what a codebook codes: 2 x dim64 float32, as it is and rotated.  Whether it is another
 * one than before. */
bool edge_set_origin(const store *s, const codebook *book, float *origin);
/* A row, rotated: dim64 float32. */
void edge_rotated_row(const store *s, uint32_t slot, float *x);
/* Codes a row relative to a point, both rotated, as lane of a group. */
void edge_code_row(const store *s, const float *origin, const float *row, const float *point, uint8_t *group,
                   uint32_t lane);
/* A lane whose estimate is +inf: never near. */
void edge_code_nothing(uint8_t *group, uint32_t lane);

/* A query prepared for edge_near. */
typedef struct edge_query {
    float *x;        /* dim64 float32: rotated */
    uint8_t *tables; /* dim64 / 4 x EDGE_TABLE_BYTES */
    float scale, offset, error;
    float gap2; /* its squared distance from the origin */
} edge_query;
fvdb_status edge_query_init(edge_query *q, const store *s);
void edge_query_free(edge_query *q);
void edge_query_set(edge_query *q, const scorer *query, const float *origin);
/* The offset of edge_near for codes relative to a point at a walk distance from the query: its estimates are then walk distances
 * less the point's, and lower than expected by so many spreads of what they are off by. */
float edge_offset(const edge_query *q, const scorer *query, float distance, float spreads);
/* The walk distance of the origin. */
float edge_origin_distance(const edge_query *q, const scorer *query);

/* ---- flat_search.c: exact scan ---- */

typedef struct hit {
    double distance;
    uint32_t slot;
} hit;

/* Orders by distance, ties by id bytes. */
bool hit_before(const store *s, hit a, hit b);
void hits_sort(const store *s, hit *hits, uint32_t n);
/* Puts h into a heap of at most k hits, the worst on top; *n is its size. */
void hits_offer(const store *s, hit *heap, uint32_t *n, uint32_t k, hit h);

/* Exact rows prefetched ahead: a row is 24 cache lines at 384 dimensions, and a core keeps some 60 to 100 in flight. */
#define EXACT_AHEAD 4u
/* One query of a scan. */
typedef struct scan {
    const scorer *query;
    hit *hits;      /* room for k */
    uint32_t found; /* out */
} scan;
/* Queries that share what is read from memory; more of them do not gain much. */
#define SCAN_QUERIES_MAX 8u
/* The k nearest of the rows that are found and allowed (NULL: all that are found), sorted, for each of n queries, 1 to
 * SCAN_QUERIES_MAX.  Polls control every few thousand rows and then returns early. */
void flat_search(scan *scans, uint32_t n, uint32_t k, const fvdb_allowed *allowed, const fvdb_control *control);

/* ---- bit_codes.c: a bit a dimension, for a first look ---- */

/* Bit codes of the rows of a store that has ids, tombstones and a codebook, but need not have the rows themselves. */
typedef struct bit_codes {
    const store *s;
    region codes;              /* n x dim64 / 8: one bit a dimension */
    region factors;            /* n float32 */
    region norms;              /* L2: n float32, squared norms of the rows */
    float *lo, *step, *middle; /* dim64 each, zero-padded, one allocation at lo */
} bit_codes;

size_t bit_codes_row_bytes(const store *s);
/* Bit codes of rows first .. first + n - 1 of a store that has them: n x bit_codes_row_bytes. */
void bit_codes_write(const store *s, uint32_t first, uint32_t n, uint8_t *out);
/* Room for n bit codes. */
fvdb_status bit_codes_init(bit_codes *k, const store *s, uint32_t n, fvdb_diag *diag);
void bit_codes_free(bit_codes *k);
/* Takes what bit_codes_write wrote; false for bytes that it does not write. */
bool bit_codes_read(bit_codes *k, uint32_t first, uint32_t n, const uint8_t *in);
size_t bit_codes_resident(const bit_codes *k);
/* A query for bit codes that share a codebook.  room: dim64 bytes, borrowed. */
typedef struct bit_query {
    const scorer *q;
    const int8_t *q_lo, *q_hi;
    float origin, base, scale;
} bit_query;
void bit_query_init(bit_query *b, const bit_codes *k, const scorer *q, int8_t *room);
/* Distances of some codes of k, by their number; they order roughly as those of the metric do. */
void bit_query_score(const bit_query *b, const bit_codes *k, const uint32_t *numbers, uint32_t n, float *out);
/* The `most` nearest live rows by bit code, nearest first, of those in `allow` (NULL: all).  room: dim64 bytes. */
void bit_codes_search(const bit_codes *k, const scorer *q, int8_t *room, uint32_t most, const uint64_t *allow,
                      uint64_t allow_words, hit *hits, uint32_t *found);

#endif
