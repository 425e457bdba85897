/* AVX-512 F, BW, DQ, VL and VNNI (Ice Lake, Zen 4 and later). */
#if defined(__x86_64__)
#define KERNEL_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#include "kernels_generic.h"

#include <immintrin.h>

/* The high half of a code byte is used where it stands, 16 times too large: its sum is divided at the end instead of
 * shifting every load. */
static inline KERNEL_TARGET int32_t row_dot(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *code, size_t bytes) {
    const __m512i low_half = _mm512_set1_epi8(0x0f), high_half = _mm512_set1_epi8((char)0xf0);
    __m512i lo = _mm512_setzero_si512(), hi = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64) {
        __m512i c = _mm512_loadu_si512(code + i);
        lo = _mm512_dpbusd_epi32(lo, _mm512_and_si512(c, low_half), _mm512_loadu_si512(q_lo + i));
        hi = _mm512_dpbusd_epi32(hi, _mm512_and_si512(c, high_half), _mm512_loadu_si512(q_hi + i));
    }
    if (i < bytes) {             /* one block of 32 bytes is left; the upper half loads as zeros */
        const __mmask16 half = 0x00ff;
        __m512i c = _mm512_maskz_loadu_epi32(half, code + i);
        lo = _mm512_dpbusd_epi32(lo, _mm512_and_si512(c, low_half), _mm512_maskz_loadu_epi32(half, q_lo + i));
        hi = _mm512_dpbusd_epi32(hi, _mm512_and_si512(c, high_half), _mm512_maskz_loadu_epi32(half, q_hi + i));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(lo, _mm512_srai_epi32(hi, 4)));
}

static KERNEL_TARGET void code_dot(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes, size_t code_bytes,
                                   const uint32_t *slots, uint32_t n, int32_t *out) {
    for (uint32_t r = 0; r < n && r < CODE_AHEAD; r++) prefetch_row(codes + (size_t)slots[r] * code_bytes, code_bytes);
    for (uint32_t r = 0; r < n; r++) {
        if (r + CODE_AHEAD < n) prefetch_row(codes + (size_t)slots[r + CODE_AHEAD] * code_bytes, code_bytes);
        out[r] = row_dot(q_lo, q_hi, codes + (size_t)slots[r] * code_bytes, code_bytes);
    }
}

KERNEL_TABLE(avx512);
#endif
