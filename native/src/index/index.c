/* Life of an index, its statistics, its pool of search memory, and deletion. */
#include "index.h"

fvdb_status index_create(const fvdb_config *config, fvdb_index **out, fvdb_diag *diag) {
    const kernel_table *kernels = kernels_get();
    if (!kernels)
        return FAIL(diag, FVDB_ERR_ARGUMENT,
                    "FVDB_KERNELS names kernels that this CPU cannot run or that do not exist");
    fvdb_index *index = mem_alloc_array(1, sizeof *index);
    rwlock *lock = rwlock_new();
    search_scratch **idle = mem_alloc_array(IDLE_SCRATCH_MAX, sizeof *idle);
    if (!index || !lock || !idle || !mutex_init(&index->idle_lock)) {
        mem_free(index);
        rwlock_free(lock);
        mem_free(idle);
        return FAIL_MEMORY(diag);
    }
    index->config = *config;
    index->lock = lock;
    index->idle = idle;
    store_init(&index->store, kernels, config);
    hnsw_init(&index->graph, config);
    ivf_init(&index->lists);
    *out = index;
    return FVDB_OK;
}

static void delete_scratch(search_scratch *w) {
    scratch_free(w);
    mem_free(w);
}

void index_free(fvdb_index *index) {
    if (!index) return;
    assert(!index->loading); /* format/ frees what it made, before */
    bit_codes_free(&index->bit_codes);
    index_drop_scratch(index);
    mem_free(index->idle);
    hnsw_free(&index->graph);
    ivf_free(&index->lists);
    store_free(&index->store);
    mutex_destroy(&index->idle_lock);
    rwlock_free(index->lock);
    mem_free(index);
}

/* ---- search memory ---- */

search_scratch *index_take_scratch(fvdb_index *index) {
    search_scratch *w = NULL;
    mutex_lock(&index->idle_lock);
    if (index->n_idle) {
        w = index->idle[--index->n_idle];
        index->idle_bytes -= w->bytes;
    }
    mutex_unlock(&index->idle_lock);
    if (w) return w;
    w = mem_alloc(sizeof *w);
    if (w && scratch_init(w, &index->store, &index->graph) != FVDB_OK) {
        mem_free(w);
        return NULL;
    }
    return w;
}

void index_drop_scratch(fvdb_index *index) {
    mutex_lock(&index->idle_lock);
    for (; index->n_idle; index->n_idle--) delete_scratch(index->idle[index->n_idle - 1]);
    index->idle_bytes = 0;
    mutex_unlock(&index->idle_lock);
}

void index_give_scratch(fvdb_index *index, search_scratch *w) {
    if (!w) return;
    mutex_lock(&index->idle_lock);
    bool keep = index->n_idle < IDLE_SCRATCH_MAX;
    if (keep) {
        index->idle[index->n_idle++] = w;
        index->idle_bytes += w->bytes;
    }
    mutex_unlock(&index->idle_lock);
    if (!keep) delete_scratch(w);
}

fvdb_status workers_start(fvdb_index *index, uint64_t most, uint32_t each, workers *out, fvdb_diag *diag) {
    uint32_t threads = index->config.threads;
    if (most < threads) threads = most ? (uint32_t)most : 1;
    out->n = 0;
    assert((uint64_t)threads * each <= sizeof out->scratch / sizeof *out->scratch);
    TRY(thread_pool_start(threads, &out->pool, diag));
    for (; out->n < threads * each; out->n++) {
        out->scratch[out->n] = index_take_scratch(index);
        if (out->scratch[out->n]) continue;
        workers_stop(index, out);
        return FAIL_MEMORY(diag);
    }
    return FVDB_OK;
}

void workers_stop(fvdb_index *index, workers *w) {
    /* Before their memory is given to others: a batch that ends early has threads that are still at work. */
    thread_pool_stop(w->pool);
    for (uint32_t i = 0; i < w->n; i++) index_give_scratch(index, w->scratch[i]);
    w->n = 0;
}

fvdb_status index_with_dim(const fvdb_index *index, const fvdb_config *config, fvdb_index **out, fvdb_diag *diag) {
    if (store_with_vector(&index->store)) return FAIL(diag, FVDB_ERR_ARGUMENT, "a row has a vector, so dim is fixed");
    fvdb_index *copy;
    TRY(index_create(config, &copy, diag));
    fvdb_status status = store_copy_vectorless(&index->store, &copy->store, diag);
    if (status == FVDB_OK) *out = copy;
    else index_free(copy);
    return status;
}

/* ---- statistics ---- */

uint32_t index_moved(const fvdb_index *index) { return index->lists.n - index->graph.first; }

void index_assert(const fvdb_index *index) {
    const store *s = &index->store;
    const hnsw *g = &index->graph;
    const ivf *lists = &index->lists;
    (void)s, (void)g, (void)lists;
    assert(index->state <= INDEX_BROKEN);
    if (index->state != INDEX_WHOLE && index->state != INDEX_LAZY) return;
    assert(!index->loading == (index->state == INDEX_WHOLE) && !index->bit_codes.s == (index->state == INDEX_WHOLE));
    assert(s->ids.n == s->n && s->times.n == s->n && s->ids.linked == s->live_count);
    assert(s->found_count <= s->live_count && s->live_count <= s->n && s->vectorless_count <= s->n);
    if (index->state == INDEX_LAZY) return;
    assert(s->high.used == (size_t)s->n * s->dim16 * sizeof(uint16_t) && s->low.used == s->high.used);
    assert(hnsw_rows(g) == 0 || g->n == s->n);
    assert(lists->live <= lists->n && lists->n >= g->first && lists->live <= s->live_count);
}

void index_stats(fvdb_index *index, fvdb_stats *out) {
    const store *s = &index->store;
    const ivf *lists = &index->lists;
    *out = (fvdb_stats){.rows = s->n, .live = s->live_count, .graph_rows = hnsw_rows(&index->graph)};
    out->historical = lists->live;
    out->historical_deleted = lists->n - lists->live;
    out->vectorless = s->live_count - s->found_count;
    out->with_vector = store_with_vector(s);
    out->moved = index_moved(index);
    out->lists = lists->centroids.nlist;
    out->nprobe = ivf_probes(lists, ivf_ks[0], IVF_RECALL_DEFAULT);
    out->training_due = ivf_training_is_due(lists);
    out->memory = index->config.memory;
    out->bits_serve = s->book.bits_serve;
    out->bytes_lists = ivf_resident(lists, s->dim64);
    out->bytes_vectors = region_resident(&s->high) + region_resident(&s->low);
    out->bytes_codes = region_resident(&s->codes) + region_resident(&s->code_norm2) + region_resident(&s->code_error) +
                       region_resident(&s->inv_norm) + (s->book.lo ? (size_t)s->dim64 * 3 * sizeof(float) : 0) +
                       bit_codes_resident(&index->bit_codes);
    out->bytes_graph = hnsw_resident(&index->graph);
    out->bytes_ids = id_map_resident(&s->ids);
    out->bytes_timestamps = timestamps_resident(&s->times);
    mutex_lock(&index->idle_lock);
    out->bytes_scratch = sizeof *index + region_resident(&s->live) + region_resident(&s->vectorless) +
                         region_resident(&s->found) + index->idle_bytes;
    mutex_unlock(&index->idle_lock);
    out->bytes_total = out->bytes_vectors + out->bytes_codes + out->bytes_graph + out->bytes_lists + out->bytes_ids +
                       out->bytes_timestamps + out->bytes_scratch;
    out->id_bytes = s->ids.n ? ((const uint32_t *)s->ids.offsets.base)[s->ids.n] : 0;
}

/* ---- delete ---- */

void index_tombstone(fvdb_index *index, uint32_t slot) {
    index->lists.live -= ivf_has(&index->lists, slot);
    store_make_tombstone(&index->store, slot);
}

fvdb_status index_delete(fvdb_index *index, const uint8_t *id_bytes, const uint64_t *id_offsets, uint32_t n,
                         bool missing_ok, uint32_t *out_slots, fvdb_diag *diag) {
    store *s = &index->store;
    for (uint32_t i = 0; i < n; i++) {
        out_slots[i] = id_map_find(&s->ids, id_bytes + id_offsets[i], (size_t)(id_offsets[i + 1] - id_offsets[i]));
        if (out_slots[i] == FVDB_NO_SLOT && !missing_ok)
            return FAIL_AT(diag, FVDB_ERR_NOT_FOUND, "the id is not live", i, 0, 0);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (out_slots[i] == FVDB_NO_SLOT) continue;
        if (bit_get(store_live(s), out_slots[i])) index_tombstone(index, out_slots[i]);
        else out_slots[i] = FVDB_NO_SLOT; /* the same id stood earlier in this call */
    }
    return FVDB_OK;
}
