/* Rows grow old: lists are trained for them, and they move from the recent to the historical side, some at a time.
 *
 * Training and choosing lists read the index beside searches; installing and moving, under the writer lock, take a moment.
 * In between rows may come and go, but none may change its slot or list: `slots_epoch` tells, and the caller begins
 * again. */
#include "index.h"

/* Rows that are asked for at a training, and how many of their nearest are looked for. */
#define MEASURED_QUERIES 160u
#define MEASURED_K 100u
/* Eighths of a training's time by its end: the iterations, then the measuring. */
#define ITERATIONS_SHARE 5
#define MEASURING_SHARE 6

/* ---- which rows ---- */

static bool is_old(const fvdb_index *index, uint32_t slot, int64_t cutoff_us) {
    return bit_get(store_found(&index->store), slot) && !ivf_has(&index->lists, slot) &&
           timestamps_get(&index->store.times, slot) < cutoff_us;
}

/* ---- how many lists to look at ---- */

typedef struct measuring {
    const store *s;
    const ivf_centroids *c;
    const uint32_t *slots; /* rows the lists are for */
    uint32_t n, queries, k;
    const uint64_t *members; /* the same as a bitmap */
    uint64_t words;
    search_scratch *const *scratch; /* SCAN_QUERIES_MAX a worker */
    const fvdb_control *control;
    /* queries x k: the place of a neighbour's first list among the nearest lists, and that of the nearer of its two. */
    uint32_t *first_ranks, *ranks;
} measuring;

static uint32_t query_slot(const measuring *m, uint32_t query) { return m->slots[(uint64_t)m->n * query / m->queries]; }

/* How many lists are nearer. */
static uint32_t rank_of(const uint64_t *keys, uint32_t nlist, uint64_t key) {
    uint32_t rank = 0;
    for (uint32_t other = 0; other < nlist; other++) rank += keys[other] < key;
    return rank;
}

/* The places of each hit's lists, the query's own row left out. */
static void rank_hits(const measuring *m, uint32_t query, const hit *hits, uint32_t found, uint64_t *keys) {
    const ivf_centroids *c = m->c;
    const store *s = m->s;
    float x[FVDB_DIM_MAX] = {0};
    uint32_t n = 0, *first_ranks = m->first_ranks + (size_t)query * m->k, *ranks = m->ranks + (size_t)query * m->k;
    coded_row(s, query_slot(m, query), x);
    ivf_list_keys(c, s, x, keys);
    for (uint32_t i = 0; i < found && n < m->k; i++) {
        if (hits[i].slot == query_slot(m, query)) continue;
        coded_row(s, hits[i].slot, x);
        const ivf_place place = ivf_place_of(c, s, x);
        first_ranks[n] = ranks[n] = rank_of(keys, c->nlist, keys[place.list]);
        if (place.second != IVF_NO_LIST && keys[place.second] < keys[place.list])
            ranks[n] = rank_of(keys, c->nlist, keys[place.second]);
        n++;
    }
    for (; n < m->k; n++) first_ranks[n] = ranks[n] = FVDB_NO_SLOT;
}

static void measure_item(void *context, uint32_t worker, uint32_t item) {
    const measuring *m = context;
    search_scratch *const *scratch = m->scratch + worker * SCAN_QUERIES_MAX;
    scan scans[SCAN_QUERIES_MAX];
    uint32_t first = item * SCAN_QUERIES_MAX, n = min_u32(SCAN_QUERIES_MAX, m->queries - first);
    float x[FVDB_DIM_MAX];
    for (uint32_t i = 0; i < n; i++) {
        store_get(m->s, query_slot(m, first + i), x);
        scorer_set_vector(&scratch[i]->query, x);
        scans[i] = (scan){.query = &scratch[i]->query, .hits = scratch[i]->hits};
    }
    const fvdb_allowed members = {.words = m->members, .n_words = m->words};
    flat_search(scans, n, m->k + 1, &members, m->control);
    if (control_cancelled(m->control)) return;
    for (uint32_t i = 0; i < n; i++) rank_hits(m, first + i, scans[i].hits, scans[i].found, scratch[i]->room);
}

/* The least number of lists on which so many of the k nearest are, for each recall. */
static void fill_probes(const measuring *m, const uint32_t *ranks, uint32_t probes_of[IVF_KS][IVF_RECALLS],
                        uint32_t *counts) {
    for (uint32_t which = 0; which < IVF_KS; which++) {
        uint64_t total = 0, sum = 0;
        uint32_t probes = 0, k = min_u32(ivf_ks[which], m->k);
        memset(counts, 0, m->c->nlist * sizeof *counts);
        for (uint32_t query = 0; query < m->queries; query++) {
            for (uint32_t i = 0; i < k; i++) {
                uint32_t rank = ranks[(size_t)query * m->k + i];
                if (rank == FVDB_NO_SLOT) continue;
                counts[rank]++;
                total++;
            }
        }
        for (uint32_t i = 0; i < IVF_RECALLS; i++) {
            while (sum * 1000 < total * ivf_recalls[i]) sum += counts[probes++];
            probes_of[which][i] = max_u32(probes, 1);
        }
    }
}

/* Second lists are kept where a default search scores a tenth fewer rows with them: on rows without structure, where the
 * nearest rows are on lists here and there, it scores more. */
static void keep_what_pays(const measuring *m, ivf_centroids *c, uint32_t *counts) {
    uint32_t alone[IVF_KS][IVF_RECALLS];
    fill_probes(m, m->ranks, c->probes, counts);
    fill_probes(m, m->first_ranks, alone, counts);
    /* In tenths of a list. */
    const uint64_t with = (uint64_t)ivf_probes_at(c, c->probes[0], IVF_RECALL_DEFAULT) * (10 + IVF_SECOND_TENTHS);
    const uint64_t without = (uint64_t)ivf_probes_at(c, alone[0], IVF_RECALL_DEFAULT) * 10;
    if (with * 10 <= without * 9) return;
    c->second_limit = 0;
    memcpy(c->probes, alone, sizeof alone);
}

static fvdb_status measure(measuring *m, ivf_centroids *c, const workers *w, fvdb_diag *diag) {
    uint64_t *members = mem_alloc_array(m->words, sizeof *members);
    uint32_t *counts = mem_alloc_array(c->nlist, sizeof *counts);
    m->ranks = mem_alloc_array(2 * (size_t)m->queries * m->k, sizeof *m->ranks);
    bool room = members && counts && m->ranks;
    for (uint32_t i = 0; i < w->n && room; i++)
        room = scratch_reserve_hits(w->scratch[i], m->k + 1) == FVDB_OK &&
               scratch_reserve_room(w->scratch[i], c->nlist * sizeof(uint64_t)) == FVDB_OK;
    if (room) {
        for (uint32_t i = 0; i < m->n; i++) bit_set(members, m->slots[i]);
        m->members = members;
        m->first_ranks = m->ranks + (size_t)m->queries * m->k;
        thread_pool_run(w->pool, measure_item, m, (m->queries + SCAN_QUERIES_MAX - 1) / SCAN_QUERIES_MAX);
        if (!control_cancelled(m->control)) keep_what_pays(m, c, counts);
    }
    mem_free(members);
    mem_free(counts);
    mem_free(m->ranks);
    if (!room) return FAIL_MEMORY(diag);
    return control_cancelled(m->control) ? FAIL(diag, FVDB_ERR_CANCELLED, "cancelled") : FVDB_OK;
}

/* ---- train ---- */

/* Historical rows get their new lists at once; those that will move get theirs when they do. */
static fvdb_status assign_all(fvdb_index *index, ivf *lists, uint32_t *slots, thread_pool *c, fvdb_diag *diag) {
    const store *s = &index->store;
    uint32_t n = 0, *numbers = mem_alloc_array(2 * (size_t)index->lists.n, sizeof *numbers);
    if (!numbers) return FAIL_MEMORY(diag);
    const ivf_places places = {.lists = numbers, .seconds = numbers + index->lists.n};
    for (uint32_t slot = 0; slot < s->n; slot++)
        if (ivf_has(&index->lists, slot)) slots[n++] = slot;
    ivf_assign(&lists->centroids, s, slots, n, c, &places);
    fvdb_status status = ivf_fill(lists, slots, &places, n, s->n, store_live(s), diag);
    mem_free(numbers);
    if (status == FVDB_OK) status = ivf_codes_reserve(lists, s, index->graph.first, diag);
    if (status == FVDB_OK) ivf_codes_fill(lists, s, c);
    return status;
}

static fvdb_status train(fvdb_index *index, uint32_t *slots, uint32_t n, ivf *out, const workers *w,
                         fvdb_control *control, fvdb_diag *diag) {
    const store *s = &index->store;
    progress_range iterations = {control, 0, (int64_t)n * ITERATIONS_SHARE / 8, n, n};
    TRY(ivf_train(s, slots, n, ivf_nlist(n), IVF_ITERATIONS, w->pool, &iterations, &out->centroids, diag));
    TRY(ivf_train_seconds(&out->centroids, s, slots, n, w->pool, diag));
    measuring m = {.s = s,
                   .c = &out->centroids,
                   .slots = slots,
                   .n = n,
                   .queries = min_u32(n, MEASURED_QUERIES),
                   .k = min_u32(n - 1, MEASURED_K),
                   .words = (s->n + 63u) / 64,
                   .scratch = w->scratch,
                   .control = control};
    TRY(measure(&m, &out->centroids, w, diag));
    control_progress(control, (int64_t)n * MEASURING_SHARE / 8, n);
    TRY(assign_all(index, out, slots, w->pool, diag));
    control_progress(control, n, n);
    return FVDB_OK;
}

fvdb_status index_train(fvdb_index *index, int64_t cutoff_us, training *out, fvdb_control *control, fvdb_diag *diag) {
    const store *s = &index->store;
    uint32_t n = 0, *slots = mem_alloc_array(s->n, sizeof *slots);
    if (!slots) return FAIL_MEMORY(diag);
    *out = (training){.slots_epoch = index->slots_epoch};
    for (uint32_t slot = 0; slot < s->n; slot++)
        if (is_old(index, slot, cutoff_us) || (ivf_has(&index->lists, slot) && bit_get(store_live(s), slot)))
            slots[n++] = slot;
    workers w;
    fvdb_status status = n < IVF_TRAIN_ROWS_MIN ? FAIL_AT(diag, FVDB_ERR_TOO_FEW, "too few rows to train lists on", 0,
                                                          IVF_TRAIN_ROWS_MIN, n)
                                                : workers_start(index, FVDB_THREADS_MAX, SCAN_QUERIES_MAX, &w, diag);
    if (status == FVDB_OK) {
        status = train(index, slots, n, &out->lists, &w, control, diag);
        workers_stop(index, &w);
        if (status != FVDB_OK) ivf_free(&out->lists);
    }
    mem_free(slots);
    return status;
}

bool index_install_lists(fvdb_index *index, training *t) {
    const store *s = &index->store;
    bool fresh = t->slots_epoch == index->slots_epoch;
    if (fresh) {
        ivf old = index->lists;
        index->lists = t->lists;
        t->lists = old;
        index->slots_epoch++;
        /* Rows may have been deleted since. */
        index->lists.live = 0;
        for (uint64_t w = 0; w < ivf_words(&index->lists); w++)
            index->lists.live += (uint32_t)__builtin_popcountll(ivf_rows(&index->lists)[w] & store_live(s)[w]);
    }
    ivf_free(&t->lists);
    return fresh;
}

/* ---- migrate ---- */

void migration_free(migration *m) {
    mem_free(m->slots);
    mem_free(m->places.lists);
    mem_free(m->places.seconds);
    mem_free(m->places.errors);
    *m = (migration){0};
}

fvdb_status index_pick(fvdb_index *index, int64_t cutoff_us, uint32_t first, uint32_t most, migration *out,
                       fvdb_diag *diag) {
    const store *s = &index->store;
    *out = (migration){.slots_epoch = index->slots_epoch};
    if (index->lists.centroids.nlist == 0) return FAIL(diag, FVDB_ERR_UNTRAINED, "there are no lists to move rows to");
    if (most > s->n) most = s->n;
    out->slots = mem_alloc_array(most, sizeof *out->slots);
    out->places.lists = mem_alloc_array(most, sizeof *out->places.lists);
    out->places.seconds = mem_alloc_array(most, sizeof *out->places.seconds);
    out->places.errors = mem_alloc_array(most, sizeof *out->places.errors);
    if (!out->slots || !out->places.lists || !out->places.seconds || !out->places.errors) {
        migration_free(out);
        return FAIL_MEMORY(diag);
    }
    for (out->next = max_u32(first, index->graph.first); out->next < s->n && out->n < most; out->next++)
        if (is_old(index, out->next, cutoff_us)) out->slots[out->n++] = out->next;
    if (out->next == s->n) out->next = FVDB_NO_SLOT;
    workers w;
    fvdb_status status = workers_start(index, out->n / 128, 0, &w, diag);
    if (status != FVDB_OK) {
        migration_free(out);
        return status;
    }
    ivf_assign(&index->lists.centroids, s, out->slots, out->n, w.pool, &out->places);
    workers_stop(index, &w);
    return FVDB_OK;
}

fvdb_status index_move(fvdb_index *index, const migration *m, uint32_t *out_moved, bool *stale, fvdb_diag *diag) {
    *out_moved = 0;
    *stale = m->slots_epoch != index->slots_epoch;
    if (*stale || m->n == 0) return FVDB_OK;
    TRY(ivf_reserve(&index->lists, &m->places, m->n, index->store.n, diag));
    for (uint32_t i = 0; i < m->n; i++) {
        if (!bit_get(store_live(&index->store), m->slots[i])) continue;
        ivf_put(&index->lists, m->slots[i], m->places.lists[i], m->places.seconds[i], m->places.errors[i]);
        ++*out_moved;
    }
    index->slots_epoch++;
    return FVDB_OK;
}
