/* The scalar kernels: they define the answer that every other table gives, bit for bit. */
#define KERNEL_TARGET
#include "kernels_generic.h"

static KERNEL_TARGET void code_dot(const int8_t *q_lo, const int8_t *q_hi, const uint8_t *codes, size_t code_bytes,
                                   const uint32_t *slots, uint32_t n, int32_t *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *code = codes + (size_t)slots[r] * code_bytes;
        int32_t sum = 0;
        for (size_t i = 0; i < code_bytes; i++) sum += (code[i] & 15) * q_lo[i] + (code[i] >> 4) * q_hi[i];
        out[r] = sum;
    }
}

KERNEL_TABLE(scalar);
