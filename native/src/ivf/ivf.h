/* Contract of ivf/: inverted lists over rows of a store (Sivic & Zisserman 2003; Jégou, Douze & Schmid 2011, "Product
 * Quantization for Nearest Neighbor Search", section 4).  Depends on store/.
 *
 * A row of the lists is on the one whose centroid is nearest to it by Euclidean distance, normalised under cosine.  What is
 * kept of a centroid is 4-bit codes with a codebook of their own: rows and queries are compared with those alone, so that
 * what was trained, what is searched and what is saved is one thing, the same for any kernel and memory setting.
 * A list is slots, ascending; after a vacuum they are consecutive, and so are their codes in memory.  Tombstones stay on
 * their list until then.
 *
 * Most rows are on a second list as well, for queries whose nearest lists miss the first (ivf_second.c).
 * A list has codes of one bit a dimension of its rows, first and second, that a vacuum put in order (ivf_codes.c): they follow
 * from rows and centroids, and no part has them. */
#ifndef FVDB_IVF_H
#define FVDB_IVF_H

#include "../store/store.h"

/* Recalls, in 1/1000, for which the number of lists to look at is measured, for these k. */
#define IVF_RECALLS 8u
#define IVF_KS 2u
extern const uint32_t ivf_recalls[IVF_RECALLS];
extern const uint32_t ivf_ks[IVF_KS];

typedef struct ivf_centroids {
    uint32_t nlist;        /* 0: never trained */
    uint32_t trained_rows; /* rows that were to be on the lists at that time */
    double trained_error;  /* their mean squared distance from the centroids */
    codebook book;
    region codes;                         /* nlist x code_bytes */
    region norm2;                         /* nlist float32, squared norms of the decoded centroids */
    uint32_t probes[IVF_KS][IVF_RECALLS]; /* lists to look at */
    float
        second_limit; /* a row is on a second list that costs less than so many times its squared distance from the first */
} ivf_centroids;

typedef struct ivf_list {
    uint32_t *slots;
    uint32_t *firsts; /* of rows whose second list it is, the list they are on first; else NULL */
    uint32_t n, room;
} ivf_list;

/* A list's rows that have codes, the first of its own and of its second ones, and where these begin, in groups. */
typedef struct coded_list {
    uint32_t group, firsts, seconds;
} coded_list;

/* Codes of rows relative to the centroid of the list: its own rows, then second ones, then lanes of none to the end of a group. */
typedef struct ivf_codes {
    coded_list *lists; /* nlist; NULL without codes */
    region groups;
    region centroids; /* groups of the centroids themselves, relative to the origin */
    region origin;    /* 2 x dim64 float32 */
} ivf_codes;

typedef struct ivf {
    ivf_centroids centroids;
    ivf_list *lists;   /* nlist of them */
    ivf_list *seconds; /* as many: the rows whose second list it is */
    ivf_codes codes;
    region rows;         /* bitmap of the slots on lists, whole words */
    uint32_t n, live;    /* rows on lists; those that are no tombstones */
    uint32_t n_second;   /* rows that are on a second list, too */
    uint64_t since_rows; /* rows that came since the training, and the sum of their squared distances */
    double since_error;
} ivf;

void ivf_init(ivf *v);
void ivf_free(ivf *v);
void ivf_centroids_free(ivf_centroids *c);
size_t ivf_resident(const ivf *v, uint32_t dim64);
static inline const uint64_t *ivf_rows(const ivf *v) { return (const uint64_t *)v->rows.base; }
static inline uint64_t ivf_words(const ivf *v) { return v->rows.used / sizeof(uint64_t); }
static inline bool ivf_has(const ivf *v, uint32_t slot) { return bit_within(ivf_rows(v), ivf_words(v), slot); }

/* ---- ivf_train.c: k-means ---- */

/* Rows that a thread takes at a time. */
#define IVF_ROWS_PER_ITEM 128u
/* Fewer rows than this are not worth lists. */
#define IVF_TRAIN_ROWS_MIN ((uint32_t)FVDB_LISTS_ROWS_MIN)
/* Lists for so many rows: 4 x the root, and no fewer than 16 rows a list. */
uint32_t ivf_nlist(uint32_t rows);
/* Most bytes that training nlist lists for n rows takes, the centroids included. */
uint64_t ivf_train_scratch(uint32_t dim, uint32_t n, uint32_t nlist);
/* Iterations at most, for lists: more change recall by less than 0.001 and take a third of the time on top (docs/decisions/0051). */
#define IVF_ITERATIONS 6u
/* At most nlist centroids for the rows of `slots` (ascending, at least IVF_TRAIN_ROWS_MIN), but for their probes; near ones
 * have near numbers, and no two have one code.  The same bits for any number of threads.
 * FVDB_OK, FVDB_ERR_MEMORY or FVDB_ERR_CANCELLED. */
fvdb_status ivf_train(const store *s, const uint32_t *slots, uint32_t n, uint32_t nlist, uint32_t iterations,
                      thread_pool *c, const progress_range *range, ivf_centroids *out, fvdb_diag *diag);

/* Room for the centroids of nlist lists. */
fvdb_status ivf_centroids_alloc(ivf_centroids *c, const store *s, uint32_t nlist);
/* The norms, from codes and codebook. */
void ivf_centroids_derive(ivf_centroids *c, const store *s);

/* A decoded centroid: dim64 float32. */
static inline void ivf_centroid(const ivf_centroids *c, const store *s, uint32_t list, float *out) {
    const uint8_t *code = c->codes.base + (size_t)list * s->code_bytes;
    s->kernels->code_decode(code, c->book.lo, c->book.step, s->dim64, out);
}

/* A query or row as the centroids see it. */
typedef struct ivf_view {
    const ivf_centroids *centroids;
    const store *s;
    bool by_product; /* order by inner product */
    float base, scale;
    int8_t q_lo[FVDB_DIM_MAX / 2], q_hi[FVDB_DIM_MAX / 2];
} ivf_view;
/* x: dim64 float32, zero-padded, normalised under cosine. */
void ivf_look(ivf_view *v, const ivf_centroids *c, const store *s, const float *x);
#define IVF_CHUNK 64u
/* Inner products with n centroids, n <= IVF_CHUNK. */
void ivf_products(const ivf_view *v, const uint32_t *lists, uint32_t n, float *out);
/* How far n centroids are, n <= IVF_CHUNK: |c|^2 - 2 x.c, or -x.c by product.  Then centroids first .. first + n - 1. */
void ivf_distances_of(const ivf_view *v, const uint32_t *lists, uint32_t n, float *out);
void ivf_distances(const ivf_view *v, uint32_t first, uint32_t n, float *out);
/* The least of n distances, those left out that are no numbers: most chunks have none that anybody looks for. */
float ivf_least(const float *distances, uint32_t n);
/* The nearest centroid, the lowest of equals. */
uint32_t ivf_nearest(const ivf_view *v, float *distance);

/* ---- ivf_lists.c: assign, append, remove ---- */

/* Where rows belong: for each its list, its second list or IVF_NO_LIST, and its squared distance from the first's centroid.
 * `seconds` and `errors` may be NULL. */
typedef struct ivf_places {
    uint32_t *lists, *seconds;
    float *errors;
} ivf_places;
#define IVF_NO_LIST UINT32_MAX
void ivf_assign(const ivf_centroids *c, const store *s, const uint32_t *slots, uint32_t n, thread_pool *pool,
                const ivf_places *out);
/* Lists holding `slots` (n of them, ascending), out of rows rows; `live` tells tombstones.  v->centroids stays as it is. */
fvdb_status ivf_fill(ivf *v, const uint32_t *slots, const ivf_places *places, uint32_t n, uint32_t rows,
                     const uint64_t *live, fvdb_diag *diag);
/* The places of all rows by slot, out of `rows`: IVF_NO_LIST for those on none.  out->errors is left alone. */
void ivf_places_of(const ivf *v, uint32_t rows, const ivf_places *out);
/* Takes the rows of `from`, for the same centroids, which keep what they know of rows that came; `from` gets the old rows. */
void ivf_exchange_rows(ivf *v, ivf *from);
/* Room for n more rows in the given places, out of `rows` rows. */
fvdb_status ivf_reserve(ivf *v, const ivf_places *places, uint32_t n, uint32_t rows, fvdb_diag *diag);
/* Puts a live row on its lists; room was reserved. */
void ivf_put(ivf *v, uint32_t slot, uint32_t list, uint32_t second, float error);
/* Whether the rows that came since the training are more than thrice those of then, or lie farther from their centroids. */
bool ivf_training_is_due(const ivf *v);

/* ---- ivf_second.c: a second list for each row ---- */

/* The place of x, which is as ivf_look takes it. */
typedef struct ivf_place {
    uint32_t list, second;
    float error;
} ivf_place;
ivf_place ivf_place_of(const ivf_centroids *c, const store *s, const float *x);
/* Rows that are to be on a second list, in tenths. */
#define IVF_SECOND_TENTHS 7u
/* Finds c->second_limit: so many of the rows of `slots` are within it. */
fvdb_status ivf_train_seconds(ivf_centroids *c, const store *s, const uint32_t *slots, uint32_t n, thread_pool *pool,
                              fvdb_diag *diag);

/* ---- ivf_codes.c: codes relative to centroids ---- */

/* Whether lists have codes.  Rows of few dimensions are read as they are in no more bytes. */
static inline bool ivf_keeps_codes(uint32_t memory, uint32_t dim) {
    return memory != FVDB_MEMORY_COMPACT && dim > ROW_WALK_DIM;
}
/* Room for codes of the rows before slot `end`, instead of those there were.  Then what they hold: cannot fail. */
fvdb_status ivf_codes_reserve(ivf *v, const store *s, uint32_t end, fvdb_diag *diag);
void ivf_codes_fill(ivf *v, const store *s, thread_pool *pool);
void ivf_codes_free(ivf_codes *codes);
static inline uint8_t *ivf_centroid_group(const ivf *v, const store *s, uint32_t list) {
    return v->codes.centroids.base + list / EDGE_LANES * edge_group_bytes(s->dim64);
}
static inline uint8_t *ivf_code_groups(const ivf *v, const store *s, uint32_t list) {
    return v->codes.groups.base + v->codes.lists[list].group * edge_group_bytes(s->dim64);
}

/* ---- ivf_search.c: nearest lists, scan ---- */

/* The rows nearest to a query by walk distance that a scan has met. */
typedef struct nearest {
    const scorer *query;
    edge_query *edge;             /* room for what codes of lists need of the query */
    const uint64_t *live, *allow; /* rows that may be returned; either may be NULL */
    uint64_t allow_words;
    uint64_t *keys; /* room for nearest_room(most) */
    uint32_t n, most;
    float cut; /* no farther row is among the nearest */
} nearest;
static inline uint32_t nearest_room(uint32_t most) { return 2 * most + 4 * IVF_CHUNK; }
/* Scores rows and keeps those that may be returned and are near enough. */
void nearest_scan(nearest *near, const uint32_t *slots, uint32_t n);
/* Leaves the `most` nearest, in order. */
void nearest_finish(nearest *near);

/* The recall of the default number of lists, in 1/1000: about what a walk of the default number of candidates has. */
#define IVF_RECALL_DEFAULT 990u
/* The number for a recall in a table of IVF_RECALLS. */
uint32_t ivf_probes_at(const ivf_centroids *c, const uint32_t *probes, uint32_t recall);
/* Lists to look at for k rows at a recall in 1/1000; 0 without lists. */
uint32_t ivf_probes(const ivf *v, uint32_t k, uint32_t recall);
/* Keys of all lists for a query, which is x as ivf_look takes it, in the order of their numbers. */
void ivf_list_keys(const ivf_centroids *c, const store *s, const float *x, uint64_t *keys);
/* Scans the nprobe lists nearest to near->query, and offers each row once; `room` is ivf_scan_room(nlist) words. */
void ivf_scan(const ivf *v, nearest *near, uint32_t nprobe, uint64_t *room);
static inline size_t ivf_scan_room(uint32_t nlist) { return (size_t)nlist + (nlist + 63u) / 64; }

#endif
