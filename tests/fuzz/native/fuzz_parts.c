/* Hostile parts of an index: a load refuses them, or makes an index that is whole.  Whoever writes a share has the keys, so an
 * index that is taken may hold other rows than it did; it answers, changes, and saves to the very bytes that it came from. */
#include "indexes.h"

static void check_searches(fvdb_index *index, uint32_t dim, uint32_t rows) {
    enum { K = 10 };
    fvdb_stats stats;
    MUST(fvdb_get_stats(index, &stats, NULL) == FVDB_OK);
    float *query = room(dim, sizeof *query);
    uint32_t slots[K], count, plan;
    double distances[K];
    uint64_t *live = room((rows + 63) / 64, sizeof *live);
    MUST(fvdb_live_bitmap(index, live, (rows + 63) / 64, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < 3; i++) {
        const fvdb_search_params params = {.k = K, .ef_search = 50, .exact = i == 2, .nprobe = i == 1};
        query[i % dim] = 1;
        MUST(fvdb_search(index, query, 1, &params, NULL, 0, slots, distances, &count, &plan, NULL, 0, NULL, NULL,
                         NULL) == FVDB_OK);
        const uint64_t with_vector = stats.live - stats.vectorless;
        MUST(count == (with_vector < K ? with_vector : K));
        for (uint32_t j = 0; j < count; j++) {
            MUST(slots[j] < rows && live[slots[j] / 64] >> (slots[j] % 64) & 1);
            MUST(j == 0 || distances[j - 1] <= distances[j]);
        }
    }
    free(live);
    free(query);
}

static void check_rows(fvdb_index *index, uint32_t dim, uint32_t rows) {
    uint32_t *slots = room(rows, sizeof *slots), *found = room(rows, sizeof *found), live, n = 0;
    uint64_t *offsets = room((size_t)rows + 1, sizeof *offsets);
    int64_t *times = room(rows, sizeof *times);
    float *vectors = room((size_t)rows * dim, sizeof *vectors);
    fvdb_stats stats;
    MUST(fvdb_get_stats(index, &stats, NULL) == FVDB_OK && stats.rows == rows);
    uint8_t *ids = room(stats.id_bytes, 1);
    MUST(fvdb_live_slots(index, 0, slots, rows, &live, NULL) == FVDB_OK && live == stats.live);
    MUST(fvdb_get_ids(index, slots, live, ids, stats.id_bytes, offsets, NULL) == FVDB_OK);
    MUST(fvdb_find(index, ids, offsets, live, found, NULL) == FVDB_OK);
    MUST(memcmp(slots, found, live * sizeof *slots) == 0);
    for (n = 0; n < rows; n++) slots[n] = n;
    MUST(fvdb_get_vectors(index, slots, rows, vectors, NULL) == FVDB_OK);
    for (size_t i = 0; i < (size_t)rows * dim; i++) MUST(vectors[i] - vectors[i] == 0); /* finite */
    MUST(fvdb_get_timestamps(index, slots, rows, times, NULL) == FVDB_OK);
    free(slots);
    free(found);
    free(offsets);
    free(times);
    free(vectors);
    free(ids);
}

/* The parts that it writes are those that it was given, but for codes, which follow from the rows. */
static void check_written(fvdb_index *index, const saved *s) {
    stored_set now;
    write_parts(index, &s->load, &now);
    for (uint32_t i = 0; i < now.n; i++) {
        if (now.at[i].kind == FVDB_PART_BIT_CODES) continue;
        if (s->n_steps && (now.at[i].kind == FVDB_PART_GRAPH || now.at[i].kind == FVDB_PART_GRAPH_HEAD)) continue;
        must_have(&s->parts, &now.at[i]);
    }
    stored_free(&now);
}

/* Everything that an index can do. */
static void use(fvdb_index *index, uint32_t dim, uint32_t rows, input *in) {
    fvdb_stats stats;
    check_rows(index, dim, rows);
    check_searches(index, dim, rows);
    add_rows(index, dim, 1u << 20, 3, 0);
    MUST(fvdb_get_stats(index, &stats, NULL) == FVDB_OK);
    rows = (uint32_t)stats.rows;
    uint32_t next = 0, moved, *map = room(rows, sizeof *map), *order = room(rows, sizeof *order);
    if (stats.lists) MUST(fvdb_migrate(index, INT64_MAX, 100, &next, &moved, NULL) == FVDB_OK);
    if (pick(in, 1) % 8 == 1) {
        fvdb_status status = fvdb_train(index, INT64_MAX, NULL, NULL);
        MUST(status == FVDB_OK || status == FVDB_ERR_TOO_FEW);
    }
    MUST(fvdb_vacuum_order(index, order, rows, NULL) == FVDB_OK);
    MUST(fvdb_vacuum(index, map, rows, NULL, NULL) == FVDB_OK);
    MUST(fvdb_get_stats(index, &stats, NULL) == FVDB_OK && stats.rows == stats.live);
    rows = (uint32_t)stats.rows;
    for (uint32_t i = 0; i < rows; i++) MUST(map[order[i]] == i);
    MUST(fvdb_locality_order(index, order, rows, NULL, NULL) == FVDB_OK);
    MUST(fvdb_renumber(index, order, rows, NULL) == FVDB_OK);
    check_rows(index, dim, rows);
    check_searches(index, dim, rows);
    free(map);
    free(order);
}

FUZZ(parts) {
    input in = {data, size};
    saved s;
    bool changed;
    fvdb_index *index = NULL;
    edited(&s, &in, &changed);
    fvdb_status status = fvdb_load_begin(&s.config, &s.load, &index, NULL);
    MUST(status == FVDB_OK || status == FVDB_ERR_ARGUMENT || status == FVDB_ERR_MEMORY);
    for (uint32_t i = 0; index && i < s.parts.n; i++)
        for (uint32_t times = s.parts.at[i].times; times; times--)
            (void)fvdb_load_part(index, s.parts.at[i].bytes, s.parts.at[i].size, NULL);
    if (index && fvdb_load_end(index, s.steps, s.n_steps, NULL, NULL) == FVDB_OK) {
        check_written(index, &s);
        use(index, s.config.dim, (uint32_t)s.load.rows, &in);
    }
    fvdb_free(index);
    stored_free(&s.parts);
}
