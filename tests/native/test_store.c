/* Rows, codes and the heap of hits. */
#include "check.h"
#include "data.h"
#include "store/store.h"

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

int main(void) {
    RUN(test_distances);
    RUN(test_a_row_is_at_distance_zero_from_itself);
    RUN(test_hits_come_out_in_order_ties_by_id);
    RUN(test_training_does_not_depend_on_threads);
    RUN(test_coarse_codes_are_noticed);
    return check_done();
}
