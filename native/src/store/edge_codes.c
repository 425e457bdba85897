/* Edge codes: one bit a dimension for a row relative to a point near it, the node that links to it or the centroid of its
 * list.  Who knows how far a query is from the point knows roughly how far it is from the row, before it fetches anything of it.
 *
 * The codes are RaBitQ's (Gao & Long 2024).  With the point c, a row o and r = o - c, all rotated, a query q and s the signs of
 * r:
 *     |q - o|^2 = |q - c|^2 + |r|^2 - 2 <q - c, r>,   <q - c, r> is about |r|^2 / <r, s> x (<q, s> - <c, s>).
 * <q, s> is looked up; the rest are two factors of the row and the distance of c.  The estimate is unbiased, and off by
 * some 0.6 |q - c| |r| / sqrt(dim) / 0.8.  Under dot the query's own product with r is estimated: there |q - c| says nothing
 * about the products.
 * Sums of q and c are taken from an origin amid the rows, so that what rounding them loses is little.
 *
 * Codes are bits and bfloat16 factors, in groups of EDGE_LANES as a kernel reads them (kernels.h, edge_near). */
#include "store.h"

#include <math.h>

/* The square of the sum of a vector of length 1 times signs that do not tell its direction: 1 - 0.8^2. */
#define SPREAD2 0.36f

static uint16_t high_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x8000u) >> 16);
}

/* ---- rows ---- */

/* The middle of a dimension's levels is the mean of what was coded. */
bool edge_set_origin(const store *s, const codebook *book, float *origin) {
    float *rotated = origin + s->dim64;
    bool changed = false;
    for (uint32_t d = 0; d < s->dim64; d++) {
        const float middle = s->metric == FVDB_METRIC_DOT ? 0 : book->lo[d] + 7.5f * book->step[d];
        changed |= !(origin[d] == middle);
        rotated[d] = origin[d] = middle;
    }
    s->kernels->edge_rotate(rotated, s->dim64);
    return changed;
}

void edge_rotated_row(const store *s, uint32_t slot, float *x) {
    coded_row(s, slot, x);
    for (uint32_t d = s->dim; d < s->dim64; d++) x[d] = 0;
    s->kernels->edge_rotate(x, s->dim64);
}

void edge_code_nothing(uint8_t *group, uint32_t lane) {
    uint16_t *factors = (uint16_t *)group;
    factors[lane] = 0;
    factors[EDGE_LANES + lane] = high_half(INFINITY);
}

void edge_code_row(const store *s, const float *origin, const float *row, const float *point, uint8_t *group,
                   uint32_t lane) {
    const float *rotated = origin + s->dim64;
    float difference[FVDB_DIM_MAX], centred[FVDB_DIM_MAX], norm2, sizes, product;
    uint16_t *factors = (uint16_t *)group;
    for (uint32_t d = 0; d < s->dim64; d++) {
        difference[d] = row[d] - point[d];
        centred[d] = point[d] - rotated[d];
    }
    s->kernels->edge_code(difference, centred, s->dim64, lane, group + EDGE_CODES_AT, &norm2, &sizes, &product);
    const float length = sizes > 0 ? norm2 / sizes : 0, unit = s->metric == FVDB_METRIC_L2 ? 1.0f : 0.5f;
    const float factor = -2 * unit * length;
    const float addend = s->metric == FVDB_METRIC_DOT ? 0 : unit * norm2 - factor * product;
    /* Components near the end of the float32 range: always near, since nothing is known. */
    const bool known = factor > -CODE_WEIGHT_MAX && fabsf(addend) < CODE_WEIGHT_MAX;
    factors[lane] = known ? high_half(factor) : 0;
    factors[EDGE_LANES + lane] = high_half(known ? addend : -INFINITY);
}

/* ---- the query ---- */

fvdb_status edge_query_init(edge_query *q, const store *s) {
    const size_t floats = s->dim64 * sizeof(float);
    uint8_t *p = mem_alloc_array(1, floats + s->dim64 / 4 * EDGE_TABLE_BYTES);
    if (!p) return FVDB_ERR_MEMORY;
    *q = (edge_query){.x = (float *)p, .tables = p + floats};
    return FVDB_OK;
}

void edge_query_free(edge_query *q) { mem_free(q->x); }

void edge_query_set(edge_query *q, const scorer *query, const float *origin) {
    const store *s = query->s;
    float sums[PLANE_LANES] = {0};
    for (uint32_t d = 0; d < s->dim64; d += PLANE_LANES) {
        for (uint32_t l = 0; l < PLANE_LANES; l++) {
            const float x = query->x[d + l] - origin[d + l];
            q->x[d + l] = x;
            sums[l] += x * x;
        }
    }
    q->gap2 = 0;
    for (uint32_t l = 0; l < PLANE_LANES; l++) q->gap2 += sums[l];
    s->kernels->edge_rotate(q->x, s->dim64);
    s->kernels->edge_prepare(q->x, s->dim64, q->tables, &q->scale, &q->offset, &q->error);
}

float edge_offset(const edge_query *q, const scorer *query, float distance, float spreads) {
    float gap2 = distance; /* |q - c|^2 */
    if (query->s->metric == FVDB_METRIC_COSINE) gap2 = 2 * distance;
    if (query->s->metric == FVDB_METRIC_DOT) gap2 = query->norm2;
    return q->offset + spreads * sqrtf(SPREAD2 * (gap2 > 0 ? gap2 : 0) + q->error);
}

float edge_origin_distance(const edge_query *q, const scorer *query) {
    if (query->s->metric == FVDB_METRIC_DOT) return 0; /* the origin is none */
    return query->s->metric == FVDB_METRIC_COSINE ? 0.5f * q->gap2 : q->gap2;
}
