/* The graph's memory and its invariants after building and repairing. */
#include "check.h"
#include "data.h"
#include "index/index.h"

static void test_packed_links_keep_their_values_when_widened(void) {
    fvdb_config config = {.dim = 4, .memory = FVDB_MEMORY_COMPACT, .M = 5, .ef_construction = 10, .threads = 1};
    hnsw g;
    uint32_t links[HNSW_M0_MAX], want[HNSW_M0_MAX];
    hnsw_init(&g, &config);
    CHECK(hnsw_reserve(&g, 1000, NULL) == FVDB_OK && g.link_bits == 16);
    for (uint32_t slot = 0; slot < 1000; slot++) {
        uint32_t n = slot % 11;
        for (uint32_t i = 0; i < n; i++) links[i] = (uint32_t)(mix64(slot * 100 + i) % 65535);
        hnsw_set_links0(&g, slot, links, n);
    }
    const uint32_t sizes[] = {65535, 65536, 1u << 20, 1u << 20};
    const uint32_t bits[] = {16, 20, 24, 24};
    for (size_t step = 0; step < 4; step++) {
        CHECK(hnsw_reserve(&g, sizes[step], NULL) == FVDB_OK && g.link_bits == bits[step]);
        for (uint32_t slot = 0; slot < 1000; slot++) {
            uint32_t n = hnsw_links(&g, 0, slot, links);
            CHECK(n == slot % 11);
            for (uint32_t i = 0; i < n; i++) want[i] = (uint32_t)(mix64(slot * 100 + i) % 65535);
            CHECK(memcmp(links, want, n * sizeof *links) == 0);
        }
        CHECK(hnsw_links(&g, 0, sizes[step] - 1, links) == 0);
    }
    hnsw_free(&g);
}

static void test_levels_are_geometric(void) {
    uint32_t counts[HNSW_LEVEL_MAX + 1] = {0};
    for (uint32_t slot = 0; slot < 1u << 18; slot++) counts[hnsw_draw_level(16, slot)]++;
    CHECK(counts[1] > 14000 && counts[1] < 17000); /* 2^18 x 15/256 = 15360 */
    CHECK(counts[2] > 850 && counts[2] < 1070);    /* 960 */
    CHECK(counts[3] > 30 && counts[3] < 95);       /* 60 */
}

/* No link points to itself, to nothing or twice to the same row; upper links reach rows of that level. */
static void check_graph(const hnsw *g) {
    uint32_t links[HNSW_M0_MAX], linked = 0;
    uint8_t *reached = calloc(g->n, 1);
    for (uint32_t slot = 0; slot < g->n; slot++) {
        uint32_t n = hnsw_links(g, 0, slot, links);
        for (uint32_t i = 0; i < n; i++) {
            CHECK(links[i] < g->n && links[i] != slot);
            for (uint32_t j = 0; j < i; j++) CHECK(links[j] != links[i]);
            reached[links[i]] = 1;
        }
    }
    for (uint32_t slot = 0; slot < g->n; slot++) linked += reached[slot];
    CHECK(linked >= g->n - g->n / 500); /* rows nobody links to cannot be found */
    for (uint32_t u = 0; u < g->upper_n; u++) {
        CHECK(u == 0 || hnsw_upper_slot(g, u) > hnsw_upper_slot(g, u - 1));
        CHECK(hnsw_upper_slot(g, u) < g->n);
        CHECK(hnsw_upper_level(g, u) <= g->max_level);
        for (uint32_t level = 1; level <= hnsw_upper_level(g, u); level++) {
            uint32_t n = hnsw_links(g, level, u, links);
            for (uint32_t i = 0; i < n; i++) {
                CHECK(links[i] < g->upper_n && links[i] != u);
                CHECK(hnsw_upper_level(g, links[i]) >= level);
            }
        }
    }
    CHECK(g->upper_n == 0 || hnsw_upper_level(g, g->entry) == g->max_level);
    free(reached);
}

static void test_the_graph_holds_its_invariants(void) {
    enum { DIM = 16 };
    for (uint32_t memory = 0; memory < 2; memory++) {
        fvdb_config config = {DIM, FVDB_METRIC_COSINE, memory, 8, 60, 2, 1};
        fvdb_index *index;
        CHECK(fvdb_create(&config, &index, NULL) == FVDB_OK);
        for (uint32_t part = 0; part < 4; part++) { /* single rows, then larger and larger calls */
            test_rows t = make_rows(part == 1 ? 1 : 900 * (part + 1), DIM, "p", part * 100000, part + 1);
            CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
            if (part == 3)
                for (uint32_t i = 0; i < t.rows.n; i += 4)
                    CHECK(fvdb_delete(index, t.ids, t.offsets + i, 1, 0, t.slots, NULL) == FVDB_OK);
            free_rows(&t);
            CHECK(index->graph.n == 0 || index->graph.n == index->store.n);
            check_graph(&index->graph);
        }
        uint32_t *map = malloc(index->store.n * sizeof *map);
        CHECK(fvdb_vacuum(index, map, index->store.n, NULL, NULL) == FVDB_OK);
        check_graph(&index->graph);
        free(map);
        fvdb_free(index);
    }
}

enum { CLUSTERS = 40 };
static uint32_t cluster_of(uint32_t row) { return mix64(row) % CLUSTERS; }

/* Rows with a link of level 0 to another cluster.  rows: what number a slot's row had when it was added. */
static uint32_t count_leading_away(const hnsw *g, const uint32_t *rows) {
    uint32_t links[HNSW_M0_MAX], found = 0;
    for (uint32_t slot = 0; slot < g->n; slot++) {
        const uint32_t n = hnsw_links(g, 0, slot, links);
        bool away = false;
        for (uint32_t i = 0; i < n; i++) away |= cluster_of(rows[links[i]]) != cluster_of(rows[slot]);
        found += away;
    }
    return found;
}

/* No row of a tight cluster has one of another among its nearest: one of its links leads anywhere. */
static void test_links_lead_from_cluster_to_cluster(void) {
    enum { N = 8000, DIM = 24 };
    fvdb_config config = {DIM, FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 8, 60, 2, 1};
    fvdb_index *index;
    CHECK(fvdb_create(&config, &index, NULL) == FVDB_OK);
    test_rows t = make_rows(N, DIM, "row", 0, 3);
    for (uint32_t i = 0; i < N; i++)
        for (uint32_t d = 0; d < DIM; d++) {
            const float centre = (float)(mix64(cluster_of(i) * DIM + d) % 2001) / 100 - 10;
            t.vectors[(size_t)i * DIM + d] = centre + 0.01f * t.vectors[(size_t)i * DIM + d];
        }
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
    CHECK(index->store.book.coarse);
    check_graph(&index->graph);
    uint32_t *rows = malloc(N * sizeof *rows), *map = malloc(N * sizeof *map);
    for (uint32_t i = 0; i < N; i++) rows[i] = i;
    CHECK(count_leading_away(&index->graph, rows) > N - N / 20); /* one in CLUSTERS is drawn from its own */
    for (uint32_t i = 0; i < N; i += 5) CHECK(fvdb_delete(index, t.ids, t.offsets + i, 1, 0, t.slots, NULL) == FVDB_OK);
    CHECK(fvdb_vacuum(index, map, N, NULL, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < N; i++)
        if (map[i] != FVDB_NO_SLOT) rows[map[i]] = i;
    check_graph(&index->graph);
    CHECK(count_leading_away(&index->graph, rows) > index->graph.n - index->graph.n / 10);
    free(map);
    free(rows);
    fvdb_free(index);
    free_rows(&t);
}

/* More equal rows than ef_construction can crowd others out of each other's links; docs/tuning.md says so. */
static void test_equal_rows_do_not_hide_others(void) {
    enum { N = 3000, DIM = 12, STEP = 40 };
    fvdb_config config = {DIM, FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 16, 100, 2, 1};
    fvdb_index *index;
    CHECK(fvdb_create(&config, &index, NULL) == FVDB_OK);
    test_rows t = make_rows(N, DIM, "row", 0, 1);
    for (uint32_t i = 0; i < N; i += STEP) memcpy(t.vectors + (size_t)i * DIM, t.vectors, DIM * sizeof(float));
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
    uint32_t slot, count, plan, found = 0;
    double distance;
    fvdb_search_params params = {.k = 1};
    for (uint32_t i = 1; i < N; i += STEP) {
        CHECK(fvdb_search(index, t.vectors + (size_t)i * DIM, 1, &params, NULL, 0, &slot, &distance, &count, &plan,
                          NULL, 0, NULL, NULL, NULL) == FVDB_OK);
        found += slot == i && distance == 0.0;
    }
    CHECK(found == N / STEP);
    fvdb_free(index);
    free_rows(&t);
}

int main(void) {
    RUN(test_packed_links_keep_their_values_when_widened);
    RUN(test_levels_are_geometric);
    RUN(test_the_graph_holds_its_invariants);
    RUN(test_links_lead_from_cluster_to_cluster);
    RUN(test_equal_rows_do_not_hide_others);
    return check_done();
}
