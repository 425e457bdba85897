/* Vacuum: tombstones leave for good.
 *
 * Few of them: the graph is repaired around them (hnsw_repair.c) and rows move down in place.  Many: what is left of the
 * graph would be mostly patches, so the rows that stay are added to a new index, which then takes the old one's place;
 * recall is that of a fresh build because it is one.
 * Either way all that can fail happens beside the index, and the commit cannot. */
#include "index.h"

/* Rebuild when more than 1 row in 3 is a tombstone: from there on a repair touches every row anyway. */
#define REBUILD_SHARE 3u
#define REBUILD_BATCH 8192u

static fvdb_status repair(fvdb_index *index, const uint32_t *map, uint32_t n, fvdb_control *control, fvdb_diag *diag) {
    store *s = &index->store;
    hnsw graph = {0};
    timestamps times;
    workers w;
    hnsw_init(&graph, &index->config);
    TRY(timestamps_compacted(&s->times, map, &times, diag));
    fvdb_status status = FVDB_OK;
    if (index->graph.n) {
        status = workers_start(index, FVDB_THREADS_MAX, 1, &w, diag);
        if (status == FVDB_OK) {
            status = hnsw_without(&index->graph, s, map, n, w.walks, w.crew, control, &graph, diag);
            workers_stop(index, &w);
        }
    }
    if (status != FVDB_OK) {
        timestamps_free(&times);
        return status;
    }
    hnsw_free(&index->graph);
    index->graph = graph;
    store_compact(s, map, n, &times);
    return FVDB_OK;
}

/* Adds the live rows of `from` to `to`, in slot order. */
static fvdb_status copy_rows(fvdb_index *from, fvdb_index *to, fvdb_control *control, fvdb_diag *diag) {
    const store *s = &from->store;
    uint32_t room = min_u32(REBUILD_BATCH, s->live_count), *slots = mem_alloc_array(2 * (size_t)room, sizeof *slots);
    float *vectors = mem_alloc_array((size_t)room * s->dim, sizeof *vectors);
    uint64_t *offsets = mem_alloc_array((size_t)room + 1, sizeof *offsets);
    int64_t *us = mem_alloc_array(room, sizeof *us);
    region ids = {0};
    fvdb_status status = slots && vectors && offsets && us ? FVDB_OK : FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
    for (uint32_t slot = 0; slot < s->n && status == FVDB_OK;) {
        uint32_t n = 0;
        size_t id_bytes = 0;
        for (; slot < s->n && n < room && status == FVDB_OK; slot++) {
            if (!bit_get(store_live(s), slot)) continue;
            size_t size;
            const uint8_t *id = id_map_get(&s->ids, slot, &size);
            if (!region_resize(&ids, id_bytes + size)) status = FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
            else memcpy(ids.base + id_bytes, id, size);
            store_get(s, slot, vectors + (size_t)n * s->dim);
            us[n] = timestamps_get(&s->times, slot);
            offsets[n++] = id_bytes;
            id_bytes += size;
        }
        offsets[n] = id_bytes;
        fvdb_rows rows = {n, vectors, ids.base, offsets, us};
        if (status == FVDB_OK && n)
            status = index_add(to, &rows, FVDB_ON_CONFLICT_ERROR, to->store.n + n < s->live_count ? INDEX_MORE_FOLLOWS : 0,
                               slots, slots + room, control, diag);
    }
    mem_free(slots);
    mem_free(vectors);
    mem_free(offsets);
    mem_free(us);
    region_free(&ids);
    return status;
}

static fvdb_status rebuild(fvdb_index *index, fvdb_control *control, fvdb_diag *diag) {
    fvdb_index *fresh;
    TRY(index_create(&index->config, &fresh, diag));
    fvdb_status status = index->store.live_count ? copy_rows(index, fresh, control, diag) : FVDB_OK;
    if (status == FVDB_OK) {
        /* Walks stay where they are: they point at index->store and index->graph, whose content changes under them. */
        store s = index->store;
        hnsw g = index->graph;
        index->store = fresh->store;
        index->graph = fresh->graph;
        fresh->store = s;
        fresh->graph = g;
    }
    index_free(fresh);
    return status;
}

fvdb_status index_vacuum(fvdb_index *index, uint32_t *out_map, fvdb_control *control, fvdb_diag *diag) {
    const store *s = &index->store;
    uint32_t n = 0, removed = s->n - s->live_count;
    for (uint32_t slot = 0; slot < s->n; slot++) out_map[slot] = bit_get(store_live(s), slot) ? n++ : FVDB_NO_SLOT;
    if (removed == 0) return FVDB_OK;
    return removed > s->n / REBUILD_SHARE ? rebuild(index, control, diag) : repair(index, out_map, n, control, diag);
}
