/* Contract of index/: one index = store + graph + lists + lock.  It routes searches, makes changes atomic and owns memory.
 *
 * A row is on one side: `recent`, in the graph or scanned while they are few, or `historical`, on a list.  A row that moved
 * to a list stays in the graph until the next vacuum, where it guides walks as a tombstone does.
 * Rows before graph.first were put there by a vacuum: they are all historical, list by list.
 *
 * Functions here expect arguments checked and the lock taken by api.c: [reader] or [writer] as the public header says. */
#ifndef FVDB_INDEX_H
#define FVDB_INDEX_H

#include "../hnsw/hnsw.h"
#include "../ivf/ivf.h"
#include "../store/store.h"

struct loading;

/* How the graph came from the one that is stored in parts: rows below `stored` were in that one, the others were linked by
 * calls that ended at ends[0], ends[1], ...  Repeating these steps gives the same graph, so that its parts need not be
 * stored again after every add.  stored is 0 where the steps lead from nothing that is stored, or are no longer worth it. */
typedef struct graph_steps {
    uint32_t stored, n;
    uint32_t ends[FVDB_STEPS_MAX];
} graph_steps;
/* Of the stored rows, at most one in so many is linked again: some 5 % of the time that the graph took. */
#define INDEX_STEP_SHARE 16u

/* What an index answers: api.c refuses every call that its state does not allow. */
typedef enum index_state {
    INDEX_WHOLE,   /* empty or not: has all it needs */
    INDEX_LOADING, /* parts are coming; the store is half filled */
    INDEX_LAZY,    /* ids, timestamps, tombstones and bit codes; no vectors, no graph, no lists */
    INDEX_BROKEN   /* a load failed on the way: only to be freed */
} index_state;

struct fvdb_index {
    fvdb_config config;
    rwlock *lock;
    index_state state; /* changed under the writer lock, by format/ */
    store store;
    hnsw graph; /* without rows: recent ones are scanned; otherwise it has all from graph.first on */
    ivf lists;
    uint64_t slots_epoch; /* changes whenever a row gets another slot or list */
    graph_steps steps;
    mutex idle_lock;
    search_scratch **idle; /* search memory not in use, at most n_idle of them kept */
    uint32_t n_idle;
    size_t idle_bytes;
    struct loading
        *loading;        /* format/: non-NULL from fvdb_load_begin to fvdb_load_end, or for good after a lazy load */
    bit_codes bit_codes; /* of a lazily loaded index, which has no vectors and no graph */
};

/* Scratch kept for the next search: one per core of a busy host; more are freed when they come back. */
#define IDLE_SCRATCH_MAX 8u

/* ---- index.c ---- */

/* Makes an empty index, without rows and, if kernels are refused, none. */
fvdb_status index_create(const fvdb_config *config, fvdb_index **out, fvdb_diag *diag);
void index_free(fvdb_index *index);
/* A new index with the same rows, none of which has a vector, under another config. */
fvdb_status index_with_dim(const fvdb_index *index, const fvdb_config *config, fvdb_index **out, fvdb_diag *diag);
/* index_memory.c */
fvdb_status index_set_memory(fvdb_index *index, uint32_t memory, fvdb_diag *diag);
void index_stats(fvdb_index *index, fvdb_stats *out);
fvdb_status index_delete(fvdb_index *index, const uint8_t *id_bytes, const uint64_t *id_offsets, uint32_t n,
                         bool missing_ok, uint32_t *out_slots, fvdb_diag *diag);
/* In debug builds: what holds whenever nobody changes the index.  api.c asks before each call and after each change. */
void index_assert(const fvdb_index *index);
/* Frees all search memory that is idle. */
void index_drop_scratch(fvdb_index *index);
/* Search memory for one thread: from the idle ones, or new. */
search_scratch *index_take_scratch(fvdb_index *index);
void index_give_scratch(fvdb_index *index, search_scratch *w);
/* Makes a live row a tombstone, on its side. */
void index_tombstone(fvdb_index *index, uint32_t slot);
/* Rows of lists that the graph still has. */
uint32_t index_moved(const fvdb_index *index);
/* A thread pool and scratch memory for its threads, `each` pieces a thread: those of thread t begin at t x each.  There are at
 * most config.threads and `most` threads. */
typedef struct workers {
    thread_pool *pool;
    search_scratch *scratch[FVDB_THREADS_MAX * SCAN_QUERIES_MAX];
    uint32_t n;
} workers;
fvdb_status workers_start(fvdb_index *index, uint64_t most, uint32_t each, workers *out, fvdb_diag *diag);
void workers_stop(fvdb_index *index, workers *w);

/* ---- index_estimate.c ---- */

uint64_t index_estimate(const fvdb_config *config, uint64_t rows, uint64_t graph_rows, uint64_t historical,
                        uint64_t id_bytes);
/* A call that takes memory beside the index: FVDB_WORK_*, and as fvdb_estimate_work of the public header describes them. */
typedef struct index_work {
    uint32_t kind;
    uint64_t rows, graph_rows, historical, added, id_bytes;
} index_work;
uint64_t index_scratch(const fvdb_config *config, const index_work *w);

/* ---- index_add.c, index_search.c, index_vacuum.c ---- */

/* Fewer recent rows are scanned, without a graph. */
#define INDEX_GRAPH_ROWS_MIN CODES_FIRST_ROWS
/* Whether an add links all rows anew, `linked` of which the graph had before. */
static inline bool index_refines(uint64_t linked, uint64_t recent) {
    return recent / 2 >= linked && recent >= INDEX_GRAPH_ROWS_MIN;
}

fvdb_status index_add(fvdb_index *index, const fvdb_rows *rows, uint32_t on_conflict, uint32_t *out_slots,
                      uint32_t *out_replaced, fvdb_control *control, fvdb_diag *diag);

/* Links the last rows in the steps in which they came; nothing else of the index changes. */
fvdb_status index_repeat_steps(fvdb_index *index, const uint32_t *steps, uint32_t n, fvdb_control *control,
                               fvdb_diag *diag);

/* ---- index_reorder.c ---- */

/* Clusters that so many rows of the graph are put in order by. */
uint32_t index_clusters(uint32_t rows);

/* All slots in an order in which rows of the graph that are near each other stand together.  [reader] */
fvdb_status index_locality_order(fvdb_index *index, uint32_t *out, fvdb_control *control, fvdb_diag *diag);
/* Gives the row of slot order[i] the slot i.  [writer] */
fvdb_status index_renumber(fvdb_index *index, const uint32_t *order, fvdb_diag *diag);

/* ---- index_search.c ---- */

typedef struct search_outputs {
    uint32_t *slots;
    double *distances;
    uint32_t *counts, *plans;
    uint8_t *id_bytes;
    uint64_t id_capacity;
    uint64_t *id_offsets;
} search_outputs;
fvdb_status index_search(fvdb_index *index, const float *queries, uint32_t n_queries, const fvdb_search_params *params,
                         const fvdb_allowed *allowed, const search_outputs *out, fvdb_control *control,
                         fvdb_diag *diag);
/* The same in steps, as fvdb_search_start of the public header describes them; the ids of `out` are not used. */
fvdb_status index_search_start(fvdb_index *index, const float *queries, uint32_t n_queries,
                               const fvdb_search_params *params, const fvdb_allowed *allowed, const search_outputs *out,
                               fvdb_control *control, fvdb_batch **batch, fvdb_diag *diag);
fvdb_status index_search_next(fvdb_batch *b, uint8_t *id_bytes, uint64_t id_capacity, uint64_t *id_offsets,
                              uint32_t *out_n, fvdb_diag *diag);
fvdb_index *index_search_end(fvdb_batch *b);

/* ---- index_scores.c ---- */

/* Scores of distances, as fvdb_scores of the public header describes them. */
void index_scores(uint32_t metric, const double *distances, uint32_t n, double *out);

/* ---- index_lazy.c: an index without vectors of its own ---- */

/* Rows first .. first + n - 1 that are not in the store: four byte planes of n x dim each, the low and the high bytes of
 * the high halves, then those of the low halves. */
typedef struct part_rows {
    const uint8_t *planes;
    uint32_t first, n;
} part_rows;
/* The halves of row first + row. */
void part_row(const part_rows *p, uint32_t dim, uint32_t row, uint16_t *high, uint16_t *low);
/* The live rows nearest to a query by bit code, and estimates of their distances. */
fvdb_status index_candidates(const fvdb_index *index, const float *query, uint32_t most, const uint64_t *allow,
                             uint64_t allow_words, uint32_t *out_slots, double *out_distances, uint32_t *out_count,
                             fvdb_diag *diag);
/* The live rows of a part nearest to a query, by exact distance. */
fvdb_status index_part_search(const fvdb_index *index, const part_rows *rows, const float *query, uint32_t k,
                              const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots, double *out_distances,
                              uint32_t *out_count, fvdb_diag *diag);
/* The exact vectors of slots of a part. */
fvdb_status index_part_vectors(const fvdb_index *index, const part_rows *rows, const uint32_t *slots, uint32_t n,
                               float *out, fvdb_diag *diag);

/* ---- index_vacuum.c ---- */

/* Slots in the order of a vacuum into `order`, which has room for all rows: historical ones, whose number it returns, recent
 * ones, tombstones. */
uint32_t index_order(const fvdb_index *index, uint32_t *order);
fvdb_status index_vacuum(fvdb_index *index, uint32_t *out_map, fvdb_control *control, fvdb_diag *diag);

/* ---- index_migrate.c: what takes long is done under the reader lock, what changes rows takes a moment ---- */

/* Lists to be.  [reader] makes one; [writer] installs it, and is false where rows got other slots or lists in between. */
typedef struct training {
    ivf lists;
    uint64_t slots_epoch;
} training;
fvdb_status index_train(fvdb_index *index, int64_t cutoff_us, training *out, fvdb_control *control, fvdb_diag *diag);
bool index_install_lists(fvdb_index *index, training *t);

/* Rows to be moved, and their lists. */
typedef struct migration {
    uint32_t *slots;
    ivf_places places;
    uint32_t n, next;
    uint64_t slots_epoch;
} migration;
fvdb_status index_pick(fvdb_index *index, int64_t cutoff_us, uint32_t first, uint32_t most, migration *out,
                       fvdb_diag *diag);
/* *stale: rows got other slots or lists in between, and nothing was done. */
fvdb_status index_move(fvdb_index *index, const migration *m, uint32_t *out_moved, bool *stale, fvdb_diag *diag);
void migration_free(migration *m);

#endif
