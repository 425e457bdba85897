/* AVX2 (Haswell, Zen and later). */
#if defined(__x86_64__)
#define KERNEL_TARGET __attribute__((target("avx2")))
#include "kernels_generic.h"

#include <immintrin.h>

/* Products of a block's 32 code bytes, added in 8 lanes.  Two products of at most 15 x 127 fit 16 bits eight times over,
 * so the low and high halves are added there before they are widened. */
static inline KERNEL_TARGET __m256i products(__m256i code, __m256i q_lo, __m256i q_hi) {
    const __m256i low_half = _mm256_set1_epi8(0x0f);
    __m256i lo = _mm256_and_si256(code, low_half), hi = _mm256_and_si256(_mm256_srli_epi16(code, 4), low_half);
    __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(lo, q_lo), _mm256_maddubs_epi16(hi, q_hi));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

static inline KERNEL_TARGET __m256i load_block(const void *row, size_t at) {
    return _mm256_loadu_si256((const __m256i *)((const char *)row + at));
}

/* Four rows at a time: the query is loaded once for all, and their sums are added across together. */
static KERNEL_TARGET void code_dot(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes, size_t code_bytes,
                                   const uint32_t *slots, uint32_t n, int32_t *out) {
    for (uint32_t r = 0; r < n; r += 4) {
        /* A short last group scores its last row again rather than run a loop of its own. */
        uint32_t last = n - 1, r1 = min_u32(r + 1, last), r2 = min_u32(r + 2, last), r3 = min_u32(r + 3, last);
        const uint8_t *a = codes + slots[r] * code_bytes, *b = codes + slots[r1] * code_bytes;
        const uint8_t *c = codes + slots[r2] * code_bytes, *d = codes + slots[r3] * code_bytes;
        __m256i sa = _mm256_setzero_si256(), sb = sa, sc = sa, sd = sa;
        for (size_t i = 0; i < code_bytes; i += CODE_BLOCK_BYTES) {
            __m256i lo = load_block(q_lo, i), hi = load_block(q_hi, i);
            sa = _mm256_add_epi32(sa, products(load_block(a, i), lo, hi));
            sb = _mm256_add_epi32(sb, products(load_block(b, i), lo, hi));
            sc = _mm256_add_epi32(sc, products(load_block(c, i), lo, hi));
            sd = _mm256_add_epi32(sd, products(load_block(d, i), lo, hi));
        }
        __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(sa, sb), _mm256_hadd_epi32(sc, sd));
        __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
        int32_t group[4];
        _mm_storeu_si128((__m128i *)group, sums);
        for (uint32_t i = r; i < min_u32(n, r + 4); i++) out[i] = group[i - r];
    }
}

KERNEL_TABLE(avx2);
#endif
