/* Rows: exact vectors in two planes, and everything that is kept per row beside them.
 *
 * A float32 is split into its nearest bfloat16 (high) and the signed rest (low).  The pair is exact, walk distances that
 * need no more read half the bytes, and the low plane compresses well where values came from 16-bit floats.
 *
 * Invariants: plane rows are padded with zeros to dim16 elements; bits of `live` at and past n are zero. */
#include "store.h"

#include <math.h>

#define ROWS_PER_ITEM 256u /* an item of a thread pool: some 100 us of work */

/* High planes are scored in walks under memory="compact", and in scans otherwise. */
static bool wants_inv_norm(const store *s) { return s->metric == FVDB_METRIC_COSINE; }
static bool wants_code_norm2(const store *s) { return s->metric != FVDB_METRIC_COSINE; }

void store_init(store *s, const kernel_table *kernels, const fvdb_config *config) {
    *s = (store){.kernels = kernels, .dim = config->dim, .metric = config->metric, .memory = config->memory};
    s->dim16 = (uint32_t)round_up(config->dim, PLANE_LANES);
    s->dim64 = (uint32_t)round_up(config->dim, CODE_DIMS);
    s->code_bytes = s->dim64 / CODE_DIMS * CODE_BLOCK_BYTES;
    s->high.scattered = s->low.scattered = s->codes.scattered = true;
    id_map_init(&s->ids, config->hash_seed);
    timestamps_init(&s->times);
}

void store_trim(const store *s) {
    region_trim(&s->high);
    region_trim(&s->low);
    region_trim(&s->codes);
}

void store_free(store *s) {
    region_free(&s->high);
    region_free(&s->low);
    region_free(&s->inv_norm);
    region_free(&s->codes);
    region_free(&s->code_norm2);
    region_free(&s->code_error);
    region_free(&s->live);
    region_free(&s->vectorless);
    region_free(&s->found);
    codebook_free(&s->book);
    id_map_free(&s->ids);
    timestamps_free(&s->times);
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* All bits of the exponent set: infinity or not a number. */
static bool not_finite(float x) { return (bits_of(x) & 0x7f800000u) == 0x7f800000u; }

/* One pass without a way out of it, which compilers turn into SIMD; a second looks for what the first found. */
fvdb_status store_check_vector(const store *s, const float *x, uint32_t *component) {
    uint32_t broken = 0, some = 0;
    for (uint32_t i = 0; i < s->dim; i++) {
        broken |= not_finite(x[i]);
        some |= bits_of(x[i]) << 1; /* without the sign: -0 is zero, too */
    }
    *component = 0;
    if (broken) {
        while (!not_finite(x[*component])) ++*component;
        return FVDB_ERR_NOT_FINITE;
    }
    return some == 0 && s->metric == FVDB_METRIC_COSINE ? FVDB_ERR_ZERO_VECTOR : FVDB_OK;
}

/* `vectorless` comes last: where it is, `found` is as long. */
static bool resize_vectorless(store *s, size_t n) {
    const size_t bytes = (n + 63) / 64 * sizeof(uint64_t);
    return region_resize(&s->found, bytes) && region_resize(&s->vectorless, bytes);
}

/* Sets the size of every per-row region.  Shrinking cannot fail; a failed growth leaves some regions longer than n
 * needs, which nobody sees. */
static bool resize_rows(store *s, size_t n) {
    size_t plane = n * s->dim16 * sizeof(uint16_t), coded = store_has_codes(s) ? n : 0;
    return region_resize(&s->high, plane) && region_resize(&s->low, plane) &&
           region_resize(&s->live, (n + 63) / 64 * sizeof(uint64_t)) &&
           (!s->vectorless.used || resize_vectorless(s, n)) &&
           region_resize(&s->inv_norm, (wants_inv_norm(s) ? n : 0) * sizeof(float)) &&
           region_resize(&s->codes, coded * s->code_bytes) &&
           region_resize(&s->code_norm2, (wants_code_norm2(s) ? coded : 0) * sizeof(float)) &&
           region_resize(&s->code_error, coded * sizeof(uint16_t));
}

fvdb_status store_reserve(store *s, uint32_t n, uint64_t id_bytes, fvdb_diag *diag) {
    TRY(id_map_reserve(&s->ids, n - s->n, id_bytes, diag));
    if (!resize_rows(s, n)) {
        resize_rows(s, s->n);
        return FAIL_MEMORY(diag);
    }
    return FVDB_OK;
}

static float inverse_norm(double norm2) {
    double inv = 1.0 / sqrt(norm2);
    return inv < 3.0e38 ? (float)inv : 3.0e38f; /* rows near the smallest float32: keep it finite */
}

/* Per-row values that follow from the planes. */
static void derive_row(store *s, uint32_t slot, const double *zeros) {
    if (!wants_inv_norm(s)) return;
    double dot, norm2;
    s->kernels->exact_dot(zeros, store_high(s, slot), store_low(s, slot), 0, s->dim16, &dot, &norm2);
    ((float *)s->inv_norm.base)[slot] = inverse_norm(norm2);
}

typedef struct append_job {
    store *s;
    const fvdb_rows *rows; /* NULL: the planes are filled already (load) */
    const uint32_t *picked;
    uint32_t first, n;
} append_job;

static void append_item(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    static const double zeros[FVDB_DIM_MAX];
    append_job *job = context;
    store *s = job->s;
    uint32_t end = min_u32(job->n, (item + 1) * ROWS_PER_ITEM);
    for (uint32_t i = item * ROWS_PER_ITEM; i < end; i++) {
        uint32_t slot = job->first + i;
        if (job->rows)
            s->kernels->split_planes(job->rows->vectors + (size_t)job->picked[i] * s->dim, s->dim,
                                     (uint16_t *)store_high(s, slot), (uint16_t *)store_low(s, slot));
        derive_row(s, slot, zeros);
    }
}

static void fill_rows(append_job *job, thread_pool *c) {
    thread_pool_run(c, append_item, job, (job->n + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
}

static bool any_vectorless(const fvdb_rows *rows, const uint32_t *picked, uint32_t n) {
    for (uint32_t i = 0; rows->vectorless && i < n; i++)
        if (rows->vectorless[picked[i]]) return true;
    return false;
}

/* All that can fail, the timestamps last. */
static fvdb_status prepare_append(store *s, const fvdb_rows *rows, const uint32_t *picked, uint32_t n,
                                  uint64_t id_bytes, fvdb_diag *diag) {
    TRY(store_reserve(s, s->n + n, id_bytes, diag));
    if (any_vectorless(rows, picked, n)) TRY(store_reserve_vectorless(s, s->n + n, diag));
    int64_t *us = mem_alloc_array(n, sizeof *us);
    if (!us) return FAIL_MEMORY(diag);
    for (uint32_t i = 0; i < n; i++) us[i] = rows->timestamps[picked[i]];
    fvdb_status status = timestamps_append(&s->times, us, n, diag);
    mem_free(us);
    return status;
}

fvdb_status store_append(store *s, const fvdb_rows *rows, const uint32_t *picked, uint32_t n, uint64_t id_bytes,
                         thread_pool *c, fvdb_diag *diag) {
    fvdb_status status = prepare_append(s, rows, picked, n, id_bytes, diag);
    if (status != FVDB_OK) {
        resize_rows(s, s->n);
        return status;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint64_t at = rows->id_offsets[picked[i]];
        id_map_append(&s->ids, rows->id_bytes + at, (size_t)(rows->id_offsets[picked[i] + 1] - at));
        if (rows->vectorless && rows->vectorless[picked[i]]) store_mark_vectorless(s, s->n + i);
    }
    append_job job = {s, rows, picked, s->n, n};
    fill_rows(&job, c);
    s->n += n;
    return FVDB_OK;
}

fvdb_status store_reserve_vectorless(store *s, uint32_t n, fvdb_diag *diag) {
    const bool first = s->vectorless.used == 0;
    if (!resize_vectorless(s, n)) return FAIL_MEMORY(diag);
    if (first && s->live.used)
        memcpy(s->found.base, s->live.base, s->live.used < s->found.used ? s->live.used : s->found.used);
    return FVDB_OK;
}

void store_mark_vectorless(store *s, uint32_t slot) {
    assert(!store_is_vectorless(s, slot));
    bit_set((uint64_t *)s->vectorless.base, slot);
    s->vectorless_count++;
}

uint32_t store_rows_with_vector(const store *s, uint64_t count) {
    if (count > store_with_vector(s)) return FVDB_NO_SLOT;
    if (s->vectorless_count == 0) return (uint32_t)count;
    uint32_t slot = 0;
    for (uint64_t seen = 0; seen < count; slot++) seen += !store_is_vectorless(s, slot);
    return slot;
}

void store_make_live(store *s, uint32_t slot) {
    assert(slot < s->ids.n && !bit_get(store_live(s), slot));
    id_map_link(&s->ids, slot);
    bit_set(store_live(s), slot);
    s->live_count++;
    if (store_is_vectorless(s, slot)) return;
    if (s->vectorless.used) bit_set((uint64_t *)s->found.base, slot);
    s->found_count++;
}

void store_make_tombstone(store *s, uint32_t slot) {
    assert(slot < s->n && bit_get(store_live(s), slot) && s->live_count > 0);
    id_map_unlink(&s->ids, slot);
    bit_clear(store_live(s), slot);
    s->live_count--;
    if (store_is_vectorless(s, slot)) return;
    if (s->vectorless.used) bit_clear((uint64_t *)s->found.base, slot);
    s->found_count--;
}

void store_truncate(store *s, uint32_t n) {
    for (uint32_t slot = n; slot < s->n && s->vectorless.used; slot++) {
        s->vectorless_count -= store_is_vectorless(s, slot);
        bit_clear((uint64_t *)s->vectorless.base, slot);
    }
    id_map_truncate(&s->ids, n);
    timestamps_truncate(&s->times, n);
    s->n = n;
    resize_rows(s, n);
}

/* ---- a new order ---- */

fvdb_status reordering_alloc(reordering *a, uint32_t n, fvdb_diag *diag) {
    *a = (reordering){.n = n};
    a->order = mem_alloc_array(n, sizeof *a->order);
    a->map = mem_alloc_array(n, sizeof *a->map);
    a->marks = mem_alloc_array(n / 64 + 1, sizeof *a->marks);
    if (a->order && a->map && a->marks) return FVDB_OK;
    reordering_free(a);
    return FAIL_MEMORY(diag);
}

void reordering_free(reordering *a) {
    mem_free(a->order);
    mem_free(a->map);
    mem_free(a->marks);
    region_free(&a->id_bytes);
    region_free(&a->id_offsets);
    timestamps_free(&a->times);
    *a = (reordering){0};
}

fvdb_status reordering_prepare(reordering *a, const store *s, fvdb_diag *diag) {
    for (uint32_t slot = 0; slot < a->n; slot++) a->map[a->order[slot]] = slot;
    TRY(timestamps_reordered(&s->times, a->order, a->kept, &a->times, diag));
    return id_map_reordered(&s->ids, a->order, a->kept, &a->id_bytes, &a->id_offsets, diag);
}

/* Row i becomes what was row from[i], a cycle at a time. */
static void permute(region *r, size_t bytes, const uint32_t *from, uint32_t n, uint64_t *marks) {
    uint8_t held[FVDB_DIM_MAX * sizeof(uint16_t)];
    if (r->used == 0) return;
    memset(marks, 0, (n / 64 + 1) * sizeof *marks);
    for (uint32_t start = 0; start < n; start++) {
        if (from[start] == start || bit_get(marks, start)) continue;
        uint32_t at = start;
        memcpy(held, r->base + start * bytes, bytes);
        for (; from[at] != start; at = from[at]) {
            bit_set(marks, at);
            memcpy(r->base + at * bytes, r->base + from[at] * bytes, bytes);
        }
        bit_set(marks, at);
        memcpy(r->base + at * bytes, held, bytes);
    }
}

static void permute_all(store *s, const uint32_t *from, uint32_t n, uint64_t *marks) {
    permute(&s->high, s->dim16 * sizeof(uint16_t), from, n, marks);
    permute(&s->low, s->dim16 * sizeof(uint16_t), from, n, marks);
    permute(&s->inv_norm, sizeof(float), from, n, marks);
    permute(&s->codes, s->code_bytes, from, n, marks);
    permute(&s->code_norm2, sizeof(float), from, n, marks);
    permute(&s->code_error, sizeof(uint16_t), from, n, marks);
}

/* Bit i becomes what was bit from[i], those from n on 0. */
static void permute_bits(region *r, const uint32_t *from, uint32_t n, reordering *a) {
    if (r->used == 0) return;
    memset(a->marks, 0, (a->n / 64 + 1) * sizeof *a->marks);
    for (uint32_t i = 0; i < n; i++)
        if (bit_get((const uint64_t *)r->base, from[i])) bit_set(a->marks, i);
    memcpy(r->base, a->marks, r->used);
}

/* What follows from the live and the vectorless rows, after they got other slots or there are fewer. */
static void derive_found(store *s) {
    const uint64_t *live = store_live(s), *vectorless = (const uint64_t *)s->vectorless.base;
    for (size_t w = 0; w < s->vectorless.used / sizeof *vectorless; w++)
        ((uint64_t *)s->found.base)[w] = live[w] & ~vectorless[w];
    s->vectorless_count = 0;
    for (uint32_t slot = 0; slot < s->n && s->vectorless.used; slot++)
        s->vectorless_count += store_is_vectorless(s, slot);
}

static void exchange_times(store *s, reordering *a) {
    timestamps swap = s->times;
    s->times = a->times;
    a->times = swap;
}

void store_reorder(store *s, reordering *a) {
    permute_all(s, a->order, a->n, a->marks);
    exchange_times(s, a);
    permute_bits(&s->live, a->order, a->kept, a);
    permute_bits(&s->vectorless, a->order, a->n, a);
    id_map_exchange(&s->ids, &a->id_bytes, &a->id_offsets, a->kept, store_live(s));
    s->n = a->kept;
    derive_found(s);
}

void store_reorder_back(store *s, reordering *a) {
    permute_all(s, a->map, a->n, a->marks);
    exchange_times(s, a);
    memset(s->live.base, 0, s->live.used);
    for (uint32_t slot = 0; slot < a->n; slot++)
        if (a->map[slot] < a->kept) bit_set(store_live(s), slot);
    permute_bits(&s->vectorless, a->map, a->n, a);
    id_map_exchange(&s->ids, &a->id_bytes, &a->id_offsets, a->n, store_live(s));
    s->n = a->n;
    derive_found(s);
}

fvdb_status store_copy_vectorless(const store *from, store *to, fvdb_diag *diag) {
    reordering a;
    if (from->n == 0) return FVDB_OK;
    TRY(reordering_alloc(&a, from->n, diag));
    for (uint32_t slot = 0; slot < from->n; slot++) a.order[slot] = slot;
    a.kept = from->n;
    fvdb_status status = reordering_prepare(&a, from, diag);
    if (status == FVDB_OK) status = store_reserve(to, from->n, 0, diag);
    if (status == FVDB_OK) status = store_reserve_vectorless(to, from->n, diag);
    if (status == FVDB_OK) {
        memcpy(to->live.base, from->live.base, to->live.used);
        memcpy(to->vectorless.base, from->vectorless.base, to->vectorless.used);
        exchange_times(to, &a);
        id_map_exchange(&to->ids, &a.id_bytes, &a.id_offsets, a.kept, store_live(to));
        to->n = from->n;
        to->live_count = from->live_count;
        derive_found(to);
    }
    reordering_free(&a);
    return status;
}

void store_reordered(store *s) {
    for (uint32_t slot = s->n; slot % 64 && s->vectorless.used; slot++) bit_clear((uint64_t *)s->vectorless.base, slot);
    resize_rows(s, s->n);
}

fvdb_status store_finish_load(store *s, thread_pool *c, fvdb_diag *diag) {
    if (!resize_rows(s, s->n)) return FAIL_MEMORY(diag);
    append_job job = {s, NULL, NULL, 0, s->n};
    fill_rows(&job, c);
    codes_encode(s, 0, s->n, c);
    return FVDB_OK;
}

void store_get(const store *s, uint32_t slot, float *out) {
    assert(slot < s->n && s->high.used); /* a lazily loaded index has no planes: api.c refuses the call */
    s->kernels->join_planes(store_high(s, slot), store_low(s, slot), s->dim, out);
}
