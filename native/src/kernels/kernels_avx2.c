/* AVX2 (Haswell, Zen and later). */
#if defined(__x86_64__)
#define KERNEL_TARGET __attribute__((target("avx2")))
#include "kernels_generic.h"

#include <immintrin.h>

static inline KERNEL_TARGET int32_t add_eight(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

/* Two products of at most 15 x 127 fit 16 bits eight times over, so a block's low and high halves are added there before
 * they are widened. */
static inline KERNEL_TARGET int32_t row_dot(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *code, size_t bytes) {
    const __m256i low_half = _mm256_set1_epi8(0x0f), ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < bytes; i += CODE_BLOCK_BYTES) {
        __m256i c = _mm256_loadu_si256((const __m256i *)(code + i));
        __m256i lo = _mm256_and_si256(c, low_half), hi = _mm256_and_si256(_mm256_srli_epi16(c, 4), low_half);
        __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(lo, _mm256_loadu_si256((const __m256i *)(q_lo + i))),
                                         _mm256_maddubs_epi16(hi, _mm256_loadu_si256((const __m256i *)(q_hi + i))));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    return add_eight(sum);
}

static KERNEL_TARGET void code_dot(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes, size_t code_bytes,
                                   const uint32_t *slots, uint32_t n, int32_t *out) {
    for (uint32_t r = 0; r < n && r < CODE_AHEAD; r++) prefetch_row(codes + (size_t)slots[r] * code_bytes, code_bytes);
    for (uint32_t r = 0; r < n; r++) {
        if (r + CODE_AHEAD < n) prefetch_row(codes + (size_t)slots[r + CODE_AHEAD] * code_bytes, code_bytes);
        out[r] = row_dot(q_lo, q_hi, codes + (size_t)slots[r] * code_bytes, code_bytes);
    }
}

KERNEL_TABLE(avx2);
#endif
