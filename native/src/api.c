/* ABI entry points: check the arguments and the state of the index, take the lock, delegate, return a status.  Loops that
 * only copy rows out or find ids stand here; whatever decides something is in index/ and format/. */
#include "format/format.h"
#include "index/index.h"
#include "metadata/metadata.h"

uint32_t fvdb_abi_version(void) { return FVDB_ABI_VERSION; }

size_t fvdb_struct_size(const char *name) {
    static const struct {
        const char *name;
        size_t size;
    } structs[] = {
        {"fvdb_diag", sizeof(fvdb_diag)},
        {"fvdb_control", sizeof(fvdb_control)},
        {"fvdb_config", sizeof(fvdb_config)},
        {"fvdb_rows", sizeof(fvdb_rows)},
        {"fvdb_stats", sizeof(fvdb_stats)},
        {"fvdb_search_params", sizeof(fvdb_search_params)},
        {"fvdb_part", sizeof(fvdb_part)},
        {"fvdb_allowed", sizeof(fvdb_allowed)},
        {"fvdb_answer", sizeof(fvdb_answer)},
        {"fvdb_load", sizeof(fvdb_load)},
        {"fvdb_step", sizeof(fvdb_step)},
        {"fvdb_field", sizeof(fvdb_field)},
        {"fvdb_cells", sizeof(fvdb_cells)},
        {"fvdb_text_config", sizeof(fvdb_text_config)},
        {"fvdb_text_rows", sizeof(fvdb_text_rows)},
        {"fvdb_text_stats", sizeof(fvdb_text_stats)},
        {"fvdb_text_term", sizeof(fvdb_text_term)},
        {"fvdb_text_clause", sizeof(fvdb_text_clause)},
        {"fvdb_text_totals", sizeof(fvdb_text_totals)},
        {"fvdb_text_query", sizeof(fvdb_text_query)},
    };
    for (size_t i = 0; i < sizeof structs / sizeof *structs; i++)
        if (strcmp(structs[i].name, name) == 0) return structs[i].size;
    return 0;
}

const char *fvdb_kernels(void) {
    const kernel_table *kernels = kernels_get();
    return kernels ? kernels->name : "none";
}

const char *fvdb_status_text(uint32_t status) { return status_text((fvdb_status)status); }

void fvdb_trim(void) { mem_trim(); }

void fvdb_trim_thread(void) { mem_trim_thread(); }

/* ---- create and free ---- */

static fvdb_status check_range(uint32_t value, uint32_t low, uint32_t high, const char *message, fvdb_diag *diag) {
    if (value >= low && value <= high) return FVDB_OK;
    return FAIL_AT(diag, FVDB_ERR_ARGUMENT, message, 0, value < low ? low : high, value);
}

static fvdb_status check_config(const fvdb_config *c, fvdb_diag *diag) {
    TRY(check_range(c->dim, 1, FVDB_DIM_MAX, "dim is out of range", diag));
    TRY(check_range(c->metric, FVDB_METRIC_COSINE, FVDB_METRIC_DOT, "unknown metric", diag));
    TRY(check_range(c->memory, FVDB_MEMORY_DEFAULT, FVDB_MEMORY_FAST, "unknown memory setting", diag));
    TRY(check_range(c->M, FVDB_M_MIN, FVDB_M_MAX, "M is out of range", diag));
    TRY(check_range(c->ef_construction, 1, FVDB_EF_MAX, "ef_construction is out of range", diag));
    return check_range(c->threads, 1, FVDB_THREADS_MAX, "threads is out of range", diag);
}

fvdb_status fvdb_create(const fvdb_config *config, fvdb_index **out, fvdb_diag *diag) {
    TRY(check_config(config, diag));
    return index_create(config, out, diag);
}

void fvdb_free(fvdb_index *index) {
    if (index) format_load_abandon(index);
    index_free(index);
}

uint64_t fvdb_estimate_bytes(const fvdb_config *config, uint64_t rows, uint64_t graph_rows, uint64_t historical,
                             uint64_t id_bytes) {
    return check_config(config, NULL) == FVDB_OK ? index_estimate(config, rows, graph_rows, historical, id_bytes) : 0;
}

uint64_t fvdb_estimate_work(const fvdb_config *config, uint32_t kind, uint64_t rows, uint64_t graph_rows,
                            uint64_t historical, uint64_t added, uint64_t id_bytes) {
    const index_work work = {kind, rows, graph_rows, historical, added, id_bytes};
    const bool possible = kind <= FVDB_WORK_REORDER && graph_rows <= rows && added <= graph_rows;
    return possible && check_config(config, NULL) == FVDB_OK ? index_scratch(config, &work) : 0;
}

/* ---- the states of an index: which calls it answers ---- */

/* States that answer a call, one bit each; the public header says the same, entry by entry. */
#define WHOLE (1u << INDEX_WHOLE)
#define LOADING (1u << INDEX_LOADING)
#define LAZY (1u << INDEX_LAZY)

/* Caller holds the lock. */
static fvdb_status check_state(const fvdb_index *index, uint32_t states, fvdb_diag *diag) {
    static const char *const refusals[] = {
        [INDEX_WHOLE] = "the index is neither being loaded nor loaded lazily",
        [INDEX_LOADING] = "the index is still being loaded",
        [INDEX_LAZY] = "the index was loaded lazily, without the vectors and the graph that this call needs",
        [INDEX_BROKEN] = "the index was left unusable by a load that failed",
    };
    index_assert(index);
    if (states >> index->state & 1) return FVDB_OK;
    return FAIL(diag, FVDB_ERR_ARGUMENT, refusals[index->state]);
}

/* Takes the reader lock for a call that these states answer; in another state the call is refused and the lock released.
 * Every entry that takes an index begins with one of these two: memory safety never depends on the caller's order. */
static fvdb_status enter_read(fvdb_index *index, uint32_t states, fvdb_diag *diag) {
    if (!index) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no index");
    rwlock_read(index->lock);
    fvdb_status status = check_state(index, states, diag);
    if (status != FVDB_OK) rwlock_read_done(index->lock);
    return status;
}

static fvdb_status enter_write(fvdb_index *index, uint32_t states, fvdb_diag *diag) {
    if (!index) return FAIL(diag, FVDB_ERR_ARGUMENT, "there is no index");
    rwlock_write(index->lock);
    fvdb_status status = check_state(index, states, diag);
    if (status != FVDB_OK) rwlock_write_done(index->lock);
    return status;
}

static void leave_write(fvdb_index *index) {
    index_assert(index);
    store_trim(&index->store);
    hnsw_trim(&index->graph);
    rwlock_write_done(index->lock);
}

/* ---- add, search, delete, vacuum ---- */

fvdb_status fvdb_add(fvdb_index *index, const fvdb_rows *rows, uint32_t on_conflict, uint32_t *out_slots,
                     uint32_t *out_replaced, fvdb_control *control, fvdb_diag *diag) {
    TRY(check_range(on_conflict, FVDB_ON_CONFLICT_ERROR, FVDB_ON_CONFLICT_SKIP, "unknown on_conflict", diag));
    if (rows->n > FVDB_ROWS_MAX) return FAIL_AT(diag, FVDB_ERR_TOO_MANY, "too many rows", 0, FVDB_ROWS_MAX, rows->n);
    TRY(check_range(rows->for_lists, 0, 1, "unknown for_lists", diag));
    TRY(enter_write(index, WHOLE, diag));
    fvdb_status status = rows->for_lists && hnsw_rows(&index->graph)
                             ? FAIL(diag, FVDB_ERR_ARGUMENT, "rows for lists cannot join a graph")
                             : index_add(index, rows, on_conflict, out_slots, out_replaced, control, diag);
    leave_write(index);
    return status;
}

/* Checks the parameters and takes the lock. */
static fvdb_status search_begin(fvdb_index *index, const fvdb_search_params *params, fvdb_diag *diag) {
    TRY(check_range(params->k, 1, FVDB_K_MAX, "k is out of range", diag));
    TRY(check_range(params->ef_search, 0, FVDB_EF_MAX, "ef_search is out of range", diag));
    if (!params->nowait || !index) return enter_read(index, WHOLE, diag);
    if (!rwlock_try_read(index->lock)) return FAIL(diag, FVDB_ERR_BUSY, "a writer holds the index");
    fvdb_status status = check_state(index, WHOLE, diag);
    if (status != FVDB_OK) rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_search(fvdb_index *index, const float *queries, uint32_t n_queries, const fvdb_search_params *params,
                        const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots, double *out_distances,
                        uint32_t *out_counts, uint32_t *out_plans, uint8_t *out_id_bytes, uint64_t id_capacity,
                        uint64_t *out_id_offsets, fvdb_control *control, fvdb_diag *diag) {
    TRY(search_begin(index, params, diag));
    search_outputs out = {out_slots, out_distances, out_counts, out_plans, out_id_bytes, id_capacity, out_id_offsets};
    const fvdb_allowed allowed = {.words = allow, .n_words = allow_words};
    fvdb_status status = index_search(index, queries, n_queries, params, allow ? &allowed : NULL, &out, control, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_search_start(fvdb_index *index, const float *queries, uint32_t n_queries,
                              const fvdb_search_params *params, const uint64_t *allow, uint64_t allow_words,
                              uint32_t *out_slots, double *out_distances, uint32_t *out_counts, uint32_t *out_plans,
                              fvdb_control *control, fvdb_batch **out_batch, fvdb_diag *diag) {
    TRY(search_begin(index, params, diag));
    const search_outputs out = {
        .slots = out_slots, .distances = out_distances, .counts = out_counts, .plans = out_plans};
    const fvdb_allowed allowed = {.words = allow, .n_words = allow_words};
    fvdb_status status =
        index_search_start(index, queries, n_queries, params, allow ? &allowed : NULL, &out, control, out_batch, diag);
    if (status != FVDB_OK) rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_search_next(fvdb_batch *batch, uint8_t *out_id_bytes, uint64_t id_capacity, uint64_t *out_id_offsets,
                             uint32_t *out_n, fvdb_diag *diag) {
    return index_search_next(batch, out_id_bytes, id_capacity, out_id_offsets, out_n, diag);
}

void fvdb_search_end(fvdb_batch *batch) {
    if (batch) rwlock_read_done(index_search_end(batch)->lock);
}

fvdb_status fvdb_scores(uint32_t metric, const double *distances, uint32_t n, double *out_scores, fvdb_diag *diag) {
    TRY(check_range(metric, FVDB_METRIC_COSINE, FVDB_METRIC_DOT, "unknown metric", diag));
    index_scores(metric, distances, n, out_scores);
    return FVDB_OK;
}

/* Scores the results, and leaves out those below the threshold: the last ones, as scores fall with the distance. */
static void answer_scores(uint32_t metric, fvdb_answer *out) {
    const uint32_t found = out->count;
    index_scores(metric, out->distances, found, out->scores);
    while (out->count && out->scores[out->count - 1] < out->threshold) out->count--;
    out->below = found - out->count;
}

/* Caller holds the lock. */
static fvdb_status answer_ids(const id_map *ids, fvdb_answer *out) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < out->count; i++) {
        size_t size;
        const uint8_t *id = id_map_get(ids, out->slots[i], &size);
        out->id_ends[i] = at + size;
        if (out->id_ends[i] < out->id_capacity) {
            memcpy(out->id_bytes + at, id, size);
            out->id_bytes[at + size] = 0;
        }
        at += size + 1;
    }
    out->id_size = at;
    if (at <= out->id_capacity) return FVDB_OK;
    return FAIL_AT(&out->diag, FVDB_ERR_BUFFER, "the ids do not fit", 0, at, out->id_capacity);
}

fvdb_status fvdb_search_one(fvdb_index *index, const float *query, const fvdb_search_params *params,
                            fvdb_answer *answer) {
    search_outputs out = {answer->slots, answer->distances, &answer->count, &answer->plan, NULL, 0, NULL};
    TRY(search_begin(index, params, &answer->diag));
    fvdb_status status = index_search(index, query, 1, params, answer->allowed, &out, NULL, &answer->diag);
    if (status == FVDB_OK) {
        answer_scores(index->config.metric, answer);
        status = answer_ids(&index->store.ids, answer);
    }
    rwlock_read_done(index->lock);
    return status;
}

/* Falling offsets would wrap the size of an id. */
static fvdb_status check_offsets(const uint64_t *id_offsets, uint32_t n, fvdb_diag *diag) {
    for (uint32_t i = 0; i < n; i++)
        if (id_offsets[i + 1] < id_offsets[i]) return FAIL_AT(diag, FVDB_ERR_ID, "the offsets of ids fall", i, 0, 0);
    return FVDB_OK;
}

fvdb_status fvdb_delete(fvdb_index *index, const uint8_t *id_bytes, const uint64_t *id_offsets, uint32_t n,
                        uint32_t missing_ok, uint32_t *out_slots, fvdb_diag *diag) {
    TRY(enter_write(index, WHOLE, diag));
    fvdb_status status = check_offsets(id_offsets, n, diag);
    if (status == FVDB_OK) status = index_delete(index, id_bytes, id_offsets, n, missing_ok != 0, out_slots, diag);
    leave_write(index);
    return status;
}

fvdb_status fvdb_vacuum_order(fvdb_index *index, uint32_t *out_slots, uint32_t capacity, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE, diag));
    const uint32_t live = index->store.live_count;
    uint32_t *order = mem_alloc_array(index->store.n, sizeof *order);
    fvdb_status status = !order            ? FAIL_MEMORY(diag)
                         : capacity < live ? FAIL_AT(diag, FVDB_ERR_BUFFER, "there are more rows", 0, live, capacity)
                                           : FVDB_OK;
    if (status == FVDB_OK) {
        index_order(index, order);
        if (live) memcpy(out_slots, order, live * sizeof *order);
    }
    mem_free(order);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_vacuum(fvdb_index *index, uint32_t *out_map, uint32_t map_capacity, fvdb_control *control,
                        fvdb_diag *diag) {
    TRY(enter_write(index, WHOLE, diag));
    uint32_t rows = index->store.n;
    fvdb_status status = map_capacity < rows
                             ? FAIL_AT(diag, FVDB_ERR_BUFFER, "the map is too small", 0, rows, map_capacity)
                             : index_vacuum(index, out_map, control, diag);
    leave_write(index);
    return status;
}

fvdb_status fvdb_locality_order(fvdb_index *index, uint32_t *out_slots, uint32_t capacity, fvdb_control *control,
                                fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE, diag));
    const uint32_t rows = index->store.n;
    fvdb_status status = capacity < rows ? FAIL_AT(diag, FVDB_ERR_BUFFER, "there are more rows", 0, rows, capacity)
                                         : index_locality_order(index, out_slots, control, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_renumber(fvdb_index *index, const uint32_t *order, uint32_t n, fvdb_diag *diag) {
    TRY(enter_write(index, WHOLE, diag));
    const uint32_t rows = index->store.n;
    fvdb_status status = n != rows ? FAIL_AT(diag, FVDB_ERR_ARGUMENT, "the order has other rows", 0, rows, n)
                                   : index_renumber(index, order, diag);
    leave_write(index);
    return status;
}

/* ---- train, migrate ---- */

fvdb_status fvdb_train(fvdb_index *index, int64_t cutoff_us, fvdb_control *control, fvdb_diag *diag) {
    for (bool installed = false; !installed;) {
        training t;
        TRY(enter_read(index, WHOLE, diag));
        fvdb_status status = index_train(index, cutoff_us, &t, control, diag);
        rwlock_read_done(index->lock);
        if (status != FVDB_OK) return status;
        rwlock_write(index->lock);
        installed = index_install_lists(index, &t);
        leave_write(index);
    }
    return FVDB_OK;
}

fvdb_status fvdb_migrate(fvdb_index *index, int64_t cutoff_us, uint32_t max_rows, uint32_t *next, uint32_t *out_moved,
                         fvdb_diag *diag) {
    TRY(check_range(max_rows, 1, FVDB_ROWS_MAX, "max_rows is out of range", diag));
    for (bool stale = true; stale;) {
        migration m;
        TRY(enter_read(index, WHOLE, diag));
        fvdb_status status = index_pick(index, cutoff_us, *next, max_rows, &m, diag);
        rwlock_read_done(index->lock);
        if (status != FVDB_OK) return status;
        rwlock_write(index->lock);
        status = index_move(index, &m, out_moved, &stale, diag);
        leave_write(index);
        if (status == FVDB_OK && !stale) *next = m.next;
        migration_free(&m);
        if (status != FVDB_OK) return status;
    }
    return FVDB_OK;
}

/* Rows that are live and, where `rows` is not NULL, in it too.  Caller holds the lock. */
static fvdb_status write_bitmap(const store *s, const uint64_t *rows, uint64_t rows_words, uint64_t *out_words,
                                uint64_t words, fvdb_diag *diag) {
    const uint64_t needed = (s->n + 63u) / 64;
    if (needed > words) return FAIL_AT(diag, FVDB_ERR_BUFFER, "the bitmap is too small", 0, needed, words);
    for (uint64_t w = 0; w < needed; w++)
        out_words[w] = store_live(s)[w] & (!rows ? UINT64_MAX : w < rows_words ? rows[w] : 0);
    return FVDB_OK;
}

fvdb_status fvdb_historical(fvdb_index *index, uint64_t *out_words, uint64_t words, fvdb_diag *diag) {
    static const uint64_t none;
    TRY(enter_read(index, WHOLE, diag));
    const ivf *lists = &index->lists;
    const uint64_t n = ivf_words(lists);
    fvdb_status status = write_bitmap(&index->store, n ? ivf_rows(lists) : &none, n, out_words, words, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_probes(fvdb_index *index, uint32_t k, double recall, uint32_t *out_lists, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE, diag));
    /* Up to the next thousandth: the table's own recalls find themselves, whatever 0.99 is in binary. */
    uint32_t thousandths = recall > 0 ? recall < 1 ? (uint32_t)(recall * 1000 + 0.999) : 1000 : 0;
    *out_lists = ivf_probes(&index->lists, k, thousandths);
    rwlock_read_done(index->lock);
    return FVDB_OK;
}

/* ---- rows ---- */

fvdb_status fvdb_find(fvdb_index *index, const uint8_t *id_bytes, const uint64_t *id_offsets, uint32_t n,
                      uint32_t *out_slots, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE | LAZY, diag));
    fvdb_status status = check_offsets(id_offsets, n, diag);
    for (uint32_t i = 0; i < n && status == FVDB_OK; i++)
        out_slots[i] =
            id_map_find(&index->store.ids, id_bytes + id_offsets[i], (size_t)(id_offsets[i + 1] - id_offsets[i]));
    rwlock_read_done(index->lock);
    return status;
}

/* Caller holds the lock. */
static fvdb_status check_slots(const fvdb_index *index, const uint32_t *slots, uint32_t n, fvdb_diag *diag) {
    for (uint32_t i = 0; i < n; i++)
        if (slots[i] >= index->store.n)
            return FAIL_AT(diag, FVDB_ERR_NOT_FOUND, "the slot is past the end", i, index->store.n, slots[i]);
    return FVDB_OK;
}

fvdb_status fvdb_get_vectors(fvdb_index *index, const uint32_t *slots, uint32_t n, float *out, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE, diag));
    fvdb_status status = check_slots(index, slots, n, diag);
    for (uint32_t i = 0; i < n && status == FVDB_OK; i++)
        store_get(&index->store, slots[i], out + (size_t)i * index->store.dim);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_with_dim(fvdb_index *index, uint32_t dim, fvdb_index **out, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE, diag));
    fvdb_config config = index->config;
    config.dim = dim;
    fvdb_status status = check_config(&config, diag);
    if (status == FVDB_OK) status = index_with_dim(index, &config, out, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_set_memory(fvdb_index *index, uint32_t memory, fvdb_diag *diag) {
    TRY(check_range(memory, FVDB_MEMORY_DEFAULT, FVDB_MEMORY_FAST, "unknown memory setting", diag));
    TRY(enter_write(index, WHOLE, diag));
    fvdb_status status = index_set_memory(index, memory, diag);
    leave_write(index);
    return status;
}

fvdb_status fvdb_are_vectorless(fvdb_index *index, const uint32_t *slots, uint32_t n, uint8_t *out, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE | LAZY, diag));
    fvdb_status status = check_slots(index, slots, n, diag);
    for (uint32_t i = 0; i < n && status == FVDB_OK; i++) out[i] = store_is_vectorless(&index->store, slots[i]);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_get_timestamps(fvdb_index *index, const uint32_t *slots, uint32_t n, int64_t *out, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE | LAZY, diag));
    fvdb_status status = check_slots(index, slots, n, diag);
    for (uint32_t i = 0; i < n && status == FVDB_OK; i++) out[i] = timestamps_get(&index->store.times, slots[i]);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_get_ids(fvdb_index *index, const uint32_t *slots, uint32_t n, uint8_t *out_bytes, uint64_t capacity,
                         uint64_t *out_offsets, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE | LAZY, diag));
    fvdb_status status = check_slots(index, slots, n, diag);
    uint64_t at = 0;
    for (uint32_t i = 0; i < n && status == FVDB_OK; i++) {
        size_t size;
        const uint8_t *id = id_map_get(&index->store.ids, slots[i], &size);
        out_offsets[i] = at;
        if (at + size <= capacity) memcpy(out_bytes + at, id, size);
        at += size;
    }
    rwlock_read_done(index->lock);
    if (status != FVDB_OK) return status;
    out_offsets[n] = at;
    return at <= capacity ? FVDB_OK : FAIL_AT(diag, FVDB_ERR_BUFFER, "the ids do not fit", 0, at, capacity);
}

fvdb_status fvdb_live_slots(fvdb_index *index, uint32_t first, uint32_t *out_slots, uint32_t capacity,
                            uint32_t *out_count, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE | LAZY, diag));
    const store *s = &index->store;
    uint32_t n = 0;
    for (uint32_t slot = first; slot < s->n && n < capacity; slot++)
        if (bit_get(store_live(s), slot)) out_slots[n++] = slot;
    *out_count = n;
    rwlock_read_done(index->lock);
    return FVDB_OK;
}

fvdb_status fvdb_live_bitmap(fvdb_index *index, uint64_t *out_words, uint64_t words, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE | LAZY, diag));
    fvdb_status status = write_bitmap(&index->store, NULL, 0, out_words, words, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_get_stats(fvdb_index *index, fvdb_stats *out, fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE | LAZY, diag));
    index_stats(index, out);
    rwlock_read_done(index->lock);
    return FVDB_OK;
}

/* ---- metadata ---- */

static fvdb_status check_step(const fvdb_field *field, uint32_t i, fvdb_diag *diag) {
    const fvdb_step *step = &field->steps[i], *next = step + 1;
    bool is_right = step->start <= step->end && step->end <= field->text_size;
    is_right = is_right && i < step->run_end && step->run_end <= field->n_steps;
    if (is_right && i + 1 < step->run_end) is_right = next->run_end == step->run_end && next->start >= step->end;
    return is_right ? FVDB_OK : FAIL_AT(diag, FVDB_ERR_ARGUMENT, "a step lies outside the path", i, 0, 0);
}

fvdb_status fvdb_read_field(const fvdb_field *field, fvdb_cells *cells, fvdb_diag *diag) {
    TRY(check_range(field->n_steps, 1, FVDB_PATH_STEPS_MAX, "the number of steps is out of range", diag));
    for (uint32_t i = 0; i < field->n_steps; i++) TRY(check_step(field, i, diag));
    TRY(check_range(field->n, 0, FVDB_ROWS_MAX, "too many rows", diag));
    TRY(check_range(cells->capacity, 0, FVDB_ROWS_MAX - field->n, "too many entries", diag));
    return read_field(field, cells, diag);
}

/* ---- save and load ---- */

static fvdb_status check_layout(uint32_t rows_per_part, uint32_t rows_per_group, fvdb_diag *diag) {
    TRY(check_range(rows_per_part, 1, FVDB_ROWS_MAX, "rows_per_part is out of range", diag));
    return check_range(rows_per_group, 1, FVDB_ROWS_MAX, "rows_per_group is out of range", diag);
}

fvdb_status fvdb_parts(fvdb_index *index, uint32_t rows_per_part, uint32_t rows_per_group, fvdb_part *out,
                       uint32_t capacity, uint32_t *out_count, fvdb_diag *diag) {
    TRY(check_layout(rows_per_part, rows_per_group, diag));
    TRY(enter_read(index, WHOLE, diag));
    fvdb_status status =
        format_parts(index, (part_layout){rows_per_part, rows_per_group}, out, capacity, out_count, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_part_write(fvdb_index *index, uint32_t rows_per_part, uint32_t rows_per_group, uint32_t kind,
                            uint32_t number, uint8_t *out, uint64_t capacity, uint64_t *out_size, fvdb_diag *diag) {
    TRY(check_layout(rows_per_part, rows_per_group, diag));
    TRY(enter_read(index, WHOLE, diag));
    const part_layout layout = {rows_per_part, rows_per_group};
    fvdb_status status = format_part_write(index, layout, kind, number, out, capacity, out_size, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_graph_stored(fvdb_index *index, fvdb_diag *diag) {
    TRY(enter_write(index, WHOLE, diag));
    index->steps = (graph_steps){.stored = hnsw_rows(&index->graph) ? index->graph.n : 0};
    leave_write(index);
    return FVDB_OK;
}

fvdb_status fvdb_graph_steps(fvdb_index *index, uint32_t *out_stored, uint32_t *out_steps, uint32_t *out_count,
                             fvdb_diag *diag) {
    TRY(enter_read(index, WHOLE, diag));
    const graph_steps *steps = &index->steps;
    for (uint32_t i = 0; i < steps->n; i++) out_steps[i] = steps->ends[i];
    *out_count = steps->n;
    *out_stored = steps->stored;
    rwlock_read_done(index->lock);
    return FVDB_OK;
}

fvdb_status fvdb_load_begin(const fvdb_config *config, const fvdb_load *load, fvdb_index **out, fvdb_diag *diag) {
    TRY(check_config(config, diag));
    TRY(check_layout(load->rows_per_part, load->rows_per_group, diag));
    if (load->rows > FVDB_ROWS_MAX)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "too many rows", 0, FVDB_ROWS_MAX, load->rows);
    return format_load_begin(config, load, out, diag);
}

fvdb_status fvdb_load_part(fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag) {
    TRY(enter_read(index, LOADING, diag));
    fvdb_status status = format_load_part(index, bytes, size, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_load_end(fvdb_index *index, const uint32_t *steps, uint32_t n_steps, fvdb_control *control,
                          fvdb_diag *diag) {
    TRY(enter_write(index, LOADING, diag));
    fvdb_status status = format_load_end(index, steps, n_steps, control, diag);
    leave_write(index);
    return status;
}

/* ---- lazy loads ---- */

fvdb_status fvdb_load_lazy(fvdb_index *index, fvdb_diag *diag) {
    TRY(enter_write(index, LOADING, diag));
    fvdb_status status = format_load_lazy(index, diag);
    leave_write(index);
    return status;
}

/* Caller holds the lock. */
static fvdb_status check_query(const fvdb_index *index, const float *query, fvdb_diag *diag) {
    uint32_t component;
    fvdb_status status = store_check_vector(&index->store, query, &component);
    return status == FVDB_OK ? FVDB_OK : FAIL_AT(diag, status, status_text(status), 0, 0, component);
}

fvdb_status fvdb_candidates(fvdb_index *index, const float *query, uint32_t k, const uint64_t *allow,
                            uint64_t allow_words, uint32_t *out_slots, double *out_distances, uint32_t *out_count,
                            fvdb_diag *diag) {
    TRY(check_range(k, 1, FVDB_K_MAX, "k is out of range", diag));
    TRY(enter_read(index, LAZY, diag));
    fvdb_status status = check_query(index, query, diag);
    if (status == FVDB_OK)
        status = index_candidates(index, query, k, allow, allow_words, out_slots, out_distances, out_count, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_part_check(fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag) {
    TRY(enter_read(index, LAZY, diag));
    fvdb_status status = format_part_check(index, bytes, size, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_part_search(fvdb_index *index, const uint8_t *bytes, uint64_t size, const float *query, uint32_t k,
                             const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots, double *out_distances,
                             uint32_t *out_count, fvdb_diag *diag) {
    TRY(check_range(k, 1, FVDB_K_MAX, "k is out of range", diag));
    TRY(enter_read(index, LAZY, diag));
    part_rows rows;
    fvdb_status status = check_query(index, query, diag);
    if (status == FVDB_OK) status = format_part_open(index, bytes, size, &rows, diag);
    if (status == FVDB_OK)
        status =
            index_part_search(index, &rows, query, k, allow, allow_words, out_slots, out_distances, out_count, diag);
    rwlock_read_done(index->lock);
    return status;
}

fvdb_status fvdb_part_vectors(fvdb_index *index, const uint8_t *bytes, uint64_t size, const uint32_t *slots, uint32_t n,
                              float *out, fvdb_diag *diag) {
    TRY(enter_read(index, LAZY, diag));
    part_rows rows;
    fvdb_status status = format_part_open(index, bytes, size, &rows, diag);
    if (status == FVDB_OK) status = index_part_vectors(index, &rows, slots, n, out, diag);
    rwlock_read_done(index->lock);
    return status;
}
