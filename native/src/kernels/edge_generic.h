/* Codes of a graph's links, in plain C: what kernels_generic.h adds for them to each instruction set.  edge_near, the loop
 * of a walk, is here as the answer, and in edge_<isa>.h as each instruction set does it.
 *
 * A link's code is RaBitQ's (Gao & Long 2024): the signs of the neighbour's difference to the node, rotated, one bit a
 * dimension.  A rotation that is random makes the signs of any difference tell its direction equally well. */
#include "kernels.h"

/* Rows of a matrix of 16 columns that the first step of a round mixes. */
#define EDGE_COLUMNS 16u

/* Elements whose signs come from one hash. */
#define EDGE_SIGNS 32u

/* Bit 31 - i: whether element i of so many changes its sign in this step.  A hash, without memory or a chain of states. */
static inline KERNEL_TARGET uint32_t signs_of(uint32_t number, uint32_t step) {
    uint32_t h = (number + 1 + step * 0x10001u) * 0x9e3779b1u;
    h = (h ^ h >> 15) * 0x85ebca77u;
    h = (h ^ h >> 13) * 0xc2b2ae3du;
    return h ^ h >> 16;
}

static inline KERNEL_TARGET void flip_signs(float *x, uint32_t n, uint32_t step) {
    for (uint32_t at = 0; at < n; at += EDGE_SIGNS) {
        const uint32_t signs = signs_of(at / EDGE_SIGNS, step);
        for (uint32_t i = 0; i < EDGE_SIGNS; i++)
            x[at + i] = from_bits(to_bits(x[at + i]) ^ (signs << i & 0x80000000u));
    }
}

/* The sums and the differences of two rows of 16 in their places.  All of it is known before any of it is stored: then it is
 * SIMD without a look at where the rows are. */
static inline KERNEL_TARGET void mix_two_rows(float *a, float *b) {
    float sums[EDGE_COLUMNS], differences[EDGE_COLUMNS];
    for (uint32_t c = 0; c < EDGE_COLUMNS; c++) {
        sums[c] = a[c] + b[c];
        differences[c] = a[c] - b[c];
    }
    memcpy(a, sums, sizeof sums);
    memcpy(b, differences, sizeof differences);
}

/* The Walsh-Hadamard transform of the columns of `rows` rows, a power of two, scaled to keep lengths. */
static inline KERNEL_TARGET void mix_rows(float *x, uint32_t rows) {
    float scale = 1;
    for (uint32_t half = 1; half < rows; half *= 2) {
        for (uint32_t at = 0; at < rows; at += 2 * half)
            for (uint32_t r = at; r < at + half; r++) mix_two_rows(x + r * EDGE_COLUMNS, x + (r + half) * EDGE_COLUMNS);
        scale *= 0.70710678f;
    }
    for (uint32_t i = 0; i < rows * EDGE_COLUMNS; i++) x[i] *= scale;
}

/* The same of every 16 elements, of the farthest ones first. */
static inline KERNEL_TARGET void mix_columns(float *x, uint32_t n) {
    for (uint32_t at = 0; at < n; at += EDGE_COLUMNS) {
        for (uint32_t half = EDGE_COLUMNS / 2; half; half /= 2) {
            for (uint32_t i = 0; i < EDGE_COLUMNS; i++) {
                if (i & half) continue;
                const float a = x[at + i], b = x[at + i + half];
                x[at + i] = a + b;
                x[at + i + half] = a - b;
            }
        }
        for (uint32_t i = 0; i < EDGE_COLUMNS; i++) x[at + i] *= 0.25f;
    }
}

/* Signs; a mix of the columns of as many rows of 16 as a power of two has, from the front and, where that is not all, after
 * other signs from the back; then, after yet others, a mix of each row (mix_columns).  A second round finds nothing more
 * (docs/decisions/0031). */
static inline KERNEL_TARGET void rotate_rows(float *x, size_t dim64) {
    const uint32_t n = (uint32_t)dim64, rows = n / EDGE_COLUMNS;
    uint32_t power = 1;
    while (power * 2 <= rows) power *= 2;
    flip_signs(x, n, 0);
    mix_rows(x, power);
    if (power < rows) {
        flip_signs(x, n, 1);
        mix_rows(x + (rows - power) * EDGE_COLUMNS, power);
    }
    flip_signs(x, n, 2);
}

static inline KERNEL_TARGET void edge_rotate(float *x, size_t dim64) {
    rotate_rows(x, dim64);
    mix_columns(x, (uint32_t)dim64);
}

/* Sums of four weights, by which of the four bits are set. */
static inline KERNEL_TARGET void fill_table(const int8_t *q, uint8_t *table) {
    static const uint8_t bit_0[16] = {0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255};
    static const uint8_t bit_1[16] = {0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255};
    static const uint8_t bit_2[16] = {0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255};
    static const uint8_t bit_3[16] = {0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255};
    const uint8_t a = (uint8_t)q[0], b = (uint8_t)q[1], c = (uint8_t)q[2], d = (uint8_t)q[3];
    for (uint32_t i = 0; i < 16; i++)
        table[i] = (uint8_t)(EDGE_TABLE_ZERO + (a & bit_0[i]) + (b & bit_1[i]) + (c & bit_2[i]) + (d & bit_3[i]));
}

static inline KERNEL_TARGET void edge_prepare(const float *x, size_t dim64, uint8_t *tables, float *scale,
                                              float *offset, float *error) {
    int8_t q[FVDB_DIM_MAX];
    float sizes[PLANE_LANES] = {0}, losses[PLANE_LANES] = {0}, largest = 0;
    int32_t total = 0;
    for (size_t i = 0; i < dim64; i += PLANE_LANES) {
        for (size_t l = 0; l < PLANE_LANES; l++) {
            float size = x[i + l] < 0 ? -x[i + l] : x[i + l];
            sizes[l] = size > sizes[l] ? size : sizes[l];
        }
    }
    for (size_t l = 0; l < PLANE_LANES; l++) largest = sizes[l] > largest ? sizes[l] : largest;
    const bool usable = largest >= CODE_WEIGHT_MIN && largest <= CODE_WEIGHT_MAX;
    const float inverse = usable ? EDGE_WEIGHT_MAX / largest : 0.0f, step = usable ? largest / EDGE_WEIGHT_MAX : 0.0f;
    for (size_t i = 0; i < dim64; i++) {
        float w = usable ? x[i] * inverse : 0.0f;
        /* NaN, where the rotation overflowed, is no integer. */
        w = !(w > -EDGE_WEIGHT_MAX) ? -EDGE_WEIGHT_MAX : w > EDGE_WEIGHT_MAX ? EDGE_WEIGHT_MAX : w;
        q[i] = (int8_t)(int32_t)(w + (w < 0 ? -0.5f : 0.5f));
        total += q[i];
    }
    for (size_t i = 0; i < dim64; i += PLANE_LANES) {
        for (size_t l = 0; l < PLANE_LANES; l++) {
            float lost = x[i + l] - step * (float)q[i + l];
            losses[l] += lost * lost;
        }
    }
    for (size_t i = 0; i < dim64; i += 4) fill_table(q + i, tables + i * 4);
    *scale = 2 * step;
    *offset = -step * (float)(2 * EDGE_TABLE_ZERO * (int32_t)(dim64 / 4) + total);
    *error = add_lanes_f32(losses);
}

static inline KERNEL_TARGET void edge_code(const float *difference, const float *node, size_t dim64, uint32_t lane,
                                           uint8_t *codes, float *norm2, float *sizes, float *product) {
    float squares[PLANE_LANES] = {0}, absolutes[PLANE_LANES] = {0}, products[PLANE_LANES] = {0};
    for (size_t i = 0; i < dim64; i += PLANE_LANES) {
        for (size_t l = 0; l < PLANE_LANES; l++) {
            float d = difference[i + l], c = node[i + l];
            squares[l] += d * d;
            absolutes[l] += d < 0 ? -d : d;
            products[l] += d < 0 ? -c : c;
        }
    }
    for (size_t i = 0; i < dim64; i += 8) {
        uint32_t bits = 0;
        for (size_t b = 0; b < 8; b++) bits |= (uint32_t)!(difference[i + b] < 0) << b;
        codes[i / 8 * EDGE_LANES + lane] = (uint8_t)bits;
    }
    *norm2 = add_lanes_f32(squares);
    *sizes = add_lanes_f32(absolutes);
    *product = add_lanes_f32(products);
}

/* Which of the links have an estimate that is not `most` or more, from the sums of their table entries. */
static inline KERNEL_TARGET uint32_t below(const uint16_t *sums, const uint16_t *factors, float scale, float offset,
                                           float most, float *out) {
    uint8_t is_near[EDGE_LANES];
    uint32_t bits = 0;
    for (uint32_t i = 0; i < EDGE_LANES; i++) {
        float weight = (float)(int32_t)sums[i] * scale + offset;
        float estimate = joined(factors[i], 0) * weight + joined(factors[EDGE_LANES + i], 0);
        out[i] = estimate;
        is_near[i] = !(estimate >= most);
    }
    for (uint32_t i = 0; i < EDGE_LANES; i++) bits |= (uint32_t)is_near[i] << i;
    return bits;
}

static inline KERNEL_TARGET uint32_t edge_near(const uint8_t *tables, const uint8_t *codes, const uint16_t *factors,
                                               size_t dim64, float scale, float offset, float most, float *out) {
    uint16_t sums[EDGE_LANES] = {0};
    for (size_t i = 0; i < dim64 / 8; i++, tables += 2 * EDGE_TABLE_BYTES, codes += EDGE_LANES)
        for (uint32_t link = 0; link < EDGE_LANES; link++)
            sums[link] =
                (uint16_t)(sums[link] + tables[codes[link] & 15] + tables[EDGE_TABLE_BYTES + (codes[link] >> 4)]);
    return below(sums, factors, scale, offset, most, out);
}

static inline KERNEL_TARGET uint32_t edge_nearest(const float *estimates, uint32_t lanes, uint32_t most) {
    uint32_t nearer[EDGE_LANES] = {0}, nearest = 0;
    for (uint32_t left = lanes; left; left &= left - 1) {
        const float estimate = estimates[__builtin_ctz(left)];
        for (uint32_t i = 0; i < EDGE_LANES; i++) nearer[i] += estimate < estimates[i];
    }
    for (uint32_t i = 0; i < EDGE_LANES; i++) nearest |= (uint32_t)(nearer[i] < most) << i;
    return nearest & lanes;
}
