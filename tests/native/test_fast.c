/* memory="fast": edge codes, their kernels on each instruction set against the scalar ones, bit for bit, and what they
 * estimate; then blocks through the life of an index, and walks by them. */
#include "check.h"
#include "data.h"
#include "index/index.h"
#include "saved.h"

#include <float.h>
#include <math.h>

static const size_t DIMS[] = {64, 128, 192, 256, 384, 448, 768, 1024, 1536, 4096};
#define N_DIMS (sizeof DIMS / sizeof *DIMS)

typedef struct edges {
    float query[FVDB_DIM_MAX], node[FVDB_DIM_MAX], links[EDGE_LANES][FVDB_DIM_MAX];
    uint8_t codes[FVDB_DIM_MAX / 8 * EDGE_LANES], tables[FVDB_DIM_MAX / 4 * EDGE_TABLE_BYTES];
    float norm2[EDGE_LANES], sizes[EDGE_LANES], products[EDGE_LANES];
    uint16_t factors[2 * EDGE_LANES];
    float scale, offset, error, estimates[EDGE_LANES];
    uint32_t near;
} edges;

static edges F, G; /* too large for a stack */

static uint16_t high_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x8000u) >> 16);
}

/* A query, a node, and neighbours of the node some `far` away; `size` is how long vectors are, about. */
static void fill(edges *f, const kernel_table *k, size_t dim, float size, float far, uint64_t seed) {
    memset(f, 0, sizeof *f);
    for (size_t d = 0; d < dim; d++) {
        f->query[d] = size * noise(&seed);
        f->node[d] = size * noise(&seed);
    }
    k->edge_rotate(f->query, dim);
    k->edge_rotate(f->node, dim);
    k->edge_prepare(f->query, dim, f->tables, &f->scale, &f->offset, &f->error);
    for (uint32_t i = 0; i < EDGE_LANES; i++) {
        for (size_t d = 0; d < dim; d++) f->links[i][d] = i == 3 ? 0 : far * size * noise(&seed);
        k->edge_rotate(f->links[i], dim);
        k->edge_code(f->links[i], f->node, dim, i, f->codes, &f->norm2[i], &f->sizes[i], &f->products[i]);
        float factor = f->sizes[i] > 0 ? -2 * f->norm2[i] / f->sizes[i] : 0;
        f->factors[i] = high_half(factor);
        f->factors[EDGE_LANES + i] = high_half(f->norm2[i] - factor * f->products[i]);
    }
    f->near = k->edge_near(f->tables, f->codes, f->factors, dim, f->scale, f->offset, 0, f->estimates);
}

static bool same_f32(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

static void compare(const kernel_table *k, size_t dim, float size, uint64_t seed) {
    fill(&F, &kernels_scalar, dim, size, 0.5f, seed);
    fill(&G, k, dim, size, 0.5f, seed);
    CHECK(same_f32(F.query, G.query, dim) && same_f32(F.node, G.node, dim));
    CHECK(memcmp(F.codes, G.codes, sizeof F.codes) == 0 && memcmp(F.tables, G.tables, sizeof F.tables) == 0);
    CHECK(same_f32(F.norm2, G.norm2, EDGE_LANES) && same_f32(F.sizes, G.sizes, EDGE_LANES));
    CHECK(same_f32(F.products, G.products, EDGE_LANES));
    CHECK(same_f32(&F.scale, &G.scale, 1) && same_f32(&F.offset, &G.offset, 1) && same_f32(&F.error, &G.error, 1));
    CHECK(same_f32(F.estimates, G.estimates, EDGE_LANES) && F.near == G.near);
}

static void test_all_tables_give_the_same_bits(void) {
    const kernel_table *tables[4];
    size_t n = kernels_available(tables);
    for (size_t t = 0; t < n; t++) {
        printf("  %s\n", tables[t]->name);
        for (size_t d = 0; d < N_DIMS; d++) {
            const float sizes[] = {1, 1e-30f, 1e-42f, 1e18f, FLT_MAX};
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) compare(tables[t], DIMS[d], sizes[s], d + 1);
        }
    }
}

/* Values of which many are equal, and some infinite. */
static float rough(uint64_t *seed) {
    const float x = floorf(8 * noise(seed));
    return x > 6 ? INFINITY : x < -7 ? -INFINITY : x;
}

static void test_the_nearest_lanes_are_those_with_fewer_nearer_ones(void) {
    const kernel_table *tables[4];
    size_t n = kernels_available(tables);
    uint64_t seed = 11;
    for (uint32_t round = 0; round < 500; round++) {
        float estimates[EDGE_LANES];
        for (uint32_t i = 0; i < EDGE_LANES; i++) estimates[i] = round % 5 || i % 7 ? rough(&seed) : NAN;
        seed = mix64(seed);
        const uint32_t lanes = round % 3 ? (uint32_t)seed : UINT32_MAX, most = round % 12;
        uint32_t expected = 0;
        for (uint32_t i = 0; i < EDGE_LANES; i++) {
            uint32_t nearer = 0;
            for (uint32_t j = 0; j < EDGE_LANES; j++) nearer += (lanes >> j & 1) && estimates[j] < estimates[i];
            expected |= (uint32_t)(nearer < most) << i;
        }
        for (size_t t = 0; t < n; t++) CHECK(tables[t]->edge_nearest(estimates, lanes, most) == (expected & lanes));
    }
}

static void test_merged_candidates_are_sorted_and_equals_keep_their_order(void) {
    const kernel_table *tables[4];
    size_t n = kernels_available(tables);
    uint64_t seed = 12;
    for (uint32_t round = 0; round < 500; round++) {
        for (size_t t = 0; t < n; t++) {
            candidate pool[80 + MERGED_MOST];
            float distances[MERGED_MOST];
            uint32_t nodes[MERGED_MOST] = {0}, size = 0, first = UINT32_MAX, number = 0;
            uint64_t of_round = seed + round;
            /* From nothing to more than 64 candidates, each numbered by when it came. */
            for (uint32_t step = 0; step < 8; step++) {
                const uint32_t m = 1 + (round + 5 * step) % MERGED_MOST;
                if (size + m > 80) break;
                for (uint32_t i = 0; i < MERGED_MOST; i++) distances[i] = i < m ? rough(&of_round) : INFINITY;
                for (uint32_t i = 0; i < m; i++) nodes[i] = number++;
                first = tables[t]->merge(pool, size, distances, nodes, m);
                size += m;
                for (uint32_t i = 1; i < size; i++)
                    CHECK(pool[i - 1].distance < pool[i].distance ||
                          (pool[i - 1].distance == pool[i].distance && pool[i - 1].node < pool[i].node));
                for (uint32_t i = 0; i < first; i++) CHECK(pool[i].node < number - m);
                CHECK(pool[first].node >= number - m);
            }
            CHECK(size > 0);
        }
    }
}

/* Each lane, and each nibble of a table, counts once and where it should. */
static void test_sums_are_those_of_the_bits_that_are_set(void) {
    const kernel_table *tables[4];
    size_t n = kernels_available(tables), dim = 128;
    for (size_t t = 0; t < n; t++) {
        uint64_t seed = 5;
        fill(&F, &kernels_scalar, dim, 1, 1, 9);
        for (size_t i = 0; i < dim / 8 * EDGE_LANES; i++) F.codes[i] = (uint8_t)(seed = mix64(seed));
        for (uint32_t i = 0; i < EDGE_LANES; i++) {
            F.factors[i] = high_half(1);
            F.factors[EDGE_LANES + i] = 0;
        }
        tables[t]->edge_near(F.tables, F.codes, F.factors, dim, 1, 0, 0, F.estimates);
        for (uint32_t i = 0; i < EDGE_LANES; i++) {
            int32_t sum = 0;
            for (size_t g = 0; g < dim / 4; g++)
                sum += F.tables[g * EDGE_TABLE_BYTES + (F.codes[g / 2 * EDGE_LANES + i] >> (g % 2 ? 4 : 0) & 15)];
            CHECK(F.estimates[i] == (float)sum);
        }
    }
}

static void test_a_rotation_keeps_lengths_and_angles(void) {
    for (size_t at = 0; at < N_DIMS; at++) {
        size_t dim = DIMS[at];
        static float a[FVDB_DIM_MAX], b[FVDB_DIM_MAX];
        uint64_t seed = at;
        double before[3] = {0}, after[3] = {0}, largest = 0;
        for (size_t d = 0; d < dim; d++) {
            a[d] = d == 5; /* all in one dimension */
            b[d] = noise(&seed);
            before[0] += (double)a[d] * b[d];
            before[1] += (double)b[d] * b[d];
        }
        kernels_scalar.edge_rotate(a, dim);
        kernels_scalar.edge_rotate(b, dim);
        for (size_t d = 0; d < dim; d++) {
            after[0] += (double)a[d] * b[d];
            after[1] += (double)b[d] * b[d];
            after[2] += (double)a[d] * a[d];
            largest = fmax(largest, fabs((double)a[d]));
        }
        CHECK(fabs(after[0] - before[0]) < 1e-4 * sqrt(before[1]) && fabs(after[1] / before[1] - 1) < 1e-4);
        CHECK(fabs(after[2] - 1) < 1e-4);
        CHECK(largest < 8 / sqrt((double)dim)); /* and spread over all of them */
    }
}

/* RaBitQ's promise: estimates are unbiased, and off by what the spread says. */
static void test_estimates_are_as_good_as_promised(void) {
    for (size_t at = 2; at < N_DIMS - 1; at++) {
        const size_t dim = DIMS[at];
        double sum = 0, squares = 0;
        uint32_t n = 0;
        for (uint64_t seed = 0; seed < 12; seed++) {
            fill(&F, kernels_get(), dim, 1, 0.7f, 100 * at + seed);
            double gap2 = 0;
            for (size_t d = 0; d < dim; d++) {
                double gap = (double)F.query[d] - F.node[d];
                gap2 += gap * gap;
            }
            for (uint32_t i = 0; i < EDGE_LANES; i++, n++) {
                double exact = -gap2, spread;
                for (size_t d = 0; d < dim; d++) {
                    double gap = (double)F.query[d] - F.node[d] - F.links[i][d];
                    exact += gap * gap;
                }
                if (i == 3) {
                    CHECK(F.estimates[i] == 0); /* a copy of the node */
                    continue;
                }
                spread = 2 * (double)F.norm2[i] / F.sizes[i] * sqrt(0.36 * gap2 + (double)F.error);
                double off = ((double)F.estimates[i] - exact) / spread;
                sum += off;
                squares += off * off;
            }
        }
        printf("  dim %zu: off by %.3f +- %.3f spreads\n", dim, sum / n, sqrt(squares / n));
        CHECK(fabs(sum / n) < 0.3 && squares / n > 0.4 && squares / n < 2.0);
    }
}

/* ---- blocks ---- */

enum { N = 2000, QUERIES = 30 };

static fvdb_index *create(uint32_t dim, uint32_t metric, uint32_t memory, uint32_t M, uint32_t threads) {
    fvdb_config config = {dim, metric, memory, M, 60, threads, 7};
    fvdb_index *index = NULL;
    CHECK(fvdb_create(&config, &index, NULL) == FVDB_OK);
    return index;
}

static fvdb_status add_rows(fvdb_index *index, test_rows *t, uint32_t first, uint32_t end, fvdb_control *control) {
    fvdb_rows rows = t->rows;
    rows.n = end - first;
    rows.vectors += (size_t)first * index->config.dim;
    rows.id_offsets += first;
    rows.timestamps += first;
    return fvdb_add(index, &rows, 0, t->slots, t->replaced, control, NULL);
}

/* Blocks are those that all links coded anew have: whatever led here, and whichever thread or kernel it is. */
static void check_blocks(fvdb_index *index) {
    hnsw *g = &index->graph;
    const region *blocks = &g->edges.blocks;
    thread_pool *c;
    if (hnsw_rows(g) == 0) return;
    CHECK(blocks->used == hnsw_rows(g) * blocks_block_bytes(&g->edges) && g->edges.n_entries > 0);
    for (uint32_t row = 0; row < hnsw_rows(g); row++) CHECK(g->edges.stale.base[row] == 0);
    uint8_t *before = malloc(blocks->used), *entries = malloc(g->edges.entry_groups.used);
    memcpy(before, blocks->base, blocks->used);
    memcpy(entries, g->edges.entry_groups.base, g->edges.entry_groups.used);
    memset(g->edges.stale.base, EDGE_STALE_BLOCK, hnsw_rows(g));
    g->edges.n_entries = 0;
    CHECK(thread_pool_start(1, &c, NULL) == FVDB_OK);
    CHECK(hnsw_code_edges(g, &index->store, c, NULL));
    thread_pool_stop(c);
    CHECK(memcmp(before, blocks->base, blocks->used) == 0);
    CHECK(memcmp(entries, g->edges.entry_groups.base, g->edges.entry_groups.used) == 0);
    free(before);
    free(entries);
}

static uint64_t hash_of_parts(fvdb_index *index) {
    saved s = {0};
    uint64_t hash = 0;
    save(index, &s);
    for (uint32_t i = 0; i < s.n; i++)
        for (uint64_t b = 0; b < s.size[i]; b++) hash = mix64(hash ^ s.bytes[i][b]);
    free_saved(&s);
    return hash;
}

static double recall(fvdb_index *index, const float *queries, const uint64_t *allow, uint64_t words) {
    uint32_t slots[2][10], counts[2], plan, hits = 0, all = 0;
    double distances[2][10];
    for (uint32_t q = 0; q < QUERIES; q++) {
        for (uint32_t exact = 0; exact < 2; exact++) {
            fvdb_search_params params = {.k = 10, .exact = exact, .ef_search = 30};
            CHECK(fvdb_search(index, queries + (size_t)q * index->config.dim, 1, &params, allow, words, slots[exact],
                              distances[exact], &counts[exact], &plan, NULL, 0, NULL, NULL, NULL) == FVDB_OK);
        }
        CHECK(counts[0] == counts[1]);
        all += counts[1];
        for (uint32_t i = 0; i < counts[0]; i++) {
            CHECK(!allow || bit_get(allow, slots[0][i]));
            for (uint32_t j = 0; j < counts[1]; j++) hits += slots[0][i] == slots[1][j];
        }
    }
    return all ? (double)hits / all : 1;
}

static void vacuum(fvdb_index *index) {
    uint32_t *map = malloc((index->store.n + 1) * sizeof *map);
    CHECK(fvdb_vacuum(index, map, index->store.n, NULL, NULL) == FVDB_OK);
    free(map);
}

static void delete_every(fvdb_index *index, test_rows *t, uint32_t nth, uint32_t from) {
    uint32_t slot;
    for (uint32_t i = from; i < N; i += nth)
        CHECK(fvdb_delete(index, t->ids, t->offsets + i, 1, 1, &slot, NULL) == FVDB_OK);
}

/* One step in the life of an index. */
static void live(fvdb_index *index, test_rows *t, uint32_t step) {
    uint32_t moved, next = 0, *order;
    switch (step) {
    case 0: CHECK(add_rows(index, t, 0, 1400, NULL) == FVDB_OK); return;
    case 1:
        for (uint32_t at = 1400; at < 1600; at += 50) CHECK(add_rows(index, t, at, at + 50, NULL) == FVDB_OK);
        return;
    case 2: CHECK(add_rows(index, t, 1600, N, NULL) == FVDB_OK); return;
    case 3: delete_every(index, t, 10, 0); return;
    case 4: vacuum(index); return; /* a repair */
    case 5:
        order = malloc((index->store.n + 1) * sizeof *order);
        CHECK(fvdb_locality_order(index, order, index->store.n, NULL, NULL) == FVDB_OK);
        CHECK(fvdb_renumber(index, order, index->store.n, NULL) == FVDB_OK);
        free(order);
        return;
    case 6: CHECK(fvdb_train(index, t->times[700], NULL, NULL) == FVDB_OK); return;
    case 7: CHECK(fvdb_migrate(index, t->times[700], N, &next, &moved, NULL) == FVDB_OK && moved > 0); return;
    case 8: delete_every(index, t, 10, 1); return;
    case 9: vacuum(index); return; /* a graph anew, behind lists */
    default: CHECK(fvdb_migrate(index, INT64_MAX, N, &next, &moved, NULL) == FVDB_OK); vacuum(index);
    }
}
enum { STEPS = 11 };

/* The same life under both settings: what a save writes is the same, and what searches find as good. */
static void check_life(uint32_t dim, uint32_t metric, uint32_t M) {
    fvdb_index *fast = create(dim, metric, FVDB_MEMORY_FAST, M, 2);
    fvdb_index *other = create(dim, metric, FVDB_MEMORY_DEFAULT, M, 1);
    test_rows t = make_rows(N, dim, "row", 0, 3 + metric);
    float *queries = make_vectors(QUERIES, dim, 20, 99);
    uint64_t allow[N / 64 + 1];
    for (uint32_t i = 0; i < N / 64 + 1; i++) allow[i] = mix64(i) | mix64(i + 1000);
    for (uint32_t step = 0; step < STEPS; step++) {
        live(fast, &t, step);
        live(other, &t, step);
        check_blocks(fast);
        CHECK((hnsw_rows(&fast->graph) > 0) == (step + 1 < STEPS));
        CHECK(hash_of_parts(fast) == hash_of_parts(other));
        double found[2] = {recall(fast, queries, NULL, 0), recall(fast, queries, allow, N / 64 + 1)};
        double by_codes[2] = {recall(other, queries, NULL, 0), recall(other, queries, allow, N / 64 + 1)};
        printf("  dim %u step %u: %.4f %.4f, by codes %.4f %.4f\n", dim, step, found[0], found[1], by_codes[0],
               by_codes[1]);
        CHECK(found[0] >= by_codes[0] - 0.03 && found[1] >= by_codes[1] - 0.03);
    }
    CHECK(hnsw_rows(&fast->graph) == 0 && hnsw_resident(&fast->graph) == 0);
    fvdb_free(fast);
    fvdb_free(other);
    free_rows(&t);
    free(queries);
}

static void test_blocks_follow_the_graph_through_a_life(void) { check_life(33, FVDB_METRIC_L2, 5); }

static void test_blocks_follow_the_graph_by_other_metrics(void) {
    check_life(48, FVDB_METRIC_COSINE, 16);
    check_life(65, FVDB_METRIC_DOT, 24);
}

static void test_a_walk_by_blocks_finds_what_a_walk_by_codes_finds(void) {
    for (uint32_t metric = FVDB_METRIC_L2; metric <= FVDB_METRIC_DOT; metric++) {
        fvdb_index *index = create(96, metric, FVDB_MEMORY_FAST, 16, 2);
        test_rows t = make_rows(N, 96, "row", 0, 3);
        float *queries = make_vectors(QUERIES, 96, 20, 99);
        CHECK(add_rows(index, &t, 0, N, NULL) == FVDB_OK);
        double by_blocks = recall(index, queries, NULL, 0);
        index->graph.edges.kept = false; /* what searches ask */
        double by_codes = recall(index, queries, NULL, 0);
        index->graph.edges.kept = true;
        printf("  metric %u: %.4f by blocks, %.4f by codes\n", metric, by_blocks, by_codes);
        CHECK(by_blocks >= by_codes - 0.01);
        fvdb_free(index);
        free_rows(&t);
        free(queries);
    }
}

/* In tight clusters nearly all neighbours of a row are as near as the row.  A walk that fetched the nearest of them alone, by
 * estimate, would find 0.77 here. */
static void test_neighbours_that_wait_are_followed_at_last(void) {
    enum { DIM = 96, CLUSTERS = 100 };
    fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_FAST, 16, 2);
    test_rows t = make_rows(N, DIM, "row", 0, 3);
    float *centres = make_vectors(CLUSTERS, DIM, 1, 5), *queries = make_vectors(QUERIES, DIM, 1, 99);
    for (uint32_t i = 0; i < N * DIM; i++)
        t.vectors[i] = centres[i / DIM % CLUSTERS * DIM + i % DIM] + 0.01f * t.vectors[i];
    for (uint32_t i = 0; i < QUERIES * DIM; i++) queries[i] = centres[i] + 0.01f * queries[i];
    CHECK(add_rows(index, &t, 0, N, NULL) == FVDB_OK);
    double by_blocks = recall(index, queries, NULL, 0);
    index->graph.edges.kept = false;
    double by_codes = recall(index, queries, NULL, 0);
    index->graph.edges.kept = true;
    printf("  %.4f by blocks, %.4f by codes\n", by_blocks, by_codes);
    CHECK(by_codes > 0.9 && by_blocks >= by_codes - 0.02);
    fvdb_free(index);
    free_rows(&t);
    free(centres);
    free(queries);
}

static void test_all_kernels_make_the_same_blocks_and_answers(void) {
    fvdb_index *index = create(100, FVDB_METRIC_L2, FVDB_MEMORY_FAST, 16, 1);
    test_rows t = make_rows(N, 100, "row", 0, 3);
    float *queries = make_vectors(QUERIES, 100, 20, 99);
    const kernel_table *tables[4];
    uint32_t slots[2][QUERIES * 10], counts[QUERIES], plans[QUERIES];
    double distances[QUERIES * 10];
    fvdb_search_params params = {.k = 10};
    CHECK(add_rows(index, &t, 0, N, NULL) == FVDB_OK);
    for (size_t n = kernels_available(tables); n-- > 0;) {
        index->store.kernels = tables[n];
        check_blocks(index);
        CHECK(fvdb_search(index, queries, QUERIES, &params, NULL, 0, slots[1], distances, counts, plans, NULL, 0, NULL,
                          NULL, NULL) == FVDB_OK);
        CHECK(plans[0] == FVDB_PLAN_GRAPH);
        if (n + 1 < kernels_available(tables)) CHECK(memcmp(slots[0], slots[1], sizeof slots[0]) == 0);
        memcpy(slots[0], slots[1], sizeof slots[0]);
    }
    fvdb_free(index);
    free_rows(&t);
    free(queries);
}

static void test_a_version_of_any_setting_loads_with_blocks(void) {
    fvdb_index *fast = create(48, FVDB_METRIC_COSINE, FVDB_MEMORY_FAST, 16, 2);
    test_rows t = make_rows(N, 48, "row", 0, 3);
    CHECK(add_rows(fast, &t, 0, N, NULL) == FVDB_OK);
    for (uint32_t memory = FVDB_MEMORY_DEFAULT; memory <= FVDB_MEMORY_COMPACT; memory++) {
        fvdb_index *index = create(48, FVDB_METRIC_COSINE, memory, 16, 1), *loaded;
        saved s = {0};
        CHECK(add_rows(index, &t, 0, N, NULL) == FVDB_OK);
        save(index, &s);
        s.config = fast->config;
        fvdb_load what = what_to_load(&s);
        CHECK(fvdb_load_begin(&s.config, &what, &loaded, NULL) == FVDB_OK);
        for (uint32_t i = 0; i < s.n; i++) CHECK(fvdb_load_part(loaded, s.bytes[i], s.size[i], NULL) == FVDB_OK);
        CHECK(fvdb_load_end(loaded, NULL, 0, NULL, NULL) == FVDB_OK);
        check_blocks(loaded);
        if (memory != FVDB_MEMORY_COMPACT) /* whose walks, and links, are by high planes */
            CHECK(memcmp(loaded->graph.edges.blocks.base, fast->graph.edges.blocks.base,
                         fast->graph.edges.blocks.used) == 0);
        fvdb_free(loaded);
        fvdb_free(index);
        free_saved(&s);
    }
    fvdb_free(fast);
    free_rows(&t);
}

static void test_failed_allocations_and_cancelled_adds_leave_no_trace(void) {
    test_rows t = make_rows(N, 48, "row", 0, 3);
    fvdb_index *index = create(48, FVDB_METRIC_COSINE, FVDB_MEMORY_FAST, 16, 1);
    CHECK(add_rows(index, &t, 0, 1100, NULL) == FVDB_OK);
    uint64_t before = hash_of_parts(index);
    bool failed = true;
    for (int64_t nth = 1; failed; nth++) {
        mem_fail_after(nth);
        fvdb_status status = add_rows(index, &t, 1100, 1150, NULL);
        mem_fail_after(0);
        failed = status != FVDB_OK;
        if (failed) CHECK(status == FVDB_ERR_MEMORY && hash_of_parts(index) == before);
        check_blocks(index);
    }
    before = hash_of_parts(index);
    fvdb_control control = {.cancel = 1};
    CHECK(add_rows(index, &t, 1150, N, &control) == FVDB_ERR_CANCELLED);
    CHECK(hash_of_parts(index) == before);
    check_blocks(index);
    /* In the middle of coding: blocks of which some have been written. */
    thread_pool *c;
    CHECK(thread_pool_start(1, &c, NULL) == FVDB_OK);
    memset(index->graph.edges.stale.base, EDGE_STALE_LINKS, 700);
    CHECK(!hnsw_code_edges(&index->graph, &index->store, c, &control));
    CHECK(!hnsw_has_edges(&index->graph) && index->graph.edges.stale.base[5] == EDGE_STALE_BLOCK);
    CHECK(hnsw_code_edges(&index->graph, &index->store, c, NULL) && hnsw_has_edges(&index->graph));
    thread_pool_stop(c);
    check_blocks(index);
    fvdb_free(index);
    free_rows(&t);
}

static void test_a_setting_changes_in_place(void) {
    test_rows t = make_rows(N, 33, "row", 0, 3);
    fvdb_index *index = create(33, FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 8, 2);
    float *queries = make_vectors(QUERIES, 33, 20, 99);
    fvdb_stats stats;
    CHECK(fvdb_set_memory(index, FVDB_MEMORY_FAST, NULL) == FVDB_OK); /* of no row */
    CHECK(fvdb_set_memory(index, FVDB_MEMORY_DEFAULT, NULL) == FVDB_OK);
    CHECK(add_rows(index, &t, 0, 1100, NULL) == FVDB_OK);
    const uint64_t hash = hash_of_parts(index);
    double found = recall(index, queries, NULL, 0);
    bool failed = true;
    for (int64_t nth = 1; failed; nth++) {
        mem_fail_after(nth);
        fvdb_status status = fvdb_set_memory(index, FVDB_MEMORY_FAST, NULL);
        mem_fail_after(0);
        failed = status != FVDB_OK;
        if (failed) CHECK(status == FVDB_ERR_MEMORY && index->config.memory == FVDB_MEMORY_DEFAULT);
    }
    fvdb_get_stats(index, &stats, NULL);
    CHECK(stats.memory == FVDB_MEMORY_FAST && stats.bytes_graph >= index->graph.edges.blocks.used);
    check_blocks(index);
    CHECK(recall(index, queries, NULL, 0) >= found - 0.03 && hash_of_parts(index) == hash);
    CHECK(add_rows(index, &t, 1100, 1200, NULL) == FVDB_OK);
    check_blocks(index);
    CHECK(fvdb_set_memory(index, FVDB_MEMORY_DEFAULT, NULL) == FVDB_OK && index->graph.edges.blocks.mapped == 0);
    recall(index, queries, NULL, 0);
    CHECK(fvdb_set_memory(index, FVDB_MEMORY_COMPACT, NULL) == FVDB_ERR_ARGUMENT);
    CHECK(fvdb_set_memory(index, 3, NULL) == FVDB_ERR_ARGUMENT);
    fvdb_free(index);
    free_rows(&t);
    free(queries);
}

static void test_memory_is_counted_and_foretold(void) {
    for (uint32_t dim = 24; dim <= 96; dim *= 4) {
        fvdb_index *index = create(dim, FVDB_METRIC_COSINE, FVDB_MEMORY_FAST, 16, 1);
        test_rows t = make_rows(N, dim, "row", 0, 3);
        fvdb_stats stats;
        CHECK(add_rows(index, &t, 0, N, NULL) == FVDB_OK);
        fvdb_get_stats(index, &stats, NULL);
        double want = (double)fvdb_estimate_bytes(&index->config, N, N, 0, stats.id_bytes);
        printf("  dim %u: %.0f bytes a row, %.0f foretold, raw %u\n", dim, (double)stats.bytes_total / N, want / N,
               dim * 4);
        CHECK(stats.bytes_total < want * 1.05 && stats.bytes_total > want * 0.9);
        CHECK(stats.bytes_graph >= index->graph.edges.blocks.used);
        fvdb_free(index);
        free_rows(&t);
    }
}

int main(void) {
    RUN(test_blocks_follow_the_graph_through_a_life);
    RUN_LONG(test_blocks_follow_the_graph_by_other_metrics);
    RUN_LONG(test_a_walk_by_blocks_finds_what_a_walk_by_codes_finds);
    RUN(test_all_kernels_make_the_same_blocks_and_answers);
    RUN(test_neighbours_that_wait_are_followed_at_last);
    RUN(test_a_version_of_any_setting_loads_with_blocks);
    RUN(test_failed_allocations_and_cancelled_adds_leave_no_trace);
    RUN(test_a_setting_changes_in_place);
    RUN(test_memory_is_counted_and_foretold);
    RUN(test_all_tables_give_the_same_bits);
    RUN(test_sums_are_those_of_the_bits_that_are_set);
    RUN(test_the_nearest_lanes_are_those_with_fewer_nearer_ones);
    RUN(test_merged_candidates_are_sorted_and_equals_keep_their_order);
    RUN(test_a_rotation_keeps_lengths_and_angles);
    RUN(test_estimates_are_as_good_as_promised);
    return check_done();
}
