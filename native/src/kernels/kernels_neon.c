/* Advanced SIMD with the dot product extension (ARMv8.2-A: Graviton 2, Apple M1, Cortex-A76 and later). */
#if defined(__aarch64__)
#define KERNEL_TARGET __attribute__((target("dotprod")))
#include "kernels_generic.h"

#include <arm_neon.h>

/* Products of 16 code bytes, added in 4 lanes.  Codes are 0 .. 15, so they are also valid signed bytes. */
static inline KERNEL_TARGET int32x4_t add_products(int32x4_t sum, const uint8_t *code, int8x16_t q_lo, int8x16_t q_hi) {
    uint8x16_t c = vld1q_u8(code);
    sum = vdotq_s32(sum, vreinterpretq_s8_u8(vandq_u8(c, vdupq_n_u8(15))), q_lo);
    return vdotq_s32(sum, vreinterpretq_s8_u8(vshrq_n_u8(c, 4)), q_hi);
}

/* Four rows at a time: the query is loaded once for all, and their sums are added across together. */
static KERNEL_TARGET void code_dot_neon(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes, size_t code_bytes,
                                        const uint32_t *slots, uint32_t n, int32_t *out) {
    uint32_t r = 0;
    for (; r + 4 <= n; r += 4) {
        const uint8_t *a = codes + slots[r] * code_bytes, *b = codes + slots[r + 1] * code_bytes;
        const uint8_t *c = codes + slots[r + 2] * code_bytes, *d = codes + slots[r + 3] * code_bytes;
        int32x4_t sa = vdupq_n_s32(0), sb = sa, sc = sa, sd = sa;
        for (size_t i = 0; i < code_bytes; i += 16) {
            int8x16_t lo = vld1q_s8(q_lo + i), hi = vld1q_s8(q_hi + i);
            sa = add_products(sa, a + i, lo, hi);
            sb = add_products(sb, b + i, lo, hi);
            sc = add_products(sc, c + i, lo, hi);
            sd = add_products(sd, d + i, lo, hi);
        }
        vst1q_s32(out + r, vpaddq_s32(vpaddq_s32(sa, sb), vpaddq_s32(sc, sd)));
    }
    for (; r < n; r++) {
        const uint8_t *row = codes + slots[r] * code_bytes;
        int32x4_t sum = vdupq_n_s32(0);
        for (size_t i = 0; i < code_bytes; i += 16)
            sum = add_products(sum, row + i, vld1q_s8(q_lo + i), vld1q_s8(q_hi + i));
        out[r] = vaddvq_s32(sum);
    }
}

#include "edge_neon.h"

KERNEL_TABLE(neon, code_dot_neon, edge_near_neon);
#endif
