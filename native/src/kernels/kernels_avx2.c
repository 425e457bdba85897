/* AVX2 with FMA (Haswell, Zen and later).
 *
 * Written by hand is what a search or a build does most, where the compiler's own loop takes half as many instructions
 * again or more: docs/benchmarks.md has the counts (docs/decisions/0021).  Rows are scored four at a time: the query is
 * loaded once for all, none waits for its own sums, and these are added across together. */
#if defined(__x86_64__)
#define KERNEL_TARGET __attribute__((target("avx2,fma")))
#include "kernels_avx2.h"
#include "kernels_generic.h"

#include <immintrin.h>

#define GROUP_ROWS 4u
/* A helper whose row count is known where it is called: arrays of sums become registers. */
#define KERNEL_PART static inline __attribute__((always_inline)) KERNEL_TARGET

/* ---- products of codes ---- */

/* Two products take at most 2 x 15 x 127 of a 16-bit lane: eight blocks are added before sums have to be widened. */
#define SPAN_BYTES (8 * CODE_BLOCK_BYTES)

KERNEL_PART __m256i load_block(const void *row, size_t at) {
    return _mm256_loadu_si256((const __m256i *)((const char *)row + at));
}

KERNEL_PART int32_t total_avx2(__m256i lanes) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

/* What bytes at .. end - 1 of each row give, at most SPAN_BYTES, in 8 sums. */
KERNEL_PART void span_sums(__m256i sums[], const uint8_t *const row[], const uint32_t rows, const int8_t *q_lo,
                           const int8_t *q_hi, size_t at, size_t end) {
    const __m256i low_half = _mm256_set1_epi8(0x0f), ones = _mm256_set1_epi16(1);
    __m256i lower[GROUP_ROWS], upper[GROUP_ROWS];
    for (uint32_t r = 0; r < rows; r++) lower[r] = upper[r] = _mm256_setzero_si256();
    for (; at < end; at += CODE_BLOCK_BYTES) {
        const __m256i lo = load_block(q_lo, at), hi = load_block(q_hi, at);
        for (uint32_t r = 0; r < rows; r++) {
            const __m256i code = load_block(row[r], at), half = _mm256_srli_epi16(code, 4);
            lower[r] = _mm256_add_epi16(lower[r], _mm256_maddubs_epi16(_mm256_and_si256(code, low_half), lo));
            upper[r] = _mm256_add_epi16(upper[r], _mm256_maddubs_epi16(_mm256_and_si256(half, low_half), hi));
        }
    }
    for (uint32_t r = 0; r < rows; r++)
        sums[r] = _mm256_add_epi32(_mm256_madd_epi16(lower[r], ones), _mm256_madd_epi16(upper[r], ones));
}

/* Sums of `rows` rows, each in 8 lanes. */
KERNEL_PART void code_rows(__m256i sums[], const uint32_t rows, const int8_t *q_lo, const int8_t *q_hi,
                           const uint8_t *codes, size_t code_bytes, const uint32_t *slots) {
    const uint8_t *row[GROUP_ROWS];
    for (uint32_t r = 0; r < rows; r++) row[r] = codes + slots[r] * code_bytes;
    size_t end = code_bytes < SPAN_BYTES ? code_bytes : SPAN_BYTES;
    span_sums(sums, row, rows, q_lo, q_hi, 0, end);
    for (size_t at = end; at < code_bytes; at = end) {
        __m256i more[GROUP_ROWS];
        end = code_bytes - at < SPAN_BYTES ? code_bytes : at + SPAN_BYTES;
        span_sums(more, row, rows, q_lo, q_hi, at, end);
        for (uint32_t r = 0; r < rows; r++) sums[r] = _mm256_add_epi32(sums[r], more[r]);
    }
}

static KERNEL_TARGET void code_dot_avx2(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes, size_t code_bytes,
                                        const uint32_t *slots, uint32_t n, int32_t *out) {
    __m256i s[GROUP_ROWS];
    uint32_t r = 0;
    for (; r + GROUP_ROWS <= n; r += GROUP_ROWS) {
        code_rows(s, GROUP_ROWS, q_lo, q_hi, codes, code_bytes, slots + r);
        const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
        _mm_storeu_si128((__m128i *)(out + r),
                         _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
    }
    for (; r < n; r++) {
        code_rows(s, 1, q_lo, q_hi, codes, code_bytes, slots + r);
        out[r] = total_avx2(s[0]);
    }
}

/* ---- codes ---- */

/* 32 integers within the range of a byte, eight a vector, as bytes. */
KERNEL_PART __m256i as_bytes(const __m256i v[4]) {
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

KERNEL_PART __m256i weights_avx2(const float *x, const float *step, __m256 inverse) {
    const __m256 sign = _mm256_set1_ps(-0.0f), half = _mm256_set1_ps(0.5f);
    __m256i q[4];
    for (size_t i = 0; i < 4; i++) {
        const __m256 w =
            _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_loadu_ps(step + 8 * i)), inverse);
        q[i] = _mm256_cvttps_epi32(_mm256_add_ps(w, _mm256_or_ps(_mm256_and_ps(w, sign), half)));
    }
    return as_bytes(q);
}

/* Lane l and l + 8, then l + 4, l + 2 and l + 1; a holds lanes 0 to 7, b 8 to 15. */
KERNEL_PART float add_lanes_avx2(__m256 a, __m256 b) {
    const __m256 eight = _mm256_add_ps(a, b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

KERNEL_PART float largest_avx2(__m256 x) {
    x = _mm256_max_ps(x, _mm256_permute2f128_ps(x, x, 1));
    x = _mm256_max_ps(x, _mm256_permute_ps(x, 0x4e));
    return _mm256_cvtss_f32(_mm256_max_ps(x, _mm256_permute_ps(x, 0xb1)));
}

KERNEL_TARGET void code_prepare_avx2(const float *x, const float *lo, const float *step, size_t dim64, int8_t *q_lo,
                                     int8_t *q_hi, float *base, float *scale) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, sizes[2] = {sums[0], sums[0]};
    for (size_t i = 0; i < dim64; i += PLANE_LANES)
        for (size_t h = 0; h < 2; h++) {
            const __m256 v = _mm256_loadu_ps(x + i + 8 * h);
            const __m256 w = _mm256_mul_ps(v, _mm256_loadu_ps(step + i + 8 * h));
            sizes[h] = _mm256_max_ps(_mm256_andnot_ps(sign, w), sizes[h]);
            sums[h] = _mm256_add_ps(sums[h], _mm256_mul_ps(v, _mm256_loadu_ps(lo + i + 8 * h)));
        }
    const float largest = largest_avx2(_mm256_max_ps(sizes[0], sizes[1]));
    *base = add_lanes_avx2(sums[0], sums[1]);
    if (!(largest >= CODE_WEIGHT_MIN && largest <= CODE_WEIGHT_MAX)) {
        memset(q_lo, 0, dim64 / 2);
        memset(q_hi, 0, dim64 / 2);
        *scale = 0;
        return;
    }
    const __m256 inverse = _mm256_set1_ps(127.0f / largest);
    for (size_t i = 0; i < dim64; i += CODE_DIMS, q_lo += CODE_BLOCK_BYTES, q_hi += CODE_BLOCK_BYTES) {
        _mm256_storeu_si256((__m256i *)q_lo, weights_avx2(x + i, step + i, inverse));
        _mm256_storeu_si256((__m256i *)q_hi,
                            weights_avx2(x + i + CODE_BLOCK_BYTES, step + i + CODE_BLOCK_BYTES, inverse));
    }
    *scale = largest / 127.0f;
}

KERNEL_PART __m256i quantised_avx2(const float *x, const float *lo, const float *inv_step) {
    __m256i codes[4];
    for (size_t i = 0; i < 4; i++) {
        __m256 v = _mm256_sub_ps(_mm256_loadu_ps(x + 8 * i), _mm256_loadu_ps(lo + 8 * i));
        v = _mm256_add_ps(_mm256_mul_ps(v, _mm256_loadu_ps(inv_step + 8 * i)), _mm256_set1_ps(0.5f));
        /* The second operand of both where v is no number. */
        v = _mm256_min_ps(_mm256_max_ps(v, _mm256_setzero_ps()), _mm256_set1_ps(15.0f));
        codes[i] = _mm256_cvttps_epi32(v);
    }
    return as_bytes(codes);
}

static KERNEL_TARGET void code_encode_avx2(const float *x, const float *lo, const float *inv_step, size_t dim64,
                                           uint8_t *code) {
    for (size_t i = 0; i < dim64; i += CODE_DIMS, code += CODE_BLOCK_BYTES) {
        const size_t j = i + CODE_BLOCK_BYTES;
        const __m256i lower = quantised_avx2(x + i, lo + i, inv_step + i);
        const __m256i upper = quantised_avx2(x + j, lo + j, inv_step + j);
        _mm256_storeu_si256((__m256i *)code, _mm256_or_si256(lower, _mm256_slli_epi16(upper, 4)));
    }
}

KERNEL_PART void decode_eight(__m256i levels, const float *lo, const float *step, float *out) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(step), _mm256_cvtepi32_ps(levels));
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(lo), x));
}

static KERNEL_TARGET void code_decode_avx2(const uint8_t *code, const float *lo, const float *step, size_t dim64,
                                           float *out) {
    for (size_t i = 0; i < dim64; i += CODE_DIMS, code += CODE_BLOCK_BYTES)
        for (size_t a = i, b = i + CODE_BLOCK_BYTES; a < i + CODE_BLOCK_BYTES; a += 8, b += 8) {
            const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(code + (a - i))));
            decode_eight(_mm256_and_si256(bytes, _mm256_set1_epi32(15)), lo + a, step + a, out + a);
            decode_eight(_mm256_srli_epi32(bytes, 4), lo + b, step + b, out + b);
        }
}

/* ---- exact rows ---- */

/* Both planes of 16 elements as float64: out[0] has elements 0 to 3, out[1] 8 to 11, out[2] 4 to 7, out[3] 12 to 15, since
 * unpacking stays within halves of a vector. */
KERNEL_PART void join_wide(const uint16_t *high, const uint16_t *low, __m256d out[4]) {
    const __m256i l = load_block(low, 0);
    /* The low plane is signed: where it is negative, the upper 16 bits of the sum are one less than the high plane. */
    const __m256i h = _mm256_add_epi16(load_block(high, 0), _mm256_srai_epi16(l, 15));
    const __m256 a = _mm256_castsi256_ps(_mm256_unpacklo_epi16(l, h)),
                 b = _mm256_castsi256_ps(_mm256_unpackhi_epi16(l, h));
    out[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    out[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
    out[2] = _mm256_cvtps_pd(_mm256_castps256_ps128(b));
    out[3] = _mm256_cvtps_pd(_mm256_extractf128_ps(b, 1));
}

/* Where element 0 of each vector of join_wide stands. */
static const uint8_t WIDE_AT[4] = {0, 8, 4, 12};

/* The tree of sums, of lanes as join_wide has them. */
KERNEL_PART double add_wide(const __m256d lanes[4]) {
    const __m256d four = _mm256_add_pd(_mm256_add_pd(lanes[0], lanes[1]), _mm256_add_pd(lanes[2], lanes[3]));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

/* Products of two float32 are exact in float64: fused or not, the sums are the same. */
KERNEL_TARGET void exact_dot_avx2(const double *q, const uint16_t *high, const uint16_t *low, ptrdiff_t ahead,
                                  size_t dim16, double *dot, double *norm2) {
    __m256d dots[4], squares[4], x[4];
    for (size_t l = 0; l < 4; l++) dots[l] = squares[l] = _mm256_setzero_pd();
    for (size_t i = 0; i < dim16; i += PLANE_LANES) {
        ask_ahead(high, low, i, ahead);
        join_wide(high + i, low + i, x);
        for (size_t l = 0; l < 4; l++) {
            dots[l] = _mm256_fmadd_pd(x[l], _mm256_loadu_pd(q + i + WIDE_AT[l]), dots[l]);
            squares[l] = _mm256_fmadd_pd(x[l], x[l], squares[l]);
        }
    }
    *dot = add_wide(dots);
    *norm2 = add_wide(squares);
}

/* Squares of differences are rounded before they are added: nothing is fused here. */
static KERNEL_TARGET double exact_l2_avx2(const double *q, const uint16_t *high, const uint16_t *low, ptrdiff_t ahead,
                                          size_t dim16) {
    __m256d sums[4], x[4];
    for (size_t l = 0; l < 4; l++) sums[l] = _mm256_setzero_pd();
    for (size_t i = 0; i < dim16; i += PLANE_LANES) {
        ask_ahead(high, low, i, ahead);
        join_wide(high + i, low + i, x);
        for (size_t l = 0; l < 4; l++) {
            const __m256d d = _mm256_sub_pd(x[l], _mm256_loadu_pd(q + i + WIDE_AT[l]));
            sums[l] = _mm256_add_pd(sums[l], _mm256_mul_pd(d, d));
        }
    }
    return add_wide(sums);
}

/* ---- high planes, and both, in float32 ---- */

/* Sixteen elements: out[0] has lanes 0 to 3 and 8 to 11, out[1] 4 to 7 and 12 to 15, as unpacking has it.  low: NULL for zeros. */
KERNEL_PART void join_lanes(const uint16_t *high, const uint16_t *low, __m256 out[2]) {
    const __m256i l = low ? load_block(low, 0) : _mm256_setzero_si256();
    const __m256i h = _mm256_add_epi16(load_block(high, 0), _mm256_srai_epi16(l, 15)); /* as in join_wide */
    out[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(l, h));
    out[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(l, h));
}

/* Sums of `rows` rows, in lanes as join_lanes has them. */
KERNEL_PART void float_rows(__m256 sums[][2], const uint32_t rows, const bool l2, const float *q, const uint16_t *high,
                            const uint16_t *low, const float *scales, size_t dim16, const uint32_t *slots) {
    const uint16_t *h[GROUP_ROWS], *l[GROUP_ROWS];
    __m256 scale[GROUP_ROWS];
    for (uint32_t r = 0; r < rows; r++) {
        h[r] = high + slots[r] * dim16;
        l[r] = low ? low + slots[r] * dim16 : NULL;
        if (scales) scale[r] = _mm256_set1_ps(scales[slots[r]]);
        sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    }
    for (size_t i = 0; i < dim16; i += PLANE_LANES) {
        const __m256 a = _mm256_loadu_ps(q + i), b = _mm256_loadu_ps(q + i + 8);
        const __m256 q2[2] = {_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)};
        for (uint32_t r = 0; r < rows; r++) {
            __m256 x[2];
            join_lanes(h[r] + i, low ? l[r] + i : NULL, x);
            for (size_t half = 0; half < 2; half++) {
                if (scales) x[half] = _mm256_mul_ps(scale[r], x[half]);
                const __m256 d = l2 ? _mm256_sub_ps(q2[half], x[half]) : x[half];
                sums[r][half] = _mm256_add_ps(sums[r][half], _mm256_mul_ps(l2 ? d : q2[half], d));
            }
        }
    }
}

/* The first two steps of the tree of sums: 16 lanes become four. */
KERNEL_PART __m128 four_lanes(const __m256 sums[2]) {
    const __m128 a = _mm_add_ps(_mm256_castps256_ps128(sums[0]), _mm256_extractf128_ps(sums[0], 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(sums[1]), _mm256_extractf128_ps(sums[1], 1));
    return _mm_add_ps(a, b);
}

/* The third step, of two rows. */
KERNEL_PART __m128 two_lanes(__m128 a, __m128 b) { return _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a)); }

KERNEL_PART void float_avx2(const bool l2, const float *q, const uint16_t *high, const uint16_t *low,
                            const float *scales, size_t dim16, const uint32_t *slots, uint32_t n, float *out) {
    __m256 s[GROUP_ROWS][2];
    uint32_t r = 0;
    for (; r + GROUP_ROWS <= n; r += GROUP_ROWS) {
        float_rows(s, GROUP_ROWS, l2, q, high, low, scales, dim16, slots + r);
        const __m128 ab = two_lanes(four_lanes(s[0]), four_lanes(s[1]));
        const __m128 cd = two_lanes(four_lanes(s[2]), four_lanes(s[3]));
        _mm_storeu_ps(out + r, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
    }
    for (; r < n; r++) {
        float_rows(s, 1, l2, q, high, low, scales, dim16, slots + r);
        const __m128 two = two_lanes(four_lanes(s[0]), _mm_setzero_ps());
        out[r] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
}

KERNEL_TARGET void high_dot_avx2(const float *q, const uint16_t *high, size_t dim16, const uint32_t *slots, uint32_t n,
                                 float *out) {
    float_avx2(false, q, high, NULL, NULL, dim16, slots, n, out);
}

KERNEL_TARGET void high_l2_avx2(const float *q, const uint16_t *high, size_t dim16, const uint32_t *slots, uint32_t n,
                                float *out) {
    float_avx2(true, q, high, NULL, NULL, dim16, slots, n, out);
}

KERNEL_TARGET void row_dot_avx2(const float *q, const uint16_t *high, const uint16_t *low, size_t dim16,
                                const uint32_t *slots, uint32_t n, float *out) {
    float_avx2(false, q, high, low, NULL, dim16, slots, n, out);
}

KERNEL_TARGET void row_l2_avx2(const float *q, const uint16_t *high, const uint16_t *low, const float *scales,
                               size_t dim16, const uint32_t *slots, uint32_t n, float *out) {
    if (scales) float_avx2(true, q, high, low, scales, dim16, slots, n, out);
    else float_avx2(true, q, high, low, NULL, dim16, slots, n, out);
}

#include "edge_avx2.h"
#include "merge_avx2.h"

const kernel_table kernels_avx2 = {
    .name = "avx2",
    .split_planes = split_planes,
    .join_planes = join_planes,
    .exact_dot = exact_dot_avx2,
    .exact_l2 = exact_l2_avx2,
    .code_dot = code_dot_avx2,
    .code_prepare = code_prepare_avx2,
    .code_encode = code_encode_avx2,
    .code_decode = code_decode_avx2,
    .high_dot = high_dot_avx2,
    .high_l2 = high_l2_avx2,
    .row_dot = row_dot_avx2,
    .row_l2 = row_l2_avx2,
    .edge_rotate = edge_rotate_avx2,
    .edge_code = edge_code,
    .edge_prepare = edge_prepare_avx2,
    .edge_near = edge_near_avx2,
    .edge_nearest = edge_nearest_avx2,
    .merge = merge_avx2,
};
#endif
