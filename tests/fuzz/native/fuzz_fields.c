/* Metadata of any bytes, read along a path of any steps. */
#include "harness.h"

enum { ROWS = 4, STEPS = 6 };

static void check_cells(const fvdb_field *f, const fvdb_cells *c, uint32_t values_max) {
    MUST(c->n_values <= values_max && c->n_listed <= c->capacity);
    for (uint32_t i = 0; i < c->n_values; i++) {
        MUST(c->value_kinds[i] <= FVDB_VALUE_LARGE);
        MUST(c->value_starts[i] <= f->n_bytes && c->value_sizes[i] <= f->n_bytes - c->value_starts[i]);
    }
    for (uint32_t i = 0; i < f->n; i++) MUST(c->codes[i] >= -1 && c->codes[i] < (int64_t)c->n_values);
    for (uint32_t i = 0; i < c->n_listed; i++) {
        MUST(c->list_rows[i] < f->n && (i == 0 || c->list_rows[i] >= c->list_rows[i - 1]));
        MUST(c->list_codes[i] >= -1 && c->list_codes[i] < (int64_t)c->n_values);
    }
    MUST(c->texts_size <= c->texts_capacity);
}

static fvdb_status read_with(const fvdb_field *f, uint32_t capacity, fvdb_diag *diag) {
    const uint32_t values = f->n + capacity;
    fvdb_cells c = {.present = room(f->n, 1),
                    .numbers = room(f->n, sizeof(double)),
                    .codes = room(f->n, sizeof(int32_t)),
                    .capacity = capacity,
                    .list_rows = room(capacity, sizeof(uint32_t)),
                    .list_numbers = room(capacity, sizeof(double)),
                    .list_codes = room(capacity, sizeof(int32_t)),
                    .in_list = room(capacity, 1),
                    .value_starts = room(values, sizeof(uint64_t)),
                    .value_sizes = room(values, sizeof(uint32_t)),
                    .value_kinds = room(values, 1),
                    .texts_capacity = f->n_bytes,
                    .texts = room(f->n_bytes, 1)};
    const fvdb_status status = fvdb_read_field(f, &c, diag);
    if (status == FVDB_OK) check_cells(f, &c, values);
    void *const made[] = {c.present, c.numbers, c.codes,        c.list_rows,   c.list_numbers, c.list_codes,
                          c.in_list, c.texts,   c.value_starts, c.value_sizes, c.value_kinds};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) free(made[i]);
    return status;
}

FUZZ(fields) {
    static const char text[] = "a.b.\xc3\xa9";
    static const fvdb_step good[4][3] = {
        {{0, 1, 1}}, {{0, 1, 2}, {2, 3, 2}}, {{0, 1, 3}, {2, 3, 3}, {4, 6, 3}}, {{0, 1, 1}, {2, 3, 3}, {4, 6, 3}}};
    input in = {data, size};
    fvdb_step steps[STEPS];
    int64_t offsets[ROWS];
    int32_t sizes[ROWS];
    fvdb_field f = {.text = (const uint8_t *)text, .text_size = sizeof text - 1, .seed = 3};
    const uint32_t form = pick_below(&in, 5), odd = pick_below(&in, 8);
    f.steps = form < 4 ? good[form] : steps;
    f.n_steps = form == 0 ? 1 : form == 1 ? 2 : 3;
    if (form == 4) {
        f.n_steps = pick_below(&in, STEPS + 1);
        for (uint32_t i = 0; i < f.n_steps; i++)
            steps[i] = (fvdb_step){pick_below(&in, 9), pick_below(&in, 9), pick_below(&in, 9)};
    }
    f.n = pick_below(&in, ROWS) + 1;
    for (uint32_t i = 0; i + 1 < f.n; i++) sizes[i] = (int32_t)pick(&in, 1);
    /* The rest is the rows' bytes; the last row has what the others leave. */
    int64_t at = 0, n_bytes = (int64_t)in.left;
    uint8_t *bytes = room(in.left, 1);
    if (in.left) memcpy(bytes, in.at, in.left);
    for (uint32_t i = 0; i < f.n; i++) {
        if (i + 1 == f.n || sizes[i] > n_bytes - at) sizes[i] = (int32_t)(n_bytes - at);
        offsets[i] = at;
        at += sizes[i];
    }
    if (odd == 1) sizes[f.n - 1]++; /* outside */
    if (odd == 2) offsets[0] = -1;
    if (odd == 3) offsets[0] = INT64_MAX;
    if (odd == 4) sizes[0] = -1;
    f.bytes = bytes;
    f.n_bytes = (uint64_t)n_bytes;
    f.offsets = offsets;
    f.sizes = sizes;
    fvdb_diag diag = {0};
    const fvdb_status status = read_with(&f, 0, &diag);
    if (status == FVDB_ERR_BUFFER) {
        MUST(diag.expected <= f.n_bytes + 1); /* a value has a byte at least */
        MUST(read_with(&f, (uint32_t)diag.expected, &diag) == FVDB_OK);
        MUST(diag.expected == 0 || read_with(&f, (uint32_t)diag.expected - 1, &diag) == FVDB_ERR_BUFFER);
    }
    free(bytes);
}
