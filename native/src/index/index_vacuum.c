/* Vacuum: tombstones leave for good, and rows that moved to lists leave the graph.
 *
 * Historical rows come first, list by list, then recent ones in their old order: a list is one stretch of memory and of
 * saved parts, and the graph begins behind them.
 * The graph, where few of its rows go, is repaired around them (hnsw_repair.c) beside the index.  Many: what is left would
 * be mostly patches, so the rows that stay are coded and linked anew in their new places; should that fail, they go back.
 * Either way all that can fail comes before the commit, which cannot. */
#include "index.h"

/* A new graph when more than 1 row in 3 goes: from there on a repair touches every row anyway. */
#define REBUILD_SHARE 3u

typedef struct vacuum {
    fvdb_index *index;
    workers *workers;
    fvdb_control *control;
    reordering rows;     /* kept rows: historical ones, then recent ones */
    uint32_t historical; /* of the kept rows */
    ivf lists;           /* as they will be, but for the centroids; then as they were */
    /* The new ones, and the old ones once these are in place. */
    hnsw graph;
    codebook book;
} vacuum;

static uint32_t recent_rows(const vacuum *v) { return v->rows.kept - v->historical; }

/* ---- 1. the new order ---- */

uint32_t index_order(const fvdb_index *index, uint32_t *order) {
    const store *s = &index->store;
    const ivf *lists = &index->lists;
    uint32_t n = 0, gone = s->n;
    for (uint32_t list = 0; list < lists->centroids.nlist; list++)
        for (uint32_t i = 0; i < lists->lists[list].n; i++)
            if (bit_get(store_live(s), lists->lists[list].slots[i])) order[n++] = lists->lists[list].slots[i];
    const uint32_t historical = n;
    for (uint32_t slot = 0; slot < s->n; slot++) {
        if (!bit_get(store_live(s), slot)) order[--gone] = slot;
        else if (!ivf_has(lists, slot)) order[n++] = slot;
    }
    return historical;
}

static bool is_in_order(const vacuum *v) {
    for (uint32_t slot = 0; slot < v->rows.n; slot++)
        if (v->rows.order[slot] != slot) return false;
    return v->rows.kept == v->rows.n && v->historical == v->index->graph.first;
}

/* ---- 2. lists ---- */

/* Slots 0 .. historical - 1, in the order of their lists. */
static fvdb_status prepare_lists(vacuum *v, fvdb_diag *diag) {
    const fvdb_index *index = v->index;
    const store *s = &index->store;
    if (index->lists.centroids.nlist == 0) return FVDB_OK;
    const uint32_t n = v->historical;
    uint32_t *slots = mem_alloc_array(n, sizeof *slots);
    uint32_t *places = mem_alloc_array(2 * ((size_t)n + s->n), sizeof *places);
    uint64_t *live = mem_alloc_array(n / 64 + 1, sizeof *live);
    fvdb_status status = slots && places && live ? FVDB_OK : FAIL_MEMORY(diag);
    if (status == FVDB_OK) {
        const ivf_places before = {.lists = places, .seconds = places + s->n};
        const ivf_places after = {.lists = places + 2 * (size_t)s->n, .seconds = places + 2 * (size_t)s->n + n};
        ivf_places_of(&index->lists, s->n, &before);
        for (uint32_t slot = 0; slot < n; slot++) {
            slots[slot] = slot;
            after.lists[slot] = before.lists[v->rows.order[slot]];
            after.seconds[slot] = before.seconds[v->rows.order[slot]];
            bit_set(live, slot);
        }
        v->lists.centroids.nlist = index->lists.centroids.nlist;
        status = ivf_fill(&v->lists, slots, &after, n, n, live, diag);
        if (status == FVDB_OK) status = ivf_codes_reserve(&v->lists, s, n, diag);
    }
    mem_free(slots);
    mem_free(places);
    mem_free(live);
    return status;
}

static void install_lists(vacuum *v) {
    ivf *lists = &v->index->lists;
    if (v->rows.kept == 0) { /* an empty index begins anew */
        ivf_free(lists);
        return;
    }
    ivf_exchange_rows(lists, &v->lists);
    ivf_codes_fill(lists, &v->index->store, v->workers->pool);
}

/* ---- 3. the graph ---- */

static void exchange_graphs(vacuum *v) {
    hnsw swap = v->index->graph;
    v->index->graph = v->graph;
    v->graph = swap;
}

static void exchange_books(vacuum *v) {
    codebook swap = v->index->store.book;
    v->index->store.book = v->book;
    v->book = swap;
}

static bool repairs(const vacuum *v) {
    uint32_t linked = hnsw_rows(&v->index->graph), recent = recent_rows(v);
    return linked && recent >= INDEX_GRAPH_ROWS_MIN && v->index->store.found_count >= CODES_FIRST_ROWS &&
           linked - recent <= linked / REBUILD_SHARE;
}

/* A graph of the recent rows, beside the old one and under their new slots. */
static fvdb_status repair(vacuum *v, fvdb_diag *diag) {
    fvdb_index *index = v->index;
    uint32_t n = index->store.n, *map = mem_alloc_array(n, sizeof *map);
    if (!map) return FAIL_MEMORY(diag);
    for (uint32_t slot = 0; slot < n; slot++) {
        uint32_t to = v->rows.map[slot];
        map[slot] = to >= v->historical && to < v->rows.kept ? to : FVDB_NO_SLOT;
    }
    fvdb_status status = hnsw_without(&index->graph, &index->store, map, v->rows.kept, v->workers->scratch,
                                      v->workers->pool, v->control, &v->graph, diag);
    mem_free(map);
    return status;
}

/* Codes for the rows as they stand now, trained as a build of them would have been last; none for few rows. */
static fvdb_status code_anew(vacuum *v, fvdb_diag *diag) {
    store *s = &v->index->store;
    uint64_t count = CODES_FIRST_ROWS;
    while (count * 8 <= store_with_vector(s)) count *= 8;
    const uint32_t rows = store_rows_with_vector(s, count);
    if (rows != FVDB_NO_SLOT) TRY(codes_train(s, rows, &v->book, v->workers->pool, diag));
    exchange_books(v);
    codes_encode(s, 0, s->n, v->workers->pool);
    if (rows == FVDB_NO_SLOT) return FVDB_OK;
    const fvdb_status status = codes_judge(s, rows, v->workers->pool, diag);
    if (status != FVDB_OK) exchange_books(v);
    return status;
}

static fvdb_status link_anew(vacuum *v, fvdb_diag *diag) {
    store *s = &v->index->store;
    hnsw *g = &v->index->graph;
    const workers *w = v->workers;
    const uint32_t rows = recent_rows(v);
    if (rows < INDEX_GRAPH_ROWS_MIN || s->book.trained_rows == 0) return FVDB_OK;
    progress_range linking = {v->control, 0, rows / 2, rows, rows}, refining = {v->control, rows / 2, rows, rows, rows};
    hnsw_undo undo; /* of nothing: a graph that fails is thrown away */
    TRY(hnsw_undo_begin(&undo, g, diag));
    fvdb_status status = hnsw_link(g, s, s->n, w->scratch, w->pool, &undo, &linking, diag);
    if (status == FVDB_OK) status = hnsw_refine(g, s, w->scratch, w->pool, &undo, &refining, diag);
    hnsw_undo_free(&undo);
    return status;
}

/* Everything in its new place; on failure it is back in the old one. */
static fvdb_status rebuild(vacuum *v, fvdb_diag *diag) {
    store *s = &v->index->store;
    store_reorder(s, &v->rows);
    fvdb_status status = code_anew(v, diag);
    if (status == FVDB_OK) {
        exchange_graphs(v); /* walks look at the index's own */
        status = link_anew(v, diag);
        if (status == FVDB_OK) return FVDB_OK;
        exchange_graphs(v);
        exchange_books(v);
    }
    store_reorder_back(s, &v->rows);
    codes_encode(s, 0, s->n, v->workers->pool);
    return status;
}

/* ---- all of it ---- */

static fvdb_status run(vacuum *v, fvdb_diag *diag) {
    fvdb_index *index = v->index;
    TRY(reordering_prepare(&v->rows, &index->store, diag));
    TRY(prepare_lists(v, diag));
    v->graph.first = v->graph.n = v->historical;
    if (repairs(v)) {
        TRY(repair(v, diag));
        store_reorder(&index->store, &v->rows);
        exchange_graphs(v);
    } else {
        TRY(rebuild(v, diag));
    }
    store_reordered(&index->store);
    hnsw_code_edges(&index->graph, &index->store, v->workers->pool, NULL); /* there is no way back */
    if (index->lists.centroids.nlist) install_lists(v);
    assert(index->store.n == index->store.live_count && index_moved(index) == 0);
    index->steps = (graph_steps){0};
    index->slots_epoch++;
    return FVDB_OK;
}

fvdb_status index_vacuum(fvdb_index *index, uint32_t *out_map, fvdb_control *control, fvdb_diag *diag) {
    workers w;
    vacuum v = {.index = index, .workers = &w, .control = control};
    uint32_t n = index->store.n;
    TRY(reordering_alloc(&v.rows, n, diag));
    v.historical = index_order(index, v.rows.order);
    v.rows.kept = index->store.live_count;
    for (uint32_t slot = 0; slot < n; slot++) out_map[v.rows.order[slot]] = slot < v.rows.kept ? slot : FVDB_NO_SLOT;
    fvdb_status status = FVDB_OK;
    if (!is_in_order(&v)) {
        status = workers_start(index, FVDB_THREADS_MAX, 1, &w, diag);
        if (status == FVDB_OK) {
            hnsw_init(&v.graph, &index->config);
            status = run(&v, diag);
            hnsw_free(&v.graph); /* the old one, or what became of a new one */
            codebook_free(&v.book);
            ivf_free(&v.lists);
            workers_stop(index, &w);
        }
    }
    reordering_free(&v.rows);
    return status;
}
