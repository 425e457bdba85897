/* k-means over a sample: k-means++ (Arthur & Vassilvitskii 2007) to begin with, then Lloyd's iterations.
 *
 * Departs from the papers: distances are those to the 4-bit codes of centroids, so that the assignment the iterations
 * converge to is the one that searches see, and a comparison costs 192 bytes instead of 1,536.  Seeds come from a smaller
 * sample than the iterations.  A list without rows, and the smallest one while another is GIANT times the mean, takes the
 * farthest row of the largest for a centroid.
 *
 * Rows are sampled by position, compared by integer products, and added up in row order list by list: any number of
 * threads and any kernel gives the same centroids. */
#include "ivf.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* More rows change recall by less than 0.002 (docs/decisions/0015-hybrid-lists.md). */
#define SAMPLE_PER_LIST 64u
#define SEEDS_PER_LIST 6u
/* An iteration that gained less than this ends them. */
#define GAIN_MIN 0.001
#define GIANT 8u
#define SEED UINT64_C(0x49564620)

const uint32_t ivf_recalls[IVF_RECALLS] = {800, 900, 950, 970, 980, 990, 995, 999};
const uint32_t ivf_ks[IVF_KS] = {10, 100};

uint32_t ivf_nlist(uint32_t rows) {
    uint32_t by_root = (uint32_t)(4 * sqrt((double)rows)), by_rows = rows / 16;
    return max_u32(min_u32(by_root, by_rows), 1);
}

/* ---- centroids ---- */

fvdb_status ivf_centroids_alloc(ivf_centroids *c, const store *s, uint32_t nlist) {
    *c = (ivf_centroids){.nlist = nlist};
    if (codebook_alloc(&c->book, s->dim64) == FVDB_OK && region_resize(&c->codes, (size_t)nlist * s->code_bytes) &&
        region_resize(&c->norm2, (size_t)nlist * sizeof(float)))
        return FVDB_OK;
    ivf_centroids_free(c);
    return FVDB_ERR_MEMORY;
}

void ivf_centroids_free(ivf_centroids *c) {
    codebook_free(&c->book);
    region_free(&c->codes);
    region_free(&c->norm2);
    *c = (ivf_centroids){0};
}

void ivf_centroids_derive(ivf_centroids *c, const store *s) {
    float x[FVDB_DIM_MAX];
    codebook_derive(&c->book, s->dim64);
    for (uint32_t list = 0; list < c->nlist; list++) {
        double norm2 = 0;
        ivf_centroid(c, s, list, x);
        for (uint32_t d = 0; d < s->dim; d++) norm2 += (double)x[d] * x[d];
        ((float *)c->norm2.base)[list] = to_finite_float(norm2);
    }
}

void ivf_look(ivf_view *v, const ivf_centroids *c, const store *s, const float *x) {
    v->centroids = c;
    v->s = s;
    v->by_product = false;
    s->kernels->code_prepare(x, c->book.lo, c->book.step, s->dim64, v->q_lo, v->q_hi, &v->base, &v->scale);
}

void ivf_products(const ivf_view *v, const uint32_t *lists, uint32_t n, float *out) {
    const store *s = v->s;
    int32_t products[IVF_CHUNK];
    assert(n <= IVF_CHUNK);
    s->kernels->code_dot(v->q_lo, v->q_hi, v->centroids->codes.base, s->code_bytes, lists, n, products);
    for (uint32_t i = 0; i < n; i++) out[i] = v->base + v->scale * (float)products[i];
}

void ivf_distances_of(const ivf_view *v, const uint32_t *lists, uint32_t n, float *out) {
    const float *norm2 = (const float *)v->centroids->norm2.base;
    ivf_products(v, lists, n, out);
    for (uint32_t i = 0; i < n; i++) out[i] = v->by_product ? -out[i] : norm2[lists[i]] - 2.0f * out[i];
}

void ivf_distances(const ivf_view *v, uint32_t first, uint32_t n, float *out) {
    uint32_t lists[IVF_CHUNK];
    for (uint32_t i = 0; i < IVF_CHUNK; i++) lists[i] = first + i;
    ivf_distances_of(v, lists, n, out);
}

/* ---- training ---- */

typedef struct trainer {
    const store *s;
    const progress_range *range;
    ivf_centroids *c;
    uint32_t n; /* rows of the sample */
    uint32_t *rows;
    uint32_t *lists; /* of each row, and its squared distance from there */
    float *errors;
    uint32_t *starts, *by_list; /* rows of the sample list by list: nlist + 1 and n entries */
    float *centres;             /* nlist x dim64 */
} trainer;

static float *centre_of(const trainer *t, uint32_t list) { return t->centres + (size_t)list * t->s->dim64; }

/* One row out of each of m equal stretches. */
static void take_sample(const uint32_t *slots, uint32_t n, uint32_t *out, uint32_t m) {
    for (uint32_t i = 0; i < m; i++) {
        uint32_t from = (uint32_t)((uint64_t)n * i / m), end = (uint32_t)((uint64_t)n * (i + 1) / m);
        out[i] = slots[from + (uint32_t)(mix64(SEED ^ i) % (end - from))];
    }
}

/* Codes of the centres, which from here on are what a centroid is. */
static void code_centres(trainer *t) {
    const store *s = t->s;
    ivf_centroids *c = t->c;
    for (uint32_t d = 0; d < s->dim; d++) {
        double sum = 0, squares = 0;
        for (uint32_t list = 0; list < c->nlist; list++) {
            double x = (double)centre_of(t, list)[d];
            sum += x;
            squares += x * x;
        }
        double mean = sum / c->nlist;
        codebook_span(&c->book, d, mean, squares / c->nlist - mean * mean);
    }
    codebook_derive(&c->book, s->dim64);
    for (uint32_t list = 0; list < c->nlist; list++)
        s->kernels->code_encode(centre_of(t, list), c->book.lo, c->book.inv_step, s->dim64,
                                c->codes.base + (size_t)list * s->code_bytes);
    ivf_centroids_derive(c, s);
}

/* ---- k-means++ ---- */

/* The first row whose share of the weights reaches `part` of their sum. */
static uint32_t pick_weighted(const float *weights, uint32_t n, uint64_t random) {
    double total = 0, sum = 0, part = (double)(random >> 11) * 0x1p-53;
    for (uint32_t i = 0; i < n; i++) total += (double)weights[i];
    for (uint32_t i = 0; i < n; i++) {
        sum += (double)weights[i];
        if (sum > part * total) return i;
    }
    return (uint32_t)(random % n); /* all weights are zero: equal rows */
}

/* Rows far from the centres so far are likelier to be the next.  Compares rows by codes, all of them under one codebook:
 * `room` is that of the centroids, which takes them in turn. */
static void seed_centres(trainer *t, const ivf_centroids *seeds, const uint32_t *rows, float *weights) {
    ivf_view view;
    float distances[IVF_CHUNK];
    uint32_t n = seeds->nlist, next = (uint32_t)(mix64(SEED) % n);
    for (uint32_t i = 0; i < n; i++) weights[i] = FLT_MAX;
    for (uint32_t list = 0; list < t->c->nlist; list++) {
        float *x = centre_of(t, list);
        coded_row(t->s, rows[next], x);
        ivf_look(&view, seeds, t->s, x);
        double norm2 = 0;
        for (uint32_t d = 0; d < t->s->dim; d++) norm2 += (double)x[d] * x[d];
        float own = to_finite_float(norm2);
        for (uint32_t at = 0; at < n; at += IVF_CHUNK) {
            uint32_t chunk = min_u32(IVF_CHUNK, n - at);
            ivf_distances(&view, at, chunk, distances);
            for (uint32_t i = 0; i < chunk; i++) {
                float error = distances[i] + own;
                weights[at + i] = error > 0 ? error < weights[at + i] ? error : weights[at + i] : 0;
            }
        }
        next = pick_weighted(weights, n, mix64(SEED + 1 + list));
    }
}

static uint32_t seed_rows(uint32_t n, uint32_t nlist) {
    return min_u32(n, max_u32(SEEDS_PER_LIST * nlist, IVF_TRAIN_ROWS_MIN));
}

/* The rows of a smaller sample, coded as if each was a centroid. */
static fvdb_status begin(trainer *t, const uint32_t *slots, uint32_t n) {
    uint32_t m = seed_rows(n, t->c->nlist);
    trainer whole = *t;
    ivf_centroids seeds;
    uint32_t *rows = mem_alloc_array(m, sizeof *rows);
    float *weights = mem_alloc_array(m, sizeof *weights);
    whole.centres = mem_alloc_array((size_t)m * t->s->dim64, sizeof(float));
    fvdb_status status = rows && weights && whole.centres ? ivf_centroids_alloc(&seeds, t->s, m) : FVDB_ERR_MEMORY;
    if (status == FVDB_OK) {
        take_sample(slots, n, rows, m);
        whole.c = &seeds;
        for (uint32_t i = 0; i < m; i++) coded_row(t->s, rows[i], centre_of(&whole, i));
        code_centres(&whole);
        seed_centres(t, &seeds, rows, weights);
        ivf_centroids_free(&seeds);
    }
    mem_free(rows);
    mem_free(weights);
    mem_free(whole.centres);
    return status;
}

/* ---- Lloyd ---- */

static void sort_by_list(trainer *t) { counting_sort(t->lists, t->n, t->c->nlist, t->starts, t->by_list); }

/* The mean of a list's rows, added in row order; under cosine at length 1, as they are (spherical k-means, Dhillon & Modha
 * 2001): at 48 lists that is 0.004 of recall. */
static void average_list(void *context, uint32_t worker, uint32_t list) {
    (void)worker;
    trainer *t = context;
    const store *s = t->s;
    uint32_t from = t->starts[list], end = t->starts[list + 1];
    double sums[FVDB_DIM_MAX] = {0};
    float x[FVDB_DIM_MAX];
    if (from == end) return;
    for (uint32_t at = from; at < end; at++) {
        coded_row(s, t->rows[t->by_list[at]], x);
        for (uint32_t d = 0; d < s->dim; d++) sums[d] += (double)x[d];
    }
    double norm2 = 0, length = end - from;
    for (uint32_t d = 0; d < s->dim; d++) norm2 += sums[d] * sums[d];
    if (s->metric == FVDB_METRIC_COSINE && norm2 > 0) length = sqrt(norm2);
    float *centre = centre_of(t, list);
    for (uint32_t d = 0; d < s->dim; d++) centre[d] = to_finite_float(sums[d] / length);
}

/* The row of a list that is farthest from its centroid, as a position in the sample; FVDB_NO_SLOT where all are equal. */
static uint32_t farthest_of(const trainer *t, uint32_t list) {
    uint32_t farthest = FVDB_NO_SLOT;
    float most = 0;
    for (uint32_t at = t->starts[list]; at < t->starts[list + 1]; at++) {
        if (t->errors[t->by_list[at]] <= most) continue;
        farthest = t->by_list[at];
        most = t->errors[farthest];
    }
    return farthest;
}

/* Gives lists without rows, and the smallest while there are giants, a row of the largest to begin with.  sizes: nlist. */
static void split_largest(trainer *t, uint32_t *sizes) {
    uint32_t nlist = t->c->nlist, mean = t->n / nlist;
    for (uint32_t list = 0; list < nlist; list++) sizes[list] = t->starts[list + 1] - t->starts[list];
    for (uint32_t splits = 0; splits < nlist; splits++) {
        uint32_t least = 0, most = 0;
        for (uint32_t list = 1; list < nlist; list++) {
            if (sizes[list] < sizes[least]) least = list;
            if (sizes[list] > sizes[most]) most = list;
        }
        bool giant = sizes[most] > GIANT * mean && sizes[least] < mean / GIANT;
        if (least == most || sizes[most] < 2 || (sizes[least] && !giant)) return;
        uint32_t row = farthest_of(t, most);
        if (row == FVDB_NO_SLOT) {
            sizes[most] = 1; /* equal rows: they stay together */
            continue;
        }
        coded_row(t->s, t->rows[row], centre_of(t, least));
        t->errors[row] = 0;
        sizes[least] = sizes[most] / 2;
        sizes[most] -= sizes[least];
    }
}

/* ---- lists that are near each other ---- */

typedef struct placed {
    double at; /* on the line between two far centres */
    uint32_t list;
} placed;

static int by_place(const void *a, const void *b) {
    const placed *one = a, *other = b;
    if (one->at != other->at) return one->at < other->at ? -1 : 1;
    return one->list < other->list ? -1 : one->list > other->list;
}

static double distance2(const trainer *t, const float *x, uint32_t list) {
    const float *y = centre_of(t, list);
    double sum = 0;
    for (uint32_t d = 0; d < t->s->dim; d++) sum += ((double)x[d] - (double)y[d]) * ((double)x[d] - (double)y[d]);
    return sum;
}

static uint32_t farthest_from(const trainer *t, const float *x, const placed *lists, uint32_t n) {
    uint32_t farthest = lists[0].list;
    double most = -1;
    for (uint32_t i = 0; i < n; i++) {
        const double distance = distance2(t, x, lists[i].list);
        if (distance <= most) continue;
        most = distance;
        farthest = lists[i].list;
    }
    return farthest;
}

/* Cuts lists in two halves along the line between two that are far from each other, and these likewise. */
static void split_by_place(const trainer *t, placed *lists, uint32_t n) {
    for (; n > 2; n /= 2) {
        const float *one = centre_of(t, farthest_from(t, centre_of(t, lists[0].list), lists, n));
        const float *other = centre_of(t, farthest_from(t, one, lists, n));
        for (uint32_t i = 0; i < n; i++) {
            const float *x = centre_of(t, lists[i].list);
            lists[i].at = 0;
            for (uint32_t d = 0; d < t->s->dim; d++) lists[i].at += (double)x[d] * ((double)other[d] - (double)one[d]);
        }
        qsort(lists, n, sizeof *lists, by_place);
        split_by_place(t, lists + n / 2, n - n / 2);
    }
}

/* Gives centres that are near each other numbers that are: their rows will stand in this order, and be stored in it. */
static bool put_near_together(trainer *t) {
    const uint32_t nlist = t->c->nlist;
    const size_t bytes = (size_t)nlist * t->s->dim64 * sizeof(float);
    placed *lists = mem_alloc_array(nlist, sizeof *lists);
    float *centres = mem_alloc_array(1, bytes);
    const bool had = lists && centres;
    if (had) {
        for (uint32_t list = 0; list < nlist; list++) lists[list].list = list;
        split_by_place(t, lists, nlist);
        for (uint32_t list = 0; list < nlist; list++)
            memcpy(centres + (size_t)list * t->s->dim64, centre_of(t, lists[list].list), t->s->dim64 * sizeof(float));
        memcpy(t->centres, centres, bytes);
    }
    mem_free(lists);
    mem_free(centres);
    return had;
}

/* Centroids with one code are one list.  All rows would be on the first of them, and a search would look at the others in
 * vain: of few dimensions there are fewer codes than lists. */
static void drop_equal(const trainer *t) {
    ivf_centroids *c = t->c;
    const size_t bytes = t->s->code_bytes;
    float *norm2 = (float *)c->norm2.base;
    uint32_t kept = 0;
    for (uint32_t list = 0; list < c->nlist; list++) {
        const uint8_t *code = c->codes.base + list * bytes;
        bool had = false;
        for (uint32_t other = 0; other < kept && !had; other++)
            had = memcmp(c->codes.base + other * bytes, code, bytes) == 0;
        if (had) continue;
        memmove(c->codes.base + kept * bytes, code, bytes);
        norm2[kept++] = norm2[list];
    }
    c->nlist = kept;
    region_resize(&c->codes, kept * bytes);
    region_resize(&c->norm2, kept * sizeof *norm2);
}

static double mean_error(const trainer *t) {
    double sum = 0;
    for (uint32_t i = 0; i < t->n; i++) sum += (double)t->errors[i];
    return sum / t->n;
}

static fvdb_status iterate(trainer *t, uint32_t iterations, thread_pool *c, uint32_t *sizes, fvdb_diag *diag) {
    double before = (double)INFINITY;
    for (uint32_t i = 0; i < iterations; i++) {
        if (control_cancelled(t->range->control)) return FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
        code_centres(t);
        ivf_assign(t->c, t->s, t->rows, t->n, c, &(ivf_places){t->lists, NULL, t->errors});
        progress_report(t->range, (i + 1) * t->range->rows / iterations);
        double error = mean_error(t);
        if (error > before * (1 - GAIN_MIN)) break;
        before = error;
        sort_by_list(t);
        thread_pool_run(c, average_list, t, t->c->nlist);
        split_largest(t, sizes);
    }
    if (!put_near_together(t)) return FAIL_MEMORY(diag);
    code_centres(t);
    drop_equal(t);
    return FVDB_OK;
}

uint64_t ivf_train_scratch(uint32_t dim, uint32_t n, uint32_t nlist) {
    const uint64_t dim64 = round_up(dim, CODE_DIMS), centre = dim64 * sizeof(float), code = dim64 / 2 + sizeof(float);
    const uint64_t sample = min_u32(n, SAMPLE_PER_LIST * nlist), seeds = seed_rows(n, nlist);
    /* Centres twice: they are put in order in the end, when the seeds are gone. */
    return nlist * (2 * centre + code + 3 * sizeof(uint32_t) + sizeof(placed)) +
           seeds * (centre + code + 2 * sizeof(uint32_t)) + sample * 4 * sizeof(uint32_t);
}

fvdb_status ivf_train(const store *s, const uint32_t *slots, uint32_t n, uint32_t nlist, uint32_t iterations,
                      thread_pool *c, const progress_range *range, ivf_centroids *out, fvdb_diag *diag) {
    uint32_t m = min_u32(n, SAMPLE_PER_LIST * nlist);
    if (ivf_centroids_alloc(out, s, nlist) != FVDB_OK) return FAIL_MEMORY(diag);
    trainer t = {.s = s, .range = range, .c = out, .n = m};
    t.rows = mem_alloc_array(m, sizeof *t.rows);
    t.lists = mem_alloc_array(m, sizeof *t.lists);
    t.errors = mem_alloc_array(m, sizeof *t.errors);
    t.by_list = mem_alloc_array(m, sizeof *t.by_list);
    t.starts = mem_alloc_array((size_t)nlist + 1, sizeof *t.starts);
    t.centres = mem_alloc_array((size_t)nlist * s->dim64, sizeof *t.centres);
    uint32_t *sizes = mem_alloc_array(nlist, sizeof *sizes);
    fvdb_status status = t.rows && t.lists && t.errors && t.by_list && t.starts && t.centres && sizes
                             ? begin(&t, slots, n)
                             : FVDB_ERR_MEMORY;
    if (status != FVDB_OK) {
        FAIL(diag, status, "allocation failed");
    } else {
        take_sample(slots, n, t.rows, m);
        status = iterate(&t, iterations, c, sizes, diag);
        out->trained_rows = n;
        out->trained_error = mean_error(&t);
    }
    mem_free(t.rows);
    mem_free(t.lists);
    mem_free(t.errors);
    mem_free(t.by_list);
    mem_free(t.starts);
    mem_free(t.centres);
    mem_free(sizes);
    if (status != FVDB_OK) ivf_centroids_free(out);
    return status;
}
