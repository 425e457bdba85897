/* The kernels in plain C, compiled once for each instruction set.
 *
 * A kernels_<isa>.c defines KERNEL_TARGET, its target attribute, includes this file, adds those that it does better with
 * intrinsics, and names in its table which are which.  The loops over PLANE_LANES are written so that compilers turn
 * lanes into vector registers; since no operation is fused or reordered, every instruction set gives the same bits. */
#include "kernels.h"

static inline KERNEL_TARGET float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline KERNEL_TARGET uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline KERNEL_TARGET float joined(uint16_t high, uint16_t low) {
    return from_bits(((uint32_t)high << 16) + (uint32_t)(int32_t)(int16_t)low);
}

static inline KERNEL_TARGET void split_planes(const float *x, size_t dim, uint16_t *high, uint16_t *low) {
    size_t dim16 = round_up(dim, PLANE_LANES);
    for (size_t i = 0; i < dim; i++) {
        uint32_t bits = to_bits(x[i]);
        high[i] = (uint16_t)((bits + 0x8000u) >> 16);
        low[i] = (uint16_t)bits; /* bits - (high << 16), modulo 2^16 */
    }
    for (size_t i = dim; i < dim16; i++) high[i] = low[i] = 0;
}

static inline KERNEL_TARGET void join_planes(const uint16_t *high, const uint16_t *low, size_t dim, float *out) {
    for (size_t i = 0; i < dim; i++) out[i] = joined(high[i], low[i]);
}

static inline KERNEL_TARGET double add_lanes(double lanes[PLANE_LANES]) {
    for (size_t half = PLANE_LANES / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

static inline KERNEL_TARGET float add_lanes_f32(float lanes[PLANE_LANES]) {
    for (size_t half = PLANE_LANES / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

/* At element i of a row one line of the row `ahead`, of either plane in turn: arithmetic goes on while a line buffer becomes
 * free, where lines that are asked for together wait for each other (docs/decisions/0041). */
static inline KERNEL_TARGET void ask_ahead(const uint16_t *high, const uint16_t *low, size_t i, ptrdiff_t ahead) {
    prefetch_line(i % (2 * PLANE_LANES) ? low + ahead + i - PLANE_LANES : high + ahead + i);
}

static inline KERNEL_TARGET void exact_dot(const double *q, const uint16_t *high, const uint16_t *low, ptrdiff_t ahead,
                                           size_t dim16, double *dot, double *norm2) {
    double dots[PLANE_LANES] = {0}, squares[PLANE_LANES] = {0};
    for (size_t i = 0; i < dim16; i += PLANE_LANES) {
        ask_ahead(high, low, i, ahead);
        for (size_t l = 0; l < PLANE_LANES; l++) {
            double x = (double)joined(high[i + l], low[i + l]);
            dots[l] += q[i + l] * x;
            squares[l] += x * x;
        }
    }
    *dot = add_lanes(dots);
    *norm2 = add_lanes(squares);
}

static inline KERNEL_TARGET double exact_l2(const double *q, const uint16_t *high, const uint16_t *low, ptrdiff_t ahead,
                                            size_t dim16) {
    double sums[PLANE_LANES] = {0};
    for (size_t i = 0; i < dim16; i += PLANE_LANES) {
        ask_ahead(high, low, i, ahead);
        for (size_t l = 0; l < PLANE_LANES; l++) {
            double d = q[i + l] - (double)joined(high[i + l], low[i + l]);
            sums[l] += d * d;
        }
    }
    return add_lanes(sums);
}

static inline KERNEL_TARGET void code_dot(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes,
                                          size_t code_bytes, const uint32_t *slots, uint32_t n, int32_t *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *code = codes + (size_t)slots[r] * code_bytes;
        int32_t sum = 0;
        for (size_t i = 0; i < code_bytes; i++) sum += (code[i] & 15) * q_lo[i] + (code[i] >> 4) * q_hi[i];
        out[r] = sum;
    }
}

static inline KERNEL_TARGET void weights(const float *x, const float *step, float inverse, int8_t *q) {
    for (size_t i = 0; i < CODE_BLOCK_BYTES; i++) {
        float w = inverse > 0 ? x[i] * step[i] * inverse : 0.0f;
        q[i] = (int8_t)(int32_t)(w + (w < 0 ? -0.5f : 0.5f));
    }
}

static inline KERNEL_TARGET void code_prepare(const float *x, const float *lo, const float *step, size_t dim64,
                                              int8_t *q_lo, int8_t *q_hi, float *base, float *scale) {
    float lanes[PLANE_LANES] = {0}, sizes[PLANE_LANES] = {0}, largest = 0;
    for (size_t i = 0; i < dim64; i += PLANE_LANES) {
        for (size_t l = 0; l < PLANE_LANES; l++) {
            float w = x[i + l] * step[i + l], size = w < 0 ? -w : w;
            sizes[l] = size > sizes[l] ? size : sizes[l];
        }
    }
    for (size_t l = 0; l < PLANE_LANES; l++) largest = sizes[l] > largest ? sizes[l] : largest;
    /* A largest weight whose inverse is infinite, or that is itself, quantises to nothing. */
    bool usable = largest >= CODE_WEIGHT_MIN && largest <= CODE_WEIGHT_MAX;
    float inverse = usable ? 127.0f / largest : 0.0f;
    for (size_t i = 0; i < dim64; i += CODE_DIMS, q_lo += CODE_BLOCK_BYTES, q_hi += CODE_BLOCK_BYTES) {
        weights(x + i, step + i, inverse, q_lo);
        weights(x + i + CODE_BLOCK_BYTES, step + i + CODE_BLOCK_BYTES, inverse, q_hi);
    }
    for (size_t i = 0; i < dim64; i += PLANE_LANES)
        for (size_t l = 0; l < PLANE_LANES; l++) lanes[l] += x[i + l] * lo[i + l];
    *base = add_lanes_f32(lanes);
    *scale = usable ? largest / 127.0f : 0.0f;
}

static inline KERNEL_TARGET uint8_t quantised(float x, float lo, float inv_step) {
    float v = (x - lo) * inv_step + 0.5f;
    return v >= 15.0f ? 15 : v > 0.0f ? (uint8_t)v : 0;
}

static inline KERNEL_TARGET void code_encode(const float *x, const float *lo, const float *inv_step, size_t dim64,
                                             uint8_t *code) {
    for (size_t i = 0; i < dim64; i += CODE_DIMS) {
        for (size_t j = 0; j < CODE_BLOCK_BYTES; j++) {
            size_t a = i + j, b = a + CODE_BLOCK_BYTES;
            *code++ = (uint8_t)(quantised(x[a], lo[a], inv_step[a]) | quantised(x[b], lo[b], inv_step[b]) << 4);
        }
    }
}

static inline KERNEL_TARGET void code_decode(const uint8_t *code, const float *lo, const float *step, size_t dim64,
                                             float *out) {
    for (size_t i = 0; i < dim64; i += CODE_DIMS) {
        for (size_t j = 0; j < CODE_BLOCK_BYTES; j++, code++) {
            size_t a = i + j, b = a + CODE_BLOCK_BYTES;
            out[a] = lo[a] + step[a] * (float)(*code & 15);
            out[b] = lo[b] + step[b] * (float)(*code >> 4);
        }
    }
}

static inline KERNEL_TARGET void high_dot(const float *q, const uint16_t *high, size_t dim16, const uint32_t *slots,
                                          uint32_t n, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint16_t *row = high + (size_t)slots[r] * dim16;
        float lanes[PLANE_LANES] = {0};
        for (size_t i = 0; i < dim16; i += PLANE_LANES)
            for (size_t l = 0; l < PLANE_LANES; l++) lanes[l] += q[i + l] * joined(row[i + l], 0);
        out[r] = add_lanes_f32(lanes);
    }
}

static inline KERNEL_TARGET void high_l2(const float *q, const uint16_t *high, size_t dim16, const uint32_t *slots,
                                         uint32_t n, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint16_t *row = high + (size_t)slots[r] * dim16;
        float lanes[PLANE_LANES] = {0};
        for (size_t i = 0; i < dim16; i += PLANE_LANES) {
            for (size_t l = 0; l < PLANE_LANES; l++) {
                float d = q[i + l] - joined(row[i + l], 0);
                lanes[l] += d * d;
            }
        }
        out[r] = add_lanes_f32(lanes);
    }
}

static inline KERNEL_TARGET void row_dot(const float *q, const uint16_t *high, const uint16_t *low, size_t dim16,
                                         const uint32_t *slots, uint32_t n, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint16_t *h = high + (size_t)slots[r] * dim16, *l = low + (size_t)slots[r] * dim16;
        float lanes[PLANE_LANES] = {0};
        for (size_t i = 0; i < dim16; i += PLANE_LANES)
            for (size_t at = i; at < i + PLANE_LANES; at++) lanes[at - i] += q[at] * joined(h[at], l[at]);
        out[r] = add_lanes_f32(lanes);
    }
}

static inline KERNEL_TARGET void row_l2(const float *q, const uint16_t *high, const uint16_t *low, const float *scales,
                                        size_t dim16, const uint32_t *slots, uint32_t n, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint16_t *h = high + (size_t)slots[r] * dim16, *l = low + (size_t)slots[r] * dim16;
        const float scale = scales ? scales[slots[r]] : 1.0f; /* a product with 1 is exact */
        float lanes[PLANE_LANES] = {0};
        for (size_t i = 0; i < dim16; i += PLANE_LANES) {
            for (size_t at = i; at < i + PLANE_LANES; at++) {
                float d = q[at] - scale * joined(h[at], l[at]);
                lanes[at - i] += d * d;
            }
        }
        out[r] = add_lanes_f32(lanes);
    }
}

static inline KERNEL_TARGET uint32_t merge(candidate *pool, uint32_t size, const float *distances,
                                           const uint32_t *nodes, uint32_t n) {
    uint32_t first = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = size++;
        for (; at && pool[at - 1].distance > distances[i]; at--) pool[at] = pool[at - 1];
        pool[at] = (candidate){distances[i], nodes[i]};
        first = first < at ? first : at;
    }
    return first;
}

#include "edge_generic.h"

/* A table of the kernels above, but for code_dot and edge_near. */
#define KERNEL_TABLE(isa, dot, near)     \
    const kernel_table kernels_##isa = { \
        .name = #isa,                    \
        .split_planes = split_planes,    \
        .join_planes = join_planes,      \
        .exact_dot = exact_dot,          \
        .exact_l2 = exact_l2,            \
        .code_dot = dot,                 \
        .code_prepare = code_prepare,    \
        .code_encode = code_encode,      \
        .code_decode = code_decode,      \
        .high_dot = high_dot,            \
        .high_l2 = high_l2,              \
        .row_dot = row_dot,              \
        .row_l2 = row_l2,                \
        .edge_rotate = edge_rotate,      \
        .edge_code = edge_code,          \
        .edge_prepare = edge_prepare,    \
        .edge_near = near,               \
        .edge_nearest = edge_nearest,    \
        .merge = merge,                  \
    }
