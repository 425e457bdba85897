/* Lists and the two sides: training, moving, searching, vacuuming, saving. */
#include "check.h"
#include "data.h"
#include "format/format.h"
#include "index/index.h"

#include <math.h>

enum { DIM = 24, K = 10, PER_PART = 1000, PER_GROUP = 2000 };
#define SECOND INT64_C(1000000)
#define THEN (1700000000 * SECOND)

typedef struct index_setting {
    uint32_t metric, memory, threads;
} index_setting;

static fvdb_index *new_index(index_setting s) {
    fvdb_config config = {DIM, s.metric, s.memory, 8, 60, s.threads, 1};
    fvdb_index *index = NULL;
    CHECK(fvdb_create(&config, &index, NULL) == FVDB_OK);
    return index;
}

/* Rows a second apart, from THEN on. */
static void add(fvdb_index *index, uint32_t n, uint32_t first, uint64_t seed) {
    test_rows t = make_rows(n, DIM, "row", first, seed);
    for (uint32_t i = 0; i < n; i++) t.times[i] = THEN + (first + i) * SECOND;
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
    free_rows(&t);
}

static fvdb_status move_all(fvdb_index *index, int64_t cutoff, uint32_t step, uint32_t *moved) {
    uint32_t next = 0, n;
    *moved = 0;
    while (next != FVDB_NO_SLOT) {
        fvdb_status status = fvdb_migrate(index, cutoff, step, &next, &n, NULL);
        if (status != FVDB_OK) return status;
        CHECK(n <= step);
        *moved += n;
    }
    return FVDB_OK;
}

/* Trains, and wants second lists whether or not they pay on these rows. */
static fvdb_status train(fvdb_index *index, int64_t cutoff) {
    const uint32_t n = index->store.n;
    uint32_t *slots = malloc(n * sizeof *slots);
    thread_pool *pool;
    for (uint32_t i = 0; i < n; i++) slots[i] = i;
    const fvdb_status status = fvdb_train(index, cutoff, NULL, NULL);
    CHECK(thread_pool_start(1, &pool, NULL) == FVDB_OK);
    if (status == FVDB_OK)
        CHECK(ivf_train_seconds(&index->lists.centroids, &index->store, slots, n, pool, NULL) == FVDB_OK);
    thread_pool_stop(pool);
    free(slots);
    return status;
}

static void vacuum(fvdb_index *index) {
    uint32_t rows = index->store.n, *map = malloc((rows + 1) * sizeof *map);
    uint8_t **ids = malloc((rows + 1) * sizeof *ids);
    for (uint32_t i = 0; i < rows; i++) {
        size_t size;
        const uint8_t *id = id_map_get(&index->store.ids, i, &size);
        ids[i] = calloc(size + 1, 1);
        memcpy(ids[i], id, size);
    }
    CHECK(fvdb_vacuum(index, map, rows, NULL, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < rows; i++) {
        size_t size;
        if (map[i] != FVDB_NO_SLOT) {
            const uint8_t *id = id_map_get(&index->store.ids, map[i], &size);
            CHECK(size == strlen((char *)ids[i]) && memcmp(id, ids[i], size) == 0);
        }
        free(ids[i]);
    }
    free(ids);
    free(map);
}

static void delete_rows(fvdb_index *index, uint32_t first, uint32_t end, uint32_t step) {
    uint32_t slot;
    char id[32];
    for (uint32_t i = first; i < end; i += step) {
        uint64_t offsets[2] = {0, (uint64_t)sprintf(id, "row%u", i)};
        CHECK(fvdb_delete(index, (uint8_t *)id, offsets, 1, 0, &slot, NULL) == FVDB_OK);
    }
}

/* Codes of lists: of all rows that a vacuum put in front, and those that rows and centroids coded anew have. */
static void check_codes(const fvdb_index *index) {
    ivf lists = index->lists;
    const store *s = &index->store;
    thread_pool *pool;
    if (lists.centroids.nlist == 0 || !ivf_keeps_codes(s->memory, s->dim)) {
        CHECK(!lists.codes.lists);
        return;
    }
    lists.codes = (ivf_codes){0};
    CHECK(thread_pool_start(1, &pool, NULL) == FVDB_OK);
    CHECK(ivf_codes_reserve(&lists, s, index->graph.first, NULL) == FVDB_OK);
    ivf_codes_fill(&lists, s, pool);
    thread_pool_stop(pool);
    const ivf_codes *kept = &index->lists.codes;
    CHECK(!kept->lists == !lists.codes.lists);
    if (!kept->lists) return;
    CHECK(kept->groups.used == lists.codes.groups.used);
    CHECK(memcmp(kept->groups.base, lists.codes.groups.base, kept->groups.used) == 0);
    CHECK(memcmp(kept->lists, lists.codes.lists, lists.centroids.nlist * sizeof *kept->lists) == 0);
    ivf_codes_free(&lists.codes);
}

/* Second lists: ascending, of rows that are on another first. */
static void check_seconds(const fvdb_index *index) {
    const ivf *lists = &index->lists;
    const store *s = &index->store;
    const uint32_t nlist = lists->centroids.nlist;
    uint32_t *first = malloc((s->n + 1) * sizeof *first), *second = malloc((s->n + 1) * sizeof *second), n = 0;
    if (nlist) ivf_places_of(lists, s->n, &(ivf_places){.lists = first, .seconds = second});
    for (uint32_t list = 0; list < nlist; list++) {
        const ivf_list *l = &lists->seconds[list];
        for (uint32_t i = 0; i < l->n; i++, n++) {
            CHECK(i == 0 || l->slots[i] > l->slots[i - 1]);
            CHECK(ivf_has(lists, l->slots[i]) && second[l->slots[i]] == list);
            CHECK(l->firsts[i] == first[l->slots[i]] && l->firsts[i] != list);
        }
    }
    CHECK(n == lists->n_second && n <= lists->n);
    free(first);
    free(second);
}

/* Every live row on one side; lists ascending; what is in front is historical, list by list. */
static void check_sides(const fvdb_index *index) {
    const ivf *lists = &index->lists;
    const store *s = &index->store;
    uint8_t *on = calloc(s->n + 1, 1);
    uint32_t n = 0, live = 0;
    for (uint32_t list = 0; list < lists->centroids.nlist; list++) {
        for (uint32_t i = 0; i < lists->lists[list].n; i++, n++) {
            uint32_t slot = lists->lists[list].slots[i];
            CHECK(slot < s->n && !on[slot] && (i == 0 || slot > lists->lists[list].slots[i - 1]));
            on[slot] = 1;
            live += bit_get(store_live(s), slot);
        }
    }
    CHECK(n == lists->n && live == lists->live);
    for (uint32_t slot = 0; slot < s->n; slot++) CHECK(on[slot] == ivf_has(lists, slot));
    for (uint32_t slot = 0; slot < index->graph.first; slot++) CHECK(on[slot]);
    uint32_t recent = s->n - index->graph.first;
    CHECK(hnsw_rows(&index->graph) == (recent >= 1024 ? recent : 0));
    check_seconds(index);
    check_codes(index);
    free(on);
}

static fvdb_status search(fvdb_index *index, const float *queries, uint32_t n, fvdb_search_params params,
                          const uint64_t *allow, uint64_t words, uint32_t *slots, double *distances, uint32_t *counts,
                          uint32_t *plans) {
    return fvdb_search(index, queries, n, &params, allow, words, slots, distances, counts, plans, NULL, 0, NULL, NULL,
                       NULL);
}

/* Recall of K against exact search; every answer whole: sorted, no row twice, none that is deleted. */
static double recall(fvdb_index *index, uint32_t nprobe, const uint64_t *allow, uint64_t words, uint32_t *plan) {
    enum { N = 60 };
    float *queries = make_vectors(N, DIM, 20, 777);
    uint32_t slots[N * K], truth[N * K], counts[N], plans[N], found = 0, wanted = 0;
    double distances[N * K], exact[N * K];
    fvdb_search_params params = {.k = K, .nprobe = nprobe}, all = {.k = K, .exact = 1};
    CHECK(search(index, queries, N, params, allow, words, slots, distances, counts, plans) == FVDB_OK);
    *plan = plans[0];
    uint32_t flat[N];
    CHECK(search(index, queries, N, all, allow, words, truth, exact, flat, plans) == FVDB_OK);
    for (uint32_t q = 0; q < N; q++) {
        CHECK(counts[q] == flat[q]);
        for (uint32_t i = 0; i < counts[q]; i++) {
            uint32_t slot = slots[q * K + i];
            CHECK(slot < index->store.n && bit_get(store_live(&index->store), slot));
            CHECK(!allow || bit_get(allow, slot));
            CHECK(i == 0 || distances[q * K + i] >= distances[q * K + i - 1]);
            for (uint32_t j = 0; j < i; j++) CHECK(slots[q * K + j] != slot);
            for (uint32_t j = 0; j < flat[q]; j++) found += truth[q * K + j] == slot;
        }
        wanted += flat[q];
    }
    free(queries);
    return wanted ? (double)found / wanted : 1;
}

static void test_keys_select_and_sort(void) {
    uint64_t keys[300], sorted[300];
    for (uint32_t round = 0; round < 200; round++) {
        uint32_t n = 1 + round % 300, m = (uint32_t)(mix64(round) % (n + 1));
        uint64_t range = round % 7 + 1 + (round & 1 ? 0 : 1000000);
        for (uint32_t i = 0; i < n; i++) keys[i] = sorted[i] = mix64(round * 1000 + i) % range;
        keys_sort(sorted, n);
        for (uint32_t i = 1; i < n; i++) CHECK(sorted[i - 1] <= sorted[i]);
        keys_select(keys, n, m);
        keys_sort(keys, m);
        for (uint32_t i = 0; i < m; i++) CHECK(keys[i] == sorted[i]);
    }
    /* The least keys where a sample is taken: of what it says none are enough, or all are. */
    for (uint32_t m = 1; m < 700; m += 9) {
        uint64_t many[700];
        for (uint32_t i = 0; i < 700; i++) many[i] = ((700 - i * 64 % 700) % 700 < 64 ? 0 : 1000) + mix64(i + m) % 1000;
        keys_select(many, 700, m);
        uint64_t most = 0;
        for (uint32_t i = 0; i < m; i++) most = many[i] > most ? many[i] : most;
        for (uint32_t i = m; i < 700; i++) CHECK(many[i] >= most);
    }
    /* Runs that fall and rise again, and no two keys alike, as distances along a line have them. */
    static uint64_t valley[20000];
    for (uint32_t i = 0; i < 20000; i++) valley[i] = i < 10000 ? 20000 - 2 * i : 2 * i - 20000 + 1;
    keys_select(valley, 20000, 8000);
    for (uint32_t i = 0; i < 8000; i++) CHECK(valley[i] <= 8000);
    CHECK(near_key(-1.5f, 3) < near_key(-1.5f, 4) && near_key(-1.5f, 9) < near_key(-1.0f, 0));
    CHECK(near_key(-1.0f, 9) < near_key(0.0f, 0) && near_key(0.5f, 0) < near_key(2.0f, 0));
    CHECK(near_distance(near_key(-1.25f, 7)) == -1.25f && near_distance(near_key(3.5f, 7)) == 3.5f);
}

static void test_too_few_rows_are_not_trained_on(void) {
    fvdb_index *index = new_index((index_setting){FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 1});
    fvdb_diag diag;
    uint32_t moved, plan;
    add(index, 100, 0, 1);
    CHECK(move_all(index, THEN + 1000 * SECOND, 10, &moved) == FVDB_ERR_UNTRAINED && moved == 0);
    CHECK(fvdb_train(index, THEN + 63 * SECOND, NULL, &diag) == FVDB_ERR_TOO_FEW);
    CHECK(diag.actual == 63 && diag.expected == 64);
    CHECK(fvdb_train(index, THEN + 64 * SECOND, NULL, &diag) == FVDB_OK);
    CHECK(move_all(index, THEN + 64 * SECOND, 10, &moved) == FVDB_OK && moved == 64);
    CHECK(index->lists.live == 64 && index->graph.n == 0);
    check_sides(index);
    vacuum(index);
    check_sides(index);
    CHECK(index->graph.first == 64 && index->lists.live == 64);
    CHECK(recall(index, 0, NULL, 0, &plan) == 1 && plan == FVDB_PLAN_FLAT);
    fvdb_free(index);
}

static void test_an_index_grows_old(void) {
    for (uint32_t metric = 0; metric < 3; metric++) {
        /* What memory keeps does not depend on the metric. */
        for (uint32_t memory = 0; memory < (metric == FVDB_METRIC_L2 ? 2 : 1); memory++) {
            /* Codes are trained anew at 8192 rows; compact memory has none. */
            const uint32_t N = memory == FVDB_MEMORY_COMPACT ? 6000 : 9000;
            fvdb_index *index = new_index((index_setting){metric, memory, 2});
            double least = metric == FVDB_METRIC_DOT ? 0.85 : 0.93;
            uint32_t plan, moved;
            add(index, N, 0, 5);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least && plan == FVDB_PLAN_GRAPH);
            CHECK(train(index, THEN + N / 2 * SECOND) == FVDB_OK);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least && plan == FVDB_PLAN_GRAPH);
            CHECK(move_all(index, THEN + N / 2 * SECOND, 700, &moved) == FVDB_OK && moved == N / 2);
            check_sides(index);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least && plan == FVDB_PLAN_HYBRID);
            vacuum(index);
            check_sides(index);
            CHECK(index->graph.first == N / 2 && hnsw_rows(&index->graph) == N - N / 2);
            CHECK(index->lists.n_second > N / 4 && index->lists.n_second < N / 2);
            CHECK(!index->lists.codes.lists == (memory == FVDB_MEMORY_COMPACT));
            CHECK(recall(index, 0, NULL, 0, &plan) >= least && plan == FVDB_PLAN_HYBRID);
            add(index, 500, N, 6);
            delete_rows(index, 0, N, 3);
            check_sides(index);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least && plan == FVDB_PLAN_HYBRID);
            vacuum(index);
            check_sides(index);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least && plan == FVDB_PLAN_HYBRID);
            CHECK(move_all(index, INT64_MAX, 1 << 20, &moved) == FVDB_OK &&
                  index->lists.live == index->store.live_count);
            check_sides(index);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least && plan == FVDB_PLAN_LISTS);
            vacuum(index);
            check_sides(index);
            CHECK(hnsw_rows(&index->graph) == 0 && hnsw_resident(&index->graph) == 0);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least && plan == FVDB_PLAN_LISTS);
            CHECK(recall(index, 100000, NULL, 0, &plan) >= 0.97);
            add(index, 1500, N + 500, 7); /* a graph again, behind the lists */
            check_sides(index);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least && plan >= FVDB_PLAN_LISTS);
            CHECK(fvdb_train(index, INT64_MIN, NULL, NULL) == FVDB_OK);
            check_sides(index);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least);
            vacuum(index);
            check_sides(index);
            CHECK(recall(index, 0, NULL, 0, &plan) >= least);
            fvdb_free(index);
        }
    }
}

static void test_filters_keep_their_promise(void) {
    enum { N = 6000 };
    fvdb_index *index = new_index((index_setting){FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 1});
    uint32_t moved, plan;
    add(index, N, 0, 3);
    CHECK(train(index, THEN + 4000 * SECOND) == FVDB_OK);
    CHECK(move_all(index, THEN + 4000 * SECOND, 1000, &moved) == FVDB_OK);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t share = 2; share <= 2000; share *= 3) {
            uint64_t allow[N / 64 + 1] = {0};
            for (uint32_t slot = 0; slot < N; slot++)
                if (mix64(slot * 7 + share) % share == 0) bit_set(allow, slot);
            CHECK(recall(index, 0, allow, N / 64 + 1, &plan) >= 0.95);
        }
        uint64_t old[N / 64 + 1]; /* one side alone */
        CHECK(fvdb_historical(index, old, N / 64 + 1, NULL) == FVDB_OK);
        CHECK(recall(index, 0, old, N / 64 + 1, &plan) >= 0.95);
        for (uint32_t w = 0; w < N / 64 + 1; w++) old[w] = ~old[w];
        CHECK(recall(index, 0, old, N / 64 + 1, &plan) >= 0.95);
        vacuum(index);
    }
    fvdb_free(index);
}

static void test_equal_rows_share_a_list(void) {
    enum { N = 3000 };
    for (uint32_t metric = 0; metric < 3; metric++) {
        fvdb_index *index = new_index((index_setting){metric, FVDB_MEMORY_DEFAULT, 2});
        test_rows t = make_rows(N, DIM, "row", 0, 9);
        for (uint32_t i = 0; i < N; i++) {
            memcpy(t.vectors + (size_t)i * DIM, t.vectors + (size_t)(i % 3) * DIM, DIM * sizeof(float));
            t.times[i] = THEN;
        }
        CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
        uint32_t moved, slots[20], count, plan;
        double distances[20];
        CHECK(train(index, INT64_MAX) == FVDB_OK);
        CHECK(move_all(index, INT64_MAX, N, &moved) == FVDB_OK && moved == N);
        check_sides(index);
        CHECK(index->lists.centroids.nlist <= 3 && index->lists.n == N);
        CHECK(index->lists.n_second <= N * 3 / 4);
        fvdb_search_params params = {.k = 20};
        CHECK(search(index, t.vectors, 1, params, NULL, 0, slots, distances, &count, &plan) == FVDB_OK);
        CHECK(count == 20 && (metric == FVDB_METRIC_DOT || distances[19] < 1e-9));
        free_rows(&t);
        fvdb_free(index);
    }
}

static void test_huge_values_do_no_harm(void) {
    enum { N = 2000 };
    fvdb_index *index = new_index((index_setting){FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 1});
    test_rows t = make_rows(N, DIM, "row", 0, 9);
    for (uint32_t i = 0; i < N * DIM; i++) t.vectors[i] *= i % 3 ? 3e37f : 1e-38f;
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
    uint32_t moved, slots[20], count, plan;
    double distances[20];
    CHECK(train(index, INT64_MAX) == FVDB_OK);
    CHECK(move_all(index, INT64_MAX, N, &moved) == FVDB_OK && moved == N);
    check_sides(index);
    fvdb_search_params params = {.k = 20};
    CHECK(search(index, t.vectors, 1, params, NULL, 0, slots, distances, &count, &plan) == FVDB_OK);
    CHECK(count == 20);
    vacuum(index);
    check_sides(index);
    free_rows(&t);
    fvdb_free(index);
}

/* Products of all rows with the queries are finite, and estimates of them are not: no list is near by these. */
static void test_estimates_that_overflow_leave_no_list_out(void) {
    enum { N = 1500, QUERIES = 20 };
    fvdb_index *index = new_index((index_setting){FVDB_METRIC_DOT, FVDB_MEMORY_DEFAULT, 1});
    test_rows t = make_rows(N, DIM, "row", 0, 5);
    float *queries = make_vectors(QUERIES, DIM, 20, 777);
    uint32_t moved, slots[QUERIES * K], counts[QUERIES], plans[QUERIES];
    double distances[QUERIES * K];
    for (uint32_t i = 0; i < N * DIM; i++) t.vectors[i] = (t.vectors[i] * 0.05f + 1) * 1e18f;
    for (uint32_t i = 0; i < QUERIES * DIM; i++) queries[i] = (queries[i] * 0.05f - 1) * 16e18f;
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
    CHECK(train(index, INT64_MAX) == FVDB_OK);
    CHECK(move_all(index, INT64_MAX, N, &moved) == FVDB_OK && moved == N);
    vacuum(index);
    CHECK(index->lists.codes.lists && store_walks_by(&index->store) == WALK_BY_CODE);
    for (uint32_t nprobe = 4; nprobe < index->lists.centroids.nlist; nprobe += 7) {
        fvdb_search_params params = {.k = K, .nprobe = nprobe};
        CHECK(search(index, queries, QUERIES, params, NULL, 0, slots, distances, counts, plans) == FVDB_OK);
        for (uint32_t q = 0; q < QUERIES; q++) CHECK(counts[q] == K);
    }
    free_rows(&t);
    free(queries);
    fvdb_free(index);
}

/* Rows on lists, all of them with codes. */
static fvdb_index *coded_index(uint32_t metric, uint32_t n) {
    fvdb_index *index = new_index((index_setting){metric, FVDB_MEMORY_DEFAULT, 1});
    uint32_t moved;
    add(index, n, 0, 5);
    CHECK(train(index, INT64_MAX) == FVDB_OK);
    CHECK(move_all(index, INT64_MAX, n, &moved) == FVDB_OK && moved == n);
    vacuum(index);
    CHECK(index->lists.codes.lists != NULL);
    return index;
}

/* Rows that moved since the last vacuum have no codes, and those of their lists that were there before do.  Either way a search
 * keeps no more rows than it has room for, whatever it asks for. */
static void test_rows_with_and_without_codes_share_lists(void) {
    enum { N = 100 };
    fvdb_index *index = coded_index(FVDB_METRIC_COSINE, 1200);
    float *queries = make_vectors(N, DIM, 20, 777);
    uint32_t moved, plan, slots[N * K], counts[N], plans[N];
    double distances[N * K];
    add(index, 12000, 1200, 9);
    CHECK(move_all(index, INT64_MAX, 12000, &moved) == FVDB_OK && moved == 12000);
    CHECK(index->lists.codes.lists && store_walks_by(&index->store) == WALK_BY_CODE);
    uint64_t allow[13200 / 64 + 1] = {0};
    for (uint32_t slot = 0; slot < index->store.n; slot++)
        if (slot < 1200 || mix64(slot) % 4) bit_set(allow, slot);
    for (uint32_t ef = 1; ef < 160; ef += 3) {
        fvdb_search_params params = {.k = K, .nprobe = 12, .ef_search = ef};
        CHECK(search(index, queries, N, params, allow, 13200 / 64 + 1, slots, distances, counts, plans) == FVDB_OK);
        CHECK(plans[0] == FVDB_PLAN_LISTS);
        for (uint32_t q = 0; q < N; q++) CHECK(counts[q] == K);
    }
    CHECK(recall(index, 30, allow, 13200 / 64 + 1, &plan) > 0.93 && plan == FVDB_PLAN_LISTS);
    free(queries);
    fvdb_free(index);
}

/* ---- the same for any number of threads; saved and loaded ---- */

typedef struct bytes {
    fvdb_part parts[64];
    uint8_t *raw[64];
    uint32_t n;
} bytes;

static bytes save(fvdb_index *index) {
    bytes b;
    CHECK(fvdb_parts(index, PER_PART, PER_GROUP, b.parts, 64, &b.n, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < b.n; i++) {
        uint64_t size;
        b.raw[i] = malloc(b.parts[i].size);
        CHECK(fvdb_part_write(index, PER_PART, PER_GROUP, b.parts[i].kind, b.parts[i].number, b.raw[i], b.parts[i].size,
                              &size, NULL) == FVDB_OK);
        CHECK(size == b.parts[i].size);
    }
    return b;
}

static bool same(const bytes *a, const bytes *b) {
    if (a->n != b->n) return false;
    for (uint32_t i = 0; i < a->n; i++)
        if (a->parts[i].size != b->parts[i].size || memcmp(a->raw[i], b->raw[i], a->parts[i].size) != 0) return false;
    return true;
}

static void free_bytes(bytes *b) {
    for (uint32_t i = 0; i < b->n; i++) free(b->raw[i]);
}

static uint8_t *part_of(const bytes *b, uint32_t kind) {
    for (uint32_t i = 0; i < b->n; i++)
        if (b->parts[i].kind == kind) return b->raw[i];
    return NULL;
}

/* Without the part of second lists if `seconds` is 0. */
static fvdb_status try_load(fvdb_index *index, const bytes *b, uint32_t seconds, fvdb_index **loaded, fvdb_diag *diag) {
    fvdb_stats stats;
    fvdb_get_stats(index, &stats, NULL);
    const fvdb_load load = {stats.rows, stats.graph_rows,   stats.rows, stats.lists, PER_PART,
                            PER_GROUP,  stats.rows >= 1024, 0,          seconds};
    CHECK(fvdb_load_begin(&index->config, &load, loaded, NULL) == FVDB_OK);
    for (uint32_t i = b->n; i-- > 0;)
        if (seconds || b->parts[i].kind != FVDB_PART_SECOND_LISTS)
            CHECK(fvdb_load_part(*loaded, b->raw[i], b->parts[i].size, NULL) == FVDB_OK);
    return fvdb_load_end(*loaded, NULL, 0, NULL, diag);
}

static fvdb_index *load(fvdb_index *index, const bytes *b) {
    fvdb_index *loaded = NULL;
    CHECK(try_load(index, b, part_of(b, FVDB_PART_SECOND_LISTS) != NULL, &loaded, NULL) == FVDB_OK);
    return loaded;
}

/* All that can be done to an index, with its saved bytes after each step. */
static uint32_t life(index_setting s, bytes *out) {
    fvdb_index *index = new_index(s);
    uint32_t moved, n = 0;
    add(index, 3000, 0, 5);
    CHECK(train(index, THEN + 1500 * SECOND) == FVDB_OK);
    CHECK(move_all(index, THEN + 1500 * SECOND, 400, &moved) == FVDB_OK);
    delete_rows(index, 0, 3000, 7);
    out[n++] = save(index);
    vacuum(index);
    out[n++] = save(index);
    add(index, 400, 3000, 6);
    CHECK(move_all(index, THEN + 2500 * SECOND, 333, &moved) == FVDB_OK);
    out[n++] = save(index);
    vacuum(index);
    out[n++] = save(index);
    CHECK(move_all(index, INT64_MAX, 333, &moved) == FVDB_OK);
    CHECK(fvdb_train(index, INT64_MAX, NULL, NULL) == FVDB_OK);
    out[n++] = save(index);
    fvdb_index *loaded = load(index, &out[n - 1]);
    check_sides(loaded);
    vacuum(index);
    vacuum(loaded);
    out[n++] = save(index);
    out[n] = save(loaded);
    CHECK(same(&out[n - 1], &out[n]));
    free_bytes(&out[n]);
    fvdb_free(loaded);
    fvdb_free(index);
    return n;
}

static void test_threads_and_loads_change_nothing(void) {
    for (uint32_t metric = 0; metric < 3; metric++) {
        /* What memory keeps does not depend on the metric. */
        for (uint32_t memory = 0; memory < (metric == FVDB_METRIC_L2 ? 2 : 1); memory++) {
            bytes one[8], three[8];
            uint32_t n = life((index_setting){metric, memory, 1}, one);
            CHECK(life((index_setting){metric, memory, 3}, three) == n);
            for (uint32_t i = 0; i < n; i++) {
                CHECK(same(&one[i], &three[i]));
                free_bytes(&one[i]);
                free_bytes(&three[i]);
            }
        }
    }
}

/* ---- second lists ---- */

static double product(const float *a, const float *b) {
    double sum = 0;
    for (uint32_t d = 0; d < DIM; d++) sum += (double)a[d] * (double)b[d];
    return sum;
}

/* What SOAR says it costs to have x on the list of `other` beside that of `first`. */
static double soar_cost(const float *x, const float *first, const float *other) {
    float r[DIM], other_r[DIM];
    for (uint32_t d = 0; d < DIM; d++) {
        r[d] = x[d] - first[d];
        other_r[d] = x[d] - other[d];
    }
    const double across = product(r, other_r);
    return product(other_r, other_r) + 1.5 * across * across / product(r, r);
}

static void test_a_second_list_has_the_least_cost(void) {
    enum { N = 4000 };
    for (uint32_t metric = 0; metric < 3; metric++) {
        fvdb_index *index = new_index((index_setting){metric, FVDB_MEMORY_DEFAULT, 2});
        uint32_t moved, least = 0, near = 0, n = 0;
        add(index, N, 0, 5);
        CHECK(train(index, INT64_MAX) == FVDB_OK);
        CHECK(move_all(index, INT64_MAX, N, &moved) == FVDB_OK);
        const ivf_centroids *c = &index->lists.centroids;
        const store *s = &index->store;
        float *centres = malloc((size_t)c->nlist * s->dim64 * sizeof *centres);
        for (uint32_t list = 0; list < c->nlist; list++) ivf_centroid(c, s, list, centres + (size_t)list * s->dim64);
        uint32_t *lists = malloc(2 * N * sizeof *lists), *seconds = lists + N;
        ivf_places_of(&index->lists, N, &(ivf_places){.lists = lists, .seconds = seconds});
        for (uint32_t slot = 0; slot < N; slot++) {
            float x[FVDB_DIM_MAX] = {0};
            coded_row(s, slot, x);
            const float *first = centres + (size_t)lists[slot] * s->dim64;
            double best = INFINITY, length2 = 0;
            for (uint32_t d = 0; d < DIM; d++) length2 += (x[d] - first[d]) * (double)(x[d] - first[d]);
            for (uint32_t list = 0; list < c->nlist; list++) {
                const double cost = soar_cost(x, first, centres + (size_t)list * s->dim64);
                if (list != lists[slot] && cost < best) best = cost;
            }
            if (seconds[slot] == IVF_NO_LIST) {
                CHECK(best > 0.9 * (double)c->second_limit * length2);
                continue;
            }
            /* Products with int8 queries are a little off, and far centroids are not asked. */
            const double cost = soar_cost(x, first, centres + (size_t)seconds[slot] * s->dim64);
            CHECK(cost < 1.1 * (double)c->second_limit * length2);
            least += cost <= best * 1.0001;
            near += cost <= best * 1.05;
            n++;
        }
        CHECK(n == index->lists.n_second && n > N * 0.65 && n < N * 0.75);
        CHECK(least > n * 0.85 && near > n * 0.97);
        free(centres);
        free(lists);
        fvdb_free(index);
    }
}

/* A version as it was before second lists: without the part, and with zeros where the limit is. */
static void test_a_version_without_second_lists_opens(void) {
    fvdb_index *index = new_index((index_setting){FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 1}), *loaded = NULL;
    uint32_t moved, plan;
    add(index, 5000, 0, 5);
    CHECK(train(index, THEN + 4000 * SECOND) == FVDB_OK);
    CHECK(move_all(index, THEN + 3000 * SECOND, 5000, &moved) == FVDB_OK);
    vacuum(index);
    bytes b = save(index);
    memset(part_of(&b, FVDB_PART_LISTS_HEAD) + PART_HEADER_BYTES + 12, 0, 4);
    CHECK(try_load(index, &b, 0, &loaded, NULL) == FVDB_OK);
    CHECK(move_all(loaded, THEN + 4000 * SECOND, 5000, &moved) == FVDB_OK && moved == 1000);
    CHECK(loaded->lists.n == 4000 && loaded->lists.n_second == 0);
    check_sides(loaded);
    CHECK(recall(loaded, 0, NULL, 0, &plan) > 0.7 && recall(loaded, 100000, NULL, 0, &plan) > 0.97);
    CHECK(fvdb_train(loaded, THEN + 4000 * SECOND, NULL, NULL) == FVDB_OK);
    check_sides(loaded);
    CHECK(recall(loaded, 0, NULL, 0, &plan) > 0.93);
    fvdb_free(loaded);
    free_bytes(&b);
    fvdb_free(index);
}

static void test_damaged_second_lists_are_refused(void) {
    enum { N = 2000 };
    fvdb_index *index = new_index((index_setting){FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 1});
    uint32_t moved;
    add(index, N, 0, 5);
    CHECK(train(index, INT64_MAX) == FVDB_OK);
    CHECK(move_all(index, THEN + 1900 * SECOND, N, &moved) == FVDB_OK);
    bytes b = save(index);
    CHECK(index->lists.centroids.nlist < 255); /* one byte a row */
    const uint8_t *lists = part_of(&b, FVDB_PART_LISTS) + PART_HEADER_BYTES;
    uint8_t *seconds = part_of(&b, FVDB_PART_SECOND_LISTS) + PART_HEADER_BYTES;
    uint8_t *limit = part_of(&b, FVDB_PART_LISTS_HEAD) + PART_HEADER_BYTES + 12, kept[N], kept_limit[4];
    memcpy(kept, seconds, N);
    memcpy(kept_limit, limit, 4);
    for (uint32_t damage = 0; damage < 6; damage++) {
        fvdb_index *loaded = NULL;
        fvdb_diag diag;
        if (damage == 1) seconds[7] = lists[7];
        if (damage == 2) seconds[7] = 255;
        if (damage == 3) seconds[N - 1] = 3; /* a recent row */
        if (damage == 4) memset(limit, 0, 4);
        if (damage == 5) limit[3] |= 0x80;
        CHECK(try_load(index, &b, 1, &loaded, &diag) == (damage ? FVDB_ERR_FORMAT : FVDB_OK));
        fvdb_free(loaded);
        memcpy(seconds, kept, N);
        memcpy(limit, kept_limit, 4);
    }
    free_bytes(&b);
    fvdb_free(index);
}

/* The codes that searches compare rows by are trained again; those of lists stay, whether the add that did it fails or not. */
static void test_codes_of_lists_outlive_a_training_of_codes(void) {
    fvdb_index *index = new_index((index_setting){FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 1});
    uint32_t moved, plan;
    add(index, 6000, 0, 5);
    CHECK(train(index, INT64_MAX) == FVDB_OK);
    CHECK(move_all(index, THEN + 5000 * SECOND, 6000, &moved) == FVDB_OK);
    vacuum(index);
    const uint32_t trained = index->store.book.trained_rows, last = index->lists.centroids.nlist - 1;
    CHECK(index->lists.codes.lists[last].group > 5000 / EDGE_LANES);
    test_rows t = make_rows(3000, DIM, "more", 0, 6);
    for (int64_t nth = 1, failed = 1; failed; nth += nth < 30 ? 1 : 61) {
        mem_fail_after(nth);
        failed = fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) != FVDB_OK;
        mem_fail_after(0);
        check_sides(index);
    }
    CHECK(index->store.book.trained_rows > trained);
    CHECK(recall(index, 0, NULL, 0, &plan) > 0.93 && plan == FVDB_PLAN_HYBRID);
    free_rows(&t);
    fvdb_free(index);
}

/* What codes leave out is far: with them a search finds what it finds without, but for a row in a thousand. */
static void test_codes_of_lists_leave_out_no_near_row(void) {
    enum { N = 200 };
    const fvdb_search_params params = {.k = K, .nprobe = 40};
    float *queries = make_vectors(N, DIM, 20, 777);
    for (uint32_t metric = 0; metric < 3; metric++) {
        fvdb_index *index = coded_index(metric, 6000);
        uint32_t with[N * K], without[N * K], counts[N], plans[N], missed = 0;
        double distances[N * K];
        CHECK(search(index, queries, N, params, NULL, 0, with, distances, counts, plans) == FVDB_OK);
        CHECK(plans[0] == FVDB_PLAN_LISTS);
        const ivf_codes codes = index->lists.codes;
        index->lists.codes = (ivf_codes){0};
        CHECK(search(index, queries, N, params, NULL, 0, without, distances, counts, plans) == FVDB_OK);
        index->lists.codes = codes;
        for (uint32_t i = 0; i < N * K; i++) {
            bool found = false;
            for (uint32_t j = i - i % K; j < i - i % K + K; j++) found |= with[j] == without[i];
            missed += !found;
        }
        CHECK(missed <= N * K / 1000);
        fvdb_free(index);
    }
    free(queries);
}

static void test_all_kernels_make_the_same_codes_of_lists_and_answers(void) {
    enum { N = 60 };
    const fvdb_search_params params = {.k = K, .nprobe = 20};
    float *queries = make_vectors(N, DIM, 20, 777);
    for (uint32_t metric = 0; metric < 3; metric++) {
        fvdb_index *index = coded_index(metric, 6000);
        const kernel_table *tables[4];
        uint32_t slots[2][N * K], counts[N], plans[N];
        double distances[N * K];
        for (size_t n = kernels_available(tables), first = n; n-- > 0;) {
            index->store.kernels = tables[n];
            check_codes(index);
            CHECK(search(index, queries, N, params, NULL, 0, slots[1], distances, counts, plans) == FVDB_OK);
            CHECK(plans[0] == FVDB_PLAN_LISTS);
            if (n + 1 < first) CHECK(memcmp(slots[0], slots[1], sizeof slots[0]) == 0);
            memcpy(slots[0], slots[1], sizeof slots[0]);
        }
        fvdb_free(index);
    }
    free(queries);
}

static void test_a_change_without_memory_leaves_everything(void) {
    for (uint32_t all = 0; all < 2; all++) { /* a graph that is repaired, and none any more */
        fvdb_index *index = new_index((index_setting){FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 1});
        uint32_t moved, next = 0, *map = malloc(3000 * sizeof *map);
        add(index, 3000, 0, 5);
        delete_rows(index, 0, 3000, 20);
        bytes before = save(index);
        for (int64_t nth = 1;; nth++) {
            mem_fail_after(nth);
            fvdb_status status = fvdb_train(index, THEN + 1000 * SECOND, NULL, NULL);
            mem_fail_after(0);
            bytes after = save(index);
            CHECK(status == FVDB_OK || (status == FVDB_ERR_MEMORY && same(&before, &after)));
            free_bytes(&after);
            if (status == FVDB_OK) break;
        }
        free_bytes(&before);
        before = save(index);
        for (int64_t nth = 1; nth < 12; nth++) {
            mem_fail_after(nth);
            next = 0;
            fvdb_status status = fvdb_migrate(index, THEN + 900 * SECOND, 4000, &next, &moved, NULL);
            mem_fail_after(0);
            bytes after = save(index);
            CHECK(status == FVDB_OK || (status == FVDB_ERR_MEMORY && same(&before, &after) && next == 0));
            free_bytes(&after);
            if (status == FVDB_OK) break;
        }
        if (all) CHECK(move_all(index, THEN + 2500 * SECOND, 4000, &moved) == FVDB_OK);
        free_bytes(&before);
        before = save(index);
        for (int64_t nth = 1;; nth += nth < 60 ? 1 : 37) {
            mem_fail_after(nth);
            fvdb_status status = fvdb_vacuum(index, map, 3000, NULL, NULL);
            mem_fail_after(0);
            bytes after = save(index);
            CHECK(status == FVDB_OK || (status == FVDB_ERR_MEMORY && same(&before, &after)));
            if (status != FVDB_OK) check_sides(index);
            free_bytes(&after);
            if (status == FVDB_OK) break;
        }
        check_sides(index);
        free_bytes(&before);
        free(map);
        fvdb_free(index);
    }
}

static void test_a_cancelled_change_leaves_everything(void) {
    fvdb_index *index = new_index((index_setting){FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 1});
    uint32_t moved, *map = malloc(4000 * sizeof *map);
    fvdb_control control = {.cancel = 1};
    add(index, 4000, 0, 5);
    CHECK(fvdb_train(index, INT64_MAX, &control, NULL) == FVDB_ERR_CANCELLED && index->lists.centroids.nlist == 0);
    CHECK(fvdb_train(index, INT64_MAX, NULL, NULL) == FVDB_OK);
    CHECK(move_all(index, THEN + 2000 * SECOND, 4000, &moved) == FVDB_OK);
    delete_rows(index, 0, 4000, 9);
    bytes before = save(index);
    CHECK(fvdb_vacuum(index, map, 4000, &control, NULL) == FVDB_ERR_CANCELLED);
    bytes after = save(index);
    CHECK(same(&before, &after));
    check_sides(index);
    free_bytes(&before);
    free_bytes(&after);
    free(map);
    fvdb_free(index);
}

int main(void) {
    RUN(test_keys_select_and_sort);
    RUN(test_too_few_rows_are_not_trained_on);
    RUN(test_an_index_grows_old);
    RUN(test_filters_keep_their_promise);
    RUN(test_equal_rows_share_a_list);
    RUN(test_huge_values_do_no_harm);
    RUN(test_estimates_that_overflow_leave_no_list_out);
    RUN(test_rows_with_and_without_codes_share_lists);
    RUN(test_threads_and_loads_change_nothing);
    RUN(test_a_second_list_has_the_least_cost);
    RUN(test_a_version_without_second_lists_opens);
    RUN(test_damaged_second_lists_are_refused);
    RUN(test_codes_of_lists_outlive_a_training_of_codes);
    RUN(test_codes_of_lists_leave_out_no_near_row);
    RUN(test_all_kernels_make_the_same_codes_of_lists_and_answers);
    RUN(test_a_change_without_memory_leaves_everything);
    RUN(test_a_cancelled_change_leaves_everything);
    return check_done();
}
