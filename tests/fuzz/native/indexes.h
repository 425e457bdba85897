/* Good parts of small indexes of every form, from which the inputs of the harnesses of parts depart, and their loading. */
#ifndef FVDB_FUZZ_INDEXES_H
#define FVDB_FUZZ_INDEXES_H

#include "harness.h"

enum { PER_PART = 256, PER_GROUP = 512, HEADER = 40, ROWS_MAX = 1800, INDEXES = 5 };

/* A saved index: its parts, and what the manifest would say of it. */
typedef struct saved {
    fvdb_config config;
    fvdb_load load;
    uint32_t steps[FVDB_STEPS_MAX], n_steps;
    stored_set parts;
} saved;

static inline float some_float(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*state >> 32) / 2147483648.0f;
}

/* Rows first .. first + n - 1 with ids of two scripts; every `bare`-th has no vector. */
static inline void add_rows(fvdb_index *index, uint32_t dim, uint32_t first, uint32_t n, uint32_t bare) {
    float *vectors = room((size_t)n * dim, sizeof *vectors);
    uint8_t *ids = room((size_t)n * 16, 1), *vectorless = room(n, 1);
    uint64_t *offsets = room(n + 1, sizeof *offsets), state = first + 1;
    int64_t *times = room(n, sizeof *times);
    uint32_t *slots = room(2 * (size_t)n, sizeof *slots);
    for (uint32_t i = 0; i < n; i++) {
        vectorless[i] = bare && (first + i) % bare == 0;
        for (uint32_t d = 0; d < dim && !vectorless[i]; d++) vectors[(size_t)i * dim + d] = some_float(&state);
        offsets[i + 1] = offsets[i] + (uint64_t)sprintf((char *)ids + offsets[i], "\xc3\xa9%u", first + i);
        times[i] = first + i;
    }
    const fvdb_rows rows = {n, vectors, ids, offsets, times, bare ? vectorless : NULL, 0};
    MUST(fvdb_add(index, &rows, FVDB_ON_CONFLICT_ERROR, slots, slots + n, NULL, NULL) == FVDB_OK);
    free(vectors);
    free(ids);
    free(vectorless);
    free(offsets);
    free(times);
    free(slots);
}

/* Tombstones: rows 5, 14, 23 and so on. */
static inline void delete_some(fvdb_index *index, uint32_t rows) {
    for (uint32_t row = 5; row < rows; row += 9) {
        char id[16];
        uint32_t slot;
        const uint64_t offsets[] = {0, (uint64_t)sprintf(id, "\xc3\xa9%u", row)};
        MUST(fvdb_delete(index, (const uint8_t *)id, offsets, 1, 0, &slot, NULL) == FVDB_OK);
    }
}

static inline void migrate_before(fvdb_index *index, int64_t cutoff) {
    uint32_t next = 0, moved;
    while (next != FVDB_NO_SLOT) MUST(fvdb_migrate(index, cutoff, ROWS_MAX, &next, &moved, NULL) == FVDB_OK);
}

/* All parts of an index as it is now, in room of its own. */
static inline void write_parts(fvdb_index *index, const fvdb_load *load, stored_set *out) {
    static fvdb_part parts[4096];
    uint32_t n;
    MUST(fvdb_parts(index, load->rows_per_part, load->rows_per_group, parts, 4096, &n, NULL) == FVDB_OK);
    MUST(n <= STORED_MAX);
    out->n = n;
    for (uint32_t i = 0; i < n; i++) {
        stored *s = &out->at[i];
        *s = (stored){parts[i].kind, parts[i].number, room(parts[i].size, 1), parts[i].size, 1};
        uint64_t size;
        MUST(fvdb_part_write(index, load->rows_per_part, load->rows_per_group, s->kind, s->number, s->bytes, s->size,
                             &size, NULL) == FVDB_OK);
        MUST(size == s->size);
    }
}

static inline stored *find_part(stored_set *set, uint32_t kind) {
    for (uint32_t i = 0; i < set->n; i++)
        if (set->at[i].kind == kind) return &set->at[i];
    return NULL;
}

/* Two in three of the rows on lists are also on the next one: training keeps no second lists on such rows. */
static inline void add_second_lists(saved *s) {
    const stored *lists = find_part(&s->parts, FVDB_PART_LISTS);
    stored *head = find_part(&s->parts, FVDB_PART_LISTS_HEAD), *second = &s->parts.at[s->parts.n++];
    const float limit = 2;
    MUST(lists && head && !find_part(&s->parts, FVDB_PART_SECOND_LISTS));
    *second = (stored){FVDB_PART_SECOND_LISTS, 0, room(lists->size, 1), lists->size, 1};
    memcpy(second->bytes, lists->bytes, lists->size);
    second->bytes[6] = FVDB_PART_SECOND_LISTS;
    for (size_t row = HEADER; row < second->size; row++)
        if (second->bytes[row])
            second->bytes[row] = (uint8_t)((row - HEADER) % 3 ? second->bytes[row] % s->load.lists + 1 : 0);
    memcpy(head->bytes + HEADER + 12, &limit, sizeof limit); /* little-endian machines alone have the harnesses */
    s->load.has_seconds = 1;
}

static inline void note_load(fvdb_index *index, saved *s) {
    fvdb_stats stats;
    MUST(fvdb_get_stats(index, &stats, NULL) == FVDB_OK);
    s->load = (fvdb_load){.rows = stats.rows,
                          .graph_rows = stats.graph_rows,
                          .stored_rows = stats.rows,
                          .lists = stats.lists,
                          .rows_per_part = PER_PART,
                          .rows_per_group = PER_GROUP,
                          .has_codes = stats.with_vector >= 1024,
                          .has_vectorless = stats.vectorless > 0};
}

static inline fvdb_index *new_index(const fvdb_config *config) {
    fvdb_index *index;
    MUST(fvdb_create(config, &index, NULL) == FVDB_OK);
    return index;
}

static inline void make_saved(uint32_t which, saved *s) {
    static const fvdb_config configs[INDEXES] = {{3, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 4, 30, 1, 7},
                                                 {3, FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 4, 30, 1, 7},
                                                 {3, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 4, 30, 1, 7},
                                                 {5, FVDB_METRIC_DOT, FVDB_MEMORY_DEFAULT, 4, 30, 1, 7},
                                                 {2, FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 4, 30, 1, 7}};
    *s = (saved){.config = configs[which]};
    fvdb_index *index = new_index(&s->config);
    const uint32_t dim = s->config.dim;
    switch (which) {
    case 0: /* no graph */
        add_rows(index, dim, 0, 20, 0);
        delete_some(index, 20);
        break;
    case 1: /* a graph */
        add_rows(index, dim, 0, 1030, 0);
        delete_some(index, 1030);
        break;
    case 2: /* settled rows, rows that moved since, recent ones, tombstones on both sides, second lists */
        add_rows(index, dim, 0, 1800, 0);
        MUST(fvdb_train(index, 900, NULL, NULL) == FVDB_OK);
        migrate_before(index, 700);
        uint32_t *map = room(1800, sizeof *map);
        MUST(fvdb_vacuum(index, map, 1800, NULL, NULL) == FVDB_OK);
        free(map);
        migrate_before(index, 900);
        delete_some(index, 1800);
        break;
    case 3: /* rows without a vector */
        add_rows(index, dim, 0, 1200, 9);
        delete_some(index, 1200);
        break;
    default: /* rows that a reader links again */
        add_rows(index, dim, 0, 1030, 0);
        MUST(fvdb_graph_stored(index, NULL) == FVDB_OK);
        add_rows(index, dim, 1030, 30, 0);
    }
    note_load(index, s);
    write_parts(index, &s->load, &s->parts);
    if (which == 2) add_second_lists(s);
    if (which == 4) {
        /* The graph's parts of before the last add. */
        saved before = {.config = s->config};
        fvdb_index *earlier = new_index(&s->config);
        uint32_t rows;
        add_rows(earlier, dim, 0, 1030, 0);
        note_load(earlier, &before);
        write_parts(earlier, &before.load, &before.parts);
        for (uint32_t i = 0, j = 0; i < s->parts.n; i++) {
            stored *part = &s->parts.at[i];
            if (part->kind != FVDB_PART_GRAPH && part->kind != FVDB_PART_GRAPH_HEAD) continue;
            while (j < before.parts.n && before.parts.at[j].kind != part->kind) j++;
            MUST(j < before.parts.n && before.parts.at[j].number == part->number);
            stored_splice(part, 0, part->size, before.parts.at[j].bytes, before.parts.at[j].size);
            j++;
        }
        MUST(fvdb_graph_steps(index, &rows, s->steps, &s->n_steps, NULL) == FVDB_OK && rows == 1030 && s->n_steps == 1);
        s->load.stored_rows = rows;
        stored_free(&before.parts);
        fvdb_free(earlier);
    }
    fvdb_free(index);
}

/* One of the saved indexes; each is made once. */
static inline const saved *saved_index(uint32_t which) {
    static saved made[INDEXES];
    if (made[which].parts.n == 0) make_saved(which, &made[which]);
    return &made[which];
}

/* What a hostile manifest may say: each number within what the package's own reader of manifests lets through, which
 * compares them with the number and the sizes of the parts before any memory is taken. */
static inline void edit_claims(saved *s, input *in) {
    const uint32_t what = pick_below(in, 12);
    const uint32_t value = (uint32_t)pick(in, 2);
    switch (what) {
    case 0: s->load.rows = value; break;
    case 1: s->load.graph_rows = value; break;
    case 2: s->load.stored_rows = value; break;
    case 3: s->load.lists = value; break;
    case 4: s->load.rows_per_part = value + 1; break;
    case 5: s->load.rows_per_group = value + 1; break;
    case 6: s->load.has_codes = value % 2; break;
    case 7: s->load.has_vectorless = value % 2; break;
    case 8: s->load.has_seconds = value % 2; break;
    case 9: s->config.dim = value % FVDB_DIM_MAX + 1; break;
    case 10: s->config.metric = value % 3; break;
    default:
        s->n_steps = value % 4;
        for (uint32_t i = 0; i < s->n_steps; i++) s->steps[i] = (uint32_t)pick(in, 2);
    }
}

/* A saved index with the edits of an input; *changed: claims, which parts are there, or headers are others. */
static inline void edited(saved *s, input *in, bool *changed) {
    const saved *good = saved_index(pick_below(in, INDEXES));
    *s = *good;
    stored_copy(&s->parts, &good->parts);
    s->config.memory = pick_below(in, 3);
    *changed = false;
    for (uint32_t edits = 0; in->left > 1 && edits < EDITS_MAX; edits++) {
        if (pick(in, 1) % 8 == 0) {
            edit_claims(s, in);
            *changed = true;
            continue;
        }
        if (stored_edit(&s->parts, in, HEADER)) *changed = true;
    }
    for (uint32_t i = 0; i < s->parts.n; i++) {
        stored *part = &s->parts.at[i];
        if (*changed || part->size < HEADER) continue;
        for (uint32_t b = 0; b < 8; b++) part->bytes[32 + b] = (uint8_t)((uint64_t)(part->size - HEADER) >> (8 * b));
    }
}

#endif
