/* Rows that are near each other get slots that are: what is stored together is then wanted together, so that a search of an
 * index that is loaded lazily finds most of what it looks for in a few parts.
 *
 * The order is that of clusters, themselves in an order in which near ones stand together (ivf_train.c).  It is made once,
 * before an index is stored for the first time, and again when a vacuum has given the rows other slots anyway: it changes
 * every part. */
#include "index.h"

/* Clusters, and their rows while they are fewer than that.  400 of them for 100,000 rows are hardly better than 100
 * (docs/decisions/0016), and the time goes with their square; but a cluster should not be much larger than a part. */
#define CLUSTERS 256u
#define CLUSTER_ROWS_MIN 128u
#define CLUSTER_ROWS_MAX 2048u
#define ITERATIONS 10u

uint32_t index_clusters(uint32_t rows) {
    return min_u32(rows / CLUSTER_ROWS_MIN, max_u32(CLUSTERS, rows / CLUSTER_ROWS_MAX));
}

/* ---- the order ---- */

static fvdb_status cluster(fvdb_index *index, uint32_t first, uint32_t *slots, uint32_t *clusters, const workers *w,
                           fvdb_control *control, uint32_t *out, fvdb_diag *diag) {
    const store *s = &index->store;
    const uint32_t n = s->n - first, nlist = index_clusters(n);
    ivf_centroids centroids;
    progress_range all = {control, 0, n, n, n};
    uint32_t *starts = mem_alloc_array((size_t)nlist + 1, sizeof *starts);
    if (!starts) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < n; i++) slots[i] = first + i;
    fvdb_status status = ivf_train(s, slots, n, nlist, ITERATIONS, w->pool, &all, &centroids, diag);
    if (status == FVDB_OK) {
        ivf_assign(&centroids, s, slots, n, w->pool, &(ivf_places){.lists = clusters});
        counting_sort(clusters, n, nlist, starts, out + first);
        for (uint32_t i = 0; i < n; i++) out[first + i] += first;
        ivf_centroids_free(&centroids);
    }
    mem_free(starts);
    return status;
}

fvdb_status index_locality_order(fvdb_index *index, uint32_t *out, fvdb_control *control, fvdb_diag *diag) {
    const uint32_t first = index->graph.first, n = index->store.n - first;
    for (uint32_t slot = 0; slot < index->store.n; slot++) out[slot] = slot;
    if (n < INDEX_GRAPH_ROWS_MIN) return FVDB_OK;
    uint32_t *slots = mem_alloc_array(n, sizeof *slots), *clusters = mem_alloc_array(n, sizeof *clusters);
    workers w;
    fvdb_status status = slots && clusters ? workers_start(index, FVDB_THREADS_MAX, 0, &w, diag) : FAIL_MEMORY(diag);
    if (status == FVDB_OK) {
        status = cluster(index, first, slots, clusters, &w, control, out, diag);
        workers_stop(index, &w);
    }
    mem_free(slots);
    mem_free(clusters);
    return status;
}

/* ---- new slots ---- */

/* A permutation that leaves settled rows where they are. */
static bool is_order(const fvdb_index *index, const uint32_t *order, uint64_t *seen) {
    for (uint32_t slot = 0; slot < index->store.n; slot++) {
        if (order[slot] >= index->store.n || bit_get(seen, order[slot])) return false;
        if (slot < index->graph.first && order[slot] != slot) return false;
        bit_set(seen, order[slot]);
    }
    return true;
}

/* The same lists, whose rows have other slots. */
static fvdb_status renumber_lists(const fvdb_index *index, const reordering *rows, ivf *out, fvdb_diag *diag) {
    const ivf *lists = &index->lists;
    uint32_t n = 0, *slots = mem_alloc_array(lists->n, sizeof *slots);
    uint32_t *places = mem_alloc_array(2 * ((size_t)lists->n + rows->n), sizeof *places);
    fvdb_status status = slots && places ? FVDB_OK : FAIL_MEMORY(diag);
    if (status == FVDB_OK) {
        const ivf_places by_slot = {.lists = places, .seconds = places + rows->n};
        const ivf_places in_order = {.lists = places + 2 * (size_t)rows->n,
                                     .seconds = places + 2 * (size_t)rows->n + lists->n};
        ivf_places_of(lists, rows->n, &by_slot);
        for (uint32_t slot = 0; slot < rows->n; slot++) {
            const uint32_t from = rows->order[slot];
            if (!ivf_has(lists, from)) continue;
            slots[n] = slot;
            in_order.lists[n] = by_slot.lists[from];
            in_order.seconds[n++] = by_slot.seconds[from];
        }
        out->centroids.nlist = lists->centroids.nlist;
        status = ivf_fill(out, slots, &in_order, n, rows->n, store_live(&index->store), diag);
        if (status == FVDB_OK) status = ivf_codes_reserve(out, &index->store, index->graph.first, diag);
    }
    mem_free(slots);
    mem_free(places);
    return status;
}

static fvdb_status run(fvdb_index *index, reordering *rows, const workers *w, fvdb_diag *diag) {
    hnsw graph;
    ivf lists = {0};
    TRY(reordering_prepare(rows, &index->store, diag));
    hnsw_init(&graph, &index->config);
    fvdb_status status = hnsw_renumbered(&index->graph, rows->order, rows->map, &graph, diag);
    if (status == FVDB_OK && index->lists.centroids.nlist) status = renumber_lists(index, rows, &lists, diag);
    if (status == FVDB_OK) {
        store_reorder(&index->store, rows);
        hnsw old = index->graph;
        index->graph = graph;
        graph = old;
        hnsw_code_edges(&index->graph, &index->store, w->pool, NULL);
        if (index->lists.centroids.nlist) {
            ivf_exchange_rows(&index->lists, &lists);
            ivf_codes_fill(&index->lists, &index->store, w->pool);
        }
        index->steps = (graph_steps){0};
        index->slots_epoch++;
    }
    hnsw_free(&graph);
    ivf_free(&lists);
    return status;
}

fvdb_status index_renumber(fvdb_index *index, const uint32_t *order, fvdb_diag *diag) {
    reordering rows;
    const uint32_t n = index->store.n;
    TRY(reordering_alloc(&rows, n, diag));
    fvdb_status status = is_order(index, order, rows.marks)
                             ? FVDB_OK
                             : FAIL(diag, FVDB_ERR_ARGUMENT, "it is no order of the rows behind the settled ones");
    if (status == FVDB_OK) {
        if (n) memcpy(rows.order, order, n * sizeof *order);
        rows.kept = n;
        workers w;
        status = workers_start(index, index->graph.edges.kept || index->lists.n ? FVDB_THREADS_MAX : 1, 0, &w, diag);
        if (status == FVDB_OK) {
            status = run(index, &rows, &w, diag);
            workers_stop(index, &w);
        }
    }
    reordering_free(&rows);
    return status;
}
