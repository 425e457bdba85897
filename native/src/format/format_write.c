/* Index -> bytes.  A part's bytes depend only on the rows and the graph: not on the memory setting, the CPU, the number of
 * threads or any address, so that equal parts have equal hashes and are stored once. */
#include "format.h"

/* First upper number whose slot is >= slot. */
static uint32_t upper_from(const hnsw *g, uint32_t slot) {
    uint32_t low = 0, high = g->upper_n;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (hnsw_upper_slot(g, middle) < slot) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* ---- sizes ---- */

static uint32_t timestamps_width(const timestamps *t, part_span s, int64_t *low) {
    int64_t high = *low = timestamps_get(t, s.first);
    for (uint32_t i = 1; i < s.n; i++) {
        int64_t us = timestamps_get(t, s.first + i);
        if (us < *low) *low = us;
        if (us > high) high = us;
    }
    uint32_t width = 0;
    for (uint64_t spread = (uint64_t)high - (uint64_t)*low; spread; spread >>= 8) width++;
    return width;
}

/* Of a row of the graph; one before it has none. */
static uint32_t links_at(const hnsw *g, uint32_t slot, uint32_t *links) {
    return slot < g->first ? 0 : hnsw_links(g, 0, slot, links);
}

static uint64_t graph_bytes(const hnsw *g, part_span s, uint32_t rows) {
    uint32_t links[HNSW_M0_MAX];
    uint64_t total = 0, bytes = s.n + sizeof(uint32_t);
    for (uint32_t i = 0; i < s.n; i++) total += links_at(g, s.first + i, links);
    for (uint32_t u = upper_from(g, s.first); u < g->upper_n && hnsw_upper_slot(g, u) < s.first + s.n; u++) {
        bytes += 5;
        for (uint32_t level = 1; level <= hnsw_upper_level(g, u); level++)
            bytes += 1 + hnsw_links(g, level, u, links) * sizeof(uint32_t);
    }
    return bytes + total * format_link_width(rows);
}

static uint64_t payload_bytes(const fvdb_index *index, uint32_t kind, part_span s) {
    const store *st = &index->store;
    const uint32_t *id_offsets = (const uint32_t *)st->ids.offsets.base;
    int64_t low;
    switch (kind) {
    case FVDB_PART_VECTORS: return (uint64_t)s.n * st->dim * 2 * sizeof(uint16_t);
    case FVDB_PART_BIT_CODES: return (uint64_t)s.n * bit_codes_row_bytes(st);
    case FVDB_PART_IDS: return (uint64_t)s.n * sizeof(uint16_t) + id_offsets[s.first + s.n] - id_offsets[s.first];
    case FVDB_PART_TIMESTAMPS: return TIMESTAMPS_HEAD_BYTES + (uint64_t)s.n * timestamps_width(&st->times, s, &low);
    case FVDB_PART_TOMBSTONES:
    case FVDB_PART_VECTORLESS: return byte_bits_size(s.n);
    case FVDB_PART_GRAPH: return graph_bytes(&index->graph, s, st->n);
    case FVDB_PART_GRAPH_HEAD: return GRAPH_HEAD_FIELDS * sizeof(uint32_t) + (uint64_t)st->dim * 2 * sizeof(float);
    case FVDB_PART_LISTS:
    case FVDB_PART_SECOND_LISTS: return (uint64_t)s.n * format_link_width(index->lists.centroids.nlist + 1);
    default:
        return LISTS_HEAD_BYTES + (uint64_t)st->dim * 2 * sizeof(float) +
               (uint64_t)index->lists.centroids.nlist * st->code_bytes;
    }
}

/* ---- payloads ---- */

static void write_plane(writer *w, const store *st, const region *plane, part_span s) {
    size_t n = (size_t)s.n * st->dim;
    uint8_t *low = write_space(w, n), *high = write_space(w, n);
    for (uint32_t i = 0; i < s.n; i++, low += st->dim, high += st->dim) {
        const uint16_t *row = (const uint16_t *)plane->base + (size_t)(s.first + i) * st->dim16;
        for (uint32_t d = 0; d < st->dim; d++) {
            low[d] = (uint8_t)row[d];
            high[d] = (uint8_t)(row[d] >> 8);
        }
    }
}

static void write_ids(writer *w, const id_map *ids, part_span s) {
    const uint32_t *offsets = (const uint32_t *)ids->offsets.base + s.first;
    for (uint32_t i = 0; i < s.n; i++) write_le(w, offsets[i + 1] - offsets[i], sizeof(uint16_t));
    write_bytes(w, ids->bytes.base + offsets[0], offsets[s.n] - offsets[0]);
}

static void write_timestamps(writer *w, const timestamps *t, part_span s) {
    int64_t low;
    uint32_t width = timestamps_width(t, s, &low);
    write_le(w, (uint64_t)low, 8);
    write_le(w, width, 8);
    for (uint32_t b = 0; b < width; b++) {
        uint8_t *plane = write_space(w, s.n);
        for (uint32_t i = 0; i < s.n; i++)
            plane[i] = (uint8_t)(((uint64_t)timestamps_get(t, s.first + i) - (uint64_t)low) >> (8 * b));
    }
}

/* One bit a row: those that are in `bits`, or with `inverted` those that are not; NULL is empty. */
static void write_bits(writer *w, const uint64_t *bits, uint32_t n, bool inverted) {
    uint8_t *out = write_space(w, byte_bits_size(n));
    memset(out, 0, byte_bits_size(n));
    for (uint32_t slot = 0; slot < n; slot++)
        if ((bits && bit_get(bits, slot)) != inverted) byte_bit_set(out, slot);
}

static void write_graph(writer *w, const hnsw *g, part_span s, uint32_t rows) {
    uint32_t links[HNSW_M0_MAX], width = format_link_width(rows);
    uint8_t *counts = write_space(w, s.n);
    for (uint32_t i = 0; i < s.n; i++) {
        uint32_t n = links_at(g, s.first + i, links);
        counts[i] = (uint8_t)n;
        for (uint32_t j = 0; j < n; j++) write_le(w, links[j], width);
    }
    uint32_t first = upper_from(g, s.first), end = upper_from(g, s.first + s.n);
    write_le(w, end - first, sizeof(uint32_t));
    for (uint32_t u = first; u < end; u++) {
        write_le(w, hnsw_upper_slot(g, u) - s.first, sizeof(uint32_t));
        write_le(w, hnsw_upper_level(g, u), 1);
        for (uint32_t level = 1; level <= hnsw_upper_level(g, u); level++) {
            uint32_t n = hnsw_links(g, level, u, links);
            write_le(w, n, 1);
            for (uint32_t j = 0; j < n; j++) write_le(w, links[j], sizeof(uint32_t));
        }
    }
}

static void write_floats(writer *w, const float *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        write_le(w, bits, sizeof bits);
    }
}

static void write_graph_head(writer *w, const fvdb_index *index) {
    const hnsw *g = &index->graph;
    const store *st = &index->store;
    const uint32_t trained =
        st->book.trained_rows | (st->book.coarse ? COARSE_BIT : 0) | (st->book.bits_serve ? BITS_SERVE_BIT : 0);
    const uint32_t fields[GRAPH_HEAD_FIELDS] = {g->M, g->ef_construction, g->entry, g->max_level, g->upper_n, trained};
    for (uint32_t i = 0; i < GRAPH_HEAD_FIELDS; i++) write_le(w, fields[i], sizeof(uint32_t));
    write_floats(w, st->book.lo, st->dim);
    write_floats(w, st->book.step, st->dim);
}

/* The list of each row, out of n. */
static void write_lists(writer *w, const ivf_list *lists, uint32_t nlist, uint32_t n) {
    const uint32_t width = format_link_width(nlist + 1);
    uint8_t *planes = write_space(w, (size_t)n * width);
    memset(planes, 0, (size_t)n * width);
    for (uint32_t list = 0; list < nlist; list++)
        for (uint32_t i = 0; i < lists[list].n; i++)
            for (uint32_t b = 0; b < width; b++)
                planes[(size_t)b * n + lists[list].slots[i]] = (uint8_t)((list + 1) >> (8 * b));
}

static void write_double(writer *w, double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    write_le(w, bits, sizeof bits);
}

static void write_lists_head(writer *w, const fvdb_index *index) {
    const ivf *lists = &index->lists;
    const ivf_centroids *c = &lists->centroids;
    const uint32_t fields[] = {c->nlist, c->trained_rows, index->graph.first};
    for (uint32_t i = 0; i < 3; i++) write_le(w, fields[i], sizeof(uint32_t));
    write_floats(w, &c->second_limit, 1);
    write_le(w, lists->since_rows, 8);
    write_double(w, c->trained_error);
    write_double(w, lists->since_error);
    for (uint32_t k = 0; k < IVF_KS; k++)
        for (uint32_t i = 0; i < IVF_RECALLS; i++) write_le(w, c->probes[k][i], sizeof(uint32_t));
    write_floats(w, c->book.lo, index->store.dim);
    write_floats(w, c->book.step, index->store.dim);
    write_bytes(w, c->codes.base, (size_t)c->nlist * index->store.code_bytes);
}

static void write_payload(writer *w, const fvdb_index *index, uint32_t kind, part_span s) {
    const store *st = &index->store;
    switch (kind) {
    case FVDB_PART_VECTORS:
        write_plane(w, st, &st->high, s);
        write_plane(w, st, &st->low, s);
        return;
    case FVDB_PART_BIT_CODES:
        bit_codes_write(st, s.first, s.n, write_space(w, (size_t)s.n * bit_codes_row_bytes(st)));
        return;
    case FVDB_PART_IDS: write_ids(w, &st->ids, s); return;
    case FVDB_PART_TIMESTAMPS: write_timestamps(w, &st->times, s); return;
    case FVDB_PART_TOMBSTONES: write_bits(w, store_live(st), st->n, true); return;
    case FVDB_PART_GRAPH: write_graph(w, &index->graph, s, st->n); return;
    case FVDB_PART_GRAPH_HEAD: write_graph_head(w, index); return;
    case FVDB_PART_LISTS: write_lists(w, index->lists.lists, index->lists.centroids.nlist, st->n); return;
    case FVDB_PART_SECOND_LISTS: write_lists(w, index->lists.seconds, index->lists.centroids.nlist, st->n); return;
    case FVDB_PART_VECTORLESS: write_bits(w, (const uint64_t *)st->vectorless.base, st->n, false); return;
    default: write_lists_head(w, index); return;
    }
}

/* ---- entry points ---- */

static part_shape shape_of(const fvdb_index *index) {
    const store *s = &index->store;
    const uint32_t settled = hnsw_rows(&index->graph) ? index->graph.first : s->n;
    return (part_shape){.rows = s->n,
                        .settled = settled,
                        .stored = s->n,
                        .lists = index->lists.centroids.nlist,
                        .coded = s->book.trained_rows > 0,
                        .has_vectorless = s->vectorless_count > 0,
                        .has_seconds = index->lists.centroids.second_limit > 0};
}

fvdb_status format_parts(fvdb_index *index, part_layout layout, fvdb_part *out, uint32_t capacity, uint32_t *out_count,
                         fvdb_diag *diag) {
    const part_shape shape = shape_of(index);
    uint32_t n = 0;
    for (uint32_t kind = 1; kind < PART_KINDS; kind++) {
        const part_numbers numbers = format_numbers(shape, layout, kind);
        for (uint32_t number = numbers.first; number < numbers.end; number++, n++) {
            if (n >= capacity) continue;
            part_span s = format_span(shape, layout, kind, number);
            out[n] = (fvdb_part){kind, number, PART_HEADER_BYTES + payload_bytes(index, kind, s)};
        }
    }
    *out_count = n;
    return n <= capacity ? FVDB_OK : FAIL_AT(diag, FVDB_ERR_BUFFER, "there are more parts", 0, n, capacity);
}

fvdb_status format_part_write(fvdb_index *index, part_layout layout, uint32_t kind, uint32_t number, uint8_t *out,
                              uint64_t capacity, uint64_t *out_size, fvdb_diag *diag) {
    const part_shape shape = shape_of(index);
    const bool known = kind >= FVDB_PART_VECTORS && kind < PART_KINDS;
    const part_numbers numbers = known ? format_numbers(shape, layout, kind) : (part_numbers){0, 0};
    if (number < numbers.first || number >= numbers.end)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "there is no such part", 0, numbers.end, number);
    part_span s = format_span(shape, layout, kind, number);
    uint64_t payload = payload_bytes(index, kind, s);
    *out_size = PART_HEADER_BYTES + payload;
    if (*out_size > capacity) return FAIL_AT(diag, FVDB_ERR_BUFFER, "the part does not fit", 0, *out_size, capacity);
    writer w = {out, (size_t)*out_size};
    write_bytes(&w, PART_MAGIC, 4);
    write_le(&w, PART_VERSION, 2);
    write_le(&w, kind, 2);
    write_le(&w, number, 4);
    write_le(&w, index->store.dim, 4);
    write_le(&w, s.first, 8);
    write_le(&w, s.n, 4);
    write_le(&w, 0, 4);
    write_le(&w, payload, 8);
    write_payload(&w, index, kind, s);
    assert(w.left == 0);
    return FVDB_OK;
}
