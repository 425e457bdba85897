/* Every kernel table this CPU can run against the scalar one, bit for bit, and the scalar one against plain float64. */
#include "check.h"
#include "data.h"
#include "kernels/kernels.h"

#include <float.h>
#include <math.h>

static const size_t DIMS[] = {1, 7, 15, 16, 17, 63, 64, 65, 100, 128, 383, 384, 385, 768, 1537, 4096};
#define N_DIMS (sizeof DIMS / sizeof *DIMS)
#define ROWS 40

/* Values of every kind: ordinary, tiny, huge, zero of both signs. */
static float any_float(uint64_t *state) {
    *state = mix64(*state);
    float x = noise(state);
    switch (*state >> 60) {
    case 0: return 0.0f;
    case 1: return -0.0f;
    case 2: return x * 1e-40f;
    case 3: return x * 1e30f;
    case 4: return x * FLT_MAX;
    default: return x;
    }
}

typedef struct fixture {
    size_t dim, dim16, dim64, code_bytes;
    float x[ROWS][4096], padded[4096], lo[4096], step[4096], inv_step[4096];
    double q[4096];
    uint16_t high[ROWS * 4096], low[ROWS * 4096];
    uint8_t codes[ROWS * 2048];
    float scales[ROWS];
    uint32_t slots[ROWS];
} fixture;

static fixture F, G; /* too large for a stack */

static void fill(fixture *f, const kernel_table *k, size_t dim, bool wild, uint64_t seed) {
    memset(f, 0, sizeof *f);
    f->dim = dim;
    f->dim16 = round_up(dim, PLANE_LANES);
    f->dim64 = round_up(dim, CODE_DIMS);
    f->code_bytes = f->dim64 / 2;
    for (size_t d = 0; d < dim; d++) {
        f->lo[d] = noise(&seed) - 1.0f;
        f->step[d] = d % 13 == 5 ? 0.0f : 0.1f + 0.05f * noise(&seed);
        f->inv_step[d] = f->step[d] > 0 ? 1.0f / f->step[d] : 0.0f;
        f->padded[d] = wild ? any_float(&seed) : noise(&seed);
        f->q[d] = (double)f->padded[d];
    }
    for (uint32_t r = 0; r < ROWS; r++) {
        for (size_t d = 0; d < dim; d++) f->x[r][d] = wild ? any_float(&seed) : noise(&seed);
        k->split_planes(f->x[r], dim, f->high + r * f->dim16, f->low + r * f->dim16);
        k->code_encode(f->x[r], f->lo, f->inv_step, f->dim64, f->codes + r * f->code_bytes);
        f->scales[r] = wild ? any_float(&seed) : 1.5f + noise(&seed);
        f->slots[r] = (r * 7) % ROWS;
    }
}

static bool same_bits(const void *a, const void *b, size_t size) { return memcmp(a, b, size) == 0; }
/* Equal bits, or both NaN: payloads of NaN are not part of the contract. */
static bool same_f32(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!same_bits(&a[i], &b[i], 4) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

static void compare(const kernel_table *k, size_t dim, bool wild, uint64_t seed) {
    const kernel_table *s = &kernels_scalar;
    fill(&F, s, dim, wild, seed);
    fill(&G, k, dim, wild, seed);
    CHECK(same_bits(F.high, G.high, sizeof F.high) && same_bits(F.low, G.low, sizeof F.low));
    CHECK(same_bits(F.codes, G.codes, sizeof F.codes));
    for (uint32_t r = 0; r < ROWS; r++) {
        double dot[2], norm2[2], l2[2];
        float back[2][4096];
        s->exact_dot(F.q, F.high + r * F.dim16, F.low + r * F.dim16, 0, F.dim16, &dot[0], &norm2[0]);
        const ptrdiff_t ahead = -(ptrdiff_t)(r * F.dim16); /* to row 0 */
        k->exact_dot(F.q, F.high + r * F.dim16, F.low + r * F.dim16, ahead, F.dim16, &dot[1], &norm2[1]);
        l2[0] = s->exact_l2(F.q, F.high + r * F.dim16, F.low + r * F.dim16, 0, F.dim16);
        l2[1] = k->exact_l2(F.q, F.high + r * F.dim16, F.low + r * F.dim16, ahead, F.dim16);
        CHECK(same_bits(&dot[0], &dot[1], 8) && same_bits(&norm2[0], &norm2[1], 8) && same_bits(&l2[0], &l2[1], 8));
        k->join_planes(F.high + r * F.dim16, F.low + r * F.dim16, dim, back[0]);
        CHECK(same_bits(back[0], F.x[r], dim * sizeof(float)));
        s->code_decode(F.codes + r * F.code_bytes, F.lo, F.step, F.dim64, back[0]);
        k->code_decode(F.codes + r * F.code_bytes, F.lo, F.step, F.dim64, back[1]);
        CHECK(same_bits(back[0], back[1], F.dim64 * sizeof(float)));
    }
    int8_t q_lo[2][2048] = {{0}}, q_hi[2][2048] = {{0}};
    float base[2], scale[2];
    s->code_prepare(F.padded, F.lo, F.step, F.dim64, q_lo[0], q_hi[0], &base[0], &scale[0]);
    k->code_prepare(F.padded, F.lo, F.step, F.dim64, q_lo[1], q_hi[1], &base[1], &scale[1]);
    CHECK(same_bits(q_lo[0], q_lo[1], sizeof q_lo[0]) && same_bits(q_hi[0], q_hi[1], sizeof q_hi[0]));
    CHECK(same_f32(&base[0], &base[1], 1) && same_f32(&scale[0], &scale[1], 1));
    for (uint32_t n = 0; n <= ROWS; n += n < 12 ? 1 : 14) {
        int32_t products[2][ROWS] = {{0}};
        float distances[2][ROWS] = {{0}};
        s->code_dot(q_lo[0], q_hi[0], F.codes, F.code_bytes, F.slots, n, products[0]);
        k->code_dot(q_lo[0], q_hi[0], F.codes, F.code_bytes, F.slots, n, products[1]);
        CHECK(same_bits(products[0], products[1], sizeof products[0]));
        s->high_dot(F.padded, F.high, F.dim16, F.slots, n, distances[0]);
        k->high_dot(F.padded, F.high, F.dim16, F.slots, n, distances[1]);
        CHECK(same_f32(distances[0], distances[1], n));
        s->high_l2(F.padded, F.high, F.dim16, F.slots, n, distances[0]);
        k->high_l2(F.padded, F.high, F.dim16, F.slots, n, distances[1]);
        CHECK(same_f32(distances[0], distances[1], n));
        s->row_dot(F.padded, F.high, F.low, F.dim16, F.slots, n, distances[0]);
        k->row_dot(F.padded, F.high, F.low, F.dim16, F.slots, n, distances[1]);
        CHECK(same_f32(distances[0], distances[1], n));
        for (size_t scaled = 0; scaled < 2; scaled++) {
            const float *scales = scaled ? F.scales : NULL;
            s->row_l2(F.padded, F.high, F.low, scales, F.dim16, F.slots, n, distances[0]);
            k->row_l2(F.padded, F.high, F.low, scales, F.dim16, F.slots, n, distances[1]);
            CHECK(same_f32(distances[0], distances[1], n));
        }
    }
}

static void test_all_tables_give_the_same_bits(void) {
    const kernel_table *tables[4];
    size_t n = kernels_available(tables);
    for (size_t t = 0; t < n; t++) {
        printf("  %s\n", tables[t]->name);
        for (size_t d = 0; d < N_DIMS; d++) {
            compare(tables[t], DIMS[d], false, d + 1);
            compare(tables[t], DIMS[d], true, d + 100);
        }
    }
}

/* The largest products of either sign: no kernel's narrow sums may overflow. */
static void test_extreme_codes(void) {
    const kernel_table *tables[4];
    size_t n_tables = kernels_available(tables);
    for (size_t at = 0; at < N_DIMS; at++) {
        const size_t code_bytes = round_up(DIMS[at], CODE_DIMS) / 2;
        int8_t q[2][2048];
        memset(F.codes, 0xff, ROWS * code_bytes);
        for (int sign = -1; sign <= 1; sign += 2) {
            memset(q, (uint8_t)(int8_t)(127 * sign), sizeof q);
            for (size_t t = 0; t < n_tables; t++)
                for (uint32_t n = 1; n <= 5; n++) {
                    int32_t products[ROWS];
                    for (uint32_t r = 0; r < n; r++) F.slots[r] = ROWS - 1 - r;
                    tables[t]->code_dot(q[0], q[1], F.codes, code_bytes, F.slots, n, products);
                    for (uint32_t r = 0; r < n; r++) CHECK(products[r] == sign * (int32_t)(2 * code_bytes * 15 * 127));
                }
        }
    }
}

static void test_scalar_is_right(void) {
    const kernel_table *s = &kernels_scalar;
    for (size_t at = 0; at < N_DIMS; at++) {
        size_t dim = DIMS[at];
        fill(&F, s, dim, false, at + 7);
        int8_t q_lo[2048] = {0}, q_hi[2048] = {0};
        float base, scale, high[ROWS], high_l2[ROWS], row_dot[ROWS], row_l2[ROWS], scaled_l2[ROWS];
        int32_t products[ROWS];
        s->code_prepare(F.padded, F.lo, F.step, F.dim64, q_lo, q_hi, &base, &scale);
        s->code_dot(q_lo, q_hi, F.codes, F.code_bytes, F.slots, ROWS, products);
        s->high_dot(F.padded, F.high, F.dim16, F.slots, ROWS, high);
        s->high_l2(F.padded, F.high, F.dim16, F.slots, ROWS, high_l2);
        s->row_dot(F.padded, F.high, F.low, F.dim16, F.slots, ROWS, row_dot);
        s->row_l2(F.padded, F.high, F.low, NULL, F.dim16, F.slots, ROWS, row_l2);
        s->row_l2(F.padded, F.high, F.low, F.scales, F.dim16, F.slots, ROWS, scaled_l2);
        for (uint32_t r = 0; r < ROWS; r++) {
            uint32_t slot = F.slots[r];
            double dot = 0, norm2 = 0, l2 = 0, of_scaled = 0, size = 0, coded = 0, got_dot, got_norm2;
            float decoded[4096];
            s->code_decode(F.codes + slot * F.code_bytes, F.lo, F.step, F.dim64, decoded);
            for (size_t d = 0; d < dim; d++) {
                double a = F.q[d], b = F.x[slot][d];
                dot += a * b;
                norm2 += b * b;
                l2 += (a - b) * (a - b);
                of_scaled += (a - F.scales[slot] * b) * (a - F.scales[slot] * b);
                size += fabs(a);
                coded += a * decoded[d];
                if (F.step[d] > 0 && F.x[slot][d] >= F.lo[d] && F.x[slot][d] <= F.lo[d] + 15 * F.step[d])
                    CHECK(fabs((double)decoded[d] - b) <= 0.51 * F.step[d]);
            }
            s->exact_dot(F.q, F.high + slot * F.dim16, F.low + slot * F.dim16, 0, F.dim16, &got_dot, &got_norm2);
            CHECK(fabs(got_dot - dot) <= 1e-12 * (1 + size) && fabs(got_norm2 - norm2) <= 1e-12 * (1 + norm2));
            CHECK(fabs(s->exact_l2(F.q, F.high + slot * F.dim16, F.low + slot * F.dim16, 0, F.dim16) - l2) <=
                  1e-12 * (1 + l2));
            CHECK(fabs((double)high[r] - dot) <= 0.004 * (1 + size));
            CHECK(fabs((double)high_l2[r] - l2) <= 0.01 * (1 + l2 + size));
            CHECK(fabs((double)row_dot[r] - dot) <= 1e-6 * (1 + size));
            CHECK(fabs((double)row_l2[r] - l2) <= 1e-5 * (1 + l2));
            CHECK(fabs((double)scaled_l2[r] - of_scaled) <= 1e-5 * (1 + of_scaled));
            CHECK(fabs((double)base + (double)scale * products[r] - coded) <=
                  15.0 * (double)scale * (double)dim + 1e-4);
        }
    }
}

static void test_planes_are_exact_for_every_exponent(void) {
    const kernel_table *tables[4];
    size_t n = kernels_available(tables);
    for (uint32_t high = 0; high < 0x10000; high += 16) {
        float x[16], back[16];
        uint16_t planes[2][16];
        for (uint32_t i = 0; i < 16; i++) {
            uint32_t bits = (high + i) << 16 | (uint32_t)(mix64(high + i) & 0xffff);
            if ((bits & 0x7f800000) == 0x7f800000) bits &= 0xff7fffff; /* NaN and infinity are refused earlier */
            memcpy(&x[i], &bits, 4);
        }
        for (size_t t = 0; t < n; t++) {
            tables[t]->split_planes(x, 16, planes[0], planes[1]);
            tables[t]->join_planes(planes[0], planes[1], 16, back);
            CHECK(same_bits(x, back, sizeof x));
        }
    }
}

static void test_the_best_table_is_chosen(void) {
    const kernel_table *tables[4];
    size_t n = kernels_available(tables);
    const char *asked = getenv("FVDB_KERNELS");
    CHECK(tables[0] == &kernels_scalar);
    if (!asked || !*asked) CHECK(kernels_get() == tables[n - 1]);
}

int main(void) {
    RUN(test_all_tables_give_the_same_bits);
    RUN(test_extreme_codes);
    RUN(test_scalar_is_right);
    RUN(test_planes_are_exact_for_every_exponent);
    RUN(test_the_best_table_is_chosen);
    return check_done();
}
