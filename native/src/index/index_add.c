/* Adding rows: check all, resolve ids, append, link, and only then make visible.
 *
 * Everything that can fail comes before the commit, which cannot: until then new rows are not live, their ids are not
 * linked, and what linking changed in older rows is written down to be taken back. */
#include "index.h"

#define INCOMING_ROWS_PER_ITEM 512u

/* ---- 1. check ---- */

typedef struct check_job {
    const store *s;
    const fvdb_rows *rows;
    uint64_t first_bad; /* row << 32 | component, atomic minimum; UINT64_MAX: none */
} check_job;

/* One form only, so that equal rows have equal bytes. */
static fvdb_status check_zeros(const store *s, const float *x, uint32_t *component) {
    for (uint32_t d = 0; d < s->dim; d++) {
        uint32_t bits;
        memcpy(&bits, &x[d], sizeof bits);
        *component = d;
        if (bits) return FVDB_ERR_ARGUMENT;
    }
    return FVDB_OK;
}

static fvdb_status check_row(const store *s, const fvdb_rows *rows, uint32_t i, uint32_t *component) {
    uint64_t at = rows->id_offsets[i], end = rows->id_offsets[i + 1];
    *component = 0;
    if (end < at || !id_valid(rows->id_bytes + at, (size_t)(end - at))) return FVDB_ERR_ID;
    if (rows->vectorless && rows->vectorless[i]) return check_zeros(s, rows->vectors + (size_t)i * s->dim, component);
    return store_check_vector(s, rows->vectors + (size_t)i * s->dim, component);
}

static void check_item(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    check_job *job = context;
    uint32_t end = min_u32(job->rows->n, (item + 1) * INCOMING_ROWS_PER_ITEM), component;
    for (uint32_t i = item * INCOMING_ROWS_PER_ITEM; i < end; i++) {
        if (check_row(job->s, job->rows, i, &component) == FVDB_OK) continue;
        uint64_t bad = (uint64_t)i << 32 | component, seen = __atomic_load_n(&job->first_bad, __ATOMIC_RELAXED);
        while (bad < seen &&
               !__atomic_compare_exchange_n(&job->first_bad, &seen, bad, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
        return;
    }
}

/* The first bad row is reported, whichever thread met one first. */
static fvdb_status check_rows(const store *s, const fvdb_rows *rows, thread_pool *c, fvdb_diag *diag) {
    check_job job = {s, rows, UINT64_MAX};
    thread_pool_run(c, check_item, &job, (rows->n + INCOMING_ROWS_PER_ITEM - 1) / INCOMING_ROWS_PER_ITEM);
    if (job.first_bad == UINT64_MAX) return FVDB_OK;
    uint32_t row = (uint32_t)(job.first_bad >> 32), component;
    fvdb_status status = check_row(s, rows, row, &component);
    if (status == FVDB_ERR_ID)
        return FAIL_AT(diag, status, "an id is empty, too long or not UTF-8", row, FVDB_ID_BYTES_MAX,
                       rows->id_offsets[row + 1] - rows->id_offsets[row]);
    return FAIL_AT(diag, status, status_text(status), row, 0, component);
}

/* ---- 2. resolve ids ---- */

typedef struct plan {
    uint32_t *picked; /* rows of the call that will be added */
    uint32_t n;
    uint64_t id_bytes;
    uint32_t *replaced; /* the caller's array */
} plan;

/* The same id twice in one call: an own small table, since the index's table must not change yet. With `replace` the last
 * row of an id counts, with `skip` the first; `out_slots` of the others is NO_SLOT from here on, that of the rest is 0. */
static fvdb_status check_duplicates(const fvdb_rows *rows, uint32_t on_conflict, uint32_t *out_slots, fvdb_diag *diag) {
    id_map seen;
    id_map_init(&seen, 0);
    fvdb_status status = id_map_reserve(&seen, rows->n, rows->id_offsets[rows->n] - rows->id_offsets[0], diag);
    for (uint32_t place = 0; place < rows->n && status == FVDB_OK; place++) {
        const bool backwards = on_conflict == FVDB_ON_CONFLICT_REPLACE; /* so that the row met first is the last one */
        const uint32_t i = backwards ? rows->n - 1 - place : place;
        const uint8_t *id = rows->id_bytes + rows->id_offsets[i];
        size_t size = (size_t)(rows->id_offsets[i + 1] - rows->id_offsets[i]);
        uint32_t earlier = id_map_find(&seen, id, size);
        out_slots[i] = earlier == FVDB_NO_SLOT ? 0 : FVDB_NO_SLOT;
        if (earlier != FVDB_NO_SLOT && on_conflict == FVDB_ON_CONFLICT_ERROR)
            status = FAIL_AT(diag, FVDB_ERR_DUPLICATE_ID, "the same id stands twice in the call", i, 0, earlier);
        id_map_append(&seen, id, size);
        if (earlier == FVDB_NO_SLOT) id_map_link(&seen, place);
    }
    id_map_free(&seen);
    return status;
}

static fvdb_status resolve_ids(const store *s, const fvdb_rows *rows, uint32_t on_conflict, const uint32_t *out_slots,
                               plan *p, fvdb_diag *diag) {
    for (uint32_t i = 0; i < rows->n; i++) {
        size_t size = (size_t)(rows->id_offsets[i + 1] - rows->id_offsets[i]);
        p->replaced[i] = FVDB_NO_SLOT;
        if (out_slots[i] == FVDB_NO_SLOT) continue; /* another row of the call has its id, and counts */
        uint32_t slot = id_map_find(&s->ids, rows->id_bytes + rows->id_offsets[i], size);
        p->replaced[i] = slot;
        if (slot != FVDB_NO_SLOT && on_conflict == FVDB_ON_CONFLICT_ERROR)
            return FAIL_AT(diag, FVDB_ERR_DUPLICATE_ID, "the id is live already", i, 0, UINT64_MAX);
        if (slot != FVDB_NO_SLOT && on_conflict == FVDB_ON_CONFLICT_SKIP) continue;
        p->picked[p->n++] = i;
        p->id_bytes += size;
    }
    if (p->n > FVDB_ROWS_MAX - s->n)
        return FAIL_AT(diag, FVDB_ERR_TOO_MANY, "too many rows", 0, FVDB_ROWS_MAX, (uint64_t)s->n + p->n);
    return FVDB_OK;
}

/* ---- 3. link ---- */

/* What a failed add takes back. */
typedef struct add_undo {
    uint32_t rows;
    hnsw_undo graph;
    codebook book; /* the one in use before, once retrained */
    bool retrained, refined;
} add_undo;

/* Eighths of the time of a bulk add that its second pass takes. */
#define REFINE_SHARE 3

/* Codes are trained as soon as the store holds the rows for it, and rows are linked in between: what an index becomes
 * depends on its rows and their order alone, not on where one call ended and the next began.  But for the second pass: it
 * follows a change that at least doubles the rows, so that it never costs more than the change. */
static fvdb_status link_rows(fvdb_index *index, bool for_lists, workers *w, add_undo *undo, fvdb_control *control,
                             fvdb_diag *diag) {
    store *s = &index->store;
    hnsw *g = &index->graph;
    const uint32_t start = g->n, total = s->n - start, recent = s->n - g->first;
    const bool refines = !for_lists && index_refines(hnsw_rows(g), recent);
    undo->refined = refines;
    int64_t linked = refines ? total - (int64_t)total * REFINE_SHARE / 8 : total;
    for (;;) {
        const uint32_t due = store_rows_with_vector(s, codes_next_training(s->book.trained_rows));
        const uint32_t end = min_u32(s->n, due);
        if (!for_lists && s->book.trained_rows && g->n < end && end - g->first >= INDEX_GRAPH_ROWS_MIN) {
            progress_range linking = {control, linked * (g->n - start) / total, linked * (end - start) / total, total,
                                      end - g->n};
            TRY(hnsw_link(g, s, end, w->scratch, w->pool, &undo->graph, &linking, diag));
        }
        if (due == FVDB_NO_SLOT) break;
        codebook trained;
        TRY(codes_train(s, due, &trained, w->pool, diag));
        if (undo->retrained) codebook_free(&s->book);
        else undo->book = s->book;
        undo->retrained = true;
        s->book = trained;
        TRY(store_reserve(s, s->n, 0, diag));
        codes_encode(s, 0, s->n, w->pool);
        TRY(codes_judge(s, due, w->pool, diag));
    }
    progress_range refining = {control, linked, total, total, hnsw_rows(g)};
    return refines ? hnsw_refine(g, s, w->scratch, w->pool, &undo->graph, &refining, diag) : FVDB_OK;
}

static void take_back(fvdb_index *index, add_undo *undo, thread_pool *c) {
    store *s = &index->store;
    hnsw_undo_apply(&undo->graph, &index->graph);
    if (undo->retrained) {
        codebook_free(&s->book);
        s->book = undo->book;
    }
    store_truncate(s, undo->rows);
    if (undo->retrained) codes_encode(s, 0, s->n, c);
    hnsw_code_edges(&index->graph, s, c, NULL);
}

/* ---- 4. commit: cannot fail ---- */

static void commit(fvdb_index *index, uint32_t first, const plan *p, uint32_t n, uint32_t *out_slots) {
    for (uint32_t i = 0; i < n; i++) out_slots[i] = FVDB_NO_SLOT;
    for (uint32_t i = 0; i < p->n; i++) {
        uint32_t row = p->picked[i];
        out_slots[row] = first + i;
        if (p->replaced[row] != FVDB_NO_SLOT) index_tombstone(index, p->replaced[row]);
        store_make_live(&index->store, first + i);
    }
    /* A row left out replaced nothing. */
    for (uint32_t i = 0; i < n; i++)
        if (out_slots[i] == FVDB_NO_SLOT) p->replaced[i] = FVDB_NO_SLOT;
}

/* A step may only link rows, behind a graph that is stored. */
static void note_step(graph_steps *steps, const hnsw *g, bool only_linked) {
    const uint32_t stored = steps->stored;
    const bool worth_it =
        stored && only_linked && steps->n < FVDB_STEPS_MAX && g->n - stored <= (stored - g->first) / INDEX_STEP_SHARE;
    if (worth_it) steps->ends[steps->n++] = g->n;
    else *steps = (graph_steps){0};
}

fvdb_status index_repeat_steps(fvdb_index *index, const uint32_t *steps, uint32_t n, fvdb_control *control,
                               fvdb_diag *diag) {
    hnsw *g = &index->graph;
    workers w;
    hnsw_undo undo; /* of nothing: a load that fails is thrown away */
    index->steps = (graph_steps){.stored = hnsw_rows(g) ? g->n : 0, .n = n};
    for (uint32_t i = 0; i < n; i++) index->steps.ends[i] = steps[i];
    if (n == 0 && !g->edges.kept) return FVDB_OK;
    TRY(workers_start(index, FVDB_THREADS_MAX, 1, &w, diag));
    fvdb_status status = hnsw_undo_begin(&undo, g, diag);
    for (uint32_t i = 0; i < n && status == FVDB_OK; i++) {
        progress_range linking = {control, 0, 0, 0, steps[i] - g->n};
        status = hnsw_link(g, &index->store, steps[i], w.scratch, w.pool, &undo, &linking, diag);
    }
    if (status == FVDB_OK && !hnsw_code_edges(g, &index->store, w.pool, control))
        status = FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
    hnsw_undo_free(&undo);
    workers_stop(index, &w);
    return status;
}

static fvdb_status append_and_link(fvdb_index *index, const fvdb_rows *rows, const plan *p, workers *w,
                                   fvdb_control *control, fvdb_diag *diag) {
    store *s = &index->store;
    add_undo undo = {.rows = s->n};
    TRY(hnsw_undo_begin(&undo.graph, &index->graph, diag));
    fvdb_status status = store_append(s, rows, p->picked, p->n, p->id_bytes, w->pool, diag);
    if (status == FVDB_OK) {
        codes_encode(s, undo.rows, s->n, w->pool);
        status = link_rows(index, rows->for_lists != 0, w, &undo, control, diag);
        if (status == FVDB_OK && !hnsw_code_edges(&index->graph, s, w->pool, control))
            status = FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
        if (status != FVDB_OK) take_back(index, &undo, w->pool);
        else note_step(&index->steps, &index->graph, !undo.retrained && !undo.refined);
        if (status == FVDB_OK && undo.retrained) codebook_free(&undo.book);
    }
    hnsw_undo_free(&undo.graph);
    return status;
}

fvdb_status index_add(fvdb_index *index, const fvdb_rows *rows, uint32_t on_conflict, uint32_t *out_slots,
                      uint32_t *out_replaced, fvdb_control *control, fvdb_diag *diag) {
    store *s = &index->store;
    plan p = {.picked = mem_alloc_array(rows->n, sizeof(uint32_t)), .replaced = out_replaced};
    if (!p.picked) return FAIL_MEMORY(diag);
    workers w;
    /* Below some tens of rows a thread costs more than it brings. */
    fvdb_status status = workers_start(index, rows->n / 32, 1, &w, diag);
    if (status == FVDB_OK) {
        uint32_t first = s->n;
        status = check_rows(s, rows, w.pool, diag);
        if (status == FVDB_OK) status = check_duplicates(rows, on_conflict, out_slots, diag);
        if (status == FVDB_OK) status = resolve_ids(s, rows, on_conflict, out_slots, &p, diag);
        if (status == FVDB_OK && control_cancelled(control)) status = FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
        if (status == FVDB_OK && p.n) status = append_and_link(index, rows, &p, &w, control, diag);
        if (status == FVDB_OK) {
            commit(index, first, &p, rows->n, out_slots);
            control_progress(control, rows->n, rows->n);
        }
        workers_stop(index, &w);
    }
    mem_free(p.picked);
    return status;
}
