/* Contract of index/: one index = store + graph + lock.  It routes searches, makes changes atomic and owns memory. */
#ifndef FVDB_INDEX_H
#define FVDB_INDEX_H

#include "../hnsw/hnsw.h"
#include "../store/store.h"

struct scratch;
struct loading;

struct fvdb_index {
    fvdb_config config;
    rwlock *lock;
    store store;
    hnsw graph;
    mutex scratch_mutex;
    struct scratch *scratch;     /* free list of search memory */
    struct loading *loading;     /* format/: non-NULL from fvdb_load_begin to fvdb_load_end */
};

#endif
