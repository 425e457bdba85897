/* Edge codes: their kernels on each instruction set against the scalar ones, bit for bit, and what they estimate. */
#include "check.h"
#include "data.h"
#include "hnsw/hnsw.h"

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

int main(void) {
    RUN(test_all_tables_give_the_same_bits);
    RUN(test_sums_are_those_of_the_bits_that_are_set);
    RUN(test_a_rotation_keeps_lengths_and_angles);
    RUN(test_estimates_are_as_good_as_promised);
    return check_done();
}
