/* edge_near for Advanced SIMD: as for AVX2, with 16 links to a vector. */
static inline KERNEL_TARGET uint8x16_t look_up(const uint8_t *tables, size_t number, const uint8_t *codes) {
    uint8x16_t c = vld1q_u8(codes), even = vld1q_u8(tables + number * EDGE_TABLE_BYTES),
               odd = vld1q_u8(tables + (number + 1) * EDGE_TABLE_BYTES);
    return vaddq_u8(vqtbl1q_u8(even, vandq_u8(c, vdupq_n_u8(15))), vqtbl1q_u8(odd, vshrq_n_u8(c, 4)));
}

static KERNEL_TARGET uint32_t edge_near_neon(const uint8_t *tables, const uint8_t *codes, const uint16_t *factors,
                                             size_t dim64, float scale, float offset, float most, float *out) {
    uint16x8_t sums[4] = {vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0)};
    uint16_t flat[EDGE_LANES];
    for (size_t i = 0; i < dim64 / 8; i += 2) {
        const uint8_t *a = codes + i * EDGE_LANES, *b = a + EDGE_LANES;
        uint8x16_t first = vaddq_u8(look_up(tables, 2 * i, a), look_up(tables, 2 * i + 2, b));
        uint8x16_t second = vaddq_u8(look_up(tables, 2 * i, a + 16), look_up(tables, 2 * i + 2, b + 16));
        sums[0] = vaddw_u8(sums[0], vget_low_u8(first));
        sums[1] = vaddw_high_u8(sums[1], first);
        sums[2] = vaddw_u8(sums[2], vget_low_u8(second));
        sums[3] = vaddw_high_u8(sums[3], second);
    }
    for (uint32_t i = 0; i < 4; i++) vst1q_u16(flat + 8 * i, sums[i]);
    return below(flat, factors, scale, offset, most, out);
}
