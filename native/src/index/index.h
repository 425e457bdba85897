/* Contract of index/: one index = store + graph + lock.  It routes searches, makes changes atomic and owns memory.
 *
 * Functions here expect arguments checked and the lock taken by api.c: [reader] or [writer] as the public header says. */
#ifndef FVDB_INDEX_H
#define FVDB_INDEX_H

#include "../hnsw/hnsw.h"
#include "../store/store.h"

struct loading;

struct fvdb_index {
    fvdb_config config;
    rwlock *lock;
    store store;
    hnsw graph;                  /* n = 0: searches scan flat; otherwise all rows are linked */
    mutex walks_lock;
    walk **idle;                 /* search memory not in use, at most n_idle of them kept */
    uint32_t n_idle;
    size_t idle_bytes;
    struct loading *loading;     /* format/: non-NULL from fvdb_load_begin to fvdb_load_end */
};

/* Idle walks kept for the next search: one per core of a busy host; more are freed when they come back. */
#define IDLE_WALKS_MAX 8u

/* ---- index.c ---- */

/* Makes an empty index, without rows and, if kernels are refused, none. */
fvdb_status index_create(const fvdb_config *config, fvdb_index **out, fvdb_diag *diag);
void index_free(fvdb_index *index);
void index_stats(fvdb_index *index, fvdb_stats *out);
uint64_t index_estimate(const fvdb_config *config, uint64_t rows, uint64_t id_bytes);
fvdb_status index_delete(fvdb_index *index, const uint8_t *id_bytes, const uint64_t *id_offsets, uint32_t n,
                         bool missing_ok, uint32_t *out_slots, fvdb_diag *diag);
/* Search memory for one thread: from the idle ones, or new. */
walk *index_take_walk(fvdb_index *index);
void index_give_walk(fvdb_index *index, walk *w);
/* A crew and walks for its members, `each` of them: member m has those from m x each on.  Threads are no more than
 * config.threads and `most`. */
typedef struct workers {
    crew *crew;
    walk *walks[FVDB_THREADS_MAX * SCAN_QUERIES_MAX];
    uint32_t n;
} workers;
fvdb_status workers_start(fvdb_index *index, uint64_t most, uint32_t each, workers *out, fvdb_diag *diag);
void workers_stop(fvdb_index *index, workers *w);

/* ---- index_add.c, index_search.c, index_vacuum.c ---- */

/* rows_before: rows in the graph before the change that this call is the end of; INDEX_MORE_FOLLOWS: it is not the end. */
#define INDEX_MORE_FOLLOWS UINT32_MAX
fvdb_status index_add(fvdb_index *index, const fvdb_rows *rows, uint32_t on_conflict, uint32_t rows_before,
                      uint32_t *out_slots, uint32_t *out_replaced, fvdb_control *control, fvdb_diag *diag);

typedef struct search_outputs {
    uint32_t *slots;
    double *distances;
    uint32_t *counts, *plans;
    uint8_t *id_bytes;
    uint64_t id_capacity;
    uint64_t *id_offsets;
} search_outputs;
fvdb_status index_search(fvdb_index *index, const float *queries, uint32_t n_queries,
                         const fvdb_search_params *params, const uint64_t *allow, uint64_t allow_words,
                         const search_outputs *out, fvdb_control *control, fvdb_diag *diag);
fvdb_status index_vacuum(fvdb_index *index, uint32_t *out_map, fvdb_control *control, fvdb_diag *diag);

#endif
