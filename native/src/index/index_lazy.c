/* Searching an index whose vectors and links stay where they are stored.
 *
 * It has ids, timestamps, tombstones and bit codes.  A search asks the bit codes where the nearest rows may be, the caller
 * brings the parts with the vectors of these, and every live row of such a part is scored exactly.  Rows of a part lie near
 * each other (index_reorder.c), so the few parts of the likeliest rows hold most of the nearest.
 *
 * The scratch memory of an index is made for walks of its graph; there is none here, so these calls allocate their own. */
#include "index.h"

#include <math.h>

static void join_bytes(const uint8_t *low, const uint8_t *high, uint32_t n, uint16_t *out) {
    for (uint32_t i = 0; i < n; i++) out[i] = (uint16_t)(low[i] | (uint32_t)high[i] << 8);
}

void part_row(const part_rows *p, uint32_t dim, uint32_t row, uint16_t *high, uint16_t *low) {
    assert(row < p->n);
    const size_t plane = (size_t)p->n * dim;
    const uint8_t *at = p->planes + (size_t)row * dim;
    join_bytes(at, at + plane, dim, high);
    join_bytes(at + 2 * plane, at + 3 * plane, dim, low);
}

/* The distance of an estimate: under L2 it is of the square, which errors may bring below 0. */
static double in_units(uint32_t metric, double estimate) {
    if (metric == FVDB_METRIC_L2) return sqrt(estimate > 0 ? estimate : 0);
    return metric == FVDB_METRIC_COSINE ? 1 + estimate : estimate;
}

fvdb_status index_candidates(const fvdb_index *index, const float *query, uint32_t most, const uint64_t *allow,
                             uint64_t allow_words, uint32_t *out_slots, double *out_distances, uint32_t *out_count,
                             fvdb_diag *diag) {
    const store *s = &index->store;
    scorer q;
    if (scorer_init(&q, s) != FVDB_OK) return FAIL_MEMORY(diag);
    hit *hits = mem_alloc_array(most, sizeof *hits);
    int8_t *room = mem_alloc_array(s->dim64, 1);
    if (hits && room) {
        scorer_set_vector(&q, query);
        bit_codes_search(&index->bit_codes, &q, room, most, allow, allow_words, hits, out_count);
        for (uint32_t i = 0; i < *out_count; i++) {
            out_slots[i] = hits[i].slot;
            out_distances[i] = in_units(s->metric, hits[i].distance);
        }
    }
    const bool had = hits && room;
    mem_free(hits);
    mem_free(room);
    scorer_free(&q);
    return had ? FVDB_OK : FAIL_MEMORY(diag);
}

fvdb_status index_part_search(const fvdb_index *index, const part_rows *rows, const float *query, uint32_t k,
                              const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots, double *out_distances,
                              uint32_t *out_count, fvdb_diag *diag) {
    const store *s = &index->store;
    const row_filter wanted = {.live = store_found(s), .allow = allow, .allow_words = allow_words};
    /* Padded with zeros, as the kernels want their rows. */
    uint16_t high[FVDB_DIM_MAX] = {0}, low[FVDB_DIM_MAX] = {0};
    scorer q;
    uint32_t found = 0;
    if (scorer_init(&q, s) != FVDB_OK) return FAIL_MEMORY(diag);
    hit *hits = mem_alloc_array(k, sizeof *hits);
    if (hits) {
        scorer_set_vector(&q, query);
        for (uint32_t row = 0; row < rows->n; row++) {
            if (!row_allowed(&wanted, rows->first + row)) continue;
            part_row(rows, s->dim, row, high, low);
            hits_offer(s, hits, &found, k, (hit){scorer_exact_halves(&q, high, low), rows->first + row});
        }
        hits_sort(s, hits, found);
        for (uint32_t i = 0; i < found; i++) {
            out_slots[i] = hits[i].slot;
            out_distances[i] = hits[i].distance;
        }
        *out_count = found;
    }
    const bool had = hits != NULL;
    mem_free(hits);
    scorer_free(&q);
    return had ? FVDB_OK : FAIL_MEMORY(diag);
}

fvdb_status index_part_vectors(const fvdb_index *index, const part_rows *rows, const uint32_t *slots, uint32_t n,
                               float *out, fvdb_diag *diag) {
    const store *s = &index->store;
    uint16_t high[FVDB_DIM_MAX], low[FVDB_DIM_MAX];
    for (uint32_t i = 0; i < n; i++) {
        if (slots[i] < rows->first || slots[i] - rows->first >= rows->n)
            return FAIL_AT(diag, FVDB_ERR_NOT_FOUND, "the part does not have the slot", i, rows->first, slots[i]);
        part_row(rows, s->dim, slots[i] - rows->first, high, low);
        s->kernels->join_planes(high, low, s->dim, out + (size_t)i * s->dim);
    }
    return FVDB_OK;
}
