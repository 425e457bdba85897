/* An index whose vectors and links stay where they are stored, until somebody needs them.
 *
 * It has ids, timestamps, tombstones and sketches.  A search asks the sketches where the nearest rows may be, the caller
 * fetches the parts with the vectors of these, and every row of a part that was fetched is scored exactly.  Rows of a part
 * lie near each other (index_order.c), so the few parts of the likeliest rows hold most of the nearest. */
#include "format.h"

#define BAD(message) FAIL(diag, FVDB_ERR_FORMAT, message)

static fvdb_status read_sketches(fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    const size_t row = sketch_row_bytes(&index->store);
    TRY(sketch_init(&index->sketch, &index->store, l->shape.rows, diag));
    for (uint32_t number = 0; number < l->numbers[FVDB_PART_CODES].end; number++) {
        const part_blob *b = &l->parts[FVDB_PART_CODES][number];
        const part_span span = format_span(l->shape, l->layout, FVDB_PART_CODES, number);
        if (b->size != span.n * row) return BAD("the codes have another size");
        if (!sketch_read(&index->sketch, span.first, span.n, b->bytes)) return BAD("a code is none of ours");
    }
    return FVDB_OK;
}

/* What came stays with the index only as what it was made into. */
static void drop_payloads(struct loading *l) {
    for (uint32_t kind = 1; kind < PART_KINDS; kind++) {
        for (uint32_t i = 0; i < l->numbers[kind].end; i++) {
            mem_free(l->parts[kind][i].bytes);
            l->parts[kind][i].bytes = NULL;
        }
    }
}

fvdb_status format_load_lazy(fvdb_index *index, fvdb_diag *diag) {
    static const uint32_t needed[] = {FVDB_PART_CODES,      FVDB_PART_IDS,        FVDB_PART_TIMESTAMPS,
                                      FVDB_PART_TOMBSTONES, FVDB_PART_GRAPH_HEAD, FVDB_PART_BARE};
    struct loading *l = index->loading;
    if (!l || !l->shape.coded)
        return FAIL(diag, FVDB_ERR_ARGUMENT, "the index is not being loaded, or too small to have sketches");
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) TRY(format_check_came(l, needed[i], diag));
    TRY(format_read_rows(index, diag));
    TRY(format_read_book(index, diag));
    TRY(read_sketches(index, diag));
    drop_payloads(l);
    return FVDB_OK;
}

/* ---- search ---- */

fvdb_status format_candidates(fvdb_index *index, const float *query, uint32_t most, const uint64_t *allow,
                              uint64_t allow_words, uint32_t *out_slots, uint32_t *out_count, fvdb_diag *diag) {
    const store *s = &index->store;
    scorer q;
    if (scorer_init(&q, s) != FVDB_OK) return FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
    hit *hits = mem_alloc_array(most, sizeof *hits);
    int8_t *room = mem_alloc_array(s->dim64, 1);
    if (hits && room) {
        scorer_set_vector(&q, query);
        sketch_search(&index->sketch, &q, room, most, allow, allow_words, hits, out_count);
        for (uint32_t i = 0; i < *out_count; i++) out_slots[i] = hits[i].slot;
    }
    const bool had = hits && room;
    mem_free(hits);
    mem_free(room);
    scorer_free(&q);
    return had ? FVDB_OK : FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
}

/* ---- parts with vectors that the caller keeps ---- */

typedef struct vectors_part {
    const uint8_t *payload;
    part_span span;
} vectors_part;

static fvdb_status open_part(const fvdb_index *index, const uint8_t *bytes, uint64_t size, vectors_part *out,
                             fvdb_diag *diag) {
    part_header h;
    reader r = reader_over(bytes, (size_t)size);
    if (!index->loading) return FAIL(diag, FVDB_ERR_ARGUMENT, "the index was not loaded lazily");
    TRY(format_read_header(index, &r, &h, diag));
    const size_t payload = (size_t)h.span.n * index->store.dim * 2 * sizeof(uint16_t);
    if (h.kind != FVDB_PART_VECTORS || r.left != payload) return BAD("the part has no vectors, or another size");
    *out = (vectors_part){read_bytes(&r, payload), h.span};
    return FVDB_OK;
}

fvdb_status format_part_check(const fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag) {
    const store *s = &index->store;
    uint16_t high[FVDB_DIM_MAX], low[FVDB_DIM_MAX], high2[FVDB_DIM_MAX], low2[FVDB_DIM_MAX];
    float x[FVDB_DIM_MAX];
    vectors_part part;
    TRY(open_part(index, bytes, size, &part, diag));
    for (uint32_t row = 0; row < part.span.n; row++) {
        format_part_row(part.payload, part.span, s->dim, row, high, low);
        if (!format_row_is_sound(s, store_is_bare(s, part.span.first + row), high, low, x, high2, low2))
            return FAIL_AT(diag, FVDB_ERR_FORMAT,
                           "a vector is not finite, zero under cosine, or not split into nearest halves",
                           part.span.first + row, 0, 0);
    }
    return FVDB_OK;
}

fvdb_status format_part_search(fvdb_index *index, const uint8_t *bytes, uint64_t size, const float *query, uint32_t k,
                               const uint64_t *allow, uint64_t allow_words, uint32_t *out_slots, double *out_distances,
                               uint32_t *out_count, fvdb_diag *diag) {
    const store *s = &index->store;
    const row_filter wanted = {.live = store_found(s), .allow = allow, .allow_words = allow_words};
    /* Padded with zeros, as the kernels want their rows. */
    uint16_t high[FVDB_DIM_MAX] = {0}, low[FVDB_DIM_MAX] = {0};
    vectors_part part;
    scorer q;
    uint32_t found = 0;
    TRY(open_part(index, bytes, size, &part, diag));
    if (scorer_init(&q, s) != FVDB_OK) return FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
    hit *hits = mem_alloc_array(k, sizeof *hits);
    if (hits) {
        scorer_set_vector(&q, query);
        for (uint32_t row = 0; row < part.span.n; row++) {
            if (!row_allowed(&wanted, part.span.first + row)) continue;
            format_part_row(part.payload, part.span, s->dim, row, high, low);
            hits_offer(s, hits, &found, k, (hit){scorer_exact_halves(&q, high, low), part.span.first + row});
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
    return had ? FVDB_OK : FAIL(diag, FVDB_ERR_MEMORY, "allocation failed");
}

fvdb_status format_part_vectors(const fvdb_index *index, const uint8_t *bytes, uint64_t size, const uint32_t *slots,
                                uint32_t n, float *out, fvdb_diag *diag) {
    const store *s = &index->store;
    uint16_t high[FVDB_DIM_MAX], low[FVDB_DIM_MAX];
    vectors_part part;
    TRY(open_part(index, bytes, size, &part, diag));
    for (uint32_t i = 0; i < n; i++) {
        if (slots[i] < part.span.first || slots[i] - part.span.first >= part.span.n)
            return FAIL_AT(diag, FVDB_ERR_NOT_FOUND, "the part does not have the slot", i, part.span.first, slots[i]);
        format_part_row(part.payload, part.span, s->dim, slots[i] - part.span.first, high, low);
        s->kernels->join_planes(high, low, s->dim, out + (size_t)i * s->dim);
    }
    return FVDB_OK;
}
