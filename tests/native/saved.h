/* The parts of an index in memory, for tests that load them. */
#ifndef FVDB_TEST_SAVED_H
#define FVDB_TEST_SAVED_H

#include "check.h"
#include "data.h"

enum { PER_PART = 200, PER_GROUP = 400, PARTS_MAX = 64 };

typedef struct saved {
    uint32_t n;
    uint8_t *bytes[PARTS_MAX];
    uint64_t size[PARTS_MAX];
    uint32_t kinds[PARTS_MAX];
    uint32_t rows, graph_rows, lists, has_codes, has_vectorless, has_seconds;
    fvdb_config config;
} saved;

static inline void save(fvdb_index *index, saved *out) {
    fvdb_part parts[PARTS_MAX];
    fvdb_stats stats;
    fvdb_get_stats(index, &stats, NULL);
    out->rows = (uint32_t)stats.rows;
    out->graph_rows = (uint32_t)stats.graph_rows;
    out->lists = (uint32_t)stats.lists;
    CHECK(fvdb_parts(index, PER_PART, PER_GROUP, parts, PARTS_MAX, &out->n, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < out->n; i++) {
        out->bytes[i] = malloc(parts[i].size);
        out->kinds[i] = parts[i].kind;
        out->has_codes |= parts[i].kind == FVDB_PART_BIT_CODES;
        out->has_vectorless |= parts[i].kind == FVDB_PART_VECTORLESS;
        out->has_seconds |= parts[i].kind == FVDB_PART_SECOND_LISTS;
        CHECK(fvdb_part_write(index, PER_PART, PER_GROUP, parts[i].kind, parts[i].number, out->bytes[i], parts[i].size,
                              &out->size[i], NULL) == FVDB_OK);
    }
}

static inline fvdb_load what_to_load(const saved *s) {
    return (fvdb_load){s->rows,   s->graph_rows, s->rows,           s->lists,      PER_PART,
                       PER_GROUP, s->has_codes,  s->has_vectorless, s->has_seconds};
}

static inline void free_saved(saved *s) {
    for (uint32_t i = 0; i < s->n; i++) free(s->bytes[i]);
}

#endif
