/* Ending a load lazily: the index has ids, timestamps, tombstones and bit codes, while vectors and links stay in their stored
 * parts.  index_lazy.c searches it.  A part with vectors comes from outside, so it is opened and checked here. */
#include "format.h"

#define BAD(message) FAIL(diag, FVDB_ERR_FORMAT, message)

static fvdb_status read_bit_codes(fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    const size_t row = bit_codes_row_bytes(&index->store);
    TRY(bit_codes_init(&index->bit_codes, &index->store, l->shape.rows, diag));
    for (uint32_t number = 0; number < l->numbers[FVDB_PART_BIT_CODES].end; number++) {
        const part_blob *b = &l->parts[FVDB_PART_BIT_CODES][number];
        const part_span span = format_span(l->shape, l->layout, FVDB_PART_BIT_CODES, number);
        if (b->size != span.n * row) return BAD("the codes have another size");
        if (!bit_codes_read(&index->bit_codes, span.first, span.n, b->bytes)) return BAD("a code is none of ours");
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
    static const uint32_t needed[] = {FVDB_PART_BIT_CODES,  FVDB_PART_IDS,        FVDB_PART_TIMESTAMPS,
                                      FVDB_PART_TOMBSTONES, FVDB_PART_GRAPH_HEAD, FVDB_PART_VECTORLESS};
    struct loading *l = index->loading;
    if (!l->shape.coded)
        return FAIL(diag, FVDB_ERR_ARGUMENT, "the index has too few rows with a vector to have bit codes");
    index->state = INDEX_BROKEN; /* until all that can fail is done */
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) TRY(format_check_came(l, needed[i], diag));
    TRY(format_read_rows(index, diag));
    TRY(format_read_book(index, diag));
    TRY(read_bit_codes(index, diag));
    drop_payloads(l);
    index->state = INDEX_LAZY;
    return FVDB_OK;
}

/* ---- parts with vectors that the caller keeps ---- */

fvdb_status format_part_open(const fvdb_index *index, const uint8_t *bytes, uint64_t size, part_rows *out,
                             fvdb_diag *diag) {
    reader r = reader_over(bytes, (size_t)size);
    part_header h;
    TRY(format_read_header(index, &r, &h, diag));
    const size_t payload = (size_t)h.span.n * index->store.dim * 2 * sizeof(uint16_t);
    if (h.kind != FVDB_PART_VECTORS || r.left != payload) return BAD("the part has no vectors, or another size");
    *out = (part_rows){read_bytes(&r, payload), h.span.first, h.span.n};
    return FVDB_OK;
}

fvdb_status format_part_check(const fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag) {
    const store *s = &index->store;
    uint16_t high[FVDB_DIM_MAX], low[FVDB_DIM_MAX], high2[FVDB_DIM_MAX], low2[FVDB_DIM_MAX];
    float x[FVDB_DIM_MAX];
    part_rows rows;
    TRY(format_part_open(index, bytes, size, &rows, diag));
    for (uint32_t row = 0; row < rows.n; row++) {
        part_row(&rows, s->dim, row, high, low);
        if (!format_row_is_sound(s, store_is_vectorless(s, rows.first + row), high, low, x, high2, low2))
            return FAIL_AT(diag, FVDB_ERR_FORMAT,
                           "a vector is not finite, zero under cosine, or not split into nearest halves",
                           rows.first + row, 0, 0);
    }
    return FVDB_OK;
}
