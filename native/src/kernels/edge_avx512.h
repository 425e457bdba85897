/* edge_near for AVX-512: as for AVX2, 16 dimensions of 32 links at a time. */
static inline KERNEL_TARGET uint32_t sixteen_below(__m256i sums, const uint16_t *factors, uint32_t at, __m512 scale,
                                                   __m512 offset, __m512 most, float *out) {
    const __m256i *factor = (const __m256i *)(factors + at), *addend = (const __m256i *)(factors + EDGE_LANES + at);
    __m512i slope = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(factor)), 16);
    __m512i base = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(addend)), 16);
    __m512 weight = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sums)), scale), offset);
    __m512 estimate = _mm512_add_ps(_mm512_mul_ps(_mm512_castsi512_ps(slope), weight), _mm512_castsi512_ps(base));
    _mm512_storeu_ps(out + at, estimate);
    return _mm512_cmp_ps_mask(estimate, most, _CMP_NGE_UQ);
}

static KERNEL_TARGET uint32_t edge_near_avx512(const uint8_t *tables, const uint8_t *codes, const uint16_t *factors,
                                               size_t dim64, float scale, float offset, float most, float *out) {
    const __m512i low_half = _mm512_set1_epi8(0x0f);
    __m512i both = _mm512_setzero_si512(), odds = both;
    for (size_t i = 0; i < dim64 / 8; i += 2) {
        __m512i code = _mm512_loadu_si512(codes + i * EDGE_LANES);
        __m512i four = _mm512_loadu_si512(tables + 2 * i * EDGE_TABLE_BYTES);
        __m512i of_low = _mm512_shuffle_i32x4(four, four, 0xa0), of_high = _mm512_shuffle_i32x4(four, four, 0xf5);
        __m512i low = _mm512_and_si512(code, low_half), high = _mm512_and_si512(_mm512_srli_epi16(code, 4), low_half);
        __m512i two = _mm512_add_epi8(_mm512_shuffle_epi8(of_low, low), _mm512_shuffle_epi8(of_high, high));
        both = _mm512_add_epi16(both, two);
        odds = _mm512_add_epi16(odds, _mm512_srli_epi16(two, 8));
    }
    __m256i odd = _mm256_add_epi16(_mm512_castsi512_si256(odds), _mm512_extracti64x4_epi64(odds, 1));
    __m256i sum = _mm256_add_epi16(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
    __m256i even = _mm256_sub_epi16(sum, _mm256_slli_epi16(odd, 8));
    __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
    __m512 s = _mm512_set1_ps(scale), o = _mm512_set1_ps(offset), m = _mm512_set1_ps(most);
    return sixteen_below(_mm256_permute2x128_si256(low, high, 0x20), factors, 0, s, o, m, out) |
           sixteen_below(_mm256_permute2x128_si256(low, high, 0x31), factors, 16, s, o, m, out) << 16;
}
