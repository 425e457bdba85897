/* AVX-512 F, BW, DQ, VL and VNNI (Ice Lake, Zen 4 and later).
 *
 * Where wider vectors bring nothing, since sums have 16 lanes only or values have to be unpacked first, the kernels of AVX2
 * do as well as any, and better than what the compiler makes of plain C. */
#if defined(__x86_64__)
#define KERNEL_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#include "kernels_avx2.h"
#include "kernels_generic.h"

#include <immintrin.h>

/* Products of 64 code bytes, added in 16 lanes.  The high half of a code byte is used where it stands, 16 times too
 * large: its sum is divided at the end instead of shifting every load. */
typedef struct sums {
    __m512i lo, hi;
} sums;

static inline KERNEL_TARGET void add_products(sums *s, __m512i code, __m512i q_lo, __m512i q_hi) {
    s->lo = _mm512_dpbusd_epi32(s->lo, _mm512_and_si512(code, _mm512_set1_epi8(0x0f)), q_lo);
    s->hi = _mm512_dpbusd_epi32(s->hi, _mm512_and_si512(code, _mm512_set1_epi8((char)0xf0)), q_hi);
}

/* The bytes from `at` on, at most 64: half a vector where one block of 32 is left, its upper half zeros. */
static inline KERNEL_TARGET __m512i load_from(const void *row, size_t at, size_t bytes) {
    const char *p = (const char *)row + at;
    return at + 64 <= bytes ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi32(0x00ff, p);
}

static inline KERNEL_TARGET __m512i lanes(sums s) { return _mm512_add_epi32(s.lo, _mm512_srai_epi32(s.hi, 4)); }

/* The sums of four vectors. */
static inline KERNEL_TARGET __m128i add_four(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    __m512i four = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(four), _mm512_extracti64x4_epi64(four, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* Four rows at a time: the query is loaded once for all, and their sums are added across together. */
static KERNEL_TARGET void code_dot_avx512(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes,
                                          size_t code_bytes, const uint32_t *slots, uint32_t n, int32_t *out) {
    uint32_t r = 0;
    for (; r + 4 <= n; r += 4) {
        const uint8_t *a = codes + slots[r] * code_bytes, *b = codes + slots[r + 1] * code_bytes;
        const uint8_t *c = codes + slots[r + 2] * code_bytes, *d = codes + slots[r + 3] * code_bytes;
        sums s[4] = {0};
        for (size_t i = 0; i < code_bytes; i += 64) {
            __m512i lo = load_from(q_lo, i, code_bytes), hi = load_from(q_hi, i, code_bytes);
            add_products(&s[0], load_from(a, i, code_bytes), lo, hi);
            add_products(&s[1], load_from(b, i, code_bytes), lo, hi);
            add_products(&s[2], load_from(c, i, code_bytes), lo, hi);
            add_products(&s[3], load_from(d, i, code_bytes), lo, hi);
        }
        _mm_storeu_si128((__m128i *)(out + r), add_four(lanes(s[0]), lanes(s[1]), lanes(s[2]), lanes(s[3])));
    }
    for (; r < n; r++) {
        const uint8_t *row = codes + slots[r] * code_bytes;
        sums s = {0};
        for (size_t i = 0; i < code_bytes; i += 64)
            add_products(&s, load_from(row, i, code_bytes), load_from(q_lo, i, code_bytes),
                         load_from(q_hi, i, code_bytes));
        out[r] = _mm512_reduce_add_epi32(lanes(s));
    }
}

#include "edge_avx512.h"

const kernel_table kernels_avx512 = {
    .name = "avx512",
    .split_planes = split_planes,
    .join_planes = join_planes,
    .exact_dot = exact_dot_avx2,
    .exact_l2 = exact_l2,
    .code_dot = code_dot_avx512,
    .code_prepare = code_prepare_avx2,
    .code_encode = code_encode,
    .code_decode = code_decode,
    .high_dot = high_dot_avx2,
    .high_l2 = high_l2_avx2,
    .row_dot = row_dot_avx2,
    .row_l2 = row_l2_avx2,
    .edge_rotate = edge_rotate_avx2,
    .edge_code = edge_code,
    .edge_prepare = edge_prepare_avx2,
    .edge_near = edge_near_avx512,
    .edge_nearest = edge_nearest_avx2,
    .merge = merge_avx2,
};
#endif
