/* 4-bit affine codes and the distances on them.
 *
 * Fetching a row from memory costs more than scoring it, so the walk reads codes of 4 bits a dimension (192 bytes for
 * 384 dimensions) and only the best candidates are scored exactly.  A dimension's 16 levels span its mean +- 2.7
 * standard deviations: the best of 2.3 .. 3.2 on real sentence embeddings, where clipping and rounding errors balance.
 * The query stays at 8 bits: the error is one-sided and the product needs integer instructions only.
 *
 * Under cosine the codes are those of the normalised row.  Under L2 the squared norm of the decoded row is kept, so a
 * distance is the exact distance to the decoded row. */
#include "store.h"

#include <float.h>
#include <math.h>

#define CODE_SPAN_SIGMA 2.7
#define CODE_LEVELS 16
#define CODE_MIDDLE ((CODE_LEVELS - 1) / 2.0)
/* Of shorter or longer rows their halves, or 1 / norm, are denormal or do not fit into a float32. */
#define INV_NORM_MIN 0x1p-100f
#define INV_NORM_MAX 0x1p100f
#define TRAIN_ROWS_PER_BLOCK 4096u
#define ENCODE_ROWS_PER_ITEM 256u

/* ---- codebook ---- */

float to_finite_float(double x) { return x > (double)FLT_MAX ? FLT_MAX : x < -(double)FLT_MAX ? -FLT_MAX : (float)x; }

fvdb_status codebook_alloc(codebook *b, uint32_t dim64) {
    *b = (codebook){0};
    b->lo = mem_alloc_array((size_t)dim64 * 3, sizeof(float));
    if (!b->lo) return FVDB_ERR_MEMORY;
    b->step = b->lo + dim64;
    b->inv_step = b->step + dim64;
    return FVDB_OK;
}

void codebook_free(codebook *b) {
    mem_free(b->lo);
    *b = (codebook){0};
}

void codebook_span(codebook *b, uint32_t d, double mean, double variance) {
    double sigma = variance > 0 ? sqrt(variance) : 0, step = 2 * CODE_SPAN_SIGMA * sigma / (CODE_LEVELS - 1);
    b->lo[d] = to_finite_float(mean - CODE_SPAN_SIGMA * sigma);
    b->step[d] = step < (double)CODE_STEP_MIN ? 0.0f : to_finite_float(step);
}

void codebook_derive(codebook *b, uint32_t dim64) {
    for (uint32_t d = 0; d < dim64; d++) b->inv_step[d] = b->step[d] > 0.0f ? 1.0f / b->step[d] : 0.0f;
}

void coded_row(const store *s, uint32_t slot, float *x) {
    store_get(s, slot, x);
    if (s->metric != FVDB_METRIC_COSINE) return;
    static const double zeros[FVDB_DIM_MAX];
    double dot, norm2;
    s->kernels->exact_dot(zeros, store_high(s, slot), store_low(s, slot), 0, s->dim16, &dot, &norm2);
    if (norm2 == 0) return; /* a vectorless row */
    double inv = 1.0 / sqrt(norm2);
    for (uint32_t d = 0; d < s->dim; d++) x[d] = (float)((double)x[d] * inv);
}

typedef struct train_job {
    const store *s;
    uint32_t n;
    double *sums; /* per block: dim sums, then dim sums of squares */
    float *rows;  /* per worker: dim64 */
} train_job;

static void train_block(void *context, uint32_t worker, uint32_t block) {
    train_job *job = context;
    const store *s = job->s;
    double *sum = job->sums + (size_t)block * 2 * s->dim, *square = sum + s->dim;
    float *x = job->rows + (size_t)worker * s->dim64;
    uint32_t end = min_u32(job->n, (block + 1) * TRAIN_ROWS_PER_BLOCK);
    for (uint32_t slot = block * TRAIN_ROWS_PER_BLOCK; slot < end; slot++) {
        if (store_is_vectorless(s, slot)) continue;
        coded_row(s, slot, x);
        for (uint32_t d = 0; d < s->dim; d++) {
            sum[d] += x[d];
            square[d] += (double)x[d] * x[d];
        }
    }
}

fvdb_status codes_train(const store *s, uint32_t n, codebook *out, thread_pool *c, fvdb_diag *diag) {
    uint32_t blocks = (n + TRAIN_ROWS_PER_BLOCK - 1) / TRAIN_ROWS_PER_BLOCK;
    train_job job = {s, n, mem_alloc_array((size_t)blocks * 2 * s->dim, sizeof(double)),
                     mem_alloc_array((size_t)thread_pool_size(c) * s->dim64, sizeof(float))};
    if (!job.sums || !job.rows || codebook_alloc(out, s->dim64) != FVDB_OK) {
        mem_free(job.sums);
        mem_free(job.rows);
        return FAIL_MEMORY(diag);
    }
    thread_pool_run(c, train_block, &job, blocks);
    uint32_t with_vector = 0;
    for (uint32_t slot = 0; slot < n; slot++) with_vector += !store_is_vectorless(s, slot);
    for (uint32_t d = 0; d < s->dim; d++) {
        double sum = 0, square = 0;
        /* Blocks are fixed and added in order: threads never change a bit of the result. */
        for (uint32_t b = 0; b < blocks; b++) {
            sum += job.sums[(size_t)b * 2 * s->dim + d];
            square += job.sums[(size_t)b * 2 * s->dim + s->dim + d];
        }
        double mean = sum / with_vector, variance = square / with_vector - mean * mean;
        codebook_span(out, d, mean, variance);
    }
    codebook_derive(out, s->dim64);
    out->trained_rows = with_vector;
    mem_free(job.sums);
    mem_free(job.rows);
    return FVDB_OK;
}

/* Doubles that are not negative order like their bits. */
typedef uint64_t atomic_max;

typedef struct encode_job {
    store *s;
    uint32_t first, end;
    atomic_max error, spread;
} encode_job;

static void raise_to(atomic_max *largest, double x) {
    uint64_t bits, seen = __atomic_load_n(largest, __ATOMIC_RELAXED);
    memcpy(&bits, &x, sizeof bits);
    while (bits > seen &&
           !__atomic_compare_exchange_n(largest, &seen, bits, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

/* The upper half of a float32 above x, which is not negative: at most 0.8 % above. */
static uint16_t upper_half_above(double x) {
    const float nearest = x < (double)FLT_MAX ? (float)x : INFINITY;
    uint32_t bits;
    memcpy(&bits, &nearest, sizeof bits);
    return (uint16_t)((bits >> 16) + (bits < 0x7f800000u));
}

static double code_middle(const codebook *b, uint32_t d) { return (double)b->lo[d] + CODE_MIDDLE * (double)b->step[d]; }

/* Codes a row; returns what was lost and how far from the middle its decoded self is, both squared. */
static void encode_row(store *s, uint32_t slot, const float *x, double *error2, double *spread2) {
    float decoded[FVDB_DIM_MAX];
    uint8_t *code = (uint8_t *)store_code(s, slot);
    s->kernels->code_encode(x, s->book.lo, s->book.inv_step, s->dim64, code);
    s->kernels->code_decode(code, s->book.lo, s->book.step, s->dim64, decoded);
    double norm2 = 0;
    *error2 = *spread2 = 0;
    for (uint32_t d = 0; d < s->dim; d++) {
        const double off = (double)x[d] - (double)decoded[d], spread = (double)decoded[d] - code_middle(&s->book, d);
        norm2 += (double)decoded[d] * decoded[d];
        *error2 += off * off;
        *spread2 += spread * spread;
    }
    ((uint16_t *)s->code_error.base)[slot] = upper_half_above(sqrt(*error2));
    if (s->code_norm2.used) ((float *)s->code_norm2.base)[slot] = to_finite_float(norm2);
}

static void encode_item(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    encode_job *job = context;
    store *s = job->s;
    float x[FVDB_DIM_MAX] = {0};
    uint32_t first = job->first + item * ENCODE_ROWS_PER_ITEM;
    uint32_t end = min_u32(job->end, first + ENCODE_ROWS_PER_ITEM);
    double error2_max = 0, spread2_max = 0;
    for (uint32_t slot = first; slot < end; slot++) {
        double error2, spread2;
        coded_row(s, slot, x);
        encode_row(s, slot, x, &error2, &spread2);
        if (store_is_vectorless(s, slot)) continue;
        error2_max = error2 > error2_max ? error2 : error2_max;
        spread2_max = spread2 > spread2_max ? spread2 : spread2_max;
    }
    raise_to(&job->error, sqrt(error2_max));
    raise_to(&job->spread, sqrt(spread2_max));
}

void codes_encode(store *s, uint32_t first, uint32_t end, thread_pool *c) {
    if (!store_has_codes(s) || first == end) return;
    encode_job job = {.s = s, .first = first, .end = end};
    /* Over all rows anew, or more rows than before: the bound of rows that are gone may stay. */
    if (first) {
        raise_to(&job.error, s->code_error_max);
        raise_to(&job.spread, s->code_spread_max);
    }
    thread_pool_run(c, encode_item, &job, (end - first + ENCODE_ROWS_PER_ITEM - 1) / ENCODE_ROWS_PER_ITEM);
    memcpy(&s->code_error_max, &job.error, sizeof s->code_error_max);
    memcpy(&s->code_spread_max, &job.spread, sizeof s->code_spread_max);
}

/* ---- scorer ---- */

fvdb_status scorer_init(scorer *q, const store *s) {
    size_t floats = round_up(max_u32(s->dim16, s->dim64), 16) * sizeof(float);
    size_t wide = s->dim16 * sizeof(double), planes = round_up(2 * s->dim16 * sizeof(uint16_t), 64);
    uint8_t *p = mem_alloc_array(1, floats + wide + planes + s->dim64);
    if (!p) return FVDB_ERR_MEMORY;
    *q = (scorer){.s = s};
    q->wide = (double *)p;
    q->x = (float *)(p + wide);
    q->planes = (uint16_t *)(p + wide + floats);
    q->q_lo = (int8_t *)(p + wide + floats + planes);
    q->q_hi = q->q_lo + s->dim64 / 2;
    return FVDB_OK;
}

void scorer_free(scorer *q) { mem_free(q->wide); }

static void prepare_codes(scorer *q) {
    const store *s = q->s;
    q->by = store_walks_by(s);
    if (store_has_codes(s))
        s->kernels->code_prepare(q->x, s->book.lo, s->book.step, s->dim64, q->q_lo, q->q_hi, &q->base, &q->scale);
}

void scorer_set_vector(scorer *q, const float *x) {
    const store *s = q->s;
    uint16_t *high = q->planes, *low = q->planes + s->dim16;
    double dot, norm2;
    for (uint32_t d = 0; d < s->dim; d++) q->wide[d] = (double)x[d];
    s->kernels->split_planes(x, s->dim, high, low);
    s->kernels->exact_dot(q->wide, high, low, 0, s->dim16, &dot, &norm2);
    q->exact_norm2 = norm2;
    q->norm2 = to_finite_float(norm2);
    double inv = s->metric == FVDB_METRIC_COSINE ? 1.0 / sqrt(norm2) : 1.0;
    for (uint32_t d = 0; d < s->dim; d++) q->x[d] = (float)((double)x[d] * inv);
    prepare_codes(q);
}

/* As scorer_set_vector does, without what walks by code need: of a scorer of rows nothing asks for that. */
static void set_row(scorer *q, uint32_t slot) {
    const store *s = q->s;
    double dot;
    store_get(s, slot, q->x);
    for (uint32_t d = 0; d < s->dim; d++) q->wide[d] = (double)q->x[d];
    s->kernels->exact_dot(q->wide, store_high(s, slot), store_low(s, slot), 0, s->dim16, &dot, &q->exact_norm2);
    if (s->metric != FVDB_METRIC_COSINE) return;
    double inv = 1.0 / sqrt(q->exact_norm2);
    for (uint32_t d = 0; d < s->dim; d++) q->x[d] = (float)(q->wide[d] * inv);
}

void scorer_set_slot(scorer *q, uint32_t slot) {
    const store *s = q->s;
    q->by = store_walks_by(s);
    if (q->by == WALK_BY_ROW) {
        set_row(q, slot);
        return;
    }
    if (q->by == WALK_BY_CODE) {
        s->kernels->code_decode(store_code(s, slot), s->book.lo, s->book.step, s->dim64, q->x);
        if (s->metric == FVDB_METRIC_L2) q->norm2 = ((const float *)s->code_norm2.base)[slot];
        prepare_codes(q);
        return;
    }
    static const uint16_t no_low[FVDB_DIM_MAX];
    s->kernels->join_planes(store_high(s, slot), no_low, s->dim, q->x);
    if (s->metric != FVDB_METRIC_COSINE) return;
    float inv = ((const float *)s->inv_norm.base)[slot];
    for (uint32_t d = 0; d < s->dim; d++) q->x[d] *= inv;
}

/* Components near the end of the float32 range overflow here; such a row must stay orderable, if only as the last. */
static float orderable(float d) { return d == d ? d : FLT_MAX; }

static void score_codes(const scorer *q, const uint32_t *slots, uint32_t n, float *out) {
    const store *s = q->s;
    int32_t products[64];
    for (uint32_t at = 0; at < n; at += 64) {
        uint32_t m = min_u32(64, n - at);
        s->kernels->code_dot(q->q_lo, q->q_hi, s->codes.base, s->code_bytes, slots + at, m, products);
        for (uint32_t i = 0; i < m; i++) out[at + i] = q->base + q->scale * (float)products[i];
    }
    if (s->metric == FVDB_METRIC_L2) {
        const float *norm2 = (const float *)s->code_norm2.base;
        for (uint32_t i = 0; i < n; i++) out[i] = orderable((q->norm2 - 2.0f * out[i]) + norm2[slots[i]]);
    } else {
        float origin = s->metric == FVDB_METRIC_COSINE ? 1.0f : 0.0f;
        for (uint32_t i = 0; i < n; i++) out[i] = orderable(origin - out[i]);
    }
}

void scorer_high(const scorer *q, const uint32_t *slots, uint32_t n, float *out) {
    const store *s = q->s;
    const uint16_t *high = (const uint16_t *)s->high.base;
    if (s->metric == FVDB_METRIC_L2) {
        s->kernels->high_l2(q->x, high, s->dim16, slots, n, out);
        for (uint32_t i = 0; i < n; i++) out[i] = orderable(out[i]);
        return;
    }
    s->kernels->high_dot(q->x, high, s->dim16, slots, n, out);
    const float *inv_norm = (const float *)s->inv_norm.base;
    bool cosine = s->metric == FVDB_METRIC_COSINE;
    for (uint32_t i = 0; i < n; i++) out[i] = orderable(cosine ? 1.0f - out[i] * inv_norm[slots[i]] : -out[i]);
}

/* Under cosine by the difference of rows of length 1: where rows are far from the origin and near each other, 1 less a product
 * would have nothing left of what tells them apart.  What does not fit into a float32 on its way is scored exactly. */
static void score_rows(const scorer *q, const uint32_t *slots, uint32_t n, float *out) {
    const store *s = q->s;
    const uint16_t *high = (const uint16_t *)s->high.base, *low = (const uint16_t *)s->low.base;
    const float *inv_norm = s->metric == FVDB_METRIC_COSINE ? (const float *)s->inv_norm.base : NULL;
    if (s->metric == FVDB_METRIC_DOT) s->kernels->row_dot(q->x, high, low, s->dim16, slots, n, out);
    else s->kernels->row_l2(q->x, high, low, inv_norm, s->dim16, slots, n, out);
    const float factor = inv_norm ? 0.5f : s->metric == FVDB_METRIC_DOT ? -1.0f : 1.0f;
    for (uint32_t i = 0; i < n; i++) {
        out[i] *= factor;
        const bool scaled = !inv_norm || (inv_norm[slots[i]] >= INV_NORM_MIN && inv_norm[slots[i]] <= INV_NORM_MAX);
        if (scaled && fabsf(out[i]) <= FLT_MAX) continue;
        out[i] = orderable((float)walk_units(s, scorer_exact(q, slots[i])));
    }
}

void scorer_approximate(const scorer *q, const uint32_t *slots, uint32_t n, float *out) {
    if (store_approximate(q->s) == WALK_BY_CODE) score_codes(q, slots, n, out);
    else scorer_high(q, slots, n, out);
}

void scorer_prefetched(const scorer *q, const uint32_t *slots, uint32_t n, float *out) {
    if (q->by == WALK_BY_ROW) score_rows(q, slots, n, out);
    else scorer_approximate(q, slots, n, out);
}

static double exact_distance(const scorer *q, const uint16_t *high, const uint16_t *low, ptrdiff_t ahead) {
    const store *s = q->s;
    if (s->metric == FVDB_METRIC_L2) return sqrt(s->kernels->exact_l2(q->wide, high, low, ahead, s->dim16));
    double dot, norm2;
    s->kernels->exact_dot(q->wide, high, low, ahead, s->dim16, &dot, &norm2);
    if (s->metric == FVDB_METRIC_DOT) return -dot;
    /* sqrt of the product, not product of roots: a row against itself gives exactly 0. */
    double cosine = dot / sqrt(q->exact_norm2 * norm2);
    return 1.0 - (cosine > 1.0 ? 1.0 : cosine < -1.0 ? -1.0 : cosine);
}

double scorer_exact_then(const scorer *q, uint32_t slot, uint32_t next) {
    const store *s = q->s;
    const ptrdiff_t ahead = ((ptrdiff_t)next - (ptrdiff_t)slot) * (ptrdiff_t)s->dim16;
    return exact_distance(q, store_high(s, slot), store_low(s, slot), ahead);
}

double scorer_exact(const scorer *q, uint32_t slot) { return scorer_exact_then(q, slot, slot); }

double scorer_exact_halves(const scorer *q, const uint16_t *high, const uint16_t *low) {
    return exact_distance(q, high, low, 0);
}

/* ---- bounds ---- */

/* A sum of float32 in 16 lanes is off by less than this times its terms a lane, and some for what was done to each: as a
 * share of the terms' sizes. */
#define ROUNDING_OF_ONE 0x1p-23
#define ROUNDINGS_BESIDE 16u
/* Half of the last bit of a bfloat16, and what rounding adds. */
#define HIGH_LOST 0x1.04p-8

/* w = x * step, as code_prepare sees it, was rounded to scale * q, and what was lost is multiplied by the row's levels.
 * Counted from their middle, a half is known: shift.  The rest is at most the largest distance of a level from the middle
 * times what was lost, summed; and at most the distance of the decoded row from the middle times that of the query from what
 * was made of it (Cauchy and Schwarz). */
static void bound_quantising(bounds *b) {
    const scorer *q = b->q;
    const store *s = q->s;
    double lost = 0, lost_sizes = 0, apart2 = 0, sizes = 0;
    for (uint32_t d = 0; d < s->dim; d++) {
        uint32_t at = d / CODE_DIMS * CODE_BLOCK_BYTES + d % CODE_BLOCK_BYTES;
        int8_t weight = d % CODE_DIMS < CODE_BLOCK_BYTES ? q->q_lo[at] : q->q_hi[at];
        double w = (double)q->x[d] * s->book.step[d], off = w - (double)q->scale * weight;
        double apart = off * s->book.inv_step[d];
        lost += off;
        lost_sizes += fabs(off);
        apart2 += apart * apart;
        sizes += fabs((double)q->x[d] * s->book.lo[d]) + (CODE_LEVELS - 1) * fabs(w);
    }
    const double by_levels = CODE_MIDDLE * lost_sizes, by_spread = sqrt(apart2) * s->code_spread_max;
    b->shift = CODE_MIDDLE * lost;
    /* What overflowed is not less. */
    b->product_error = (by_spread < by_levels ? by_spread : by_levels) + b->rounding * sizes + (double)FLT_MIN;
}

void bounds_init(bounds *b, const scorer *q) {
    const store *s = q->s;
    *b = (bounds){.q = q,
                  .norm = s->metric == FVDB_METRIC_COSINE ? 1.0 : sqrt(q->exact_norm2),
                  .rounding = (s->dim64 / PLANE_LANES + ROUNDINGS_BESIDE) * ROUNDING_OF_ONE,
                  .high_serves = s->metric != FVDB_METRIC_DOT || store_has_codes(s)};
    if (store_has_codes(s)) bound_quantising(b);
}

/* |q - x|^2 <= (exact + error)^2, where x lost `error`. */
static reach reach_l2(const bounds *b, double exact, double beside) {
    const double more = 1 + b->rounding;
    return (reach){more * exact * exact + beside, 2 * more * exact, more};
}

/* Cauchy and Schwarz: the product with what was lost. */
static reach reach_product(const bounds *b, double exact, double beside) {
    const double origin = b->q->s->metric == FVDB_METRIC_COSINE ? 1 : 0;
    return (reach){exact + beside + b->rounding * (origin + fabs(exact)), b->norm, 0};
}

reach bounds_by_code(const bounds *b, double exact) {
    const double quantised = b->shift + b->product_error;
    if (b->q->s->metric != FVDB_METRIC_L2) return reach_product(b, exact, quantised);
    return reach_l2(b, exact, 2 * quantised + 4 * b->rounding * b->norm * b->norm);
}

reach bounds_by_high(const bounds *b, double exact) {
    if (b->q->s->metric != FVDB_METRIC_L2) return reach_product(b, exact, (double)FLT_MIN);
    /* A row that is so near is no longer than this, whatever others are. */
    const double far = exact + (HIGH_LOST + b->rounding) * (b->norm + exact);
    return (reach){reach_l2(b, far, (double)FLT_MIN).base, 0, 0};
}

double high_error(const bounds *b, uint32_t slot) {
    const store *s = b->q->s;
    const double share = HIGH_LOST + b->rounding;
    if (s->metric == FVDB_METRIC_L2) return 0;
    if (s->metric == FVDB_METRIC_COSINE) {
        const float inv = ((const float *)s->inv_norm.base)[slot];
        return inv >= INV_NORM_MIN && inv <= INV_NORM_MAX ? share : (double)INFINITY;
    }
    const float norm2 = ((const float *)s->code_norm2.base)[slot];
    if (norm2 >= FLT_MAX) return (double)INFINITY; /* it was cut off */
    return share * (sqrt((double)norm2) + store_code_error(s, slot)) + (double)FLT_MIN;
}
