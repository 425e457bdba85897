/* Routing a search: an exact scan, or a walk of the graph and a look at some lists, both on codes, with the best candidates
 * of the two scored exactly.
 *
 * A scan is exact and, for few rows, faster.  Rows that may not be returned make a walk longer: with a share p of rows
 * allowed it looks at about 1/p times as many, so below some share the scan of just the allowed rows wins again.  A
 * walk that still finds fewer than it should is followed by a scan: a search never returns fewer rows than there are.
 * Lists are looked at in greater number for the same reason; recent rows that are too few to walk for are scanned by code.
 * Each way costs about as much as the next where one takes over from the other: no number of rows makes a search slow. */
#include "index.h"

#include <math.h>

/* Links of a pool entry followed, on average: rows a walk scores are about ef x this (measured 590 at ef 34, M 16). */
#define WALK_ROWS_PER_EF 16u
/* Rows a scan gets through while a walk scores two.  Both ways took equally long at 3 to 4 on 100 K x 384 (filters at random
 * and half spaces, ef 64 to 400), at 2 on 40 K, at 1.5 to 2 at k = 101 and at 1.6 to 2.4 on LSA; walks by rows
 * or high planes at 1.2 to 2 (docs/decisions/0023). */
#define SCANNED_PER_TWO_WALKED_CODE 3u
#define SCANNED_PER_TWO_WALKED_PLANES 2u
/* Candidates of a scan by code beyond k, however few a walk would have: fewer lose rows. */
#define SCAN_EXTRA_MIN 16u
/* Rescoring ends where a row would have to be off by so many standard deviations, and by more than all residuals seen lie
 * apart: a heavy tail shows in their range before it shows in their variance.  On sentence embeddings that is after 16 of
 * 64 candidates at k = 10, and loses 0.0002 of recall (3 would lose 0.0008).  Fewer residuals than this say too little. */
#define RESIDUAL_SPREADS 4.0
#define RESIDUALS_MIN 8u
/* The nearest by code are those whose errors made them near: the first few residuals lie on one side.  Who asks for more
 * candidates gets a surer end, after no fewer than one in so many of them. */
#define RESCORED_SHARE 4u
/* Rows that are on their way while one is scored: the lines of the last of them are asked for in between. */
#define RESCORED_AHEAD 2u

typedef struct search_job {
    fvdb_index *index;
    const float *queries;
    uint32_t n_queries;
    const fvdb_search_params *params;
    const fvdb_allowed *asked;   /* rows that the caller allows; NULL: all */
    row_filter filter;           /* the same, and those that are found */
    bool filtered;               /* a walk meets rows that may not be returned */
    uint32_t allowed;            /* rows that may */
    uint32_t historical, recent; /* of them, on each side */
    uint32_t k;                  /* min(k, allowed) */
    uint32_t ef;
    uint32_t nprobe; /* lists to look at */
    bool flat;
    bool by_walk;      /* recent rows are found by a walk, not by a scan of their codes */
    uint32_t together; /* queries that a worker takes at a time, each in a walk of its own */
    const search_outputs *out;
    search_scratch **scratch;
    const fvdb_control *control;
    uint8_t *answered; /* items: 1 once their answers are written; NULL: nobody asks */
} search_job;

/* A search whose caller takes the first answers while threads are at work on the next. */
struct fvdb_batch {
    search_job job;
    fvdb_search_params params;
    fvdb_allowed asked;
    search_outputs out;
    workers workers;
    uint32_t items, taken; /* pieces of work, and those whose answers the caller has */
};

static uint32_t count_rows(const uint64_t *a, const uint64_t *b, const uint64_t *c, uint64_t words) {
    uint64_t n = 0;
    for (uint64_t w = 0; w < words; w++) n += (uint64_t)__builtin_popcountll(a[w] & b[w] & (c ? c[w] : UINT64_MAX));
    return (uint32_t)n;
}

static void count_allowed(search_job *job) {
    const store *s = &job->index->store;
    const ivf *lists = &job->index->lists;
    const uint64_t *allow = job->filter.allow;
    uint64_t words = (s->n + 63u) / 64;
    if (job->filter.allow_words < words) words = job->filter.allow_words;
    job->allowed = allow ? count_rows(store_found(s), allow, NULL, words) : s->found_count;
    if (lists->live) {
        if (ivf_words(lists) < words) words = ivf_words(lists);
        job->historical = allow ? count_rows(store_live(s), allow, ivf_rows(lists), words) : lists->live;
    }
    job->recent = job->allowed - job->historical;
}

/* Rows that a scan by code leaves to be scored exactly. */
static uint32_t scan_candidates(const search_job *job) {
    return max_u32(job->ef, job->k + max_u32(job->k, SCAN_EXTRA_MIN));
}

/* ---- plan ---- */

/* Rows that are scanned while a walk scores two. */
static uint32_t scanned_per_two_walked(const store *s) {
    return store_walks_by(s) == WALK_BY_CODE ? SCANNED_PER_TWO_WALKED_CODE : SCANNED_PER_TWO_WALKED_PLANES;
}

/* What a walk for the recent rows costs, in scanned rows; as it is for no rows or no graph, more than a scan. */
static uint64_t cost_of_walk(const search_job *job) {
    const hnsw *g = &job->index->graph;
    if (job->recent == 0 || hnsw_rows(g) == 0) return UINT64_MAX;
    return (uint64_t)job->ef * WALK_ROWS_PER_EF * hnsw_rows(g) / job->recent *
           scanned_per_two_walked(&job->index->store) / 2;
}

/* Candidates of a walk for k rows where the caller names none. */
static uint32_t default_ef(uint32_t k) { return max_u32(FVDB_EF_DEFAULT_MIN, k + k / 2); }

/* Lists to look at.  With a share p of their rows allowed the nearest ones are on 1 / p times as many; and who asks for more
 * candidates than the default asks for more lists. */
static uint32_t lists_to_probe(const search_job *job) {
    const ivf *lists = &job->index->lists;
    const ivf_centroids *c = &lists->centroids;
    if (job->historical == 0) return 0;
    uint32_t asked = job->params->nprobe;
    if (asked) return min_u32(asked, c->nlist);
    uint64_t nprobe = (uint64_t)ivf_probes(lists, job->k, IVF_RECALL_DEFAULT) * lists->live / job->historical;
    nprobe = nprobe * max_u32(job->ef, default_ef(job->k)) / default_ef(job->k);
    return nprobe < c->nlist ? (uint32_t)nprobe : c->nlist;
}

/* Rows and centroids that the lists cost; a row on two lists counts for each. */
static uint64_t cost_of_lists(const search_job *job) {
    const ivf *lists = &job->index->lists;
    if (job->nprobe == 0) return 0;
    const uint64_t on_lists = (uint64_t)job->historical * (lists->n + lists->n_second) / lists->n;
    return lists->centroids.nlist + job->nprobe * on_lists / lists->centroids.nlist;
}

static void plan_sides(search_job *job) {
    uint64_t walk = cost_of_walk(job);
    job->nprobe = lists_to_probe(job);
    job->by_walk = walk <= job->recent;
    uint64_t recent = job->by_walk ? walk : job->recent;
    /* Too few rows for codes are too few for anything else. */
    bool coded = job->index->store.book.trained_rows > 0;
    job->flat = job->params->exact || job->k == 0 || !coded || (!job->by_walk && !job->nprobe) ||
                job->allowed < recent + cost_of_lists(job);
}

static uint32_t threads_of(const search_job *job) {
    const uint32_t most = job->index->config.threads, asked = job->params->threads;
    return asked ? min_u32(asked, most) : most;
}

/* Whether rows that are named one by one are so few that any other way would cost more than a scan of them.  Counting the bits
 * of all rows to say so may take longer than the scan. */
static bool surely_flat(const search_job *job) {
    const ivf *lists = &job->index->lists;
    const uint32_t asked = job->params->ef_search, ef = asked == FVDB_EF_DEFAULT ? FVDB_EF_DEFAULT_MIN : asked;
    if (!job->asked || !job->asked->slots || job->asked->n_slots >= ef * WALK_ROWS_PER_EF) return false;
    return !lists->live || job->asked->n_slots <= lists->centroids.nlist;
}

static void plan_search(search_job *job) {
    const store *s = &job->index->store;
    job->together = 1;
    if (surely_flat(job)) {
        job->k = min_u32(job->params->k, (uint32_t)job->asked->n_slots);
        job->flat = true;
        return;
    }
    count_allowed(job);
    job->k = min_u32(job->params->k, job->allowed);
    uint32_t ef = job->params->ef_search;
    if (ef == FVDB_EF_DEFAULT) ef = default_ef(job->k);
    job->ef = min_u32(max_u32(ef, job->k), s->n);
    plan_sides(job);
    if (job->flat) {
        uint32_t per_thread = job->n_queries / threads_of(job);
        job->together = min_u32(max_u32(per_thread, 1), SCAN_QUERIES_MAX);
        return;
    }
    /* Rows that only guide take room in the pool too; twice their share is ample, and past it a scan takes over. */
    const uint32_t linked = hnsw_rows(&job->index->graph);
    job->filtered = job->recent < linked;
    uint64_t pool = job->by_walk && job->filtered ? 2 * ((uint64_t)job->ef * linked / job->recent) + 64 : job->ef;
    job->filter.pool_most = (uint32_t)(pool < linked ? pool : linked);
    if (index_moved(job->index)) {
        job->filter.moved = ivf_rows(&job->index->lists);
        job->filter.moved_words = ivf_words(&job->index->lists);
    }
}

/* ---- one query ---- */

/* How far the walk's distances are from exact ones, learned from the rows of this very query: it depends on the data,
 * the metric, the codes and the query. */
typedef struct residuals {
    uint32_t n;
    double sum, squares, least, most;
} residuals;

static void residuals_note(residuals *r, double residual) {
    r->n++;
    r->sum += residual;
    r->squares += residual * residual;
    r->least = r->n == 1 || residual < r->least ? residual : r->least;
    r->most = r->n == 1 || residual > r->most ? residual : r->most;
}

/* Whether a row at this walk distance would have to be off by far more than any row seen to be as near as `exact`. */
static bool surely_farther(const residuals *r, double walk_distance, double exact) {
    double mean = r->sum / r->n, variance = r->squares / r->n - mean * mean, gap = walk_distance - mean - exact;
    return gap > r->most - r->least && gap * gap > RESIDUAL_SPREADS * RESIDUAL_SPREADS * variance;
}

/* Drops the rows from the walk's pool that may not be returned. */
static void keep_allowed(const search_job *job, search_scratch *w) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < w->pool_n; i++)
        if (row_allowed(&job->filter, w->pool[i].node)) w->pool[kept++] = w->pool[i];
    w->pool_n = kept;
}

/* Scores the nearest candidates of the pool exactly, until those left are surely farther than the k best; returns how many
 * were found. */
static uint32_t rescore(const search_job *job, search_scratch *w) {
    uint32_t k = job->k, found = 0;
    residuals seen = {0};
    uint32_t most = w->pool_n, least = max_u32(max_u32(k, RESIDUALS_MIN), most / RESCORED_SHARE);
    for (uint32_t i = 0; i < most && i < RESCORED_AHEAD; i++) {
        scorer_prefetch_exact(&w->query, w->pool[i].node);
        id_map_prefetch_offset(&w->s->ids, w->pool[i].node);
    }
    for (uint32_t i = 0; i < most; i++) {
        const uint32_t next = w->pool[i + RESCORED_AHEAD < most ? i + RESCORED_AHEAD : i].node;
        candidate c = w->pool[i];
        id_map_prefetch_offset(&w->s->ids, next);
        if (i >= least && surely_farther(&seen, c.distance, walk_units(w->s, w->hits[0].distance))) break;
        hit h = {scorer_exact_then(&w->query, c.node, next), c.node};
        residuals_note(&seen, c.distance - walk_units(w->s, h.distance));
        hits_offer(w->s, w->hits, &found, k, h);
    }
    for (uint32_t i = 0; i < found; i++) id_map_prefetch(&w->s->ids, w->hits[i].slot);
    hits_sort(w->s, w->hits, found);
    return found;
}

static void walk_graph(const search_job *job, search_scratch *w) {
    const row_filter *filter = job->filtered ? &job->filter : NULL;
    if (hnsw_has_edges(w->g)) hnsw_walk_edges(w, job->ef, filter);
    else hnsw_walk_level(w, 0, hnsw_descend(w, 0), job->ef, filter);
    if (job->filtered) keep_allowed(job, w);
}

/* Scores the recent rows by code. */
static void scan_recent(const search_job *job, nearest *near) {
    const store *s = &job->index->store;
    const ivf *lists = &job->index->lists;
    uint32_t slots[64], first = job->index->graph.first;
    for (uint64_t w = first / 64; w < (s->n + 63u) / 64; w++) {
        uint64_t bits = store_found(s)[w];
        uint32_t n = 0;
        if (w < ivf_words(lists)) bits &= ~ivf_rows(lists)[w];
        for (; bits; bits &= bits - 1) slots[n++] = (uint32_t)(w * 64) + (uint32_t)__builtin_ctzll(bits);
        nearest_scan(near, slots, n);
    }
}

/* Room for the keys of nearest rows, then for those of lists. */
static size_t scan_room(const search_job *job) {
    return ((size_t)nearest_room(scan_candidates(job)) + ivf_scan_room(job->index->lists.centroids.nlist)) *
           sizeof(uint64_t);
}

/* Adds the nearest of the rows that are scanned by code to the pool. */
static void scan_sides(const search_job *job, search_scratch *w) {
    const fvdb_index *index = job->index;
    nearest near = {.query = &w->query,
                    .edge = &w->edge,
                    .live = job->filter.live,
                    .allow = job->filter.allow,
                    .allow_words = job->filter.allow_words,
                    .keys = w->room,
                    .most = scan_candidates(job),
                    .cut = INFINITY};
    if (job->nprobe) ivf_scan(&index->lists, &near, job->nprobe, near.keys + nearest_room(near.most));
    if (!job->by_walk && job->recent) scan_recent(job, &near);
    nearest_finish(&near);
    w->pool_n = min_u32(w->pool_n, near.most);
    for (uint32_t i = 0; i < near.n; i++)
        scratch_offer(w, near_distance(near.keys[i]), (uint32_t)near.keys[i], near.most);
}

static uint32_t search_sides(const search_job *job, search_scratch *w) {
    w->pool_n = 0;
    if (job->by_walk) walk_graph(job, w);
    if (job->nprobe || !job->by_walk) scan_sides(job, w);
    return rescore(job, w);
}

static void scan_queries(const search_job *job, search_scratch *const *scratch, uint32_t n, uint32_t *found) {
    scan scans[SCAN_QUERIES_MAX];
    for (uint32_t i = 0; i < n; i++) scans[i] = (scan){.query = &scratch[i]->query, .hits = scratch[i]->hits};
    flat_search(scans, n, job->k, job->asked, job->control);
    for (uint32_t i = 0; i < n; i++) found[i] = scans[i].found;
}

static void write_answer(const search_job *job, uint32_t query, const hit *hits, uint32_t found, uint32_t plan) {
    assert(found <= job->k && job->k <= job->params->k);
    uint32_t k = job->params->k, *slots = job->out->slots + (size_t)query * k;
    double *distances = job->out->distances + (size_t)query * k;
    for (uint32_t i = 0; i < k; i++) {
        slots[i] = i < found ? hits[i].slot : FVDB_NO_SLOT;
        distances[i] = i < found ? hits[i].distance : (double)INFINITY;
    }
    job->out->counts[query] = found;
    job->out->plans[query] = plan;
}

static uint32_t plan_of(const search_job *job) {
    if (job->flat) return FVDB_PLAN_FLAT;
    if (!job->nprobe) return FVDB_PLAN_GRAPH;
    return job->by_walk ? FVDB_PLAN_HYBRID : FVDB_PLAN_LISTS;
}

static void search_queries(void *context, uint32_t worker, uint32_t item) {
    search_job *job = context;
    search_scratch *const *scratch = job->scratch + worker * job->together;
    uint32_t first = item * job->together, n = min_u32(job->together, job->n_queries - first);
    uint32_t found[SCAN_QUERIES_MAX] = {0}, plan = plan_of(job);
    if (control_cancelled(job->control)) return;
    if (job->k) {
        for (uint32_t i = 0; i < n; i++)
            scorer_set_vector(&scratch[i]->query, job->queries + (size_t)(first + i) * job->index->store.dim);
        if (!job->flat) found[0] = search_sides(job, scratch[0]);
        if (found[0] < job->k) {
            plan = FVDB_PLAN_FLAT;
            scan_queries(job, scratch, n, found);
        }
    }
    for (uint32_t i = 0; i < n; i++) write_answer(job, first + i, scratch[i]->hits, found[i], plan);
    if (job->answered) __atomic_store_n(&job->answered[item], 1, __ATOMIC_RELEASE);
}

/* ---- ids ---- */

/* The ids of n results from `first` on. */
static fvdb_status write_ids(const store *s, const search_outputs *out, size_t first, size_t n, fvdb_diag *diag) {
    uint64_t at = 0;
    bool fits = true;
    for (size_t i = 0; i < n; i++) {
        const uint32_t slot = out->slots[first + i];
        out->id_offsets[i] = at;
        if (slot == FVDB_NO_SLOT) continue;
        size_t size;
        const uint8_t *id = id_map_get(&s->ids, slot, &size);
        fits = fits && at + size + 1 <= out->id_capacity;
        if (fits) {
            memcpy(out->id_bytes + at, id, size);
            out->id_bytes[at + size] = 0;
        }
        at += size + 1;
    }
    out->id_offsets[n] = at;
    return fits ? FVDB_OK : FAIL_AT(diag, FVDB_ERR_BUFFER, "the ids do not fit", 0, at, out->id_capacity);
}

/* ---- all queries ---- */

static fvdb_status check_queries(const store *s, const float *queries, uint32_t n, fvdb_diag *diag) {
    uint32_t component;
    for (uint32_t i = 0; i < n; i++) {
        fvdb_status status = store_check_vector(s, queries + (size_t)i * s->dim, &component);
        if (status != FVDB_OK) return FAIL_AT(diag, status, status_text(status), i, 0, component);
    }
    return FVDB_OK;
}

/* Memory of one query. */
static fvdb_status reserve(const search_job *job, search_scratch *w) {
    TRY(scratch_reserve_hits(w, job->k));
    if (job->flat) return FVDB_OK;
    TRY(scratch_reserve(w, job->by_walk ? job->index->store.n : 0,
                        max_u32(job->filter.pool_most, scan_candidates(job)) + 1));
    return job->nprobe || !job->by_walk ? scratch_reserve_room(w, scan_room(job)) : FVDB_OK;
}

static fvdb_status begin(search_job *job, workers *w, fvdb_diag *diag) {
    const store *s = &job->index->store;
    TRY(check_queries(s, job->queries, job->n_queries, diag));
    job->filter.live = s->found_count < s->n ? store_found(s) : NULL;
    if (job->asked) {
        job->filter.allow = job->asked->words;
        job->filter.allow_words = job->asked->n_words;
    }
    plan_search(job);
    TRY(workers_start(job->index, min_u32(job->n_queries, threads_of(job)), job->together, w, diag));
    job->scratch = w->scratch;
    for (uint32_t i = 0; i < w->n; i++) {
        if (reserve(job, w->scratch[i]) == FVDB_OK) continue;
        workers_stop(job->index, w);
        return FAIL_MEMORY(diag);
    }
    return FVDB_OK;
}

static uint32_t items_of(const search_job *job) { return (job->n_queries + job->together - 1) / job->together; }

static fvdb_status ended(const search_job *job, fvdb_diag *diag) {
    return control_cancelled(job->control) ? FAIL(diag, FVDB_ERR_CANCELLED, "cancelled") : FVDB_OK;
}

fvdb_status index_search(fvdb_index *index, const float *queries, uint32_t n_queries, const fvdb_search_params *params,
                         const fvdb_allowed *allowed, const search_outputs *out, fvdb_control *control,
                         fvdb_diag *diag) {
    search_job job = {.index = index,
                      .queries = queries,
                      .n_queries = n_queries,
                      .params = params,
                      .asked = allowed,
                      .out = out,
                      .control = control};
    workers w;
    TRY(begin(&job, &w, diag));
    thread_pool_run(w.pool, search_queries, &job, items_of(&job));
    workers_stop(index, &w);
    TRY(ended(&job, diag));
    return out->id_offsets ? write_ids(&index->store, out, 0, (size_t)n_queries * params->k, diag) : FVDB_OK;
}

/* ---- the first answers while the next are looked for ---- */

fvdb_status index_search_start(fvdb_index *index, const float *queries, uint32_t n_queries,
                               const fvdb_search_params *params, const fvdb_allowed *allowed, const search_outputs *out,
                               fvdb_control *control, fvdb_batch **batch, fvdb_diag *diag) {
    fvdb_batch *b = mem_alloc_array(1, sizeof *b);
    if (!b) return FAIL_MEMORY(diag);
    b->params = *params;
    b->out = *out;
    if (allowed) b->asked = *allowed;
    b->job = (search_job){.index = index,
                          .queries = queries,
                          .n_queries = n_queries,
                          .params = &b->params,
                          .asked = allowed ? &b->asked : NULL,
                          .out = &b->out,
                          .control = control};
    fvdb_status status = begin(&b->job, &b->workers, diag);
    if (status != FVDB_OK) {
        mem_free(b);
        return status;
    }
    b->items = items_of(&b->job);
    b->job.answered = mem_alloc_array(max_u32(b->items, 1), 1);
    if (!b->job.answered) {
        index_search_end(b);
        return FAIL_MEMORY(diag);
    }
    thread_pool_begin(b->workers.pool, search_queries, &b->job, b->items);
    *batch = b;
    return FVDB_OK;
}

/* Answers that the caller takes at once: a call of it costs as much as some of them, so no few of them; but at the end, when
 * nothing is left to look for, nobody else has anything to do. */
static uint32_t enough(const fvdb_batch *b) {
    const uint32_t left = b->items - b->taken, most = FVDB_BATCH_MOST / 2 / b->job.together;
    return min_u32(left, max_u32(min_u32(left / 8, most), max_u32(8 / b->job.together, 1)));
}

static uint32_t answered(const fvdb_batch *b) {
    const uint32_t most = min_u32(b->items - b->taken, FVDB_BATCH_MOST / b->job.together);
    uint32_t n = 0;
    while (n < most && __atomic_load_n(&b->job.answered[b->taken + n], __ATOMIC_ACQUIRE)) n++;
    return n;
}

fvdb_status index_search_next(fvdb_batch *b, uint8_t *id_bytes, uint64_t id_capacity, uint64_t *id_offsets,
                              uint32_t *out_n, fvdb_diag *diag) {
    uint32_t ready;
    while ((ready = answered(b)) < enough(b) && thread_pool_take(b->workers.pool)) {}
    if (ready < enough(b)) {
        thread_pool_wait(b->workers.pool);
        ready = answered(b);
    }
    TRY(ended(&b->job, diag));
    const uint32_t first = b->taken * b->job.together;
    const uint32_t n = min_u32(ready * b->job.together, b->job.n_queries - first);
    search_outputs out = {
        .slots = b->out.slots, .id_bytes = id_bytes, .id_capacity = id_capacity, .id_offsets = id_offsets};
    const size_t k = b->params.k;
    TRY(write_ids(&b->job.index->store, &out, first * k, n * k, diag));
    b->taken += ready;
    *out_n = n;
    return FVDB_OK;
}

fvdb_index *index_search_end(fvdb_batch *b) {
    fvdb_index *index = b->job.index;
    thread_pool_drop(b->workers.pool);
    workers_stop(index, &b->workers);
    mem_free(b->job.answered);
    mem_free(b);
    return index;
}
