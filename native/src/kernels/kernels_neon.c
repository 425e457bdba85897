/* Advanced SIMD with the dot product extension (ARMv8.2-A: Graviton 2, Apple M1, Cortex-A76 and later). */
#if defined(__aarch64__)
#define KERNEL_TARGET __attribute__((target("dotprod")))
#include "kernels_generic.h"

#include <arm_neon.h>

/* Codes are 0 .. 15, so they are also valid signed bytes. */
static inline KERNEL_TARGET int32_t row_dot(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *code, size_t bytes) {
    int32x4_t lo = vdupq_n_s32(0), hi = vdupq_n_s32(0);
    for (size_t i = 0; i < bytes; i += 16) {
        uint8x16_t c = vld1q_u8(code + i);
        lo = vdotq_s32(lo, vreinterpretq_s8_u8(vandq_u8(c, vdupq_n_u8(15))), vld1q_s8(q_lo + i));
        hi = vdotq_s32(hi, vreinterpretq_s8_u8(vshrq_n_u8(c, 4)), vld1q_s8(q_hi + i));
    }
    return vaddvq_s32(vaddq_s32(lo, hi));
}

static KERNEL_TARGET void code_dot(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes, size_t code_bytes,
                                   const uint32_t *slots, uint32_t n, int32_t *out) {
    for (uint32_t r = 0; r < n; r++) out[r] = row_dot(q_lo, q_hi, codes + slots[r] * code_bytes, code_bytes);
}

KERNEL_TABLE(neon);
#endif
