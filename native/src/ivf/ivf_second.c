/* A second list for each row: SOAR (Sun, Simcha, Dopson, Guo & Kumar, "SOAR: Improved Indexing for Approximate Nearest
 * Neighbor Search", NeurIPS 2023).
 *
 * A query misses a row when the row's residual r = x - c to its centroid c points along the query: then c looks far, though x
 * is near.  The next nearest centroid c' often has a residual r' that points the same way, and is missed by the same queries.
 * SOAR takes the c' with the least
 *     cost = |r'|^2 + lambda (r' . r / |r|)^2,
 * which also counts the part of r' along r (Theorem 3.1).  Lambda is 1.5; 1 and 2 are as good.
 *
 * Departs from the paper: only the SECOND_CANDIDATES nearest centroids are asked, 16 of them as good as all; and not all rows
 * are on a second list.  Those with the least cost for their |r|^2 are: of the other three in ten a search would score more
 * than it would find, and they would take memory for their codes (docs/decisions/0030-second-list.md).
 *
 * Products with r are integers on codes, like those with x, and sums are in float64 in one order: any kernel gives the same
 * lists. */
#include "ivf.h"

#include <math.h>

#define SECOND_WEIGHT 1.5
#define SECOND_CANDIDATES 16u
/* Rows that say which are within the limit. */
#define LIMIT_ROWS 4096u

/* A row's place, and what its second list costs, as a multiple of its squared distance from the first. */
typedef struct priced {
    ivf_place place;
    double cost;
} priced;

/* The nearest centroids in order, as keys; returns how many. */
static uint32_t nearest_few(const ivf_view *v, uint64_t keys[SECOND_CANDIDATES]) {
    float distances[IVF_CHUNK];
    uint32_t n = 0;
    for (uint32_t first = 0; first < v->centroids->nlist; first += IVF_CHUNK) {
        const uint32_t chunk = min_u32(IVF_CHUNK, v->centroids->nlist - first);
        ivf_distances(v, first, chunk, distances);
        if (n == SECOND_CANDIDATES && ivf_least(distances, chunk) > near_distance(keys[n - 1])) continue;
        for (uint32_t i = 0; i < chunk; i++) {
            const uint64_t key = near_key(distances[i], first + i);
            if (n == SECOND_CANDIDATES && key >= keys[n - 1]) continue;
            uint32_t at = n < SECOND_CANDIDATES ? n++ : n - 1;
            for (; at && keys[at - 1] > key; at--) keys[at] = keys[at - 1];
            keys[at] = key;
        }
    }
    return n;
}

static priced price(const ivf_centroids *c, const store *s, const float *x) {
    ivf_view view;
    uint64_t keys[SECOND_CANDIDATES];
    float centre[FVDB_DIM_MAX], residual[FVDB_DIM_MAX] = {0}, products[SECOND_CANDIDATES];
    uint32_t lists[SECOND_CANDIDATES];
    ivf_look(&view, c, s, x);
    const uint32_t n = nearest_few(&view, keys);
    for (uint32_t i = 0; i < n; i++) lists[i] = near_number(keys[i]);
    ivf_centroid(c, s, lists[0], centre);
    double norm2 = 0, length2 = 0, along = 0; /* |x|^2, |r|^2, x . r */
    for (uint32_t d = 0; d < s->dim; d++) {
        residual[d] = (float)((double)x[d] - (double)centre[d]);
        norm2 += (double)x[d] * (double)x[d];
        length2 += (double)residual[d] * (double)residual[d];
        along += (double)x[d] * (double)residual[d];
    }
    const double error = norm2 + (double)near_distance(keys[0]);
    priced best = {.place = {lists[0], IVF_NO_LIST, error > 0 ? to_finite_float(error) : 0}, .cost = (double)INFINITY};
    if (!(length2 > 0)) return best;
    ivf_look(&view, c, s, residual);
    ivf_products(&view, lists, n, products);
    for (uint32_t i = 1; i < n; i++) {
        const double across = along - (double)products[i]; /* r' . r */
        const double cost = norm2 + (double)near_distance(keys[i]) + SECOND_WEIGHT * across * across / length2;
        if (!(cost / length2 < best.cost)) continue;
        best.cost = cost / length2;
        best.place.second = lists[i];
    }
    return best;
}

ivf_place ivf_place_of(const ivf_centroids *c, const store *s, const float *x) {
    priced p = price(c, s, x);
    if (!((float)p.cost < c->second_limit)) p.place.second = IVF_NO_LIST;
    return p.place;
}

/* ---- the limit ---- */

typedef struct limit_job {
    const ivf_centroids *c;
    const store *s;
    const uint32_t *slots;
    uint32_t n, rows; /* slots; rows of them that are asked */
    uint64_t *costs;
} limit_job;

static void price_item(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    const limit_job *job = context;
    float x[FVDB_DIM_MAX] = {0};
    const uint32_t end = min_u32(job->rows, (item + 1) * IVF_ROWS_PER_ITEM);
    for (uint32_t i = item * IVF_ROWS_PER_ITEM; i < end; i++) {
        coded_row(job->s, job->slots[(uint64_t)job->n * i / job->rows], x);
        job->costs[i] = near_key((float)price(job->c, job->s, x).cost, i);
    }
}

fvdb_status ivf_train_seconds(ivf_centroids *c, const store *s, const uint32_t *slots, uint32_t n, thread_pool *pool,
                              fvdb_diag *diag) {
    const uint32_t rows = min_u32(n, LIMIT_ROWS), within = rows * IVF_SECOND_TENTHS / 10;
    uint64_t *costs = mem_alloc_array(rows, sizeof *costs);
    if (!costs) return FAIL_MEMORY(diag);
    limit_job job = {c, s, slots, n, rows, costs};
    thread_pool_run(pool, price_item, &job, (rows + IVF_ROWS_PER_ITEM - 1) / IVF_ROWS_PER_ITEM);
    /* The least cost of those that are not within. */
    keys_select(costs, rows, within + 1);
    float limit = 0;
    for (uint32_t i = 0; i <= within; i++) {
        const float cost = near_distance(costs[i]);
        if (!(cost <= limit)) limit = cost;
    }
    /* Equal rows and single lists have no second: their cost is infinite. */
    c->second_limit = isfinite(limit) ? limit : 0;
    mem_free(costs);
    return FVDB_OK;
}
