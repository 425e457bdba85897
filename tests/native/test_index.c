/* The index through its ABI: all-or-nothing changes, determinism, recall floors against the exact scan. */
#include "check.h"
#include "data.h"
#include "index/index.h"

#include <math.h>

static fvdb_index *create(uint32_t dim, uint32_t metric, uint32_t memory, uint32_t threads) {
    fvdb_config config = {dim, metric, memory, 16, 100, threads, 7};
    fvdb_index *index = NULL;
    CHECK(fvdb_create(&config, &index, NULL) == FVDB_OK);
    return index;
}

static fvdb_status add(fvdb_index *index, test_rows *t, uint32_t on_conflict) {
    return fvdb_add(index, &t->rows, on_conflict, t->slots, t->replaced, NULL, NULL);
}

/* A hash of everything a save would write: two indexes with the same fingerprint are the same. */
static uint64_t fingerprint(fvdb_index *index) {
    uint32_t n = 0;
    uint64_t hash = 0;
    CHECK(fvdb_parts(index, 1000, 2000, NULL, 0, &n, NULL) == (n ? FVDB_ERR_BUFFER : FVDB_OK));
    fvdb_part *parts = malloc((n + 1) * sizeof *parts);
    CHECK(fvdb_parts(index, 1000, 2000, parts, n, &n, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *bytes = malloc(parts[i].size + 1);
        uint64_t size = 0;
        CHECK(fvdb_part_write(index, 1000, 2000, parts[i].kind, parts[i].number, bytes, parts[i].size, &size, NULL) ==
              FVDB_OK);
        CHECK(size == parts[i].size);
        for (uint64_t b = 0; b < size; b++) hash = mix64(hash ^ bytes[b]);
        free(bytes);
    }
    free(parts);
    return hash;
}

/* Share of the exact k nearest that a default search finds; checks order, count and ids of every result on the way. */
static double recall(fvdb_index *index, const float *queries, uint32_t n, uint32_t dim, uint32_t k,
                     const uint64_t *allow, uint64_t words) {
    uint32_t *got = malloc(k * sizeof *got), *want = malloc(k * sizeof *want), n_got, n_want, plan, hits = 0, all = 0;
    double *d_got = malloc(k * sizeof *d_got), *d_want = malloc(k * sizeof *d_want);
    for (uint32_t q = 0; q < n; q++) {
        fvdb_search_params walk = {.k = k}, scan = {.k = k, .exact = 1};
        CHECK(fvdb_search(index, queries + (size_t)q * dim, 1, &walk, allow, words, got, d_got, &n_got, &plan, NULL, 0,
                          NULL, NULL, NULL) == FVDB_OK);
        CHECK(fvdb_search(index, queries + (size_t)q * dim, 1, &scan, allow, words, want, d_want, &n_want, &plan, NULL,
                          0, NULL, NULL, NULL) == FVDB_OK);
        CHECK(plan == FVDB_PLAN_FLAT);
        CHECK(n_got == n_want);
        all += n_want;
        for (uint32_t i = 0; i < n_got; i++) {
            CHECK(i == 0 || d_got[i] >= d_got[i - 1]);
            CHECK(d_got[i] >= d_want[i]);
            CHECK(!allow || bit_get(allow, got[i]));
            for (uint32_t j = 0; j < n_want; j++) {
                if (got[i] != want[j]) continue;
                CHECK(d_got[i] == d_want[j]);
                hits++;
            }
        }
    }
    free(got);
    free(want);
    free(d_got);
    free(d_want);
    return all ? (double)hits / all : 1.0;
}

static void delete_every(fvdb_index *index, test_rows *t, uint32_t nth) {
    uint32_t slot;
    for (uint32_t i = 0; i < t->rows.n; i += nth)
        CHECK(fvdb_delete(index, t->ids, t->offsets + i, 1, 0, &slot, NULL) == FVDB_OK);
}

static uint32_t vacuum(fvdb_index *index, fvdb_control *control, fvdb_status want) {
    fvdb_stats stats;
    fvdb_get_stats(index, &stats, NULL);
    uint32_t *map = malloc((stats.rows + 1) * sizeof *map);
    CHECK(fvdb_vacuum(index, map, (uint32_t)stats.rows, control, NULL) == want);
    free(map);
    fvdb_get_stats(index, &stats, NULL);
    return (uint32_t)stats.rows;
}

static void recall_stays_high(uint32_t metric, uint32_t memory, uint32_t dim) {
    enum { N = 6000, QUERIES = 50 };
    fvdb_index *index = create(dim, metric, memory, 2);
    test_rows t = make_rows(N, dim, "row", 0, 1);
    float *queries = make_vectors(QUERIES, dim, 20, 99);
    CHECK(add(index, &t, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    CHECK(recall(index, queries, QUERIES, dim, 10, NULL, 0) >= 0.95);
    CHECK(recall(index, queries, QUERIES, dim, 200, NULL, 0) >= 0.95);
    delete_every(index, &t, 5);
    CHECK(recall(index, queries, QUERIES, dim, 10, NULL, 0) >= 0.95);
    CHECK(vacuum(index, NULL, FVDB_OK) == N - N / 5);
    CHECK(recall(index, queries, QUERIES, dim, 10, NULL, 0) >= 0.95);
    fvdb_free(index);
    free_rows(&t);
    free(queries);
}

static void test_recall_cosine(void) { recall_stays_high(FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 48); }
static void test_recall_l2(void) { recall_stays_high(FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 100); }
static void test_recall_compact_cosine(void) { recall_stays_high(FVDB_METRIC_COSINE, FVDB_MEMORY_COMPACT, 33); }
static void test_recall_compact_l2(void) { recall_stays_high(FVDB_METRIC_L2, FVDB_MEMORY_COMPACT, 65); }

static void test_rebuild_equals_a_fresh_build(void) {
    enum { N = 4000, DIM = 24 };
    fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 2);
    fvdb_index *fresh = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 1);
    test_rows gone = make_rows(N, DIM, "gone", 0, 3), kept = make_rows(N / 2, DIM, "kept", 0, 4);
    CHECK(add(index, &gone, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    CHECK(add(index, &kept, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    delete_every(index, &gone, 1);
    CHECK(vacuum(index, NULL, FVDB_OK) == N / 2);
    CHECK(add(fresh, &kept, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    CHECK(fingerprint(index) == fingerprint(fresh));
    fvdb_free(index);
    fvdb_free(fresh);
    free_rows(&gone);
    free_rows(&kept);
}

static void test_threads_do_not_change_the_index(void) {
    enum { N = 3000, DIM = 40 };
    test_rows t = make_rows(N, DIM, "row", 0, 5);
    take_vectors(&t, DIM, 4);
    uint64_t want[2] = {0, 0};
    for (uint32_t threads = 1; threads <= 9; threads += 4) {
        for (uint32_t memory = 0; memory < 2; memory++) {
            fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, memory, threads);
            CHECK(add(index, &t, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
            delete_every(index, &t, 7);
            CHECK(vacuum(index, NULL, FVDB_OK) < N);
            uint64_t got = fingerprint(index);
            if (threads == 1) want[memory] = got;
            CHECK(got == want[memory]);
            fvdb_free(index);
        }
    }
    free_rows(&t);
}

/* Neither codes nor graph are made of them: both wait for rows with a vector, and go when too few of these are left. */
static void test_many_rows_without_a_vector(void) {
    enum { DIM = 40, VECTORLESS = 1500, N = 3000, QUERIES = 50, LEFT = 900 };
    float *queries = make_vectors(QUERIES, DIM, 20, 99);
    for (uint32_t memory = 0; memory < 2; memory++) {
        test_rows vectorless = make_rows(VECTORLESS, DIM, "bare", 0, 1), t = make_rows(N, DIM, "row", 0, 5);
        fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, memory, 2);
        fvdb_stats stats;
        take_vectors(&vectorless, DIM, 1);
        CHECK(add(index, &vectorless, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
        fvdb_get_stats(index, &stats, NULL);
        CHECK(stats.vectorless == VECTORLESS && stats.graph_rows == 0);
        CHECK(add(index, &t, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
        fvdb_get_stats(index, &stats, NULL);
        CHECK(stats.vectorless == VECTORLESS && stats.graph_rows == VECTORLESS + N);
        CHECK(recall(index, queries, QUERIES, DIM, 10, NULL, 0) >= 0.95);
        uint32_t slot;
        for (uint32_t i = LEFT; i < N; i++) {
            if (i == 2000) CHECK(vacuum(index, NULL, FVDB_OK) == VECTORLESS + N - (2000 - LEFT));
            if (i == 2000) CHECK(recall(index, queries, QUERIES, DIM, 10, NULL, 0) >= 0.95);
            CHECK(fvdb_delete(index, t.ids, t.offsets + i, 1, 0, &slot, NULL) == FVDB_OK);
        }
        CHECK(vacuum(index, NULL, FVDB_OK) == VECTORLESS + LEFT);
        fvdb_get_stats(index, &stats, NULL);
        CHECK(stats.vectorless == VECTORLESS && stats.graph_rows == 0);
        CHECK(recall(index, queries, QUERIES, DIM, 10, NULL, 0) == 1);
        fvdb_free(index);
        free_rows(&vectorless);
        free_rows(&t);
    }
    free(queries);
}

static void test_conflicts(void) {
    enum { DIM = 8 };
    fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 1);
    test_rows a = make_rows(10, DIM, "row", 0, 1), b = make_rows(10, DIM, "row", 5, 2);
    fvdb_diag diag = {0};
    fvdb_stats stats;
    CHECK(add(index, &a, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    CHECK(fvdb_add(index, &b.rows, FVDB_ON_CONFLICT_ERROR, b.slots, b.replaced, NULL, &diag) == FVDB_ERR_DUPLICATE_ID);
    CHECK(diag.row == 0 && diag.actual == UINT64_MAX && diag.file && diag.line);
    fvdb_get_stats(index, &stats, NULL);
    CHECK(stats.rows == 10 && stats.live == 10);
    CHECK(add(index, &b, FVDB_ON_CONFLICT_SKIP) == FVDB_OK);
    CHECK(b.slots[4] == FVDB_NO_SLOT && b.slots[5] == 10 && b.replaced[4] == FVDB_NO_SLOT);
    CHECK(add(index, &b, FVDB_ON_CONFLICT_REPLACE) == FVDB_OK);
    CHECK(b.slots[0] == 15 && b.replaced[0] == 5 && b.replaced[9] == 14);
    fvdb_get_stats(index, &stats, NULL);
    CHECK(stats.rows == 25 && stats.live == 15);
    float got[DIM];
    uint32_t slot;
    CHECK(fvdb_find(index, b.ids, b.offsets, 1, &slot, NULL) == FVDB_OK && slot == 15);
    CHECK(fvdb_get_vectors(index, &slot, 1, got, NULL) == FVDB_OK);
    CHECK(memcmp(got, b.vectors, sizeof got) == 0);
    b.offsets[2] = b.offsets[1] = b.offsets[0];
    CHECK(add(index, &b, FVDB_ON_CONFLICT_SKIP) == FVDB_ERR_ID);
    fvdb_free(index);
    free_rows(&a);
    free_rows(&b);
}

static void test_the_same_id_twice_in_a_call(void) {
    fvdb_index *index = create(4, FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 1);
    float vectors[12] = {0};
    uint64_t offsets[4] = {0, 1, 2, 3};
    int64_t times[3] = {0};
    uint32_t slots[3], replaced[3];
    fvdb_rows rows = {3, vectors, (const uint8_t *)"aba", offsets, times, NULL, 0};
    fvdb_diag diag = {0};
    CHECK(fvdb_add(index, &rows, FVDB_ON_CONFLICT_ERROR, slots, replaced, NULL, &diag) == FVDB_ERR_DUPLICATE_ID);
    CHECK(diag.row == 2 && diag.actual == 0);
    /* The first counts, then the last, which replaces the row that is live by now. */
    CHECK(fvdb_add(index, &rows, FVDB_ON_CONFLICT_SKIP, slots, replaced, NULL, &diag) == FVDB_OK);
    CHECK(slots[0] == 0 && slots[1] == 1 && slots[2] == FVDB_NO_SLOT);
    CHECK(fvdb_add(index, &rows, FVDB_ON_CONFLICT_REPLACE, slots, replaced, NULL, &diag) == FVDB_OK);
    CHECK(slots[0] == FVDB_NO_SLOT && slots[1] == 2 && slots[2] == 3);
    CHECK(replaced[0] == FVDB_NO_SLOT && replaced[1] == 1 && replaced[2] == 0);
    fvdb_free(index);
}

static void test_a_cancelled_add_leaves_no_trace(void) {
    enum { DIM = 20 };
    /* With codes across the retraining at 8192 rows, so that they have to come back too; compact memory has none. */
    test_rows a = make_rows(7000, DIM, "a", 0, 1), b = make_rows(3000, DIM, "b", 0, 2);
    for (uint32_t memory = 0; memory < 2; memory++) {
        if (memory == FVDB_MEMORY_COMPACT) a.rows.n = 3000;
        fvdb_index *index = create(DIM, FVDB_METRIC_L2, memory, 2);
        CHECK(add(index, &a, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
        uint64_t before = fingerprint(index);
        fvdb_control control = {.cancel = 1};
        CHECK(fvdb_add(index, &b.rows, 0, b.slots, b.replaced, &control, NULL) == FVDB_ERR_CANCELLED);
        CHECK(fingerprint(index) == before);
        CHECK(add(index, &b, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
        uint64_t after = fingerprint(index);
        fvdb_index *straight = create(DIM, FVDB_METRIC_L2, memory, 1);
        CHECK(add(straight, &a, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
        CHECK(add(straight, &b, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
        CHECK(fingerprint(straight) == after);
        fvdb_free(index);
        fvdb_free(straight);
    }
    free_rows(&a);
    free_rows(&b);
}

static void test_failed_allocations_leave_no_trace(void) {
    enum { DIM = 12 };
    test_rows a = make_rows(1500, DIM, "a", 0, 1), b = make_rows(7000, DIM, "b", 0, 2);
    fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_COMPACT, 1);
    CHECK(add(index, &a, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    take_vectors(&b, DIM, 3);
    uint64_t before = fingerprint(index);
    int failures = 0;
    for (int64_t nth = 1;; nth += 1 + nth / 8) {
        mem_fail_after(nth);
        fvdb_status status = add(index, &b, FVDB_ON_CONFLICT_ERROR);
        mem_fail_after(0);
        if (status == FVDB_OK) break;
        CHECK(status == FVDB_ERR_MEMORY || status == FVDB_ERR_THREAD);
        CHECK(fingerprint(index) == before);
        failures++;
    }
    CHECK(failures > 5);
    delete_every(index, &a, 3);
    before = fingerprint(index);
    for (int64_t nth = 1;; nth++) {
        fvdb_stats stats;
        fvdb_get_stats(index, &stats, NULL);
        uint32_t *map = malloc(stats.rows * sizeof *map);
        mem_fail_after(nth);
        fvdb_status status = fvdb_vacuum(index, map, (uint32_t)stats.rows, NULL, NULL);
        mem_fail_after(0);
        free(map);
        if (status == FVDB_OK) break;
        CHECK(status == FVDB_ERR_MEMORY);
        CHECK(fingerprint(index) == before);
    }
    fvdb_free(index);
    free_rows(&a);
    free_rows(&b);
}

static void test_cancelled_vacuum_changes_nothing(void) {
    enum { DIM = 16 };
    test_rows t = make_rows(3000, DIM, "row", 0, 1);
    for (uint32_t nth = 2; nth <= 10; nth += 8) { /* 2: rebuild, 10: repair */
        fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 2);
        CHECK(add(index, &t, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
        delete_every(index, &t, nth);
        uint64_t before = fingerprint(index);
        fvdb_control control = {.cancel = 1};
        CHECK(vacuum(index, &control, FVDB_ERR_CANCELLED) == 3000);
        CHECK(fingerprint(index) == before);
        fvdb_free(index);
    }
    free_rows(&t);
}

static void test_masks_never_return_too_few(void) {
    enum { N = 5000, DIM = 32, QUERIES = 20, WORDS = N / 64 + 1 };
    fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 2);
    test_rows t = make_rows(N, DIM, "row", 0, 8);
    float *queries = make_vectors(QUERIES, DIM, 20, 77);
    CHECK(add(index, &t, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    delete_every(index, &t, 10);
    for (uint32_t share = 1; share <= 5000; share *= 7) { /* 1 row in `share` */
        uint64_t allow[WORDS] = {0};
        for (uint32_t slot = 0; slot < N; slot++)
            if (mix64(slot) % share == 0) bit_set(allow, slot);
        CHECK(recall(index, queries, QUERIES, DIM, 10, allow, WORDS) >= 0.95);
    }
    uint64_t none[1] = {0};
    CHECK(recall(index, queries, QUERIES, DIM, 10, none, 1) == 1.0);
    fvdb_free(index);
    free_rows(&t);
    free(queries);
}

static void test_more_asked_than_there_is(void) {
    enum { DIM = 4 };
    fvdb_index *index = create(DIM, FVDB_METRIC_DOT, FVDB_MEMORY_DEFAULT, 1);
    test_rows t = make_rows(3, DIM, "row", 0, 8);
    uint32_t slots[10], count, plan;
    double distances[10];
    uint8_t ids[64];
    uint64_t offsets[11];
    fvdb_search_params params = {.k = 10};
    CHECK(fvdb_search(index, t.vectors, 1, &params, NULL, 0, slots, distances, &count, &plan, NULL, 0, NULL, NULL,
                      NULL) == FVDB_OK);
    CHECK(count == 0 && slots[0] == FVDB_NO_SLOT);
    CHECK(add(index, &t, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    CHECK(fvdb_search(index, t.vectors, 1, &params, NULL, 0, slots, distances, &count, &plan, ids, 64, offsets, NULL,
                      NULL) == FVDB_OK);
    CHECK(count == 3 && slots[3] == FVDB_NO_SLOT && distances[3] > 1e300 && offsets[3] == 15 && offsets[10] == 15);
    for (uint32_t i = 0; i < 3; i++) CHECK(ids[offsets[i]] == 'r' && ids[offsets[i + 1] - 1] == 0);
    fvdb_diag diag = {0};
    CHECK(fvdb_search(index, t.vectors, 1, &params, NULL, 0, slots, distances, &count, &plan, ids, 14, offsets, NULL,
                      &diag) == FVDB_ERR_BUFFER);
    CHECK(diag.expected == 15);
    params.k = 0;
    CHECK(fvdb_search(index, t.vectors, 1, &params, NULL, 0, slots, distances, &count, &plan, NULL, 0, NULL, NULL,
                      NULL) == FVDB_ERR_ARGUMENT);
    fvdb_free(index);
    free_rows(&t);
}

static void test_one_query_is_answered_as_by_a_search_of_many(void) {
    enum { N = 3000, DIM = 24, K = 12, QUERIES = 20 };
    fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 1);
    test_rows t = make_rows(N, DIM, "row", 0, 30);
    t.ids[t.offsets[7] + 1] = 0; /* an id may hold any character */
    float *queries = make_vectors(QUERIES, DIM, 20, 31);
    memcpy(queries, t.vectors + 7 * DIM, DIM * sizeof *queries);
    CHECK(add(index, &t, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    uint32_t slots[K], want_slots[K], want_count, want_plan;
    double distances[K], scores[K], want_distances[K], want_scores[K];
    uint64_t ends[K], want_offsets[K + 1];
    uint8_t ids[K * 40], want_ids[K * 40];
    for (uint32_t q = 0; q < QUERIES; q++) {
        fvdb_search_params params = {.k = K, .ef_search = 1 + q * q * 5, .exact = q % 3 == 0, .nowait = q % 2};
        fvdb_answer a = {.slots = slots,
                         .distances = distances,
                         .scores = scores,
                         .id_ends = ends,
                         .id_bytes = ids,
                         .id_capacity = 3,
                         .threshold = -INFINITY};
        CHECK(fvdb_search(index, queries + q * DIM, 1, &params, NULL, 0, want_slots, want_distances, &want_count,
                          &want_plan, want_ids, sizeof want_ids, want_offsets, NULL, NULL) == FVDB_OK);
        CHECK(fvdb_search_one(index, queries + q * DIM, &params, &a) == FVDB_ERR_BUFFER);
        CHECK(a.diag.expected == want_offsets[K]);
        a.id_capacity = a.diag.expected - 1;
        CHECK(fvdb_search_one(index, queries + q * DIM, &params, &a) == FVDB_ERR_BUFFER);
        a.id_capacity++;
        CHECK(fvdb_search_one(index, queries + q * DIM, &params, &a) == FVDB_OK);
        CHECK(!params.exact || a.plan == FVDB_PLAN_FLAT);
        CHECK(a.count == want_count && a.plan == want_plan && a.id_size == a.id_capacity && a.below == 0);
        CHECK(memcmp(slots, want_slots, sizeof slots) == 0 && memcmp(distances, want_distances, sizeof distances) == 0);
        for (uint32_t i = 0; i < K; i++) CHECK(ends[i] + 1 == want_offsets[i + 1] && ids[ends[i]] == 0);
        CHECK(memcmp(ids, want_ids, want_offsets[K]) == 0);
        CHECK(q > 0 || (slots[0] == 7 && ids[1] == 0));
        CHECK(fvdb_scores(FVDB_METRIC_COSINE, distances, K, want_scores, NULL) == FVDB_OK);
        CHECK(memcmp(scores, want_scores, sizeof scores) == 0);
        for (uint32_t kept = 1; kept <= K; kept += 7) {
            a.threshold = want_scores[kept - 1];
            CHECK(fvdb_search_one(index, queries + q * DIM, &params, &a) == FVDB_OK);
            CHECK(a.count >= kept && scores[a.count - 1] >= a.threshold && a.id_size == ends[a.count - 1] + 1);
            CHECK(a.count + a.below == K && (a.below == 0 || want_scores[a.count] < a.threshold));
        }
    }
    const uint64_t odd = 0xAAAAAAAAAAAAAAAAu;
    fvdb_search_params two = {.k = 2};
    const fvdb_allowed some = {.words = &odd, .n_words = 1};
    fvdb_answer a = {.slots = slots,
                     .distances = distances,
                     .scores = scores,
                     .id_ends = ends,
                     .id_bytes = ids,
                     .id_capacity = sizeof ids,
                     .allowed = &some};
    CHECK(fvdb_search(index, queries, 1, &two, &odd, 1, want_slots, want_distances, &want_count, &want_plan, NULL, 0,
                      NULL, NULL, NULL) == FVDB_OK);
    CHECK(fvdb_search_one(index, queries, &two, &a) == FVDB_OK && a.count == 2 && a.plan == want_plan);
    CHECK(slots[0] == want_slots[0] && slots[1] == want_slots[1] && slots[0] % 2 == 1 && slots[0] < 64);
    uint32_t listed[34], n_listed = 0;
    for (uint32_t slot = 1; slot < 64; slot += 2) listed[n_listed++] = slot;
    listed[n_listed++] = N; /* no row */
    listed[n_listed++] = UINT32_MAX;
    const fvdb_allowed one_by_one = {.words = &odd, .n_words = 1, .slots = listed, .n_slots = n_listed};
    a.allowed = &one_by_one;
    for (uint32_t k = 2; k <= K; k++) {
        const fvdb_search_params more = {.k = k, .ef_search = k % 2};
        CHECK(fvdb_search(index, queries, 1, &more, &odd, 1, want_slots, want_distances, &want_count, &want_plan, NULL,
                          0, NULL, NULL, NULL) == FVDB_OK);
        CHECK(fvdb_search_one(index, queries, &more, &a) == FVDB_OK && a.count == want_count && a.plan == want_plan);
        CHECK(memcmp(slots, want_slots, want_count * sizeof *slots) == 0);
        CHECK(memcmp(distances, want_distances, want_count * sizeof *distances) == 0);
    }
    listed[0] = slots[0];
    const fvdb_allowed single = {.words = &odd, .n_words = 1, .slots = listed, .n_slots = 1};
    a.allowed = &single;
    CHECK(fvdb_search_one(index, queries, &two, &a) == FVDB_OK && a.count == 1 && slots[0] == listed[0]);
    fvdb_answer refused = {0};
    const fvdb_search_params no_k = {.k = 0}, wide = {.k = 1, .ef_search = FVDB_EF_MAX + 1}, of_none = {.k = K};
    CHECK(fvdb_search_one(index, queries, &no_k, &refused) == FVDB_ERR_ARGUMENT && refused.diag.expected == 1);
    CHECK(fvdb_search_one(index, queries, &wide, &refused) == FVDB_ERR_ARGUMENT);
    fvdb_index *empty = create(DIM, FVDB_METRIC_L2, FVDB_MEMORY_COMPACT, 1);
    fvdb_answer none = {.slots = slots, .distances = distances, .count = 9, .id_size = 9};
    CHECK(fvdb_search_one(empty, queries, &of_none, &none) == FVDB_OK && none.count == 0 && none.id_size == 0);
    fvdb_free(empty);
    fvdb_free(index);
    free_rows(&t);
    free(queries);
}

static void test_scores_fall_with_the_distance(void) {
    const double distances[] = {-INFINITY, -1e3, -30, -1, 0, 0x1p-60, 0.5, 1, 2, 40, 800, INFINITY};
    enum { N = sizeof distances / sizeof *distances };
    double scores[N];
    for (uint32_t metric = FVDB_METRIC_COSINE; metric <= FVDB_METRIC_DOT; metric++) {
        const uint32_t first = metric == FVDB_METRIC_DOT ? 0 : 4,
                       n = metric == FVDB_METRIC_COSINE ? 9 - first : N - first;
        CHECK(fvdb_scores(metric, distances + first, n, scores, NULL) == FVDB_OK);
        for (uint32_t i = 0; i < n; i++)
            CHECK(scores[i] >= 0 && scores[i] <= 1 && (i == 0 || scores[i] <= scores[i - 1]));
        CHECK(scores[0] == 1 && scores[n - 1] < 1e-300);
    }
    fvdb_diag diag = {0};
    CHECK(fvdb_scores(FVDB_METRIC_DOT + 1, distances, 1, scores, &diag) == FVDB_ERR_ARGUMENT && diag.actual == 3);
}

static void test_bad_vectors_are_named(void) {
    enum { DIM = 6 };
    fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 2);
    test_rows t = make_rows(1000, DIM, "row", 0, 8);
    fvdb_diag diag = {0};
    t.vectors[700 * DIM + 3] = 1.0f / (float)(t.times[0] * 0);
    memset(t.vectors + 900 * DIM, 0, DIM * sizeof(float));
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, &diag) == FVDB_ERR_NOT_FINITE);
    CHECK(diag.row == 700 && diag.actual == 3);
    t.vectors[700 * DIM + 3] = 1.0f;
    CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, &diag) == FVDB_ERR_ZERO_VECTOR);
    CHECK(diag.row == 900);
    fvdb_free(index);
    free_rows(&t);
}

static void test_huge_and_tiny_values_are_exact(void) {
    enum { DIM = 3 };
    float vectors[5 * DIM] = {3.4e38f, 1, 0, 1e-45f, 0, 0, -3.4e38f, -3.4e38f, 3.3e38f, 1, 1, 1, 1e-30f, 1e-38f, 0};
    uint64_t offsets[6] = {0, 1, 2, 3, 4, 5};
    int64_t times[5] = {INT64_MIN, -1, 0, 1, INT64_MAX};
    uint32_t slots[5], replaced[5], count, plan;
    for (uint32_t metric = 0; metric < 3; metric++) {
        fvdb_index *index = create(DIM, metric, FVDB_MEMORY_DEFAULT, 1);
        fvdb_rows rows = {5, vectors, (const uint8_t *)"abcde", offsets, times, NULL, 0};
        CHECK(fvdb_add(index, &rows, 0, slots, replaced, NULL, NULL) == FVDB_OK);
        float back[5 * DIM];
        int64_t us[5];
        double distances[5];
        CHECK(fvdb_get_vectors(index, slots, 5, back, NULL) == FVDB_OK && memcmp(back, vectors, sizeof back) == 0);
        CHECK(fvdb_get_timestamps(index, slots, 5, us, NULL) == FVDB_OK && memcmp(us, times, sizeof us) == 0);
        fvdb_search_params params = {.k = 5};
        for (uint32_t q = 0; q < 5; q++) {
            CHECK(fvdb_search(index, vectors + q * DIM, 1, &params, NULL, 0, slots, distances, &count, &plan, NULL, 0,
                              NULL, NULL, NULL) == FVDB_OK);
            CHECK(count == 5);
            for (uint32_t i = 0; i < 5; i++) CHECK(distances[i] == distances[i] && distances[i] < 1e300);
            if (metric != FVDB_METRIC_DOT) CHECK(distances[0] == 0.0);
            for (uint32_t i = 0; i < 5; i++) slots[i] = i;
        }
        fvdb_free(index);
    }
}

/* Shapes that codes handle badly: rows far outside of what they span, components of no or of tiny spread, huge sizes. */
static void distort(float *x, uint32_t n, uint32_t dim, uint32_t shape) {
    for (uint32_t row = 0; row < n; row++) {
        float *v = x + (size_t)row * dim;
        if (shape == 1 && row % 97 == 0)
            for (uint32_t d = 0; d < dim; d += 3) v[d] *= 40.0f;
        if (shape == 2)
            for (uint32_t d = 0; d < dim; d += 2) v[d] = d % 4 ? 100.0f : 1.0f + v[d] * 1e-6f;
        if (shape == 3)
            for (uint32_t d = 0; d < dim; d++) v[d] *= row % 2 ? 1e17f : 1e16f;
    }
}

/* With codes a scan leaves out the rows they rule out; compact memory has no codes and leaves out none. */
static void test_a_scan_of_codes_misses_no_row(void) {
    enum { N = 3000, DIM = 70, QUERIES = 30, K = 20, WORDS = N / 64 + 1 };
    uint64_t allow[WORDS];
    for (uint32_t w = 0; w < WORDS; w++) allow[w] = mix64(w) | mix64(w + 1000);
    for (uint32_t metric = 0; metric < 3; metric++) {
        for (uint32_t shape = 0; shape < 4; shape++) {
            test_rows t = make_rows(N, DIM, "row", 0, 8 + shape);
            float *queries = make_vectors(QUERIES, DIM, 20, 99);
            distort(t.vectors, N, DIM, shape);
            distort(queries, QUERIES, DIM, shape);
            uint32_t slots[2][QUERIES * K], counts[QUERIES], plans[QUERIES];
            double distances[2][QUERIES * K];
            fvdb_search_params params = {.k = K, .exact = 1};
            for (uint32_t memory = 0; memory < 2; memory++) {
                /* The scan reads no link: a graph of few links takes a tenth of this test's time. */
                fvdb_config config = {DIM, metric, memory ? FVDB_MEMORY_COMPACT : FVDB_MEMORY_DEFAULT, 4, 4, 2, 7};
                fvdb_index *index = NULL;
                CHECK(fvdb_create(&config, &index, NULL) == FVDB_OK);
                CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
                for (uint32_t i = 0; i < N; i += 7)
                    CHECK(fvdb_delete(index, t.ids, t.offsets + i, 1, 0, t.slots, NULL) == FVDB_OK);
                CHECK(fvdb_search(index, queries, QUERIES, &params, allow, WORDS, slots[memory], distances[memory],
                                  counts, plans, NULL, 0, NULL, NULL, NULL) == FVDB_OK);
                CHECK(counts[0] == K && plans[0] == FVDB_PLAN_FLAT);
                fvdb_free(index);
            }
            CHECK(memcmp(slots[0], slots[1], sizeof slots[0]) == 0);
            CHECK(memcmp(distances[0], distances[1], sizeof distances[0]) == 0);
            free(queries);
            free_rows(&t);
        }
    }
}

/* All answers of a search in steps, with room for `room` bytes of ids at first; or of no more than `most` steps. */
static uint32_t take_steps(fvdb_batch *batch, uint32_t k, uint32_t room, uint32_t most, uint8_t *ids,
                           uint64_t *offsets) {
    uint32_t taken = 0, n;
    uint64_t at = 0;
    uint64_t *of_step = malloc((FVDB_BATCH_MOST * (size_t)k + 1) * sizeof *of_step);
    for (uint32_t step = 0; step < most; step++) {
        fvdb_diag diag = {0};
        fvdb_status status = fvdb_search_next(batch, ids + at, room, of_step, &n, &diag);
        if (status == FVDB_ERR_BUFFER) {
            CHECK(diag.expected > room);
            status = fvdb_search_next(batch, ids + at, diag.expected, of_step, &n, &diag);
        }
        CHECK(status == FVDB_OK && n <= FVDB_BATCH_MOST);
        if (n == 0) break;
        for (size_t i = 0; i <= (size_t)n * k; i++) offsets[(size_t)taken * k + i] = at + of_step[i];
        at += of_step[(size_t)n * k];
        taken += n;
    }
    free(of_step);
    return taken;
}

static void test_a_search_in_steps_gives_what_one_at_once_gives(void) {
    enum { N = 1200, DIM = 24, QUERIES = 333, K = 7, ROOM = QUERIES * K * 16 };
    static const uint32_t some[] = {0, 1, 4, 40, 121, QUERIES};
    test_rows t = make_rows(N, DIM, "row", 0, 8);
    float *queries = make_vectors(QUERIES, DIM, 20, 99);
    static uint32_t slots[2][QUERIES * K], counts[2][QUERIES], plans[2][QUERIES];
    static double distances[2][QUERIES * K];
    static uint8_t ids[2][ROOM];
    static uint64_t offsets[2][QUERIES * K + 1];
    for (uint32_t threads = 1; threads <= 8; threads = threads * 2 + 1) {
        fvdb_config config = {DIM, FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 8, 40, threads, 7};
        fvdb_index *index = NULL;
        CHECK(fvdb_create(&config, &index, NULL) == FVDB_OK);
        CHECK(fvdb_add(index, &t.rows, 0, t.slots, t.replaced, NULL, NULL) == FVDB_OK);
        for (uint32_t exact = 0; exact < 2; exact++) {
            for (uint32_t i = 0; i < sizeof some / sizeof *some; i++) {
                const uint32_t n = some[i];
                fvdb_search_params params = {.k = K, .exact = exact};
                fvdb_batch *batch = NULL;
                CHECK(fvdb_search(index, queries, n, &params, NULL, 0, slots[0], distances[0], counts[0], plans[0],
                                  ids[0], ROOM, offsets[0], NULL, NULL) == FVDB_OK);
                CHECK(fvdb_search_start(index, queries, n, &params, NULL, 0, slots[1], distances[1], counts[1],
                                        plans[1], NULL, &batch, NULL) == FVDB_OK);
                CHECK(take_steps(batch, K, threads > 1 ? ROOM / 4 : 3, UINT32_MAX, ids[1], offsets[1]) == n);
                fvdb_search_end(batch);
                const size_t results = (size_t)n * K;
                CHECK(memcmp(slots[0], slots[1], results * sizeof **slots) == 0);
                CHECK(memcmp(distances[0], distances[1], results * sizeof **distances) == 0);
                CHECK(memcmp(counts[0], counts[1], n * sizeof **counts) == 0);
                CHECK(memcmp(plans[0], plans[1], n * sizeof **plans) == 0);
                CHECK(n == 0 || memcmp(offsets[0], offsets[1], (results + 1) * sizeof **offsets) == 0);
                CHECK(n == 0 || memcmp(ids[0], ids[1], offsets[0][results]) == 0);
            }
        }
        fvdb_free(index);
    }
    free(queries);
    free_rows(&t);
}

static void test_a_search_in_steps_can_end_early(void) {
    enum { N = 2000, DIM = 24, QUERIES = 1000, K = 5, ROOM = QUERIES * K * 16 };
    test_rows t = make_rows(N, DIM, "row", 0, 8);
    float *queries = make_vectors(QUERIES, DIM, 20, 99);
    static uint32_t slots[QUERIES * K], counts[QUERIES], plans[QUERIES];
    static double distances[QUERIES * K];
    static uint8_t ids[ROOM];
    static uint64_t offsets[QUERIES * K + 1];
    fvdb_index *index = create(DIM, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, 3);
    CHECK(add(index, &t, FVDB_ON_CONFLICT_ERROR) == FVDB_OK);
    fvdb_search_params params = {.k = K};
    fvdb_control control = {0};
    fvdb_batch *batch = NULL;
    uint32_t n;
    for (uint32_t steps = 0; steps < 3; steps++) {
        CHECK(fvdb_search_start(index, queries, QUERIES, &params, NULL, 0, slots, distances, counts, plans, NULL,
                                &batch, NULL) == FVDB_OK);
        CHECK(take_steps(batch, K, ROOM, steps, ids, offsets) < QUERIES);
        fvdb_search_end(batch);
    }
    CHECK(fvdb_search_start(index, queries, QUERIES, &params, NULL, 0, slots, distances, counts, plans, &control,
                            &batch, NULL) == FVDB_OK);
    __atomic_store_n(&control.cancel, 1, __ATOMIC_RELAXED);
    CHECK(fvdb_search_next(batch, ids, ROOM, offsets, &n, NULL) == FVDB_ERR_CANCELLED);
    fvdb_search_end(batch);
    fvdb_search_end(NULL);
    /* No reader is left, and a query that is refused begins nothing. */
    CHECK(fvdb_delete(index, t.ids, t.offsets, 1, 0, slots, NULL) == FVDB_OK);
    queries[DIM] = NAN;
    fvdb_diag diag = {0};
    CHECK(fvdb_search_start(index, queries, QUERIES, &params, NULL, 0, slots, distances, counts, plans, NULL, &batch,
                            &diag) == FVDB_ERR_NOT_FINITE);
    CHECK(diag.row == 1);
    CHECK(fvdb_delete(index, t.ids, t.offsets + 1, 1, 0, slots, NULL) == FVDB_OK);
    fvdb_free(index);
    free(queries);
    free_rows(&t);
}

int main(void) {
    RUN(test_a_search_in_steps_gives_what_one_at_once_gives);
    RUN(test_a_search_in_steps_can_end_early);
    RUN(test_a_scan_of_codes_misses_no_row);
    RUN(test_recall_cosine);
    RUN(test_recall_l2);
    RUN(test_recall_compact_cosine);
    RUN(test_recall_compact_l2);
    RUN(test_rebuild_equals_a_fresh_build);
    RUN(test_threads_do_not_change_the_index);
    RUN(test_many_rows_without_a_vector);
    RUN(test_conflicts);
    RUN(test_the_same_id_twice_in_a_call);
    RUN(test_a_cancelled_add_leaves_no_trace);
    RUN(test_failed_allocations_leave_no_trace);
    RUN(test_cancelled_vacuum_changes_nothing);
    RUN(test_masks_never_return_too_few);
    RUN(test_more_asked_than_there_is);
    RUN(test_one_query_is_answered_as_by_a_search_of_many);
    RUN(test_scores_fall_with_the_distance);
    RUN(test_bad_vectors_are_named);
    RUN(test_huge_and_tiny_values_are_exact);
    return check_done();
}
