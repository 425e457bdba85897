/* fabstir_vectordb: the whole C ABI of the native core.
 *
 * One fvdb_index holds the rows of one vector index: exact float32 vectors, ids, timestamps, small codes, an HNSW
 * graph for recent rows, inverted lists for historical ones and one reader/writer lock.  Calls are coarse: arrays in,
 * arrays out.  The library keeps no global state, reads no clock, calls nothing back and starts threads only for the
 * length of a call.
 *
 * Every call that can fail returns an fvdb_status; where a `diag` is taken it may be NULL, and is filled only on error.
 * "[reader]" calls may run side by side; "[writer]" calls run alone.  A slot is a dense 0-based row number; slots keep
 * their meaning until the next fvdb_vacuum.  Memory that a caller passes is borrowed for the call.
 *
 * An index is in one of four states, and each call says which of them answer it:
 *   whole    from fvdb_create, fvdb_with_dim or fvdb_load_end, empty or not
 *   loading  from fvdb_load_begin
 *   lazy     from fvdb_load_lazy: ids, timestamps, tombstones and 1-bit codes, no vectors
 *   broken   after fvdb_load_end or fvdb_load_lazy failed
 * "[reader, whole]" is answered in the state whole alone.  In any other state, and for index = NULL, a call returns
 * FVDB_ERR_ARGUMENT and changes nothing.  fvdb_free takes an index in every state.
 *
 * The text between the two markers is plain C declarations: Python's cffi declarations are generated from it. */
#ifndef FABSTIR_VECTORDB_H
#define FABSTIR_VECTORDB_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The library is built with hidden symbols; what is declared here is what it exports. */
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* cffi: begin */

/* ---- Version and limits ---------------------------------------------------------------------------------------- */

#define FVDB_ABI_VERSION 11

#define FVDB_DIM_MAX 4096
#define FVDB_ID_BYTES_MAX 1024
#define FVDB_K_MAX 10000
#define FVDB_LISTS_MAX 200000  /* the library never makes more */
#define FVDB_LISTS_ROWS_MIN 64 /* rows with a vector that fvdb_train needs */
#define FVDB_EF_MAX 100000
#define FVDB_M_MIN 4
#define FVDB_M_MAX 64
#define FVDB_THREADS_MAX 256
#define FVDB_ROWS_MAX 2147483647
#define FVDB_NO_SLOT 4294967295

/* ---- Status codes ---------------------------------------------------------------------------------------------- */

typedef enum fvdb_status {
    FVDB_OK = 0,
    FVDB_ERR_ARGUMENT = 1,    /* a parameter is out of range; diag.expected is the limit, diag.actual the value */
    FVDB_ERR_NOT_FINITE = 2,  /* a vector holds NaN or infinity; diag.row says which, diag.actual its component */
    FVDB_ERR_ZERO_VECTOR = 3, /* a zero vector under cosine; diag.row says which */
    FVDB_ERR_ID = 4, /* an id is empty, too long or not UTF-8; diag.row, diag.expected = limit, diag.actual = bytes */
    FVDB_ERR_DUPLICATE_ID =
        5,                  /* an id is already live, or stands twice in the call; diag.row, diag.actual = other row of
                                    the call, or UINT64_MAX when it is live in the index */
    FVDB_ERR_NOT_FOUND = 6, /* an id or slot is not live; diag.row */
    FVDB_ERR_MEMORY = 7,    /* allocation failed; nothing changed */
    FVDB_ERR_CANCELLED = 8, /* the control word asked for it; nothing changed */
    FVDB_ERR_BUFFER = 9,    /* a caller's buffer is too small; diag.expected bytes (or entries) would do */
    FVDB_ERR_FORMAT = 10,   /* untrusted bytes break a rule of the format; diag.message names it */
    FVDB_ERR_BUSY = 11,     /* only with params.nowait: a writer holds the lock */
    FVDB_ERR_TOO_MANY = 12, /* the row limit or the id arena's 4 GiB would be passed; nothing changed */
    FVDB_ERR_THREAD = 13,   /* a thread or lock could not be created; nothing changed */
    FVDB_ERR_TOO_FEW = 14,  /* diag.actual rows are not worth lists, diag.expected are; nothing changed */
    FVDB_ERR_UNTRAINED = 15 /* there are no lists yet: fvdb_train */
} fvdb_status;

/* Where and why a call failed.  `file` and `message` point to static text. */
typedef struct fvdb_diag {
    uint32_t status;
    uint32_t line;
    const char *file;
    const char *message;
    uint64_t row;
    uint64_t expected;
    uint64_t actual;
} fvdb_diag;

/* A word both sides poll: the caller sets cancel to 1 from any thread; the call publishes its progress in rows.
 * Both sides use relaxed atomic access. */
typedef struct fvdb_control {
    int64_t cancel;
    int64_t done;
    int64_t total;
} fvdb_control;

/* ---- Introspection of the library ------------------------------------------------------------------------------ */

/* FVDB_ABI_VERSION the library was built with. */
uint32_t fvdb_abi_version(void);

/* sizeof of the named struct ("fvdb_config", "fvdb_stats", ...), or 0 for an unknown name: a binding compares them. */
size_t fvdb_struct_size(const char *name);

/* Kernel table in use: "scalar", "avx2", "avx512" or "neon".  FVDB_KERNELS in the environment, read at the first call
 * that needs kernels, may name a lower one; a name this CPU cannot run or nobody knows makes fvdb_create fail. */
const char *fvdb_kernels(void);

/* Static text for a status code, for example "allocation failed". */
const char *fvdb_status_text(uint32_t status);

/* Gives freed memory that the allocator keeps back to the system (glibc; elsewhere nothing happens): after a large add or
 * load the process should take what the index takes.  glibc has a heap for each thread, and only that thread can give back
 * the end of it: fvdb_trim_thread does this for the calling thread, fvdb_trim all the rest too. */
void fvdb_trim(void);
void fvdb_trim_thread(void);

/* ---- Create and free ------------------------------------------------------------------------------------------- */

#define FVDB_METRIC_COSINE 0 /* distance = 1 - cos, in [0, 2] */
#define FVDB_METRIC_L2 1     /* distance = Euclidean distance */
#define FVDB_METRIC_DOT 2    /* distance = -(inner product) */

#define FVDB_MEMORY_DEFAULT 0 /* 4-bit codes beside the rows */
#define FVDB_MEMORY_COMPACT 1 /* no codes, packed links: smallest */
#define FVDB_MEMORY_FAST 2    /* 4-bit codes, and 1-bit codes of a row's neighbours beside its links: fastest */

typedef struct fvdb_index fvdb_index;

typedef struct fvdb_config {
    uint32_t dim;             /* 1 .. FVDB_DIM_MAX */
    uint32_t metric;          /* FVDB_METRIC_* */
    uint32_t memory;          /* FVDB_MEMORY_* */
    uint32_t M;               /* links a row on upper layers, twice that at the bottom; FVDB_M_MIN .. FVDB_M_MAX */
    uint32_t ef_construction; /* 1 .. FVDB_EF_MAX */
    uint32_t threads;         /* most threads a call may use, 1 .. FVDB_THREADS_MAX; never changes an answer */
    uint64_t hash_seed;       /* seed of the id table; any value, never changes an answer or a saved byte */
} fvdb_config;

/* Makes an empty index.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT, FVDB_ERR_MEMORY or FVDB_ERR_THREAD; *out is set only on FVDB_OK. */
fvdb_status fvdb_create(const fvdb_config *config, fvdb_index **out, fvdb_diag *diag);

/* Frees an index at once.  No other call may be running on it.  NULL is allowed. */
void fvdb_free(fvdb_index *index);

/* Bytes an index of this configuration needs for `rows` rows whose ids take `id_bytes` bytes in all, `historical` of them
 * on lists, `graph_rows` in the graph: what fvdb_stats.bytes_total will be, within a few per cent.  For checking a budget
 * before anything changes. */
uint64_t fvdb_estimate_bytes(const fvdb_config *config, uint64_t rows, uint64_t graph_rows, uint64_t historical,
                             uint64_t id_bytes);

#define FVDB_WORK_ADD 0
#define FVDB_WORK_VACUUM 1
#define FVDB_WORK_TRAIN 2
#define FVDB_WORK_REORDER 3

/* Most bytes that a call takes beside the index while it runs, but for what the caller gives it: of `rows` rows,
 * `historical` of them on lists, whose ids take `id_bytes` bytes.
 * FVDB_WORK_ADD: fvdb_add of `added` rows; the others count them, too, but for id_bytes, which are those of the call.
 *   graph_rows: the rows of the graph by then.
 * FVDB_WORK_VACUUM: graph_rows: those that it will leave in the graph.
 * FVDB_WORK_TRAIN: fvdb_train.   FVDB_WORK_REORDER: fvdb_locality_order, then fvdb_renumber.
 * 0 where an argument is impossible. */
uint64_t fvdb_estimate_work(const fvdb_config *config, uint32_t kind, uint64_t rows, uint64_t graph_rows,
                            uint64_t historical, uint64_t added, uint64_t id_bytes);

/* ---- Add ------------------------------------------------------------------------------------------------------- */

#define FVDB_ON_CONFLICT_ERROR 0
#define FVDB_ON_CONFLICT_REPLACE 1
#define FVDB_ON_CONFLICT_SKIP 2

typedef struct fvdb_rows {
    uint32_t n;
    const float *vectors;       /* n x dim float32, row-major */
    const uint8_t *id_bytes;    /* the ids' UTF-8 bytes, one after the other */
    const uint64_t *id_offsets; /* n + 1 offsets into id_bytes */
    const int64_t *timestamps;  /* n, microseconds since 1970-01-01T00:00:00Z */
    const uint8_t *vectorless;  /* n, 1 for a row without a vector, whose place in `vectors` is all zeros; NULL: none */
    uint32_t for_lists;         /* 1: the rows are not linked; see below */
} fvdb_rows;

/* A vectorless row has an id, a timestamp and a slot, and is never found by a search.
 *
 * Adds recent rows and links them into the graph: all or nothing.                                    [writer, whole]
 * Rows that lists will take need no graph.  for_lists leaves them without one, while the index has none: they are
 * scanned until fvdb_train, fvdb_migrate and fvdb_vacuum have put them where they belong, and no save may come before.
 * An id that is live already: FVDB_ERR_DUPLICATE_ID, or its row becomes a tombstone (REPLACE), or the new row is left
 * out (SKIP).  The same id twice in one call: FVDB_ERR_DUPLICATE_ID, or the last of its rows counts (REPLACE), or the
 * first (SKIP), and the others are left out.
 * out_slots: n entries, the new row's slot, FVDB_NO_SLOT when left out.  out_replaced: n entries, the slot that the row
 * replaced, else FVDB_NO_SLOT.  control may be NULL.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT, _NOT_FINITE, _ZERO_VECTOR, _ID, _DUPLICATE_ID, _MEMORY, _CANCELLED, _TOO_MANY or
 * _THREAD; on error the index is as before and outputs are undefined. */
fvdb_status fvdb_add(fvdb_index *index, const fvdb_rows *rows, uint32_t on_conflict, uint32_t *out_slots,
                     uint32_t *out_replaced, fvdb_control *control, fvdb_diag *diag);

/* ---- Search ---------------------------------------------------------------------------------------------------- */

#define FVDB_PLAN_FLAT 0   /* exact: no allowed row can be nearer than those returned */
#define FVDB_PLAN_GRAPH 1  /* the graph was walked on codes, the best candidates were scored exactly */
#define FVDB_PLAN_LISTS 2  /* the same for the rows of the nearest lists, and for recent rows while they are few */
#define FVDB_PLAN_HYBRID 3 /* the graph was walked, and the nearest lists were scanned */

#define FVDB_EF_DEFAULT 0 /* params.ef_search: the larger of FVDB_EF_DEFAULT_MIN and 1.5 k */
#define FVDB_EF_DEFAULT_MIN 64

typedef struct fvdb_search_params {
    uint32_t k;         /* 1 .. FVDB_K_MAX */
    uint32_t ef_search; /* FVDB_EF_DEFAULT or 1 .. FVDB_EF_MAX; raised to k where smaller */
    uint32_t exact;     /* 1: score every allowed row exactly */
    uint32_t nowait;    /* 1: FVDB_ERR_BUSY instead of waiting for a writer */
    uint32_t nprobe;    /* lists to look at, no more than there are; 0: as many as had recall 0.99 at training,
                                    more where few rows are allowed */
    uint32_t threads;   /* most that fvdb_search uses; 0, and more than the index may use: as many as it may */
} fvdb_search_params;

/* Finds the k live rows nearest to each query, nearest first, ties by id bytes.                      [reader, whole]
 * queries: n_queries x dim float32, row-major.  allow: one bit per slot (bit s % 64 of word s / 64), allow_words words,
 * a slot past the end is not allowed; NULL allows all.
 * out_slots, out_distances: n_queries x k; out_counts, out_plans: n_queries.  Entries past a query's count are
 * FVDB_NO_SLOT and +inf.  min(k, allowed live rows) results are always found.
 * out_id_bytes (id_capacity bytes) and out_id_offsets (n_queries x k + 1) receive the ids of all results in order, each with
 * a 0 byte behind it, and nothing for entries past a count; both may be NULL.
 * Distances are exact: float64 sums over the stored float32 values in one fixed order on every CPU.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT, _NOT_FINITE, _ZERO_VECTOR, _MEMORY, _CANCELLED, _BUSY, _THREAD or _BUFFER (ids did
 * not fit: diag.expected bytes would do; (FVDB_ID_BYTES_MAX + 1) x n_queries x k always does). */
fvdb_status fvdb_search(fvdb_index *index, const float *queries, uint32_t n_queries, const fvdb_search_params *params,
                        const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots, double *out_distances,
                        uint32_t *out_counts, uint32_t *out_plans, uint8_t *out_id_bytes, uint64_t id_capacity,
                        uint64_t *out_id_offsets, fvdb_control *control, fvdb_diag *diag);

/* fvdb_search in steps: the caller takes the first answers while threads look for the next ones.  A caller that makes objects
 * of them, which one thread of Python does at a time, keeps no other thread waiting.
 *
 * Begins it, on params.threads threads, the caller's among them.  queries, allow, the outputs, which are as of fvdb_search,
 * and control are borrowed until the end.                                                  [reader until the end, whole]
 * Returns what fvdb_search does, but for _CANCELLED and _BUFFER; on error nothing has begun. */
typedef struct fvdb_batch fvdb_batch;
fvdb_status fvdb_search_start(fvdb_index *index, const float *queries, uint32_t n_queries,
                              const fvdb_search_params *params, const uint64_t *allow, uint64_t allow_words,
                              uint32_t *out_slots, double *out_distances, uint32_t *out_counts, uint32_t *out_plans,
                              fvdb_control *control, fvdb_batch **out_batch, fvdb_diag *diag);

/* Queries of one step. */
#define FVDB_BATCH_MOST 128

/* Looks for answers, too, until some are there: out_n, at most FVDB_BATCH_MOST, is for how many queries behind those of the
 * last step the outputs are written; 0: for all of them before.
 * out_id_bytes (id_capacity bytes) and out_id_offsets (FVDB_BATCH_MOST x k + 1): their ids, as of fvdb_search.
 * Returns FVDB_OK, FVDB_ERR_CANCELLED or _BUFFER (the ids did not fit: diag.expected bytes would do; the next step is for the
 * same queries). */
fvdb_status fvdb_search_next(fvdb_batch *batch, uint8_t *out_id_bytes, uint64_t id_capacity, uint64_t *out_id_offsets,
                             uint32_t *out_n, fvdb_diag *diag);

/* Ends it, also before all queries are answered.  Once for each that began; NULL: nothing. */
void fvdb_search_end(fvdb_batch *batch);

/* Scores of n distances: from 0 to 1, and no larger for a larger distance.
 * FVDB_METRIC_COSINE: 1 - d / 2, which is (1 + cos) / 2.  _L2: 1 / (1 + d).  _DOT: 1 / (1 + exp(d)), the logistic function
 * of the inner product.  The last one depends on the C library's exp, in its last bit.
 * Returns FVDB_OK or FVDB_ERR_ARGUMENT (unknown metric). */
fvdb_status fvdb_scores(uint32_t metric, const double *distances, uint32_t n, double *out_scores, fvdb_diag *diag);

/* Slots that a search may return, made once for any number of searches.  The arrays are borrowed. */
typedef struct fvdb_allowed {
    const uint64_t *words; /* one bit per slot, as `allow` of fvdb_search */
    uint64_t n_words;
    const uint32_t *slots; /* the same slots one by one, ascending; NULL where they are many */
    uint64_t n_slots;
} fvdb_allowed;

/* Where fvdb_search_one leaves its answer: filled in once, used for any number of searches, by one thread at a time. */
typedef struct fvdb_answer {
    uint32_t *slots;   /* in: room for k entries */
    double *distances; /* in: room for k entries */
    double *scores;    /* in: room for k entries, as of fvdb_scores */
    uint64_t *id_ends; /* in: room for k entries */
    uint8_t *id_bytes; /* in: room for id_capacity bytes */
    uint64_t id_capacity;
    const fvdb_allowed *allowed; /* in: slots that may be returned; NULL allows all */
    double threshold;            /* in: least score of a result; -INFINITY keeps all */
    fvdb_diag diag;              /* out, on error only */
    uint64_t id_size;            /* out: bytes of id_bytes in use */
    uint32_t count;              /* out: results */
    uint32_t plan;               /* out: FVDB_PLAN_* */
    uint32_t below;              /* out: how many of the k nearest the threshold left out */
} fvdb_answer;

/* fvdb_search for one query (dim float32), with all that a result is made of.  For bindings: there converting an argument of
 * a call costs as much as scoring a few rows, and taking ids apart more than that, so what few calls need stands in the
 * answer.                                                                                            [reader, whole]
 * Each id in id_bytes is followed by a 0 byte; as an id may hold 0 bytes itself, id_ends says where each one ends.
 * Returns what fvdb_search returns; FVDB_ERR_BUFFER: (FVDB_ID_BYTES_MAX + 1) x k bytes always do. */
fvdb_status fvdb_search_one(fvdb_index *index, const float *query, const fvdb_search_params *params,
                            fvdb_answer *answer);

/* ---- Rows ------------------------------------------------------------------------------------------------------ */

/* Slots of ids; FVDB_NO_SLOT for one that is not live.  out_slots: n entries.                [reader, whole or lazy]
 * Returns FVDB_OK or FVDB_ERR_ID (the offsets fall). */
fvdb_status fvdb_find(fvdb_index *index, const uint8_t *id_bytes, const uint64_t *id_offsets, uint32_t n,
                      uint32_t *out_slots, fvdb_diag *diag);

/* The exact vectors of slots, n x dim float32, bit for bit as added.                                 [reader, whole]
 * Returns FVDB_OK or FVDB_ERR_NOT_FOUND (a slot past the end). */
fvdb_status fvdb_get_vectors(fvdb_index *index, const uint32_t *slots, uint32_t n, float *out, fvdb_diag *diag);

/* A copy of an index in which no row has a vector, tombstones included, for vectors of `dim` components: the same rows in
 * the same slots.  The caller owns *out.                                                             [reader, whole]
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT (dim is out of range, a row has a vector) or FVDB_ERR_MEMORY. */
fvdb_status fvdb_with_dim(fvdb_index *index, uint32_t dim, fvdb_index **out, fvdb_diag *diag);

/* Gives an index another memory setting in place: FVDB_MEMORY_FAST for FVDB_MEMORY_DEFAULT, or the other way.  Codes of
 * neighbours are made, or freed; links, exact answers and parts stay what they are.                 [writer, whole]
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT (it is, or should become, FVDB_MEMORY_COMPACT, under which rows are linked by other
 * distances), FVDB_ERR_MEMORY or FVDB_ERR_THREAD; nothing has changed on error. */
fvdb_status fvdb_set_memory(fvdb_index *index, uint32_t memory, fvdb_diag *diag);

/* For each slot 1 where its row has no vector, else 0.                                       [reader, whole or lazy]
 * Returns FVDB_OK or FVDB_ERR_NOT_FOUND. */
fvdb_status fvdb_are_vectorless(fvdb_index *index, const uint32_t *slots, uint32_t n, uint8_t *out, fvdb_diag *diag);

/* The timestamps of slots, n int64 microseconds.  Returns FVDB_OK or FVDB_ERR_NOT_FOUND.     [reader, whole or lazy] */
fvdb_status fvdb_get_timestamps(fvdb_index *index, const uint32_t *slots, uint32_t n, int64_t *out, fvdb_diag *diag);

/* The ids of slots: bytes into out_bytes (capacity bytes), n + 1 offsets into out_offsets.   [reader, whole or lazy]
 * Returns FVDB_OK, FVDB_ERR_NOT_FOUND or FVDB_ERR_BUFFER. */
fvdb_status fvdb_get_ids(fvdb_index *index, const uint32_t *slots, uint32_t n, uint8_t *out_bytes, uint64_t capacity,
                         uint64_t *out_offsets, fvdb_diag *diag);

/* Live slots >= first in ascending order, at most `capacity` of them; *out_count says how many.
 *                                                                                            [reader, whole or lazy]
 * Returns FVDB_OK. */
fvdb_status fvdb_live_slots(fvdb_index *index, uint32_t first, uint32_t *out_slots, uint32_t capacity,
                            uint32_t *out_count, fvdb_diag *diag);

/* One bit per slot, as in `allow`: live rows.  words: room, >= rows / 64 rounded up.         [reader, whole or lazy]
 * Returns FVDB_OK or FVDB_ERR_BUFFER. */
fvdb_status fvdb_live_bitmap(fvdb_index *index, uint64_t *out_words, uint64_t words, fvdb_diag *diag);

/* ---- Recent and historical ------------------------------------------------------------------------------------- */

/* A row is recent when it is added, and found through the graph.  Migrating makes it historical: it is on one list then,
 * with the rows around one centroid.  Both sides are searched as one. */

/* Trains lists for the historical rows and the live recent ones older than cutoff_us, and puts the historical rows on them.
 * Computes beside searches ([reader, whole]) and installs in a moment ([writer, whole]); a writer that waits meanwhile
 * makes searches wait, too.  The same lists for any number of threads and any memory setting.  control may be NULL.
 * Returns FVDB_OK, FVDB_ERR_TOO_FEW, _MEMORY, _CANCELLED or _THREAD; on error the index is as before. */
fvdb_status fvdb_train(fvdb_index *index, int64_t cutoff_us, fvdb_control *control, fvdb_diag *diag);

/* Moves live recent rows older than cutoff_us to their lists, at most max_rows (>= 1) of them, beginning at slot *next (0 at
 * first): a step that holds up searches for a fraction of a millisecond for 1,000 rows.  Lists are chosen under the reader
 * lock, rows moved under the writer lock.  [whole]
 * *next: where the next step goes on, FVDB_NO_SLOT when there are no more.  *out_moved: rows moved.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT, _UNTRAINED, _MEMORY or _THREAD; on error nothing changed. */
fvdb_status fvdb_migrate(fvdb_index *index, int64_t cutoff_us, uint32_t max_rows, uint32_t *next, uint32_t *out_moved,
                         fvdb_diag *diag);

/* One bit per slot, as in `allow`: rows that are live and historical.  words: room, >= rows / 64 rounded up.
 *                                                                                                    [reader, whole]
 * Returns FVDB_OK or FVDB_ERR_BUFFER. */
fvdb_status fvdb_historical(fvdb_index *index, uint64_t *out_words, uint64_t words, fvdb_diag *diag);

/* Lists that are looked at for k rows at this recall (0 .. 1) by what was measured at training; 0 without lists, all of
 * them for recalls above 0.999.                                                                      [reader, whole]
 * Returns FVDB_OK. */
fvdb_status fvdb_probes(fvdb_index *index, uint32_t k, double recall, uint32_t *out_lists, fvdb_diag *diag);

/* ---- Delete and vacuum ----------------------------------------------------------------------------------------- */

/* Makes the rows of ids tombstones: all or nothing.                                                  [writer, whole]
 * out_slots: n entries, the slot deleted, FVDB_NO_SLOT for an id that was not live (or stood earlier in the call).
 * Returns FVDB_OK, FVDB_ERR_ID (the offsets fall) or FVDB_ERR_NOT_FOUND (an id is not live and missing_ok is 0). */
fvdb_status fvdb_delete(fvdb_index *index, const uint8_t *id_bytes, const uint64_t *id_offsets, uint32_t n,
                        uint32_t missing_ok, uint32_t *out_slots, fvdb_diag *diag);

/* The live slots in the order that fvdb_vacuum would give them now.  capacity: room, >= fvdb_stats.live entries.
 *                                                                                                    [reader, whole]
 * Returns FVDB_OK, FVDB_ERR_BUFFER or FVDB_ERR_MEMORY. */
fvdb_status fvdb_vacuum_order(fvdb_index *index, uint32_t *out_slots, uint32_t capacity, fvdb_diag *diag);

/* Removes tombstones, and historical rows from the graph, and renumbers the rows: historical ones first, list by list,
 * then recent ones, both otherwise in their old order.  The graph is repaired, made anew, or given up where fewer than
 * 1,024 rows are left in it, or have a vector at all.  All or nothing.                               [writer, whole]
 * out_map: map_capacity >= fvdb_stats.rows entries, old slot -> new slot, FVDB_NO_SLOT for removed rows.
 * Returns FVDB_OK, FVDB_ERR_BUFFER, _MEMORY, _CANCELLED or _THREAD. */
fvdb_status fvdb_vacuum(fvdb_index *index, uint32_t *out_map, uint32_t map_capacity, fvdb_control *control,
                        fvdb_diag *diag);

/* All slots in an order in which recent rows that are near each other stand together; historical rows that a vacuum put
 * in front stay there.  capacity: room, >= fvdb_stats.rows entries.  control may be NULL.            [reader, whole]
 * Returns FVDB_OK, FVDB_ERR_BUFFER, _MEMORY, _CANCELLED or _THREAD. */
fvdb_status fvdb_locality_order(fvdb_index *index, uint32_t *out_slots, uint32_t capacity, fvdb_control *control,
                                fvdb_diag *diag);

/* Gives the row of slot order[i] the slot i, for all n = fvdb_stats.rows of them, tombstones too; what searches find stays
 * the same, but for ties of approximate distances.  All or nothing.                                  [writer, whole]
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT (no such order, or one that moves what a vacuum put in front) or _MEMORY. */
fvdb_status fvdb_renumber(fvdb_index *index, const uint32_t *order, uint32_t n, fvdb_diag *diag);

/* ---- Statistics ------------------------------------------------------------------------------------------------ */

typedef struct fvdb_stats {
    uint64_t rows;               /* slots in use, tombstones included */
    uint64_t live;               /* rows that searches can return */
    uint64_t graph_rows;         /* rows in the HNSW graph, tombstones and moved rows included; 0 while there is none */
    uint64_t historical;         /* live rows on lists */
    uint64_t historical_deleted; /* tombstones on lists */
    uint64_t vectorless;         /* live rows without a vector */
    uint64_t with_vector;        /* rows with one, tombstones included */
    uint64_t moved;              /* rows on lists that the graph still has: a vacuum takes them out */
    uint64_t lists;              /* 0: never trained */
    uint64_t nprobe;             /* lists that a search for 10 rows looks at by default */
    uint64_t training_due;       /* 1: four times as many rows are on lists as at training, or those that came since lie
                                    1.25 times as far (squared) from their centroids */
    uint64_t memory;             /* FVDB_MEMORY_* */
    uint64_t bits_serve;         /* 1: bit codes were found to tell the nearest rows from the rest */
    uint64_t bytes_vectors;      /* resident bytes of the two planes */
    uint64_t bytes_codes;
    uint64_t bytes_graph;
    uint64_t bytes_lists;
    uint64_t bytes_ids;
    uint64_t bytes_timestamps;
    uint64_t bytes_scratch; /* pooled search memory, bitmaps, the index itself */
    uint64_t bytes_total;
    uint64_t id_bytes; /* UTF-8 bytes of all ids, tombstones included */
} fvdb_stats;

/* Counts and memory of an index, O(1).                                                       [reader, whole or lazy] */
fvdb_status fvdb_get_stats(fvdb_index *index, fvdb_stats *out, fvdb_diag *diag);

/* ---- Metadata -------------------------------------------------------------------------------------------------- */

/* The metadata of a row is one CBOR value; docs/format.md describes it.  The caller keeps the bytes; filters need the values
 * that a path of keys leads to. */

#define FVDB_PATH_STEPS_MAX 100 /* steps of a path */

/* One step of a path.  A step that is not quoted may be one key with the steps behind it, joined by dots, as far as
 * run_end: the keys that can begin at this step are text[start .. end of step j) for step <= j < run_end. */
typedef struct fvdb_step {
    uint32_t start, end; /* the step's place in the text */
    uint32_t run_end;    /* past the step, at most the number of steps, and the same for all steps of a run */
} fvdb_step;

typedef struct fvdb_field {
    const uint8_t *bytes; /* CBOR of the rows */
    uint64_t n_bytes;
    const int64_t *offsets; /* n, where in bytes the value of each row begins */
    const int32_t *sizes;   /* n, its bytes; 0 for a row without metadata */
    uint32_t n;
    uint32_t n_steps;       /* 1 .. FVDB_PATH_STEPS_MAX */
    const fvdb_step *steps; /* n_steps */
    const uint8_t *text;    /* UTF-8 of the steps, a dot between two steps of a run */
    uint32_t text_size;
    uint64_t seed; /* seed of the table of values; any value, never changes an answer */
} fvdb_field;

#define FVDB_VALUE_TEXT 0  /* the UTF-8 of a text, without its head */
#define FVDB_VALUE_ITEM 1  /* the CBOR item of null, a bool, or a tagged datetime, date or UUID */
#define FVDB_VALUE_LARGE 2 /* the CBOR item of an integer of 2^53 or more in magnitude */

/* What fvdb_read_field finds.  All arrays are the caller's. */
typedef struct fvdb_cells {
    /* One entry a row. */
    uint8_t *present; /* 1 where the path leads to a value */
    double *numbers;  /* the row's only value, where it is a number of less than 2^53, or a float; else NaN */
    int32_t *codes;   /* the row's only value otherwise, as a place in the table of values; else -1 */
    /* The values of lists, and of rows in which the path has several values: entries in the order of rows. */
    uint32_t capacity; /* room of the next four, in entries */
    uint32_t n_listed; /* out */
    uint32_t *list_rows;
    double *list_numbers;
    int32_t *list_codes;
    uint8_t *in_list; /* 1: the value is an item of a list, or the keys that lead to it lead to others as well */
    /* The table of values, each once: room for n + capacity entries. */
    uint32_t n_values; /* out */
    uint64_t *value_starts;
    uint32_t *value_sizes;
    uint8_t *value_kinds; /* FVDB_VALUE_* */
    /* The texts of the table once more, one after the other, each with a 0 byte behind it: for making objects of all of them
     * at once.  As many bytes as the rows have are always enough. */
    uint64_t texts_capacity;
    uint64_t texts_size; /* out */
    uint8_t *texts;
} fvdb_cells;

/* Reads the values at a path from the metadata of n rows.  Steps are keys of maps; a list on the path stands for each map in
 * it.  Maps, byte strings and lists within lists are present, but have no entry.  Uses no index and no lock; safe on
 * untrusted bytes, of which it checks only what it must: values stand for what the reader of metadata takes.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT (a step or a row lies outside the bytes, or the texts do not fit; diag.row),
 * FVDB_ERR_FORMAT (a row's bytes end early, or have what metadata never has; diag.row), FVDB_ERR_MEMORY or FVDB_ERR_BUFFER
 * (diag.expected entries of capacity would do); on error the outputs are undefined. */
fvdb_status fvdb_read_field(const fvdb_field *field, fvdb_cells *cells, fvdb_diag *diag);

/* ---- Text: words ----------------------------------------------------------------------------------------------- */

#define FVDB_WORD_BYTES_MAX 255        /* bytes of a term */
#define FVDB_TEXT_BYTES_MAX 2147483647 /* bytes of a text */

/* The version of Unicode by which texts are taken apart, for example "15.0.0": another one gives other words. */
const char *fvdb_unicode_version(void);

/* The words of a text of n bytes, in its order: segments of UAX #29 with a letter, a digit or a pictograph, and each two
 * neighbours where a writing system has no spaces between words; docs/decisions/0024-words.md.
 * A term is a word folded (NFKC_Casefold), UTF-8 of 1 .. FVDB_WORD_BYTES_MAX bytes; of a longer word it is the beginning.
 * out_terms: the terms, one after the other, in term_capacity bytes.  out_term_ends, out_starts, out_ends: `capacity` entries;
 * where each term ends in out_terms, and which bytes of the text the word covers.
 * *out_count and *out_term_bytes are set to the room that all words take, also when there was less.
 * Uses no index and no lock; safe on untrusted bytes, of which those that are part of no character separate words.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT (n is too large) or FVDB_ERR_BUFFER (the other outputs are undefined). */
fvdb_status fvdb_text_words(const uint8_t *text, uint64_t n, uint32_t capacity, uint64_t term_capacity,
                            uint8_t *out_terms, uint64_t *out_term_ends, uint32_t *out_starts, uint32_t *out_ends,
                            uint32_t *out_count, uint64_t *out_term_bytes, fvdb_diag *diag);

/* The ends of all segments of UAX #29 in a text of n bytes, words or not, in bytes; n entries are always enough.
 * Returns as fvdb_text_words; *out_count is set to the number of segments, also when there was less room. */
fvdb_status fvdb_text_segments(const uint8_t *text, uint64_t n, uint32_t capacity, uint32_t *out_ends,
                               uint32_t *out_count, fvdb_diag *diag);

/* ---- Save and load --------------------------------------------------------------------------------------------- */

/* A version of an index is a set of parts; docs/format.md describes every byte.  Parts of a kind are numbered from 0
 * and cover rows [number x r, (number + 1) x r), where r is rows_per_part for vectors and rows_per_group for the others. */
#define FVDB_PART_VECTORS 1   /* both planes */
#define FVDB_PART_BIT_CODES 2 /* a bit a dimension, for lazy loads; from 1,024 rows with a vector on */
#define FVDB_PART_IDS 3
#define FVDB_PART_TIMESTAMPS 4
#define FVDB_PART_TOMBSTONES 5    /* always one part over all rows */
#define FVDB_PART_GRAPH 6         /* present only once there is a graph; those with rows of it */
#define FVDB_PART_GRAPH_HEAD 7    /* one part: entry point, code parameters; from 1,024 rows with a vector on */
#define FVDB_PART_LISTS 8         /* one part: which row is on which list; present only with lists */
#define FVDB_PART_LISTS_HEAD 9    /* one part: centroids and what was measured of them; present only with lists */
#define FVDB_PART_VECTORLESS 10   /* one part over all rows: which have no vector; present only with such rows */
#define FVDB_PART_SECOND_LISTS 11 /* one part: rows' second lists; present where they pay */

typedef struct fvdb_part {
    uint32_t kind; /* FVDB_PART_* */
    uint32_t number;
    uint64_t size; /* bytes that fvdb_part_write will write */
} fvdb_part;

/* Lists the parts of the index as it is now, in a fixed order.  Pass capacity 0 to learn *out_count. [reader, whole]
 * rows_per_part, rows_per_group: 1 .. FVDB_ROWS_MAX.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT or FVDB_ERR_BUFFER (*out_count is set). */
fvdb_status fvdb_parts(fvdb_index *index, uint32_t rows_per_part, uint32_t rows_per_group, fvdb_part *out,
                       uint32_t capacity, uint32_t *out_count, fvdb_diag *diag);

/* Writes one part.  The bytes depend only on the rows and the graph, never on CPU, threads or addresses.
 *                                                                                                    [reader, whole]
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT (no such part) or FVDB_ERR_BUFFER. */
fvdb_status fvdb_part_write(fvdb_index *index, uint32_t rows_per_part, uint32_t rows_per_group, uint32_t kind,
                            uint32_t number, uint8_t *out, uint64_t capacity, uint64_t *out_size, fvdb_diag *diag);

/* Adds that only link some rows change links all over the graph, and yet are repeated in little time: so a version may
 * keep the parts of an earlier graph, and the steps that lead from it to its own. */
#define FVDB_STEPS_MAX 256u

/* Says that the graph and its head, as they are now, are stored: steps are counted from here.        [writer, whole] */
fvdb_status fvdb_graph_stored(fvdb_index *index, fvdb_diag *diag);

/* Rows of the stored graph, and in out_steps (FVDB_STEPS_MAX entries) the number of rows after each add since then.
 * *out_stored is 0 where the graph has to be stored anew: it was changed otherwise, or there were many steps.
 * Returns FVDB_OK.                                                                                   [reader, whole] */
fvdb_status fvdb_graph_steps(fvdb_index *index, uint32_t *out_stored, uint32_t *out_steps, uint32_t *out_count,
                             fvdb_diag *diag);

/* What the authenticated manifest says of the index that is being loaded. */
typedef struct fvdb_load {
    uint64_t rows;
    uint64_t graph_rows;  /* at most rows */
    uint64_t stored_rows; /* rows whose links are in parts, those before the graph among them; rows without steps */
    uint64_t lists;       /* 0: none */
    uint32_t rows_per_part, rows_per_group;
    uint32_t has_codes;      /* 1: there are parts of codes and a head of the graph */
    uint32_t has_vectorless; /* 1: there are rows without a vector */
    uint32_t has_seconds;    /* 1: there is a part of second lists */
} fvdb_load;

/* Loading: fvdb_load_begin on a config makes an index in the state loading.  Parts come in any order, also from several
 * threads; fvdb_load_end checks that all came, but those with codes, and fit together.  All are safe on untrusted bytes:
 * any input gives FVDB_OK with a consistent index or an error. */
fvdb_status fvdb_load_begin(const fvdb_config *config, const fvdb_load *load, fvdb_index **out, fvdb_diag *diag);

/* Reads one part.                                                                                  [reader, loading]
 * Returns FVDB_OK, FVDB_ERR_FORMAT (also: given twice), FVDB_ERR_ARGUMENT or FVDB_ERR_MEMORY. */
fvdb_status fvdb_load_part(fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag);

/* Finishes a load: codes are made again from the rows, and the steps that lead from the stored graph are repeated.
 * The index is whole then; after an error it is broken.                                            [writer, loading]
 * Returns FVDB_OK, FVDB_ERR_FORMAT, _MEMORY, _CANCELLED or _THREAD. */
fvdb_status fvdb_load_end(fvdb_index *index, const uint32_t *steps, uint32_t n_steps, fvdb_control *control,
                          fvdb_diag *diag);

/* ---- Lazy loads ------------------------------------------------------------------------------------------------ */

/* Instead of fvdb_load_end, when the parts with codes, ids, timestamps and tombstones and the graph's head came: the index
 * is lazy then, for good.  After an error it is broken, but for FVDB_ERR_ARGUMENT (fewer rows than have codes), which
 * leaves it as it was.                                                                             [writer, loading]
 * Returns as fvdb_load_end, and FVDB_ERR_ARGUMENT. */
fvdb_status fvdb_load_lazy(fvdb_index *index, fvdb_diag *diag);

/* The live rows that are nearest to a query as far as the codes tell, nearest first: at most k (1 .. FVDB_K_MAX) slots.
 * out_distances: estimates, never NaN, in the units of fvdb_search.  Each index estimates the same distance by its own codes,
 * so the candidates of several indexes can be put into one order.  allow: as fvdb_search.              [reader, lazy]
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT, _NOT_FINITE, _ZERO_VECTOR or _MEMORY. */
fvdb_status fvdb_candidates(fvdb_index *index, const float *query, uint32_t k, const uint64_t *allow,
                            uint64_t allow_words, uint32_t *out_slots, double *out_distances, uint32_t *out_count,
                            fvdb_diag *diag);

/* Checks a part with vectors that the caller fetched: safe on untrusted bytes.                        [reader, lazy]
 * Returns FVDB_OK, FVDB_ERR_FORMAT or FVDB_ERR_ARGUMENT. */
fvdb_status fvdb_part_check(fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag);

/* The live rows of a checked part that are nearest to a query, with the exact distances that fvdb_search gives: at most k.
 * Memory stays safe for unchecked bytes, distances mean nothing then.                                 [reader, lazy]
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT, _FORMAT, _NOT_FINITE, _ZERO_VECTOR or _MEMORY. */
fvdb_status fvdb_part_search(fvdb_index *index, const uint8_t *bytes, uint64_t size, const float *query, uint32_t k,
                             const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots, double *out_distances,
                             uint32_t *out_count, fvdb_diag *diag);

/* The exact vectors of slots that a checked part has, n x dim float32.                                [reader, lazy]
 * Returns FVDB_OK, FVDB_ERR_FORMAT, _ARGUMENT or _NOT_FOUND. */
fvdb_status fvdb_part_vectors(fvdb_index *index, const uint8_t *bytes, uint64_t size, const uint32_t *slots, uint32_t n,
                              float *out, fvdb_diag *diag);

/* ---- Text: index ----------------------------------------------------------------------------------------------- */

/* An inverted index of the words of rows, of its own lock and memory: it knows rows by the slots of an fvdb_index, and
 * nothing else of them.  It ranks by BM25 (Robertson & Zaragoza 2009) as Lucene does: a row with tf times a term that df
 * of N rows have, and `length` words where rows have `average` ones, gets
 *     log(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / average))
 * for that term.  N, df and average count the rows that are in the index, whatever a search allows.
 *
 * A change has three steps, so that all that can fail is done before anything changes: fvdb_text_stage splits texts into
 * words; fvdb_text_prepare makes the new state beside the old one; fvdb_text_commit puts it in place.  Between the first
 * two, where the terms are not the words themselves, fvdb_text_change_words gives the distinct words, and
 * fvdb_text_set_terms takes their terms.  What is committed depends on the order and the content of changes alone.
 *
 * An index is in one of three states: whole, from fvdb_text_create or a finished load; loading, from fvdb_text_load; and
 * broken, after a load whose parts contradict each other.  "[reader, whole]" as above. */

#define FVDB_TEXT_TERM_BYTES_MAX 256   /* bytes of a term; a word has one fewer */
#define FVDB_TEXT_QUERY_TERMS_MAX 1024 /* terms of a query, those that prefixes stand for included */
#define FVDB_TEXT_PREFIX_TERMS_MAX 128 /* of one prefix: those in most rows, then the first in byte order */
#define FVDB_TEXT_FIELD_GAP 100        /* positions between two texts of one row: no phrase reaches over it */
#define FVDB_TEXT_CHUNK_BYTES_MIN 4096 /* least size of the pieces that an index is saved in */
#define FVDB_TEXT_SEGMENTS_MAX 24      /* more are never made */

#define FVDB_TEXT_WORDS 0 /* a term is a word */
#define FVDB_TEXT_STEMS 1 /* a term is what the caller gives for a word: its stem */
#define FVDB_TEXT_BOTH 2  /* a word is two terms: itself, and FVDB_TEXT_STEM_MARK followed by its stem */
#define FVDB_TEXT_STEM_MARK 1

typedef struct fvdb_text fvdb_text;
typedef struct fvdb_text_change fvdb_text_change;

typedef struct fvdb_text_config {
    double k1;      /* 0 .. 1000 */
    double b;       /* 0 .. 1 */
    uint32_t terms; /* FVDB_TEXT_WORDS, _STEMS or _BOTH */
    uint32_t zero;
} fvdb_text_config;

/* Makes an empty index.  Returns FVDB_OK, FVDB_ERR_ARGUMENT or FVDB_ERR_MEMORY; *out is set only on FVDB_OK. */
fvdb_status fvdb_text_create(const fvdb_text_config *config, fvdb_text **out, fvdb_diag *diag);

/* Frees an index at once.  No other call may be running on it.  NULL is allowed. */
void fvdb_text_free(fvdb_text *text);

/* Texts of rows.  A row may have several, one after the other in the arrays: they count as one text. */
typedef struct fvdb_text_rows {
    uint32_t n;
    const uint32_t *slots;   /* n */
    const uint8_t *bytes;    /* UTF-8, one text after the other; what is not well-formed separates words */
    const uint64_t *offsets; /* n + 1 offsets into bytes */
} fvdb_text_rows;

/* Splits texts into words: of rows that leave the index, and of rows that come to it.  A row whose text is replaced is in
 * both.  The text of a row that leaves must be the one that it came with, as the number of rows with a word is counted
 * down by it.  Either may be NULL.  Nothing is looked up in the index, and nothing changes.          [reader, whole]
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT (offsets, slots), _MEMORY, _CANCELLED or _TOO_MANY. */
fvdb_status fvdb_text_stage(fvdb_text *text, const fvdb_text_rows *removed, const fvdb_text_rows *added,
                            fvdb_control *control, fvdb_text_change **out, fvdb_diag *diag);

/* Frees a change, committed or not.  NULL is allowed. */
void fvdb_text_change_free(fvdb_text_change *change);

/* The distinct words of a staged change and their bytes in all; both are 0 where terms are words. */
fvdb_status fvdb_text_change_size(const fvdb_text_change *change, uint32_t *out_words, uint64_t *out_bytes,
                                  fvdb_diag *diag);

/* Words of the rows that come and leave with a staged change, and how many of them are distinct. */
fvdb_status fvdb_text_change_counts(const fvdb_text_change *change, uint64_t *out_words, uint32_t *out_distinct,
                                    fvdb_diag *diag);

/* The distinct words themselves, in the order of first use: their bytes, and n + 1 offsets.
 * Returns FVDB_OK or FVDB_ERR_BUFFER. */
fvdb_status fvdb_text_change_words(const fvdb_text_change *change, uint8_t *out_bytes, uint64_t capacity,
                                   uint64_t *out_offsets, uint32_t words, fvdb_diag *diag);

/* Gives the terms of all n words, in the same order.  A word whose term is empty (a stop word) is not indexed, and is not
 * counted in the length of a row; its position stays.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT (another number of words, or a term that is too long) or FVDB_ERR_MEMORY. */
fvdb_status fvdb_text_set_terms(fvdb_text_change *change, const uint8_t *bytes, const uint64_t *offsets, uint32_t n,
                                fvdb_diag *diag);

/* Makes the state of the index after a change, beside the one that it has.                          [reader, whole]
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT (terms are missing; a row that comes is there already), _NOT_FOUND (a row that leaves
 * is not there; diag.row), _MEMORY, _CANCELLED or _TOO_MANY; the change is as before then. */
fvdb_status fvdb_text_prepare(fvdb_text *text, fvdb_text_change *change, fvdb_control *control, fvdb_diag *diag);

/* Puts a prepared state in place.                                                                   [writer, whole]
 * Returns FVDB_OK, or FVDB_ERR_ARGUMENT (not prepared, or the index was changed since: prepare again). */
fvdb_status fvdb_text_commit(fvdb_text *text, fvdb_text_change *change, fvdb_diag *diag);

/* Bytes that the index will take after a prepared change, as fvdb_text_stats.bytes_total: to compare with a budget before
 * the commit.  Returns FVDB_OK, or FVDB_ERR_ARGUMENT (not prepared). */
fvdb_status fvdb_text_change_bytes(const fvdb_text_change *change, uint64_t *out_bytes, fvdb_diag *diag);

/* Prepares the index with other slots: map[old] is the new slot, FVDB_NO_SLOT for a row that goes.  What only such rows,
 * or rows that left before, had is in no byte of the new state: it is counted and written anew.     [reader, whole]
 * Returns FVDB_OK (commit it), FVDB_ERR_ARGUMENT (two rows get one slot), _MEMORY, _CANCELLED or _TOO_MANY. */
fvdb_status fvdb_text_stage_map(fvdb_text *text, const uint32_t *map, uint32_t n, fvdb_control *control,
                                fvdb_text_change **out, fvdb_diag *diag);

/* Most bytes that an index of `rows` texts of `text_bytes` bytes in all is likely to take (a sum over the rows that it
 * has). */
uint64_t fvdb_text_estimate_bytes(uint64_t rows, uint64_t text_bytes);

/* Most bytes that a change of so many words, of which so many are distinct, takes beside an index of index_bytes bytes,
 * until it is freed.  terms: FVDB_TEXT_WORDS, _STEMS or _BOTH. */
uint64_t fvdb_text_estimate_change(uint32_t terms, uint64_t index_bytes, uint64_t rows, uint64_t words,
                                   uint64_t distinct);

typedef struct fvdb_text_stats {
    uint64_t rows;  /* with text */
    uint64_t words; /* the sum of their lengths */
    uint64_t segments;
    uint64_t terms;     /* entries of dictionaries: a term counts once a segment */
    uint64_t postings;  /* rows that left and are still there included */
    uint64_t left_rows; /* rows that left and whose postings are still there */
    uint64_t bytes_heads;
    uint64_t bytes_dictionary;
    uint64_t bytes_postings;
    uint64_t bytes_positions;
    uint64_t bytes_total;
} fvdb_text_stats;
fvdb_status fvdb_text_get_stats(fvdb_text *text, fvdb_text_stats *out,
                                fvdb_diag *diag); /* [reader, whole or loading] */

/* Checks every byte and every invariant.  Returns FVDB_OK or FVDB_ERR_FORMAT.                       [reader, whole] */
fvdb_status fvdb_text_validate(fvdb_text *text, fvdb_diag *diag);

/* ---- Text: search ---------------------------------------------------------------------------------------------- */

#define FVDB_TEXT_REQUIRED 1 /* only rows that match the clause */
#define FVDB_TEXT_EXCLUDED 2 /* no row that matches the clause; it gives no score */
#define FVDB_TEXT_PREFIX \
    4 /* the terms are prefixes: each stands for the terms that begin with it, with a sign for all of them */
/* A row matches that has each term at its offset from one place.  A term with FVDB_TEXT_STEM_MARK has no places: no row matches. */
#define FVDB_TEXT_PHRASE 8

typedef struct fvdb_text_term {
    uint32_t start, size; /* the term's place in query.bytes */
    int32_t offset;       /* in words, for phrases */
    float weight;         /* factor of its score, > 0 and finite */
} fvdb_text_term;

/* A clause matches a row that has one of its terms; or, as a phrase, all of them in their places.  The score of a row is the
 * sum over the clauses that it matches, of their terms that it has.  Equal terms of clauses without flags count as one
 * with the sum of the weights. */
typedef struct fvdb_text_clause {
    uint32_t first, n; /* its terms */
    uint32_t flags;
    uint32_t zero;
} fvdb_text_clause;

/* Numbers of rows that are in several indexes, to score each of these as one index of all would: sums of what
 * fvdb_text_get_stats and fvdb_text_terms give. */
typedef struct fvdb_text_totals {
    uint64_t rows, words;   /* as in fvdb_text_stats, at most 2^53 */
    const uint64_t *counts; /* rows that have each of the query's terms: n_terms */
} fvdb_text_totals;

/* totals: NULL, or numbers in place of the index's own.  With them no clause is a PREFIX, as each index knows other terms: the
 * clause lists those that the prefix stands for. */
typedef struct fvdb_text_query {
    const uint8_t *bytes;
    uint64_t n_bytes;
    const fvdb_text_term *terms;
    const fvdb_text_clause *clauses;
    const fvdb_text_totals *totals;
    uint32_t n_terms, n_clauses;
} fvdb_text_query;

/* The k rows with the highest scores, highest first, ties by slot: of those that match a clause that is not excluded, all
 * required and no excluded clauses, and that `allow` has (as for fvdb_search).                      [reader, whole]
 * out_slots, out_scores: k entries; *out_count of them are set.  out_matches: the number of rows that match, or NULL; it
 * costs a pass over all postings of the query.
 * Scores have the same bits for any order of the changes that led to the index.  Terms' scores are float32, rounded up to
 * steps of 2^-30 to 2^-29 of the sum of all weights, and summed as integers: a score is within 1e-6 of itself and a step a term.
 * Also answered while loading, where fvdb_text_missing finds no part.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT or FVDB_ERR_MEMORY. */
fvdb_status fvdb_text_search(fvdb_text *text, const fvdb_text_query *query, uint32_t k, const uint64_t *allow,
                             uint64_t allow_words, uint32_t *out_slots, double *out_scores, uint32_t *out_count,
                             uint64_t *out_matches, fvdb_diag *diag);

/* The same for a query of terms alone, each counted as often as it comes: with a zero byte between each two; one at the end adds
 * no term.  word_weight: of terms that do not begin with FVDB_TEXT_STEM_MARK; the others have 1.
 * From other languages, making the structs of a query takes longer than a search for a word.
 * Also FVDB_ERR_ARGUMENT where there are more than FVDB_TEXT_QUERY_TERMS_MAX. */
fvdb_status fvdb_text_search_terms(fvdb_text *text, const uint8_t *bytes, uint64_t n_bytes, float word_weight,
                                   uint32_t k, const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots,
                                   double *out_scores, uint32_t *out_count, uint64_t *out_matches, fvdb_diag *diag);

/* The same for a query of the words of a text, each of weight 1 and counted as often as it comes; only those among the first
 * FVDB_TEXT_QUERY_TERMS_MAX.  In one call, as taking a query apart elsewhere takes longer than most searches.
 * Also FVDB_ERR_ARGUMENT where terms are not words. */
fvdb_status fvdb_text_search_words(fvdb_text *text, const uint8_t *bytes, uint64_t n_bytes, uint32_t k,
                                   const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots, double *out_scores,
                                   uint32_t *out_count, uint64_t *out_matches, fvdb_diag *diag);

/* The scores of n given slots, in any order: 0 for a row that the query does not match.  As fvdb_text_search. */
fvdb_status fvdb_text_score_slots(fvdb_text *text, const fvdb_text_query *query, const uint32_t *slots, uint32_t n,
                                  double *out_scores, fvdb_diag *diag);

/* The rows that match all required and no excluded clauses of a query, whatever its other clauses: out has (n_slots + 63) / 64
 * words of 64 bits, one bit a slot; slots without text have no word.  As fvdb_text_search. */
fvdb_status fvdb_text_mask(fvdb_text *text, const fvdb_text_query *query, uint32_t n_slots, uint64_t *out,
                           fvdb_diag *diag);

/* The terms that a query needs the totals of, and how many rows have each: its own terms, each as often as it comes, and for
 * a PREFIX all terms of any row that begin with it, in byte order.  out_bytes: the terms, one after the other; out_offsets has
 * n + 1 entries for n of out_counts.  Also answered while loading, where fvdb_text_missing finds no part.
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT, _MEMORY, _FORMAT, or FVDB_ERR_BUFFER (*out_n and *out_size are set, too). */
fvdb_status fvdb_text_terms(fvdb_text *text, const fvdb_text_query *query, uint8_t *out_bytes, uint64_t byte_capacity,
                            uint64_t *out_offsets, uint64_t *out_counts, uint32_t capacity, uint32_t *out_n,
                            uint64_t *out_size, fvdb_diag *diag);

/* ---- Text: save and load --------------------------------------------------------------------------------------- */

/* An index is saved as parts; docs/format.md describes every byte.  Segments, oldest first, have one head each; their
 * dictionaries, postings and positions are cut into chunks, numbered through over all segments.  A change leaves the parts
 * of old segments as they are, so they keep their numbers. */
#define FVDB_PART_TEXT_HEAD 21
#define FVDB_PART_TEXT_DICTIONARY 22
#define FVDB_PART_TEXT_POSTINGS 23
#define FVDB_PART_TEXT_POSITIONS 24

/* The parts of the index as it is now, in a fixed order.  chunk_bytes: size of chunks, FVDB_TEXT_CHUNK_BYTES_MIN or more.
 * Pass capacity 0 to learn *out_count.  Returns FVDB_OK, FVDB_ERR_ARGUMENT or FVDB_ERR_BUFFER.      [reader, whole] */
fvdb_status fvdb_text_parts(fvdb_text *text, uint32_t chunk_bytes, fvdb_part *out, uint32_t capacity,
                            uint32_t *out_count, fvdb_diag *diag);

/* Writes one part.  Returns FVDB_OK, FVDB_ERR_ARGUMENT (no such part) or FVDB_ERR_BUFFER.           [reader, whole] */
fvdb_status fvdb_text_part_write(fvdb_text *text, uint32_t chunk_bytes, uint32_t kind, uint32_t number, uint8_t *out,
                                 uint64_t capacity, uint64_t *out_size, fvdb_diag *diag);

/* Makes an index in the state loading, of a version with so many segments.  stream_bytes: of all parts with the dictionary, with
 * postings and with positions, in this order; heads that announce more are refused before they get memory.  Returns as
 * fvdb_text_create. */
fvdb_status fvdb_text_load(const fvdb_text_config *config, uint32_t segments, uint32_t chunk_bytes,
                           const uint64_t *stream_bytes, fvdb_text **out, fvdb_diag *diag);

/* Takes a part: all heads come first, in any order.  Safe on untrusted bytes.                     [writer, loading]
 * Returns FVDB_OK (also for a part that it has), FVDB_ERR_FORMAT, FVDB_ERR_ARGUMENT (a head is missing, or there is no such
 * part) or FVDB_ERR_MEMORY. */
fvdb_status fvdb_text_load_part(fvdb_text *text, uint32_t kind, uint32_t number, const uint8_t *bytes, uint64_t size,
                                fvdb_diag *diag);

/* When all parts came: checks every byte of them.  The index is whole then, or broken.             [writer, loading]
 * Returns FVDB_OK, FVDB_ERR_FORMAT, FVDB_ERR_ARGUMENT (a part is missing; the state stays) or FVDB_ERR_MEMORY. */
fvdb_status fvdb_text_load_end(fvdb_text *text, fvdb_diag *diag);

/* The parts that a search for a query still needs, dictionary first: once these came, it may need postings.  When there are
 * none, fvdb_text_search and fvdb_text_score_slots answer.                                         [reader, loading]
 * Returns FVDB_OK, FVDB_ERR_ARGUMENT, _FORMAT, _MEMORY or FVDB_ERR_BUFFER (*out_count is set). */
fvdb_status fvdb_text_missing(fvdb_text *text, const fvdb_text_query *query, fvdb_part *out, uint32_t capacity,
                              uint32_t *out_count, fvdb_diag *diag);

/* cffi: end */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif
#endif
