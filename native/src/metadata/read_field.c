/* Reads one field of many rows for a column: walks the CBOR of each row along a path, once, and passes over all else.
 *
 * The path stands for several readings, since keys may hold dots: `a.b` is the key "a.b", or "a" and then "b".  Which keys
 * led to a value is kept as a set of steps, those at which a key ended.  In maps each reading leads to one value; below a
 * list the same keys may lead to many, and these count as items of a list.  So the values of a row are first gathered by
 * reading, and marked when the row is done.
 *
 * Values but numbers go into a table, each once: the caller makes one object of it, however many rows have it.
 *
 * Keys and texts are compared as bytes, which is right for UTF-8 that was checked when the row was stored.  Heads that are
 * not the shortest are taken, since rows without tags may have them; one text in two such forms is one value.
 *
 * Invariants: recursion ends with the path, since each map on it takes a step and lists within lists are not entered. */
#include "metadata.h"
#include "cbor.h"
#include <math.h>
#include <stdlib.h>

#define TABLE_MIN 256u
#define GROUPS_MIN 16u
#define EXACT_END (UINT64_C(1) << 53) /* integers below it are exact as float64 */
enum { TAG_DATETIME = 0, TAG_UUID = 37, TAG_DATE = 1004 };
enum { NO_CODE = -1 };

/* The steps at which the keys of a reading ended, one bit each: 1 .. FVDB_PATH_STEPS_MAX. */
typedef struct reading {
    uint64_t low, high;
} reading;
static_assert(FVDB_PATH_STEPS_MAX < 128, "a reading has no bit for the last step");

static reading with_step(reading by, uint32_t step) {
    if (step < 64) by.low |= UINT64_C(1) << step;
    else by.high |= UINT64_C(1) << (step - 64);
    return by;
}

static int compare_readings(reading a, reading b) {
    if (a.high != b.high) return a.high < b.high ? -1 : 1;
    return a.low == b.low ? 0 : a.low < b.low ? -1 : 1;
}

/* A value as a column has it: a number, a code, or neither. */
typedef struct cell {
    double number;
    int32_t code;
} cell;

static cell no_cell(void) { return (cell){NAN, NO_CODE}; }

/* Values of a row that follow each other and have one reading. */
typedef struct group {
    reading by;
    uint64_t first, end; /* their entries */
    uint64_t values;     /* how many they are, those without an entry among them */
    bool has_list;       /* one of them is a list */
} group;

/* A place of the table of values; open addressing, at most half of the places are taken. */
typedef struct place {
    uint32_t hash, code; /* code plus 1; 0: free */
} place;

typedef struct walk {
    const fvdb_field *field;
    fvdb_cells *cells;
    cbor at;
    uint32_t row;
    cell first;        /* the row's first value, which becomes an entry when another one comes */
    uint64_t n_listed; /* entries of all rows, those beyond the capacity among them */
    group *groups;
    uint32_t n_groups, groups_size;
    place *table;
    uint32_t table_size;
    fvdb_status status; /* why the walk ended early */
} walk;

static bool ends_with(walk *w, fvdb_status status) {
    w->status = status;
    return false;
}

/* ---- the table of values ---- */

static uint64_t load_word(const uint8_t *bytes, size_t size) {
    uint64_t word = 0;
    memcpy(&word, bytes, size);
    return word;
}

/* Both halves of a product, which depend on all bits of both factors. */
static uint64_t fold(uint64_t a, uint64_t b) {
    const unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Sixteen bytes a product, as wyhash (Wang Yi, 2019) does: with mix64, which takes two products for eight, texts of 75 bytes took
 * a quarter longer to read.  Nobody who writes the values knows the seed, so chosen ones do not pile up in one place. */
static uint32_t hash_value(uint64_t seed, uint8_t kind, const uint8_t *bytes, size_t size) {
    const uint64_t secret = mix64(seed);
    uint64_t hash = seed ^ size ^ (uint64_t)kind << 56;
    for (; size > 16; bytes += 16, size -= 16)
        hash = fold(load_word(bytes, 8) ^ secret, load_word(bytes + 8, 8) ^ hash);
    uint64_t low = 0, high = 0;
    if (size >= 8) low = load_word(bytes, 8), high = load_word(bytes + size - 8, 8);
    else if (size >= 4) low = load_word(bytes, 4), high = load_word(bytes + size - 4, 4);
    else if (size) low = (uint64_t)bytes[0] << 16 | (uint64_t)bytes[size / 2] << 8 | bytes[size - 1];
    return (uint32_t)mix64(fold(low ^ secret, high ^ hash));
}

static bool grow_table(walk *w) {
    const uint32_t size = w->table_size ? 2 * w->table_size : TABLE_MIN;
    place *table = size ? mem_alloc_array(size, sizeof *table) : NULL; /* 0: there are too many values */
    if (!table) return ends_with(w, FVDB_ERR_MEMORY);
    for (uint32_t i = 0; i < w->table_size; i++) {
        if (!w->table[i].code) continue;
        uint32_t at = w->table[i].hash & (size - 1);
        while (table[at].code) at = (at + 1) & (size - 1);
        table[at] = w->table[i];
    }
    mem_free(w->table);
    w->table = table;
    w->table_size = size;
    return true;
}

/* Puts a text behind the other texts, with a 0 byte.  Rows that do not overlap always leave room for it: its head has a byte
 * or more. */
static bool copy_text(walk *w, const uint8_t *text, size_t size) {
    fvdb_cells *cells = w->cells;
    if (size >= cells->texts_capacity - cells->texts_size) return ends_with(w, FVDB_ERR_ARGUMENT);
    memcpy(cells->texts + cells->texts_size, text, size);
    cells->texts[cells->texts_size + size] = 0;
    cells->texts_size += size + 1;
    return true;
}

/* The code of a value, which enters the table if it is new. */
static bool code_value(walk *w, uint8_t kind, const uint8_t *bytes, size_t size, int32_t *out) {
    fvdb_cells *cells = w->cells;
    if (2 * (uint64_t)cells->n_values >= w->table_size && !grow_table(w)) return false;
    const uint32_t hash = hash_value(w->field->seed, kind, bytes, size), mask = w->table_size - 1;
    uint32_t at = hash & mask;
    for (; w->table[at].code; at = (at + 1) & mask) {
        const uint32_t code = w->table[at].code - 1;
        if (w->table[at].hash != hash || cells->value_kinds[code] != kind || cells->value_sizes[code] != size) continue;
        if (memcmp(w->field->bytes + cells->value_starts[code], bytes, size) != 0) continue;
        *out = (int32_t)code;
        return true;
    }
    const uint32_t code = cells->n_values;
    *out = (int32_t)code;
    /* Each value of the table is of another row or entry.  So without room there are more entries than their capacity, and
     * the call only counts them. */
    if (code == (uint64_t)w->field->n + cells->capacity) return true;
    cells->value_starts[code] = (uint64_t)(bytes - w->field->bytes);
    cells->value_sizes[code] = (uint32_t)size;
    cells->value_kinds[code] = kind;
    w->table[at] = (place){hash, ++cells->n_values};
    return kind != FVDB_VALUE_TEXT || copy_text(w, bytes, size);
}

/* ---- one value ---- */

/* Reads the value whose head was read, and passes over it. */
static bool read_cell(walk *w, cbor_head h, cell *out) {
    *out = no_cell();
    if (h.major == CBOR_TEXT) {
        const uint8_t *text = cbor_content(&w->at, &h);
        return text ? code_value(w, FVDB_VALUE_TEXT, text, h.argument, &out->code) : ends_with(w, FVDB_ERR_FORMAT);
    }
    const bool is_number = h.major == CBOR_UINT || h.major == CBOR_NEGATIVE, is_negative = h.major == CBOR_NEGATIVE;
    if (is_number && h.argument < EXACT_END - is_negative) {
        out->number = is_negative ? -1.0 - (double)h.argument : (double)h.argument;
        return true;
    }
    if (h.major == CBOR_SIMPLE && h.info >= CBOR_FLOAT16) {
        out->number = cbor_float(&h);
        return true;
    }
    if (!cbor_skip_rest(&w->at, h)) return ends_with(w, FVDB_ERR_FORMAT);
    const bool is_tagged = h.major == CBOR_TAG;
    if (is_tagged && h.argument != TAG_DATETIME && h.argument != TAG_DATE && h.argument != TAG_UUID)
        return ends_with(w, FVDB_ERR_FORMAT);
    if (is_number || is_tagged || (h.major == CBOR_SIMPLE && h.info >= CBOR_FALSE && h.info <= CBOR_NULL)) {
        const uint8_t kind = is_number ? FVDB_VALUE_LARGE : FVDB_VALUE_ITEM;
        return code_value(w, kind, h.start, (size_t)(w->at.at - h.start), &out->code);
    }
    return true; /* a map, a list in a list, a byte string: nothing that compares */
}

static void add_entry(walk *w, cell c) {
    if (c.code == NO_CODE && isnan(c.number)) return;
    const uint64_t i = w->n_listed++;
    if (i >= w->cells->capacity) return;
    w->cells->list_rows[i] = w->row;
    w->cells->list_numbers[i] = c.number;
    w->cells->list_codes[i] = c.code;
    w->cells->in_list[i] = 0;
}

static bool is_only(const walk *w) { return w->n_groups == 1 && w->groups[0].values == 1 && !w->groups[0].has_list; }

/* The group that a value of this reading belongs to, its first entry being the next. */
static group *group_of(walk *w, reading by) {
    group *last = w->n_groups ? &w->groups[w->n_groups - 1] : NULL;
    if (last && compare_readings(last->by, by) == 0) return last;
    if (w->n_groups == w->groups_size) {
        const uint32_t size = w->groups_size ? 2 * w->groups_size : GROUPS_MIN;
        group *groups = mem_realloc(w->groups, (size_t)size * sizeof *groups);
        if (!groups) return NULL;
        w->groups = groups;
        w->groups_size = size;
    }
    w->groups[w->n_groups] = (group){.by = by, .first = w->n_listed, .end = w->n_listed};
    return &w->groups[w->n_groups++];
}

/* Takes a value that the whole path leads to. */
static bool take_value(walk *w, reading by) {
    cbor_head h;
    if (!cbor_read_head(&w->at, &h)) return ends_with(w, FVDB_ERR_FORMAT);
    if (is_only(w)) { /* the second value of the row: both become entries */
        add_entry(w, w->first);
        w->groups[0].end = w->n_listed;
    }
    const bool is_first = w->n_groups == 0, is_list = h.major == CBOR_ARRAY;
    group *g = group_of(w, by);
    if (!g) return ends_with(w, FVDB_ERR_MEMORY);
    g->values++;
    g->has_list |= is_list;
    cell c;
    if (!is_list) {
        if (!read_cell(w, h, &c)) return false;
        if (is_first) w->first = c;
        else add_entry(w, c);
    }
    for (uint64_t i = 0; is_list && i < h.argument; i++) {
        cbor_head item;
        if (!cbor_read_head(&w->at, &item)) return ends_with(w, FVDB_ERR_FORMAT);
        if (!read_cell(w, item, &c)) return false;
        add_entry(w, c);
    }
    g->end = w->n_listed;
    return true;
}

/* ---- the path ---- */

/* The step behind a key that may stand at a step, or 0.  The keys of a run differ in size, so at most one fits. */
static uint32_t step_behind(const fvdb_field *f, uint32_t step, const uint8_t *key, uint64_t size) {
    const uint32_t start = f->steps[step].start, end = f->steps[step].run_end;
    for (uint32_t j = step; j < end; j++) {
        const uint64_t length = f->steps[j].end - start;
        if (length == size) return memcmp(f->text + start, key, size) == 0 ? j + 1 : 0;
        if (length > size) return 0;
    }
    return 0;
}

static bool descend(walk *w, cbor_head h, uint32_t step, reading by, bool is_last);

/* Enters the map whose head was read.  is_last: nothing behind the map can lead to a value. */
static bool enter_map(walk *w, cbor_head h, uint32_t step, reading by, bool is_last) {
    /* Keys are distinct: where one key alone may stand here, the walk ends with it. */
    is_last = is_last && w->field->steps[step].run_end == step + 1;
    for (uint64_t i = 0; i < h.argument; i++) {
        cbor_head key, value;
        uint32_t next = 0;
        if (!cbor_read_head(&w->at, &key)) return ends_with(w, FVDB_ERR_FORMAT);
        if (key.major == CBOR_TEXT) {
            const uint8_t *text = cbor_content(&w->at, &key);
            if (!text) return ends_with(w, FVDB_ERR_FORMAT);
            next = step_behind(w->field, step, text, key.argument);
        } else if (!cbor_skip_rest(&w->at, key)) return ends_with(w, FVDB_ERR_FORMAT);
        if (next == w->field->n_steps) {
            if (!take_value(w, with_step(by, next))) return false;
        } else {
            if (!cbor_read_head(&w->at, &value)) return ends_with(w, FVDB_ERR_FORMAT);
            if (!next && !cbor_skip_rest(&w->at, value)) return ends_with(w, FVDB_ERR_FORMAT);
            if (next && !descend(w, value, next, with_step(by, next), is_last)) return false;
        }
        if (next && is_last) return true;
    }
    return true;
}

/* Follows the path from a step on, into the value whose head was read, and passes over it unless it is the last. */
static bool descend(walk *w, cbor_head h, uint32_t step, reading by, bool is_last) {
    if (h.major == CBOR_MAP) return enter_map(w, h, step, by, is_last);
    if (h.major != CBOR_ARRAY) return cbor_skip_rest(&w->at, h) || ends_with(w, FVDB_ERR_FORMAT);
    for (uint64_t i = 0; i < h.argument; i++) {
        cbor_head item;
        if (!cbor_read_head(&w->at, &item)) return ends_with(w, FVDB_ERR_FORMAT);
        if (item.major == CBOR_MAP) {
            if (!enter_map(w, item, step, by, false)) return false;
        } else if (!cbor_skip_rest(&w->at, item)) return ends_with(w, FVDB_ERR_FORMAT);
    }
    return true;
}

/* ---- rows ---- */

static int by_reading(const void *a, const void *b) {
    return compare_readings(((const group *)a)->by, ((const group *)b)->by);
}

/* Marks the entries of the row that are items of lists: those of a list, and those of several values of one reading. */
static void mark_lists(walk *w) {
    group *groups = w->groups;
    if (w->n_groups > 1) qsort(groups, w->n_groups, sizeof *groups, by_reading);
    for (uint32_t i = 0, end; i < w->n_groups; i = end) {
        uint64_t values = 0;
        bool has_list = false;
        for (end = i; end < w->n_groups && compare_readings(groups[end].by, groups[i].by) == 0; end++) {
            values += groups[end].values;
            has_list |= groups[end].has_list;
        }
        if (values == 1 && !has_list) continue;
        for (uint32_t g = i; g < end; g++)
            for (uint64_t e = groups[g].first; e < groups[g].end && e < w->cells->capacity; e++)
                w->cells->in_list[e] = 1;
    }
}

static bool read_row(walk *w) {
    const fvdb_field *f = w->field;
    const int64_t offset = f->offsets[w->row], size = f->sizes[w->row];
    cell c = no_cell();
    w->n_groups = 0;
    if (size) {
        cbor_head h;
        if (offset < 0 || size < 0 || (uint64_t)offset > f->n_bytes || (uint64_t)size > f->n_bytes - (uint64_t)offset)
            return ends_with(w, FVDB_ERR_ARGUMENT);
        w->at = (cbor){f->bytes + offset, f->bytes + offset + size};
        if (!cbor_read_head(&w->at, &h)) return ends_with(w, FVDB_ERR_FORMAT);
        if (!descend(w, h, 0, (reading){0, 0}, true)) return false;
        if (is_only(w)) c = w->first;
        else mark_lists(w);
    }
    w->cells->present[w->row] = w->n_groups > 0;
    w->cells->numbers[w->row] = c.number;
    w->cells->codes[w->row] = c.code;
    return true;
}

fvdb_status read_field(const fvdb_field *field, fvdb_cells *cells, fvdb_diag *diag) {
    walk w = {.field = field, .cells = cells};
    cells->n_listed = cells->n_values = 0;
    cells->texts_size = 0;
    while (w.row < field->n && read_row(&w)) w.row++;
    mem_free(w.groups);
    mem_free(w.table);
    switch (w.status) {
    case FVDB_OK: break;
    case FVDB_ERR_MEMORY: return FAIL_MEMORY(diag);
    case FVDB_ERR_ARGUMENT:
        return FAIL_AT(diag, w.status, "a row lies outside the bytes, or its texts do not fit", w.row, field->n_bytes,
                       0);
    default: return FAIL_AT(diag, w.status, "the metadata of a row is not the CBOR it should be", w.row, 0, 0);
    }
    if (w.n_listed > cells->capacity)
        return FAIL_AT(diag, FVDB_ERR_BUFFER, "the entries do not fit", 0, w.n_listed, cells->capacity);
    cells->n_listed = (uint32_t)w.n_listed;
    return FVDB_OK;
}
