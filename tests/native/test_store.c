/* Rows, codes and the heap of hits. */
#include "check.h"
#include "data.h"
#include "store/store.h"

#include <float.h>
#include <math.h>

static void fill(store *s, test_rows *t, uint32_t metric, uint32_t memory, uint32_t dim, thread_pool *c) {
    fvdb_config config = {dim, metric, memory, 16, 100, 1, 3};
    uint32_t *all = malloc(t->rows.n * sizeof *all);
    for (uint32_t i = 0; i < t->rows.n; i++) all[i] = i;
    store_init(s, kernels_get(), &config);
    CHECK(store_append(s, &t->rows, all, t->rows.n, t->offsets[t->rows.n], c, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < t->rows.n; i++) store_make_live(s, i);
    free(all);
}

static double reference(const float *a, const float *b, uint32_t dim, uint32_t metric) {
    double dot = 0, aa = 0, bb = 0, l2 = 0;
    for (uint32_t d = 0; d < dim; d++) {
        dot += (double)a[d] * b[d];
        aa += (double)a[d] * a[d];
        bb += (double)b[d] * b[d];
        l2 += ((double)a[d] - b[d]) * ((double)a[d] - b[d]);
    }
    return metric == FVDB_METRIC_COSINE ? 1 - dot / sqrt(aa * bb) : metric == FVDB_METRIC_L2 ? sqrt(l2) : -dot;
}

/* Exact distances are exact, walk distances near them, for every metric, memory setting and odd dimension. */
static void test_distances(void) {
    enum { N = 1100 };
    const uint32_t dims[] = {1, 7, 16, 63, 64, 65, 130};
    thread_pool *c;
    CHECK(thread_pool_start(2, &c, NULL) == FVDB_OK);
    for (size_t at = 0; at < sizeof dims / sizeof *dims; at++) {
        uint32_t dim = dims[at];
        test_rows t = make_rows(N, dim, "row", 0, dim);
        for (uint32_t metric = 0; metric < 3; metric++) {
            for (uint32_t memory = 0; memory < 2; memory++) {
                store s;
                scorer q;
                fill(&s, &t, metric, memory, dim, c);
                CHECK(codes_train(&s, N, &s.book, c, NULL) == FVDB_OK);
                CHECK(store_reserve(&s, s.n, 0, NULL) == FVDB_OK);
                if (memory == FVDB_MEMORY_COMPACT) store_finish_load(&s, c, NULL);
                codes_encode(&s, 0, s.n, c);
                CHECK(scorer_init(&q, &s) == FVDB_OK);
                double error = 0, spread = 0;
                for (uint32_t i = 0; i < 50; i++) {
                    scorer_set_vector(&q, t.vectors + (size_t)i * dim);
                    for (uint32_t j = 0; j < N; j += 37) {
                        double want = reference(t.vectors + (size_t)i * dim, t.vectors + (size_t)j * dim, dim, metric);
                        CHECK(fabs(scorer_exact(&q, j) - want) <= 1e-12 * (1 + fabs(want)));
                        float near;
                        scorer_many(&q, &j, 1, &near);
                        if (metric == FVDB_METRIC_L2) want = want * want;
                        error += fabs((double)near - want);
                        spread += fabs(want);
                    }
                }
                CHECK(error <= spread * 0.25);
                scorer_free(&q);
                store_free(&s);
            }
        }
        free_rows(&t);
    }
    thread_pool_stop(c);
}

static void test_a_row_is_at_distance_zero_from_itself(void) {
    enum { N = 200, DIM = 37 };
    thread_pool *c;
    store s;
    scorer q;
    test_rows t = make_rows(N, DIM, "row", 0, 1);
    CHECK(thread_pool_start(1, &c, NULL) == FVDB_OK);
    fill(&s, &t, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, DIM, c);
    CHECK(scorer_init(&q, &s) == FVDB_OK);
    for (uint32_t i = 0; i < N; i++) {
        scorer_set_vector(&q, t.vectors + i * DIM);
        CHECK(scorer_exact(&q, i) == 0.0);
    }
    scorer_free(&q);
    store_free(&s);
    thread_pool_stop(c);
    free_rows(&t);
}

static void test_hits_come_out_in_order_ties_by_id(void) {
    enum { N = 500, K = 60 };
    thread_pool *c;
    store s;
    test_rows t = make_rows(N, 2, "row", 0, 1);
    CHECK(thread_pool_start(1, &c, NULL) == FVDB_OK);
    fill(&s, &t, FVDB_METRIC_L2, FVDB_MEMORY_DEFAULT, 2, c);
    hit heap[K];
    uint32_t n = 0;
    for (uint32_t i = 0; i < N; i++) hits_offer(&s, heap, &n, K, (hit){(double)(mix64(i) % 40), i});
    CHECK(n == K);
    hits_sort(&s, heap, n);
    for (uint32_t i = 1; i < K; i++) {
        CHECK(heap[i - 1].distance <= heap[i].distance);
        CHECK(heap[i - 1].distance < heap[i].distance || id_map_compare(&s.ids, heap[i - 1].slot, heap[i].slot) < 0);
    }
    uint32_t below = 0;
    for (uint32_t i = 0; i < N; i++) below += (double)(mix64(i) % 40) < heap[K - 1].distance;
    CHECK(below < K);
    store_free(&s);
    thread_pool_stop(c);
    free_rows(&t);
}

static void test_training_does_not_depend_on_threads(void) {
    enum { N = 9000, DIM = 10 };
    test_rows t = make_rows(N, DIM, "row", 0, 1);
    codebook books[2];
    for (uint32_t i = 0; i < 2; i++) {
        thread_pool *c;
        store s;
        CHECK(thread_pool_start(1 + 3 * i, &c, NULL) == FVDB_OK);
        fill(&s, &t, FVDB_METRIC_COSINE, FVDB_MEMORY_DEFAULT, DIM, c);
        CHECK(codes_train(&s, N, &books[i], c, NULL) == FVDB_OK);
        store_free(&s);
        thread_pool_stop(c);
    }
    CHECK(memcmp(books[0].lo, books[1].lo, 64 * 3 * sizeof(float)) == 0);
    codebook_free(&books[0]);
    codebook_free(&books[1]);
    free_rows(&t);
}

/* Codes say nothing inside of tight clusters, high halves nothing far from the origin; other rows are told apart.  The
 * verdict does not depend on the number of threads. */
static void test_coarse_codes_are_noticed(void) {
    enum { N = 8192, DIM = 24, CLUSTERS = 16 };
    static const struct {
        float centre, spread; /* of the clusters, of the rows in one */
        bool coarse[2];       /* by memory setting */
    } kinds[] = {{0, 1, {false, false}}, {10, 0.5f, {true, false}}, {1000, 0.5f, {true, true}}};
    thread_pool *pools[2];
    CHECK(thread_pool_start(1, &pools[0], NULL) == FVDB_OK && thread_pool_start(3, &pools[1], NULL) == FVDB_OK);
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        test_rows t = make_rows(N, DIM, "row", 0, 7);
        for (uint32_t i = 0; i < N; i++)
            for (uint32_t d = 0; d < DIM; d++) {
                const float sign = mix64(i % CLUSTERS * DIM + d) & 1 ? 1 : -1;
                t.vectors[i * DIM + d] = sign * kinds[kind].centre + kinds[kind].spread * t.vectors[i * DIM + d];
            }
        for (uint32_t memory = 0; memory < 2; memory++) {
            for (size_t at = 0; at < 2; at++) {
                store s;
                fill(&s, &t, FVDB_METRIC_L2, memory, DIM, pools[at]);
                CHECK(codes_train(&s, N, &s.book, pools[at], NULL) == FVDB_OK);
                CHECK(store_reserve(&s, s.n, 0, NULL) == FVDB_OK);
                codes_encode(&s, 0, s.n, pools[at]);
                CHECK(codes_judge(&s, N, pools[at], NULL) == FVDB_OK);
                CHECK(s.book.coarse == kinds[kind].coarse[memory]);
                mem_fail_after(1);
                CHECK(codes_judge(&s, N, pools[at], NULL) == FVDB_ERR_MEMORY);
                mem_fail_after(0);
                CHECK(s.book.coarse == kinds[kind].coarse[memory]);
                store_free(&s);
            }
        }
        free_rows(&t);
    }
    thread_pool_stop(pools[0]);
    thread_pool_stop(pools[1]);
}

/* ---- bounds ---- */

enum { SHAPES = 8 };

/* Rows that bounds have to get right: outliers, clusters far from the origin, huge, tiny and denormal components, norms over
 * six decades, components without a spread. */
static void shape_rows(float *x, uint32_t n, uint32_t dim, uint32_t shape) {
    for (uint32_t row = 0; row < n; row++) {
        float *v = x + (size_t)row * dim;
        for (uint32_t d = 0; d < dim; d++) {
            if (shape == 1 && row % 97 == 0) v[d] *= 40.0f;
            if (shape == 2) v[d] = (mix64(row % 5 * dim + d) & 1 ? 100.0f : -100.0f) + 0.01f * v[d];
            if (shape == 3) v[d] *= row % 2 ? 1e18f : 1e17f;
            if (shape == 4) v[d] *= 1e-25f;
            if (shape == 5) v[d] *= (float)pow(10, (double)(mix64(row) % 600) / 100 - 3);
            if (shape == 6) v[d] *= 1e-40f;
            if (shape == 7) v[d] = d % 2 ? 3.0f : v[d] * 1e38f;
        }
    }
}

/* A store of coded rows. */
static void fill_coded(store *s, test_rows *t, uint32_t metric, uint32_t dim, thread_pool *c) {
    fill(s, t, metric, FVDB_MEMORY_DEFAULT, dim, c);
    CHECK(codes_train(s, t->rows.n, &s->book, c, NULL) == FVDB_OK);
    CHECK(store_reserve(s, s->n, 0, NULL) == FVDB_OK);
    codes_encode(s, 0, s->n, c);
}

/* Walk distances by rows are those of exact ones but for the rounding of float32, also where 1 - cos would have nothing left of
 * what tells rows apart, and where products overflow or lengths are denormal. */
static void test_walk_distances_by_rows_are_near_exact_ones(void) {
    enum { N = 300, DIM = 37, ASKED = 60 };
    thread_pool *c;
    CHECK(thread_pool_start(1, &c, NULL) == FVDB_OK);
    for (uint32_t shape = 0; shape < SHAPES; shape++) {
        test_rows t = make_rows(N, DIM, "row", 0, 50 + shape);
        shape_rows(t.vectors, N, DIM, shape);
        for (uint32_t metric = 0; metric < 3; metric++) {
            store s;
            scorer q[2]; /* a query, and a stored row */
            fill_coded(&s, &t, metric, DIM, c);
            s.book.coarse = true;
            CHECK(scorer_init(&q[0], &s) == FVDB_OK && scorer_init(&q[1], &s) == FVDB_OK);
            for (uint32_t i = 0; i < N; i += N / ASKED) {
                scorer_set_vector(&q[0], t.vectors + (size_t)i * DIM);
                scorer_set_slot(&q[1], i);
                for (uint32_t j = 0; j < N; j++) {
                    const double want = walk_units(&s, scorer_exact(&q[0], j));
                    double sizes = 0;
                    float near, of_slot;
                    scorer_many(&q[0], &j, 1, &near);
                    scorer_many(&q[1], &j, 1, &of_slot);
                    CHECK(near == of_slot);
                    if (fabs(want) > (double)FLT_MAX) {
                        CHECK(near == (want > 0 ? INFINITY : -INFINITY));
                        continue;
                    }
                    for (uint32_t d = 0; d < DIM; d++)
                        sizes += fabs((double)t.vectors[i * DIM + d] * (double)t.vectors[j * DIM + d]);
                    const double by_cosine = 1e-5 * want + 3e-7 * sqrt(want) + 1e-13;
                    const double may_be_off = metric == FVDB_METRIC_COSINE ? by_cosine
                                              : metric == FVDB_METRIC_L2   ? 1e-5 * want + 1e-44
                                                                           : 1e-6 * sizes + 1e-44;
                    CHECK(fabs((double)near - want) <= may_be_off);
                }
            }
            scorer_free(&q[0]);
            scorer_free(&q[1]);
            store_free(&s);
        }
        free_rows(&t);
    }
    thread_pool_stop(c);
}

static void check_bounds(const store *s, const scorer *q) {
    bounds b;
    bounds_init(&b, q);
    for (uint32_t slot = 0; slot < s->n; slot++) {
        const double exact = scorer_exact(q, slot);
        const reach by_code = bounds_by_code(&b, exact), by_high = bounds_by_high(&b, exact);
        float code, high;
        scorer_approximate(q, &slot, 1, &code);
        scorer_high(q, &slot, 1, &high);
        CHECK(!beyond(code, reach_of(&by_code, store_code_error(s, slot))));
        CHECK(!beyond(code, reach_of(&by_code, s->code_error_max)));
        CHECK(!beyond(high, reach_of(&by_high, high_error(&b, slot))));
    }
}

static void test_bounds_hold_for_every_row(void) {
    enum { N = 1100, QUERIES = 12 };
    const uint32_t dims[] = {1, 7, 64, 130, 700};
    thread_pool *c;
    CHECK(thread_pool_start(2, &c, NULL) == FVDB_OK);
    for (size_t at = 0; at < sizeof dims / sizeof *dims; at++) {
        for (uint32_t i = 0; i < 3 * SHAPES; i++) {
            const uint32_t dim = dims[at], metric = i % 3;
            test_rows t = make_rows(N, dim, "row", 0, 17 + i);
            shape_rows(t.vectors, N, dim, i / 3);
            store s;
            scorer q;
            fill_coded(&s, &t, metric, dim, c);
            CHECK(scorer_init(&q, &s) == FVDB_OK);
            for (uint32_t query = 0; query < QUERIES; query++) {
                scorer_set_vector(&q, t.vectors + (size_t)query * dim);
                check_bounds(&s, &q);
            }
            scorer_free(&q);
            store_free(&s);
            free_rows(&t);
        }
    }
    thread_pool_stop(c);
}

/* Rows that are left by codes, where the k-th distance is known. */
static uint32_t left_by_code(const store *s, const scorer *q, double kth, bool own) {
    bounds b;
    bounds_init(&b, q);
    const reach r = bounds_by_code(&b, kth);
    uint32_t left = 0;
    for (uint32_t slot = 0; slot < s->n; slot++) {
        float near;
        scorer_approximate(q, &slot, 1, &near);
        left += !beyond(near, reach_of(&r, own ? store_code_error(s, slot) : s->code_error_max));
    }
    return left;
}

/* One row that codes fail to describe says nothing of the others. */
static void test_an_outlier_leaves_other_rows_ruled_out(void) {
    enum { N = 4000, DIM = 96 };
    thread_pool *c;
    CHECK(thread_pool_start(1, &c, NULL) == FVDB_OK);
    for (uint32_t metric = 0; metric < 3; metric++) {
        test_rows t = make_rows(N, DIM, "row", 0, 5);
        for (uint32_t d = 0; d < DIM; d++) t.vectors[d] = d ? t.vectors[d] : 1000.0f;
        store s;
        scorer q;
        fill(&s, &t, metric, FVDB_MEMORY_DEFAULT, DIM, c);
        CHECK(codes_train(&s, 1024, &s.book, c, NULL) == FVDB_OK);
        codebook_span(&s.book, 0, 0, 1); /* as if the outlier had come later */
        codebook_derive(&s.book, s.dim64);
        CHECK(store_reserve(&s, s.n, 0, NULL) == FVDB_OK);
        codes_encode(&s, 0, s.n, c);
        CHECK(scorer_init(&q, &s) == FVDB_OK);
        scorer_set_vector(&q, t.vectors + 7 * DIM);
        const double near = metric == FVDB_METRIC_DOT ? -100 : metric == FVDB_METRIC_L2 ? 3 : 0.05;
        CHECK(left_by_code(&s, &q, near, true) < N / 4);
        if (metric != FVDB_METRIC_COSINE) CHECK(left_by_code(&s, &q, near, false) > N / 2);
        scorer_free(&q);
        store_free(&s);
        free_rows(&t);
    }
    thread_pool_stop(c);
}

/* Errors go where their rows go, and are the same however rows came to be coded. */
static void test_coding_errors_follow_their_rows(void) {
    enum { N = 1500, KEPT = 900, DIM = 40 };
    thread_pool *c;
    store s;
    reordering a;
    uint16_t before[N];
    test_rows t = make_rows(N, DIM, "row", 0, 3);
    CHECK(thread_pool_start(3, &c, NULL) == FVDB_OK);
    fill_coded(&s, &t, FVDB_METRIC_L2, DIM, c);
    memcpy(before, s.code_error.base, sizeof before);
    const double error_max = s.code_error_max;
    for (uint32_t slot = KEPT; slot < N; slot++) store_make_tombstone(&s, slot);
    CHECK(reordering_alloc(&a, N, NULL) == FVDB_OK);
    for (uint32_t slot = 0; slot < N; slot++) a.order[slot] = slot < KEPT ? KEPT - 1 - slot : slot;
    a.kept = KEPT;
    CHECK(reordering_prepare(&a, &s, NULL) == FVDB_OK);
    store_reorder(&s, &a);
    const uint16_t *errors = (const uint16_t *)s.code_error.base;
    for (uint32_t slot = 0; slot < KEPT; slot++) CHECK(errors[slot] == before[KEPT - 1 - slot]);
    codes_encode(&s, 0, s.n, c);
    for (uint32_t slot = 0; slot < KEPT; slot++) CHECK(errors[slot] == before[KEPT - 1 - slot]);
    CHECK(s.code_error_max <= error_max);
    store_reorder_back(&s, &a);
    CHECK(memcmp(s.code_error.base, before, sizeof before) == 0);
    store_truncate(&s, KEPT);
    CHECK(s.code_error.used == KEPT * sizeof(uint16_t) && memcmp(s.code_error.base, before, s.code_error.used) == 0);
    reordering_free(&a);
    store_free(&s);
    thread_pool_stop(c);
    free_rows(&t);
}

/* ---- scans ---- */

static void check_found(const store *s, const scan *one, uint32_t k, const uint64_t *allow) {
    hit *want = malloc(k * sizeof *want);
    uint32_t wanted = 0;
    for (uint32_t slot = 0; slot < s->n; slot++)
        if (!allow || bit_get(allow, slot))
            hits_offer(s, want, &wanted, k, (hit){scorer_exact(one->query, slot), slot});
    hits_sort(s, want, wanted);
    CHECK(one->found == wanted);
    for (uint32_t h = 0; h < wanted; h++)
        CHECK(one->hits[h].slot == want[h].slot && one->hits[h].distance == want[h].distance);
    free(want);
}

/* By bitmap and, where some rows are allowed, by their slots one by one. */
static void check_scan(const store *s, scorer *queries, uint32_t n, uint32_t k, const uint64_t *allow) {
    hit *found = malloc((size_t)n * k * sizeof *found);
    uint32_t *slots = malloc(s->n * sizeof *slots);
    fvdb_allowed allowed = {.words = allow, .n_words = (s->n + 63) / 64};
    for (uint32_t slot = 0; allow && slot < s->n; slot++)
        if (bit_get(allow, slot)) slots[allowed.n_slots++] = slot;
    for (uint32_t by_slots = 0; by_slots <= (allow != NULL); by_slots++) {
        scan scans[SCAN_QUERIES_MAX];
        for (uint32_t i = 0; i < n; i++) scans[i] = (scan){&queries[i], found + (size_t)i * k, 0};
        allowed.slots = by_slots ? slots : NULL;
        flat_search(scans, n, k, allow ? &allowed : NULL, NULL);
        for (uint32_t i = 0; i < n; i++) check_found(s, &scans[i], k, allow);
    }
    free(found);
    free(slots);
}

/* More rows than can wait for an exact distance, of kinds of which codes rule out most, some or none. */
static void test_a_scan_finds_what_all_exact_distances_find(void) {
    enum { N = 5000, DIM = 48, WORDS = (N + 63) / 64 };
    const uint32_t ks[] = {1, 10, 101, 1500};
    uint64_t some[WORDS], few[WORDS] = {0};
    for (uint32_t w = 0; w < WORDS; w++) some[w] = mix64(w) & (w + 1 < WORDS ? UINT64_MAX : UINT64_C(0xff));
    for (uint32_t slot = 0; slot < N; slot += 41) bit_set(few, slot);
    thread_pool *c;
    CHECK(thread_pool_start(2, &c, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < 6 * SHAPES; i++) {
        const uint32_t metric = i % 3, memory = i / 3 % 2;
        test_rows t = make_rows(N, DIM, "row", 0, 29 + i);
        shape_rows(t.vectors, N, DIM, i / 6);
        /* Rows that are equal are told apart by their ids. */
        memcpy(t.vectors + 100 * DIM, t.vectors + 4000 * DIM, 50 * DIM * sizeof(float));
        store s;
        scorer queries[SCAN_QUERIES_MAX];
        if (memory == FVDB_MEMORY_DEFAULT) fill_coded(&s, &t, metric, DIM, c);
        else fill(&s, &t, metric, memory, DIM, c);
        for (uint32_t q = 0; q < SCAN_QUERIES_MAX; q++) {
            CHECK(scorer_init(&queries[q], &s) == FVDB_OK);
            scorer_set_vector(&queries[q], t.vectors + (size_t)(98 + q) * DIM);
        }
        for (size_t at = 0; at < sizeof ks / sizeof *ks; at++) {
            check_scan(&s, queries, SCAN_QUERIES_MAX, ks[at], NULL);
            check_scan(&s, queries, 1, ks[at], some);
            check_scan(&s, queries, 1, ks[at], few);
        }
        for (uint32_t q = 0; q < SCAN_QUERIES_MAX; q++) scorer_free(&queries[q]);
        store_free(&s);
        free_rows(&t);
    }
    thread_pool_stop(c);
}

int main(void) {
    RUN(test_distances);
    RUN(test_walk_distances_by_rows_are_near_exact_ones);
    RUN(test_bounds_hold_for_every_row);
    RUN(test_an_outlier_leaves_other_rows_ruled_out);
    RUN(test_coding_errors_follow_their_rows);
    RUN(test_a_scan_finds_what_all_exact_distances_find);
    RUN(test_a_row_is_at_distance_zero_from_itself);
    RUN(test_hits_come_out_in_order_ties_by_id);
    RUN(test_training_does_not_depend_on_threads);
    RUN(test_coarse_codes_are_noticed);
    return check_done();
}
