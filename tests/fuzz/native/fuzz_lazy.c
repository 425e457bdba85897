/* Hostile parts of an index that is loaded lazily: codes and ids at first, and parts with vectors as a search fetches them. */
#include "indexes.h"

static bool is_first(uint32_t kind) {
    return kind == FVDB_PART_BIT_CODES || kind == FVDB_PART_IDS || kind == FVDB_PART_TIMESTAMPS ||
           kind == FVDB_PART_TOMBSTONES || kind == FVDB_PART_GRAPH_HEAD || kind == FVDB_PART_VECTORLESS;
}

static bool has_bit(const uint64_t *bits, uint32_t at) { return bits[at / 64] >> (at % 64) & 1; }

static void search_part(fvdb_index *index, const stored *part, const float *query, const uint64_t *live,
                        const saved *s) {
    enum { K = 5 };
    uint32_t slots[K], n = 0;
    double distances[K];
    float *vectors = room((size_t)K * s->config.dim, sizeof *vectors);
    const bool is_sound = fvdb_part_check(index, part->bytes, part->size, NULL) == FVDB_OK;
    const fvdb_status status =
        fvdb_part_search(index, part->bytes, part->size, query, K, NULL, 0, slots, distances, &n, NULL);
    MUST(status == FVDB_OK || !is_sound);
    for (uint32_t i = 0; status == FVDB_OK && i < n; i++) MUST(slots[i] < s->load.rows && has_bit(live, slots[i]));
    for (uint32_t i = 0; is_sound && i < n; i++) MUST(distances[i] - distances[i] == 0);
    if (status == FVDB_OK) MUST(fvdb_part_vectors(index, part->bytes, part->size, slots, n, vectors, NULL) == FVDB_OK);
    free(vectors);
}

static void use(fvdb_index *index, const saved *s) {
    enum { K = 50 };
    const uint32_t rows = (uint32_t)s->load.rows, words = (rows + 63) / 64;
    uint32_t slots[K], n;
    double distances[K];
    uint64_t *live = room(words, sizeof *live);
    float *query = room(s->config.dim, sizeof *query);
    fvdb_stats stats;
    MUST(fvdb_get_stats(index, &stats, NULL) == FVDB_OK);
    MUST(fvdb_live_bitmap(index, live, words, NULL) == FVDB_OK);
    for (uint32_t d = 0; d < 2; d++) {
        query[d % s->config.dim] = 1;
        MUST(fvdb_candidates(index, query, K, NULL, 0, slots, distances, &n, NULL) == FVDB_OK);
        const uint64_t with_vector = stats.live - stats.vectorless;
        MUST(n == (with_vector < K ? with_vector : K));
        for (uint32_t i = 0; i < n; i++) MUST(slots[i] < rows && has_bit(live, slots[i]));
        for (uint32_t i = 1; i < n; i++) MUST(distances[i - 1] <= distances[i]);
        for (uint32_t i = 0; i < s->parts.n; i++)
            if (s->parts.at[i].kind == FVDB_PART_VECTORS) search_part(index, &s->parts.at[i], query, live, s);
    }
    free(live);
    free(query);
}

FUZZ(lazy) {
    input in = {data, size};
    saved s;
    bool changed;
    fvdb_index *index = NULL;
    edited(&s, &in, &changed);
    (void)fvdb_load_begin(&s.config, &s.load, &index, NULL);
    for (uint32_t i = 0; index && i < s.parts.n; i++)
        for (uint32_t times = is_first(s.parts.at[i].kind) ? s.parts.at[i].times : 0; times; times--)
            (void)fvdb_load_part(index, s.parts.at[i].bytes, s.parts.at[i].size, NULL);
    if (index && fvdb_load_lazy(index, NULL) == FVDB_OK) use(index, &s);
    fvdb_free(index);
    stored_free(&s.parts);
}
