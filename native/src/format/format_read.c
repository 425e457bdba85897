/* Untrusted bytes -> index.
 *
 * A part that comes is checked on its own: header, sizes, everything that needs no other part.  Vectors go to their place
 * at once; small kinds are kept until format_load_end, which puts them together in row order and checks what spans
 * parts: ids unique, links in range, levels consistent.  Nothing read from a part is used as a size or an index before
 * it was compared with what the manifest, which is authenticated, promised.
 *
 * Parts may come on several threads: the lock guards the table of what came, the rows of two parts never overlap. */
#include "format.h"

#include <math.h>

#define BAD(message) FAIL(diag, FVDB_ERR_FORMAT, message)
#define BAD_ROW(message, row) FAIL_AT(diag, FVDB_ERR_FORMAT, message, row, 0, 0)
/* Returns FVDB_ERR_FORMAT from the caller when a rule does not hold. */
#define REQUIRE(rule, message)            \
    do {                                  \
        if (!(rule)) return BAD(message); \
    } while (0)

/* ---- begin ---- */

static void free_loading(struct loading *l) {
    for (uint32_t kind = 1; kind < PART_KINDS; kind++) {
        for (uint32_t i = 0; l->parts[kind] && i < l->numbers[kind].end; i++) mem_free(l->parts[kind][i].bytes);
        mem_free(l->parts[kind]);
    }
    mutex_destroy(&l->lock);
    mem_free(l);
}

void format_load_abandon(fvdb_index *index) {
    if (index->loading) free_loading(index->loading);
    index->loading = NULL;
}

static struct loading *new_loading(part_shape shape, part_layout layout) {
    struct loading *l = mem_alloc_array(1, sizeof *l);
    if (!l) return NULL;
    if (!mutex_init(&l->lock)) {
        mem_free(l);
        return NULL;
    }
    l->shape = shape;
    l->layout = layout;
    for (uint32_t kind = 1; kind < PART_KINDS; kind++) {
        l->numbers[kind] = format_numbers(shape, layout, kind);
        l->parts[kind] = mem_alloc_array(l->numbers[kind].end, sizeof(part_blob));
        if (l->parts[kind]) continue;
        free_loading(l);
        return NULL;
    }
    return l;
}

static uint32_t graph_rows(const struct loading *l) { return l->shape.rows - l->shape.settled; }

/* Rows that a reader links: few enough that a load stays a load, whoever wrote the version. */
static bool few_to_link(const fvdb_load *load) {
    const uint64_t first = load->rows - load->graph_rows;
    return load->stored_rows >= first + INDEX_GRAPH_ROWS_MIN && load->stored_rows <= load->rows &&
           load->rows - load->stored_rows <= (load->stored_rows - first) / INDEX_STEP_SHARE;
}

fvdb_status format_load_begin(const fvdb_config *config, const fvdb_load *load, fvdb_index **out, fvdb_diag *diag) {
    if (load->graph_rows > load->rows || (load->graph_rows && load->graph_rows < INDEX_GRAPH_ROWS_MIN))
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "graph_rows is above rows, or too few for a graph", 0, load->rows,
                       load->graph_rows);
    if (load->graph_rows ? !few_to_link(load) : load->stored_rows != load->rows)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "stored_rows is out of range", 0, load->rows, load->stored_rows);
    if (load->has_codes ? load->rows < CODES_FIRST_ROWS : load->graph_rows > 0)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "codes of too few rows, or a graph without codes", 0, CODES_FIRST_ROWS,
                       load->rows);
    if (load->lists > FVDB_LISTS_MAX)
        return FAIL_AT(diag, FVDB_ERR_ARGUMENT, "too many lists", 0, FVDB_LISTS_MAX, load->lists);
    if (load->has_seconds && load->lists == 0)
        return FAIL(diag, FVDB_ERR_ARGUMENT, "there are second lists, and no lists");
    fvdb_index *index;
    TRY(index_create(config, &index, diag));
    const part_shape shape = {(uint32_t)load->rows,        (uint32_t)(load->rows - load->graph_rows),
                              (uint32_t)load->stored_rows, (uint32_t)load->lists,
                              load->has_codes != 0,        load->has_vectorless != 0,
                              load->has_seconds != 0};
    index->loading = new_loading(shape, (part_layout){load->rows_per_part, load->rows_per_group});
    if (!index->loading) {
        index_free(index);
        return FAIL_MEMORY(diag);
    }
    index->state = INDEX_LOADING;
    *out = index;
    return FVDB_OK;
}

/* ---- a part ---- */

fvdb_status format_read_header(const fvdb_index *index, reader *r, part_header *h, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    const uint8_t *magic = read_bytes(r, 4);
    REQUIRE(magic && memcmp(magic, PART_MAGIC, 4) == 0, "the part does not start with FVDB");
    REQUIRE(read_u16(r) == PART_VERSION, "the part has an unknown version");
    h->kind = read_u16(r);
    h->number = read_u32(r);
    uint32_t dim = read_u32(r);
    uint64_t first = read_u64(r);
    uint32_t rows = read_u32(r);
    uint32_t zero = read_u32(r);
    uint64_t payload = read_u64(r);
    REQUIRE(r->ok, "the part is shorter than its header");
    REQUIRE(h->kind >= 1 && h->kind < PART_KINDS, "the part is of an unknown kind");
    REQUIRE(h->number >= l->numbers[h->kind].first && h->number < l->numbers[h->kind].end,
            "the part's number is none of its kind");
    REQUIRE(dim == index->store.dim, "the part has another dimension");
    h->span = format_span(l->shape, l->layout, h->kind, h->number);
    REQUIRE(first == h->span.first, "the part starts at another row");
    REQUIRE(rows == h->span.n, "the part has other rows");
    REQUIRE(zero == 0, "a reserved field is not zero");
    REQUIRE(payload == r->left, "the part's size is not what its header says");
    return FVDB_OK;
}

/* Planes are had when the first vectors come: an index that is opened lazily has none. */
static fvdb_status reserve_planes(fvdb_index *index, fvdb_diag *diag) {
    struct loading *l = index->loading;
    store *s = &index->store;
    size_t plane;
    mutex_lock(&l->lock);
    const bool had = mul_size(l->shape.rows, s->dim16 * sizeof(uint16_t), &plane) &&
                     (s->low.used == plane || (region_resize(&s->high, plane) && region_resize(&s->low, plane)));
    mutex_unlock(&l->lock);
    return had ? FVDB_OK : FAIL_MEMORY(diag);
}

static fvdb_status read_vectors(fvdb_index *index, const part_header *h, reader *r, fvdb_diag *diag) {
    store *s = &index->store;
    const size_t size = (size_t)h->span.n * s->dim * 2 * sizeof(uint16_t);
    REQUIRE(r->left == size, "vectors have another size");
    TRY(reserve_planes(index, diag));
    const uint8_t *payload = read_bytes(r, size);
    const part_rows rows = {payload, h->span.first, h->span.n};
    for (uint32_t i = 0; i < rows.n; i++)
        part_row(&rows, s->dim, i, (uint16_t *)store_high(s, rows.first + i), (uint16_t *)store_low(s, rows.first + i));
    return FVDB_OK;
}

static fvdb_status keep_payload(part_blob *b, reader *r, fvdb_diag *diag) {
    b->size = r->left;
    b->bytes = mem_alloc(b->size);
    if (!b->bytes) return FAIL_MEMORY(diag);
    memcpy(b->bytes, r->at, b->size);
    return FVDB_OK;
}

fvdb_status format_load_part(fvdb_index *index, const uint8_t *bytes, uint64_t size, fvdb_diag *diag) {
    struct loading *l = index->loading;
    reader r = reader_over(bytes, (size_t)size);
    part_header h;
    TRY(format_read_header(index, &r, &h, diag));
    part_blob *b = &l->parts[h.kind][h.number];
    mutex_lock(&l->lock);
    bool twice = b->came;
    b->came = true;
    mutex_unlock(&l->lock);
    REQUIRE(!twice, "the part was given twice");
    fvdb_status status = h.kind == FVDB_PART_VECTORS ? read_vectors(index, &h, &r, diag) : keep_payload(b, &r, diag);
    if (status == FVDB_OK) return status;
    /* For callers that go on: format_load_end finds it missing, where its rows would be zeros, or no memory at all. */
    mutex_lock(&l->lock);
    b->came = false;
    mutex_unlock(&l->lock);
    return status;
}

/* ---- end: ids, timestamps, tombstones ---- */

static reader payload_of(const struct loading *l, uint32_t kind, uint32_t number) {
    const part_blob *b = &l->parts[kind][number];
    return reader_over(b->bytes, b->size);
}

static part_span span_of(const struct loading *l, uint32_t kind, uint32_t number) {
    return format_span(l->shape, l->layout, kind, number);
}

static fvdb_status read_ids(fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    id_map *ids = &index->store.ids;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < l->numbers[FVDB_PART_IDS].end; i++) bytes += l->parts[FVDB_PART_IDS][i].size;
    TRY(id_map_reserve(ids, l->shape.rows, bytes, diag));
    for (uint32_t number = 0; number < l->numbers[FVDB_PART_IDS].end; number++) {
        reader r = payload_of(l, FVDB_PART_IDS, number);
        uint32_t n = span_of(l, FVDB_PART_IDS, number).n;
        const uint8_t *sizes = read_bytes(&r, (size_t)n * sizeof(uint16_t));
        REQUIRE(sizes, "the ids are cut off");
        for (uint32_t i = 0; i < n; i++) {
            size_t size = (size_t)load_le(sizes + i * sizeof(uint16_t), sizeof(uint16_t));
            const uint8_t *id = read_bytes(&r, size);
            if (!id || !id_valid(id, size)) return BAD_ROW("an id is cut off, empty, too long or not UTF-8", ids->n);
            id_map_append(ids, id, size);
        }
        REQUIRE(r.left == 0, "bytes follow the ids");
    }
    return FVDB_OK;
}

static fvdb_status read_timestamps(fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    for (uint32_t number = 0; number < l->numbers[FVDB_PART_TIMESTAMPS].end; number++) {
        reader r = payload_of(l, FVDB_PART_TIMESTAMPS, number);
        uint32_t n = span_of(l, FVDB_PART_TIMESTAMPS, number).n;
        int64_t low = (int64_t)read_u64(&r);
        uint64_t width = read_u64(&r), most = (uint64_t)INT64_MAX - (uint64_t)low;
        REQUIRE(r.ok && width <= 8 && r.left == (size_t)width * n, "the timestamps have another size");
        const uint8_t *planes = read_bytes(&r, (size_t)width * n);
        uint64_t least = UINT64_MAX, any = 0;
        for (uint32_t i = 0; i < n; i++) {
            uint64_t offset = 0;
            for (uint32_t b = 0; b < width; b++) offset |= (uint64_t)planes[(size_t)b * n + i] << (8 * b);
            REQUIRE(offset <= most, "a timestamp is past the range of int64");
            if (offset < least) least = offset;
            any |= offset;
            int64_t us = (int64_t)((uint64_t)low + offset);
            TRY(timestamps_append(&index->store.times, &us, 1, diag));
        }
        /* One form only, so that equal rows have equal bytes. */
        REQUIRE(least == 0 && (width == 0 || any >> (8 * (width - 1))),
                "the timestamps are not packed as they should be");
    }
    return FVDB_OK;
}

static fvdb_status read_vectorless(fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    const size_t size = byte_bits_size(l->shape.rows);
    if (l->numbers[FVDB_PART_VECTORLESS].end == 0) return FVDB_OK;
    reader r = payload_of(l, FVDB_PART_VECTORLESS, 0);
    REQUIRE(r.left == size, "the marks of rows without a vector have another size");
    const uint8_t *bits = read_bytes(&r, size);
    REQUIRE(byte_bits_padded(bits, l->shape.rows), "a row without a vector is past the last row");
    TRY(store_reserve_vectorless(&index->store, l->shape.rows, diag));
    for (uint32_t slot = 0; slot < l->shape.rows; slot++)
        if (byte_bit_get(bits, slot)) store_mark_vectorless(&index->store, slot);
    REQUIRE(index->store.vectorless_count, "no row is without a vector");
    return FVDB_OK;
}

static fvdb_status read_tombstones(fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    store *s = &index->store;
    if (l->shape.rows == 0) return FVDB_OK;
    if (!region_resize(&s->live, (l->shape.rows + 63u) / 64 * sizeof(uint64_t))) return FAIL_MEMORY(diag);
    reader r = payload_of(l, FVDB_PART_TOMBSTONES, 0);
    const size_t size = byte_bits_size(l->shape.rows);
    REQUIRE(r.left == size, "the tombstones have another size");
    const uint8_t *bits = read_bytes(&r, size);
    REQUIRE(byte_bits_padded(bits, l->shape.rows), "a tombstone is past the last row");
    for (uint32_t slot = 0; slot < l->shape.rows; slot++) {
        if (byte_bit_get(bits, slot)) continue;
        size_t id_size;
        const uint8_t *id = id_map_get(&s->ids, slot, &id_size);
        if (id_map_find(&s->ids, id, id_size) != FVDB_NO_SLOT) return BAD_ROW("an id is live twice", slot);
        store_make_live(s, slot);
    }
    return FVDB_OK;
}

/* ---- end: vectors ---- */

typedef struct plane_check {
    store *s;
    uint32_t bad_row; /* atomic minimum; FVDB_NO_SLOT: none */
} plane_check;

#define LOADED_ROWS_PER_ITEM 512u

static bool all_zero(const uint16_t *halves, uint32_t dim) {
    uint16_t any = 0;
    for (uint32_t d = 0; d < dim; d++) any |= halves[d];
    return any == 0;
}

bool format_row_is_sound(const store *s, bool vectorless, const uint16_t *high, const uint16_t *low, float *x,
                         uint16_t *high2, uint16_t *low2) {
    uint32_t component;
    s->kernels->join_planes(high, low, s->dim, x);
    if (vectorless) return all_zero(high, s->dim) && all_zero(low, s->dim);
    if (store_check_vector(s, x, &component) != FVDB_OK) return false;
    s->kernels->split_planes(x, s->dim, high2, low2);
    return memcmp(high, high2, s->dim * sizeof *high) == 0 && memcmp(low, low2, s->dim * sizeof *low) == 0;
}

static void check_planes_item(void *context, uint32_t worker, uint32_t item) {
    (void)worker;
    plane_check *job = context;
    float x[FVDB_DIM_MAX];
    uint16_t high[FVDB_DIM_MAX], low[FVDB_DIM_MAX];
    uint32_t end = min_u32(job->s->n, (item + 1) * LOADED_ROWS_PER_ITEM);
    for (uint32_t slot = item * LOADED_ROWS_PER_ITEM; slot < end; slot++) {
        if (format_row_is_sound(job->s, store_is_vectorless(job->s, slot), store_high(job->s, slot),
                                store_low(job->s, slot), x, high, low))
            continue;
        uint32_t seen = __atomic_load_n(&job->bad_row, __ATOMIC_RELAXED);
        while (slot < seen &&
               !__atomic_compare_exchange_n(&job->bad_row, &seen, slot, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
        return;
    }
}

static fvdb_status check_planes(fvdb_index *index, thread_pool *c, fvdb_diag *diag) {
    plane_check job = {&index->store, FVDB_NO_SLOT};
    thread_pool_run(c, check_planes_item, &job, (job.s->n + LOADED_ROWS_PER_ITEM - 1) / LOADED_ROWS_PER_ITEM);
    return job.bad_row == FVDB_NO_SLOT
               ? FVDB_OK
               : BAD_ROW("a vector is not finite, zero under cosine, or not split into nearest halves", job.bad_row);
}

/* ---- end: code parameters ---- */

static fvdb_status read_floats(reader *r, float *out, uint32_t n, fvdb_diag *diag) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits = read_u32(r);
        memcpy(&out[i], &bits, sizeof bits);
        REQUIRE(r->ok && isfinite(out[i]), "a code parameter is cut off or not finite");
    }
    return FVDB_OK;
}

static fvdb_status read_book(reader *r, codebook *book, uint32_t dim, fvdb_diag *diag) {
    TRY(read_floats(r, book->lo, dim, diag));
    TRY(read_floats(r, book->step, dim, diag));
    for (uint32_t d = 0; d < dim; d++)
        REQUIRE(book->step[d] == 0.0f || book->step[d] >= CODE_STEP_MIN, "a code step is negative or too small");
    return FVDB_OK;
}

/* ---- end: lists ---- */

static fvdb_status read_error(reader *r, double *out, fvdb_diag *diag) {
    uint64_t bits = read_u64(r);
    memcpy(out, &bits, sizeof bits);
    REQUIRE(r->ok && isfinite(*out) && *out >= 0 && !signbit(*out), "an error of the lists is cut off or no length");
    return FVDB_OK;
}

/* Codes have one form: dimensions that are not there are zero. */
static bool codes_are_padded(const uint8_t *codes, const store *s, uint32_t n) {
    for (uint32_t i = 0; i < n; i++, codes += s->code_bytes) {
        for (uint32_t d = s->dim; d < s->dim64; d++) {
            uint8_t pair = codes[d / CODE_DIMS * CODE_BLOCK_BYTES + d % CODE_BLOCK_BYTES];
            if (d % CODE_DIMS < CODE_BLOCK_BYTES ? pair & 15 : pair >> 4) return false;
        }
    }
    return true;
}

static fvdb_status read_lists_head(fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    const store *s = &index->store;
    ivf *lists = &index->lists;
    ivf_centroids *c = &lists->centroids;
    reader r = payload_of(l, FVDB_PART_LISTS_HEAD, 0);
    const size_t size = LISTS_HEAD_BYTES + (size_t)s->dim * 2 * sizeof(float) + (size_t)l->shape.lists * s->code_bytes;
    REQUIRE(r.left == size && read_u32(&r) == l->shape.lists, "the lists' head has another size");
    if (ivf_centroids_alloc(c, s, l->shape.lists) != FVDB_OK) return FAIL_MEMORY(diag);
    c->trained_rows = read_u32(&r);
    index->graph.first = read_u32(&r);
    REQUIRE(c->trained_rows >= IVF_TRAIN_ROWS_MIN, "the lists were trained on too few rows");
    TRY(read_floats(&r, &c->second_limit, 1, diag));
    REQUIRE(c->second_limit >= 0 && !signbit(c->second_limit), "the limit of second lists is negative");
    lists->since_rows = read_u64(&r);
    TRY(read_error(&r, &c->trained_error, diag));
    TRY(read_error(&r, &lists->since_error, diag));
    for (uint32_t k = 0; k < IVF_KS; k++) {
        for (uint32_t i = 0; i < IVF_RECALLS; i++) {
            c->probes[k][i] = read_u32(&r);
            REQUIRE(c->probes[k][i] >= 1 && c->probes[k][i] <= l->shape.lists,
                    "a number of lists to look at is out of range");
        }
    }
    TRY(read_book(&r, &c->book, s->dim, diag));
    memcpy(c->codes.base, read_bytes(&r, c->codes.used), c->codes.used);
    REQUIRE(codes_are_padded(c->codes.base, s, l->shape.lists), "the code of a centroid has other dimensions");
    ivf_centroids_derive(c, s);
    return FVDB_OK;
}

/* `settled` rows come first, all of them historical; the graph has the others, unless they are few. */
static fvdb_status check_sides(const fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    uint32_t settled = index->graph.first;
    REQUIRE(settled <= l->shape.rows, "more rows are in front than there are");
    uint32_t recent = l->shape.rows - settled;
    REQUIRE(graph_rows(l) == (l->shape.coded && recent >= INDEX_GRAPH_ROWS_MIN ? recent : 0),
            "the graph has other rows");
    for (uint32_t slot = 0; slot < settled; slot++)
        if (!ivf_has(&index->lists, slot)) return BAD_ROW("a row is on neither side", slot);
    return FVDB_OK;
}

/* Of each row the number in a part of lists, 0 for none; zeros without the part. */
static fvdb_status read_numbers(const struct loading *l, uint32_t kind, uint32_t *numbers, fvdb_diag *diag) {
    const uint32_t width = format_link_width(l->shape.lists + 1), rows = l->shape.rows;
    memset(numbers, 0, rows * sizeof *numbers);
    if (l->numbers[kind].end == 0) return FVDB_OK;
    reader r = payload_of(l, kind, 0);
    REQUIRE(r.left == (size_t)width * rows, "the lists have another size");
    const uint8_t *planes = read_bytes(&r, r.left);
    for (uint32_t b = 0; b < width; b++)
        for (uint32_t slot = 0; slot < rows; slot++)
            numbers[slot] |= (uint32_t)planes[(size_t)b * rows + slot] << (8 * b);
    for (uint32_t slot = 0; slot < rows; slot++)
        if (numbers[slot] > l->shape.lists) return BAD_ROW("a row is on a list that is none", slot);
    return FVDB_OK;
}

/* places: the numbers of lists by slot, which become those of rows on lists, counted from 0. */
static fvdb_status fill_lists(fvdb_index *index, uint32_t *slots, const ivf_places *places, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    uint32_t n = 0;
    REQUIRE(l->shape.has_seconds == (index->lists.centroids.second_limit > 0),
            "there are second lists without a limit, or a limit without them");
    TRY(read_numbers(l, FVDB_PART_LISTS, places->lists, diag));
    TRY(read_numbers(l, FVDB_PART_SECOND_LISTS, places->seconds, diag));
    for (uint32_t slot = 0; slot < l->shape.rows; slot++) {
        const uint32_t list = places->lists[slot], second = places->seconds[slot];
        if (second && (list == 0 || second == list)) return BAD_ROW("a row's second list is no second one", slot);
        if (list == 0) continue;
        if (store_is_vectorless(&index->store, slot)) return BAD_ROW("a row without a vector is on a list", slot);
        slots[n] = slot;
        places->lists[n] = list - 1;
        places->seconds[n++] = second ? second - 1 : IVF_NO_LIST;
    }
    return ivf_fill(&index->lists, slots, places, n, l->shape.rows, store_live(&index->store), diag);
}

static fvdb_status read_lists(fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    if (l->numbers[FVDB_PART_LISTS].end) {
        const size_t rows = l->shape.rows;
        TRY(read_lists_head(index, diag));
        uint32_t *slots = mem_alloc_array(3 * rows, sizeof *slots);
        if (!slots) return FAIL_MEMORY(diag);
        const ivf_places places = {.lists = slots + rows, .seconds = slots + 2 * rows};
        fvdb_status status = fill_lists(index, slots, &places, diag);
        mem_free(slots);
        if (status != FVDB_OK) return status;
    }
    return check_sides(index, diag);
}

/* ---- end: graph ---- */

/* What follows the graph's own fields in its head. */
static fvdb_status read_codebook(fvdb_index *index, uint32_t trained, reader *r, fvdb_diag *diag) {
    store *s = &index->store;
    const uint32_t trained_rows = trained & ~(COARSE_BIT | BITS_SERVE_BIT);
    REQUIRE(trained_rows && codes_train_at(trained_rows), "the codes were trained on a row count that is none of ours");
    if (codebook_alloc(&s->book, s->dim64) != FVDB_OK) return FAIL_MEMORY(diag);
    TRY(read_book(r, &s->book, s->dim, diag));
    REQUIRE(r->ok && r->left == 0, "the graph's head has another size");
    codebook_derive(&s->book, s->dim64);
    s->book.trained_rows = trained_rows;
    s->book.coarse = trained & COARSE_BIT;
    s->book.bits_serve = trained & BITS_SERVE_BIT;
    return FVDB_OK;
}

fvdb_status format_read_book(fvdb_index *index, fvdb_diag *diag) {
    reader r = payload_of(index->loading, FVDB_PART_GRAPH_HEAD, 0);
    uint32_t trained_rows = 0;
    for (uint32_t i = 0; i < GRAPH_HEAD_FIELDS; i++) trained_rows = read_u32(&r);
    return read_codebook(index, trained_rows, &r, diag);
}

static fvdb_status read_graph_head(fvdb_index *index, fvdb_diag *diag) {
    hnsw *g = &index->graph;
    reader r = payload_of(index->loading, FVDB_PART_GRAPH_HEAD, 0);
    uint32_t M = read_u32(&r), ef_construction = read_u32(&r);
    g->entry = read_u32(&r);
    g->max_level = read_u32(&r);
    uint32_t upper_n = read_u32(&r), trained_rows = read_u32(&r);
    REQUIRE(M == g->M && ef_construction == g->ef_construction, "the graph was built with other settings");
    REQUIRE(upper_n == g->upper_n, "the graph has another number of upper rows");
    TRY(read_codebook(index, trained_rows, &r, diag));
    if (upper_n == 0) {
        REQUIRE(g->entry == FVDB_NO_SLOT && g->max_level == 0, "the entry point is not an upper row");
        return FVDB_OK;
    }
    REQUIRE(g->entry < upper_n && g->max_level >= 1 && hnsw_upper_level(g, g->entry) == g->max_level,
            "the entry point is not on the highest level");
    for (uint32_t u = 0; u < upper_n; u++)
        REQUIRE(hnsw_upper_level(g, u) <= g->max_level, "a row is above the highest level");
    return FVDB_OK;
}

/* Nodes from `first` to below `end`, not to itself, none twice. */
static fvdb_status check_links(const uint32_t *links, uint32_t n, uint32_t node, uint32_t first, uint32_t end,
                               fvdb_diag *diag) {
    for (uint32_t i = 0; i < n; i++) {
        REQUIRE(links[i] >= first && links[i] < end && links[i] != node, "a link is out of range");
        for (uint32_t j = 0; j < i; j++) REQUIRE(links[j] != links[i], "a link stands twice");
    }
    return FVDB_OK;
}

static fvdb_status read_links0(fvdb_index *index, uint32_t number, reader *r, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    hnsw *g = &index->graph;
    const part_span span = span_of(l, FVDB_PART_GRAPH, number);
    uint32_t n = span.n, first = span.first, width = format_link_width(l->shape.stored);
    uint32_t links[HNSW_M0_MAX];
    const uint8_t *counts = read_bytes(r, n);
    REQUIRE(counts, "the graph is cut off");
    for (uint32_t i = 0; i < n; i++) {
        REQUIRE(counts[i] <= (first + i < g->first ? 0 : g->M0), "a row has too many links");
        for (uint32_t j = 0; j < counts[i]; j++) links[j] = (uint32_t)read_le(r, width);
        REQUIRE(r->ok, "the graph is cut off");
        if (first + i < g->first) continue;
        TRY(check_links(links, counts[i], first + i, g->first, l->shape.stored, diag));
        hnsw_set_links0(g, first + i, links, counts[i]);
    }
    return FVDB_OK;
}

/* Upper rows with their links; whether these reach rows of that level is checked when all are known. */
static fvdb_status read_upper(fvdb_index *index, uint32_t number, reader *r, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    hnsw *g = &index->graph;
    const part_span span = span_of(l, FVDB_PART_GRAPH, number);
    uint32_t n = span.n, first = span.first, upper = read_u32(r), links[HNSW_M0_MAX];
    int64_t last = -1;
    for (uint32_t i = 0; i < upper; i++) {
        uint32_t row = read_u32(r), level = read_u8(r);
        REQUIRE(r->ok, "the graph is cut off");
        REQUIRE(row < n && (int64_t)row > last && first + row >= g->first, "upper rows are out of order");
        REQUIRE(level >= 1 && level <= HNSW_LEVEL_MAX, "a level is out of range");
        last = row;
        TRY(hnsw_append_upper(g, first + row, level, diag));
        for (uint32_t at = 1; at <= level; at++) {
            uint32_t count = read_u8(r);
            REQUIRE(count <= g->M, "an upper row has too many links");
            for (uint32_t j = 0; j < count; j++) {
                links[j] = read_u32(r);
                REQUIRE(links[j] != FVDB_NO_SLOT, "a link leads nowhere");
            }
            REQUIRE(r->ok, "the graph is cut off");
            hnsw_set_links(g, at, g->upper_n - 1, links, count);
        }
    }
    REQUIRE(r->ok && r->left == 0, "the graph has another size");
    return FVDB_OK;
}

static fvdb_status check_upper(const hnsw *g, fvdb_diag *diag) {
    uint32_t links[HNSW_M0_MAX];
    for (uint32_t u = 0; u < g->upper_n; u++) {
        for (uint32_t level = 1; level <= hnsw_upper_level(g, u); level++) {
            uint32_t n = hnsw_links(g, level, u, links);
            TRY(check_links(links, n, u, 0, g->upper_n, diag));
            for (uint32_t i = 0; i < n; i++)
                REQUIRE(hnsw_upper_level(g, links[i]) >= level, "a link leads to a row below its level");
        }
    }
    return FVDB_OK;
}

static fvdb_status read_graph(fvdb_index *index, fvdb_diag *diag) {
    const struct loading *l = index->loading;
    hnsw *g = &index->graph;
    if (graph_rows(l)) TRY(hnsw_reserve(g, l->shape.stored, diag));
    for (uint32_t number = l->numbers[FVDB_PART_GRAPH].first; number < l->numbers[FVDB_PART_GRAPH].end; number++) {
        reader r = payload_of(l, FVDB_PART_GRAPH, number);
        TRY(read_links0(index, number, &r, diag));
        TRY(read_upper(index, number, &r, diag));
    }
    TRY(check_upper(g, diag));
    if (l->shape.coded) TRY(read_graph_head(index, diag));
    g->n = graph_rows(l) ? l->shape.stored : g->first;
    return FVDB_OK;
}

/* ---- end ---- */

fvdb_status format_check_came(const struct loading *l, uint32_t kind, fvdb_diag *diag) {
    for (uint32_t i = l->numbers[kind].first; i < l->numbers[kind].end; i++)
        if (!l->parts[kind][i].came) return FAIL_AT(diag, FVDB_ERR_FORMAT, "a part is missing", i, kind, 0);
    return FVDB_OK;
}

/* Bit codes are for lazy loads: an index that has its rows needs none. */
static fvdb_status check_all_came(const struct loading *l, fvdb_diag *diag) {
    for (uint32_t kind = 1; kind < PART_KINDS; kind++)
        if (kind != FVDB_PART_BIT_CODES) TRY(format_check_came(l, kind, diag));
    return FVDB_OK;
}

fvdb_status format_read_rows(fvdb_index *index, fvdb_diag *diag) {
    TRY(read_ids(index, diag));
    TRY(read_timestamps(index, diag));
    TRY(read_vectorless(index, diag));
    TRY(read_tombstones(index, diag));
    index->store.n = index->loading->shape.rows;
    REQUIRE(index->loading->shape.coded == (store_with_vector(&index->store) >= CODES_FIRST_ROWS),
            "there are codes of too few rows, or none of enough");
    return FVDB_OK;
}

static fvdb_status assemble(fvdb_index *index, thread_pool *c, fvdb_control *control, fvdb_diag *diag) {
    TRY(check_all_came(index->loading, diag));
    TRY(format_read_rows(index, diag));
    TRY(check_planes(index, c, diag));
    if (control_cancelled(control)) return FAIL(diag, FVDB_ERR_CANCELLED, "cancelled");
    TRY(read_lists(index, diag));
    TRY(read_graph(index, diag));
    TRY(store_finish_load(&index->store, c, diag));
    TRY(ivf_codes_reserve(&index->lists, &index->store, index->graph.first, diag));
    ivf_codes_fill(&index->lists, &index->store, c);
    return FVDB_OK;
}

/* Steps lead from the stored rows to all of them, and a training of the codes lies in none. */
static fvdb_status check_steps(const fvdb_index *index, const uint32_t *steps, uint32_t n, fvdb_diag *diag) {
    uint32_t at = index->loading->shape.stored;
    for (uint32_t i = 0; i < n; i++) {
        REQUIRE(steps[i] > at && steps[i] <= index->store.n, "the steps of the graph are out of order");
        at = steps[i];
    }
    REQUIRE(at == index->store.n, "the steps of the graph do not lead to its last row");
    REQUIRE(n == 0 || codes_next_training(index->store.book.trained_rows) > store_with_vector(&index->store),
            "the codes were trained again after the graph was stored");
    return FVDB_OK;
}

fvdb_status format_load_end(fvdb_index *index, const uint32_t *steps, uint32_t n_steps, fvdb_control *control,
                            fvdb_diag *diag) {
    index->state = INDEX_BROKEN; /* until all that can fail is done */
    if (n_steps > FVDB_STEPS_MAX) return FAIL_AT(diag, FVDB_ERR_FORMAT, "too many steps", 0, FVDB_STEPS_MAX, n_steps);
    thread_pool *c;
    TRY(thread_pool_start(index->config.threads, &c, diag));
    fvdb_status status = assemble(index, c, control, diag);
    thread_pool_stop(c);
    if (status == FVDB_OK) status = check_steps(index, steps, n_steps, diag);
    if (status == FVDB_OK) status = index_repeat_steps(index, steps, n_steps, control, diag);
    if (status != FVDB_OK) return status;
    format_load_abandon(index);
    index->state = INDEX_WHOLE;
    return FVDB_OK;
}
